"""What a remote client says, and what it makes of the answers; without a network."""

from __future__ import annotations

import random
from typing import Any

import pytest
from support.clock import ManualClock
from support.talking import JOB, LEASE, REQUEST, Daemon, problem, told

from pool.client.retries import Retries
from pool.client.steps import Answer, Call, Lost
from pool.client.talks import LONGEST_POLL, Talks, fields_of
from pool.cvat.records import Upload
from pool.errors import (
    ImportFailed,
    InputError,
    LeaseEnded,
    LeaseInUse,
    PoolEmpty,
    PoolError,
    RequestCancelled,
    UnknownLease,
    UnknownRequest,
    UnknownTemplate,
    WaitTimeout,
)
from pool.model import Job

CUT = Lost("connection reset", sent=True)
DONE = told(None, 204)
IMPORTING = told(REQUEST)
READY = told({**REQUEST, "state": "ready", "jobs": [JOB]})


@pytest.fixture
def talks(clock: ManualClock) -> Talks:
    return Talks(Retries(patience=30.0, clock=clock, rng=random.Random(1)), clock=clock)


def passing(clock: ManualClock, answer: Answer) -> Any:
    """A daemon that honours ``Prefer: wait``."""

    def reply(call: Call) -> Answer:
        clock.advance(wait_of(call))
        return answer

    return reply


def wait_of(call: Call) -> int:
    return int(call.headers.get("Prefer", "wait=0").removeprefix("wait="))


# --- Leases ---------------------------------------------------------------------------------------


def test_acquire(talks: Talks, clock: ManualClock) -> None:
    daemon = Daemon(clock, told(LEASE, 201))
    lease = daemon.talk(talks.acquire("scenes", timeout=2.5, ttl=60.0, key="k"))
    assert lease.task_id == 42
    (call,) = daemon.calls
    assert (call.method, call.path) == ("POST", "/v1/leases")
    assert call.json == {"template": "scenes", "timeout": 2.5, "ttl": 60.0}
    assert call.headers == {"Idempotency-Key": "k"}


def test_a_call_without_a_key_gets_one_for_all_its_tries(talks: Talks, clock: ManualClock) -> None:
    daemon = Daemon(clock, CUT, told(LEASE), told(LEASE))
    for _ in range(2):
        daemon.talk(talks.acquire("scenes", timeout=None, ttl=None, key=None))
    first, again, other = (call.headers["Idempotency-Key"] for call in daemon.calls)
    assert first == again != other
    assert daemon.calls[0].json == {"template": "scenes"}


@pytest.mark.parametrize("key", ["", "a b", "a\nb", "schlüssel", "k" * 256])
def test_a_key_that_no_header_takes(talks: Talks, clock: ManualClock, key: str) -> None:
    daemon = Daemon(clock)
    with pytest.raises(InputError, match="1 to 255 visible ASCII"):
        daemon.talk(talks.acquire("scenes", timeout=None, ttl=None, key=key))
    assert daemon.calls == []


def test_an_empty_pool_is_said_at_once(talks: Talks, clock: ManualClock) -> None:
    daemon = Daemon(clock, problem(503, "pool-empty", "nothing there", retry_after="1"))
    with pytest.raises(PoolEmpty, match="nothing there"):
        daemon.talk(talks.acquire("scenes", timeout=None, ttl=None, key=None))


def test_release(talks: Talks, clock: ManualClock) -> None:
    daemon = Daemon(clock, DONE)
    daemon.talk(talks.release("l1"))
    assert (daemon.calls[0].method, daemon.calls[0].path) == ("DELETE", "/v1/leases/l1")


