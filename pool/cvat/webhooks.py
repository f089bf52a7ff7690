"""CVAT's webhooks: the calls that manage them, their signature, and their bodies.

Source: ``webhooks.json`` of the recordings. A body has neither an id nor a time of the delivery;
its addresses are relative, and fields of a job that the import sets later are not final in
``create:job``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pool.cvat.listing import list_all
from pool.cvat.records import ImportState, ImportStatus, parse_job, reads
from pool.cvat.transport import Transport
from pool.errors import CvatError, CvatRejected
from pool.model import Job

JOB_CREATED: Final = "create:job"
IMPORT_COMPLETED: Final = "completed:request[create:task]"
PING: Final = "ping"
#: The events that the pool subscribes to, and those of them that CVAT has before 2.73.
EVENTS: Final = frozenset({IMPORT_COMPLETED, JOB_CREATED})
OLDER_EVENTS: Final = frozenset({JOB_CREATED})
SIGNATURE_HEADER: Final = "X-Signature-256"

#: CVAT waits up to 10 s for a receiver, and a ping for the delivery.
_PING_TIMEOUT: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Webhook:
    """``GET /api/webhooks``, which never shows the secret."""

    id: int
    target_url: str
    description: str
    project_id: int | None
    is_active: bool
    enable_ssl: bool
    events: frozenset[str]

    @staticmethod
    @reads
    def parse(payload: Any) -> Webhook:
        return Webhook(
            id=int(payload["id"]),
            target_url=str(payload["target_url"]),
            description=str(payload.get("description") or ""),
            project_id=payload.get("project_id"),
            is_active=bool(payload.get("is_active")),
            enable_ssl=bool(payload.get("enable_ssl")),
            events=frozenset(map(str, payload.get("events") or ())),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """The result of one delivery.

    ``status`` is 502 when CVAT got no connection, and 504 when it got no answer; ``response`` is
    the body of the receiver, or of a proxy before it.
    """

    status: int
    response: str = ""


class Webhooks:
    """The webhooks of a project or, without one, of the client's organization.

    Every method raises the errors of :class:`pool.cvat.client.CvatClient`.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def of(self, project_id: int | None) -> list[Webhook]:
        """Return all that these credentials may see, oldest first."""
        found = list_all(self._transport, "webhooks", "/api/webhooks", _scope(project_id))
        return [Webhook.parse(payload) for payload, _ in found]

    def create(
        self, project_id: int | None, *, target_url: str, description: str, secret: str
    ) -> Webhook:
        """Create one for :data:`EVENTS`, or for :data:`OLDER_EVENTS` on an older server.

        :raises CvatRejected: there is no such project, or CVAT refuses the URL.
        """
        fields = {**_scope(project_id), **_fields(target_url, description, secret)}
        return self._subscribe("create_webhook", "POST", "/api/webhooks", fields)

    def replace(
        self, webhook_id: int, *, target_url: str, description: str, secret: str
    ) -> Webhook:
        """Change one to what :meth:`create` would make.

        :raises CvatNotFound: it is gone.
        """
        fields = _fields(target_url, description, secret)
        return self._subscribe("change_webhook", "PATCH", f"/api/webhooks/{webhook_id}", fields)

    def _subscribe(
        self, operation: str, method: str, path: str, fields: Mapping[str, object]
    ) -> Webhook:
        def subscribe(events: frozenset[str]) -> Webhook:
            data = {**fields, "events": sorted(events)}
            return Webhook.parse(self._transport.call(operation, method, path, data=data).json())

        try:
            return subscribe(EVENTS)
        except CvatRejected as error:
            if f'"{IMPORT_COMPLETED}" is not a valid choice' not in error.detail:
                raise
            return subscribe(OLDER_EVENTS)

    def delete(self, webhook_id: int) -> bool:
        """Delete one. Return False when it was gone already."""
        answer = self._transport.call(
            "delete_webhook", "DELETE", f"/api/webhooks/{webhook_id}", accept=(404,)
        )
        return answer.status != 404

    def ping(self, webhook_id: int) -> Delivery:
        """Have CVAT deliver a ``ping`` now, and return the result."""
        answer = self._transport.call(
            "ping_webhook",
            "POST",
            f"/api/webhooks/{webhook_id}/ping",
            timeout=max(self._transport.timeout, _PING_TIMEOUT),
        )
        payload = answer.json()
        if not isinstance(payload, dict):
            raise CvatError("the answer to a ping is no delivery")
        return Delivery(
            status=int(payload.get("status_code") or 0), response=str(payload.get("response") or "")
        )


def _scope(project_id: int | None) -> dict[str, object]:
    if project_id is None:
        return {"type": "organization"}
    return {"type": "project", "project_id": project_id}


def _fields(target_url: str, description: str, secret: str) -> dict[str, Any]:
    return {
        "target_url": target_url,
        "description": description,
        "secret": secret,
        "content_type": "application/json",
        "is_active": True,
        "enable_ssl": target_url.startswith("https:"),
    }


# --- Deliveries ----------------------------------------------------------------------------------


def signature_of(body: bytes, secret: str) -> str:
    """Return the signature header of a body, as CVAT makes it."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def is_signed(body: bytes, signature: str, secret: str) -> bool:
    """Return whether the body was signed with the secret, in constant time."""
    given = signature.encode("utf-8", "replace")
    return hmac.compare_digest(signature_of(body, secret).encode(), given)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """The content of a delivery.

    ``task_id`` is None for events that concern no import. ``job`` is the job of ``create:job``,
    None when it is not one for annotation. ``outcome`` is set when an import has ended.
    """

    name: str
    webhook_id: int | None = None
    task_id: int | None = None
    job: Job | None = field(default=None)
    outcome: ImportState | None = None


def parse_event(body: bytes, job_url: Callable[[int, int], str]) -> Event | None:
    """Return the event of a body; None when CVAT is not known to send such a body.

    ``job_url`` makes a job's page from its task's id and its own.
    """
    try:
        payload = json.loads(body)
        return _event(payload, job_url) if isinstance(payload, dict) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, CvatError):
        return None


def _event(payload: dict[str, Any], job_url: Callable[[int, int], str]) -> Event:
    name = str(payload["event"])
    if name == PING:
        return Event(name=name, webhook_id=int(payload["webhook"]["id"]))
    webhook_id = int(payload["webhook_id"])
    if name == JOB_CREATED:
        job = parse_job(payload["job"], job_url)
        return Event(
            name=name,
            webhook_id=webhook_id,
            task_id=int(payload["job"]["task_id"]),
            job=job[1] if job else None,
        )
    if name == IMPORT_COMPLETED:
        request = payload["request"]
        outcome = ImportState.parse(request)
        ended = outcome.status in (ImportStatus.FINISHED, ImportStatus.FAILED)
        return Event(
            name=name,
            webhook_id=webhook_id,
            task_id=int(request["operation"]["task_id"]),
            outcome=outcome if ended else None,
        )
    return Event(name=name, webhook_id=webhook_id)
