"""Streams: requests whose jobs follow each other in the same CVAT tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from conformance.store_factories import FACTORIES
from support.api import Api
from support.commands import cvat_pool
from support.pools import HERE, REMOTE, opened
from support.slots import (
    COLOURS,
    carriers_of,
    colour_of,
    picture_of,
    slot_daemon,
    slot_server,
    slot_template,
    wait_for_slots,
)
from support.waiting import wait_until

from pool import (
    IdempotencyConflict,
    InputError,
    Placed,
    RequestState,
    UnknownStream,
    UnknownTemplate,
)
from pool.config.settings import PoolSettings, Template
from pool.daemon import Daemon
from pool.maintenance.stream_expiry import IDLE
from pool.model import SlotState
from pool.simulator import SimulatorServer

#: Slots of a task.
SLOTS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[SimulatorServer]:
    with slot_server() as server:
        yield server


@pytest.fixture(scope="module", params=FACTORIES)
def daemon(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server: SimulatorServer,
) -> Iterator[Daemon]:
    """One for each store and all tests here, so each has streams of its own."""
    folder = tmp_path_factory.mktemp("streams")
    store_url = FACTORIES[request.param](folder)
    camera = slot_template(
        server.share, pool=PoolSettings(min_size=5 * SLOTS, max_size=20 * SLOTS, max_wait=20.0)
    )
    short = slot_template(
        server.share, name="short", pool=PoolSettings(min_size=1, max_size=20 * SLOTS, max_wait=60)
    )
    hot = slot_template(server.share, name="hot", per_task=1, pool=PoolSettings(min_size=0))
    plain = Template(name="plain", labels=({"name": "car"},), pool=PoolSettings(min_size=0))
    with slot_daemon(
        server, store_url, camera, short, hot, plain, spool=folder / "spool"
    ) as daemon:
        yield daemon


@pytest.fixture(params=[HERE, *REMOTE])
def caller(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Any]:
    wait_for_slots(daemon.process, 2 * SLOTS)
    with opened(request.param, daemon) as pool:
        yield pool


@pytest.fixture
def stream(request: pytest.FixtureRequest) -> str:
    """The name of a stream of the test's own."""
    return f"camera of {request.node.name}"


def append(caller: Any, stream: str, name: str = "frame.jpg", colour: str = "red") -> Any:
    return caller.submit("camera", [(name, picture_of(colour))], stream=stream, timeout=30.0)


def place_of(request: Any) -> tuple[int, int]:
    """The task of a request, and the frame at which its job begins."""
    (job,) = request.jobs(timeout=30)
    assert job.start_frame == job.stop_frame
    return request.task_id, job.start_frame


def carrier_of(daemon: Daemon, task_id: int) -> str:
    """Our id of a task of slots."""
    (found,) = [each.id for each in carriers_of(daemon.process.store) if each.task_id == task_id]
    return found


# --- Into the same task ---------------------------------------------------------------------------


def test_requests_of_a_stream_follow_each_other_in_the_same_tasks(
    caller: Any, stream: str, server: SimulatorServer
) -> None:
    requests = [append(caller, stream, colour=colour) for colour in (*COLOURS, "green")]
    places = [place_of(request) for request in requests]
    first, second = places[0][0], places[-1][0]
    assert places == [(first, 0), (first, 1), (first, 2), (second, 0)]
    assert first != second
    assert {request.stream for request in requests} == {stream}
    assert {request.placed for request in requests} == {Placed.SLOT}
    colours = [colour_of((server.share / each.frames[0].name).read_bytes()) for each in requests]
    assert colours == [*COLOURS, "green"]
    other = append(caller, f"{stream}, too")
    apart = caller.submit("camera", [("a.jpg", picture_of())])
    assert {place_of(each)[0] for each in (other, apart)}.isdisjoint({first, second})


