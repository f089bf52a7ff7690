"""When a remote client makes a call again."""

from __future__ import annotations

import io
import random
from contextlib import ExitStack
from email.utils import formatdate

import pytest
from support.clock import START, ManualClock
from support.talking import Daemon, page, problem, told

from pool.client.answers import error_in
from pool.client.body import FilesBody
from pool.client.retries import (
    BASE,
    CAP,
    FIRST_CONTACT,
    Retries,
    pause_before,
    refused_for_now,
)
from pool.client.steps import Answer, Call, Lost
from pool.cvat.multipart import OpenFile
from pool.cvat.records import LocalFile
from pool.errors import PoolUnreachable

CALL = Call(method="GET", path="/v1/templates")
OK = told({})
REFUSED = Lost("connection refused", sent=False)
CUT = Lost("connection reset", sent=True)


@pytest.fixture
def retries(clock: ManualClock) -> Retries:
    return Retries(patience=30.0, clock=clock, rng=random.Random(1))


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (problem(503, "too-busy", retry_after="1"), True),
        (problem(429, "too-many-uploads", retry_after="1"), True),
        (problem(503, "stopping", retry_after="1"), True),
        (problem(503, "store", retry_after="1"), True),
        (problem(503, "a-newer-one", retry_after="1"), True),
        (problem(503, "too-busy"), False),
        # A proxy whose daemon is being restarted.
        (page(502), True),
        (page(503), True),
        (page(504), True),
        # What was asked for came to this.
        (problem(503, "pool-empty", retry_after="1"), False),
        (problem(504, "timeout"), False),
        (problem(504, "import-timed-out"), False),
        (problem(502, "cvat-busy", retry_after="7"), False),
        (problem(502, "cvat-unreachable"), False),
        # Nobody says that these pass.
        (problem(500, ""), False),
        (problem(404, "unknown-template"), False),
        (problem(409, "lease-ended", retry_after="1"), False),
        (page(404), False),
        (page(302), False),
    ],
)
def test_which_refusals_may_pass(answer: Answer, again: bool) -> None:
    assert refused_for_now(answer, error_in(answer)) is again


def test_pauses_double_up_to_a_cap_and_differ() -> None:
    pauses = [
        [pause_before(attempt, None, rng=random.Random(seed)) for seed in range(200)]
        for attempt in range(1, 12)
    ]
    for index, drawn in enumerate(pauses):
        ceiling = min(CAP, BASE * 2**index)
        assert 0.1 * ceiling <= min(drawn) < 0.2 * ceiling
        assert 0.9 * ceiling < max(drawn) <= ceiling
    assert all(pause_before(1, 3.0, rng=random.Random(seed)) > 3.0 for seed in range(9))


def test_a_lost_call_is_made_again(retries: Retries, clock: ManualClock) -> None:
    daemon = Daemon(clock, REFUSED, CUT, REFUSED, OK)
    assert daemon.talk(retries.insist(CALL)) == OK
    assert daemon.calls == [CALL] * 4
    assert len(daemon.pauses) == 3


def test_the_daemon_says_when_to_come_again(retries: Retries, clock: ManualClock) -> None:
    later = formatdate(START + 20.0, usegmt=True)
    daemon = Daemon(
        clock,
        problem(503, "too-busy", retry_after="4"),
        problem(503, "too-busy", retry_after=later),
        OK,
    )
    daemon.talk(retries.insist(CALL))
    assert 4.0 < daemon.pauses[0] < 4.5
    assert 15.0 < daemon.pauses[1] < 17.0


@pytest.mark.parametrize("said", ["soon", "-1", "Wed, 99 Foo", ""])
def test_nonsense_in_place_of_a_time_is_no_time(
    retries: Retries, clock: ManualClock, said: str
) -> None:
    daemon = Daemon(clock, problem(503, "too-busy", retry_after=said), OK)
    daemon.talk(retries.insist(CALL))
    assert daemon.pauses[0] <= BASE


def test_patience_ends(retries: Retries, clock: ManualClock) -> None:
    daemon = Daemon(clock, OK, *[CUT] * 100)
    daemon.talk(retries.insist(CALL))
    with pytest.raises(PoolUnreachable, match="connection reset"):
        daemon.talk(retries.insist(CALL))
    assert 30.0 - CAP < sum(daemon.pauses) <= 30.0
    assert len(daemon.calls) < 20


def test_patience_begins_with_the_first_failure(retries: Retries, clock: ManualClock) -> None:
    """A long poll may be lost after a time longer than the patience."""

    def lose_late(call: Call) -> Answer:
        clock.advance(40.0)
        return problem(503, "stopping", retry_after="1")

    daemon = Daemon(clock, OK, lose_late, OK)
    daemon.talk(retries.insist(CALL))
    assert daemon.talk(retries.insist(CALL)) == OK


def test_a_daemon_that_never_answered_is_given_up_early(
    retries: Retries, clock: ManualClock
) -> None:
    daemon = Daemon(clock, *[REFUSED] * 100)
    with pytest.raises(PoolUnreachable, match="connection refused"):
        daemon.talk(retries.insist(CALL))
    assert FIRST_CONTACT - CAP < sum(daemon.pauses) <= FIRST_CONTACT


def test_a_pause_that_is_longer_than_the_patience_is_not_waited(
    retries: Retries, clock: ManualClock
) -> None:
    busy = problem(503, "too-busy", retry_after="3600")
    daemon = Daemon(clock, busy)
    assert daemon.talk(retries.insist(CALL)) == busy
    assert daemon.pauses == []


def test_the_callers_own_end_counts_too(retries: Retries, clock: ManualClock) -> None:
    daemon = Daemon(clock, OK, *[CUT] * 100)
    daemon.talk(retries.insist(CALL))
    with pytest.raises(PoolUnreachable):
        daemon.talk(retries.insist(CALL, until=clock.monotonic() + 2.0))
    assert sum(daemon.pauses) <= 2.0


def test_what_would_fail_again_is_not_tried_again(retries: Retries, clock: ManualClock) -> None:
    daemon = Daemon(clock, Lost("name or service not known", sent=False, lasting=True))
    with pytest.raises(PoolUnreachable, match="not known"):
        daemon.talk(retries.insist(CALL))
    assert daemon.pauses == []


def test_an_answer_after_a_lost_try_is_marked(retries: Retries, clock: ManualClock) -> None:
    ended = problem(409, "lease-ended")
    assert Daemon(clock, CUT, ended).talk(retries.insist(CALL)).doubted
    assert not Daemon(clock, REFUSED, ended).talk(retries.insist(CALL)).doubted
    assert Daemon(clock, page(502), ended).talk(retries.insist(CALL)).doubted
    busy = problem(503, "too-busy", retry_after="1")
    assert not Daemon(clock, busy, ended).talk(retries.insist(CALL)).doubted


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def test_data_that_cannot_be_read_twice_is_sent_once(retries: Retries, clock: ManualClock) -> None:
    with ExitStack() as stack:
        source = LocalFile("a.jpg", Pipe(b"content"), 7)
        body = FilesBody({}, [OpenFile(source, stack)], None)
        call = Call(method="POST", path="/v1/requests", body=body)
        daemon = Daemon(clock, REFUSED, CUT, OK)
        with pytest.raises(PoolUnreachable, match="reset"):
            daemon.talk(retries.insist(call))
    assert len(daemon.calls) == 2, "before anything was sent, it may be tried again"
