"""Uploads whose connection is cut, against the simulator behind a proxy that cuts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.proxy import CuttingProxy

from pool import CvatError, RequestState, TaskPool
from pool.cvat import resumable
from pool.requests import sending
from pool.simulator import SimulatorServer

MEGABYTE = 10**6


@pytest.fixture
def proxy(simulator: SimulatorServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(simulator.url) as proxy:
        yield proxy


class Watched:
    """A pool behind the proxy, and which task each of its uploads went into."""

    def __init__(self, pool: TaskPool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pool = pool
        self.tasks: list[int] = []
        self.steps: list[tuple[int, int]] = []
        client = pool.process.cvat()
        upload = client.upload

        def watched(task_id: int, *arguments: Any, **options: Any) -> str:
            self.tasks.append(task_id)
            return upload(task_id, *arguments, **options)

        monkeypatch.setattr(client, "upload", watched)

    def submit(self, *files: tuple[str, bytes | Path]) -> Any:
        return self.pool.submit(
            "scenes", list(files), progress=lambda *step: self.steps.append(step)
        )

    def limit(self, size: int, *, at_once: int = 4) -> None:
        """How large a request may be, and how many there are at the same time."""
        templates = self.pool.process.templates
        template = templates["scenes"]
        importing = replace(
            template.importing, single_request_limit=size, upload_concurrency=at_once
        )
        templates.replace({"scenes": replace(template, importing=importing)})


@pytest.fixture
def watched(
    proxy: CuttingProxy,
    simulator: SimulatorServer,
    config_path: Path,
    log_in: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Watched]:
    monkeypatch.setattr(sending, "CUT_OFF_PAUSE", 0.0)
    monkeypatch.setattr(sending, "SETTLE_LOOKS", (0.0, 0.0))
    monkeypatch.setattr(resumable, "FIRST_PAUSE", 0.0)
    config_path.write_text(
        config_path.read_text()
        .replace(simulator.url, proxy.url)
        .replace('max_wait = "5s"', 'max_wait = "0s"')
    )
    with TaskPool.from_config(config_path) as pool:
        yield Watched(pool, monkeypatch)


@pytest.fixture
def photo(image: bytes) -> bytes:
    """An image of a megabyte: what stands behind the picture does not matter to anybody."""
    return image + bytes(MEGABYTE - len(image))


def more_than_buffers_take(photo: bytes) -> list[tuple[str, bytes]]:
    """So much that whoever sends it knows that it was cut in the middle."""
    return [(f"{number}.jpg", photo) for number in range(16)]


def sizes(simulator: SimulatorServer, task_id: int) -> dict[str, int]:
    """The files that a task has on the server, in bytes."""
    data = simulator.state.tasks[task_id].data
    return {} if data is None else {path.name: path.stat().st_size for path in data.raw.iterdir()}


def test_one_request_that_is_cut_goes_to_a_fresh_task(
    watched: Watched, proxy: CuttingProxy, simulator: SimulatorServer, photo: bytes
) -> None:
    proxy.cut("up", MEGABYTE)
    request = watched.submit(*more_than_buffers_take(photo))
    assert len(request.jobs(timeout=20)) == 1
    first, second = watched.tasks
    assert first != second == request.task_id
    assert sizes(simulator, first) == {}
    assert sizes(simulator, second) == {f"{n}.jpg": MEGABYTE for n in range(16)}
    assert watched.steps[-1] == (16 * MEGABYTE, 16 * MEGABYTE)
    assert proxy.cuts == 1


def test_a_group_that_is_cut_makes_everything_go_to_a_fresh_task(
    watched: Watched, proxy: CuttingProxy, simulator: SimulatorServer, photo: bytes
) -> None:
    watched.limit(2 * MEGABYTE)
    proxy.cut("up", 3 * MEGABYTE // 2)
    request = watched.submit(*((f"{number}.jpg", photo) for number in range(8)))
    expect_one_of_two(watched, simulator, request)


def test_a_group_whose_answer_is_lost_makes_everything_go_to_a_fresh_task(
    watched: Watched, proxy: CuttingProxy, simulator: SimulatorServer, photo: bytes
) -> None:
    watched.limit(2 * MEGABYTE)
    lease = watched.pool.acquire("scenes")
    proxy.cut("down", 0, sent=MEGABYTE)
    request = lease.upload([(f"{number}.jpg", photo) for number in range(8)])
    expect_one_of_two(watched, simulator, request)


def expect_one_of_two(watched: Watched, simulator: SimulatorServer, request: Any) -> None:
    (job,) = request.jobs(timeout=20)
    assert job.stop_frame == 7
    first, second = watched.tasks
    assert first != second == request.task_id
    assert sizes(simulator, second) == {f"{n}.jpg": MEGABYTE for n in range(8)}
    assert list(simulator.state.jobs_of(simulator.state.tasks[first])) == []


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_large_file_goes_on_where_it_was_cut(
    watched: Watched,
    proxy: CuttingProxy,
    simulator: SimulatorServer,
    photo: bytes,
    at_once: int,
    direction: Any,
) -> None:
    watched.limit(MEGABYTE // 4, at_once=at_once)
    lease = watched.pool.acquire("scenes")
    # Three times in the middle of a piece, or three times in the answer to one.
    after = MEGABYTE // 8 if direction == "up" else 0
    proxy.cut(direction, after, sent=MEGABYTE // 16, times=3)
    steps: list[tuple[int, int]] = []
    request = lease.upload(
        [("a.jpg", photo), ("b.jpg", photo)], progress=lambda *step: steps.append(step)
    )
    assert request.jobs(timeout=20)[0].stop_frame == 1
    assert watched.tasks == [request.task_id]
    assert sizes(simulator, lease.task_id) == {"a.jpg": MEGABYTE, "b.jpg": MEGABYTE}
    assert proxy.cuts == 3
    assert steps == sorted(steps)
    # What was on its way when it was cut went again, and no more.
    assert proxy.passed["up"] < 3 * MEGABYTE


def test_an_answer_that_is_cut_is_settled_by_looking(
    watched: Watched, proxy: CuttingProxy, simulator: SimulatorServer, photo: bytes
) -> None:
    lease = watched.pool.acquire("scenes")
    proxy.cut("down", 0, sent=MEGABYTE)
    request = lease.upload([("a.jpg", photo)])
    assert len(request.jobs(timeout=20)) == 1
    assert watched.tasks == [lease.task_id]
    assert sizes(simulator, lease.task_id) == {"a.jpg": MEGABYTE}


def test_a_line_that_is_always_cut_is_given_up(
    watched: Watched, proxy: CuttingProxy, photo: bytes
) -> None:
    proxy.cut("up", MEGABYTE, times=9)
    with pytest.raises(CvatError, match=r"after \d+ of \d+ bytes") as raised:
        watched.submit(*more_than_buffers_take(photo))
    assert raised.value.code == "cvat-unreachable"
    assert len(set(watched.tasks)) == len(watched.tasks) == 3
    (row,) = watched.pool.status().templates
    assert row.warm == 0


def test_a_server_that_is_away_costs_no_task(
    watched: Watched, proxy: CuttingProxy, photo: bytes
) -> None:
    lease = watched.pool.acquire("scenes")
    proxy.stop()
    with pytest.raises(CvatError) as raised:
        lease.upload([("a.jpg", photo)])
    assert raised.value.code == "cvat-unreachable"
    assert watched.pool.status().templates[0].warm == 1
    proxy.start()
    request = watched.submit(("a.jpg", photo))
    assert request.jobs(timeout=20)
    assert request.task_id == lease.task_id
    assert request.state is RequestState.READY
