"""A short storm: real processes, killed at random points. ``soak.py`` runs a long one."""

from __future__ import annotations

from pathlib import Path

import pytest
from storm import Storm

from pool.simulator import Timings


@pytest.mark.timeout(150)
def test_nothing_is_lost_when_processes_are_killed(tmp_path: Path) -> None:
    storm = Storm(tmp_path, seed=7, timings=Timings().scaled(0.1))
    outcome = storm.blow(kills=30, pause=0.25)
    assert outcome.wrong == []
    assert sum(outcome.kills.values()) >= 30
    assert outcome.requests["ready"] > 0, outcome.summary()
