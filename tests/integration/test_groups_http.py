"""Groups through HTTP, on the simulator: each caller gets a job with its own pictures."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import urllib3
from PIL import Image
from support.api import Serving, serving, settings_for
from support.pictures import colour, colour_of, corrupt_picture, picture, seen
from support.waiting import PATIENCE, poll_until, wait_until

from pool.config.settings import ImportSettings, PoolSettings, Template
from pool.simulator import SimulatorServer, SimulatorSettings, Timings

GROUPED = Template(
    name="scenes",
    labels=({"name": "car"},),
    pool=PoolSettings(min_size=8, max_size=20),
    importing=ImportSettings(timeout=20.0, grouping="auto", concurrency=1),
)


@pytest.fixture
def grouping(server: SimulatorServer, store_url: str) -> Iterator[Serving]:
    """The API on a server that imports nothing before it is released."""
    settings = settings_for(server.url, store_url, GROUPED)
    with serving(settings, server.access_token) as served:
        served.fill()
        yield served


def submit(
    grouping: Serving, server: SimulatorServer, requests: Sequence[Sequence[tuple[str, bytes]]]
) -> list[dict[str, Any]]:
    """Give the pool requests, of which all but the first gather; return what became of them."""
    server.hold_imports()
    first, *others = requests
    ids: list[str] = [grouping.api.submit(first).json["id"]]
    with ThreadPoolExecutor(4) as threads:
        ids += threads.map(lambda files: grouping.api.submit(files).json["id"], others)
    store = grouping.process.store
    wait_until(store, lambda: store.in_flight() == 1)
    server.release_imports()
    wait_until(store, lambda: store.requests_at_end(ids) == set(ids), PATIENCE)
    return [ended(grouping, each) for each in ids]


def ended(grouping: Serving, request_id: str) -> dict[str, Any]:
    wait_until(
        grouping.process.store,
        lambda: grouping.pool.read_request(request_id).state.finished,
        PATIENCE,
    )
    document: dict[str, Any] = grouping.api.get(f"/v1/requests/{request_id}").json
    return document


def test_each_caller_gets_a_job_with_its_own_pictures(
    grouping: Serving, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    """Files of several requests have the same names, and some requests have several files."""
    requests = [
        [(f"{letter}.png", picture(3 * number + place)) for place, letter in enumerate(letters)]
        for number, letters in enumerate(["a", "a", "cab", "ba", "a", "d"])
    ]
    answers = submit(grouping, server, requests)
    assert {answer["state"] for answer in answers} == {"ready"}
    assert len({answer["task_id"] for answer in answers}) == 2, "the first, and all others"
    jobs = [job["id"] for answer in answers for job in answer["jobs"]]
    assert len(jobs) == len(set(jobs)) == len(requests)
    for files, answer in zip(requests, answers, strict=True):
        (job,) = answer["jobs"]
        in_order = sorted(files)
        expected = [colour_of(content) for _, content in in_order]
        assert seen(server, http, job) == expected
        by_number = {each["number"]: each["file"] for each in answer["frames"]}
        frames = range(job["start_frame"], job["stop_frame"] + 1)
        assert [by_number[number] for number in frames] == [name for name, _ in in_order]


def huge() -> bytes:
    """The head of a picture of 10^10 pixels."""
    return b"P6 100000 100000 255\n" + bytes(100)


DOUBTFUL = {
    "a truncated head": ("a.png", lambda: picture(1)[:20], "failed"),
    "a text": ("a.jpg", lambda: b"no image at all", "failed"),
    "a bomb": ("a.ppm", huge, "failed"),
    "another kind": ("a.png", lambda: picture(1, format="ICO"), "ready"),
}
SOUND = {
    "a JPEG called PNG": ("a.png", lambda: picture(1, format="JPEG")),
    "an animation": ("a.gif", lambda: animation("GIF")),
    "a TIFF of two pages": ("a.tif", lambda: animation("TIFF")),
}


def animation(format: str) -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (16, 16), colour(number)) for number in (1, 2)]
    frames[0].save(stream, format, save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(("file", "content", "state"), DOUBTFUL.values(), ids=DOUBTFUL)
@pytest.mark.parametrize("door", ["HTTP", "TaskPool"])
def test_what_cvat_may_not_be_able_to_read_goes_alone(
    grouping: Serving,
    server: SimulatorServer,
    file: str,
    content: Callable[[], bytes],
    state: str,
    door: str,
) -> None:
    server.hold_imports()
    submitted = [grouping.api.submit([("a.png", picture(0))]).json["id"] for _ in range(2)]
    if door == "HTTP":
        doubtful = grouping.api.submit([(file, content())]).json["id"]
    else:
        doubtful = grouping.pool.submit("scenes", [(file, content())]).id
    submitted.append(grouping.api.submit([("a.png", picture(0))]).json["id"])
    server.release_imports()
    answer = ended(grouping, doubtful)
    assert answer["state"] == state
    others = [ended(grouping, each) for each in submitted]
    assert {each["state"] for each in others} == {"ready"}
    assert answer["task_id"] not in {each["task_id"] for each in others}
    assert others[1]["task_id"] == others[2]["task_id"], "the first went at once"


@pytest.mark.parametrize(("file", "content"), SOUND.values(), ids=SOUND)
def test_what_cvat_makes_one_frame_of_goes_together(
    grouping: Serving, server: SimulatorServer, file: str, content: Callable[[], bytes]
) -> None:
    answers = submit(
        grouping, server, [[("a.png", picture(0))], [(file, content())], [("b.png", picture(0))]]
    )
    assert {answer["state"] for answer in answers} == {"ready"}
    assert answers[1]["task_id"] == answers[2]["task_id"]
    (job,) = answers[1]["jobs"]
    assert job["start_frame"] == job["stop_frame"]


def test_one_corrupt_image_among_200_fails_alone(
    grouping: Serving, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    """Its head is in order, and its pixels are not: only CVAT finds that out."""
    bad = 100
    requests = [[("a.png", picture(number))] for number in range(200)]
    requests[bad] = [("bad.png", corrupt_picture(bad))]
    uploads = server.stats.calls["data:post"]
    answers = submit(grouping, server, requests)
    states = [answer["state"] for answer in answers]
    assert states == ["failed" if number == bad else "ready" for number in range(200)]
    assert "image file is truncated" in answers[bad]["error"]["detail"], "in CVAT's words"
    # The first alone, and all others together.
    extra = server.stats.calls["data:post"] - uploads - 2
    assert extra <= 3
    events = grouping.process.store.events_after(0, limit=1000, kinds=["request.ready"])
    assert len(events) == len({event.request_id for event in events}) == 199
    jobs = [job["id"] for answer in answers for job in answer["jobs"] or ()]
    assert len(jobs) == len(set(jobs)) == 199
    for number in (0, 1, bad - 1, bad + 1, 199):
        (job,) = answers[number]["jobs"]
        assert seen(server, http, job) == [colour(number)]


def test_callers_hide_their_frames_at_the_same_time(
    grouping: Serving, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    """CVAT keeps one list for the task, and rewrites it without a lock."""
    answers = submit(grouping, server, [[("a.png", picture(number))] for number in range(9)])
    unwanted = [answer["id"] for answer in answers[1:] if answer["jobs"][0]["id"] % 2]
    with ThreadPoolExecutor(len(unwanted)) as threads:
        erased = threads.map(
            lambda each: grouping.api.delete(f"/v1/requests/{each}?hide=true"), unwanted
        )
        assert {answer.status for answer in erased} == {202}
    pool = grouping.pool
    wait_until(
        pool.store, lambda: all(pool.read_request(each).hidden == "done" for each in unwanted)
    )
    task_id = answers[1]["task_id"]
    meta = http.request("GET", f"{server.url}/api/tasks/{task_id}/data/meta").json()
    expected = [
        job["start_frame"]
        for answer in answers
        for job in answer["jobs"]
        if answer["id"] in unwanted
    ]
    assert len(expected) == 4 and meta["deleted_frames"] == sorted(expected)


def test_callers_at_the_same_time_share_few_imports(
    grouping: Serving, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    def call(number: int) -> dict[str, Any]:
        answer = grouping.api.submit([("a.png", picture(number))], wait=20)
        assert answer.status == 201, answer
        document: dict[str, Any] = answer.json
        return document

    server.hold_imports()
    store = grouping.process.store
    with ThreadPoolExecutor(32) as threads:
        calls = [threads.submit(call, number) for number in range(32)]
        wait_until(store, lambda: store.queue_length() == 31)
        server.release_imports()
        answers = [each.result(PATIENCE) for each in calls]
    jobs = [job["id"] for answer in answers for job in answer["jobs"]]
    assert len(jobs) == len(set(jobs)) == 32
    assert len({answer["task_id"] for answer in answers}) == 2, "the first, and all others"
    for number, answer in enumerate(answers):
        (job,) = answer["jobs"]
        assert seen(server, http, job) == [colour(number)]


def test_an_upload_begins_before_a_place_is_free(
    grouping: Serving, server: SimulatorServer
) -> None:
    """What is known of the first import says when the second one ends, which it does not."""
    ended(grouping, grouping.api.submit([("0.png", picture(0))]).json["id"])
    prepared = server.stats.calls["data:post"]
    server.hold_imports()
    first, *others = (
        grouping.api.submit([(f"{number}.png", picture(number))]).json["id"]
        for number in range(1, 6)
    )
    poll_until(lambda: server.stats.calls["data:post"] == prepared + 2)
    assert not grouping.pool.read_request(first).state.finished
    server.release_imports()
    answers = [ended(grouping, each) for each in (first, *others)]
    assert {answer["state"] for answer in answers} == {"ready"}
    assert len({answer["task_id"] for answer in answers}) < len(answers)


@pytest.mark.parametrize(("workers", "expected"), [(1, {1, 2}), (4, {3, 4, 5, 6})])
def test_as_many_imports_at_a_time_as_the_server_has_workers(
    store_url: str, workers: int, expected: set[int]
) -> None:
    """Found out by the server's own dates, and the same for all processes on the store. Where the
    machine is too busy to fill the places, that takes more imports."""
    timings = replace(Timings.zero(), import_base=160.0)
    importing = replace(GROUPED.importing, concurrency="auto", group_requests=1)
    pool = PoolSettings(min_size=120, max_size=120, create_concurrency=32)
    template = replace(GROUPED, importing=importing, pool=pool)
    simulated = SimulatorSettings(timings=timings, cores=16, import_workers=workers, seed=1)
    with SimulatorServer(simulated) as server:
        settings = settings_for(server.url, store_url, template)
        with serving(settings, server.access_token) as served:
            found: list[int | None] = []
            while not found or (found[-1] not in expected and len(found) < 5):
                served.fill()
                ids = [
                    served.api.submit([(f"{number}.png", picture(number))]).json["id"]
                    for number in range(30 * workers)
                ]
                assert {ended(served, each)["state"] for each in ids} == {"ready"}
                found.append(served.process.store.import_concurrency())
            assert found[-1] in expected, found
