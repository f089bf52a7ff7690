"""Carriers: made over placeholders on a share, looked after, and deleted with their files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.api import settings_for
from support.clock import ManualClock
from support.commands import cvat_pool
from support.simulated import Caller, client_of
from support.slots import (
    FOLDER,
    carriers_of,
    colours_of,
    picture_of,
    slot_daemon,
    slot_server,
    slot_table,
    slot_template,
    wait_for_slots,
    warm_slots,
)
from support.stepped import Stepped
from support.waiting import PATIENCE, poll_until

from pool.config.settings import ImportSettings, PoolSettings, Template
from pool.cvat import CvatClient
from pool.maintenance.carriers import FILE_GRACE, LOOK_EVERY
from pool.maintenance.reconcile_rules import stuck_after
from pool.model import Levels, Outcome, PooledTask, SlotState
from pool.observability.status import notes
from pool.requests.slot_storage import MARKER
from pool.simulator import OrganizationSettings, SimulatorServer
from pool.simulator.faults import (
    Cut,
    DeadWorker,
    Error,
    FailedImport,
    Fault,
    HungImport,
)
from pool.store import Store, open_store

HOUR, DAY = LOOK_EVERY + 1.0, FILE_GRACE
#: Longer than the clock can pass while an import is looked at, which takes it no time.
PATIENT = ImportSettings(timeout=86400.0)
#: Two carriers of three.
POOL = PoolSettings(min_size=6, max_size=9, max_wait=0.0, create_concurrency=1)


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with slot_server(organizations=(OrganizationSettings(slug="lab", owner="bot"),)) as server:
        yield server


@dataclass
class World:
    """A daemon whose services run when the test says so, on a simulated CVAT."""

    server: SimulatorServer
    daemon: Stepped
    cvat: CvatClient
    http: Caller

    @property
    def store(self) -> Store:
        return self.daemon.store

    @property
    def carriers(self) -> list[PooledTask]:
        return carriers_of(self.store)

    def one_round(self) -> int:
        """Refill once; return how many creates that took."""
        begun = self.daemon.refill.run_once()
        assert self.daemon.refill.drain(PATIENCE)
        return begun

    def levels(self) -> dict[str, int]:
        """Tasks of the template by state, as the pool counts them."""
        levels = self.store.levels().get("camera", Levels())
        return {state.value: count for state, count in levels.counts.items()}

    def fill_slot(self, colour: str = "red") -> str:
        """A request whose picture goes into a slot; return the slot."""
        request = self.daemon.pool.submit("camera", [("a.jpg", picture_of(colour))])
        record = self.daemon.read(request.id)
        assert record.placed == "slot" and record.pooled_id is not None
        return record.pooled_id

    def later(self, seconds: float, *services: str) -> None:
        """Run services after a while, by default that of the carriers."""
        self.daemon.advance(seconds)
        self.daemon.run(*(services or ("carriers",)))

    def states(self, carrier: PooledTask) -> list[str]:
        return [SlotState.of(slot.state).value for slot in self.store.slots_of(carrier.id)]

    def job(self, job_id: int) -> Any:
        return self.http("GET", f"/api/jobs/{job_id}").json()

    def rename(self, carrier: PooledTask, name: str) -> None:
        answer = self.http("PATCH", f"/api/tasks/{carrier.task_id}", json={"name": name})
        assert answer.status == 200

    def is_there(self, carrier: PooledTask) -> bool:
        return self.cvat.task(carrier.task_id or 0) is not None


@contextmanager
def world_of(
    server: SimulatorServer, store_url: str, clock: ManualClock, template: Template, **cvat: Any
) -> Iterator[World]:
    settings = settings_for(server.url, store_url, template)
    place = replace(settings.cvat, **cvat)
    settings = replace(
        settings, cvat=place, templates={template.name: replace(template, server=place)}
    )
    store = open_store(store_url)
    with client_of(server, organization=place.organization) as client:
        daemon = Stepped(settings, store, client, clock)
        try:
            yield World(server, daemon, client, Caller(server))
        finally:
            daemon.stop()
            store.close()


def three_a_task(server: SimulatorServer, **template: Any) -> Template:
    return slot_template(
        server.share, **{"per_task": 3, "pool": POOL, "importing": PATIENT, **template}
    )


@pytest.fixture
def world(server: SimulatorServer, store_url: str, clock: ManualClock) -> Iterator[World]:
    """With two carriers of three warm slots each."""
    with world_of(server, store_url, clock, three_a_task(server)) as world:
        assert world.daemon.fill() == 2
        world.daemon.run("carriers")
        yield world


def files(share: Path, carrier: PooledTask | None = None) -> list[str]:
    """The files of a carrier, or of all."""
    folders = (share / FOLDER).glob(f"*/{carrier.id if carrier else '*'}/*")
    return sorted(each.name for each in folders)


# --- Made -----------------------------------------------------------------------------------------


def test_a_pool_of_slots_is_filled_with_carriers(server: SimulatorServer, store_url: str) -> None:
    """As many as hold min_size slots, each with a job a slot, all frames hidden."""
    template = slot_template(
        server.share, per_task=3, frames=2, pool=PoolSettings(min_size=4, max_size=9)
    )
    with slot_daemon(server, store_url, template) as daemon, client_of(server) as cvat:
        process = daemon.process
        wait_for_slots(process, 6)
        assert warm_slots(process) == 6, "the last carrier may have more than were asked for"
        carriers = carriers_of(process.store)
        assert len(carriers) == 2
        for carrier in carriers:
            slots = process.store.slots_of(carrier.id)
            assert [(slot.start_frame, slot.stop_frame) for slot in slots] == [
                (0, 1), (2, 3), (4, 5)
            ]  # fmt: skip
            assert carrier.task_id is not None
            jobs = cvat.jobs([carrier.task_id])[carrier.task_id]
            assert [job.id for job in jobs] == [slot.job_id for slot in slots]
            assert cvat.hidden_frames(carrier.task_id) == set(range(6))
            assert colours_of(cvat, carrier.task_id, 5) == {""}
            assert files(server.share, carrier) == [f"{number:04d}.jpg" for number in range(6)]


def test_slots_beyond_max_size_that_came_with_their_carrier_stay(
    server: SimulatorServer, store_url: str, clock: ManualClock
) -> None:
    template = three_a_task(server, pool=PoolSettings(min_size=4, max_size=4))
    with world_of(server, store_url, clock, template) as world:
        assert world.daemon.fill() == 2
        world.daemon.run("retirement", "carriers")
        assert world.levels() == {"warm": 6}
        assert world.daemon.fill() == 0


def test_a_share_that_is_away_is_named_and_no_task_is_made(
    server: SimulatorServer, store_url: str, clock: ManualClock
) -> None:
    with world_of(server, store_url, clock, three_a_task(server)) as world:
        marker = server.share / FOLDER / MARKER
        marker.unlink()
        assert world.one_round() > 0
        hold = world.store.holds()["camera"]
        assert hold.code == "slot-storage" and str(server.share) in hold.reason
        assert not world.http.listed("tasks") and not files(server.share)
        marker.touch()
        world.daemon.advance(60.0)
        assert world.daemon.fill() == 2 and not world.store.holds()


def test_a_server_that_reads_elsewhere(
    server: SimulatorServer, store_url: str, clock: ManualClock
) -> None:
    """The hold has CVAT's words; the tasks are deleted, and a day later their files."""
    template = three_a_task(server, slots={"server": "share:elsewhere"})
    with world_of(server, store_url, clock, template) as world:
        made = world.one_round()
        hold = world.store.holds()["camera"]
        assert hold.code == "import-failed" and "elsewhere" in hold.reason
        assert made and len(world.http.listed("tasks")) == made
        assert len(files(server.share)) == 3 * made
        world.daemon.run("delete")
        assert not world.http.listed("tasks")
        world.later(2 * HOUR)
        assert len(files(server.share)) == 3 * made
        world.later(DAY)
        assert not files(server.share)


