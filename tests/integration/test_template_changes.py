"""A template changes while its pool is full: what is handed out, made and retired, step by step."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.services import fill, one_round, open_lease, refill_of

from pool.config.settings import CvatSettings, PoolSettings, Template
from pool.config.source import build_upload
from pool.errors import CvatUnreachable, PoolEmpty
from pool.maintenance.deletion import Deletion, delete_all
from pool.maintenance.lease_expiry import LeaseExpiry
from pool.maintenance.refill import Refill
from pool.maintenance.retirement import Retirement
from pool.model import Handout, LeaseState, Outcome, PooledTask, RequestState, TaskState
from pool.process import Process
from pool.store import NewRequest

LABELS = {"v1": {"name": "car"}, "v2": {"name": "tram"}, "v3": {"name": "ship"}}


@dataclass
class World:
    """One pool of three, its template, and the services, each run by hand."""

    process: Process
    cvat: ScriptedCvat
    clock: ManualClock
    refill: Refill

    def __post_init__(self) -> None:
        self.retirement = Retirement(self.process.store, self.process.templates, clock=self.clock)

    @property
    def template(self) -> Template:
        return self.process.templates["scenes"]

    def change(self, labels: str | None = None, **pool: Any) -> Template:
        """Put a changed template in force, as a reload does."""
        changed = replace(self.template, pool=replace(self.template.pool, **pool))
        if labels is not None:
            changed = replace(changed, labels=(LABELS[labels],))
        self.process.templates.replace({"scenes": changed})
        self.retirement.run_once()
        return changed

    def create(self, count: int = 1) -> None:
        """Let this many tasks become warm, one after the other."""
        for _ in range(count):
            assert one_round(self.refill, self.cvat) == 1

    def count(self, state: TaskState = TaskState.WARM) -> dict[str, int]:
        """How many tasks are in a state, by the version of the template that made them."""
        tasks = self.process.store.tasks(template="scenes", states=[state])
        return dict(Counter(self.version(task) for task in tasks))

    def version(self, task: PooledTask | None) -> str:
        assert task is not None
        for version, label in LABELS.items():
            if task.fingerprint == replace(self.template, labels=(label,)).fingerprint:
                return version
        return "?"

    def take(self) -> tuple[str, Outcome | None]:
        """Hand out one task: the version that made it, and how it came."""
        opened = open_lease(self.process, self.template)
        return self.version(opened.task), opened.lease.outcome


@pytest.fixture
def world(engine: Process, cvat: ScriptedCvat, clock: ManualClock) -> World:
    """Three warm tasks of the first version, and nothing else."""
    world = World(engine, cvat, clock, refill_of(engine))
    world.change(on_change="replenish", create_concurrency=1)
    world.create(3)
    assert world.count() == {"v1": 3}
    return world


# --- Recreate -------------------------------------------------------------------------------------


def test_recreate_retires_at_once_and_hands_out_nothing_old(world: World) -> None:
    changed = replace(world.template, labels=(LABELS["v2"],))
    changed = replace(changed, pool=replace(changed.pool, on_change="recreate"))
    world.process.templates.replace({"scenes": changed})
    assert world.take() == ("v2", Outcome.COLD), "even before recycling has run"
    world.retirement.run_once()
    assert world.count() == {}
    assert world.count(TaskState.RETIRED) == {"v1": 3}


# --- Replenish ------------------------------------------------------------------------------------


def test_replenish_hands_out_what_is_old_only_while_nothing_fresh_is_warm(world: World) -> None:
    world.change("v2")
    assert world.take() == ("v1", Outcome.HIT)
    world.create()
    assert world.take() == ("v2", Outcome.HIT)
    assert world.take() == ("v1", Outcome.HIT)


def test_replenish_retires_one_for_each_that_takes_its_place(world: World) -> None:
    world.change("v2")
    assert world.count(TaskState.RETIRED) == {}
    seen = []
    for _ in range(3):
        world.create()
        world.retirement.run_once()
        seen.append((world.count(), world.count(TaskState.RETIRED)))
    assert seen == [
        ({"v1": 2, "v2": 1}, {"v1": 1}),
        ({"v1": 1, "v2": 2}, {"v1": 2}),
        ({"v2": 3}, {"v1": 3}),
    ]
    assert fill(world.refill) == 0
    reasons = {task.reason for task in world.process.store.tasks(states=[TaskState.RETIRED])}
    assert reasons == {"the template has changed"}


def test_replenish_retires_nothing_from_a_pool_that_is_below_its_size(world: World) -> None:
    for _ in range(2):
        world.take()
    world.change("v2")
    world.create(2)
    assert world.count() == {"v1": 1, "v2": 2}
    world.create()
    assert world.count() == {"v2": 3}


def test_replenish_adds_no_more_tasks_than_are_being_created(world: World) -> None:
    world.change("v2", create_concurrency=2)
    most_live = most_there = 0

    def look(operation: str) -> None:
        nonlocal most_live, most_there
        live = world.process.store.tasks(states=[TaskState.WARM, TaskState.CREATING])
        most_live = max(most_live, len(live))
        most_there = max(most_there, len(world.cvat.tasks_there))

    world.cvat.before = look
    fill(world.refill)
    world.cvat.before = lambda _: None
    target, creating = world.template.pool.min_size, 2
    assert target < most_live <= target + creating
    assert most_there <= 2 * target + creating, "with those that are still to be deleted"
    deletion = Deletion(world.process.store, cast(Any, world.cvat), owner="me", clock=world.clock)
    assert delete_all(deletion).deleted == 3
    assert len(world.cvat.tasks_there) == 3


def test_a_caller_who_takes_a_task_at_the_last_moment_costs_the_pool_no_second_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the count of what is warm and the retiring, while the third fresh one takes its
    place."""
    world.change("v2")
    world.create(2)
    count = world.process.store.warm_of
    third = world.process.store.finish_create

    def take_after(*arguments: Any) -> int:
        counted = count(*arguments)
        monkeypatch.setattr(world.process.store, "warm_of", count)
        assert world.take() == ("v2", Outcome.HIT)
        return counted

    def watch(*arguments: Any, **options: Any) -> bool:
        monkeypatch.setattr(world.process.store, "warm_of", take_after)
        return third(*arguments, **options)

    monkeypatch.setattr(world.process.store, "finish_create", watch)
    world.create()
    assert world.count() == {"v1": 1, "v2": 2}


