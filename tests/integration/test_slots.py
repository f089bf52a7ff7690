"""Requests that go into slots, by the doors of callers, and those that do not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
from support.api import settings_for
from support.simulated import client_of
from support.slots import (
    FOLDER,
    colours_of,
    picture_of,
    slot_daemon,
    slot_server,
    slot_template,
    wait_for_slots,
    warm_slots,
)
from support.waiting import PATIENCE, poll_until, wait_until

from pool import InputError, RemotePool, SlotStorageUnavailable, TaskPool
from pool.config.settings import ImportSettings, PoolSettings, Template
from pool.cvat import CvatClient
from pool.daemon import Daemon
from pool.model import LeaseState, Outcome, Placed, RequestState
from pool.simulator import SimulatorServer
from pool.simulator.faults import Error


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with slot_server() as server:
        yield server


@contextmanager
def at_work(
    server: SimulatorServer, store_url: str, template: Template
) -> Iterator[tuple[Daemon, TaskPool, CvatClient]]:
    """A daemon whose pool is warm, and a process that calls."""
    settings = settings_for(server.url, store_url, template)
    with (
        slot_daemon(server, store_url, template) as daemon,
        client_of(server) as cvat,
        TaskPool(settings, cvat=cvat) as pool,
    ):
        wait_for_slots(daemon.process, template.pool.min_size)
        yield daemon, pool, cvat


def test_a_request_has_its_job_at_once_and_annotators_see_its_own_picture(
    server: SimulatorServer, store_url: str
) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (_, pool, cvat):
        colours = ["red", "green", "blue"]
        requests = [pool.submit("camera", [("a.jpg", picture_of(each))]) for each in colours]
        for request in requests:
            assert request.record.state is RequestState.READY
            assert (request.record.placed, request.record.outcome) == (Placed.SLOT, Outcome.HIT)
        jobs = [request.jobs()[0] for request in requests]
        assert len({job.id for job in jobs}) == 3
        assert len({request.task_id for request in requests}) == 1
        for request, job, colour in zip(requests, jobs, colours, strict=True):
            request.shown(PATIENCE)
            (frame,) = request.frames
            assert (frame.file, frame.number) == ("a.jpg", job.start_frame)
            assert frame.name.startswith(f"{FOLDER}/")
            assert request.task_id is not None
            assert colours_of(cvat, request.task_id, job.start_frame) == {colour}


def test_slots_of_several_frames_take_fewer(server: SimulatorServer, store_url: str) -> None:
    template = slot_template(server.share, frames=3, per_task=2)
    with at_work(server, store_url, template) as (_, pool, cvat):
        files = [("b.jpg", picture_of("red")), ("a.jpg", picture_of("blue"))]
        request = pool.submit("camera", files)
        request.shown(PATIENCE)
        task_id, (job,) = request.task_id, request.jobs()
        assert task_id is not None
        assert [frame.number for frame in request.frames] == [job.start_frame, job.start_frame + 1]
        assert colours_of(cvat, task_id, job.start_frame) == {"red"}
        assert colours_of(cvat, task_id, job.start_frame + 1) == {"blue"}
        assert cvat.hidden_frames(task_id) == {2, 3, 4, 5}


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ([("a.jpg", picture_of(size=(10, 10)))], "10x10"),
        ([("a.png", picture_of(format="png"))], "PNG"),
        ([("a.jpg", picture_of()), ("b.jpg", picture_of())], "2 files"),
        ([("a.jpg", picture_of()[:-40])], "cut off"),
    ],
)
def test_what_does_not_fit_goes_the_ordinary_way_and_says_why(
    server: SimulatorServer, store_url: str, files: list[tuple[str, bytes]], why: str
) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (daemon, pool, _):
        before = warm_slots(daemon.process)
        request = pool.submit("camera", files)
        assert why in request.record.no_slot
        assert warm_slots(daemon.process) == before
        if why != "cut off":
            request.jobs(PATIENCE)
            assert request.refresh().placed is Placed.TASK
            assert request.refresh().outcome is Outcome.COLD


def test_a_lease_has_its_job_before_there_is_data(server: SimulatorServer, store_url: str) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (daemon, pool, cvat):
        warm = warm_slots(daemon.process)
        lease, other = pool.acquire("camera"), pool.acquire("camera")
        (job,) = lease.jobs(timeout=0)
        other.release()
        with pytest.raises(InputError, match="10x10"):
            lease.upload([("a.jpg", picture_of(size=(10, 10)))])
        request = lease.upload([("a.jpg", picture_of("green"))])
        assert request.record.state is RequestState.READY
        assert [each.id for each in request.jobs()] == [job.id]
        request.shown(PATIENCE)
        assert colours_of(cvat, lease.task_id, job.start_frame) == {"green"}
        record = pool.store.lease(lease.id)
        assert record is not None and record.state is LeaseState.USED
        assert warm_slots(daemon.process) >= warm - 1


def test_a_slot_is_filled_while_cvat_is_away_and_shown_when_it_is_back(
    server: SimulatorServer, store_url: str
) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (_, pool, cvat):
        with server.fault(Error(status=503)):
            request = pool.submit("camera", [("a.jpg", picture_of("red"))])
            (job,) = request.jobs(timeout=0)
            assert request.record.shown_at is None
        request.shown(PATIENCE)
        assert request.task_id is not None
        assert colours_of(cvat, request.task_id, job.start_frame) == {"red"}


def test_many_at_once_each_get_a_slot_of_their_own(server: SimulatorServer, store_url: str) -> None:
    template = slot_template(server.share, per_task=10, pool=PoolSettings(min_size=20, max_size=40))
    with at_work(server, store_url, template) as (_, pool, _), ThreadPoolExecutor(10) as threads:
        files = [("a.jpg", picture_of("red"))]
        requests = list(threads.map(lambda _: pool.submit("camera", files), range(20)))
        assert {request.record.placed for request in requests} == {Placed.SLOT}
        assert len({request.jobs()[0].id for request in requests}) == 20


def test_where_no_slot_is_warm_a_task_is_made(server: SimulatorServer, store_url: str) -> None:
    """Without a daemon, none becomes warm."""
    template = slot_template(server.share, pool=PoolSettings(min_size=0))
    settings = settings_for(server.url, store_url, template)
    with client_of(server) as cvat, TaskPool(settings, cvat=cvat) as pool:
        request = pool.submit("camera", [("a.jpg", picture_of("red"))])
        request.jobs(PATIENCE)
        assert (request.refresh().placed, request.refresh().outcome) == (Placed.TASK, Outcome.COLD)
        assert request.refresh().no_slot == "no slot was warm"


def test_a_request_that_waits_gets_a_slot_as_soon_as_one_is_there(
    server: SimulatorServer, store_url: str
) -> None:
    pool_settings = PoolSettings(min_size=0, max_size=9, on_empty="wait", max_wait=PATIENCE)
    template = slot_template(server.share, pool=pool_settings)
    with at_work(server, store_url, template) as (_, pool, _):
        request = pool.submit("camera", [("a.jpg", picture_of("red"))])
        assert (request.record.placed, request.record.outcome) == (Placed.SLOT, Outcome.WAIT)


def test_a_full_disk_sends_a_request_the_ordinary_way(
    server: SimulatorServer, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (_, pool, _):
        real = os.rename

        def full(*arguments: object, **others: object) -> None:
            if "src_dir_fd" in others:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(*arguments, **others)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "rename", full)
        request = pool.submit("camera", [("a.jpg", picture_of("red"))])
        monkeypatch.undo()
        request.jobs(PATIENCE)
        record = request.refresh()
        assert (record.placed, record.state) == (Placed.TASK, RequestState.READY)
        assert "no space left" in record.no_slot


def test_a_share_that_is_not_mounted_is_written_to_by_none(
    server: SimulatorServer, store_url: str
) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (_, pool, _):
        mounted, empty = server.share / FOLDER, server.share / "elsewhere"
        mounted.rename(empty)
        mounted.mkdir()
        request = pool.submit("camera", [("a.jpg", picture_of("red"))])
        assert not list(mounted.iterdir())
        mounted.rmdir()
        empty.rename(mounted)
        request.jobs(PATIENCE)
        assert request.refresh().placed is Placed.TASK
        assert str(mounted) in request.refresh().no_slot


def test_a_key_gives_the_same_job_again(server: SimulatorServer, store_url: str) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (daemon, pool, _):
        files = [("a.jpg", picture_of("red"))]
        first = pool.submit("camera", files, idempotency_key="frame-1")
        warm = warm_slots(daemon.process)
        again = pool.submit("camera", files, idempotency_key="frame-1")
        assert (again.id, again.jobs()) == (first.id, first.jobs())
        assert warm_slots(daemon.process) >= warm


def names_of(folder: Path) -> list[str]:
    """The names of all files below a folder."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_names_of_callers_never_become_paths(server: SimulatorServer, store_url: str) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (_, pool, _):
        before = names_of(server.share)
        request = pool.submit("camera", [("..%2f..%2fevil name.jpg", picture_of("red"))])
        assert request.record.placed is Placed.SLOT
        assert names_of(server.share) == before