@pytest.mark.parametrize("moment", ["create_task", "prepare_upload", "import_state", "show_frames"])
def test_a_daemon_that_dies_in_the_middle(
    server: SimulatorServer,
    store_url: str,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """After that call; what it has left is no warm slot and no warm task, and goes, files and
    all."""
    template = three_a_task(server, pool=replace(POOL, min_size=3))
    with world_of(server, store_url, clock, template) as world:
        call = getattr(world.cvat, moment)

        def die(*arguments: Any, **options: Any) -> None:
            call(*arguments, **options)
            raise SystemExit

        with monkeypatch.context() as dying:
            dying.setattr(world.cvat, moment, die)
            assert world.one_round() == 1
        (left,) = world.http.listed("tasks")
        assert world.levels() == {"creating": 3}
        world.later(stuck_after(10.0) + 1.0, "reconcile", "delete")
        assert world.http.listed("tasks") == [] and world.cvat.task(left) is None
        world.later(HOUR + 1.0)
        world.later(DAY + 1.0)
        assert not files(server.share)
        assert world.daemon.fill() == 1
        assert world.levels() == {"warm": 3}


@pytest.mark.parametrize(
    "fault",
    [
        Error("data:post", status=504, at="after", times=1),
        Cut("data:post", at="after", times=1),
        Error("requests:get", status=503, times=3),
        Cut("jobs:list", times=1),
        Error("data:meta:patch", status=504, at="after", times=1),
        Cut("data:meta", times=1),
    ],
    ids=lambda fault: f"{fault.kind} {fault.where}",
)
def test_a_carrier_is_made_in_spite_of_failures_that_pass(
    server: SimulatorServer, store_url: str, clock: ManualClock, fault: Fault
) -> None:
    template = three_a_task(server, pool=replace(POOL, min_size=3))
    with world_of(server, store_url, clock, template) as world:
        with server.fault(fault) as handle:
            assert world.one_round() == 1
            assert handle.fired == fault.times
        assert world.levels() == {"warm": 3} and not world.store.holds()
        assert world.cvat.hidden_frames(world.carriers[0].task_id or 0) == {0, 1, 2}


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (FailedImport(times=1), "import-failed", "No space left on device"),
        (DeadWorker(request="gone", times=1), "import-failed", "no record of the import"),
        (HungImport(), "import-timed-out", "after 300 s"),
        (Error("data:meta:patch", status=403, times=1), "cvat-forbidden", "403"),
    ],
    ids=lambda value: f"{value.kind} {value.where}" if isinstance(value, Fault) else "",
)
def test_a_carrier_that_cannot_be_made(
    server: SimulatorServer,
    store_url: str,
    clock: ManualClock,
    fault: Fault,
    code: str,
    words: str,
) -> None:
    """The hold says why; its task is deleted, and another one is made later."""
    importing = ImportSettings(timeout=300.0)
    template = three_a_task(server, pool=replace(POOL, min_size=3), importing=importing)
    with world_of(server, store_url, clock, template) as world:
        with server.fault(fault):
            assert world.one_round() == 1
        (hold,) = world.store.holds().values()
        assert hold.code == code and words in hold.reason
        world.later(600.0, "delete")
        assert world.http.listed("tasks") == []
        assert world.daemon.fill() == 1 and world.levels() == {"warm": 3}
        assert not world.store.holds()