def test_a_second_change_while_the_first_is_being_followed(world: World) -> None:
    world.change("v2")
    world.create()
    world.change("v3")
    assert world.count() == {"v1": 2, "v2": 1}
    assert world.take()[0] == "v2", "the newest of what is old"
    world.create(2)
    assert world.count() == {"v1": 1, "v3": 2}, "the oldest of what is old goes first"
    world.create()
    assert world.count() == {"v3": 3}


def test_a_change_back_finds_its_own_tasks_again(world: World) -> None:
    world.change("v2")
    world.create()
    world.change("v1")
    assert world.count() == {"v1": 2, "v2": 1}
    assert [world.take()[0] for _ in range(3)] == ["v1", "v1", "v2"]


def test_a_change_back_makes_only_what_is_missing(world: World) -> None:
    world.change("v2")
    world.create()
    world.change("v1")
    assert fill(world.refill) == 1
    assert world.count() == {"v1": 3}


def test_a_change_back_to_recreate_retires_what_is_left(world: World) -> None:
    world.change("v2")
    world.create()
    world.change(on_change="recreate")
    assert world.count() == {"v2": 1}
    assert world.count(TaskState.RETIRED) == {"v1": 3}


def test_a_change_to_replenish_brings_nothing_back(world: World) -> None:
    world.change("v2", on_change="recreate")
    world.change(on_change="replenish")
    assert world.take() == ("v2", Outcome.COLD)


def test_what_is_old_serves_while_nothing_can_be_created(world: World) -> None:
    world.cvat.failures["create_task"] = [CvatUnreachable("down") for _ in range(100)]
    world.change("v2")
    for _ in range(60):
        fill(world.refill)
        world.retirement.run_once()
        world.clock.advance(60.0)
    assert world.count() == {"v1": 3}
    assert world.take() == ("v1", Outcome.HIT)
    world.cvat.failures.clear()
    world.clock.advance(60.0)
    fill(world.refill)
    assert world.count() == {"v2": 3}


def test_what_is_old_serves_while_the_template_is_paused(world: World) -> None:
    world.process.store.pause("scenes", now=world.clock.now())
    world.change("v2")
    assert fill(world.refill) == 0
    assert world.take() == ("v1", Outcome.HIT)
    assert world.count() == {"v1": 2}


def test_a_pool_that_is_to_be_empty_keeps_nothing_old(world: World) -> None:
    """Nothing will be created in its place, so it would stay for ever."""
    world.change("v2", min_size=0)
    world.refill.run_once()
    assert world.count() == {}


def test_a_task_that_is_being_made_when_the_template_changes_again_is_old(world: World) -> None:
    world.change("v2")

    def meanwhile(operation: str) -> None:
        if operation == "prepare_upload":
            world.cvat.before = lambda _: None
            world.change("v3")

    world.cvat.before = meanwhile
    world.create()
    assert world.count() == {"v1": 3, "v2": 1}, "it has replaced nothing"
    fill(world.refill)
    assert world.count() == {"v3": 3}


def test_those_beyond_max_size_are_old_ones_first(world: World) -> None:
    world.change("v2")
    world.create()
    world.change("v1", min_size=1, max_size=2)
    assert world.count() == {"v1": 2}, "although these have been warm for longer"


