"""Uploads, imports and jobs, against the simulator and a real CVAT alike."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from contract.uploads import LIMIT, UNKNOWN_ID, data_meta, frames, image, images, original, send
from pool import errors
from pool.config.data_params import DataParams
from pool.config.source import (
    LocalFile,
    Upload,
    build_upload,
    combined,
    frame_numbers,
    group_names,
)
from pool.cvat import CvatClient, ImportState, ImportStatus, listing
from pool.errors import CvatNotFound, CvatRejected
from pool.model import Job

if TYPE_CHECKING:
    from contract.conftest import Maker

Connect = Callable[..., CvatClient]
WaitForJobs = Callable[[int], tuple[Job, ...]]
WaitForFailure = Callable[[int], ImportState]


def png(width: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, 8)).save(content, "PNG")
    return content.getvalue()


def test_one_request_brings_a_job(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    task_id = make_task()
    assert send(client, task_id, images("a.jpg", "b.jpg")) == (
        f"action=create&target=task&target_id={task_id}"
    )
    (job,) = wait_for_jobs(task_id)
    assert (job.start_frame, job.stop_frame, job.assignee) == (0, 1, None)
    assert job.url == f"{client.server_url}/tasks/{task_id}/jobs/{job.id}"
    task = client.tasks([task_id])[task_id]
    assert (task.size, task.has_data, task.jobs, task.empty) == (2, True, 1, False)
    user = client.whoami()
    assert client.find_user(user.id) == client.find_user(user.username) == user
    before = client.count_open_jobs(user.username)
    assert client.assign_job(job.id, user.id) == user.username
    assert client.jobs([task_id])[task_id][0].assignee == user.username
    assert client.count_open_jobs(user.username) == before + 1


def test_the_import_is_finished_and_then_gone_with_its_task(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    task_id = make_task()
    send(client, task_id, images("a.jpg"))
    assert client.import_state(task_id).status in (
        ImportStatus.QUEUED,
        ImportStatus.STARTED,
        ImportStatus.FINISHED,
    )
    wait_for_jobs(task_id)
    while (state := client.import_state(task_id)).status is ImportStatus.STARTED:
        pass
    assert state.status is ImportStatus.FINISHED
    client.delete_task(task_id)
    assert client.import_state(task_id).status is ImportStatus.TASK_GONE


def test_a_prepared_task_takes_one_request(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    task_id = make_task()
    client.prepare_upload(task_id)
    send(client, task_id, images("a.jpg"), prepared=True)
    assert len(wait_for_jobs(task_id)) == 1


def test_one_job_for_each_entry_of_the_mapping_in_its_order(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    task_id = make_task()
    mapping = [["c.jpg"], ["a.jpg", "b.jpg"]]
    send(client, task_id, images("a.jpg", "b.jpg", "c.jpg", job_file_mapping=mapping))
    jobs = wait_for_jobs(task_id)
    assert [(job.start_frame, job.stop_frame) for job in jobs] == [(0, 0), (1, 2)]
    assert frames(client, task_id) == ["c.jpg", "a.jpg", "b.jpg"]


@pytest.mark.parametrize("limit", [LIMIT, 1], ids=["one POST", "many"])
def test_several_requests_in_one_task(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs, limit: int
) -> None:
    """Each has a job of its own, with its pictures under the names that the pool foretold."""
    given = [
        ["cam2/a.png", "cam1/a.png"],
        ["a.png"],
        [" c.png", 'say "hé".png', "a&b.png"],
        ["画像;1.png", "a.png"],
    ]
    pictures = iter(range(10, 20))
    widths = {(place, name): next(pictures) for place, names in enumerate(given) for name in names}
    requests = [
        build_upload([(name, png(widths[place, name])) for name in names])
        for place, names in enumerate(given)
    ]
    task_id = make_task()
    send(client, task_id, combined(requests), single_request_limit=limit)
    jobs = wait_for_jobs(task_id)
    assert [(job.start_frame, job.stop_frame) for job in jobs] == [(0, 1), (2, 2), (3, 5), (6, 7)]
    there = data_meta(client, task_id)["frames"]
    for place, (request, names, job) in enumerate(
        zip(requests, group_names(given), jobs, strict=True)
    ):
        numbers = frame_numbers(request, DataParams())
        assert numbers is not None
        for file, name, number in zip(request.given, names, numbers, strict=True):
            frame = there[job.start_frame + (number or 0)]
            assert (frame["name"], frame["width"]) == (name, widths[place, file])


def test_frames_of_one_job_are_hidden(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    """As recorded (slots): of its own frames only, and the task's list follows."""
    task_id = make_task()
    mapping = [["a.jpg", "b.jpg"], ["c.jpg", "d.jpg"]]
    send(client, task_id, images("a.jpg", "b.jpg", "c.jpg", "d.jpg", job_file_mapping=mapping))
    first, second = wait_for_jobs(task_id)
    assert client.hidden_frames(task_id) == set()
    client.hide_frames(second.id, [2, 3])
    client.hide_frames(first.id, [1])
    assert client.hidden_frames(task_id) == {1, 2, 3}
    client.hide_frames(second.id, [3])
    assert client.hidden_frames(task_id) == {1, 3}
    with pytest.raises(CvatRejected, match="Frames 0 do not belong to the job"):
        client.hide_frames(second.id, [0])
    assert client.hidden_frames(task_id) == {1, 3}
    with pytest.raises(CvatNotFound):
        client.hide_frames(UNKNOWN_ID, [0])


