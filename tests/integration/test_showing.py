"""Slots that were filled: shown, named and assigned, looked at again, and erased; also while people
and other processes do the same, and CVAT fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.api import settings_for
from support.clock import SkippingClock
from support.commands import running
from support.pools import HERE, REMOTE, opened
from support.simulated import Caller, client_of
from support.slots import (
    CACHE_STORAGE,
    COLOURS,
    FOLDER,
    carriers_of,
    colour_of,
    colours_of,
    picture_of,
    slot_daemon,
    slot_server,
    slot_settings,
    slot_table,
    slot_template,
    wait_for_slots,
)
from support.stepped import Stepped
from support.waiting import poll_until, wait_until

from pool import Request, TaskPool
from pool.config.loader import load
from pool.config.settings import PoolSettings, Template
from pool.cvat import CvatClient
from pool.errors import RequestCancelled, WaitTimeout
from pool.handles import when
from pool.model import Hidden, Placed, Slot, SlotState
from pool.requests.showing import MOST_DROPS, MOST_FAILURES, TERM, WRONG_PAUSE
from pool.simulator import SimulatorServer
from pool.simulator.faults import Error, Hang
from pool.store import LOOKS, open_store

RED, GREEN, BLUE = COLOURS
PATIENCE = 30.0


class World:
    """A daemon whose services run when the test says so, on a simulated CVAT with a share."""

    def __init__(self, server: SimulatorServer, store_url: str, *templates: Template) -> None:
        self.server = server
        self.clock = SkippingClock()
        self.settings = settings_for(server.url, store_url, *templates)
        self.cvat = client_of(server)
        self.store = open_store(store_url)
        self.daemon = Stepped(self.settings, self.store, self.cvat, self.clock)
        self.pool = self.daemon.pool
        self.daemon.fill()

    def close(self) -> None:
        self.daemon.stop()
        self.store.close()
        self.cvat.close()

    def submit(self, *colours: str, pool: TaskPool | None = None, **more: Any) -> Request:
        files = [(f"{colour}.jpg", picture_of(colour)) for colour in colours or (RED,)]
        return (pool or self.pool).submit("camera", files, **more)

    def slot(self, request: Request) -> Slot:
        slot = self.store.slot(self.pool.read_request(request.id).pooled_id or "")
        assert slot is not None
        return slot

    def hidden(self, request: Request) -> frozenset[int]:
        return self.cvat.hidden_frames(request.task_id or 0)

    def colours(self, request: Request, number: int = 0) -> set[str]:
        first = self.slot(request).start_frame
        return colours_of(self.cvat, request.task_id or 0, first + number)

    def codes(self, request: Request) -> list[str]:
        return [each.code for each in request.warnings]

    def is_hidden(self, request: Request) -> bool:
        return request.hidden is Hidden.DONE

    @property
    def patches(self) -> int:
        """How often a list was sent."""
        return self.server.stats.calls["data:meta:patch"]

    def later(self, seconds: float) -> None:
        """Some seconds later the service has its round."""
        showing = self.pool.process.showing
        showing.settle(PATIENCE)
        self.clock.skip(seconds)
        self.daemon.renew()
        self.daemon.run("showing")
        showing.settle(PATIENCE)

    def save_page(self, hidden: Sequence[int], request: Request) -> None:
        """The page of an annotator writes the list that it has read."""
        self.cvat.show_frames(request.task_id or 0, hidden, cloud_storage_id=None)

    def annotate(self, slot: Slot) -> None:
        call = Caller(self.server)
        labels = call("GET", "/api/labels", {"job_id": slot.job_id}).json()["results"]
        shape = {
            "type": "rectangle",
            "frame": slot.start_frame,
            "label_id": labels[0]["id"],
            "points": [1, 1, 9, 9],
            "occluded": False,
        }
        body = {"version": 0, "tags": [], "shapes": [shape], "tracks": []}
        answer = call("PUT", f"/api/jobs/{slot.job_id}/annotations", json=body)
        assert answer.status == 200, answer.data


Start = Callable[..., World]


@pytest.fixture(scope="module")
def module_server() -> Iterator[SimulatorServer]:
    with slot_server() as server:
        yield server


@pytest.fixture
def server(module_server: SimulatorServer) -> Iterator[SimulatorServer]:
    yield module_server
    module_server.faults.clear()


@pytest.fixture
def start(server: SimulatorServer, store_url: str) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(per_task: int = 3, **template: Any) -> World:
            given = {"pool": PoolSettings(min_size=per_task, max_size=per_task * 3), **template}
            chosen = slot_template(server.share, per_task=per_task, **given)
            world = World(server, store_url, chosen)
            stack.callback(world.close)
            return world

        yield begin


@pytest.fixture
def world(start: Start) -> World:
    return start()


# --- Shown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_task", [1, 3])
def test_a_slot_is_shown_assigned_and_announced(start: Start, per_task: int) -> None:
    """A task with one slot is also named after its request; one that others share keeps its own
    name. A slot that is empty is assigned to nobody."""
    world = start(per_task)
    user = world.cvat.whoami()
    (carrier,) = carriers_of(world.store)
    task_id = carrier.task_id or 0
    request = world.submit(GREEN, name="night ride", assignee=user.id)
    shown = request.shown(PATIENCE)
    slot = world.slot(request)
    assert world.hidden(request) == set(range(per_task)) - {slot.start_frame}
    assert world.colours(request) == {GREEN}
    assert when(request.record.shown_at) == shown
    world.pool.process.settle(PATIENCE)
    assignees = {job.id: job.assignee for job in world.cvat.jobs([task_id])[task_id]}
    assert {job for job, name in assignees.items() if name} == {slot.job_id}
    task = world.cvat.task(task_id)
    assert task is not None and task.name == ("night ride" if per_task == 1 else carrier.name)
    (event,) = [
        event for event in world.store.events_after(0, limit=1000) if event.kind == "request.shown"
    ]
    assert event.request_id == request.id
    assert request.warnings == ()


def test_fewer_frames_than_a_slot_has(start: Start) -> None:
    world = start(2, frames=3)
    request = world.submit(RED, BLUE)
    request.shown(PATIENCE)
    assert world.hidden(request) == {2, 3, 4, 5}
    assert [world.colours(request, number) for number in range(3)] == [{RED}, {BLUE}, {""}]


def test_what_was_read_before_it_was_filled_is_dropped(world: World) -> None:
    """Of frames, in both qualities, and of those that are filled one after the other."""
    (carrier,) = carriers_of(world.store)
    for number, colour in enumerate(COLOURS):
        for each in range(3):
            colours_of(world.cvat, carrier.task_id or 0, each)
        request = world.submit(colour)
        request.shown(PATIENCE)
        assert world.slot(request).start_frame == number
        assert world.colours(request) == {colour}
    assert world.cvat.hidden_frames(carrier.task_id or 0) == frozenset()
    seen = [colours_of(world.cvat, carrier.task_id or 0, number) for number in range(3)]
    assert seen == [{colour} for colour in COLOURS]


def test_processes_fill_the_same_task_at_the_same_time(start: Start) -> None:
    """Each slot once; all are shown, whichever process does it."""
    world = start(12)
    with ExitStack() as stack:
        pools = [stack.enter_context(TaskPool(world.settings, cvat=world.cvat)) for _ in range(2)]
        wishes = [(pools[number % 2], [*COLOURS][number % 3]) for number in range(12)]
        with ThreadPoolExecutor(6) as threads:
            requests = list(threads.map(lambda each: world.submit(each[1], pool=each[0]), wishes))
        for request in requests:
            request.shown(PATIENCE)
    assert len({world.slot(request).id for request in requests}) == 12
    for request, (_, colour) in zip(requests, wishes, strict=True):
        assert world.colours(request) == {colour}
    assert world.hidden(requests[0]) == frozenset()


def test_a_process_that_is_killed_after_it_has_shown_a_slot(world: World) -> None:
    """What it did not write down is done again once its term has ended."""
    (carrier,) = carriers_of(world.store)
    now = world.clock.now()
    assert world.store.write_carrier(carrier.id, owner="killed", until=now + TERM, now=now)
    request = world.submit(BLUE)
    world.cvat.show_frames(carrier.task_id or 0, [1, 2], cloud_storage_id=CACHE_STORAGE)
    world.later(TERM / 2)
    with pytest.raises(WaitTimeout):
        request.shown(0)
    world.later(TERM / 2 + 1)
    request.shown(0)
    assert world.hidden(request) == {1, 2}
    assert world.colours(request) == {BLUE}


def test_a_command_that_is_killed_while_it_shows_a_slot(
    server: SimulatorServer, store_url: str, tmp_path: Path
) -> None:
    """Between the call that shows it and the word of it: the daemon shows it, once more."""
    slots = slot_settings(server.share, per_task=3)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[cvat]\nurl = "{server.url}"\n[store]\nurl = "{store_url}"\n'
        f'[templates.camera]\nlabels = [{{ name = "car" }}]\n{slot_table(slots)}\n'
        "pool = { min_size = 3, max_size = 3 }\n"
    )
    (tmp_path / "a.jpg").write_bytes(picture_of(GREEN))
    token = server.access_token
    with closing(World(server, store_url, load(config).templates["camera"])) as world:
        before, hits = world.patches, server.stats.faults.total()
        # Its first picture is compared before it is announced.
        comparing = server.faults.add(Hang("data:get"))
        with running("get", "camera", "a.jpg", cwd=tmp_path, CVAT_ACCESS_TOKEN=token) as command:
            poll_until(lambda: server.stats.faults.total() > hits, PATIENCE)
            command.process.kill()
            command.process.wait(PATIENCE)
        comparing.remove()
        assert world.patches == before + 1
        (record,) = world.store.requests().requests
        request = world.pool.request(record.id)
        assert (request.record.placed, request.record.shown_at) == (Placed.SLOT, None)
        assert world.hidden(request) == {1, 2}
        world.later(TERM + 1)
        request.shown(0)
        assert world.hidden(request) == {1, 2}
        assert world.colours(request) == {GREEN}
        kinds = [event.kind for event in world.store.events_after(0, limit=1000)]
        assert kinds.count("request.shown") == 1


def test_a_request_that_went_into_no_slot_is_shown_once_it_is_ready(world: World) -> None:
    request = world.submit(RED)
    other = world.pool.submit("camera", [("a.jpg", picture_of(size=(32, 32)))])
    with pytest.raises(WaitTimeout):
        other.shown(0)

    def is_ready() -> bool:
        world.pool.process.tracker.run_once()
        return other.state.finished

    poll_until(is_ready, PATIENCE)
    assert (request.record.placed, other.record.placed) == (Placed.SLOT, Placed.TASK)
    assert other.shown(0) == when(other.record.finished_at)


# --- People ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", range(len(LOOKS)))
def test_a_page_that_writes_an_old_list_back(world: World, look: int) -> None:
    """It hides a slot that nobody has opened, and shows one that is empty: after a minute, or an
    hour, that is put right. A second time it is taken for people's will."""
    request = world.submit(GREEN)
    request.shown(PATIENCE)
    waited = 0.0
    for seconds in LOOKS[:look]:
        world.later(seconds - waited)
        waited = seconds
    world.save_page([0, 1], request)
    assert world.hidden(request) == {0, 1}
    world.later(LOOKS[look] - waited + 1)
    assert world.hidden(request) == {1, 2}
    assert world.colours(request) == {GREEN}
    world.save_page([0, 1], request)
    world.later(LOOKS[0] + 1)
    assert world.hidden(request) == {0, 1, 2}
    assert world.codes(request) == []


