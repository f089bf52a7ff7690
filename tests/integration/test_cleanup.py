from __future__ import annotations

from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.happening import make_warm, serve
from support.scripted import ScriptedCvat
from support.stepped import IMPORTING, QUEUED, Start, Stepped, go_down

from pool.config.settings import Settings
from pool.config.source import build_upload
from pool.errors import CvatForbidden
from pool.maintenance import cleanup as module
from pool.maintenance.cleanup import EVENTS_FOR, LEAST, SPOOL_GRACE, UNDELIVERED_FOR
from pool.model import TaskState, new_id
from pool.store import FINAL_GRACE, Store


@pytest.fixture
def keep() -> float:
    """Seconds for which finished rows are kept."""
    return 7200.0


@pytest.fixture
def settings(settings: Settings, keep: float) -> Settings:
    return replace(settings, store=replace(settings.store, keep_finished=keep))


def forgettable(daemon: Stepped) -> None:
    """A create that was refused, and is done with."""
    daemon.cvat.failures["create_task"] = [CvatForbidden("read-only")]
    with pytest.raises(CvatForbidden):
        daemon.pool.acquire("scenes")
    assert daemon.run("delete").deleted == 1


def test_finished_rows_are_forgotten_after_their_time(empty: Stepped, keep: float) -> None:
    for _ in range(3):
        forgettable(empty)
    assert len(empty.store.tasks(states=tuple(TaskState))) == 3
    empty.advance(keep)
    empty.run("cleanup")
    assert empty.store.tasks(states=tuple(TaskState)) != []
    empty.advance(1.0)
    empty.run("cleanup")
    assert empty.store.tasks(states=tuple(TaskState)) == []


@pytest.mark.parametrize("keep", [1.0])
def test_what_the_sizing_looks_at_is_kept_whatever_the_settings(empty: Stepped) -> None:
    forgettable(empty)
    empty.advance(LEAST - 60.0)
    assert empty.run("cleanup").rows == 0


# --- Events ---------------------------------------------------------------------------------------


def test_events_are_forgotten_after_a_day(empty: Stepped, store: Store, clock: ManualClock) -> None:
    make_warm(store, 1, 2, now=clock.now())
    empty.advance(EVENTS_FOR)
    make_warm(store, 3, now=clock.now())
    assert empty.run("cleanup").events == 0
    empty.advance(1.0)
    assert empty.run("cleanup").events == 2
    assert [event.task_id for event in store.events_after(0, limit=9)] == [3]


def test_what_a_sink_has_to_be_told_is_kept_with_its_request(
    empty: Stepped, store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.open_sinks(["dead"])
    serve(store, "r1", now=clock.now())
    (step,) = store.due_steps(now=clock.now() + FINAL_GRACE, limit=9)
    assert store.end_step(step, name="n", now=clock.now())
    empty.advance(3 * EVENTS_FOR)
    report = empty.run("cleanup")
    assert (report.events, store.request("r1") is not None) == (0, True)
    make_warm(store, 9, now=clock.now())
    empty.advance(UNDELIVERED_FOR - 3 * EVENTS_FOR)
    assert empty.run("cleanup").events == 0
    monkeypatch.setattr(module, "MOST_EVENTS", 2)
    assert empty.run("cleanup").events == store.last_event_id() - 2, "but never too many"
    store.pass_events("dead", up_to=store.last_event_id())
    empty.run("cleanup")
    assert store.request("r1") is None


def test_nothing_is_kept_for_a_sink_for_more_than_a_week(
    empty: Stepped, store: Store, clock: ManualClock
) -> None:
    store.open_sinks(["dead"])
    make_warm(store, 1, 2, now=clock.now())
    empty.advance(UNDELIVERED_FOR + 1)
    make_warm(store, 3, now=clock.now())
    assert empty.run("cleanup").events == 2


# --- The spool ------------------------------------------------------------------------------------


def test_entries_that_no_unfinished_request_belongs_to_are_dropped(
    daemon: Stepped, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    assert daemon.run("sweep") == 0
    go_down(cvat)
    waiting, cancelled = daemon.accept(), daemon.accept()
    daemon.drain()
    daemon.store.cancel_request(cancelled, now=clock.now())
    never_written_down = daemon.process.spool.receive(new_id())
    never_written_down.add("a.jpg").write(b"some bytes")
    never_written_down.finish(sync=False)
    daemon.process.spool.receive("half-received").discard()
    assert daemon.run("sweep") == 0, "they may be about to be"
    daemon.advance(SPOOL_GRACE - 1.0)
    assert daemon.run("sweep") == 0
    daemon.advance(1.0)
    assert daemon.run("sweep") == 2
    assert daemon.spooled() == [waiting]
    assert daemon.states(waiting) == {QUEUED}


def test_what_is_being_imported_may_be_needed_again(daemon: Stepped) -> None:
    request = daemon.accept()
    daemon.drain()
    assert daemon.states(request) == {IMPORTING}
    daemon.run("sweep")
    daemon.advance(SPOOL_GRACE)
    assert daemon.run("sweep") == 0
    assert daemon.spooled() == [request]


def test_a_daemon_that_does_not_maintain_sweeps_its_folder(start: Start) -> None:
    first, second = start(), start()
    first.process.spool.keep("r1", build_upload([("a.jpg", b"a")]))
    assert second.run("sweep") == 0
    second.advance(SPOOL_GRACE)
    assert second.run("sweep") == 1
