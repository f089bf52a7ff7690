"""What tests of webhooks share: a project, a caller that counts, imports that can be announced."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import urllib3

from pool import TaskPool
from pool.config.settings import Template
from pool.daemon import Daemon
from pool.model import RequestRecord, RequestState
from pool.process import Process
from pool.simulator import SimulatorServer
from pool.status import WebhookState
from pool.store import CreateLimit, NewLease, NewRequest
from pool.tracking.webhook_setup import WebhookReport, WebhookSetup

#: The webhook that scripted deliveries are of, and what it speaks for.
HOOK = 5
SCOPE = "project:12"


# --- With the simulator -------------------------------------------------------------------------


def new_project(
    simulator: SimulatorServer,
    organization: str = "",
    *,
    name: str = "hooked",
    labels: Sequence[str] = ("car",),
) -> int:
    with urllib3.PoolManager() as http:
        answer = http.request(
            "POST",
            f"{simulator.url}/api/projects",
            json={"name": name, "labels": [{"name": label} for label in labels]},
            headers={
                "Authorization": f"Bearer {simulator.access_token}",
                "X-Organization": organization,
            },
        )
    return int(answer.json()["id"])


@dataclass
class Counted:
    """A pool as another process has it, and what it asked of the server."""

    pool: TaskPool
    calls: Counter[str] = field(default_factory=Counter)


def install(setup: WebhookSetup, daemon: Daemon) -> WebhookReport:
    """Install and ping; the daemon knows at once."""
    reports = {report.scope: report for report in setup.install(f"{daemon.url}/webhooks/cvat")}
    assert reports.pop("").templates == ("scenes",)
    (report,) = reports.values()
    return setup.ping(report)


def state(caller: Counted, template: str = "hooked") -> WebhookState:
    return {row.name: row.hooks for row in caller.pool.status().templates}[template]


def serve(caller: Counted, image: bytes, *names: str) -> list[int]:
    files = [(name, image) for name in names or ("a.jpg",)]
    return [job.id for job in caller.pool.submit("hooked", files).jobs(timeout=20)]


# --- With a scripted server ---------------------------------------------------------------------


class Imports:
    """Brings tasks to where CVAT imports into them, for this process or for another one."""

    def __init__(self, engine: Process, template: Template) -> None:
        self.process, self.template = engine, template
        self.count = 0

    def begin(
        self,
        *files: str,
        owner: str = "",
        watched: bool = True,
        with_request: bool = True,
        answered: bool = True,
        frames: tuple[str, ...] | None = None,
    ) -> int:
        """With ``frames`` it is in doubt whether the data, which is in the spool then, has arrived;
        and so it is, while it is sent, until the upload is ``answered``."""
        self.count += 1
        store, now, number = self.process.store, self.process.clock.now(), self.count
        limit = CreateLimit(capacity=99, concurrency=99)
        fingerprint = self.template.fingerprint
        store.begin_create(
            f"pooled{number}", self.template.name, fingerprint, limit=limit, owner="o", now=now
        )
        store.record_created(f"pooled{number}", task_id=100 + number, now=now)
        store.finish_create(f"pooled{number}", prepared=True, now=now)
        lease = NewLease(
            id=f"lease{number}",
            template=self.template.name,
            fingerprint=fingerprint,
            owner=owner or self.process.owner,
            ttl=60.0,
        )
        request = NewRequest(
            id=f"request{number}",
            files=files or ("a.jpg",),
            size=10,
            spooled=frames is not None,
        )
        opened = store.open_lease(lease, request=request if with_request else None, now=now)
        if opened.request is not None and answered:
            import_id = opened.request.import_id or ""
            store.begin_import(import_id, deadline=now + 600, frames=frames, now=now)
            if watched and not owner:
                self.process.tracker.watch(import_id, kind="images")
        return 100 + number

    def read(self, number: int) -> RequestRecord:
        record = self.process.store.request(f"request{number}")
        assert record is not None
        return record

    def state(self, task_id: int) -> RequestState:
        return self.read(task_id - 100).state


def created(task_id: int, *, stop_frame: int = 0, kind: str = "annotation") -> bytes:
    job = {"id": task_id * 10, "task_id": task_id, "start_frame": 0, "stop_frame": stop_frame}
    return body("create:job", job={**job, "type": kind, "assignee": None})


def completed(task_id: int, status: str = "finished", message: str = "") -> bytes:
    request = {"status": status, "message": message, "operation": {"task_id": task_id}}
    return body("completed:request[create:task]", request=request)


def body(event: str, **more: Any) -> bytes:
    return json.dumps({"event": event, "webhook_id": HOOK, **more}).encode()


PING = json.dumps({"event": "ping", "webhook": {"id": HOOK}}).encode()
