"""A short storm: real processes, killed at random points. ``soak.py`` runs a long one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.store_factories import FACTORIES
from support.postgres import PostgresServer

from faults.storm import Storm
from faults.weather import MILD, PAGES, SHARE
from pool.simulator import Timings


@pytest.fixture(params=FACTORIES)
def database(request: pytest.FixtureRequest) -> Iterator[PostgresServer | None]:
    """A server that is killed and started again, or None for a file."""
    if request.param == "sqlite":
        yield None
        return
    server = PostgresServer()
    yield server
    server.remove()


@pytest.mark.timeout(240)
def test_nothing_is_lost_when_processes_are_killed_in_mild_weather(
    tmp_path: Path, database: PostgresServer | None
) -> None:
    """Eight callers, in their own processes and over HTTP, and two daemons that take over from
    each other, while the server is slow, fails, and loses what it was told."""
    storm = Storm(
        tmp_path,
        seed=7,
        timings=Timings().scaled(0.1),
        callers=8,
        weather=MILD,
        database=database,
        restart_after=8,
    )
    kills = 25 if database is None else 17
    outcome = storm.blow(kills=kills, pause=0.3)
    assert outcome.wrong == []
    assert outcome.kills.total() >= kills
    assert outcome.kills["database"] == (0 if database is None else 2)
    assert outcome.weather.total() > 0
    assert outcome.requests["ready"] > 0, outcome.summary()


@pytest.mark.timeout(120)
def test_requests_that_share_tasks_get_their_own_pictures_when_processes_are_killed(
    tmp_path: Path, database: PostgresServer | None
) -> None:
    """Some have pictures that CVAT cannot import, so that groups fail and go on in parts."""
    storm = Storm(
        tmp_path,
        seed=11,
        timings=Timings().scaled(0.1),
        callers=8,
        database=database,
        restart_after=5,
        grouping="auto",
    )
    outcome = storm.blow(kills=6, pause=0.2)
    assert outcome.wrong == []
    assert outcome.groups > 0, outcome.summary()
    assert outcome.seen >= outcome.requests["ready"] > 0


@pytest.mark.timeout(120)
def test_slots_get_their_own_pictures_when_processes_are_killed_and_the_share_goes_away(
    tmp_path: Path, database: PostgresServer | None
) -> None:
    """CVAT has weather, too; people look at empty slots, and their pages write old lists back."""
    storm = Storm(
        tmp_path,
        seed=13,
        timings=Timings().scaled(0.1),
        callers=5,
        weather=(*SHARE, *PAGES, "errors", "latency"),
        pace=0.4,
        database=database,
        restart_after=5,
        slots=True,
    )
    outcome = storm.blow(kills=8, pause=0.7)
    assert outcome.wrong == []
    assert outcome.kills.total() >= 8
    assert set(outcome.weather) & set(SHARE)
    assert outcome.slots > 0, outcome.summary()
