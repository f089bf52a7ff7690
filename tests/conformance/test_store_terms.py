"""One process at a time maintains the store, in terms that never overlap; and who is alive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import pytest
from support.waiting import PATIENCE

from conformance import store_processes as processes
from conformance.store_scene import NOW, Scene
from pool.model import DaemonRecord, TermRecord
from pool.store import Store
from pool.store.checking import check_store

TERM = 10.0
#: Seconds in which a call that does not wait for others would have asked its clock.
A_MOMENT = 0.3


def begin(store: Store, owner: str, *, now: float) -> TermRecord:
    begun = store.begin_term(owner, seconds=TERM, clock=lambda: now)
    assert begun is not None
    return begun


def renew(store: Store, term: TermRecord, *, now: float, deleting: str | None = None) -> bool:
    return store.renew_term(
        term.term, term.owner, seconds=TERM, clock=lambda: now, deleting=deleting
    )


def problems(store: Store) -> tuple[str, ...]:
    return check_store(store.connections).problems


def test_one_maintains_the_store(store: Store, open_another: Callable[[], Store]) -> None:
    other = open_another()
    assert store.maintainer(now=NOW) is None
    first = begin(store, "a", now=NOW)
    assert other.begin_term("b", seconds=TERM, clock=lambda: NOW + 9) is None
    assert other.present_term(now=NOW + 9) == first
    assert renew(store, first, now=NOW + 9), "it stays"
    assert store.begin_term("a", seconds=TERM, clock=lambda: NOW + 18) is None, "it has begun"
    assert other.begin_term("b", seconds=TERM, clock=lambda: NOW + 18) is None


def test_a_term_that_has_ended_is_over_for_good(store: Store) -> None:
    first = begin(store, "a", now=NOW)
    assert store.maintainer(now=NOW + 10) is None
    assert not renew(store, first, now=NOW + 10), "it was not renewed in time"
    second = begin(store, "b", now=NOW + 10)
    assert second.term > first.term
    assert not renew(store, first, now=NOW + 11)
    assert not renew(store, first, now=NOW + 9), "whatever its owner takes for the time"
    assert not store.end_term(first.term, "a", now=NOW + 11)
    assert store.maintainer(now=NOW + 11) == "b"


@pytest.mark.parametrize("owner", ["b", "a"])
def test_what_waited_for_others_to_write_goes_by_the_time_when_they_had(
    store: Store, open_another: Callable[[], Store], owner: str
) -> None:
    """By the time of before, a term that was renewed meanwhile would end too far from now to be
    believed; and one that is renewed twice would end before its owner thinks."""
    other, now = open_another(), NOW
    first = begin(store, "a", now=NOW)
    asked, writes = threading.Event(), store.connections.writing()

    def clock() -> float:
        asked.set()
        return now

    def late() -> bool:
        if owner == "a":
            return other.renew_term(first.term, "a", seconds=TERM, clock=clock)
        return other.begin_term("b", seconds=TERM, clock=clock) is not None

    with ThreadPoolExecutor(1) as thread:
        with writes as db:
            # Only with a statement does it write alone.
            db.rows("SELECT MAX(term) FROM terms")
            answer = thread.submit(late)
            assert not asked.wait(A_MOMENT), "it is asked once none else writes"
            now = NOW + 3 * TERM
            db.changed("UPDATE terms SET until = :until", until=now + TERM - 1)
        assert answer.result(PATIENCE) == (owner == "a")
    present = store.present_term(now=now)
    assert present is not None
    assert (present.term, present.owner) == (first.term, "a")
    assert present.until == now + (TERM if owner == "a" else TERM - 1)
    assert problems(store) == ()


def test_a_term_is_its_owners(store: Store) -> None:
    first = begin(store, "a", now=NOW)
    assert not store.renew_term(first.term, "b", seconds=TERM, clock=lambda: NOW + 1)
    assert not store.end_term(first.term, "b", now=NOW + 1)
    assert store.present_term(now=NOW + 1) == first


def test_the_same_process_begins_another_term_after_one_that_has_lapsed(store: Store) -> None:
    first = begin(store, "a", now=NOW)
    again = begin(store, "a", now=NOW + 12)
    assert (again.term > first.term, again.broken_off) == (True, "a")


def test_a_term_can_be_given_up(store: Store) -> None:
    first = begin(store, "a", now=NOW)
    assert store.end_term(first.term, "a", now=NOW + 1)
    assert not store.end_term(first.term, "a", now=NOW + 1)
    assert not renew(store, first, now=NOW + 1)
    assert store.maintainer(now=NOW + 1) is None
    assert begin(store, "b", now=NOW + 1).term > first.term
    assert problems(store) == ()


def test_of_many_processes_one_maintains(store: Store, store_url: str) -> None:
    won = processes.run(processes.maintain, *[(store_url, owner) for owner in "abcd"])
    assert sorted(won) == [False, False, False, True]
    assert store.maintainer(now=NOW) == "abcd"[won.index(True)]


def test_terms_never_overlap(store: Store, open_another: Callable[[], Store]) -> None:
    """Whenever two of them begin, renew and end."""
    sides = {"a": store, "b": open_another()}
    held: dict[str, TermRecord] = {}
    for step in range(120):
        now, owner = NOW + 3.7 * step, "ab"[step * 7 % 5 % 2]
        side, term = sides[owner], held.get(owner)
        lasting = side.present_term(now=now)
        is_mine = lasting is not None and term is not None and lasting.term == term.term
        if term is not None and step % 9 == 4:
            assert side.end_term(term.term, owner, now=now) == is_mine
        elif term is not None and step % 3:
            assert renew(side, term, now=now) == is_mine
        else:
            begun = side.begin_term(owner, seconds=TERM, clock=partial(float, now))
            assert (begun is not None) == (lasting is None)
            if begun is not None:
                held[owner] = begun
    with store.connections.reading() as db:
        rows = db.rows("SELECT since, until FROM terms ORDER BY term")
    assert len(rows) > 10
    assert all(until <= since for (_, until), (since, _) in pairwise(rows))
    assert problems(store) == ()


def test_a_deletion_has_the_term_in_which_it_was_begun(scene: Scene) -> None:
    store = scene.store
    task, other = scene.warm(), scene.warm()
    first = begin(store, "a", now=NOW)
    assert renew(store, first, now=NOW + 5, deleting=task.id)
    assert not renew(store, first, now=NOW + 30, deleting=other.id)
    assert rows_of_deletions(store) == [(task.id, first.term, NOW + 5)]
    assert problems(store) == ()


def rows_of_deletions(store: Store) -> list[tuple[str, int, float]]:
    with store.connections.reading() as db:
        rows = db.rows("SELECT id, term, deleted_at FROM tasks WHERE term IS NOT NULL")
    return [tuple(row) for row in rows]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE terms SET until = until + 100", "begins before the one before it has ended: {1}"),
        ("UPDATE tasks SET deleted_at = deleted_at + 100 WHERE id = '{2}'", "deleted on the server"
         " outside of its term of maintenance: {2}"),
        ("UPDATE tasks SET term = 77 WHERE id = '{2}'", "outside of its term of maintenance: {2}"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_terms_is_found(scene: Scene, change: str, problem: str) -> None:
    store, task = scene.store, scene.warm()
    first = begin(store, "a", now=NOW)
    renew(store, first, now=NOW, deleting=task.id)
    second = begin(store, "b", now=NOW + 10)
    names = (first.term, second.term, task.id)
    assert problems(store) == ()
    with store.connections.writing() as db:
        db.changed(change.format(*names))
    assert problem.format(*names) in " ".join(problems(store))


def test_terms_are_kept_as_long_as_what_was_deleted_in_them(scene: Scene) -> None:
    store, task = scene.store, scene.warm()
    for step in range(4):
        term = begin(store, "a", now=NOW + step)
        if step == 1:
            renew(store, term, now=NOW + step, deleting=task.id)
        store.end_term(term.term, "a", now=NOW + step + 0.5)
    store.prune(before=NOW + 100, limit=99)
    with store.connections.reading() as db:
        left = [term for (term,) in db.rows("SELECT term FROM terms ORDER BY term")]
    assert len(left) == 2, "that of the deletion, and the latest"
    assert begin(store, "a", now=NOW + 200).term > max(left), "no number is given twice"


def test_who_is_a_daemon_and_where_it_listens(store: Store) -> None:
    store.renew_owner("library", until=NOW + 9, spool="s")
    store.renew_owner("young", until=NOW + 9, daemon=True, url="http://b:1", since=NOW)
    known = DaemonRecord(
        owner="old",
        url="http://a:1",
        version="1.2",
        since=NOW - 5,
        until=NOW + 10,
        spool="s",
        cut_off=True,
    )
    store.renew_owner("old", until=NOW + 9, daemon=True, since=NOW - 5)
    store.renew_owner(
        "old",
        until=NOW + 10,
        daemon=True,
        url="http://a:1",
        version="1.2",
        since=NOW - 5,
        spool="s",
        cut_off=True,
    )
    assert store.daemons(now=NOW)[0] == known
    assert [each.owner for each in store.daemons(now=NOW)] == ["old", "young"]
    assert [each.owner for each in store.daemons(now=NOW + 9)] == ["old"]
    store.forget_owner("old")
    assert store.daemons(now=NOW + 9) == []


def test_which_others_have_had_an_answer_of_the_server(store: Store) -> None:
    def reached(*, since: float, now: float = NOW + 5) -> bool:
        return store.others_reach_server("a", since=since, now=now)

    for owner in "abc":
        store.renew_owner(owner, until=NOW + 10, daemon=owner != "c", now=NOW)
    store.reach_server("a", now=NOW + 2)
    store.reach_server("c", now=NOW + 2)
    assert not reached(since=NOW), "itself, and what is no daemon"
    store.reach_server("b", now=NOW + 2)
    assert reached(since=NOW + 2)
    assert not reached(since=NOW + 3)
    assert not reached(since=NOW, now=NOW + 10), "it is gone"
    store.renew_owner("b", until=NOW + 20, daemon=True, now=NOW + 10)
    assert reached(since=NOW, now=NOW + 10), "it is known of it still"
