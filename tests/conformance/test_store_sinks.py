"""How far each sink has got, and which events are pruned meanwhile."""

from __future__ import annotations

import pytest

from conformance.store_scene import NOW, Scene
from pool.model import SinkRecord
from pool.store import Store

LATER = NOW + 1000


def happen(scene: Scene, count: int, *, now: float = NOW) -> list[int]:
    """So many events; answers their ids."""
    before = scene.store.last_event_id()
    for _ in range(count):
        scene.warm(now=now)
    return [event.id for event in scene.store.events_after(before, limit=count)]


def remaining(store: Store) -> list[int]:
    return [event.id for event in store.events_after(0, limit=1000)]


# --- Sinks ----------------------------------------------------------------------------------------


def test_a_new_sink_begins_with_what_comes_next(scene: Scene) -> None:
    happen(scene, 2)
    newest = scene.store.last_event_id()
    assert scene.store.open_sinks(["a"]) == {"a": SinkRecord(name="a", cursor=newest)}
    happen(scene, 1)
    assert scene.store.open_sinks(["a"])["a"].cursor == newest, "a known one goes on"
    assert scene.store.open_sinks(["b", "a"])["b"].cursor == newest + 1
    assert set(scene.store.open_sinks(["b"])) == set(scene.store.sinks()) == {"b"}
    assert scene.store.open_sinks([]) == {}


def test_a_sink_never_goes_back(scene: Scene) -> None:
    store = scene.store
    store.open_sinks(["a", "b"])
    happen(scene, 3)
    assert store.pass_events("a", up_to=2, delivered=1)
    assert not store.pass_events("a", up_to=2, delivered=1)
    assert not store.pass_events("a", up_to=1, delivered=1)
    assert not store.pass_events("unknown", up_to=3)
    assert store.pass_events("a", up_to=3, given_up=1)
    assert store.sinks() == {
        "a": SinkRecord(name="a", cursor=3, delivered=1, given_up=1),
        "b": SinkRecord(name="b", cursor=0),
    }


def test_a_failure_lasts_until_something_is_delivered(scene: Scene) -> None:
    store = scene.store
    store.open_sinks(["a"])
    happen(scene, 3)
    assert store.fail_sink("a", now=NOW)
    assert not store.fail_sink("a", now=LATER)
    store.pass_events("a", up_to=1)
    store.pass_events("a", up_to=2, given_up=1)
    assert store.sinks()["a"].failing_since == NOW
    store.pass_events("a", up_to=3, delivered=1)
    assert store.sinks()["a"].failing_since is None
    assert not store.fail_sink("unknown", now=NOW)


# --- Forgetting -----------------------------------------------------------------------------------


def test_old_events_are_forgotten_a_few_at_a_time(scene: Scene) -> None:
    happen(scene, 5)
    recent = happen(scene, 2, now=LATER)
    prune = [
        scene.store.prune_events(passed_before=LATER, before=0.0, keep=100, limit=2)
        for _ in range(4)
    ]
    assert prune == [2, 2, 1, 0]
    assert remaining(scene.store) == recent


def test_the_newest_event_always_stays_so_that_no_id_is_given_twice(scene: Scene) -> None:
    *_, newest = happen(scene, 3)
    assert scene.store.prune_events(passed_before=LATER, before=0.0, keep=0, limit=9) == 2
    assert scene.store.prune_events(passed_before=LATER, before=0.0, keep=0, limit=9) == 0
    assert (remaining(scene.store), scene.store.last_event_id()) == ([newest], newest)
    assert happen(scene, 1) == [newest + 1]


def test_events_are_kept_until_every_sink_was_told(scene: Scene) -> None:
    store = scene.store
    store.open_sinks(["a", "b"])
    happen(scene, 4)
    store.pass_events("a", up_to=4)
    store.pass_events("b", up_to=2)
    assert store.prune_events(passed_before=LATER, before=0.0, keep=100, limit=9) == 2
    assert remaining(store) == [3, 4]
    store.open_sinks(["a"])
    assert store.prune_events(passed_before=LATER, before=0.0, keep=100, limit=9) == 1, (
        "b is no more"
    )


def test_no_sink_keeps_events_for_ever(scene: Scene) -> None:
    store = scene.store
    store.open_sinks(["dead"])
    happen(scene, 2)
    recent = happen(scene, 2, now=LATER)
    assert store.prune_events(passed_before=LATER, before=LATER, keep=100, limit=9) == 2
    assert remaining(store) == recent


def test_no_sink_keeps_more_than_so_many(scene: Scene) -> None:
    store = scene.store
    store.open_sinks(["dead"])
    happen(scene, 6)
    assert store.prune_events(passed_before=0.0, before=0.0, keep=2, limit=9) == 4
    assert remaining(store) == [5, 6]


@pytest.mark.parametrize("limit", [0, -1])
def test_nothing_is_forgotten_when_nothing_is_to_be(scene: Scene, limit: int) -> None:
    happen(scene, 2)
    assert scene.store.prune_events(passed_before=LATER, before=0.0, keep=0, limit=limit) == 0
