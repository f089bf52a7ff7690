"""Jobs that are divided among the assignees of a template, on the simulator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.pools import serving, wait_for, write_config
from support.waiting import PATIENCE

from pool import TaskPool
from pool.bench.plain import plain_client
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.daemon import Daemon
from pool.simulator import SimulatorServer, SimulatorSettings, Timings, UserSettings

NAMES = ("ann", "bob", "cem")


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    users = (
        UserSettings(username="boss", is_superuser=True),
        *(UserSettings(username=name) for name in NAMES),
    )
    with SimulatorServer(SimulatorSettings(timings=Timings.zero(), users=users)) as server:
        yield server


def configured(folder: Path, server: SimulatorServer, own: str) -> Path:
    """A configuration whose template has these lines as well."""
    config = write_config(folder, server)
    config.write_text(
        config.read_text().replace("[templates.scenes]\n", f"[templates.scenes]\n{own}\n")
    )
    return config


def assigned(pool: Any, daemon: Daemon, server: SimulatorServer, *requests: Any) -> list[str]:
    """Whom the jobs of requests are assigned to, in order, once all of them are."""
    jobs = [job for request in requests for job in request.jobs(timeout=PATIENCE)]
    wait_for(daemon, lambda: not daemon.process.store.due_steps(now=float("inf"), limit=1))
    names = []
    for job in jobs:
        user = server.state.jobs[job.id].assignee
        names.append("" if user is None else user.username)
    told = [job.assignee or "" for each in requests for job in pool.request(each.id).jobs()]
    assert told == names, "the pool says what the server has"
    return names


def files(image: bytes, count: int = 1) -> list[tuple[str, bytes]]:
    return [(f"{number}.jpg", image) for number in range(count)]


def test_turns_are_fair_job_by_job_over_processes_and_restarts(
    tmp_path: Path, server: SimulatorServer, image: bytes
) -> None:
    config = configured(tmp_path, server, 'assignees = ["ann", "bob", "cem"]')
    seen: list[str] = []
    for _ in range(2):
        with serving(config, server) as daemon, TaskPool(daemon.settings) as here:
            for pool in (here, TaskPool.over(daemon.process)):
                request = pool.submit("scenes", files(image, 4), job_size=1)
                seen += assigned(pool, daemon, server, request)
    assert seen == [NAMES[number % 3] for number in range(16)]


def test_each_request_of_a_group_has_its_own_turn(
    tmp_path: Path, server: SimulatorServer, image: bytes
) -> None:
    config = configured(
        tmp_path, server, 'assignees = ["ann", "bob"]\nimport = { grouping = "auto" }'
    )
    with serving(config, server) as daemon, TaskPool(daemon.settings) as pool:
        named = pool.submit("scenes", files(image), assignee="cem")
        others = [pool.submit("scenes", files(image)) for _ in range(8)]
        assert assigned(pool, daemon, server, named) == ["cem"]
        shared = assigned(pool, daemon, server, *others)
    assert Counter(shared) == {"ann": 4, "bob": 4}


def test_the_one_with_the_fewest_open_jobs_gets_the_next(
    tmp_path: Path, server: SimulatorServer, image: bytes
) -> None:
    with serving(configured(tmp_path, server, ""), server) as daemon:
        pool, cvat = TaskPool.over(daemon.process), daemon.process.cvat()
        jobs = pool.submit("scenes", files(image, 8), job_size=1).jobs(timeout=PATIENCE)
        for job, name in zip(jobs, ["ann", "ann", "ann", "bob", "cem", "cem"], strict=False):
            cvat.assign_job(job.id, user_id(cvat, name))
        for job in jobs[6:]:
            cvat.assign_job(job.id, user_id(cvat, "bob"))
            server.state.jobs[job.id].state = "completed"
    own = 'assignees = ["ann", "bob", "cem"]\nassign = "least-loaded"'
    with serving(configured(tmp_path, server, own), server) as daemon:
        pool = TaskPool.over(daemon.process)
        request = pool.submit("scenes", files(image, 6), job_size=1)
        given = assigned(pool, daemon, server, request)
        assert given[0] == "bob", "who has one, and two that are completed"
        assert Counter(given) == {"ann": 1, "bob": 3, "cem": 2}, "so that each has four"
        again = assigned(pool, daemon, server, pool.submit("scenes", files(image, 3), job_size=1))
        assert sorted(again) == ["ann", "bob", "cem"]


def user_id(cvat: CvatClient, name: str) -> int:
    user = cvat.find_user(name)
    assert user is not None
    return user.id


def test_an_unknown_user_keeps_no_other_from_their_jobs(
    tmp_path: Path, server: SimulatorServer, image: bytes
) -> None:
    config = configured(tmp_path, server, 'assignees = ["ann", "ghost", 999, "bob"]')
    with serving(config, server) as daemon, TaskPool(daemon.settings) as pool:
        request = pool.submit("scenes", files(image, 8), job_size=1)
        assert assigned(pool, daemon, server, request) == ["ann", "", "", "bob"] * 2
        (warning,) = request.warnings
    assert warning.code == "not-assigned"
    assert "4 of 8 job(s) not assigned to user ghost, 999: " in warning.text


def test_the_jobs_of_a_caller_that_uploads_itself_are_divided_too(
    tmp_path: Path, server: SimulatorServer, image: bytes
) -> None:
    config = configured(tmp_path, server, 'assignees = ["cem"]')
    with serving(config, server) as daemon, TaskPool(daemon.settings) as pool:
        lease = pool.acquire("scenes", timeout=PATIENCE)
        with plain_client(
            daemon.settings.cvat, AccessTokenCredentials(token=server.access_token)
        ) as client:
            picture = tmp_path / "a.jpg"
            picture.write_bytes(image)
            client.tasks.retrieve(lease.task_id).upload_data([picture], status_check_period=0.01)
        (job,) = lease.jobs(timeout=PATIENCE)
        server.wait_for(lambda state: state.jobs[job.id].assignee is not None)
        user = server.state.jobs[job.id].assignee
    assert user is not None and user.username == "cem"