def test_a_share_that_is_away_holds_up_no_request_that_goes_the_ordinary_way(
    server: SimulatorServer, store_url: str
) -> None:
    template = slot_template(
        server.share,
        per_task=2,
        pool=PoolSettings(min_size=2, max_size=4),
        importing=ImportSettings(grouping="auto"),
    )
    with at_work(server, store_url, template) as (daemon, pool, _):
        (server.share / FOLDER).rename(server.share / "elsewhere")
        files = [("a.jpg", picture_of("red"))]
        for _ in range(3):
            pool.submit("camera", files).jobs(PATIENCE)
        wait_until(pool.store, lambda: "camera" in pool.store.holds())
        hold = pool.store.holds()["camera"]
        assert hold.code == SlotStorageUnavailable.code and str(server.share) in hold.reason
        request = pool.submit("camera", files)
        request.jobs(PATIENCE)
        assert request.refresh().placed in (Placed.TASK, Placed.GROUP)
        assert request.refresh().no_slot
        (server.share / "elsewhere").rename(server.share / FOLDER)
        pool.resume("camera")
        wait_for_slots(daemon.process, 1)
        assert pool.submit("camera", files).record.placed is Placed.SLOT


@pytest.mark.parametrize("prefer", ["", "wait=10"])
def test_over_http_the_answer_has_the_jobs(
    server: SimulatorServer, store_url: str, http: urllib3.PoolManager, prefer: str
) -> None:
    with at_work(server, store_url, slot_template(server.share)) as (daemon, pool, _):
        response = http.request(
            "POST",
            f"{daemon.url}/v1/requests",
            fields={"template": "camera", "files": ("a.jpg", picture_of("red"), "image/jpeg")},
            headers={"Prefer": prefer} if prefer else {},
        )
        document = response.json()
        assert response.status == (201 if prefer else 202)
        request = pool.request(document["id"])
        (job,) = request.jobs(PATIENCE)
        assert request.refresh().placed is Placed.SLOT
        assert [each["id"] for each in document["jobs"]] == [job.id]
        # Its data is dropped from the spool once it is in the slot.
        poll_until(lambda: not names_of(daemon.process.spool.folder))


