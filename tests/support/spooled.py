"""Requests whose data is in the spool, for tests: handed to a dispatch, served, and looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pool.config.settings import PoolSettings, Template
from pool.config.source import Upload, names_of
from pool.errors import CvatError, CvatUnreachable
from pool.model import RequestRecord, RequestState, TaskState, new_id
from pool.process import Process
from pool.requests.dispatcher import Dispatcher
from pool.store import NewRequest, Opened
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import PATIENCE

CONTENT = b"some bytes"
#: A template beside the one of all tests.
OTHER = Template(name="other", labels=({"name": "tram"},), pool=PoolSettings(min_size=2))
IMPORTING, QUEUED, READY = RequestState.IMPORTING, RequestState.QUEUED, RequestState.READY


def receive(engine: Process, name: str = "a.jpg") -> tuple[Upload, NewRequest]:
    """One file, complete in the spool, as the HTTP side leaves it."""
    incoming = engine.spool.receive(new_id())
    incoming.add(name).write(CONTENT)
    upload = incoming.finish(sync=False)
    request = NewRequest(id=incoming.request_id, files=names_of(upload), size=upload.size)
    return upload, request


def accept(
    engine: Process, dispatch: Dispatcher, template: Template, *, key: str | None = None
) -> Opened:
    upload, request = receive(engine)
    return dispatch.accept(template, upload, request, idempotency_key=key, payload="p")


def accepted(engine: Process, dispatch: Dispatcher, template: Template) -> str:
    """The id of a request that was handed over."""
    opened = accept(engine, dispatch, template)
    assert opened.request is not None
    return opened.request.id


def serve(dispatch: Dispatcher) -> int:
    """Rounds until nothing more is begun; answers how many were."""
    started = 0
    assert dispatch.drain(PATIENCE)
    while (report := dispatch.run_once()).started or report.asked:
        started += report.started
        assert dispatch.drain(PATIENCE)
    assert dispatch.drain(PATIENCE)
    return started


def read(engine: Process, request_id: str) -> RequestRecord:
    record = engine.store.request(request_id)
    assert record is not None
    return record


def state(engine: Process, request_id: str) -> RequestState:
    return read(engine, request_id).state


def entries(engine: Process) -> list[str]:
    """Whose data is in the spool."""
    folder = engine.spool.folder
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


def levels(engine: Process, template: Template) -> dict[str, int]:
    """Live tasks by state."""
    found = engine.store.levels().get(template.name)
    return {state.value: count for state, count in found.counts.items() if count} if found else {}


def go_down(cvat: ScriptedCvat, error: CvatError | None = None) -> None:
    """From now on no call gets through."""

    def refuse(_operation: str) -> None:
        raise error or CvatUnreachable("connection refused")

    cvat.before = refuse


def come_back(cvat: ScriptedCvat) -> None:
    cvat.before = lambda _operation: None


def import_all(engine: Process, cvat: ScriptedCvat, clock: ManualClock) -> None:
    """CVAT makes the jobs of all that is being imported, and the tracker finds them."""
    for task in engine.store.tasks(states=(TaskState.IMPORTING,)):
        cvat.make_ready(task.task_id or 0)
    while (wait := engine.tracker.seconds_until_due()) is not None:
        clock.advance(wait)
        engine.tracker.run_once()


def uploads(cvat: ScriptedCvat) -> Sequence[Any]:
    """The tasks that data was sent to, in order."""
    return [call[1] for call in cvat.calls if call[0] == "upload"]
