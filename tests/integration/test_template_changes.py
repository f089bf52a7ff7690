"""A template changes while its pool is full: what is handed out, made and retired, step by step."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import CONTENT, Start, Stepped, caller

from pool import TaskPool
from pool.config.settings import CvatSettings, PoolSettings, Template
from pool.errors import CvatUnreachable, PoolEmpty
from pool.model import LeaseState, Outcome, PooledTask, RequestState, TaskState

FILES = [("a.jpg", CONTENT)]
LABELS = {"v1": {"name": "car"}, "v2": {"name": "tram"}, "v3": {"name": "ship"}}


class World:
    """A daemon whose pool is of three, and the versions of its template."""

    def __init__(self, daemon: Stepped) -> None:
        self.daemon, self.store, self.pool = daemon, daemon.store, daemon.pool
        self.cvat: ScriptedCvat = daemon.cvat
        self.clock: ManualClock = daemon.clock

    @property
    def template(self) -> Template:
        return self.daemon.process.templates["scenes"]

    def put_in_force(self, **templates: Template) -> None:
        """As a reload does, before any service has run."""
        self.daemon.process.templates.replace(templates)

    def change(self, labels: str | None = None, **pool: Any) -> Template:
        """Put a changed template in force, as a reload does."""
        changed = replace(self.template, pool=replace(self.template.pool, **pool))
        if labels is not None:
            changed = replace(changed, labels=(LABELS[labels],))
        self.put_in_force(scenes=changed)
        self.daemon.run("retirement")
        return changed

    def create(self, count: int = 1) -> None:
        """Let this many tasks become warm, one after the other."""
        for _ in range(count):
            assert self.daemon.one_round() == 1

    def count(self, state: TaskState = TaskState.WARM) -> dict[str, int]:
        """How many tasks are in a state, by the version of the template that made them."""
        tasks = self.store.tasks(template="scenes", states=[state])
        return dict(Counter(self.version(task) for task in tasks))

    def version(self, task: PooledTask) -> str:
        for version, label in LABELS.items():
            if task.fingerprint == replace(self.template, labels=(label,)).fingerprint:
                return version
        return "?"

    def take(self, pool: TaskPool | None = None) -> tuple[str, Outcome]:
        """Hand out one task: the version that made it, and how it came."""
        lease = (pool or self.pool).acquire("scenes")
        return self.version(self.task(lease.task_id)), lease.outcome

    def task(self, task_id: int | None) -> PooledTask:
        (task,) = (each for each in self.store.tasks() if each.task_id == task_id)
        return task


@pytest.fixture
def world(start: Start, template: Template) -> World:
    """Three warm tasks of the first version, and nothing else."""
    pool = replace(template.pool, on_change="replenish", create_concurrency=1)
    world = World(start(replace(template, pool=pool)))
    world.create(3)
    assert world.count() == {"v1": 3}
    return world


# --- Recreate -------------------------------------------------------------------------------------


def test_recreate_retires_at_once_and_hands_out_nothing_old(world: World) -> None:
    changed = replace(world.template, labels=(LABELS["v2"],))
    changed = replace(changed, pool=replace(changed.pool, on_change="recreate"))
    world.put_in_force(scenes=changed)
    assert world.take() == ("v2", Outcome.COLD), "even before recycling has run"
    world.daemon.run("retirement")
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
        world.daemon.run("retirement")
        seen.append((world.count(), world.count(TaskState.RETIRED)))
    assert seen == [
        ({"v1": 2, "v2": 1}, {"v1": 1}),
        ({"v1": 1, "v2": 2}, {"v1": 2}),
        ({"v2": 3}, {"v1": 3}),
    ]
    assert world.daemon.fill() == 0
    reasons = {task.reason for task in world.store.tasks(states=[TaskState.RETIRED])}
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
        live = world.store.tasks(states=[TaskState.WARM, TaskState.CREATING])
        most_live = max(most_live, len(live))
        most_there = max(most_there, len(world.cvat.tasks_there))

    world.cvat.before = look
    world.daemon.fill()
    world.cvat.before = lambda _: None
    target, creating = world.template.pool.min_size, 2
    assert target < most_live <= target + creating
    assert most_there <= 2 * target + creating, "with those that are still to be deleted"
    assert world.daemon.run("delete").deleted == 3
    assert len(world.cvat.tasks_there) == 3


def test_a_caller_who_takes_a_task_at_the_last_moment_costs_the_pool_no_second_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the count of what is warm and the retiring, while the third fresh one takes its
    place."""
    world.change("v2")
    world.create(2)
    count = world.store.warm_of
    third = world.store.finish_create

    def take_after(*arguments: Any) -> int:
        counted = count(*arguments)
        monkeypatch.setattr(world.store, "warm_of", count)
        assert world.take() == ("v2", Outcome.HIT)
        return counted

    def watch(*arguments: Any, **options: Any) -> bool:
        monkeypatch.setattr(world.store, "warm_of", take_after)
        return third(*arguments, **options)

    monkeypatch.setattr(world.store, "finish_create", watch)
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
    assert world.daemon.fill() == 1
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
        world.daemon.fill()
        world.daemon.run("retirement")
        world.clock.advance(60.0)
    assert world.count() == {"v1": 3}
    assert world.take() == ("v1", Outcome.HIT)
    world.cvat.failures.clear()
    world.clock.advance(60.0)
    world.daemon.fill()
    assert world.count() == {"v2": 3}


