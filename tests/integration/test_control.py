"""What people tell a pool: drain, prewarm, and a changed file, with a scripted server."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytest
from support.clock import START, ManualClock
from support.scripted import ScriptedCvat
from support.stepped import Stepped

from pool import Outcome, TaskPool, UnknownTemplate
from pool.config.loader import load
from pool.errors import InputError
from pool.process import LOOK_EVERY
from pool.status import TemplateStatus
from pool.store import Store


def look(daemon: Stepped) -> TemplateStatus:
    return daemon.pool.status().templates[0]


# --- Drain ----------------------------------------------------------------------------------------


def test_draining_takes_all_warm_tasks_out_and_leaves_callers_theirs(empty: Stepped) -> None:
    empty.fill()
    lease = empty.pool.acquire("scenes")
    assert empty.pool.drain("scenes") == 2
    assert empty.pool.drain("scenes") == 0
    status = look(empty)
    assert (status.warm, status.leased, status.deleting) == (0, 1, 2)
    assert status.paused_since is not None
    assert empty.fill() == 0
    assert empty.pool.lease(lease.id).task_id == lease.task_id


def test_what_becomes_warm_while_drained_is_retired(empty: Stepped, cvat: ScriptedCvat) -> None:
    """What was given back, and what was being created when it was told."""
    empty.fill()
    lease = empty.pool.acquire("scenes")

    def meanwhile(operation: str) -> None:
        if operation == "prepare_upload":
            cvat.before = lambda _: None
            empty.pool.drain("scenes")

    cvat.before = meanwhile
    empty.fill()
    empty.pool.release(lease.id)
    assert look(empty).warm == 2
    assert empty.run("retirement") == 2
    assert look(empty).warm == 0


def test_a_drained_template_still_serves_callers(empty: Stepped) -> None:
    empty.fill()
    empty.pool.drain("scenes")
    assert empty.pool.acquire("scenes").outcome is Outcome.COLD


def test_resuming_fills_a_drained_pool_again(empty: Stepped) -> None:
    empty.fill()
    empty.pool.drain("scenes")
    empty.pool.resume("scenes")
    assert empty.fill() == 3
    assert empty.run("retirement") == 0
    assert look(empty).paused_since is None


# --- Prewarm --------------------------------------------------------------------------------------


def test_a_prewarm_makes_the_pool_larger_for_a_while(empty: Stepped, clock: ManualClock) -> None:
    empty.fill()
    empty.pool.prewarm("scenes", 7, duration=60.0)
    status = look(empty)
    assert (status.target, status.prewarm_size) == (7, 7)
    assert status.prewarm_until is not None
    assert status.prewarm_until.timestamp() == START + 60.0
    assert empty.fill() == 4
    clock.advance(60.0)
    status = look(empty)
    assert (status.target, status.prewarm_size, status.prewarm_until) == (3, 0, None)
    empty.pool.acquire("scenes")
    clock.advance(1000.0)
    assert empty.fill() == 0
    assert look(empty).warm == 6, "what is warm stays"


def test_a_prewarm_of_nothing_ends_it(empty: Stepped) -> None:
    empty.pool.prewarm("scenes", 7)
    empty.pool.prewarm("scenes", 0)
    assert look(empty).prewarm_size == 0
    assert empty.fill() == 3
    empty.pool.prewarm("scenes", 0)


def test_a_paused_template_is_not_prewarmed(empty: Stepped) -> None:
    empty.pool.pause("scenes")
    empty.pool.prewarm("scenes", 7)
    assert empty.fill() == 0
    empty.pool.resume("scenes")
    assert empty.fill() == 7


@pytest.mark.parametrize(
    ("count", "duration", "message"),
    [
        (11, 60.0, "a prewarm of 11: 'scenes' has at most 10, max_size"),
        (-1, 60.0, "the count of a prewarm is a whole number from 0"),
        (5, 0.0, "lasts 1ms to 30d, not 0.0 s"),
        (5, -1.0, "lasts 1ms to 30d"),
        (5, math.nan, "lasts 1ms to 30d"),
        (5, math.inf, "lasts 1ms to 30d"),
    ],
)
def test_a_prewarm_that_cannot_be_is_refused(
    empty: Stepped, count: int, duration: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        empty.pool.prewarm("scenes", count, duration=duration)
    assert empty.store.prewarms() == {}


def test_a_prewarm_does_not_last_for_hours_when_the_clock_is_set_back(
    empty: Stepped, clock: ManualClock
) -> None:
    empty.pool.prewarm("scenes", 7, duration=60.0)
    clock.advance(-6 * 3600.0)
    assert look(empty).prewarm_size == 0
    assert empty.fill() == 3


@pytest.mark.parametrize("tell", ["pause", "resume", "drain", "prewarm"])
def test_an_unknown_template_is_told(empty: Stepped, tell: str) -> None:
    arguments = (5,) if tell == "prewarm" else ()
    with pytest.raises(UnknownTemplate, match="there is scenes"):
        getattr(empty.pool, tell)("scene", *arguments)
    assert empty.store.paused() == {}


# --- A changed file -------------------------------------------------------------------------------


def fingerprint_of(store: Store, lease_id: str) -> str:
    """What the task of a lease was made by."""
    lease = store.lease(lease_id)
    assert lease is not None and lease.pooled_id is not None
    task = store.task(lease.pooled_id)
    assert task is not None
    return task.fingerprint


def test_a_process_takes_over_a_changed_file_while_it_is_used(
    pool: TaskPool, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.process.LOOK_EVERY", 0.0)
    before = pool.acquire("scenes")
    config_path.write_text(config_path.read_text().replace('"person"', '"tram"'))
    after = pool.acquire("scenes")
    made_by = [fingerprint_of(pool.store, each.id) for each in (before, after)]
    assert made_by[0] != made_by[1]
    assert made_by[1] == pool.process.templates["scenes"].fingerprint


def test_a_file_that_is_wrong_changes_nothing_for_callers(
    pool: TaskPool, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.process.LOOK_EVERY", 0.0)
    config_path.write_text("[templates.scenes")
    assert pool.acquire("scenes").template == "scenes"


def test_the_status_is_that_of_the_changed_file(
    pool: TaskPool, config_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.process.LOOK_EVERY", 0.0)
    text = config_path.read_text().replace("min_size = 2", "min_size = 9")
    config_path.write_text(text + "[templates.more]\nlabels = []\n")
    assert [(each.name, each.target) for each in pool.status().templates] == [
        ("scenes", 9),
        ("more", 5),
    ]


def test_the_file_is_looked_at_no_more_than_once_a_second(
    config_path: Path, cvat: ScriptedCvat, clock: ManualClock
) -> None:
    pool = TaskPool(load(config_path), cvat=cast(Any, cvat), clock=clock)
    pool.process.follow_file()
    assert pool.status().templates[0].target == 2
    config_path.write_text(config_path.read_text().replace("min_size = 2", "min_size = 9"))
    seen = []
    for _ in range(5):
        seen.append(pool.status().templates[0].target)
        clock.advance(LOOK_EVERY / 4)
    assert seen == [2, 2, 2, 2, 9]
    pool.close()
