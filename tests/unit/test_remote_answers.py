"""What the answers of a daemon come to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from support.talking import ADDRESS, JOB, LEASE, REQUEST, page, problem, told

from pool import errors
from pool.client.answers import error_in, lease_in, request_in, status_in
from pool.errors import CvatBusy, InputError, PoolError, PoolUnreachable, SpoolFull, UnknownLease
from pool.handles import error_of
from pool.model import Job, LeaseState, Outcome, RequestState, WebhookState


def every_error(kind: type[PoolError] = PoolError) -> list[type[PoolError]]:
    """All error classes of the product that have a code of their own."""
    kinds = [kind] if kind.__module__ == errors.__name__ and "code" in vars(kind) else []
    for narrower in kind.__subclasses__():
        kinds += every_error(narrower)
    return kinds


@pytest.mark.parametrize("kind", [kind for kind in every_error() if kind is not PoolError])
def test_every_error_comes_back_as_itself(kind: type[PoolError]) -> None:
    error = error_in(problem(kind.status, kind.code, "the detail"))
    assert type(error) is kind
    assert str(error) == str(kind("the detail"))


def test_no_code_stands_for_two_errors() -> None:
    codes = [kind.code for kind in every_error()]
    assert sorted(codes) == sorted(set(codes))


def test_an_unknown_error_keeps_the_daemons_words() -> None:
    error = error_in(problem(418, "teapot", "short and stout", title="It is a teapot."))
    assert type(error) is PoolError
    assert error.detail == "It is a teapot: short and stout"


def test_a_problem_without_a_code() -> None:
    error = error_in(problem(404, "", title="Not Found"))
    assert type(error) is PoolError
    assert error.detail == "Not Found"


def test_a_validation_tells_what_it_found() -> None:
    document = {
        "type": "urn:cvat-task-pool:error:input",
        "title": "The input cannot be used",
        "errors": [
            {"where": "body.ttl", "what": "Input should be greater than 0"},
            {"where": "body.colour", "what": "Extra inputs are not permitted"},
        ],
    }
    error = error_in(told(document, 422, content_type="application/problem+json"))
    assert type(error) is InputError
    assert error.detail == (
        "body.ttl: Input should be greater than 0; body.colour: Extra inputs are not permitted"
    )


def test_who_is_busy_says_when_to_come_again() -> None:
    busy = error_in(problem(502, "cvat-busy", retry_after="7"))
    full = error_in(problem(429, "spool-full", retry_after="9"))
    assert isinstance(busy, CvatBusy) and busy.retry_after == 7.0
    assert isinstance(full, SpoolFull) and full.retry_after == 9.0


@pytest.mark.parametrize("answer", [page(404), page(200), page(301, location="http://x/")])
def test_something_else_than_a_pool_is_named(answer: Any) -> None:
    with pytest.raises(PoolUnreachable, match=rf"{ADDRESS} answers {answer.status} \w+"):
        raise error_in(answer) if answer.status != 200 else lease_in(answer)  # type: ignore[misc]


def test_a_lease() -> None:
    lease = lease_in(told({**LEASE, "jobs": [JOB]}))
    assert lease.state is LeaseState.ACTIVE
    assert lease.jobs == (Job(**JOB),)
    assert lease.held() == {
        "id": "l1",
        "task_id": 42,
        "name": "[cvat-pool p] scenes",
        "url": "http://cvat/tasks/42",
        "template": "scenes",
        "outcome": Outcome.HIT,
        "expires_at": datetime(2026, 1, 1, 12, 0, 0, 123_000, UTC),
    }


def test_a_lease_that_has_no_task_cannot_be_held() -> None:
    lease = lease_in(told({**LEASE, "state": "waiting", "task_id": None}))
    with pytest.raises(UnknownLease, match="l1 has no task"):
        lease.held()


def test_a_request() -> None:
    request = request_in(told(REQUEST))
    assert request.state is RequestState.IMPORTING
    assert (request.task_id, request.url) == (42, "http://cvat/tasks/42")
    assert request.outcome is Outcome.WAIT
    assert request.files == ("a.jpg", "b.jpg")
    assert request.created_at == datetime(2026, 1, 1, 12, 0, 0, 123_000, UTC).timestamp()
    assert (request.uploaded_at, request.jobs) == (None, None)
    ready = request_in(told({**REQUEST, "state": "ready", "jobs": [JOB]}))
    assert ready.jobs == (Job(**JOB),)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("import-failed", errors.ImportFailed, "bad image"),
        ("of-a-newer-daemon", PoolError, "Its title: bad image"),
    ],
)
def test_a_request_that_failed(code: str, kind: type[PoolError], words: str) -> None:
    error = {"code": code, "title": "Its title", "detail": "bad image", "status": 422}
    request = request_in(told({**REQUEST, "state": "failed", "error": error}))
    raised = error_of(request)
    assert (type(raised), raised.detail) == (kind, words)


ROW = {
    "name": "scenes",
    "target": 5,
    "warm": 4,
    "creating": 1,
    "leased": 0,
    "importing": 2,
    "deleting": 0,
    "waiting": 0,
    "rate": 0.5,
    "hits": 9,
    "waits": 1,
    "colds": 0,
    "paused_since": "2026-01-01T12:00:00.000Z",
    "held_since": None,
    "held_until": None,
    "hold_reason": "",
    "hooks": "alive",
    "hooks_silent_since": None,
}
STATUS = {
    "server": "http://cvat",
    "store": "sqlite:///pool.db",
    "maintainer": "host:1",
    "in_flight": 2,
    "held_since": None,
    "held_until": None,
    "hold_reason": "",
    "templates": [ROW],
}


def test_a_status() -> None:
    status = status_in(told(STATUS))
    (row,) = status.templates
    assert (row.name, row.warm, row.rate) == ("scenes", 4, 0.5)
    assert row.hooks is WebhookState.ALIVE
    assert row.paused_since == datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert (status.maintainer, status.in_flight) == ("host:1", 2)


def test_what_a_newer_daemon_tells_more_is_left_out() -> None:
    assert lease_in(told({**LEASE, "colour": "red"})) == lease_in(told(LEASE))
    assert request_in(told({**REQUEST, "colour": "red"})) == request_in(told(REQUEST))
    newer = {**STATUS, "mood": "good", "templates": [{**ROW, "mood": "better"}]}
    assert status_in(told(newer)) == status_in(told(STATUS))


@pytest.mark.parametrize(
    "wrong",
    [
        {"state": "dancing"},
        {"created_at": "yesterday"},
        {"jobs": 3},
        {"jobs": [{"id": 3}]},
        {"error": "oh"},
    ],
)
def test_what_cannot_be_understood_is_said_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(PoolError, match="not understood") as caught:
        request_in(told({**REQUEST, **wrong}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'"text"', b"\xff\xfe"])
def test_an_answer_without_a_document_is_not_a_pools(content: bytes) -> None:
    with pytest.raises(PoolUnreachable):
        request_in(replace(told(REQUEST), content=content))
