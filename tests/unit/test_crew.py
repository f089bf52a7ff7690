"""The crew: bounded, fair between kinds, and out of the way when it has to end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pool.requests.worker_pool import Crew

PATIENCE = 10.0


class Held:
    """Jobs that say that they have begun, and end when the test lets them."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._news = threading.Condition()
        self._free: set[str] = set()

    def job(self, name: str) -> Callable[[], None]:
        return partial(self._run, name)

    def _run(self, name: str) -> None:
        with self._news:
            self.begun.append(name)
            self._news.notify_all()
            assert self._news.wait_for(lambda: name in self._free or "*" in self._free, PATIENCE)

    def release(self, name: str = "*") -> None:
        with self._news:
            self._free.add(name)
            self._news.notify_all()

    def wait_for(self, *names: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: set(names) <= set(self.begun), PATIENCE), self.begun


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.release()


def test_jobs_run_at_the_same_time_up_to_the_size(held: Held) -> None:
    crew = Crew(4, name="t")
    for number in range(6):
        crew.put(f"kind {number}", held.job(str(number)))
    held.wait_for("0", "1", "2", "3")
    assert len(held.begun) == 4
    assert crew.room("other") == 0
    assert not crew.drain(0.0)
    held.release()
    assert crew.drain(PATIENCE)
    assert held.begun[4:] == ["4", "5"]
    assert crew.room("other") == 3


def test_one_kind_leaves_room_for_the_others(held: Held) -> None:
    crew = Crew(4, name="t")
    assert crew.room("slow") == 3
    for number in range(9):
        crew.put("slow", held.job(f"slow {number}"))
    held.wait_for("slow 0", "slow 1", "slow 2")
    assert crew.room("slow") == 0
    crew.put("quick", held.job("quick"))
    held.wait_for("quick")
    assert "slow 3" not in held.begun


def test_kinds_take_turns(held: Held) -> None:
    crew = Crew(1, name="t")
    crew.put("a", held.job("first"))
    held.wait_for("first")
    for name in ("a1", "a2", "b1", "b2"):
        crew.put(name[0], held.job(name))
    held.release()
    assert crew.drain(PATIENCE)
    assert held.begun == ["first", "a1", "b1", "a2", "b2"]


def test_a_job_that_raises_costs_no_thread() -> None:
    crew, done = Crew(1, name="t"), []
    for _ in range(3):
        crew.put("a", lambda: 1 / 0)
    crew.put("a", lambda: done.append(1))
    assert crew.drain(PATIENCE)
    assert done == [1]


def test_threads_are_made_as_they_are_needed(held: Held) -> None:
    before = threading.active_count()
    crew = Crew(8, name="t")
    assert threading.active_count() == before
    for name in "ab":
        crew.put(name, held.job(name))
    held.wait_for("a", "b")
    assert threading.active_count() == before + 2
    held.release()
    assert crew.stop(PATIENCE)


def test_stopping_begins_nothing_more(held: Held) -> None:
    crew = Crew(1, name="t")
    crew.put("a", held.job("begun"))
    held.wait_for("begun")
    crew.put("a", held.job("put before"))
    assert not crew.stop(0.0), "one still runs"
    crew.put("a", held.job("put afterwards"))
    held.release()
    assert crew.drain(PATIENCE)
    assert held.begun == ["begun"]
    assert crew.room("a") == 0