def test_what_is_old_serves_while_the_template_is_paused(world: World) -> None:
    world.store.pause("scenes", now=world.clock.now())
    world.change("v2")
    assert world.daemon.fill() == 0
    assert world.take() == ("v1", Outcome.HIT)
    assert world.count() == {"v1": 2}


def test_a_pool_that_is_to_be_empty_keeps_nothing_old(world: World) -> None:
    """Nothing will be created in its place, so it would stay for ever."""
    world.change("v2", min_size=0)
    world.daemon.refill.run_once()
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
    world.daemon.fill()
    assert world.count() == {"v3": 3}


def test_those_beyond_max_size_are_old_ones_first(world: World) -> None:
    world.change("v2")
    world.create()
    world.change("v1", min_size=1, max_size=2)
    assert world.count() == {"v1": 2}, "although these have been warm for longer"


def test_the_foreground_comes_first_as_long_as_what_is_old_suffices(world: World) -> None:
    world.change("v2", min_size=10)
    world.pool.submit("scenes", FILES)
    assert world.count() == {"v1": 2}
    world.create()
    assert world.count() == {"v1": 2, "v2": 1}, "at two warm ones it is about to run dry"
    assert world.daemon.refill.run_once() == 0
    assert world.daemon.refill.stepped_back


@pytest.mark.parametrize(
    "server", [CvatSettings(url="http://elsewhere:8080"), CvatSettings(organization="lab")]
)
def test_what_was_made_elsewhere_is_never_handed_out(world: World, server: CvatSettings) -> None:
    moved = replace(world.template, server=server)
    assert moved.origin != world.template.origin
    world.put_in_force(scenes=moved)
    assert world.pool.acquire("scenes").outcome is Outcome.COLD
    world.daemon.run("retirement")
    assert world.count() == {}


def test_a_waiting_caller_gets_what_is_old(world: World) -> None:
    """It was given back while the caller waited; a fresh one is not to be had."""
    first, *_ = [world.pool.acquire("scenes") for _ in range(3)]
    world.change("v2", on_empty="wait", max_wait=5.0)
    elapse = world.clock.wait

    def give_back(condition: threading.Condition, seconds: float | None) -> bool:
        world.clock.wait = elapse  # type: ignore[method-assign]
        first.release()
        return elapse(condition, seconds)

    world.clock.wait = give_back  # type: ignore[method-assign]
    assert world.take() == ("v1", Outcome.WAIT)


# --- A template that is taken out -----------------------------------------------------------------


def test_a_template_taken_out_drains_and_what_callers_have_is_followed_to_its_end(
    world: World,
) -> None:
    daemon, cvat = world.daemon, world.cvat
    lease = world.pool.acquire("scenes", ttl=10.0)

    def take_out(operation: str) -> None:
        if operation == "upload":
            world.put_in_force()

    cvat.before = take_out
    request = world.pool.submit("scenes", FILES)
    daemon.run("retirement")
    assert daemon.fill() == 0
    states = {task.task_id: task.state.value for task in world.store.tasks()}
    assert (states.pop(lease.task_id), states.pop(request.task_id or 0)) == ("leased", "importing")
    assert list(states.values()) == ["retired"]
    daemon.import_all()
    assert request.state is RequestState.READY
    daemon.advance(11.0)
    assert daemon.run("lease_expiry") == 1
    daemon.run("retirement")
    assert world.task(lease.task_id).state is TaskState.RETIRED


# --- Processes with an older configuration --------------------------------------------------------


@contextmanager
def outdated(world: World, **pool: Any) -> Iterator[TaskPool]:
    """A process that knows the first version only, beside a daemon with the second one."""
    first = replace(world.template, labels=(LABELS["v1"],))
    if pool:
        first = replace(first, pool=PoolSettings(**pool))
    settings = replace(world.daemon.process.settings, templates={"scenes": first})
    with caller(settings, world.store, world.cvat, world.clock) as opened:
        yield opened


def test_an_outdated_process_that_may_gets_what_there_is(world: World) -> None:
    with outdated(world) as other:
        world.change("v2")
        world.daemon.fill()
        assert world.take(other) == ("v2", Outcome.HIT)


def test_an_outdated_process_that_may_not_has_its_own_made(world: World) -> None:
    world.change("v2", on_change="recreate")
    world.daemon.fill()
    before = world.clock.monotonic()
    with outdated(world, min_size=3, max_wait=2.0) as other:
        assert world.take(other) == ("v1", Outcome.COLD)
    assert world.clock.monotonic() - before == pytest.approx(2.0)
    assert world.daemon.fill() == 0, "its waiting has left no more tasks behind"


def test_an_outdated_process_that_only_waits_hears_why_it_gets_none(world: World) -> None:
    world.change("v2", on_change="recreate")
    world.daemon.fill()
    with (
        outdated(world, on_empty="wait", max_wait=2.0) as other,
        pytest.raises(PoolEmpty, match="another version of the template"),
    ):
        other.acquire("scenes")
    assert world.store.leases([LeaseState.WAITING]) == []