def test_segments(client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs) -> None:
    task_id = make_task("segments", labels=[], segment_size=2, overlap=0)
    send(client, task_id, images(*(f"{number}.jpg" for number in range(5))))
    jobs = wait_for_jobs(task_id)
    assert [(job.start_frame, job.stop_frame) for job in jobs] == [(0, 1), (2, 3), (4, 4)]
    assert [job.id for job in jobs] == sorted(job.id for job in jobs)


def test_folders_in_names_are_left_out_by_the_server(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    task_id = make_task()
    mapping = [["cam1/b.jpg"], ["cam2/a.jpg"]]
    send(client, task_id, images("cam1/b.jpg", "cam2/a.jpg", job_file_mapping=mapping))
    assert len(wait_for_jobs(task_id)) == 2
    assert frames(client, task_id) == ["b.jpg", "a.jpg"]


def test_names_that_need_care(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    task_id = make_task()
    names = ["a b.jpg", 'say "hé".jpg', "画像;1.jpg", "100%20.jpg", "a&b.jpg"]
    params = DataParams(sorting_method="predefined")
    send(client, task_id, images(*names), params=params)
    wait_for_jobs(task_id)
    assert frames(client, task_id) == names


@pytest.mark.parametrize(("prepared", "at_once"), [(False, 1), (True, 1), (False, 4), (True, 4)])
def test_large_uploads_keep_their_order(
    client: CvatClient,
    make_task: Maker,
    wait_for_jobs: WaitForJobs,
    tmp_path: Path,
    prepared: bool,
    at_once: int,
) -> None:
    task_id = make_task()
    if prepared:
        client.prepare_upload(task_id)
    large, small = io.BytesIO(), image()
    Image.effect_noise((640, 480), 90).convert("RGB").save(large, "JPEG", quality=95)
    size = large.seek(0, io.SEEK_END)
    large.seek(0)
    path = tmp_path / "y.jpg"
    path.write_bytes(small)
    files = (
        LocalFile("z.jpg", large, size),
        LocalFile("y.jpg", path, len(small)),
        LocalFile("x.jpg", small, len(small)),
        LocalFile("w.jpg", small, len(small)),
    )
    limit = 2 * len(small) + 1000
    assert limit < size
    steps: list[tuple[int, int]] = []
    rq_id = send(
        client,
        task_id,
        Upload(files=files),
        single_request_limit=limit,
        prepared=prepared,
        at_once=at_once,
        params=DataParams(sorting_method="predefined", image_quality=80),
        progress=lambda *step: steps.append(step),
    )
    assert rq_id == f"action=create&target=task&target_id={task_id}"
    (job,) = wait_for_jobs(task_id)
    assert job.stop_frame == 3
    assert frames(client, task_id) == ["z.jpg", "y.jpg", "x.jpg", "w.jpg"]
    assert steps[-1] == (size + 3 * len(small),) * 2


def test_many_requests_at_the_same_time(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    task_id = make_task()
    contents = [image(number) for number in range(24)]
    names = [f"{number:02}.jpg" for number in range(24)]
    files = tuple(
        LocalFile(name, content, len(content))
        for name, content in zip(names, contents, strict=True)
    )
    # Half of them fit into a group of their own each, half of them into none.
    limit = sorted(map(len, contents))[12]
    steps: list[tuple[int, int]] = []
    send(
        client,
        task_id,
        Upload(files=files),
        single_request_limit=limit,
        at_once=8,
        progress=lambda *step: steps.append(step),
    )
    assert wait_for_jobs(task_id)[0].stop_frame == 23
    assert frames(client, task_id) == names
    for number in (0, 11, 23):
        assert original(client, task_id, number) == contents[number]
    assert steps == sorted(steps)


def test_a_chunk_size_that_was_chosen_for_the_images(
    client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs
) -> None:
    content = io.BytesIO()
    Image.new("L", (1920, 1080)).save(content, "JPEG")
    files = tuple(
        LocalFile(f"{number}.jpg", content.getvalue(), content.tell()) for number in range(5)
    )
    chunk_sizes = {}
    for setting in ("auto", "server"):
        task_id = make_task()
        send(client, task_id, Upload(files=files), params=DataParams(chunk_size=setting))
        wait_for_jobs(task_id)
        chunk_sizes[setting] = data_meta(client, task_id)["chunk_size"]
    assert chunk_sizes == {"auto": 4, "server": 36}


def test_data_comes_once(client: CvatClient, make_task: Maker, wait_for_jobs: WaitForJobs) -> None:
    task_id = make_task()
    send(client, task_id, images("a.jpg"))
    wait_for_jobs(task_id)
    with pytest.raises(errors.CvatRejected, match="Adding more data is not supported"):
        send(client, task_id, images("b.jpg"))


def test_an_import_that_fails_says_why(
    client: CvatClient, make_task: Maker, wait_for_failure: WaitForFailure
) -> None:
    task_id = make_task()
    send(client, task_id, Upload(files=(LocalFile("a.jpg", b"no image", 8),)))
    assert "cannot identify image file" in wait_for_failure(task_id).message
    assert client.jobs([task_id]) == {}


def test_a_cloud_storage_that_is_not_there(client: CvatClient, make_task: Maker) -> None:
    words = "CloudStorage matching query does not exist"
    with pytest.raises(errors.CvatRejected, match=words):
        send(client, make_task(), Upload(cloud=(UNKNOWN_ID, ("a.jpg",))))


def test_a_url_of_another_scheme(
    client: CvatClient, make_task: Maker, wait_for_failure: WaitForFailure
) -> None:
    task_id, data = make_task(), Upload(urls=("ftp://example.org/a.jpg",))
    if knows_bad_urls(client):
        with pytest.raises(errors.CvatRejected, match="must be http"):
            send(client, task_id, data)
    else:
        send(client, task_id, data)
        assert wait_for_failure(task_id).message


def test_a_url_that_leads_nowhere(
    client: CvatClient, make_task: Maker, wait_for_failure: WaitForFailure
) -> None:
    task_id = make_task()
    send(client, task_id, Upload(urls=("http://127.0.0.1:9/a.jpg",)))
    message = wait_for_failure(task_id).message
    assert "Failed to download" in message if knows_bad_urls(client) else message


def knows_bad_urls(client: CvatClient) -> bool:
    """Whether the server has words of its own for them; before, they are an exception's."""
    return (client.about().release or (0, 0)) >= (2, 65)


def test_a_file_that_is_not_on_the_share(
    client: CvatClient, make_task: Maker, wait_for_failure: WaitForFailure
) -> None:
    task_id = make_task()
    data = Upload(share=("no-such-file.jpg",))
    send(client, task_id, data, params=DataParams(copy_data=False))
    assert "No such file or directory" in wait_for_failure(task_id).message


def test_jobs_of_many_tasks_at_once(
    client: CvatClient,
    make_task: Maker,
    wait_for_jobs: WaitForJobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = [make_task(str(number)) for number in range(3)]
    for task_id in made[:2]:
        send(client, task_id, images("a.jpg", "b.jpg", job_file_mapping=[["a.jpg"], ["b.jpg"]]))
    expected = {task_id: wait_for_jobs(task_id) for task_id in made[:2]}
    monkeypatch.setattr(listing, "_PAGE_SIZE", 3)
    asked = [*range(UNKNOWN_ID, UNKNOWN_ID + 700), *made, *made]
    assert client.jobs(asked) == expected
    assert client.jobs([]) == {}


def test_500_ids_of_any_length_fit_into_one_call(client: CvatClient) -> None:
    ids = list(range(2**31 - 501, 2**31 - 1))
    assert client.jobs(ids) == {}
    assert client.tasks(ids) == {}
