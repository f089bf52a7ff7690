"""The pool as Python code uses it, against the simulator: what only concerns a process that sends
its data itself. What all kinds of pools do is in test_every_pool."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from support.stepped import fill_for

from pool import (
    InputError,
    TaskPool,
)
from pool.cvat import listing
from pool.errors import OwnerGone, StoreError
from pool.model import new_id
from pool.simulator import SimulatorServer
from pool.store import NewLease, NewRequest


@pytest.fixture
def filled(pool: TaskPool) -> None:
    """A daemon has filled the pool, and is gone."""
    fill_for(pool)


def test_one_post_for_the_data_and_no_call_before_it(
    pool: TaskPool, filled: None, simulator: SimulatorServer, image: bytes
) -> None:
    simulator.stats.reset()
    simulator.hold_imports()
    try:
        pool.submit("scenes", [("a.jpg", image)])
        assert dict(simulator.stats.calls) == {"data:post": 1}
    finally:
        simulator.release_imports()


def test_connections_are_opened_before_they_are_needed(
    config_path: Path, log_in: None, simulator: SimulatorServer
) -> None:
    simulator.stats.reset()
    with TaskPool.from_config(config_path):
        simulator.wait_for(lambda _: simulator.stats.calls["users:self"] >= 1)


def test_large_data_goes_in_several_requests(
    pool: TaskPool, simulator: SimulatorServer, image: bytes
) -> None:
    templates = pool.process.templates
    template = templates["scenes"]
    small = replace(template, importing=replace(template.importing, single_request_limit=8_000))
    templates.replace({"scenes": small})
    simulator.stats.reset()
    sent: list[tuple[int, int]] = []
    request = pool.submit(
        "scenes",
        [(f"{number}.jpg", image) for number in range(4)],
        progress=lambda done, total: sent.append((done, total)),
    )
    assert request.jobs(timeout=20)[0].stop_frame == 3
    assert sent[-1] == (4 * len(image), 4 * len(image))
    assert simulator.stats.calls["data:post"] > 1


def test_jobs_are_complete_however_often_their_list_changes(
    pool: TaskPool, simulator: SimulatorServer, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first listings a job before the second page goes, so that the next one is skipped."""
    skipped = 0

    async def changing(call: Any, answer: Any) -> Any:
        nonlocal skipped
        reply = await answer()
        if call.operation == "jobs:list" and call.query.get("page") and skipped < 4:
            skipped += 1
            said = json.loads(reply.body)
            return JSONResponse(
                {**said, "count": said["count"] - 1, "results": said["results"][1:]}
            )
        return reply

    monkeypatch.setattr(listing, "_PAGE_SIZE", 2)
    monkeypatch.setattr(simulator.simulator, "passage", changing)
    names = ["a.jpg", "b.jpg", "c.jpg"]
    request = pool.submit(
        "scenes",
        [(name, image) for name in names],
        params={"job_file_mapping": [[name] for name in names]},
    )
    assert [job.start_frame for job in request.jobs(timeout=20)] == [0, 1, 2]
    assert skipped == 4


def test_a_file_that_vanishes_costs_no_task(
    pool: TaskPool, filled: None, image_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = pool.process.placement.open

    def vanish(*arguments: Any, **options: Any) -> Any:
        image_path.unlink()
        return opened(*arguments, **options)

    monkeypatch.setattr(pool.process.placement, "open", vanish)
    with pytest.raises(InputError, match=r"frame\.jpg"):
        pool.submit("scenes", [image_path])
    assert pool.status().templates[0].warm == 2


def test_what_a_closed_pool_left_is_taken_over(
    pool: TaskPool, config_path: Path, simulator: SimulatorServer, image: bytes
) -> None:
    simulator.hold_imports()
    try:
        request = pool.submit("scenes", [("a.jpg", image)])
        pool.close()
    finally:
        simulator.release_imports()
    with TaskPool.from_config(config_path) as other:
        other.start()
        assert other.process.recovery.adopt() == 1
        assert len(other.request(request.id).jobs(timeout=20)) == 1


def test_what_was_taken_over_while_the_store_failed_is_taken_up_later(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other process does that, since these are this one's from then on."""
    store, template = pool.store, pool.process.template("scenes")
    ids = [new_id() for _ in range(2)]
    for request_id in ids:
        lease = NewLease(
            id=new_id(),
            template=template.name,
            fingerprint=template.fingerprint,
            owner="gone",
            ttl=60.0,
        )
        request = NewRequest(id=request_id, files=("a.jpg",))
        store.open_lease(lease, request=request, claim=False, now=pool.clock.now())
    real = store.fail_request

    def fails_once(*arguments: Any, **options: Any) -> bool:
        monkeypatch.setattr(store, "fail_request", real)
        raise StoreError("the database is being restarted")

    monkeypatch.setattr(store, "fail_request", fails_once)
    pool.start()
    with pytest.raises(StoreError):
        pool.process.recovery.adopt()
    pool.process.recovery.run_once()
    assert [pool.request(each).record.error_code for each in ids] == [OwnerGone.code] * 2
