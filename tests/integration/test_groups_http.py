"""Groups through HTTP, on the simulator: each caller gets a job with its own pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3
from PIL import Image
from support.api import Serving, serving, settings_for
from support.waiting import PATIENCE, wait_until

from pool.config.settings import ImportSettings, PoolSettings, Template
from pool.simulator import SimulatorServer

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


def picture(number: int) -> bytes:
    """A picture of one colour, which says whose it is."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour(number)).save(stream, "PNG")
    return stream.getvalue()


def colour(number: int) -> tuple[int, int, int]:
    return (5 * number + 5, 255 - 5 * number, 7 * number % 256)


def seen(server: SimulatorServer, http: urllib3.PoolManager, job: Any) -> list[tuple[int, ...]]:
    """The colours of a job's frames."""
    colours = []
    for number in range(job["start_frame"], job["stop_frame"] + 1):
        answer = http.request(
            "GET",
            f"{server.url}/api/jobs/{job['id']}/data",
            fields={"type": "frame", "quality": "original", "number": str(number)},
        )
        assert answer.status == 200, answer.data
        with Image.open(io.BytesIO(answer.data)) as image:
            pixel = image.convert("RGB").getpixel((8, 8))
        assert isinstance(pixel, tuple)
        colours.append(pixel)
    return colours


def submit(
    grouping: Serving, server: SimulatorServer, requests: Sequence[Sequence[tuple[str, bytes]]]
) -> list[dict[str, Any]]:
    """Give the pool requests, of which all but the first gather; return what became of them."""
    server.hold_imports()
    ids = [grouping.api.submit(files).json["id"] for files in requests]
    store = grouping.process.store
    wait_until(store, lambda: store.in_flight() == 1)
    server.release_imports()
    with ThreadPoolExecutor(len(ids)) as threads:
        return list(threads.map(lambda each: ended(grouping, each), ids))


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
        expected = [Image.open(io.BytesIO(content)).getpixel((8, 8)) for _, content in in_order]
        assert seen(server, http, job) == expected
        by_number = {each["number"]: each["file"] for each in answer["frames"]}
        frames = range(job["start_frame"], job["stop_frame"] + 1)
        assert [by_number[number] for number in frames] == [name for name, _ in in_order]


def test_one_corrupt_image_fails_alone(
    grouping: Serving, server: SimulatorServer, http: urllib3.PoolManager
) -> None:
    requests = [[(f"{number}.png", picture(number))] for number in range(12)]
    requests[5] = [("5.png", picture(5)[:40])]
    prepared = server.stats.calls["data:post"]
    answers = submit(grouping, server, requests)
    states = [answer["state"] for answer in answers]
    assert states == ["failed" if number == 5 else "ready" for number in range(12)]
    assert "5.png" in answers[5]["error"]["detail"]
    assert server.stats.calls["data:post"] - prepared == 4, "two, and one for each part"
    jobs = [job["id"] for answer in answers for job in answer["jobs"] or ()]
    assert len(jobs) == len(set(jobs)) == 11
    for number, answer in enumerate(answers):
        for job in answer["jobs"] or ():
            assert seen(server, http, job) == [colour(number)]


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
