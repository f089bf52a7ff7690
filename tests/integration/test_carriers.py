"""Carriers: made by a daemon over placeholders on a share, looked after, and deleted with their
files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.simulated import client_of
from support.slots import (
    FOLDER,
    carriers_of,
    colours_of,
    slot_daemon,
    slot_server,
    slot_template,
    wait_for_slots,
    warm_slots,
)

from pool.config.settings import PoolSettings
from pool.simulator import SimulatorServer


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with slot_server() as server:
        yield server


def files_below(share: Path) -> list[str]:
    return sorted(
        each.name
        for each in (share / FOLDER).rglob("*")
        if each.is_file() and not each.name.startswith(".")
    )


def test_a_pool_of_slots_is_filled_with_carriers(server: SimulatorServer, store_url: str) -> None:
    """As many as hold min_size slots, each with a job a slot, all frames hidden."""
    template = slot_template(
        server.share, per_task=3, frames=2, pool=PoolSettings(min_size=4, max_size=9)
    )
    with slot_daemon(server, store_url, template) as daemon, client_of(server) as cvat:
        process = daemon.process
        wait_for_slots(process, 6)
        assert warm_slots(process) == 6, "the last carrier may have more than were asked for"
        carriers = carriers_of(process.store)
        assert len(carriers) == 2
        for carrier in carriers:
            slots = process.store.slots_of(carrier.id)
            assert [(slot.start_frame, slot.stop_frame) for slot in slots] == [
                (0, 1), (2, 3), (4, 5)
            ]  # fmt: skip
            assert carrier.task_id is not None
            jobs = cvat.jobs([carrier.task_id])[carrier.task_id]
            assert [job.id for job in jobs] == [slot.job_id for slot in slots]
            assert cvat.hidden_frames(carrier.task_id) == set(range(6))
            assert colours_of(cvat, carrier.task_id, 5) == {""}
        assert files_below(server.share) == sorted([f"{n:04d}.jpg" for n in range(6)] * 2)
