"""Leases of slots: a job that is known at once, which only the pool fills."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.api import Api
from support.commands import cvat_pool
from support.pools import HERE, REMOTE, opened
from support.simulated import Caller
from support.slots import (
    colour_of,
    picture_of,
    slot_daemon,
    slot_server,
    slot_template,
    wait_for_slots,
    warm_slots,
)
from support.waiting import wait_until

from pool import InputError, LeaseEnded, LeaseInUse, LeaseState, Outcome, Placed
from pool.config.settings import PoolSettings
from pool.daemon import Daemon
from pool.maintenance.lease_expiry import ANNOTATED
from pool.model import Job, LeaseRecord, TaskState
from pool.simulator import SimulatorServer


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with slot_server() as server:
        yield server


@pytest.fixture
def daemon(server: SimulatorServer, store_url: str) -> Iterator[Daemon]:
    """Three slots in one task are warm."""
    template = slot_template(server.share, pool=PoolSettings(min_size=3, max_size=9))
    with slot_daemon(server, store_url, template) as daemon:
        wait_for_slots(daemon.process, 3)
        yield daemon


@pytest.fixture(params=[HERE, *REMOTE])
def caller(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Any]:
    with opened(request.param, daemon) as pool:
        yield pool


def annotate(server: SimulatorServer, task_id: int, job: Job) -> None:
    """Draw a box into a job, as people do."""
    call = Caller(server)
    (label,) = call("GET", "/api/labels", {"task_id": task_id}).json()["results"]
    box = {"type": "rectangle", "frame": job.start_frame, "points": [1, 1, 9, 9]}
    body = {"version": 0, "tags": [], "tracks": [], "shapes": [{**box, "label_id": label["id"]}]}
    assert call("PUT", f"/api/jobs/{job.id}/annotations", json=body).status == 200


def test_its_job_is_known_at_once_and_its_upload_fills_it(
    caller: Any, daemon: Daemon, server: SimulatorServer
) -> None:
    lease = caller.acquire("camera")
    assert lease.outcome is Outcome.HIT
    (job,) = lease.jobs(timeout=0)
    with pytest.raises(InputError, match="submit it without the lease"):
        lease.upload([("wide.jpg", picture_of("red", size=(65, 48)))])
    request = lease.upload([("a.jpg", picture_of("red"))])
    assert request.jobs(timeout=20) == [job]
    assert (request.placed, request.no_slot) == (Placed.SLOT, "")
    frame = request.frames[0]
    assert (frame.file, frame.number) == ("a.jpg", job.start_frame)
    assert colour_of((server.share / frame.name).read_bytes()) == "red"
    assert lease.jobs(timeout=0) == [job]
    with pytest.raises(LeaseInUse):
        lease.release()


def test_it_is_given_back_unless_people_have_annotated_it(
    caller: Any, daemon: Daemon, server: SimulatorServer
) -> None:
    lease = caller.acquire("camera")
    lease.release()
    assert warm_slots(daemon.process) == 3
    with pytest.raises(LeaseEnded):
        lease.jobs(timeout=0)
    again = caller.acquire("camera")
    (job,) = again.jobs(timeout=0)
    annotate(server, again.task_id, job)
    with pytest.raises(LeaseInUse, match=f"job {job.id} is annotated"):
        again.release()


def test_an_expired_one_is_warm_again_or_retired_where_it_is_annotated(
    daemon: Daemon, server: SimulatorServer
) -> None:
    process = daemon.process
    with opened(HERE, daemon) as pool:
        untouched, annotated = (pool.acquire("camera", ttl=1.0) for _ in range(2))
        (job,) = annotated.jobs(timeout=0)
        annotate(server, annotated.task_id, job)

        def record_of(lease: Any) -> LeaseRecord:
            record = process.store.lease(lease.id)
            assert record is not None
            return record

        def ended() -> bool:
            assert daemon.maintenance is not None
            daemon.maintenance.scheduler.wake("lease_expiry")
            leases = map(record_of, (untouched, annotated))
            return all(lease.state is LeaseState.EXPIRED for lease in leases)

        wait_until(process.store, ended)
        rows = [
            process.store.task(record_of(each).pooled_id or "") for each in (untouched, annotated)
        ]
        assert [row and (row.state is TaskState.WARM, row.reason) for row in rows] == [
            (True, ""),
            (False, ANNOTATED),
        ]


def test_http_answers_with_its_job(daemon: Daemon) -> None:
    with Api(daemon.url) as api:
        lease = api.lease("camera").json
        assert [job["start_frame"] for job in lease["jobs"]] == [0]
        assert api.get(f"/v1/leases/{lease['id']}").json == lease
        waited = api.get(f"/v1/leases/{lease['id']}", headers={"Prefer": "wait=10"})
        assert waited.json == lease


def test_the_command_prints_its_job(daemon: Daemon, tmp_path: Path) -> None:
    taken = cvat_pool("lease", "camera", "--json", "--server", daemon.url, cwd=tmp_path)
    (job,) = json.loads(taken.stdout)["jobs"]
    assert (job["start_frame"], job["stop_frame"]) == (0, 0)
    shown = cvat_pool("lease", "camera", "--server", daemon.url, cwd=tmp_path).stdout
    (second,) = re.findall(r"^job   ([0-9]+)  .*/jobs/\1$", shown, re.MULTILINE)
    assert int(second) == job["id"] + 1
