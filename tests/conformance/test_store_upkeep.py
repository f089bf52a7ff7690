from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from conformance.store_scene import NOW, TEMPLATE, Scene
from pool.model import ConfigRecord, Hold, LearnedPace
from pool.store import Store

HOLD = Hold(
    template=TEMPLATE, code="cvat", reason="403 \udcff", since=NOW, retry_at=NOW + 9, attempts=2
)


def test_a_hold_is_replaced_by_the_next_and_released(store: Store) -> None:
    store.hold(HOLD)
    [(name, hold)] = store.holds().items()
    assert (name, hold.reason, hold.attempts) == (TEMPLATE, "403 ?", 2)
    later = Hold(template=TEMPLATE, code="x", reason="y", since=NOW + 1, retry_at=None)
    other = Hold(template="other", code="x", reason="y", since=NOW + 1, retry_at=NOW)
    store.hold(later)
    store.hold(other)
    assert store.holds() == {TEMPLATE: later, "other": other}
    assert store.release_hold(TEMPLATE, now=NOW)
    assert not store.release_hold(TEMPLATE, now=NOW)
    assert store.holds() == {"other": other}


def test_one_process_at_a_time_tries_what_is_held(store: Store) -> None:
    assert not store.begin_trial(TEMPLATE, owner="a", now=NOW), "it is not held"
    store.hold(HOLD)
    store.renew_owner("a", until=NOW + 20)
    store.renew_owner("b", until=NOW + 99)
    assert not store.begin_trial(TEMPLATE, owner="a", now=NOW + 8), "it is too early"
    assert store.begin_trial(TEMPLATE, owner="a", now=NOW + 9)
    assert not store.begin_trial(TEMPLATE, owner="b", now=NOW + 9)
    store.end_trial(TEMPLATE, owner="b")
    assert not store.begin_trial(TEMPLATE, owner="b", now=NOW + 20)
    assert store.begin_trial(TEMPLATE, owner="b", now=NOW + 21), "the other one is gone"
    assert not store.begin_trial(TEMPLATE, owner="a", now=NOW + 21)
    store.end_trial(TEMPLATE, owner="b")
    assert store.begin_trial(TEMPLATE, owner="a", now=NOW + 21)
    store.hold(replace(HOLD, retry_at=NOW + 30))
    store.end_trial(TEMPLATE, owner="a")
    assert not store.begin_trial(TEMPLATE, owner="b", now=NOW + 29), "it has failed"
    store.hold(replace(HOLD, retry_at=None))
    assert not store.begin_trial(TEMPLATE, owner="b", now=NOW + 99), "it waits for a person"


def test_the_configuration_is_kept_for_other_processes(
    store: Store, open_another: Callable[[], Store]
) -> None:
    assert store.configuration() is None
    first = ConfigRecord(loaded_at=NOW, templates={TEMPLATE: {"project": 12, "pool": {"a": 1.5}}})
    store.keep_configuration(first)
    other = open_another()
    assert other.configuration() == first
    problems = ("conf.toml:3: grün \udcff", "b")
    rejected = replace(first, rejected_at=NOW + 1, problems=problems, restart=("daemon.port",))
    store.keep_configuration(rejected)
    assert other.configuration() == replace(rejected, problems=("conf.toml:3: grün ?", "b"))


def test_a_pause_lasts_until_it_is_ended(store: Store) -> None:
    store.pause(TEMPLATE, now=NOW)
    store.pause(TEMPLATE, now=NOW + 5)
    assert store.paused() == {TEMPLATE: NOW}
    assert store.resume(TEMPLATE)
    assert not store.resume(TEMPLATE)
    assert store.paused() == {}


def test_learned_paces_are_replaced_by_name(store: Store) -> None:
    assert store.learned_paces() == {}
    first = LearnedPace(first=0.2, imports=1, seen=(0.21,))
    second = LearnedPace(first=1.5, imports=40, seen=(1.4, 1.6))
    store.learn_paces({"a/images/0/8": first, "b/video/0/9": first})
    store.learn_paces({"a/images/0/8": second})
    assert store.learned_paces() == {"a/images/0/8": second, "b/video/0/9": first}


def test_the_last_activity_is_a_beginning_or_an_end(scene: Scene) -> None:
    store = scene.store
    assert store.last_activity() == 0
    opened = scene.queued(now=NOW + 5)
    assert store.last_activity() == NOW + 5
    assert opened.request is not None
    store.cancel_request(opened.request.id, now=NOW + 7)
    assert store.last_activity() == NOW + 7


@pytest.mark.parametrize("rejected_at", [None, NOW + 1])
def test_the_configuration_in_force(store: Store, rejected_at: float | None) -> None:
    assert store.configuration() is None
    kept = ConfigRecord(
        loaded_at=NOW,
        rejected_at=rejected_at,
        problems=("line 3: größe ? is no key",),
        restart=("daemon.port",),
        templates={"streets": {"labels": ["car"]}},
    )
    store.keep_configuration(replace(kept, loaded_at=NOW - 9, restart=()))
    # What is no Unicode, from a file that is no text, can be shown nowhere.
    store.keep_configuration(replace(kept, problems=("line 3: größe \udcff is no key",)))
    assert store.configuration() == kept
