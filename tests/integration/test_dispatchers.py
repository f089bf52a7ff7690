"""Several processes that dispatch the requests of one store at the same time.

Each looks at the same rows, on a scripted CVAT and a clock that the test moves. What one of them
has begun, or waits with, no other begins again, however their looks and deeds interleave.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from support.scripted import ScriptedCvat
from support.stepped import (
    CONTENT,
    FAILED,
    IMPORTING,
    OTHER,
    QUEUED,
    READY,
    Start,
    Stepped,
    Way,
    come_back,
    go_down,
    grouped,
    uploads,
)
from support.waiting import PATIENCE

from pool.config.settings import Template
from pool.config.source import build_upload
from pool.errors import CvatUnreachable
from pool.maintenance.heartbeat import TERM
from pool.model import Outcome, RequestRecord, RequestState, TaskState, new_id
from pool.requests.breaker import SERVER, TRANSIENT_CAP
from pool.requests.dispatcher import GONE_AFTER
from pool.store import CreateLimit, NewRequest


class Two:
    """Two daemons on one store, each with a dispatcher; the first one maintains the store."""

    def __init__(self, start: Start, template: Template) -> None:
        self.template = template
        self.daemons: tuple[Stepped, Stepped] = (start(template), start(template))
        self.dispatchers = [each.process.dispatcher() for each in self.daemons]

    @property
    def first(self) -> Stepped:
        return self.daemons[0]

    def accept(self, name: str = "a.jpg", *, by: int = 0, tenant: str = "", **more: Any) -> str:
        """A request that one of them has accepted."""
        process = self.daemons[by].process
        request_id = new_id(process.clock.now())
        process.spool.keep(request_id, build_upload([(name, CONTENT)]))
        upload = process.spool.load(request_id)
        assert upload is not None
        new = NewRequest(
            id=request_id,
            tenant=tenant,
            files=upload.names,
            frame_numbers=(0,),
            size=upload.size,
            **more,
        )
        self.dispatchers[by].accept(self.template, upload, new)
        return request_id

    def round(self, which: int) -> int:
        """One round of one of them, and the end of what it began."""
        started = self.dispatchers[which].run_once().started
        assert self.dispatchers[which].drain(PATIENCE)
        return started

    def rounds(self) -> int:
        """Rounds of both, one after the other, until nothing more is begun."""
        total = 0
        while started := self.round(0) + self.round(1):
            total += started
        return total

    def drain(self) -> None:
        for dispatcher in self.dispatchers:
            assert dispatcher.drain(PATIENCE)

    def advance(self, seconds: float) -> None:
        self.first.advance(seconds)
        self.daemons[1].process.heartbeat.run_once()

    def states(self, *requests: str) -> set[RequestState]:
        return self.first.states(*requests)

    def read(self, request_id: str) -> RequestRecord:
        return self.first.read(request_id)

    @contextmanager
    def after_look_of_second(self, meanwhile: Callable[[], object]) -> Iterator[None]:
        """Have something happen between the second one's next look and what it does then."""
        recovery = self.daemons[1].process.recovery
        look, looked = recovery.unserved, threading.Event()

        def look_and_wait(*, each: int) -> Any:
            found = look(each=each)
            if not looked.is_set():
                looked.set()
                meanwhile()
            return found

        with mock.patch.object(recovery, "unserved", look_and_wait):
            yield
        assert looked.is_set()


def on_empty(template: Template, choice: Any) -> Template:
    return replace(template, pool=replace(template.pool, on_empty=choice))


@pytest.fixture
def two(start: Start, template: Template) -> Iterator[Two]:
    both = Two(start, template)
    yield both
    for dispatcher in both.dispatchers:
        dispatcher.stop(PATIENCE)


@pytest.fixture
def grouping(start: Start, template: Template) -> Iterator[Two]:
    both = Two(start, grouped(template))
    yield both
    for dispatcher in both.dispatchers:
        dispatcher.stop(PATIENCE)


# --- A pool that is empty -------------------------------------------------------------------------


def test_what_one_has_accepted_waits_for_a_task_as_long_with_the_other(
    two: Two, cvat: ScriptedCvat
) -> None:
    """How long it has waited is in its row, and not in the memory of one process."""
    request = two.accept(by=0)
    assert two.round(1) == 0
    assert cvat.count("create_task") == 0
    two.advance(two.template.pool.max_wait)
    assert two.rounds() == 1
    assert cvat.count("create_task") == 1
    assert two.read(request).outcome is Outcome.COLD