def test_the_foreground_comes_first_as_long_as_what_is_old_suffices(world: World) -> None:
    image = build_upload([("a.jpg", b"some bytes")])
    world.change("v2", min_size=10)
    request = NewRequest(id="r", files=("a.jpg",), size=10)
    opened = open_lease(world.process, world.template, request=request)
    assert opened.task is not None and opened.request is not None
    handout = Handout(lease=opened.lease, task=opened.task, request=opened.request)
    world.process.runner.run(world.template, handout, image)
    assert world.count() == {"v1": 2}
    world.create()
    assert world.count() == {"v1": 2, "v2": 1}, "at two warm ones it is about to run dry"
    assert world.refill.run_once() == 0
    assert world.refill.stepped_back


@pytest.mark.parametrize(
    "server", [CvatSettings(url="http://elsewhere:8080"), CvatSettings(organization="lab")]
)
def test_what_was_made_elsewhere_is_never_handed_out(world: World, server: CvatSettings) -> None:
    moved = replace(world.template, server=server)
    assert moved.origin != world.template.origin
    world.process.templates.replace({"scenes": moved})
    assert open_lease(world.process, moved).lease.outcome is Outcome.COLD
    world.retirement.run_once()
    assert world.count() == {}


def test_a_waiting_caller_gets_what_is_old(world: World) -> None:
    """It was given back while the caller waited; a fresh one is not to be had."""
    opened = [open_lease(world.process, world.template) for _ in range(3)]
    world.change("v2", on_empty="wait", max_wait=5.0)
    world.process.store.acquire_maintenance("daemon", until=world.clock.now() + 99, now=0.0)
    elapse = world.clock.wait

    def give_back(condition: threading.Condition, seconds: float | None) -> bool:
        world.clock.wait = elapse  # type: ignore[method-assign]
        assert world.process.store.give_back(opened[0].lease.id, now=world.clock.now())
        return elapse(condition, seconds)

    world.clock.wait = give_back  # type: ignore[method-assign]
    assert world.take() == ("v1", Outcome.WAIT)


# --- A template that is taken out -----------------------------------------------------------------


def test_a_template_taken_out_drains_and_what_callers_have_is_followed_to_its_end(
    world: World,
) -> None:
    engine, clock, template = world.process, world.clock, world.template
    lease = open_lease(engine, template, ttl=10.0)
    request = NewRequest(id="r", files=("a.jpg",), size=10)
    opened = open_lease(engine, template, request=request)
    assert opened.task is not None and opened.request is not None
    handout = Handout(lease=opened.lease, task=opened.task, request=opened.request)
    image = build_upload([("a.jpg", b"some bytes")])
    engine.templates.replace({})
    engine.runner.run(template, handout, image)
    world.retirement.run_once()
    fill(world.refill)
    states = {task.id: task.state for task in engine.store.tasks()}
    assert sorted(states.values()) == ["importing", "leased", "retired"]
    world.cvat.make_ready(opened.task.task_id or 0)
    while (wait := engine.tracker.seconds_until_due()) is not None:
        clock.advance(wait)
        engine.tracker.run_once()
    served = engine.store.request("r")
    assert served is not None and served.state is RequestState.READY
    clock.advance(11.0)
    expiry = LeaseExpiry(engine.store, engine.cvat(), clock=clock)
    assert expiry.run_once() == 1
    world.retirement.run_once()
    given_back = engine.store.task(lease.lease.pooled_id or "")
    assert given_back is not None and given_back.state is TaskState.RETIRED


# --- Processes with an older configuration --------------------------------------------------------


@pytest.fixture
def outdated(world: World) -> Process:
    """A process that knows the first version only, beside a daemon with the second one."""
    outdated = Process(
        replace(world.process.settings, templates=dict(world.process.templates)),
        store=world.process.store,
        cvat=cast(Any, world.cvat),
        clock=world.clock,
    )
    world.process.store.acquire_maintenance("daemon", until=world.clock.now() + 1e6, now=0.0)
    return outdated


def test_an_outdated_process_that_may_gets_what_there_is(world: World, outdated: Process) -> None:
    world.change("v2")
    fill(world.refill)
    opened = open_lease(outdated, outdated.templates["scenes"])
    assert (world.version(opened.task), opened.lease.outcome) == ("v2", Outcome.HIT)


def test_an_outdated_process_that_may_not_has_its_own_made(world: World, outdated: Process) -> None:
    strict = replace(world.template, pool=PoolSettings(min_size=3, max_wait=2.0))
    world.change("v2", on_change="recreate")
    fill(world.refill)
    before = world.clock.monotonic()
    opened = open_lease(outdated, strict)
    assert (world.version(opened.task), opened.lease.outcome) == ("v1", Outcome.COLD)
    assert world.clock.monotonic() - before == pytest.approx(2.0)
    assert fill(world.refill) == 0, "its waiting has left no more tasks behind"


def test_an_outdated_process_that_only_waits_hears_why_it_gets_none(
    world: World, outdated: Process
) -> None:
    strict = replace(world.template, pool=PoolSettings(on_empty="wait", max_wait=2.0))
    world.change("v2", on_change="recreate")
    fill(world.refill)
    with pytest.raises(PoolEmpty, match="another version of the template"):
        open_lease(outdated, strict)
    assert world.process.store.leases([LeaseState.WAITING]) == []
