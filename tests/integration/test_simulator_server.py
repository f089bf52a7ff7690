"""What the simulator does between the recordings: queues, locks, filters, times."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import urllib3
from faults.stepped_clock import SteppedClock
from faults.stepped_server import SteppedLoop
from PIL import Image
from support.simulated import Caller, jpeg

from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.timing import Processor, slowdown

RECORDED = Path(__file__).parents[1] / "contract" / "recordings" / "inputs" / "media"
#: Four frames of 64 by 48 pixels.
VIDEO = (RECORDED / "4bf2549e-plain.mp4").read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorServer]:
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        yield server


@pytest.fixture
def call(server: SimulatorServer) -> Iterator[Caller]:
    caller = Caller(server)
    yield caller
    server.release_imports()
    server.wait_idle()
    caller.http.clear()


def test_data_sent_while_queued(call: Caller) -> None:
    call.server.hold_imports()
    task_id = call.create()
    assert call.upload(task_id, "a.jpg").status == 202
    # The same name violates a unique index; another one joins the data, but not the queue.
    assert call.upload(task_id, "a.jpg").status == 500
    assert call.upload(task_id, "b.jpg").status == 409
    call.server.release_imports()
    call.server.wait_idle()
    assert call("GET", f"/api/tasks/{task_id}").json()["size"] == 2


def test_data_sent_during_an_import_waits_for_it(call: Caller) -> None:
    call.server.hold_imports("started")
    task_id = call.create()
    call.upload(task_id, "a.jpg")
    call.server.wait_for(lambda state: state.tasks[task_id].lock.locked())
    answers: list[int] = []
    arrived = threading.Event()

    async def announce(passing: Any, answer: Any) -> Any:
        arrived.set()
        return await answer()

    usual = call.server.simulator.passage
    call.server.simulator.passage = announce
    late = threading.Thread(target=lambda: answers.append(call.upload(task_id, "b.jpg").status))
    late.start()
    assert arrived.wait(10)
    call.server.simulator.passage = usual
    # A full round trip later it still has no answer.
    assert call("GET", f"/api/tasks/{task_id}").json()["size"] == 0
    assert answers == []
    call.server.release_imports()
    late.join(10)
    assert answers == [400]
    assert call("GET", f"/api/tasks/{task_id}").json()["size"] == 1


def test_odd_file_fails_its_import_only(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    bomb = call.create()
    call.upload(bomb, "a.jpg")
    call.server.wait_idle()
    assert "DecompressionBomb" in call.request_of(bomb).json()["message"]
    monkeypatch.undo()
    good = call.create()
    call.upload(good, "a.jpg")
    call.server.wait_idle()
    assert call.request_of(good).json()["status"] == "finished"


def test_truncated_image_has_a_preview(call: Caller) -> None:
    whole = jpeg((400, 300))
    task_id = call.create()
    call.upload(task_id, "a.jpg", content=whole[: len(whole) * 2 // 3])
    call.server.wait_idle()
    answer = call("GET", f"/api/tasks/{task_id}/preview")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")


def test_queued_import_can_be_cancelled(call: Caller) -> None:
    call.server.hold_imports()
    task_id = call.create()
    call.upload(task_id, "a.jpg")
    path = f"/api/requests/action=create&target=task&target_id={task_id}"
    assert call("POST", f"{path}/cancel").status == 200
    assert call("GET", path).status == 404
    call.server.release_imports()
    call.server.wait_idle()
    assert call.listed("jobs", task_id=task_id) == []


def test_task_deleted_before_its_import(call: Caller) -> None:
    call.server.hold_imports()
    task_id = call.create()
    call.upload(task_id, "a.jpg")
    assert call("DELETE", f"/api/tasks/{task_id}").status == 204
    call.server.release_imports()
    call.server.wait_idle()
    assert call.request_of(task_id).status == 400


def test_finished_requests_are_forgotten() -> None:
    settings = SimulatorSettings(timings=Timings.zero(), request_result_ttl=0.0)
    with SimulatorServer(settings) as server:
        call = Caller(server)
        good, bad = call.create(), call.create()
        call.upload(good, "a.jpg")
        call.upload(bad, "a.jpg", content=b"no image")
        server.wait_idle()
        assert call.request_of(good).status == 404
        assert call.request_of(bad).json()["status"] == "failed"
        assert call("GET", f"/api/tasks/{good}/status").json()["state"] == "Finished"
        call.http.clear()


def test_filters(call: Caller) -> None:
    ids = [call.create(f"filter {number}", bug_tracker="http://x/1") for number in range(4)]
    rules: list[tuple[Any, list[int]]] = [
        ({"==": [{"var": "id"}, ids[0]]}, ids[:1]),
        ({"in": [{"var": "id"}, ids]}, ids),
        ({"in": ["ilter 2", {"var": "name"}]}, ids[2:3]),
        ({"and": [{">": [{"var": "id"}, ids[0]]}, {"<=": [{"var": "id"}, ids[2]]}]}, ids[1:3]),
        ({"<=": [ids[1], {"var": "id"}, ids[2]]}, ids[1:3]),
        ({"or": [{"==": [{"var": "id"}, ids[i]]} for i in (0, 3)]}, [ids[0], ids[3]]),
        (
            {"and": [{"in": [{"var": "id"}, ids]}, {"!": {"==": [{"var": "id"}, ids[1]]}}]},
            [ids[0], ids[2], ids[3]],
        ),
    ]
    for rule, expected in rules:
        assert call.listed("tasks", rule) == expected
    assert call.listed("tasks", search="ilter 3") == ids[3:]
    assert call.listed("tasks", name="filter 1", owner="bot") == ids[1:2]
    assert call.listed("tasks", tracker_link="http://x/1") == ids
    assert call("GET", "/api/tasks", {"project_id": "x"}).json() == {
        "project_id": ["Enter a number."]
    }
    for wrong, words in (
        ([], "filter shouldn't be empty"),
        ([1], "filter: expected a non-empty dict value, got '[1]' of type 'list'"),
        ({"and": []}, "operation 'and' requires a non-empty list argument"),
        ({"+": [1, 2]}, "operation '+' with arguments '[1, 2]' is not supported"),
    ):
        answer = call("GET", "/api/tasks", {"filter": json.dumps(wrong)})
        assert answer.status == 400
        assert words in answer.json()[0]


def test_many_ids_in_one_filter(call: Caller) -> None:
    for count, status in ((500, 200), (1000, 414)):
        ids = list(range(900_000, 900_000 + count))
        rules = json.dumps({"in": [{"var": "task_id"}, ids]}, separators=(",", ":"))
        assert call("GET", "/api/jobs", {"filter": rules}).status == status


def test_moving_a_task_drops_the_other_fields(call: Caller) -> None:
    project = call("POST", "/api/projects", json={"name": "p"}).json()["id"]
    task_id = call.create("before")
    body = {"project_id": project, "name": "after"}
    moved = call("PATCH", f"/api/tasks/{task_id}", json=body).json()
    assert (moved["project_id"], moved["name"]) == (project, "before")


def test_a_refused_assignee_leaves_the_rest(call: Caller) -> None:
    task_id = call.create("before")
    body = {"name": "after", "assignee_id": 99_999}
    assert call("PATCH", f"/api/tasks/{task_id}", json=body).status == 500
    assert call("GET", f"/api/tasks/{task_id}").json()["name"] == "before"


def test_sessions_are_for_their_own_origin(call: Caller) -> None:
    server = call.server
    known = {"username": server.username, "password": server.password}
    answer = urllib3.request("POST", f"{server.url}/api/auth/login", json=known)
    cookies = [cookie.partition(";")[0] for cookie in answer.headers.getlist("set-cookie")]
    csrf = next(each.partition("=")[2] for each in cookies if each.startswith("csrftoken="))
    for origin, status in ((server.url, 201), ("https://cvat.test", 403)):
        headers = {"Cookie": "; ".join(cookies), "X-CSRFToken": csrf, "Origin": origin}
        body = {"name": "a", "labels": []}
        created = call("POST", "/api/tasks", headers=headers, json=body)
        assert created.status == status, created.data


def test_frames_can_be_chosen(call: Caller) -> None:
    task_id = call.create(segment_size=2, overlap=1)
    fields: dict[str, Any] = {
        "image_quality": "70", "start_frame": "1", "stop_frame": "8", "frame_filter": "step=2",
        "sorting_method": "random",
    }  # fmt: skip
    for number in range(10):
        fields[f"client_files[{number}]"] = (f"{number}.jpg", jpeg())
    assert call("POST", f"/api/tasks/{task_id}/data", fields=fields).status == 202
    call.server.wait_idle()
    meta = call("GET", f"/api/tasks/{task_id}/data/meta").json()
    assert (meta["size"], meta["start_frame"], meta["stop_frame"]) == (4, 1, 7)
    jobs = call("GET", "/api/jobs", {"task_id": task_id, "sort": "id"}).json()["results"]
    assert [(job["start_frame"], job["stop_frame"]) for job in jobs] == [(0, 1), (1, 2), (2, 3)]


def test_consensus_replicas(call: Caller) -> None:
    task_id = call.create(consensus_replicas=2)
    call.upload(task_id, "a.jpg")
    call.server.wait_idle()
    jobs = call("GET", "/api/jobs", {"task_id": task_id, "sort": "id"}).json()["results"]
    assert [job["type"] for job in jobs] == ["annotation"] + ["consensus_replica"] * 2
    assert {job["parent_job_id"] for job in jobs[1:]} == {jobs[0]["id"]}


def test_videos_are_read_where_pyav_is(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id, damaged, without = call.create(segment_size=2), call.create(), call.create()
    call.upload(task_id, "film.mp4", content=VIDEO)
    call.upload(damaged, "film.mp4", content=VIDEO[:60])
    call.server.wait_idle()
    task = call("GET", f"/api/tasks/{task_id}").json()
    assert (task["size"], task["mode"], task["overlap"]) == (4, "interpolation", 1)
    assert task["jobs"]["count"] == 3
    for kind, number in (("chunk", 0), ("frame", 3)):
        answer = call("GET", f"/api/tasks/{task_id}/data", {"type": kind, "number": number})
        assert answer.status == 200
    # As if it were not installed: no worse than a damaged file.
    monkeypatch.setitem(sys.modules, "av", None)
    call.upload(without, "film.mp4", content=VIDEO)
    call.server.wait_idle()
    for failed in (damaged, without):
        assert "Invalid data found" in call.request_of(failed).json()["message"]


def test_own_door_tells_the_servers_times(call: Caller) -> None:
    assert call("POST", "/simulator/reset-stats").status == 204
    task_id = call.create()
    call.server.hold_imports()
    call.upload(task_id, "a.jpg")
    sent = time.perf_counter()
    waiting = call("GET", "/simulator/stats").json()["tasks"][str(task_id)]
    assert (waiting["committed_at"], waiting["received_to_committed_ms"]) == (None, None)
    held = 1000.0 * (time.perf_counter() - sent)
    call.server.release_imports()
    call.server.wait_idle()
    stats = call("GET", "/simulator/stats").json()
    assert stats["calls"] == {"tasks:create": 1, "data:post": 1}
    times = stats["tasks"][str(task_id)]
    assert times["received_at"] <= times["accepted_at"] <= times["finished_at"]
    committed = (times["committed_at"] - times["received_at"]) * 1000.0
    assert times["received_to_committed_ms"] == pytest.approx(committed, abs=0.1)
    assert times["received_to_committed_ms"] >= times["accepted_to_committed_ms"] > held
    assert call.server.stats.import_milliseconds().keys() == {task_id}


def test_what_is_not_there(call: Caller) -> None:
    assert call("GET", "/api/nothing").status == 404
    answer = call("PUT", "/api/tasks")
    assert (answer.status, answer.json()) == (405, {"detail": 'Method "PUT" not allowed.'})
    assert call("HEAD", "/api/server/about").data == b""
    assert call("OPTIONS", "/api/tasks").headers["allow"] == "GET, POST, HEAD, OPTIONS"


def test_anonymous_calls_can_be_limited() -> None:
    settings = SimulatorSettings(timings=Timings.zero(), anonymous_calls_per_minute=2)
    with SimulatorServer(settings) as server:
        call = Caller(server)
        call.http.headers = {}
        statuses = [call("GET", "/api/server/about").status for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert int(call("GET", "/api/server/about").headers["retry-after"]) > 0
        call.http.clear()


@pytest.mark.parametrize(("demands", "cores"), [(1, 2), (4, 2), (8, 2)])
def test_processor_is_shared(demands: int, cores: int) -> None:
    clock = SteppedClock()
    processor, ended = Processor(cores), []

    async def use() -> None:
        await processor.use(20.0)
        ended.append(clock.monotonic() * 1000.0)

    with closing(SteppedLoop(clock)) as loop:
        clock.alarms.append(loop)
        for _ in range(demands):
            loop.create_task(use())
        clock.sleep(1.0)
    assert ended == [pytest.approx(20.0 * slowdown(demands, cores), abs=0.1)] * demands


def test_many_demands_slow_each_other_down() -> None:
    assert slowdown(1, 2) == pytest.approx(1.0)
    assert slowdown(400, 2) == pytest.approx(200.0, rel=0.05)


@pytest.mark.parametrize(("jobs", "times"), [(20, 1.95), (40, 2.1), (200, 5.0)])
def test_a_group_takes_little_more_than_one(jobs: int, times: float) -> None:
    """From ``started`` to ``finished``, of one-image jobs, as measured on a real server."""

    def takes(jobs: int) -> float:
        timings = Timings()
        around = timings.import_fork_wait + timings.import_completed_event + timings.import_finish
        return around + timings.import_work(frames=jobs, jobs=jobs, chunk_megapixels=0.08)

    assert takes(jobs) / takes(1) == pytest.approx(times, rel=0.08)


def test_times_are_those_of_a_real_server() -> None:
    timings = Timings()
    with SimulatorServer(SimulatorSettings(timings=timings.scaled(0.5))) as server:
        call = Caller(server)
        for _ in range(5):
            call.upload(call.create(), "a.jpg")
            server.wait_idle()
        # The quickest, since a busy machine only adds to it.
        took = min(server.stats.import_milliseconds().values())
        # POST of the data until the commit: about 200 ms on the measured server, here halved.
        assert 80.0 < took < 150.0
        call.http.clear()
    assert timings.scaled(0.0) == Timings.zero()
