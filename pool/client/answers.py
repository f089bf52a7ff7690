"""What a daemon's answers mean: records of the Python API, and errors with their own classes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args, get_type_hints

from pool.client.steps import Answer
from pool.config.units import retry_after
from pool.errors import CvatBusy, PoolError, PoolUnreachable, QueueFull, UnknownLease, kind_of_error
from pool.model import Event, Job, LeaseState, Outcome, RequestRecord, RequestWarning

if TYPE_CHECKING:
    from pool.model import Status

T = TypeVar("T")

PROBLEM = "application/problem+json"
#: Before the code of an error in the ``type`` of its problem document.
TYPE_PREFIX = "urn:cvat-task-pool:error:"


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenLease:
    """A lease as the daemon tells of it.

    ``jobs`` is None as long as there are none; ``error`` tells why there will be none. What its
    task is called, and so on, is None while it has no task.
    """

    id: str
    template: str
    state: LeaseState
    task_id: int | None = None
    name: str | None = None
    url: str | None = None
    outcome: Outcome | None = None
    expires_at: datetime | None = None
    jobs: tuple[Job, ...] | None = None
    error: PoolError | None = None

    def held(self) -> dict[str, Any]:
        """What its caller's handle holds of it.

        :raises UnknownLease: it has no task, so there is nothing to hold.
        """
        held = {name: getattr(self, name) for name in _HELD}
        if None in held.values():
            raise UnknownLease(f"{self.id} has no task")
        return held


_HELD = ("id", "task_id", "name", "url", "template", "outcome", "expires_at")


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenRequest(RequestRecord):
    """A request as the daemon tells of it, with its page; ``jobs`` is None until it is ready.

    What only the store knows, such as the owner, is left empty.
    """

    owner: str = ""
    url: str | None = None
    jobs: tuple[Job, ...] | None = None


def lease_in(answer: Answer) -> SeenLease:
    """The lease that an answer tells of."""
    told = document_in(answer)
    with _understanding():
        error = told.get("error")
        told |= {"jobs": _jobs(told.get("jobs")), "error": error and _told_error(error)}
        return _made(SeenLease, told)


def request_in(answer: Answer) -> SeenRequest:
    """The request that an answer tells of."""
    told = document_in(answer)
    with _understanding():
        return _request(told)


def status_in(answer: Answer) -> Status:
    """What the pool looks like, as the daemon tells."""
    from pool.model import Status, TemplateStatus

    told = document_in(answer)
    with _understanding():
        rows = tuple(_made(TemplateStatus, each) for each in told["templates"])
        return _made(Status, {**told, "templates": rows})


def drained_in(answer: Answer) -> int:
    """How many tasks a drain has taken out of the pool."""
    told = document_in(answer)
    with _understanding():
        return int(told["retired"])


def event_in(data: str) -> Event:
    """The event that a message of the stream tells of."""
    with _understanding():
        return _made(Event, json.loads(data))


def document_in(answer: Answer) -> dict[str, Any]:
    """The JSON object in an answer.

    :raises PoolUnreachable: it has none: whoever answered is no pool.
    """
    try:
        document = json.loads(answer.content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise not_a_pool(answer)
    return document


def error_in(answer: Answer) -> PoolError:
    """The error that an answer tells of, of the class that raised it in the daemon.

    One of a class that is not known here, from a newer daemon, is a plain PoolError with the
    daemon's words.
    """
    if not answer.headers.get("content-type", "").startswith(PROBLEM):
        return not_a_pool(answer)
    told = document_in(answer)
    with _understanding():
        error = _error(
            str(told.get("type", "")).removeprefix(TYPE_PREFIX),
            str(told.get("title", "")),
            str(told.get("detail", "")) or _findings(told.get("errors", ())),
        )
    if isinstance(error, (CvatBusy, QueueFull)):
        error.retry_after = retry_after(answer.headers.get("retry-after"), now=time.time())
    return error


def not_a_pool(answer: Answer) -> PoolUnreachable:
    """The error for what something other than a pool answers."""
    try:
        phrase = f" {HTTPStatus(answer.status).phrase}"
    except ValueError:
        phrase = ""
    return PoolUnreachable(f"{answer.address} answers {answer.status}{phrase}, and not as a pool")


# --- Inside ---------------------------------------------------------------------------------------


def _error(code: str, title: str, detail: str) -> PoolError:
    kind = kind_of_error(code)
    if kind is not None and kind is not PoolError:
        return kind(detail)
    return PoolError(": ".join(words for words in (title.rstrip("."), detail) if words))


def _told_error(document: Mapping[str, Any]) -> PoolError:
    """The error in a document about something else."""
    code, title, detail = (str(document.get(name) or "") for name in ("code", "title", "detail"))
    return _error(code, title, detail)


def _findings(errors: Sequence[Mapping[str, str]]) -> str:
    """What a validation found, on one line."""
    return "; ".join(f"{each.get('where', '')}: {each.get('what', '')}" for each in errors)


def _request(document: Mapping[str, Any]) -> SeenRequest:
    warnings = tuple(_made(RequestWarning, each) for each in document.get("warnings") or ())
    told = {**document, "jobs": _jobs(document.get("jobs")), "warnings": warnings}
    error = told.pop("error", None)
    if error is not None:
        told |= {"error": _told_error(error).detail, "error_code": str(error.get("code") or "")}
    return _made(SeenRequest, told)


def _jobs(documents: Any) -> tuple[Job, ...] | None:
    return None if documents is None else tuple(_made(Job, each) for each in documents)


def _made(kind: type[T], document: Any) -> T:
    """A record of what a document says of it; what else it says, a newer daemon may know."""
    return kind(
        **{
            name: _read(document[name], options)
            for name, options in _types(cast(Any, kind)).items()
            if name in document
        }
    )


@cache
def _types(kind: Any) -> dict[str, tuple[Any, ...]]:
    """The fields of a record, each with the types that it may have."""
    hints = get_type_hints(kind)
    return {
        each.name: get_args(hints[each.name]) or (hints[each.name],)
        for each in fields(kind)
        if not each.name.startswith("_")
    }


def _read(value: Any, options: tuple[Any, ...]) -> Any:
    """A value of JSON as the first of the types that has a form of its own there."""
    if value is None:
        return None
    for option in options:
        if option is datetime:
            return _time(value)
        if option is float and isinstance(value, str):
            return _time(value).timestamp()
        if isinstance(option, type) and issubclass(option, Enum):
            return option(value)
    return tuple(value) if isinstance(value, list) else value


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


@contextmanager
def _understanding() -> Iterator[None]:
    """Have what is not as it should be told in one line."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PoolError(f"the daemon's answer is not understood here ({error!r})") from None
