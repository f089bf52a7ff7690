"""Every change of a state is an event: the right one, once, at the time of the change."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from conformance.store_scene import FINGERPRINT, JOBS, NOW, TEMPLATE, Scene, data, wish
from pool.errors import IdempotencyConflict
from pool.model import KINDS, EndedRequest, Event, Hold, Outcome, new_id
from pool.store import CreateLimit, NewMember, Opened, Store

#: Times of steps that follow each other.
T1, T2, T3, T4 = (NOW + 10 * step for step in range(1, 5))


def recorded(scene: Scene, *, after: int = 0) -> list[tuple[str, float]]:
    """The kinds and times of all events after one."""
    events = scene.store.events_after(after, limit=1000)
    assert [event.id for event in events] == sorted({event.id for event in events})
    for event in events:
        what, _, how = event.kind.partition(".")
        assert event.kind in KINDS
        assert event.template == TEMPLATE
        assert event.state == ("active" if how == "handed_out" else how)
        assert (event.request_id is not None) or what != "request"
    return [(event.kind, event.at) for event in events]


def last(scene: Scene) -> Event:
    store = scene.store
    (event,) = store.events_after(store.last_event_id() - 1, limit=9)
    return event


def make_warm(scene: Scene, *, now: float) -> str:
    task = scene.creating(now=NOW)
    scene.store.record_created(task.id, task_id=next(scene.task_ids), now=NOW)
    assert scene.store.finish_create(task.id, prepared=True, now=now)
    return task.id


# --- The way of a request -------------------------------------------------------------------------


def test_a_hit(scene: Scene) -> None:
    make_warm(scene, now=T1)
    opened = scene.store.open_lease(wish(), request=data(), now=T2)
    assert opened.request and opened.task
    scene.store.begin_import(scene.import_id(opened.request.id), deadline=T4, now=T3)
    scene.store.complete_import(opened.task.id, JOBS, now=T4)
    assert recorded(scene) == [
        ("task.warm", T1),
        ("request.uploading", T2),
        ("lease.handed_out", T2),
        ("request.importing", T3),
        ("lease.used", T3),
        ("request.ready", T4),
    ]
    ready = last(scene)
    assert (ready.request_id, ready.lease_id) == (opened.request.id, opened.lease.id)
    assert (ready.task_id, ready.outcome, ready.code) == (opened.task.task_id, "hit", "")
    assert (ready.seconds, ready.server_seconds, ready.held_seconds) == (T4 - T2, T4 - T3, 0.0)


def test_a_wait(scene: Scene) -> None:
    opened = scene.queued(now=T1)
    make_warm(scene, now=T2)
    assert opened.request
    assert scene.store.claim_warm(opened.lease.id, FINGERPRINT, now=T3)
    assert scene.store.begin_import(scene.import_id(opened.request.id), deadline=T4, now=T4)
    assert recorded(scene) == [
        ("request.queued", T1),
        ("task.warm", T2),
        ("request.uploading", T3),
        ("lease.handed_out", T3),
        ("request.importing", T4),
        ("lease.used", T4),
    ]
    _, _, uploading, handed_out, _, _ = scene.store.events_after(0, limit=9)
    assert (handed_out.outcome, handed_out.seconds) == ("wait", T3 - T1)
    assert (handed_out.server_seconds, uploading.seconds) == (None, None)
    assert (handed_out.held_seconds, uploading.held_seconds) == (None, None)


def test_a_cold_task(scene: Scene) -> None:
    opened = scene.waiting(now=T1)
    task = scene.store.begin_create(
        new_id(), TEMPLATE, FINGERPRINT, limit=None, owner="here", now=T2
    )
    assert task
    scene.store.record_created(task.id, task_id=7, now=T2)
    assert scene.store.finish_cold(task.id, opened.lease.id, prepared=True, now=T3)
    assert recorded(scene) == [("lease.handed_out", T3)]
    assert (last(scene).task_id, last(scene).outcome) == (7, "cold")


def test_data_for_a_lease_is_told_when_it_comes(scene: Scene) -> None:
    opened = scene.leased(now=T1)
    before = scene.store.last_event_id()
    assert scene.store.attach_request(opened.lease.id, data(), owner="here", now=T2)
    assert recorded(scene, after=before) == [("request.uploading", T2)]


def test_jobs_that_are_seen_before_the_uploads_answer(scene: Scene) -> None:
    opened = scene.uploading(now=T1)
    before = scene.store.last_event_id()
    scene.store.complete_import(opened.lease.pooled_id or "", JOBS, verified=True, now=T2)
    assert recorded(scene, after=before) == [
        ("lease.handed_out", T1),
        ("request.ready", T2),
        ("lease.used", T2),
    ]
    ready = scene.store.events_after(before, limit=2)[1]
    assert (ready.seconds, ready.server_seconds) == (T2 - T1, 0.0)


def hold(store: Store, template: str = "", *, since: float) -> None:
    store.hold(Hold(template=template, code="c", reason="r", since=since, retry_at=None))


@pytest.mark.parametrize(
    ("holds", "before", "after"),
    [
        ([("", -5, -1)], 0, 0),
        ([("", 2, 6)], 4, 0),
        ([(TEMPLATE, 2, 6)], 4, 0),
        ([("other", 2, 6)], 0, 0),
        ([("", -5, 3), (TEMPLATE, 8, 30)], 5, 0),
        ([("", 1, 8), (TEMPLATE, 1, 8)], 7, 0),
        ([("", 1, 5), ("", 6, 8), (TEMPLATE, 3, 7)], 7, 0),
        ([("", 2, None)], 8, 2),
        ([("", 9, 11)], 1, 1),
        ([(TEMPLATE, 9, 11)], 1, 0),
        ([("", 12, 15)], 0, 0),
    ],
)
def test_the_time_in_which_it_was_held_is_a_part_of_its_own(
    scene: Scene, holds: list[tuple[str, float, float | None]], before: float, after: float
) -> None:
    """Queued at 0, uploading at 9, accepted at 10, ready at 12. From then on only CVAT itself can
    hold it up."""
    for template, since, until in holds:
        hold(scene.store, template, since=NOW + since)
        # A hold that goes on has not begun anew.
        hold(scene.store, template, since=NOW + since)
        if until is not None:
            assert scene.store.release_hold(template, now=NOW + until)
    opened = scene.queued(now=NOW)
    assert opened.request is not None
    task_id = make_warm(scene, now=NOW)
    assert scene.store.claim_warm(opened.lease.id, FINGERPRINT, now=NOW + 9)
    scene.store.begin_import(scene.import_id(opened.request.id), deadline=NOW + 99, now=NOW + 10)
    seen = scene.store.last_event_id()
    scene.store.complete_import(task_id, JOBS, now=NOW + 12)
    ready = scene.store.events_after(seen, limit=1)[0]
    assert (ready.kind, ready.seconds) == ("request.ready", 12)
    assert (ready.server_seconds, ready.held_seconds) == (2 - after, before + after)
    (ended,) = scene.store.ended_requests(since=NOW, limit=9)
    parts = (ended.server_seconds, ended.held_seconds)
    assert parts == (ready.server_seconds, ready.held_seconds)


@pytest.mark.parametrize("spooled", [False, True], ids=["another task", "put aside"])
def test_tries_that_came_to_nothing_are_cvats_part(scene: Scene, spooled: bool) -> None:
    """Of 20 seconds 5 went into such a try, of which CVAT was held for the last one."""
    opened = scene.uploading(now=NOW)
    request = opened.request
    assert request is not None
    hold(scene.store, since=NOW + 4)
    if spooled:
        assert scene.store.queue_request(
            request.id, expected_lease_id=opened.lease.id, most=None, now=NOW + 5
        )
    else:
        assert scene.requeue(request.id, reason="cut off", now=NOW + 5)
    again = scene.request(request).lease_id
    scene.store.release_hold("", now=NOW + 6)
    make_warm(scene, now=NOW + 8)
    handout = scene.store.claim_warm(again, FINGERPRINT, now=NOW + 9)
    assert handout is not None
    scene.store.begin_import(scene.import_id(request.id), deadline=NOW + 99, now=NOW + 10)
    scene.store.complete_import(handout.task.id, JOBS, now=NOW + 20)
    (ended,) = scene.store.ended_requests(since=NOW, limit=9)
    assert (ended.seconds, ended.server_seconds, ended.held_seconds) == (20, 10 + 4, 2)


def test_a_failed_import(scene: Scene) -> None:
    opened = scene.importing(now=T1)
    before = scene.store.last_event_id()
    scene.store.fail_import(opened.lease.pooled_id or "", code="cut", message="m", now=T2)
    assert recorded(scene, after=before) == [("task.failed", T2), ("request.failed", T2)]
    assert (last(scene).code, last(scene).server_seconds) == ("cut", T2 - T1)


def test_a_request_that_fails_before_its_data_is_accepted(scene: Scene) -> None:
    queued, uploading = scene.queued(now=T1), scene.uploading(now=T1)
    before = scene.store.last_event_id()
    for opened in (queued, uploading):
        assert opened.request
        scene.store.fail_request(opened.request.id, code="c", message="", now=T2)
    assert recorded(scene, after=before) == [
        ("request.failed", T2),
        ("request.failed", T2),
        ("task.failed", T2),
    ]
    failed = scene.store.events_after(before, limit=1)[0]
    assert (failed.server_seconds, failed.held_seconds) == (None, None)


def test_a_request_whose_task_goes_back(scene: Scene) -> None:
    opened = scene.uploading(now=T1)
    before = scene.store.last_event_id()
    assert opened.request
    scene.store.fail_request(opened.request.id, untouched=True, code="c", message="", now=T2)
    assert recorded(scene, after=before) == [("request.failed", T2)]


def test_a_request_is_handed_out_when_it_is_served(scene: Scene) -> None:
    """However often its upload was tried before, and its import afterwards."""
    store, opened = scene.store, scene.uploading(now=T1)
    request = opened.request
    assert request
    before = store.last_event_id()
    for _ in range(3):
        lease_id = scene.request(request).lease_id
        assert store.queue_request(request.id, expected_lease_id=lease_id, most=None, now=T2)
        member = NewMember(request_id=request.id)
        assert store.claim_queued([member], FINGERPRINT, owner="here", now=T3)
    assert {kind for kind, _ in recorded(scene, after=before)} == {
        "request.queued",
        "request.uploading",
    }
    assert (store.hand_outs(), store.demand(TEMPLATE, since=0)) == ({}, [])
    assert store.begin_import(scene.import_id(request.id), deadline=T4, now=T4)
    assert store.hand_outs() == {TEMPLATE: {Outcome.WAIT: 1}}
    handed_out = store.events_after(before, limit=99)[-3]
    assert (handed_out.kind, handed_out.seconds) == ("lease.handed_out", T3 - T1)
    # CVAT loses the import, and the request gets another task.
    after = store.last_event_id()
    scene.warm(now=T4)
    again = scene.requeue(request.id, reason="lost", now=T4)
    assert store.claim_warm(again, FINGERPRINT, now=T4)
    assert store.begin_import(scene.import_id(request.id), deadline=T4, now=T4)
    assert store.hand_outs() == {TEMPLATE: {Outcome.WAIT: 1}}
    assert "lease.handed_out" not in {kind for kind, _ in recorded(scene, after=after)}


def test_data_that_goes_back_ends_the_lease_that_its_caller_had(scene: Scene) -> None:
    opened = scene.leased(now=T1)
    handout = scene.store.attach_request(opened.lease.id, data(), owner="here", now=T2)
    assert handout and handout.request
    before = scene.store.last_event_id()
    assert scene.store.fail_request(
        handout.request.id, untouched=True, code="c", message="", now=T3
    )
    assert recorded(scene, after=before) == [
        ("request.failed", T3),
        ("task.warm", T3),
        ("lease.released", T3),
    ]
    assert scene.store.hand_outs() == {TEMPLATE: {Outcome.HIT: 1}}


def test_a_request_that_needs_another_task(scene: Scene) -> None:
    opened = scene.importing(now=T1)
    before = scene.store.last_event_id()
    assert opened.request
    fresh = scene.requeue(opened.request.id, now=T2)
    assert recorded(scene, after=before) == [("request.queued", T2), ("task.failed", T2)]
    assert scene.store.events_after(before, limit=1)[0].lease_id == fresh


def test_a_request_that_is_called_off(scene: Scene) -> None:
    cancelled, abandoned = scene.queued(now=T1), scene.queued(now=T1)
    before = scene.store.last_event_id()
    assert cancelled.request
    scene.store.cancel_request(cancelled.request.id, now=T2)
    scene.store.abandon_lease(abandoned.lease.id, now=T3)
    assert recorded(scene, after=before) == [("request.cancelled", T2), ("request.cancelled", T3)]


# --- Leases and tasks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda store, lease: store.give_back(lease, now=T2), ["task.warm", "lease.released"]),
        (
            lambda store, lease: store.give_back(lease, now=T2, expired=True),
            ["task.warm", "lease.expired"],
        ),
        (
            lambda store, lease: store.end_lease(lease, reason="r", now=T2),
            ["task.retired", "lease.expired"],
        ),
        (lambda store, lease: store.begin_foreign_import(lease, now=T2), ["lease.used"]),
    ],
)
def test_a_lease_ends(scene: Scene, end: Callable[[Store, str], bool], expected: list[str]) -> None:
    opened = scene.leased(now=T1)
    before = scene.store.last_event_id()
    assert end(scene.store, opened.lease.id)
    assert recorded(scene, after=before) == [(kind, T2) for kind in expected]
    assert last(scene).lease_id == opened.lease.id


def test_the_way_of_a_task_out(scene: Scene) -> None:
    task = scene.retired(now=T1)
    scene.store.begin_delete(owner="here", limit=9, retry_after=60, now=T2)
    scene.store.finish_delete(task.id, now=T3)
    assert recorded(scene) == [("task.warm", T1), ("task.retired", T1), ("task.deleted", T3)]


def test_a_create_that_comes_to_nothing_and_is_adopted(scene: Scene) -> None:
    task = scene.creating(now=NOW)
    scene.store.fail_create(task.id, reason="r", now=T1)
    scene.store.begin_delete(owner="here", limit=9, retry_after=60, now=T2)
    scene.store.finish_delete(task.id, now=T2)
    scene.store.adopt_task(task.id, task_id=9, prepared=False, now=T3)
    assert recorded(scene) == [("task.failed", T1), ("task.deleted", T2), ("task.warm", T3)]


def test_tasks_that_leave_together(scene: Scene) -> None:
    for _ in range(3):
        scene.warm(now=NOW)
    scene.store.retire_excess(TEMPLATE, keep=2, reason="r", now=T1)
    scene.store.retire_other_fingerprints(TEMPLATE, "new", reason="r", now=T2)
    assert recorded(scene)[3:] == [("task.retired", T1), ("task.retired", T2), ("task.retired", T2)]


# --- None too many --------------------------------------------------------------------------------


def test_what_does_not_happen_is_no_event(scene: Scene) -> None:
    ready = served(scene, now=T1)
    waiting = scene.waiting(now=T1)
    scene.waiting(key="k")
    before, store = scene.store.last_event_id(), scene.store
    assert ready.request
    assert not store.begin_import(scene.import_id(ready.request.id), deadline=T4, now=T2)
    assert not store.give_back(ready.lease.id, now=T2)
    assert not store.retire("unknown", reason="", now=T2)
    assert not store.claim_warm(waiting.lease.id, FINGERPRINT, now=T2)
    with pytest.raises(IdempotencyConflict):
        store.open_lease(wish(key="k", payload="other"), now=T2)
    assert store.open_lease(wish(key="k"), now=T2).replayed
    store.abandon_lease(waiting.lease.id, now=T2)
    store.renew_owner("here", until=T4)
    store.adopt_requests("other", now=T4)
    scene.creating()
    assert store.last_event_id() == before


def test_events_of_other_processes_are_there(
    scene: Scene, open_another: Callable[[], Store]
) -> None:
    Scene(open_another()).warm(now=T1)
    assert recorded(scene) == [("task.warm", T1)]


def test_an_event_comes_after_all_that_were_there_before(
    scene: Scene, open_another: Callable[[], Store]
) -> None:
    """However many write at once: a reader that goes on from what it has read misses none."""
    writers = [
        threading.Thread(target=write, args=(open_another(), f"writer {number}"))
        for number in range(4)
    ]
    for writer in writers:
        writer.start()
    seen: list[int] = []
    while any(writer.is_alive() for writer in writers) or len(seen) < scene.store.last_event_id():
        seen += [event.id for event in scene.store.events_after(seen[-1] if seen else 0, limit=7)]
    assert len(seen) == 4 * 30
    assert seen == sorted(set(seen))


def write(store: Store, owner: str) -> None:
    limit = CreateLimit(capacity=10_000, concurrency=10_000)
    for number in range(30):
        task = store.begin_create(
            new_id(), TEMPLATE, FINGERPRINT, limit=limit, owner=owner, now=NOW
        )
        assert task
        store.record_created(task.id, task_id=number, now=NOW)
        store.finish_create(task.id, prepared=True, now=NOW)


# --- Reading --------------------------------------------------------------------------------------


def test_events_are_read_page_by_page_and_by_kind(scene: Scene) -> None:
    assert (scene.store.last_event_id(), scene.store.events_after(0, limit=9)) == (0, [])
    served(scene, now=T1)
    first, second = scene.store.events_after(0, limit=2)
    assert scene.store.events_after(second.id, limit=1)[0].id > second.id > first.id
    kinds = ("request.ready", "lease.used")
    assert [event.kind for event in scene.store.events_after(0, limit=9, kinds=kinds)] == [
        "lease.used",
        "request.ready",
    ]
    newest = scene.store.last_event_id()
    assert scene.store.events_after(newest, limit=9) == []
    assert (scene.store.event_at(0), scene.store.event_at(newest)) == (T1, None)


def test_the_newest_ends_of_requests(scene: Scene) -> None:
    for now in (T1, T2, T3):
        served(scene, now=now)
    failed, cancelled = scene.queued(now=T3), scene.queued(now=T3)
    assert failed.request and cancelled.request
    scene.store.fail_request(failed.request.id, code="c", message="why", now=T4)
    scene.store.cancel_request(cancelled.request.id, now=T4)
    ends = scene.store.ended_requests(since=T2, limit=9)
    assert [end.at for end in ends] == [T2, T3, T4]
    assert ends[-1] == EndedRequest(
        request_id=failed.request.id,
        template=TEMPLATE,
        outcome=None,
        at=T4,
        seconds=T4 - T3,
        server_seconds=None,
        held_seconds=None,
        state="failed",
        code="c",
        error="why",
    )
    assert [end.at for end in scene.store.ended_requests(since=0, limit=2)] == [T3, T4]


def served(scene: Scene, *, now: float) -> Opened:
    opened = scene.importing(now=now)
    assert scene.store.complete_import(opened.lease.pooled_id or "", JOBS, now=now)
    return opened
