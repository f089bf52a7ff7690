"""A short storm: real processes, killed at random points. ``soak.py`` runs a long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.storm import Storm
from faults.weather import MILD
from pool.simulator import Timings


@pytest.mark.timeout(240)
def test_nothing_is_lost_when_processes_are_killed_in_mild_weather(tmp_path: Path) -> None:
    """Eight callers, in their own processes and over HTTP, and two daemons that take over from
    each other, while the server is slow, fails, and loses what it was told."""
    storm = Storm(tmp_path, seed=7, timings=Timings().scaled(0.1), callers=8, weather=MILD)
    outcome = storm.blow(kills=25, pause=0.3)
    assert outcome.wrong == []
    assert outcome.kills.total() >= 25
    assert outcome.weather.total() > 0
    assert outcome.requests["ready"] > 0, outcome.summary()
