"""Each answer bears the id of its call, and so do the log lines of the call, on all threads."""

from __future__ import annotations

import json
import logging
import queue
import time
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from fastapi import FastAPI
from fastapi.responses import Response

from pool import logs
from pool.config.settings import DaemonSettings
from pool.http.middleware import CallLog
from pool.http.server import HttpServer
from pool.http.workers import Workers

log = logs.get_logger("pool.http.test")

PATIENCE = 20.0


class Answers:
    """What the metrics get of answers, which comes when the answer is on its way already."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[str, str, int]] = queue.Queue()
        self.seconds = 0.0
        #: Seconds that a clock is late once "slow" was asked for.
        self.late = 0.0

    def __call__(self, method: str, route: str, status: int, seconds: float) -> None:
        self.seconds = seconds
        self._queue.put((method, route, status))

    def next(self) -> tuple[str, str, int]:
        return self._queue.get(timeout=PATIENCE)


class Lines(logging.Handler):
    """The log lines, as JSON has them."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue()
        self.all: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._queue.put(json.loads(record.getMessage()))

    def next(self, event: str) -> dict[str, Any]:
        while True:
            self.all.append(self._queue.get(timeout=PATIENCE))
            if self.all[-1]["event"] == event:
                return self.all[-1]


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
def server(answers: Answers) -> Iterator[HttpServer]:
    workers = Workers()

    def make_app() -> FastAPI:
        app = FastAPI()
        app.add_middleware(CallLog, on_answer=answers)

        @app.get("/things/{name}")
        async def thing(name: str) -> Response:
            await workers.store(log.info, "on another thread", request_id="r1")
            if name == "slow":
                answers.late = 100.0
            if name == "broken":
                raise RuntimeError("it broke")
            return Response(status_code=404 if name == "missing" else 200)

        @app.get("/healthz")
        @app.get("/static/{path:path}")
        async def quiet(path: str = "") -> Response:
            return Response(status_code=404 if path == "missing.js" else 200)

        return app

    server = HttpServer(make_app, DaemonSettings(port=0))
    server.start()
    yield server
    server.stop(10.0)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    monkeypatch.setattr(logs, "_as_json", True)
    logger, handler = logging.getLogger("pool.http"), Lines()
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, "pool.http")
    yield handler
    logger.removeHandler(handler)


def get(server: HttpServer, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(retries=False) as http:
        return http.request("GET", server.url + path, headers=headers)


def test_the_lines_of_a_call_bear_its_id(
    server: HttpServer, lines: Lines, answers: Answers
) -> None:
    answer = get(server, "/things/s3cret?token=s3cret", **{"X-Request-Id": "from-the-caller.1"})
    assert answer.headers["X-Request-Id"] == "from-the-caller.1"
    inside, access = lines.next("on another thread"), lines.next("answered")
    assert inside["request_id"] == "r1"
    assert inside["call_id"] == access["call_id"] == "from-the-caller.1"
    assert (access["method"], access["route"], access["status"]) == (
        "GET",
        "/things/{name}",
        200,
    )
    assert "s3cret" not in json.dumps(lines.all)
    assert answers.next() == ("GET", "/things/{name}", 200)


def test_how_long_an_answer_took(
    server: HttpServer, lines: Lines, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: real() + answers.late)
    get(server, "/things/slow")
    assert lines.next("answered")["milliseconds"] == pytest.approx(100_000, abs=PATIENCE * 1000)
    assert answers.next() == ("GET", "/things/{name}", 200)
    assert answers.seconds == pytest.approx(100.0, abs=PATIENCE)


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, "a\tb", "<script>"])
def test_an_id_that_is_not_sane_is_replaced(server: HttpServer, lines: Lines, given: str) -> None:
    made = get(server, "/things/a", **({"X-Request-Id": given} if given else {})).headers
    assert made["X-Request-Id"] != given
    assert len(made["X-Request-Id"]) == 26
    assert lines.next("answered")["call_id"] == made["X-Request-Id"]


def test_every_answer_is_one_line(server: HttpServer, lines: Lines, answers: Answers) -> None:
    expected = {
        "/things/missing": ("/things/{name}", 404),
        "/things/broken": ("/things/{name}", 500),
        "/no/such/s3cret": ("none", 404),
    }
    for path, (route, status) in expected.items():
        assert get(server, path).headers["X-Request-Id"]
        line = lines.next("answered")
        assert (line["route"], line["status"]) == (route, status)
        assert answers.next() == ("GET", route, status)
        assert "s3cret" not in json.dumps(line)


def test_probes_and_files_of_the_page_are_counted_and_logged_only_when_they_fail(
    server: HttpServer, lines: Lines, answers: Answers
) -> None:
    get(server, "/healthz")
    assert answers.next() == ("GET", "/healthz", 200)
    get(server, "/static/page.js")
    assert answers.next() == ("GET", "/static/{path:path}", 200)
    get(server, "/static/missing.js")
    assert lines.next("answered")["status"] == 404
    get(server, "/things/a")
    lines.next("answered")
    assert [line["route"] for line in lines.all if line["event"] == "answered"] == [
        "/static/{path:path}",
        "/things/{name}",
    ]


def test_a_line_outside_of_a_call_has_no_id(lines: Lines) -> None:
    log.info("alone")
    assert "call_id" not in lines.next("alone")


def test_a_line_for_people_is_one_line_without_controls(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pool.http")
    log.info(
        "CVAT: \x1b[2J\nfake", plain="a/b.jpg", several=("x", "y z"), odd="\x1b", none=None, count=2
    )
    (line,) = (record.getMessage() for record in caplog.records if record.name == log.name)
    assert line == ("CVAT: \\x1b[2J\\nfake: plain=a/b.jpg several='x, y z' odd='\\x1b' count=2")
