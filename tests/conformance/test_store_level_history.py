"""The history of levels: rolled up, and bounded."""

from __future__ import annotations

from pool.model import LevelRecord, LevelSample
from pool.store import STEPS, Store

#: A moment at which steps of all lengths begin.
START = 600.0 * 2_800_000


def keep(store: Store, at: float, **warm: int) -> None:
    """Levels of templates, ``at`` seconds after the start."""
    samples = {
        name: LevelSample(warm=count, creating=2 * count, target=count + 1)
        for name, count in warm.items()
    }
    store.keep_levels(samples, now=START + at)


def kept(store: Store, step: int) -> list[LevelRecord]:
    return list(store.level_history(step, since=0.0, until=START * 2))


def test_a_step_has_the_means_the_least_and_the_last_target(store: Store) -> None:
    for at, warm in ((0.0, 4), (5.0, 1), (9.999, 4), (10.0, 7)):
        keep(store, at, a=warm)
    first, second = kept(store, 10)
    assert first == LevelRecord(at=START, template="a", warm=3.0, least=1, creating=6.0, target=5)
    assert (second.at, second.warm, second.least) == (START + 10, 7.0, 7)
    for step in (60, 600):
        (whole,) = kept(store, step)
        assert (whole.at, whole.warm, whole.creating) == (START, 4.0, 8.0)
        assert (whole.least, whole.target) == (1, 8)


def test_the_oldest_first_of_a_time(store: Store) -> None:
    keep(store, 0.0, b=1, a=2)
    keep(store, 60.0, a=3)
    assert [(each.at - START, each.template) for each in kept(store, 60)] == [
        (0, "a"),
        (0, "b"),
        (60, "a"),
    ]
    (last,) = store.level_history(60, since=START + 1, until=START + 60)
    assert (last.template, last.warm) == ("a", 3)
    assert store.level_history(60, since=START + 1, until=START + 59) == []


def test_what_is_too_old_is_forgotten_also_of_templates_that_are_gone(store: Store) -> None:
    keep(store, 0.0, gone=1)
    for step, kept_for in STEPS.items():
        keep(store, kept_for, a=1)
        assert (kept(store, step)[0].at, kept(store, step)[0].template) == (START, "gone")
        keep(store, kept_for + 2 * step, a=1)
        assert {each.template for each in kept(store, step)} == {"a"}


def test_no_more_than_so_many_rows_stay(store: Store) -> None:
    for at in range(0, 4 * 3600, 10):
        keep(store, float(at), a=1)
    assert len(kept(store, 10)) <= STEPS[10] / 10 + 2
    assert len(kept(store, 60)) == 4 * 60
    assert len(kept(store, 600)) == 4 * 6


def test_a_clock_that_was_set_back_leaves_nothing_to_come(store: Store) -> None:
    keep(store, 7200.0, a=1)
    keep(store, 0.0, a=2)
    for step in STEPS:
        (row,) = kept(store, step)
        assert (row.at, row.warm) == (START, 2)


def test_nothing_is_kept_of_no_template(store: Store) -> None:
    store.keep_levels({}, now=START)
    assert [kept(store, step) for step in STEPS] == [[], [], []]