def test_a_request_whose_template_has_changed_while_it_waited_goes_the_ordinary_way(
    server: SimulatorServer, store_url: str
) -> None:
    """It waits for a slot of the old size, and the first that is warm has another."""
    waits = PoolSettings(min_size=0, max_size=9, on_empty="wait", max_wait=PATIENCE)
    old = slot_template(server.share, pool=waits)
    new = slot_template(server.share, pool=replace(waits, min_size=3), slots={"size": "32x24"})
    with slot_daemon(server, store_url, old) as daemon:
        daemon.process.store.pause("camera", now=daemon.process.clock.now())
        with TaskPool.over(daemon.process) as pool:
            files = [("a.jpg", picture_of("red"))]
            document = RemotePool(daemon.url).submit("camera", files)
            assert pool.request(document.id).state is RequestState.QUEUED
            server_of = daemon.process.templates["camera"].server
            daemon.process.templates.replace({"camera": replace(new, server=server_of)})
            pool.resume("camera")
            request = pool.request(document.id)
            request.jobs(PATIENCE)
            assert request.refresh().placed is Placed.TASK
            assert "64x48" in request.refresh().no_slot


def test_a_request_that_is_given_another_slot_in_the_middle_of_leaving_one_is_served(
    server: SimulatorServer, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its write has failed, and before it goes the ordinary way its fresh lease is given a slot
    that another caller gives back: no one else would fill that."""
    template = slot_template(server.share, per_task=2, pool=PoolSettings(min_size=2, max_size=2))
    with at_work(server, store_url, template) as (_, pool, cvat):
        pool.pause("camera")
        other = pool.acquire("camera")
        real_rename, real_leave = os.rename, pool.store.leave_slots

        def fails_once(*arguments: Any, **others: Any) -> None:
            monkeypatch.setattr(os, "rename", real_rename)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def leave(*arguments: Any, **others: Any) -> bool:
            pool.release(other)
            return real_leave(*arguments, **others)

        monkeypatch.setattr(os, "rename", fails_once)
        monkeypatch.setattr(pool.store, "leave_slots", leave)
        request = pool.submit("camera", [("a.jpg", picture_of("blue"))])
        (job,) = request.jobs(PATIENCE)
        request.shown(PATIENCE)
        assert request.refresh().placed is Placed.SLOT
        assert request.task_id is not None
        assert colours_of(cvat, request.task_id, job.start_frame) == {"blue"}