def test_an_import_that_takes_long_is_not_given_up(
    server: SimulatorServer, store_url: str, clock: ManualClock
) -> None:
    """While its process looks at it; another create would be stuck by then."""
    template = three_a_task(server, pool=replace(POOL, min_size=3))
    with world_of(server, store_url, clock, template) as world:
        server.hold_imports()
        assert world.daemon.refill.run_once() == 1
        poll_until(lambda: clock.monotonic() > 2 * stuck_after(10.0))
        world.daemon.run("reconcile")
        assert world.levels() == {"creating": 3}
        server.release_imports()
        assert world.daemon.refill.drain(PATIENCE)
        assert world.levels() == {"warm": 3}


def test_a_lost_create_that_happens_late_is_no_warm_task(
    server: SimulatorServer, store_url: str, clock: ManualClock
) -> None:
    """Its row was given up; an empty task of the name of a carrier is deleted, not adopted."""
    with world_of(server, store_url, clock, three_a_task(server)) as world:
        template = world.daemon.process.templates["camera"]
        pooled = world.store.begin_create(
            "late", "camera", template.fingerprint, slots=3, limit=None, owner="me", now=clock.now()
        )
        assert pooled is not None and world.store.fail_create("late", reason="lost", now=0.0)
        world.daemon.run("delete")
        task_id = world.cvat.create_task(template.create_fields, pooled.name)
        task = server.state.tasks[task_id]
        server.call(lambda: setattr(task, "created", task.created - timedelta(hours=1)))
        world.later(HOUR, "reconcile")
        assert world.cvat.task(task_id) is None and not warm_slots(world.daemon.process)