@pytest.mark.parametrize("kind", REMOTE)
def test_none_overtakes_another_while_their_next_task_is_made(
    daemon: Daemon, stream: str, kind: str
) -> None:
    """More than there is room for, sent without a wait for the jobs."""
    with opened(kind, daemon) as pool:
        requests = [
            pool.submit("short", [("a.jpg", picture_of())], stream=stream, priority=priority)
            for priority in ("bulk", "interactive") * (2 * SLOTS)
        ]
        places = [place_of(request) for request in requests]
    tasks = list(dict.fromkeys(task_id for task_id, _ in places))
    assert places == [(task_id, frame) for task_id in tasks for frame in range(SLOTS)]


def test_a_stream_that_waits_for_a_task_holds_up_no_other_request(
    server: SimulatorServer, store_url: str
) -> None:
    pool = PoolSettings(min_size=SLOTS, max_size=9 * SLOTS, max_wait=60.0, on_empty="wait")
    template = slot_template(server.share, pool=pool)
    with (
        slot_daemon(server, store_url, template) as daemon,
        opened("RemotePool", daemon) as caller,
    ):
        wait_for_slots(daemon.process, SLOTS)
        caller.pause("camera")
        leases = [caller.acquire("camera") for _ in range(SLOTS)]
        waits = append(caller, "camera 7")
        goes = [caller.submit("camera", [("a.jpg", picture_of())]) for _ in range(2)]
        for lease in leases[:2]:
            lease.release()
        assert [place_of(each)[0] for each in goes] == 2 * [leases[0].task_id]
        assert waits.state is RequestState.QUEUED
        caller.resume("camera")
        assert place_of(waits)[0] != leases[0].task_id


def test_a_stream_gets_a_whole_task_although_slots_of_another_are_enough(
    server: SimulatorServer, store_url: str
) -> None:
    template = slot_template(server.share, pool=PoolSettings(min_size=1, max_size=9, max_wait=60.0))
    with slot_daemon(server, store_url, template) as daemon, opened(HERE, daemon) as caller:
        wait_for_slots(daemon.process, SLOTS)
        first = caller.submit("camera", [("a.jpg", picture_of())])
        places = [place_of(append(caller, name)) for name in ("camera 7", "camera 8", "camera 7")]
        tasks = {first.task_id, places[0][0], places[1][0]}
        assert len(tasks) == 3
        assert places[2] == (places[0][0], 1)


def test_a_stream_goes_on_after_a_restart(server: SimulatorServer, store_url: str) -> None:
    """In the task that it had, with what waited for a place, in order."""
    pool = PoolSettings(min_size=SLOTS, max_size=9 * SLOTS, max_wait=60.0, on_empty="wait")
    template = slot_template(server.share, pool=pool)
    with slot_daemon(server, store_url, template) as daemon, opened(HERE, daemon) as caller:
        wait_for_slots(daemon.process, SLOTS)
        first = place_of(append(caller, "camera 7"))
        # Some have a place still; the others wait, since no task is made.
        caller.pause("camera")
        with opened("RemotePool", daemon) as remote:
            waiting = [append(remote, "camera 7", f"{number}.jpg").id for number in range(6)]
    with slot_daemon(server, store_url, template) as daemon, opened(HERE, daemon) as caller:
        caller.resume("camera")
        places = [place_of(caller.request(each)) for each in waiting]
    tasks = list(dict.fromkeys(task_id for task_id, _ in [first, *places]))
    assert [first, *places] == [(task_id, n) for task_id in tasks for n in range(SLOTS)][:7]


def test_two_processes_append_to_one_stream_and_lose_nothing(daemon: Daemon, stream: str) -> None:
    count = 2 * SLOTS
    with opened(HERE, daemon) as one, opened(HERE, daemon) as other, ThreadPoolExecutor(2) as two:

        def append_all(caller: Any) -> list[tuple[int, int]]:
            return [place_of(append(caller, stream)) for _ in range(count)]

        ours, theirs = two.map(append_all, (one, other))
    assert len({*ours, *theirs}) == 2 * count
    assert len({task_id for task_id, _ in ours + theirs}) == 2 * count // SLOTS
    for places in (ours, theirs):
        tasks = {
            task_id: [frame for _, frame in each]
            for task_id, each in groupby(places, itemgetter(0))
        }
        assert sum(map(len, tasks.values())) == count, "it came back to a task that was full"
        assert all(frames == sorted(frames) for frames in tasks.values())


