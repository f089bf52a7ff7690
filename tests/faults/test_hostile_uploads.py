"""Hostile uploads leave nothing behind, and the daemon serving. Every one gets a sane answer."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from support.api import Serving, serving, settings_for
from support.waiting import PATIENCE

from faults import hostile
from faults.hostile import Hostile
from pool.config.settings import PoolSettings, Template
from pool.simulator import SimulatorServer

CASES = hostile.everything()
#: Those that the server waits for in vain, and those that come whole, however busy the machine is.
LATE = [case for case in CASES if 408 in case.statuses]
IN_TIME = [case for case in CASES if 408 not in case.statuses]
#: Callers at the same time.
AT_ONCE = 24


@contextmanager
def served_within(seconds: float, simulator: SimulatorServer, store_url: str) -> Iterator[Serving]:
    """A daemon that waits so long for the rest of a body."""
    settings = settings_for(
        simulator.url,
        store_url,
        Template(name="strict", pool=PoolSettings(on_empty="fail")),
        Template(name="scenes"),
        receive_timeout=seconds,
        max_body=hostile.MOST_BYTES,
        max_files=hostile.MOST_FILES,
    )
    with serving(settings, simulator.access_token) as served:
        yield served


def status_of(served: Serving, case: Hostile) -> int | None:
    """The status that a case is answered with; None when it does not wait for one."""
    port = served.port
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.settimeout(PATIENCE)
        for piece in case.pieces:
            # The server may have had enough already.
            with contextlib.suppress(ConnectionError):
                line.sendall(piece)
            time.sleep(case.pause)
        if not case.statuses:
            return None
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = line.recv(2**16)
            assert piece, f"{case.what}: no answer"
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head.lower(), (case.what, answer)
    status = int(head.split()[1])
    if body:
        assert json.loads(body)["status"] == status
    return status


def test_there_are_many() -> None:
    assert len(CASES) >= 200
    assert len({case.what for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("cases", "seconds"),
    [(LATE, hostile.PATIENCE), (IN_TIME, PATIENCE)],
    ids=["late", "in time"],
)
def test_nothing_is_left_and_everybody_is_answered(
    simulator: SimulatorServer,
    store_url: str,
    image: bytes,
    cases: list[Hostile],
    seconds: float,
) -> None:
    with served_within(seconds, simulator, store_url) as served:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            answers = list(threads.map(lambda case: status_of(served, case), cases))
        wrong = {
            case.what: (status, sorted(case.statuses))
            for case, status in zip(cases, answers, strict=True)
            if status is not None and status not in case.statuses
        }
        assert wrong == {}
        assert served.spooled() == []
        assert served.process.spool.room.used == 0
        assert served.process.store.requests().requests == ()
        # It goes on serving.
        answer = served.api.submit([("a.jpg", image)], wait=20)
        assert answer.status == 201
        assert served.spooled() == []