# --- Looked after ---------------------------------------------------------------------------------


def test_files_stay_for_a_day_after_their_task_is_gone(world: World) -> None:
    gone, other = world.carriers
    assert world.cvat.delete_task(gone.task_id or 0)
    world.later(HOUR)
    assert warm_slots(world.daemon.process) == 3, "its slots are handed out no more"
    for seconds in (HOUR, DAY - 3 * HOUR):
        world.later(seconds)
        assert len(files(world.server.share, gone)) == 3
        assert world.store.carrier(gone.id) is not None
    world.later(2 * HOUR)
    assert not files(world.server.share, gone) and world.store.carrier(gone.id) is None
    assert len(files(world.server.share, other)) == 3


def test_a_task_that_is_seen_again_in_between_keeps_its_files(world: World) -> None:
    """As with a server that was restored meanwhile: the day begins anew."""
    carrier = world.carriers[0]
    tasks, task_id = world.server.state.tasks, carrier.task_id or 0
    row = world.server.call(lambda: tasks.pop(task_id))
    world.later(HOUR)
    world.server.call(lambda: tasks.update({task_id: row}))
    world.later(DAY)
    world.server.call(lambda: tasks.pop(task_id))
    world.later(DAY)
    assert len(files(world.server.share, carrier)) == 3
    world.later(DAY)
    assert not files(world.server.share, carrier)


@pytest.mark.parametrize("wrong", ["organization", "server"])
def test_what_another_place_says_deletes_no_file(
    server: SimulatorServer, store_url: str, clock: ManualClock, wrong: str
) -> None:
    """Where the tasks were made in an organization, and the listing of another one is empty; or a
    server that has none of them."""
    template = three_a_task(server)
    with world_of(server, store_url, clock, template, organization="lab") as world:
        assert world.daemon.fill() == 2
    with slot_server() as other:
        elsewhere = server if wrong == "organization" else other
        with world_of(elsewhere, store_url, clock, template) as world:
            for _ in range(3):
                world.later(DAY + HOUR)
    assert len(files(server.share)) == 6


def test_a_task_that_was_moved_to_another_organization_keeps_its_files(world: World) -> None:
    """Our listing lacks it, and it is there all the same."""
    moved, server = world.carriers[0], world.server
    task, lab = server.state.tasks[moved.task_id or 0], server.state.organizations
    server.call(lambda: setattr(task, "organization", next(iter(lab.values()))))
    for _ in range(3):
        world.later(DAY + HOUR)
    assert len(files(server.share, moved)) == 3
    assert warm_slots(world.daemon.process) == 3


def test_slots_of_a_carrier_that_people_made_theirs(world: World) -> None:
    """Its warm slots are retired, and it is left, with its jobs as they are."""
    carrier = world.carriers[0]
    world.fill_slot()
    world.rename(carrier, "my night drive")
    world.later(HOUR)
    assert world.states(carrier) == ["filled", "retired", "retired"]
    world.later(HOUR, "carriers", "delete")
    assert world.is_there(carrier) and len(files(world.server.share, carrier)) == 3
    assert [world.job(slot.job_id)["state"] for slot in world.store.slots_of(carrier.id)] == [
        "new"
    ] * 3
    assert not world.store.retired_slots(limit=9)


def test_a_carrier_that_people_made_theirs_before_any_slot_was_filled(world: World) -> None:
    carrier = world.carriers[0]
    world.rename(carrier, "mine")
    world.later(HOUR)
    world.later(HOUR, "carriers", "delete")
    assert world.is_there(carrier) and len(files(world.server.share, carrier)) == 3
    assert warm_slots(world.daemon.process) == 3


def test_a_carrier_whose_files_are_gone(world: World) -> None:
    carrier = world.carriers[0]
    for each in (world.server.share / FOLDER).glob(f"*/{carrier.id}/*"):
        each.unlink()
    world.later(HOUR)
    assert warm_slots(world.daemon.process) == 3


# --- Shown to people ------------------------------------------------------------------------------