def test_what_does_not_fit_goes_the_ordinary_way(caller: Any, stream: str) -> None:
    wide = picture_of(size=(65, 48))
    request = caller.submit("camera", [("wide.jpg", wide)], stream=stream)
    assert request.jobs(timeout=30)
    assert request.placed in (Placed.TASK, Placed.GROUP)
    assert "65x48" in request.no_slot
    assert request.stream == stream


# --- Which are open, and their end ----------------------------------------------------------------


def test_a_stream_is_listed_until_it_is_closed(caller: Any, daemon: Daemon, stream: str) -> None:
    requests = [append(caller, stream) for _ in range(2)]
    ((task_id, _), _) = map(place_of, requests)
    (found,) = [each for each in caller.streams("camera") if each.name == stream]
    assert found in caller.streams()
    assert (found.template, found.task_id, found.tasks) == ("camera", task_id, 1)
    assert found.url.endswith(f"/tasks/{task_id}")
    assert (found.filled, found.slots) == (2, SLOTS)
    assert found.opened_at <= found.used_at <= datetime.now(UTC)
    caller.close_stream("camera", stream)
    assert stream not in {each.name for each in caller.streams()}
    with pytest.raises(UnknownStream, match=re.escape(stream)):
        caller.close_stream("camera", stream)
    assert place_of(append(caller, stream))[0] != task_id, "it is another one"
    assert all(request.jobs() for request in requests)
    rows = daemon.process.store.slots_of(carrier_of(daemon, task_id))
    assert [row.filled for row in rows] == [1, 1, 0]
    assert SlotState.of(rows[2].state) is SlotState.RETIRED


def test_a_stream_that_is_not_open(caller: Any, stream: str) -> None:
    for name in (stream, "a/b?c&d=e", ".."):
        with pytest.raises(UnknownStream):
            caller.close_stream("camera", name)
    with pytest.raises(UnknownTemplate, match="there is camera"):
        caller.close_stream("camara", stream)
    with pytest.raises(UnknownTemplate, match="there is camera"):
        caller.streams("camara")
    with pytest.raises(InputError, match="the name of a stream"):
        caller.close_stream("camera", "camera\n7")


def test_an_idle_stream_is_closed(server: SimulatorServer, store_url: str) -> None:
    pool = PoolSettings(min_size=SLOTS, max_size=9 * SLOTS, max_wait=20.0)
    template = slot_template(server.share, pool=pool, slots={"stream_idle": 0.5})
    with slot_daemon(server, store_url, template) as daemon, opened(HERE, daemon) as pool:
        wait_for_slots(daemon.process, SLOTS)
        kept = append(pool, "camera 7")
        assert [each.name for each in pool.streams()] == ["camera 7"]

        def closed() -> bool:
            assert daemon.maintenance is not None
            daemon.maintenance.scheduler.wake("stream_expiry")
            return not pool.streams()

        wait_until(daemon.process.store, closed)
        store = daemon.process.store
        rows = [store.task(slot.id) for slot in store.slots_of(carrier_of(daemon, kept.task_id))]
        assert [row and row.reason for row in rows] == ["", IDLE, IDLE]


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["hot", "plain"])
def test_a_template_without_tasks_that_grow_has_no_streams(caller: Any, template: str) -> None:
    with pytest.raises(InputError, match="per_task above 1"):
        caller.submit(template, [("a.jpg", picture_of())], stream="camera 7")


@pytest.mark.parametrize("name", ["", " ", "camera\n7", " camera 7", "c" * 201, 7])
def test_a_name_that_no_stream_can_have(caller: Any, name: Any) -> None:
    with pytest.raises(InputError, match="the name of a stream"):
        caller.submit("camera", [("a.jpg", picture_of())], stream=name)


def test_a_key_is_bound_to_the_stream(caller: Any, stream: str) -> None:
    def submit(name: str | None) -> Any:
        files = [("a.jpg", picture_of())]
        return caller.submit("camera", files, stream=name, idempotency_key=hex(hash(stream)))

    first = submit(stream)
    assert submit(stream).id == first.id
    for other in (None, f"{stream}, too"):
        with pytest.raises(IdempotencyConflict):
            submit(other)


