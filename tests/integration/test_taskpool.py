"""The library as its users use it, against the simulator."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse
from support.stepped import fill_for

from pool import (
    IdempotencyConflict,
    ImportFailed,
    InputError,
    LeaseEnded,
    LeaseInUse,
    Outcome,
    PoolClosed,
    RequestState,
    TaskPool,
    UnknownLease,
    UnknownRequest,
    UnknownTemplate,
    WaitTimeout,
)
from pool.bench.plain import plain_client
from pool.cvat import AccessTokenCredentials, listing
from pool.simulator import SimulatorServer


@pytest.fixture
def filled(pool: TaskPool) -> None:
    """A daemon has filled the pool, and is gone."""
    fill_for(pool)


def test_from_files_to_job_ids(pool: TaskPool, filled: None, image_path: Path) -> None:
    request = pool.submit("scenes", [image_path])
    assert request.task_id is not None
    assert request.outcome is Outcome.HIT
    (job,) = request.jobs(timeout=20)
    assert (job.start_frame, job.stop_frame) == (0, 0)
    assert job.url == f"{request.url}/jobs/{job.id}"
    assert request.state is RequestState.READY
    assert request.jobs() == [job], "asked again, the same answer"


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


def test_every_kind_of_input(pool: TaskPool, image: bytes, image_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("one.jpg", image)
        content.writestr("two.jpg", image)
    with image_path.open("rb") as stream:
        requests = [
            pool.submit("scenes", image_path),
            pool.submit("scenes", str(image_path)),
            pool.submit("scenes", [("a.jpg", image), ("cam1/b.jpg", image)]),
            pool.submit("scenes", [("c.jpg", image_path)]),
            pool.submit("scenes", stream),
            pool.submit("scenes", [("all.zip", archive.getvalue())]),
            pool.submit("scenes", share=["cam1/a.jpg", "cam1/b.jpg"]),
        ]
        frames = [request.jobs(timeout=20)[0].stop_frame + 1 for request in requests]
    assert frames == [1, 1, 2, 1, 1, 2, 2]


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


def test_the_name_and_the_assignee_are_set_once_the_ids_are_out(
    pool: TaskPool, simulator: SimulatorServer, image: bytes
) -> None:
    user = pool.process.cvat().whoami()
    request = pool.submit("scenes", [("a.jpg", image)], name="night ride", assignee=user.id)
    request.jobs(timeout=20)
    pool.close()  # waits for what is done afterwards
    with plain_client(pool.settings.cvat, AccessTokenCredentials(simulator.access_token)) as client:
        task = client.tasks.retrieve(request.task_id)
        assert task.name == "night ride"
        assert [job.assignee.id for job in task.get_jobs()] == [user.id]


def test_a_file_that_is_no_image_fails_with_the_servers_words(pool: TaskPool) -> None:
    request = pool.submit("scenes", [("a.jpg", b"this is no image")])
    with pytest.raises(ImportFailed, match="cannot identify image file"):
        request.jobs(timeout=20)
    assert request.state is RequestState.FAILED


def test_a_wait_that_times_out_leaves_the_import_running(
    pool: TaskPool, simulator: SimulatorServer, image: bytes
) -> None:
    simulator.hold_imports()
    try:
        request = pool.submit("scenes", [("a.jpg", image)])
        with pytest.raises(TimeoutError):
            request.jobs(timeout=0.05)
        assert request.state is RequestState.IMPORTING
    finally:
        simulator.release_imports()
    assert len(request.jobs(timeout=20)) == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "empty"),
        (["no-such-file.jpg"], "no-such-file.jpg: No such file"),
        (["."], "is a folder"),
        ([("a.jpg", b"x"), ("a.jpg", b"y")], "two files of one name"),
        ([("..", b"x")], "is no file name"),
        ([("a.jpg", b"")], "is empty"),
        (b"bytes", "need a name"),
        ([3], "cannot upload int"),
        (None, "give one of files, share, urls and cloud"),
        (io.StringIO("text"), "without a name"),
    ],
)
def test_bad_input_takes_no_task(pool: TaskPool, files: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        pool.submit("scenes", files)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert pool.status().templates[0].colds == 0


def test_an_unknown_template_names_the_known_ones(pool: TaskPool) -> None:
    with pytest.raises(UnknownTemplate, match="there is scenes"):
        pool.acquire("scences")


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


# --- Leases -------------------------------------------------------------------------------------


def test_acquire_and_upload(pool: TaskPool, filled: None, image: bytes) -> None:
    lease = pool.acquire("scenes", timeout=5.0)
    assert lease.outcome is Outcome.HIT
    assert lease.url.endswith(f"/tasks/{lease.task_id}")
    request = lease.upload([("a.jpg", image)])
    assert request.task_id == lease.task_id
    assert lease.jobs(timeout=20) == request.jobs(timeout=20)
    with pytest.raises(LeaseEnded):
        lease.upload([("b.jpg", image)])
    with pytest.raises(LeaseInUse):
        pool.release(lease)


def test_an_untouched_task_goes_back(pool: TaskPool, filled: None) -> None:
    lease = pool.acquire("scenes")
    assert pool.status().templates[0].warm == 1
    lease.release()
    assert pool.status().templates[0].warm == 2
    with pytest.raises(LeaseEnded, match="released"):
        lease.release()
    assert pool.acquire("scenes").id != lease.id


def test_a_task_that_its_caller_filled_is_not_taken_back(
    pool: TaskPool, simulator: SimulatorServer, image_path: Path
) -> None:
    lease = pool.acquire("scenes")
    with plain_client(pool.settings.cvat, AccessTokenCredentials(simulator.access_token)) as client:
        task = client.tasks.retrieve(lease.task_id)
        task.upload_data([image_path], params={"image_quality": 70}, status_check_period=0.01)
    with pytest.raises(LeaseInUse):
        pool.release(lease)
    (job,) = lease.jobs(timeout=20)
    assert job.id


def test_unknown_ids(pool: TaskPool) -> None:
    with pytest.raises(UnknownLease):
        pool.release("no-such-lease")
    with pytest.raises(UnknownRequest):
        pool.request("no-such-request")


# --- Idempotency --------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_request(
    pool: TaskPool, simulator: SimulatorServer, image: bytes
) -> None:
    first = pool.submit("scenes", [("a.jpg", image)], idempotency_key="k1")
    simulator.stats.reset()
    second = pool.submit("scenes", [("a.jpg", image)], idempotency_key="k1")
    assert second.id == first.id
    assert second.jobs(timeout=20) == first.jobs(timeout=20)
    assert simulator.stats.calls["data:post"] == 0
    with pytest.raises(IdempotencyConflict):
        pool.submit("scenes", [("a.jpg", image + b" ")], idempotency_key="k1")


def test_the_same_key_gives_the_same_lease(pool: TaskPool) -> None:
    assert pool.acquire("scenes", idempotency_key="k").id == (
        pool.acquire("scenes", idempotency_key="k").id
    )


# --- Several processes on one store -------------------------------------------------------------


def test_a_request_is_seen_from_another_process(
    pool: TaskPool, config_path: Path, simulator: SimulatorServer, image: bytes
) -> None:
    simulator.hold_imports()
    with TaskPool.from_config(config_path) as other:
        try:
            request = pool.submit("scenes", [("a.jpg", image)])
            seen = other.request(request.id)
            with pytest.raises(WaitTimeout):
                seen.jobs(timeout=0.05)
        finally:
            simulator.release_imports()
        assert seen.jobs(timeout=20) == request.jobs(timeout=20)


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


def test_a_closed_pool_says_so(pool: TaskPool) -> None:
    pool.close()
    pool.close()
    with pytest.raises(PoolClosed):
        pool.acquire("scenes")