def test_a_page_that_writes_its_list_at_the_same_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CVAT answers is another list than the one that was sent, which is sent once more."""
    show = CvatClient.show_frames
    saved: list[int] = []

    def show_beside_a_page(
        self: CvatClient, task_id: int, hidden: Collection[int], **options: Any
    ) -> frozenset[int]:
        answer = show(self, task_id, hidden, **options)
        if not saved:
            saved.append(task_id)
            answer = show(self, task_id, [0, 1, 2], cloud_storage_id=None)
        return answer

    monkeypatch.setattr(CvatClient, "show_frames", show_beside_a_page)
    request = world.submit(GREEN)
    request.shown(PATIENCE)
    assert saved == [request.task_id]
    assert world.hidden(request) == {1, 2}
    assert world.colours(request) == {GREEN}


@pytest.mark.parametrize("how", ["removed", "begun"])
def test_a_frame_that_an_annotator_has_removed_stays_so(start: Start, how: str) -> None:
    """Whatever is filled beside it, and at each look."""
    world = start(3, frames=2)
    request = world.submit(RED, BLUE)
    request.shown(PATIENCE)
    if how == "begun":
        Caller(world.server)(
            "PATCH", f"/api/jobs/{world.slot(request).job_id}", json={"state": "in progress"}
        )
    removed = [1] if how == "removed" else [0, 1]
    world.cvat.hide_frames(world.slot(request).job_id, removed)
    world.submit(GREEN).shown(PATIENCE)
    wanted = {*removed, 3, 4, 5}
    assert world.hidden(request) == wanted
    for seconds in LOOKS:
        world.later(seconds + 1)
        assert world.hidden(request) == wanted


@pytest.mark.parametrize("annotated", [False, True])
def test_an_empty_slot_that_somebody_has_opened(world: World, annotated: bool) -> None:
    """It is hidden again; with annotations it is never filled."""
    request = world.submit(GREEN)
    request.shown(PATIENCE)
    (carrier,) = carriers_of(world.store)
    opened = world.store.slots_of(carrier.id)[1]
    world.save_page([2], request)
    if annotated:
        world.annotate(opened)
    world.later(LOOKS[0] + 1)
    assert world.hidden(request) == {1, 2}
    after = world.store.slot(opened.id)
    assert after is not None
    assert SlotState.of(after.state) is (SlotState.RETIRED if annotated else SlotState.WARM)
    next_one = world.submit(BLUE)
    next_one.shown(PATIENCE)
    assert (world.slot(next_one).id == opened.id) is not annotated


# --- CVAT, and what is wrong with it --------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_carrier_that_cannot_be_shown_is_tried_again(world: World, status: int) -> None:
    """Not at each slot that is filled, and not for ever without a word."""
    before = world.patches
    world.server.faults.add(Error("data:meta:patch", status=status))
    requests = [world.submit(colour) for colour in COLOURS]
    for each in requests:
        with pytest.raises(WaitTimeout):
            each.shown(0)
    poll_until(lambda: world.patches > before, PATIENCE)
    for _ in range(20):
        world.daemon.run("showing")
    assert world.patches - before <= 10
    for _ in range(MOST_FAILURES):
        world.later(WRONG_PAUSE)
    of_carrier = status != 503
    assert [world.codes(each) for each in requests] == [["not-shown"] if of_carrier else []] * 3
    world.server.faults.clear()
    world.later(WRONG_PAUSE)
    for request, colour in zip(requests, COLOURS, strict=True):
        request.shown(0)
        assert world.colours(request) == {colour}


def test_a_storage_that_is_gone_keeps_its_own_templates_slots_alone(
    server: SimulatorServer, store_url: str
) -> None:
    """Without a drop nothing is shown. Where the configuration names another storage, that is
    used, also for carriers that are there."""
    pool = PoolSettings(min_size=2, max_size=2)
    other = slot_template(server.share, name="other", per_task=2, pool=pool)
    gone = slot_template(server.share, per_task=2, pool=pool, slots={"cache_storage": 77})
    world = World(server, store_url, gone, other)
    try:
        request = world.submit(RED)
        fine = world.pool.submit("other", [("a.jpg", picture_of(BLUE))])
        fine.shown(PATIENCE)
        for _ in range(MOST_FAILURES):
            world.later(WRONG_PAUSE)
        assert world.codes(request) == ["not-shown"]
        assert "CloudStorage" in request.warnings[0].text
        assert world.hidden(request) == {0, 1}
        assert gone.slots is not None
        mended = replace(gone, slots=replace(gone.slots, cache_storage=CACHE_STORAGE))
        world.pool.process.templates.replace({"camera": mended, "other": other})
        world.later(WRONG_PAUSE)
        request.shown(0)
        assert world.colours(request) == {RED}
    finally:
        world.close()


def test_files_that_cvat_reads_elsewhere(
    server: SimulatorServer, store_url: str, tmp_path: Path
) -> None:
    """Wrong pictures are found before they are announced, and dropped a few times only."""
    place, other = tmp_path / "mounted", tmp_path / "other"
    (server.share / FOLDER).mkdir(exist_ok=True)
    place.symlink_to(server.share / FOLDER)
    pool = PoolSettings(min_size=2, max_size=2)
    slots = {"storage": f"file://{place}"}
    template = slot_template(server.share, per_task=2, pool=pool, slots=slots)
    world = World(server, store_url, template)
    try:
        # Something else is mounted there, with the same files as yet.
        shutil.copytree(server.share / FOLDER, other)
        place.unlink()
        place.symlink_to(other)
        before = world.patches
        request = world.submit(RED)
        poll_until(lambda: world.codes(request), PATIENCE)
        assert world.codes(request) == ["not-shown"]
        assert world.patches - before == 1 + MOST_DROPS
        with pytest.raises(WaitTimeout):
            request.shown(0)
        place.unlink()
        place.symlink_to(server.share / FOLDER)
        shutil.rmtree(server.share / FOLDER)
        shutil.copytree(other, server.share / FOLDER)
        world.later(WRONG_PAUSE + 1)
        request.shown(0)
        assert world.colours(request) == {RED}
    finally:
        world.close()


def keep_placeholder(world: World, request: Request) -> None:
    """As if CVAT's reading of a placeholder had begun before it was filled, and ended only now."""
    slot = world.slot(request)
    (folder,) = (world.server.share / FOLDER).rglob(slot.carrier_id)
    file = folder / f"{slot.start_frame:04d}.jpg"
    right = file.read_bytes()
    file.unlink()
    file.write_bytes(picture_of((58, 64, 72)))
    hidden = world.hidden(request)
    world.cvat.show_frames(request.task_id or 0, hidden, cloud_storage_id=CACHE_STORAGE)
    assert world.colours(request) == {""}
    file.unlink()
    file.write_bytes(right)
    assert world.colours(request) == {""}


