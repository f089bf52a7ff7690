"""What answers and broken connections mean."""

from __future__ import annotations

import json
from http.client import RemoteDisconnected

import pytest
from urllib3 import exceptions as urllib3
from urllib3._collections import HTTPHeaderDict

from pool import errors
from pool.cvat import failures

JSON = "application/vnd.cvat+json"
HTML = "text/html; charset=utf-8"
NOW = 1_700_000_000.0


def answered(
    status: int, said: object = None, method: str = "POST", **headers: str
) -> errors.CvatError:
    kind, body = (
        (HTML, said.encode()) if isinstance(said, str) else (JSON, json.dumps(said).encode())
    )
    all_headers = HTTPHeaderDict({"Content-Type": kind, **headers})
    answer = failures.Answer(status, all_headers, body, "http://cvat.test")
    return failures.error_from_answer(answer, method=method, now=NOW)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.CvatRejected),
        (401, errors.CvatRefusedCredentials),
        (403, errors.CvatForbidden),
        (404, errors.CvatNotFound),
        (405, errors.CvatRejected),
        (409, errors.CvatRejected),
        (413, errors.CvatRejected),
        (414, errors.CvatRejected),
        (415, errors.CvatRejected),
        (422, errors.CvatRejected),
        (429, errors.CvatBusy),
        (500, errors.CvatBusy),
        (502, errors.CvatAmbiguous),
        (503, errors.CvatBusy),
        (504, errors.CvatAmbiguous),
        (599, errors.CvatBusy),
        (302, errors.CvatError),
        (100, errors.CvatError),
    ],
)
def test_each_status_has_its_error(status: int, kind: type[errors.CvatError]) -> None:
    error = answered(status)
    assert type(error) is kind
    assert error.http_status == status
    assert f"HTTP {status}" in str(error)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_read_that_a_proxy_lost_is_not_ambiguous(status: int) -> None:
    assert type(answered(status, method="GET")) is errors.CvatBusy


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["Adding more data is not supported"], "Adding more data is not supported"),
        ({"detail": "No Task matches the given query."}, "No Task matches the given query."),
        ({"name": ["This field is required."]}, "name: This field is required."),
        (
            {"labels": [{}, {"type": ['"blob" is not a valid choice.']}]},
            'labels: type: "blob" is not a valid choice.',
        ),
        ({"non_field_errors": ["Unable to log in."], "code": None}, "Unable to log in."),
        ({"a": ["x"], "b": ["y", "z"]}, "a: x; b: y; z"),
        ("There is no request\nwith specified id", "There is no request with specified id"),
        ("<!doctype html>\n<html><title>Server Error (500)</title>", ""),
        ([], ""),
    ],
)
def test_the_servers_own_words_are_told(said: object, words: str) -> None:
    assert answered(400, said).detail == "HTTP 400 Bad Request" + (f": {words}" if words else "")


def test_words_are_kept_short_and_broken_json_is_no_trouble() -> None:
    assert len(failures.server_words(JSON, json.dumps(["x" * 5000]).encode())) == 500
    assert failures.server_words(JSON, b"{not json") == ""
    assert failures.server_words("image/png", b"\x89PNG") == ""


def test_hints() -> None:
    refused = answered(403, {"detail": "You do not have permission to perform this action."})
    assert "token may be read-only" in str(refused)
    quota = answered(403, ["You have reached the limit of tasks of your plan"])
    assert str(quota).endswith("limit of tasks of your plan")
    assert "read-only" not in str(answered(403, {"detail": "not authorized"}, method="GET"))
    organization = answered(404, {"detail": "acme organization does not exist."}, method="GET")
    assert "check cvat.organization" in str(organization)
    assert "single_request_limit" in str(answered(413, "<html>"))
    moved = answered(301, Location="https://cvat.test/auth?next=/api")
    assert "redirects to https://cvat.test/auth," in str(moved)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", None),
        ("86400", 60.0),
        ("9" * 15, 60.0),
        ("9" * 400, None),
        ("1e12", None),
        ("inf", None),
        ("nan", None),
        ("\u0663", None),
        ("", None),
        ("Tue, 14 Nov 2023 22:13:30 -0000", 10.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 60.0),
        ("Fri, 99 Dec 2023 23:59:59 GMT", None),
        ("Tue, 14 Nov 2023 22:13:30 GMT", 10.0),
        ("Tue, 14 Nov 2023 22:00:00 GMT", 0.0),
        ("soon", None),
    ],
)
def test_retry_after_in_both_forms_and_within_bounds(header: str, seconds: float | None) -> None:
    error = answered(429, **{"Retry-After": header})
    assert isinstance(error, errors.CvatBusy)
    assert error.retry_after == seconds