def test_status_and_metrics_say_how_full_the_carriers_are(world: World) -> None:
    """As long as they have slots to give; those that are full are none of the pool's levels."""
    pool = world.daemon.pool
    for _ in range(4):
        world.fill_slot()
    pool.acquire("camera")
    (row,) = pool.status().templates
    assert (row.carriers, row.warm, row.leased) == (1, 1, 1)
    assert (row.slots_filled, row.slots_retired) == (1, 0)
    pool.drain("camera")
    status = pool.status()
    (row,) = status.templates
    assert (row.carriers, row.warm, row.slots_retired) == (1, 0, 1)
    words = notes(status, now=world.daemon.clock.now())
    assert "camera: slots of 1 task: 0 warm, 1 leased, 1 filled, 1 retired" in words
    with world.daemon.api as api:
        scraped = api.call("GET", "/metrics").body.decode()
    for line in ("carriers", "slots_filled", "slots_retired"):
        assert f'cvat_pool_{line}{{template="camera"}} 1.0' in scraped


def test_a_carrier_that_is_created_counts_as_its_slots(
    server: SimulatorServer, store_url: str, clock: ManualClock
) -> None:
    with world_of(server, store_url, clock, three_a_task(server)) as world:
        server.hold_imports()
        world.daemon.refill.run_once()
        (row,) = world.daemon.pool.status().templates
        assert (row.creating, row.carriers) == (3, 0)
        server.release_imports()
        assert world.daemon.refill.drain(PATIENCE)


def test_the_command_looks_at_carriers_too(world: World, tmp_path: Path) -> None:
    """And finds what is wrong with them, at first without a change."""
    slots = world.daemon.process.templates["camera"].slots
    assert slots is not None
    (tmp_path / "config.toml").write_text(
        f'[cvat]\nurl = "{world.server.url}"\n'
        f'[templates.camera]\nlabels = [{{ name = "car" }}]\n{slot_table(slots)}\n'
    )

    def reconcile(*options: str) -> Any:
        result = cvat_pool(
            "reconcile",
            "--json",
            *options,
            cwd=tmp_path,
            CVAT_ACCESS_TOKEN=world.server.access_token,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    found = reconcile("--dry-run")
    assert (found["verified"], found["findings"]) == (6, [])
    world.fill_slot()
    world.rename(world.carriers[0], "mine")
    found = reconcile("--dry-run")
    assert (found["verified"], found["done"]) == (3, None)
    assert [each["action"] for each in found["findings"]] == ["disown"]
    assert warm_slots(world.daemon.process) == 5
    assert reconcile()["done"]["slots retired"] == 2
    assert warm_slots(world.daemon.process) == 3
    assert world.is_there(world.carriers[0])


# --- Retired --------------------------------------------------------------------------------------


def test_retired_slots_of_a_carrier_that_is_in_use_are_out_of_the_way(world: World) -> None:
    """Their jobs count as done, nobody's, and stay hidden; the other carrier goes."""
    used, unused = world.carriers
    world.fill_slot()
    world.daemon.pool.drain("camera")
    world.later(60.0, "retirement", "carriers", "delete")
    assert world.states(used) == ["filled", "retired", "retired"]
    jobs = [world.job(slot.job_id) for slot in world.store.slots_of(used.id)]
    assert [(job["stage"], job["state"], job["assignee"]) for job in jobs] == [
        ("annotation", "new", None),
        ("acceptance", "completed", None),
        ("acceptance", "completed", None),
    ]
    assert {1, 2} <= world.cvat.hidden_frames(used.task_id or 0)
    assert world.is_there(used) and not world.is_there(unused)
    assert world.levels() == {}
    world.later(HOUR)
    world.later(DAY)
    assert len(files(world.server.share, used)) == 3
    assert not files(world.server.share, unused)


def test_slots_that_grow_old_go_with_their_carrier(world: World) -> None:
    world.later(POOL.max_age, "retirement", "carriers", "delete")
    assert len(world.http.listed("tasks")) == 1, "one at a time, since min_size are to be there"
    assert world.levels() == {"warm": 3}


def test_after_an_unclean_stop_slots_wait_for_a_look_at_their_carriers(world: World) -> None:
    store, clock = world.store, world.daemon.clock
    gone, there = world.carriers
    store.quarantine_warm(until=clock.now() + DAY)
    assert world.cvat.delete_task(gone.task_id or 0)
    opened = world.daemon.pool
    world.later(HOUR)
    lease = opened.acquire("camera")
    assert lease.outcome is Outcome.HIT and lease.task_id == there.task_id