@pytest.mark.parametrize("at_once", [1, 6])
def test_a_picture_that_was_read_while_it_was_replaced(start: Start, at_once: int) -> None:
    """CVAT may keep it after the drop: the next look drops it, of many whichever it is."""
    world = start(6)
    (carrier,) = carriers_of(world.store)
    writer: dict[str, Any] = {"owner": "a slow one", "now": world.clock.now()}
    assert world.store.write_carrier(carrier.id, until=writer["now"] + TERM, **writer)
    requests = [world.submit(GREEN) for _ in range(at_once)]
    assert world.store.wrote_carrier(carrier.id, **writer)
    world.later(0)
    for request in requests:
        request.shown(0)
    stale = requests[at_once // 2]
    keep_placeholder(world, stale)
    world.later(LOOKS[0] + 1)
    assert [world.colours(request) for request in requests] == [{GREEN}] * at_once
    assert world.codes(stale) == []


def test_a_configuration_of_another_server(world: World) -> None:
    """There, a task of the same id is another one: it is not touched."""
    request = world.submit(RED)
    request.shown(PATIENCE)
    world.save_page([], request)
    world.pool.process.showing.settle(PATIENCE)
    world.clock.skip(LOOKS[0] + 1)
    with slot_server() as other, client_of(other) as cvat:
        settings = settings_for(other.url, world.settings.store.url)
        with closing(
            TaskPool(settings, store=world.store, cvat=cvat, clock=world.clock)
        ) as elsewhere:
            assert elsewhere.process.showing.run_once() == 1
        assert not other.stats.calls
    world.later(WRONG_PAUSE)
    assert world.hidden(request) == {1, 2}


def test_a_task_that_was_deleted(world: World) -> None:
    request = world.submit(RED)
    request.shown(PATIENCE)
    world.cvat.delete_task(request.task_id or 0)
    late = world.submit(GREEN)
    poll_until(lambda: world.codes(late), PATIENCE)
    assert world.codes(late) == ["not-shown"]
    carrier = world.store.carrier(world.slot(late).carrier_id)
    assert carrier is not None and carrier.gone_since is not None
    assert world.codes(request) == []


# --- Erased ---------------------------------------------------------------------------------------


def test_an_erased_slot_has_the_placeholder_again(world: World) -> None:
    """In the storage as well as on the server; others of its task stay as they are."""
    other, request = world.submit(BLUE), world.submit(RED)
    for each, colour in ((other, BLUE), (request, RED)):
        each.shown(PATIENCE)
        assert world.colours(each) == {colour}
    world.pool.erase(request.id)
    wait_until(world.store, lambda: world.is_hidden(request), PATIENCE)
    slot = world.slot(request)
    assert world.hidden(request) == {1, 2}
    assert world.colours(request) == {""}
    files = sorted((world.server.share / FOLDER).rglob(f"{slot.carrier_id}/*.jpg"))
    assert [colour_of(file.read_bytes()) for file in files] == [BLUE, "", ""]
    assert world.colours(other) == {BLUE}
    world.save_page([], request)
    world.later(LOOKS[1] + 1)
    assert world.hidden(request) == {1, 2}
    assert world.codes(request) == []


def test_a_slot_that_is_erased_before_it_is_shown_never_is(world: World) -> None:
    (carrier,) = carriers_of(world.store)
    writer: dict[str, Any] = {"owner": "a slow one", "now": world.clock.now()}
    assert world.store.write_carrier(carrier.id, until=writer["now"] + TERM, **writer)
    request = world.submit(RED)
    world.pool.erase(request.id)
    world.pool.process.settle(PATIENCE)
    assert not world.is_hidden(request)
    assert world.store.wrote_carrier(carrier.id, **writer)
    world.daemon.run("showing")
    assert world.hidden(request) == {0, 1, 2}
    world.clock.skip(60.0)
    world.daemon.run("finalize")
    assert world.is_hidden(request)
    assert world.colours(request) == {""}
    with pytest.raises(RequestCancelled):
        request.shown(0)


def test_an_erasure_waits_for_its_storage(world: World) -> None:
    request = world.submit(RED)
    request.shown(PATIENCE)
    marker = next((world.server.share / FOLDER).glob(".*"))
    away = marker.with_name("away")
    marker.rename(away)
    try:
        world.pool.erase(request.id)
        world.pool.process.settle(PATIENCE)
        assert not world.is_hidden(request)
    finally:
        away.rename(marker)
    world.clock.skip(60.0)
    world.daemon.run("finalize")
    assert world.is_hidden(request)
    assert world.colours(request) == {""}


# --- By every door --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HERE, *REMOTE])
def test_every_caller_waits_until_it_is_shown(
    server: SimulatorServer, store_url: str, kind: str
) -> None:
    template = slot_template(server.share, pool=PoolSettings(min_size=3, max_size=6))
    with slot_daemon(server, store_url, template) as daemon:
        wait_for_slots(daemon.process, 2)
        with opened(kind, daemon) as caller, client_of(server) as cvat:
            request = caller.submit("camera", [("a.jpg", picture_of(BLUE))])
            shown = request.shown(PATIENCE)
            assert shown.tzinfo is not None
            record = caller.request(request.id).record
            assert when(record.shown_at) == shown
            assert record.frames[0].number is not None
            assert colours_of(cvat, record.task_id, record.frames[0].number) == {BLUE}
            server.faults.add(Error("data:meta:patch", status=400))
            hidden = caller.submit("camera", [("a.jpg", picture_of(RED))])
            with pytest.raises(WaitTimeout):
                hidden.shown(0.2)
            caller.erase(hidden.id)
            with pytest.raises(RequestCancelled):
                hidden.shown(PATIENCE)


def test_the_task_of_a_stream_is_called_after_it(start: Start) -> None:
    """Once, and whatever its requests are called."""
    world = start(2)
    names = set()
    for number, colour in enumerate(COLOURS):
        request = world.submit(colour, stream="camera 7", name=f"frame {number}")
        request.shown(PATIENCE)
        world.pool.process.settle(PATIENCE)
        task = world.cvat.task(request.task_id or 0)
        assert task is not None
        names.add(task.name)
        world.daemon.fill()
    assert names == {"camera 7", "camera 7 (2)"}
    renames = world.server.stats.calls["tasks:patch"]
    world.daemon.run("finalize")
    assert world.server.stats.calls["tasks:patch"] == renames