def broken(error: Exception, *, method: str, sent: bool) -> errors.CvatError:
    return failures.error_from_exception(
        error, method=method, server="http://cvat.test", sent=sent, timeout=30.0
    )


def test_a_call_that_was_sent_is_ambiguous_unless_it_reads() -> None:
    lost = urllib3.ProtocolError("Connection aborted.", RemoteDisconnected("x"))
    assert type(broken(lost, method="POST", sent=True)) is errors.CvatAmbiguous
    assert type(broken(lost, method="POST", sent=False)) is errors.CvatUnreachable
    assert type(broken(lost, method="GET", sent=True)) is errors.CvatUnreachable


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (urllib3.ReadTimeoutError(None, "/x", "late"), "no answer within 30 s"),  # type: ignore[arg-type]
        (urllib3.ConnectTimeoutError("late"), "no connection within the time-out"),
        (urllib3.SSLError("wrong version number"), "TLS failed: wrong version number"),
        (urllib3.ProtocolError("x", RemoteDisconnected("y")), "closed the connection"),
        (
            urllib3.ProtocolError("x", ConnectionResetError(104, "Connection reset by peer")),
            "reset",
        ),
        (urllib3.ProtocolError("x", TimeoutError("timed out")), "stalled while sending"),
        (urllib3.IncompleteRead(3, 7), "the connection broke"),
        (OSError("?"), "the connection broke"),
    ],
)
def test_each_failure_is_told_in_plain_words(error: Exception, words: str) -> None:
    said = str(broken(error, method="GET", sent=False))
    assert said.startswith("CVAT cannot be reached: http://cvat.test: ")
    assert words in said


def test_what_leaves_a_task_untouched() -> None:
    untouched = [
        errors.InputError(),
        errors.ConfigError(),
        errors.CvatUnreachable(),
        errors.CvatRefusedCredentials(),
        errors.CvatForbidden(),
        errors.CvatBusy(http_status=429),
    ]
    touched = [
        errors.CvatAmbiguous(),
        errors.CvatBusy(http_status=500),
        errors.CvatBusy(),
        errors.CvatRejected(http_status=400),
        errors.CvatNotFound(),
        errors.CvatError(),
        ValueError(),
    ]
    assert all(map(failures.left_untouched, untouched))
    assert not any(map(failures.left_untouched, touched))
    for error in untouched:
        error.task_touched = True
    assert not any(map(failures.left_untouched, untouched))


@pytest.mark.parametrize(
    ("error", "touched", "not_finished", "cut_off"),
    [
        # In the middle of a body, and before its first byte.
        (errors.CvatUnreachable(), True, False, True),
        (errors.CvatUnreachable(), False, False, False),
        # A lost answer to a part of an upload, and to the whole of it.
        (errors.CvatAmbiguous(), True, True, True),
        (errors.CvatAmbiguous(), True, False, False),
        (errors.CvatBusy(http_status=502), True, True, True),
        (errors.CvatBusy(http_status=502), True, False, False),
        (errors.CvatBusy(http_status=429), True, True, False),
        (errors.CvatRejected(http_status=400), True, True, False),
        (errors.InputError(), True, True, False),
    ],
)
def test_what_is_an_upload_that_was_cut_off(
    error: errors.PoolError, touched: bool, not_finished: bool, cut_off: bool
) -> None:
    if touched:
        error.task_touched = True
    if not_finished:
        error.import_not_begun = True
    assert failures.cut_off(error) is cut_off
