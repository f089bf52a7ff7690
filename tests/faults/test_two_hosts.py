"""Two daemons on two hosts, of which each fails once. ``soak.py --hosts`` runs it for long."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.actors import HASTE
from faults.two_hosts import TAKEOVER, TwoHosts
from pool.simulator import Timings

#: What is waited for at the end. How soon a daemon takes over is as in the product, and measured.
HASTY = {
    **{
        name: HASTE[name]
        for name in (
            "pool.requests.breaker",
            "pool.maintenance.deletion",
            "pool.maintenance.reconcile_rules",
            "pool.maintenance.reconcile",
            "pool.tracking.tracker",
        )
    },
    "pool.maintenance.scheduler": {
        "INTERVALS": {"delete": 1.0, "lease_expiry": 2.0, "reconcile": 2.0, "retirement": 2.0}
    },
}


@pytest.mark.timeout(300)
def test_nothing_is_lost_when_hosts_fail_and_no_two_daemons_maintain(tmp_path: Path) -> None:
    hosts = TwoHosts(
        tmp_path,
        seed=5,
        timings=Timings().scaled(0.1),
        away=10.0,
        pause=2.0,
        shared=True,
        haste=HASTY,
    )
    outcome = hosts.run(0.0)
    assert outcome.wrong == []
    for what in ("daemon", "cut off", "cut off from CVAT", "database"):
        assert outcome.kills[what] == 1
    assert outcome.requests["ready"] > 0, outcome.summary()
    assert outcome.terms >= 3
    assert outcome.deletions > 0
    # The machine may be busy with other tests.
    assert max(outcome.takeovers) < 2 * TAKEOVER