def test_a_release_whose_answer_was_lost_is_no_error(talks: Talks, clock: ManualClock) -> None:
    released = told({**LEASE, "state": "released"})
    daemon = Daemon(clock, CUT, problem(409, "lease-ended"), released)
    daemon.talk(talks.release("l1"))
    assert [call.method for call in daemon.calls] == ["DELETE", "DELETE", "GET"]


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([problem(409, "lease-ended")], LeaseEnded),
        ([CUT, problem(409, "lease-ended"), told({**LEASE, "state": "expired"})], LeaseEnded),
        ([CUT, problem(409, "lease-in-use")], LeaseInUse),
        ([problem(404, "unknown-lease")], UnknownLease),
    ],
)
def test_a_release_that_did_not_work(
    talks: Talks, clock: ManualClock, replies: list[Any], error: type[PoolError]
) -> None:
    with pytest.raises(error):
        Daemon(clock, *replies).talk(talks.release("l1"))


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a?b", "a b", "ä", "a\n"])
def test_what_leads_elsewhere_names_nothing(talks: Talks, clock: ManualClock, name: str) -> None:
    daemon = Daemon(clock)
    for talk, error in [
        (lambda: talks.release(name), UnknownLease),
        (lambda: talks.jobs_of_lease(name, None), UnknownLease),
        (lambda: talks.cancel(name), UnknownRequest),
        (lambda: talks.end_of_request(name, None), UnknownRequest),
        (lambda: talks.control(name, "pause"), UnknownTemplate),
    ]:
        with pytest.raises(error):
            daemon.talk(talk())  # type: ignore[arg-type]
    assert daemon.calls == []


def test_jobs_of_a_lease(talks: Talks, clock: ManualClock) -> None:
    daemon = Daemon(clock, told(LEASE), told({**LEASE, "state": "used", "jobs": [JOB]}))
    assert daemon.talk(talks.jobs_of_lease("l1", 20.0)) == [Job(**JOB)]


@pytest.mark.parametrize(
    ("document", "error", "words"),
    [
        ({"state": "released"}, LeaseEnded, "l1 is released"),
        ({"state": "expired"}, LeaseEnded, "l1 is expired"),
        (
            {"error": {"code": "import-failed", "title": "", "detail": "bad", "status": 422}},
            ImportFailed,
            "bad",
        ),
    ],
)
def test_a_lease_that_will_have_no_jobs(
    talks: Talks, clock: ManualClock, document: dict[str, Any], error: type[PoolError], words: str
) -> None:
    with pytest.raises(error, match=words):
        Daemon(clock, told({**LEASE, **document})).talk(talks.jobs_of_lease("l1", None))


# --- Requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upload", "source"),
    [
        (Upload(share=("a", "b")), {"share": ["a", "b"]}),
        (Upload(urls=("http://x/a",)), {"urls": ["http://x/a"]}),
        (Upload(cloud=(3, ("k",))), {"cloud": {"storage_id": 3, "keys": ["k"]}}),
    ],
)
def test_data_that_the_server_gets_itself(
    talks: Talks, clock: ManualClock, upload: Upload, source: dict[str, Any]
) -> None:
    fields = fields_of(upload, template="scenes", name="night ride", assignee=3)
    daemon = Daemon(clock, told(REQUEST, 202))
    request = daemon.talk(talks.submit(fields, upload, None, key="k"))
    assert request.id == "r1"
    (call,) = daemon.calls
    assert (call.method, call.path) == ("POST", "/v1/requests")
    told_with_it = {"template": "scenes", "name": "night ride", "assignee": 3}
    assert call.json == {**told_with_it, **source}
    assert "Prefer" not in call.headers


def test_what_was_not_told_is_not_said() -> None:
    upload = Upload(share=("a",), extra={"image_quality": 9})
    assert fields_of(upload, template="scenes", lease_id="l1") == {
        "template": "scenes",
        "lease_id": "l1",
        "params": {"image_quality": 9},
    }


def test_submit_tries_for_as_long_as_its_caller_wants(talks: Talks, clock: ManualClock) -> None:
    upload = Upload(share=("a",))
    busy = problem(503, "too-busy", retry_after="1")
    daemon = Daemon(clock, *[busy] * 100)
    with pytest.raises(PoolError, match="Too much"):
        daemon.talk(talks.submit({}, upload, None, key=None, timeout=5.0))
    assert 3.0 < sum(daemon.pauses) <= 5.0