# --- Over HTTP, and from the command line ---------------------------------------------------------


def test_over_http(daemon: Daemon, stream: str) -> None:
    wait_for_slots(daemon.process, SLOTS)
    with Api(daemon.url) as api:
        fields = {"template": "camera", "stream": stream, "files": ("a.jpg", picture_of())}
        answer = api.post("/v1/requests", fields=fields, headers={"Prefer": "wait=10"})
        assert answer.status == 201
        assert (answer.json["stream"], answer.json["placed"]) == (stream, "slot")
        (shown,) = [
            each
            for each in api.get("/v1/streams?template=camera").json["items"]
            if each["name"] == stream
        ]
        assert (shown["task_id"], shown["filled"]) == (answer.json["task_id"], 1)
        address = f"/v1/streams?{urlencode({'template': 'camera', 'name': stream})}"
        assert [api.delete(address).status for _ in range(2)] == [204, 404]
        assert api.delete(address).code == "unknown-stream"
        assert api.get("/v1/streams?template=camara").code == "unknown-template"
        lease = api.lease("camera").json["id"]
        refused = api.post("/v1/requests", fields={**fields, "lease_id": lease})
        assert (refused.status, refused.code) == (422, "input")
        named = {"template": "plain", "stream": stream, "share": ["cam1/a.jpg"]}
        assert "per_task above 1" in api.post("/v1/requests", named).json["detail"]
        blank = api.post("/v1/requests", {**named, "stream": " "})
        assert [each["where"] for each in blank.json["errors"]] == ["stream"]


def test_from_the_command_line(daemon: Daemon, stream: str, tmp_path: Path) -> None:
    wait_for_slots(daemon.process, SLOTS)
    (tmp_path / "a.jpg").write_bytes(picture_of())
    (tmp_path / "wide.jpg").write_bytes(picture_of(size=(65, 48)))

    def get(*more: str, file: str = "a.jpg") -> Any:
        arguments = ("get", "camera", file, "--stream", stream, "--server", daemon.url, *more)
        return cvat_pool(*arguments, cwd=tmp_path)

    first, second = (json.loads(get("--json").stdout) for _ in range(2))
    assert (first["stream"], first["placed"]) == (stream, "slot")
    assert first["task_id"] == second["task_id"]
    assert [each["jobs"][0]["start_frame"] for each in (first, second)] == [0, 1]
    ordinary = get(file="wide.jpg")
    assert ordinary.returncode == 0
    note = "Note: it is in no slot: wide.jpg is 65x48, and the slot takes 64x48"
    assert ordinary.stderr.splitlines() == [note]


def test_the_streams_from_the_command_line(daemon: Daemon, stream: str, tmp_path: Path) -> None:
    wait_for_slots(daemon.process, SLOTS)

    def streams(*arguments: str) -> Any:
        return cvat_pool("streams", *arguments, cwd=tmp_path, POOL_SERVER=daemon.url, COLUMNS="80")

    with opened(HERE, daemon) as pool:
        name = stream.ljust(150, "x")
        task_id, _ = place_of(append(pool, name))
    headings, *lines = streams("camera").stdout.splitlines()
    assert headings.split() == ["stream", "template", "task", "filled", "last", "used"]
    assert all(len(line) <= 80 for line in lines)
    (line,) = [line for line in lines if f"  {task_id}  " in line]
    assert line.startswith("camera of test") and f"  1/{SLOTS}  " in line
    (document,) = [each for each in json.loads(streams("--json").stdout) if each["name"] == name]
    assert (document["task_id"], document["tasks"], document["slots"]) == (task_id, 1, SLOTS)
    closed = streams("camera", "--close", name)
    said = f"closed stream {name!r} of camera\n"
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, said, "")
    again = streams("camera", "--close", name)
    assert again.returncode == 2 and "No stream of that name is open" in again.stderr
    assert "name the template" in streams("--close", name).stderr
    assert streams("plain").stdout == "no stream is open\n"
