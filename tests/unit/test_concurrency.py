"""How many imports at a time: what follows from imports that begin at once, and that wait."""

from __future__ import annotations

import random

import pytest

from pool.requests.concurrency import FIRST, LEAST, MOST, Adaptation, adapted


def after(now: Adaptation, waited: str) -> Adaptation:
    """What follows from imports of which some waited ("w") and some began at once (".")."""
    for each in waited:
        now = adapted(now, waited=each == "w")
    return now


def test_it_goes_up_while_imports_begin_at_once() -> None:
    assert after(Adaptation(), "." * 5).value == FIRST
    assert after(Adaptation(), "." * 6).value == FIRST + 1
    assert after(Adaptation(), "." * 1000).value == MOST


def test_it_goes_down_while_imports_wait() -> None:
    assert after(Adaptation(value=5), "w").value == 5
    assert after(Adaptation(value=5), "ww").value == 4
    assert after(Adaptation(value=5), "w.w.w.w").value == 4
    assert after(Adaptation(value=5), "w" * 1000).value == LEAST


def test_one_that_waits_now_and_then_changes_nothing() -> None:
    assert after(Adaptation(value=5), "w..." * 100).value == 5


def test_what_was_too_many_is_tried_again_only_after_a_while() -> None:
    now = after(Adaptation(value=5), "ww")
    assert after(now, "." * 39).value == 4
    assert after(now, "." * 40).value == 5


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_it_settles_at_the_workers_of_the_server(workers: int) -> None:
    """Where there is a worker too few, most imports that took the last place wait; where there are
    enough, hardly any."""
    chance = random.Random(workers)
    now, seen = Adaptation(), []
    for _ in range(600):
        waits = chance.random() < (0.7 if now.value > workers else 0.05)
        now = adapted(now, waited=waits)
        seen.append(now.value)
    settled = seen[200:]
    assert max(settled) <= workers + 2
    assert sum(settled) / len(settled) == pytest.approx(workers, abs=0.5)
