"""What one sink is told, step by step, with a receiver that answers as the test says."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from support.clock import ManualClock
from support.happening import make_warm, serve

from pool.config.settings import SinkSettings
from pool.events import sinks as module
from pool.events.delivery import Reply
from pool.events.sinks import PATIENCE, REFUSED_FOR, RETRY_CAP, Sink, pause_after
from pool.model import RequestRecord, SinkRecord
from pool.store import FINAL_GRACE, Store

OK = Reply(status=200)
DOWN = Reply(problem="connection refused")


class Receiver:
    """Answers what is scripted, and then 200."""

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.always: Reply = OK
        self.got: list[tuple[str, str, dict[str, Any]]] = []

    def post(self, body: bytes, *, delivery_id: str, kind: str) -> Reply:
        self.got.append((delivery_id, kind, json.loads(body)))
        return self.script.pop(0) if self.script else self.always

    def requests(self) -> list[str]:
        return [body["request_id"] for _, _, body in self.got]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


class Sinking:
    """A sink that can be started again."""

    def __init__(self, store: Store, clock: ManualClock, receiver: Receiver) -> None:
        self.store, self.clock, self.receiver = store, clock, receiver
        self.pause = 0.0
        self.start()

    def start(self, **changed: Any) -> None:
        self.sink = Sink(
            self.store,
            SinkSettings(url="http://host/hook", **changed),
            self.store.open_sinks(["host"])["host"],
            describe,
            self.receiver.post,
            clock=self.clock,
            rng=random.Random(1),
        )

    def run(self) -> tuple[int, int]:
        """How many deliveries were accepted, and given up, in one run."""
        before = self.record
        self.pause = self.sink.run_once()
        after = self.record
        return after.delivered - before.delivered, after.given_up - before.given_up

    def serve(self, *names: str, **more: Any) -> None:
        for name in names:
            serve(self.store, name, now=self.clock.now(), **more)

    @property
    def record(self) -> SinkRecord:
        return self.store.sinks()["host"]

    @property
    def backlog(self) -> int:
        return self.sink.state(newest=self.store.last_event_id()).backlog


def describe(record: RequestRecord) -> dict[str, Any]:
    return {"id": record.id, "state": record.state}


@pytest.fixture
def sinking(store: Store, clock: ManualClock, receiver: Receiver) -> Sinking:
    return Sinking(store, clock, receiver)


# --- What is told ---------------------------------------------------------------------------------


def test_each_end_of_a_request_is_told_once_and_in_order(
    sinking: Sinking, receiver: Receiver, store: Store
) -> None:
    sinking.serve("r1")
    sinking.serve("r2", failed="import-failed")
    assert sinking.run() == (2, 0)
    assert sinking.run() == (0, 0)
    (first, _, body), (second, kind, failed) = receiver.got
    assert (first.split("-")[0], second.split("-")[0]) == (store.pool_id, store.pool_id)
    assert first != second
    assert body == {
        "delivery_id": first,
        "kind": "request.ready",
        "at": "2027-01-15T08:00:00.000Z",
        "template": "scenes",
        "tenant": "",
        "task_id": 42,
        "lease_id": body["lease_id"],
        "request_id": "r1",
        "state": "ready",
        "outcome": "hit",
        "code": "",
        "seconds": 0.0,
        "server_seconds": 0.0,
        "held_seconds": 0.0,
        "request": {"id": "r1", "state": "ready"},
    }
    assert (kind, failed["code"], failed["request"]["state"]) == (
        "request.failed",
        "import-failed",
        "failed",
    )
    assert sinking.backlog == 0


def test_only_what_it_wants_is_told(sinking: Sinking, receiver: Receiver, store: Store) -> None:
    sinking.start(templates=("others",), kinds=("request.ready", "task.warm"))
    sinking.serve("r1")
    sinking.serve("r2", template="others", task_id=7)
    assert sinking.run() == (2, 0)
    assert [(kind, body["task_id"]) for _, kind, body in receiver.got] == [
        ("task.warm", 7),
        ("request.ready", 7),
    ]
    assert receiver.got[0][2]["request"] is None


def test_what_was_before_it_came_is_not_told(
    store: Store, clock: ManualClock, receiver: Receiver
) -> None:
    serve(store, "r1", now=clock.now())
    sinking = Sinking(store, clock, receiver)
    sinking.serve("r2")
    sinking.run()
    assert receiver.requests() == ["r2"]


def test_a_request_that_was_forgotten_meanwhile_is_told_without_it(
    sinking: Sinking, receiver: Receiver, store: Store, clock: ManualClock
) -> None:
    sinking.serve("r1")
    (step,) = store.due_steps(now=clock.now() + FINAL_GRACE, limit=9)
    assert store.end_step(step, name="n", now=clock.now())
    assert store.prune(before=clock.now() + 99, limit=9)
    sinking.run()
    assert (receiver.requests(), receiver.got[0][2]["request"]) == (["r1"], None)


# --- When it does not work ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply", [DOWN, *(Reply(status=status) for status in (500, 503, 429, 301, 401, 404, 422))]
)
def test_what_fails_is_told_again_before_what_comes_after(
    sinking: Sinking, receiver: Receiver, clock: ManualClock, reply: Reply
) -> None:
    receiver.script = [reply, reply]
    sinking.serve("r1", "r2")
    assert sinking.run() == (0, 0)
    assert sinking.run() == (0, 0), "not at once"
    assert receiver.requests() == ["r1"]
    clock.advance(2.0)
    sinking.run()
    clock.advance(4.0)
    assert sinking.run() == (2, 0)
    assert receiver.requests() == ["r1", "r1", "r1", "r2"]
    assert len({delivery for delivery, *_ in receiver.got}) == 2, "the id stays"
    assert sinking.sink.state(newest=0).failed_tries == 2


def test_a_restart_goes_on_where_it_was(
    sinking: Sinking, receiver: Receiver, clock: ManualClock
) -> None:
    receiver.script = [OK, DOWN]
    sinking.serve("r1", "r2", "r3")
    assert sinking.run() == (1, 0)
    assert sinking.record.failing_since == clock.now()
    sinking.start()
    assert sinking.run() == (2, 0)
    assert receiver.requests() == ["r1", "r2", "r2", "r3"]
    assert sinking.record == SinkRecord(
        name="host", cursor=sinking.record.cursor, delivered=3, given_up=0
    )


def test_the_pauses_grow_and_are_jittered() -> None:
    rng = random.Random(1)
    for failures in range(1, 50):
        ceiling = min(RETRY_CAP, 2.0 ** (failures - 1))
        pauses = [pause_after(failures, None, rng) for _ in range(50)]
        assert all(0.1 * ceiling <= pause <= ceiling for pause in pauses)
        assert len(set(pauses)) > 10


@pytest.mark.parametrize(("asked", "paused"), [(90.0, 90.0), (1e9, 3600.0), (float("inf"), 3600.0)])
def test_a_receiver_that_wants_to_be_left_alone(
    sinking: Sinking, receiver: Receiver, clock: ManualClock, asked: float, paused: float
) -> None:
    receiver.script = [Reply(status=429, retry_after=asked)]
    sinking.serve("r1")
    sinking.run()
    assert sinking.pause == paused
    clock.advance(paused - 1.0)
    assert sinking.run() == (0, 0)
    clock.advance(1.0)
    assert sinking.run() == (1, 0)


def test_a_delivery_that_is_refused_holds_up_the_others_for_ten_minutes(
    sinking: Sinking, receiver: Receiver, clock: ManualClock
) -> None:
    receiver.always = Reply(status=422)
    sinking.serve("r1")
    sinking.run()
    clock.advance(REFUSED_FOR - 1.0)
    assert sinking.run() == (0, 0)
    clock.advance(RETRY_CAP)
    assert sinking.run() == (0, 1)
    sinking.serve("r2")
    clock.advance(RETRY_CAP)
    receiver.always = OK
    assert sinking.run() == (1, 0)
    assert (sinking.record.delivered, sinking.record.given_up) == (1, 1)


def test_another_failure_does_not_count_as_a_refusal(
    sinking: Sinking, receiver: Receiver, clock: ManualClock
) -> None:
    receiver.script = [Reply(status=400), DOWN, Reply(status=400)]
    sinking.serve("r1")
    for _ in range(3):
        assert sinking.run() == (0, 0)
        clock.advance(REFUSED_FOR)
    assert sinking.run() == (1, 0)


def test_one_that_is_gone_is_left_alone_until_the_next_start(
    sinking: Sinking, receiver: Receiver, clock: ManualClock
) -> None:
    receiver.script = [Reply(status=410)]
    sinking.serve("r1", "r2")
    for _ in range(3):
        assert sinking.run() == (0, 0)
        clock.advance(PATIENCE)
    assert receiver.requests() == ["r1"]
    assert sinking.sink.state(newest=0).gone
    sinking.start()
    assert sinking.run() == (2, 0)


# --- Giving up ------------------------------------------------------------------------------------


def test_what_is_a_day_old_is_given_up_when_nothing_was_accepted_for_a_day(
    sinking: Sinking, receiver: Receiver, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    receiver.always = DOWN
    sinking.serve("r1", "r2", "r3")
    sinking.run()
    clock.advance(PATIENCE / 2)
    sinking.serve("r4")
    sinking.run()
    clock.advance(PATIENCE / 2 - 1)
    assert sinking.run() == (0, 0)
    clock.advance(RETRY_CAP)
    assert sinking.run() == (0, 3), "all at once"
    assert receiver.requests() == ["r1", "r1", "r1", "r4"]
    receiver.always = OK
    clock.advance(RETRY_CAP)
    assert sinking.run() == (1, 0)
    assert sinking.record.given_up == 3


def test_after_a_start_it_is_tried_before_it_is_given_up(
    sinking: Sinking, receiver: Receiver, clock: ManualClock
) -> None:
    receiver.always = DOWN
    sinking.serve("r1", "r2")
    sinking.run()
    clock.advance(3 * PATIENCE)
    receiver.always = OK
    sinking.start()
    assert sinking.run() == (2, 0)


def test_what_happened_while_nobody_delivered_is_not_given_up_at_the_first_failure(
    sinking: Sinking, receiver: Receiver, clock: ManualClock
) -> None:
    sinking.serve("r1")
    clock.advance(3 * PATIENCE)
    receiver.script = [DOWN, DOWN]
    for _ in range(2):
        assert sinking.run() == (0, 0)
        clock.advance(RETRY_CAP)
    assert sinking.run() == (1, 0)


def test_what_was_forgotten_is_missed_and_no_more(
    sinking: Sinking, receiver: Receiver, store: Store
) -> None:
    sinking.serve("r1", "r2")
    assert store.prune_events(passed_before=0.0, before=0.0, keep=2, limit=99)
    assert sinking.run() == (1, 0)
    assert receiver.requests() == ["r2"]


# --- What is not for it ---------------------------------------------------------------------------


def test_many_events_that_are_not_for_it_are_written_off_now_and_then(
    sinking: Sinking, store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PASSED", 3)
    make_warm(store, 1, 2)
    sinking.run()
    assert (sinking.record.cursor, sinking.backlog) == (0, 0)
    make_warm(store, 3)
    sinking.run()
    assert sinking.record.cursor == 3
    make_warm(store, 4)
    clock.advance(module.PASSED_FOR)
    sinking.run()
    assert sinking.record.cursor == 4


def test_how_far_behind_it_is(sinking: Sinking, receiver: Receiver, clock: ManualClock) -> None:
    assert sinking.sink.state(newest=0).lag == 0.0
    receiver.script = [DOWN]
    sinking.serve("r1")
    sinking.run()
    clock.advance(7.0)
    assert sinking.backlog > 0
    assert sinking.sink.state(newest=0).lag == 7.0
    sinking.run()
    assert (sinking.backlog, sinking.sink.state(newest=0).lag) == (0, 0.0)