@pytest.mark.parametrize(
    ("replies", "cancelled"),
    [
        ([DONE], True),
        ([problem(409, "too-late")], False),
        ([CUT, problem(409, "too-late"), told({**REQUEST, "state": "cancelled"})], True),
        ([CUT, problem(409, "too-late"), IMPORTING], False),
    ],
)
def test_cancel(talks: Talks, clock: ManualClock, replies: list[Any], cancelled: bool) -> None:
    assert Daemon(clock, *replies).talk(talks.cancel("r1")) is cancelled


def test_cancel_of_an_unknown_request(talks: Talks, clock: ManualClock) -> None:
    with pytest.raises(UnknownRequest):
        Daemon(clock, problem(404, "unknown-request")).talk(talks.cancel("r1"))


# --- Waiting for jobs -----------------------------------------------------------------------------


def test_jobs_are_waited_for_in_long_polls(talks: Talks, clock: ManualClock) -> None:
    waiting = passing(clock, IMPORTING)
    daemon = Daemon(clock, waiting, waiting, READY)
    request = daemon.talk(talks.end_of_request("r1", None))
    assert request.jobs == (Job(**JOB),)
    assert [wait_of(call) for call in daemon.calls] == [LONGEST_POLL] * 3
    assert daemon.pauses == [], "a poll that was waited for is followed by the next at once"
    assert all(call.patience == LONGEST_POLL for call in daemon.calls)


@pytest.mark.parametrize("timeout", [0.0, 0.05, 0.9, 3.0, 3.4, 61.5])
def test_a_wait_ends_on_time(talks: Talks, clock: ManualClock, timeout: float) -> None:
    daemon = Daemon(clock, *[passing(clock, IMPORTING)] * 1000)
    with pytest.raises(WaitTimeout, match="r1"):
        daemon.talk(talks.end_of_request("r1", timeout))
    assert clock.monotonic() == pytest.approx(timeout)
    assert len(daemon.calls) < 12


def test_a_daemon_that_ends_polls_early_is_not_asked_in_a_busy_loop(
    talks: Talks, clock: ManualClock
) -> None:
    daemon = Daemon(clock, *[IMPORTING] * 20, READY)
    daemon.talk(talks.end_of_request("r1", None))
    assert daemon.pauses[:5] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8])
    assert set(daemon.pauses[5:]) == {1.0}


def test_a_daemon_that_is_restarted_is_asked_again(talks: Talks, clock: ManualClock) -> None:
    stopping = problem(503, "stopping", retry_after="1")
    refused = Lost("connection refused", sent=False)
    daemon = Daemon(clock, IMPORTING, stopping, CUT, refused, refused, READY)
    assert daemon.talk(talks.end_of_request("r1", 60.0)).jobs


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (
            {
                "state": "failed",
                "error": {"code": "import-failed", "title": "", "detail": "bad", "status": 422},
            },
            ImportFailed,
        ),
        ({"state": "cancelled"}, RequestCancelled),
    ],
)
def test_a_request_that_will_have_no_jobs(
    talks: Talks, clock: ManualClock, document: dict[str, Any], error: type[PoolError]
) -> None:
    with pytest.raises(error):
        Daemon(clock, told({**REQUEST, **document})).talk(talks.end_of_request("r1", None))


# --- Control --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["pause", "resume"])
def test_control(talks: Talks, clock: ManualClock, what: str) -> None:
    daemon = Daemon(clock, CUT, told({}))
    daemon.talk(talks.control("cars.v2", what))
    call = daemon.calls[1]
    assert (call.method, call.path, call.json) == ("POST", f"/v1/templates/cars.v2/{what}", None)


def test_drain_tells_how_many_tasks_were_taken_out(talks: Talks, clock: ManualClock) -> None:
    daemon = Daemon(clock, told({"name": "scenes", "retired": 4}))
    assert daemon.talk(talks.drain("scenes")) == 4
    assert daemon.calls[0].path == "/v1/templates/scenes/drain"


def test_prewarm(talks: Talks, clock: ManualClock) -> None:
    daemon = Daemon(clock, told({}))
    daemon.talk(talks.control("scenes", "prewarm", count=20, seconds=60.0))
    assert daemon.calls[0].json == {"count": 20, "seconds": 60.0}