def test_a_daemon_that_starts_takes_over_how_long_one_has_waited(
    start: Start, template: Template, two: Two, cvat: ScriptedCvat
) -> None:
    two.accept(by=0)
    two.advance(template.pool.max_wait / 2)
    late = start(template)
    dispatcher = late.process.dispatcher()
    assert dispatcher.run_once().started == 0
    due = dispatcher.due_at
    assert due is not None
    two.advance(template.pool.max_wait / 2)
    assert dispatcher.run_once().started == 1
    assert dispatcher.stop(PATIENCE)
    assert cvat.count("create_task") == 1


def test_what_may_only_wait_is_not_failed_while_the_other_begins_it(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    two = Two(start, on_empty(template, "wait"))
    request = two.accept(by=0)
    two.advance(template.pool.max_wait)

    def begin() -> None:
        two.first.fill()
        assert two.round(0) == 1

    with two.after_look_of_second(begin):
        assert two.round(1) == 0
    assert two.states(request) == {IMPORTING}
    assert uploads(cvat) == [two.read(request).task_id]


def test_who_may_only_wait_fails_once(start: Start, template: Template) -> None:
    two = Two(start, on_empty(template, "wait"))
    request = two.accept(by=0)
    two.round(1)
    assert two.states(request) == {QUEUED}
    two.advance(template.pool.max_wait)
    two.rounds()
    record = two.read(request)
    assert (record.state, record.error_code) == (FAILED, "pool-empty")
    failed = [
        each for each in two.first.store.events_after(0, limit=99) if each.kind == "request.failed"
    ]
    assert len(failed) == 1


def test_as_many_tasks_are_made_at_once_as_the_template_says_over_all(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    one_at_once = replace(template, pool=replace(template.pool, create_concurrency=1))
    two, go = Two(start, one_at_once), threading.Event()
    requests = [two.accept(by=number % 2) for number in range(4)]
    two.advance(template.pool.max_wait)
    cvat.before = lambda operation: _wait(go) if operation == "create_task" else None
    assert two.dispatchers[0].run_once().started == 1
    assert two.dispatchers[1].run_once().started == 0
    go.set()
    two.drain()
    assert two.rounds() == 3
    assert two.states(*requests) == {IMPORTING}
    assert cvat.count("create_task") == 4


def test_two_that_look_at_the_same_time_make_one_task(two: Two, cvat: ScriptedCvat) -> None:
    request = two.accept(by=0)
    two.advance(two.template.pool.max_wait)
    with two.after_look_of_second(lambda: two.round(0)):
        assert two.round(1) == 0
    assert cvat.count("create_task") == 1
    assert two.states(request) == {IMPORTING}


def test_what_only_the_other_is_configured_for_is_left_to_it(
    two: Two, start: Start, cvat: ScriptedCvat
) -> None:
    """Daemons are given a new configuration one by one."""
    request = two.accept(by=0)
    two.dispatchers[0].run_once()
    other = start(OTHER)
    late = other.process.dispatcher()
    for _ in range(3):
        assert late.run_once().started == 0
        two.advance(GONE_AFTER)
        other.process.heartbeat.run_once()
    assert two.states(request) == {QUEUED}
    assert two.rounds() == 1
    assert two.states(request) == {IMPORTING}
    assert late.stop(PATIENCE)


def test_data_that_cvat_does_not_take_is_tried_no_more_often_by_two(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    """Its pauses, and its failures, are in its row: two try it as often as one does."""

    def tries(rounds: Callable[[Two, str], object]) -> int:
        two = Two(start, template)
        two.first.fill()
        cvat.calls.clear()
        bad = two.accept("bad.jpg")
        for number in range(9):
            two.drain()
            two.accept(f"{number}.jpg")
            two.drain()
            two.first.import_all()
            two.first.fill()
            two.advance(8.0)
            rounds(two, bad)
        assert (two.read(bad).state, two.read(bad).error_code) == (FAILED, "cvat-unreachable")
        two.first.stop()
        two.daemons[1].stop()
        return sum(call[2].names == ("bad.jpg",) for call in cvat.calls if call[0] == "upload")

    upload = cvat.upload

    def choosy(task_id: int, data: Any, params: Any, **options: Any) -> str:
        if data.names == ("bad.jpg",):
            cvat.failures["upload"] = [CvatUnreachable("refused")]
        return upload(task_id, data, params, **options)

    cvat.upload = choosy  # type: ignore[method-assign]
    by_one = tries(lambda two, _: (two.round(0), two.round(0)))
    by_two = tries(lambda two, _: (two.round(1), two.round(0)))
    assert by_one == by_two == 3


# --- What is held ---------------------------------------------------------------------------------


class Calls:
    """Calls of one kind, none of which gets an answer before the test says so."""

    def __init__(self, cvat: ScriptedCvat, operation: str) -> None:
        self.number = 0
        self.go, self._begun = threading.Event(), threading.Event()
        self._operation = operation
        cvat.before = self._hold

    def begin(self) -> None:
        """Wait until one is under way."""
        _wait(self._begun)

    def _hold(self, operation: str) -> None:
        if operation == self._operation:
            self.number += 1
            self._begun.set()
            _wait(self.go)


def held(two: Two, name: str, **how: bool) -> None:
    """A hold of which it is time for a trial."""
    two.first.process.breaker.hold(name, CvatUnreachable("refused"), **how)
    two.advance(TRANSIENT_CAP)


def test_one_of_two_asks_whether_the_server_is_back(two: Two, cvat: ScriptedCvat) -> None:
    two.first.fill()
    held(two, SERVER)
    calls = Calls(cvat, "tasks")
    assert two.dispatchers[0].run_once().asked
    calls.begin()
    for _ in range(3):
        assert not two.dispatchers[1].run_once().asked
        assert not two.daemons[1].process.breaker.ask(), "it is held as before"
        two.advance(1.0)
    calls.go.set()
    two.drain()
    assert calls.number == 1
    assert not two.first.store.holds()


def test_one_of_two_tries_whether_data_is_taken_again(two: Two, cvat: ScriptedCvat) -> None:
    """Also where requests of several tenants wait for the template."""
    two.first.fill()
    held(two, "scenes", uploads=True)
    requests = [two.accept(tenant=tenant) for tenant in ("ann", "robot")]
    calls = Calls(cvat, "upload")
    assert two.dispatchers[0].run_once().started == 1
    calls.begin()
    assert two.dispatchers[1].run_once().started == 0
    assert two.dispatchers[0].run_once().started == 0
    calls.go.set()
    two.drain()
    assert calls.number == 1
    assert not two.first.store.holds()
    two.rounds()
    assert two.states(*requests) == {IMPORTING}


def test_one_of_two_tries_whether_tasks_are_made_again(two: Two, cvat: ScriptedCvat) -> None:
    """The one that refills counts as well."""
    held(two, "scenes")
    request = two.accept()
    two.advance(two.template.pool.max_wait)
    calls = Calls(cvat, "create_task")
    assert two.dispatchers[1].run_once().started == 1
    calls.begin()
    assert two.dispatchers[0].run_once().started == 0
    assert two.first.refill.run_once() == 0
    calls.go.set()
    two.drain()
    assert calls.number == 1
    assert not two.first.store.holds()
    assert two.states(request) == {IMPORTING}
    assert two.first.refill.run_once() > 0


@pytest.mark.parametrize("name", [SERVER, "scenes"])
def test_a_trial_that_fails_prolongs_the_hold_for_both(
    two: Two, cvat: ScriptedCvat, name: str
) -> None:
    two.first.fill()
    held(two, name, uploads=True)
    two.accept()
    calls = Calls(cvat, "tasks")
    calls.go.set()
    cvat.failures["tasks"] = [CvatUnreachable("refused")]
    two.rounds()
    assert calls.number == 1
    retry_at = two.first.store.holds()[SERVER].retry_at
    assert retry_at is not None
    assert retry_at > two.first.clock.now()
    two.advance(TRANSIENT_CAP)
    two.rounds()
    two.rounds()
    assert SERVER not in two.first.store.holds()


def test_what_tries_and_dies_holds_nothing_for_ever(two: Two, cvat: ScriptedCvat) -> None:
    held(two, SERVER)
    assert two.daemons[1].process.breaker.begin_trial(SERVER)
    assert not two.dispatchers[0].run_once().asked
    two.first.advance(2 * TERM)
    assert two.dispatchers[0].run_once().asked
    two.drain()
    assert not two.first.store.holds()


# --- Groups ---------------------------------------------------------------------------------------


def test_one_task_is_made_for_a_group(grouping: Two, cvat: ScriptedCvat) -> None:
    """While one makes it, the other makes no second one for those that will share it."""
    grouping.first.fill()
    busy, go = grouping.accept("first.jpg"), threading.Event()
    grouping.drain()
    grouping.first.store.drain("scenes", reason="none is left", now=grouping.first.clock.now())
    requests = [grouping.accept(f"{number}.jpg", by=number % 2) for number in range(4)]
    assert grouping.rounds() == 0
    grouping.first.import_all()
    grouping.advance(grouping.template.pool.max_wait)
    cvat.calls.clear()
    cvat.before = lambda operation: _wait(go) if operation == "create_task" else None
    assert grouping.dispatchers[0].run_once().started == 1
    assert grouping.dispatchers[1].run_once().started == 0
    go.set()
    grouping.drain()
    assert grouping.states(busy, *requests) == {READY, IMPORTING}
    assert cvat.count("create_task") == cvat.count("upload") == 1
    assert len({grouping.read(each).task_id for each in requests}) == 1


def test_who_loses_a_group_loses_none_of_those_that_came_later(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    """Both form a group; one of them begins it first. What came later goes at once, too."""
    two, again = Two(start, grouped(template, concurrency=3)), mock.Mock()
    two.first.fill()
    requests = [two.accept("0.jpg")]
    two.drain()
    requests += [two.accept(f"{number}.jpg", by=1) for number in (1, 2)]
    two.advance(1.0)
    two.dispatchers[1].on_room(again)

    def begin_some() -> None:
        assert two.round(0) == 2
        two.first.fill()
        requests.append(two.accept("3.jpg", by=0))

    with two.after_look_of_second(begin_some):
        assert two.round(1) == 0
    assert again.called, "it looks again at once, and not in a second"
    two.advance(1.0)
    assert two.round(1) == 1
    assert two.states(*requests) == {IMPORTING}
    assert [len(call[2].files) for call in cvat.calls if call[0] == "upload"] == [1, 2, 1]


def test_no_more_imports_are_under_way_than_there_are_places(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    many = grouped(template, concurrency=2, group_requests=1)
    many = replace(many, pool=replace(many.pool, min_size=8))
    two = Two(start, many)
    two.first.fill()
    requests = [two.accept(f"{number}.jpg", by=number % 2) for number in range(6)]
    two.advance(1.0)
    two.rounds()
    under_way = two.first.store.tasks(states=(TaskState.IMPORTING,))
    assert len(under_way) == 2
    assert two.states(*requests) == {IMPORTING, QUEUED}
    for _ in range(3):
        two.first.import_all()
        two.daemons[1].import_all()
        two.advance(1.0)
        two.rounds()
        assert len(two.first.store.tasks(states=(TaskState.IMPORTING,))) <= 2
    assert two.states(*requests) == {READY}


# --- Tenants --------------------------------------------------------------------------------------


@pytest.mark.parametrize("waited", [1.0, 100.0])
def test_a_long_queue_of_one_tenant_delays_another_by_its_share(
    start: Start, template: Template, cvat: ScriptedCvat, waited: float
) -> None:
    """Also where all of the long queue have waited for so long that they go first."""
    patient = on_empty(template, "wait")
    two = Two(start, replace(patient, pool=replace(patient.pool, max_wait=3600.0)))
    many = [two.accept(by=number % 2, tenant="robot") for number in range(30)]
    two.advance(waited)
    mine = [two.accept(tenant="ann") for _ in range(3)]
    served: list[str] = []
    for _ in range(6):
        warm(two, cvat)
        assert two.rounds() == 1
        served += [
            each
            for each in (*many, *mine)
            if each not in served and two.read(each).state is not QUEUED
        ]
    assert [each for each in served if each in mine] == mine
    assert served == [each for each in served if each in mine or each in many[:3]]


def warm(two: Two, cvat: ScriptedCvat) -> None:
    """One more task that is warm."""
    store, now, pooled_id = two.first.store, two.first.clock.now(), new_id()
    template, limit = two.template, CreateLimit(capacity=99, concurrency=99)
    store.begin_create(
        pooled_id, template.name, template.fingerprint, limit=limit, owner="o", now=now
    )
    store.record_created(pooled_id, task_id=cvat.create_task({}, pooled_id), now=now)
    assert store.finish_create(pooled_id, prepared=True, now=now)


def _wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


# --- One that alone cannot reach the server -------------------------------------------------------


class CutOff:
    """Two daemons, of which the first one maintains the store, and cannot reach the server."""

    def __init__(self, start: Start, cvat: ScriptedCvat) -> None:
        self.way = Way(cvat)
        self.first, self.second = start(way=self.way), start()
        self.first.fill()
        self.way.blocked = True

    def advance(self, seconds: float = TRANSIENT_CAP) -> None:
        """Let time pass, in which both live and look at what waits."""
        for _ in range(round(seconds)):
            self.first.advance(1.0)
            self.second.renew()
            self.serve()

    def serve(self) -> None:
        self.first.serve()
        self.second.serve()

    def served_by(self, request: str) -> str | None:
        return self.first.read(request).owner


@pytest.fixture
def apart(start: Start, cvat: ScriptedCvat) -> CutOff:
    return CutOff(start, cvat)


def test_one_that_alone_cannot_reach_the_server_leaves_the_work_to_the_other(
    apart: CutOff,
) -> None:
    first, second = apart.first, apart.second
    request = first.accept()
    first.drain()
    assert apart.first.store.holds().keys() == {SERVER}, "it may be down for all"
    apart.advance()
    assert not first.store.holds()
    assert first.process.breaker.cut_off and not second.process.breaker.cut_off
    assert (first.states(request), apart.served_by(request)) == ({IMPORTING}, second.process.owner)
    assert not first.renew() and second.renew(), "the other one maintains the store"
    daemons = {each.owner: each.cut_off for each in first.store.daemons(now=first.clock.now())}
    assert daemons == {first.process.owner: True, second.process.owner: False}
    later = first.accept()
    first.serve()
    assert first.states(later) == {QUEUED}, "nothing is begun that would fail"
    apart.serve()
    assert apart.served_by(later) == second.process.owner
    assert not first.store.holds()

    first.run("contact")
    assert first.process.breaker.cut_off
    apart.way.blocked = False
    first.run("contact")
    assert not first.process.breaker.cut_off, "it goes on as soon as it is ready"
    last = first.accept()
    first.drain()
    assert apart.served_by(last) == first.process.owner


def test_another_tracks_what_it_has_sent(apart: CutOff, cvat: ScriptedCvat) -> None:
    apart.way.blocked = False
    request = apart.first.accept()
    apart.first.drain()
    assert (apart.first.states(request), apart.served_by(request)) == (
        {IMPORTING},
        apart.first.process.owner,
    )
    apart.way.blocked = True
    apart.first.accept()
    apart.advance()
    assert apart.first.run("adopt") == 1
    assert apart.second.run("adopt") == 1
    assert apart.first.run("adopt") == 0
    task_id = apart.first.read(request).task_id
    assert task_id is not None
    cvat.make_ready(task_id)
    apart.second.track(until=lambda: apart.second.states(request) == {READY})
    assert apart.first.process.tracker.seconds_until_due() is None


def test_the_server_is_held_for_all_once_the_other_is_gone(apart: CutOff) -> None:
    apart.first.accept()
    apart.advance()
    assert apart.first.process.breaker.cut_off
    apart.second.stop()
    apart.first.advance(TRANSIENT_CAP)
    request = apart.first.accept()
    apart.first.serve()
    assert apart.first.store.holds().keys() == {SERVER}
    assert not apart.first.process.breaker.cut_off
    assert apart.first.renew(), "there is no other"
    apart.way.blocked = False
    apart.first.advance(TRANSIENT_CAP)
    apart.first.serve()
    assert apart.first.states(request) == {IMPORTING}


def test_one_whose_try_has_failed_lets_the_other_try_first(apart: CutOff) -> None:
    first, second = apart.first, apart.second
    first.accept()
    first.drain()
    hold = first.store.holds()[SERVER]
    assert hold.retry_at is not None
    first.clock.advance(hold.retry_at - first.clock.now())
    for each in (first, second):
        each.renew()
    assert not first.dispatcher.run_once().asked
    assert second.dispatcher.run_once().asked
    second.drain()
    assert not first.store.holds()


def test_all_that_have_had_no_answer_go_on_once_there_is_one(
    apart: CutOff, cvat: ScriptedCvat
) -> None:
    """The one that asks last does not leave the work to the other for that."""
    apart.second.accept()
    go_down(cvat)
    request = apart.first.accept()
    apart.serve()
    apart.advance()
    assert apart.first.store.holds().keys() == {SERVER}
    assert apart.first.renew()
    come_back(cvat)
    apart.way.blocked = False
    while apart.first.store.holds():
        apart.first.advance(1.0)
        apart.second.renew()
        apart.second.serve()
    assert apart.first.renew() and not apart.first.process.breaker.cut_off
    apart.serve()
    assert apart.first.states(request) == {IMPORTING}
