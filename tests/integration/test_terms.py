"""Terms of maintenance of daemons on one store, by a clock that is moved by hand."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import IMPORTING, ByHand, Start, Stepped

from pool import Outcome
from pool.errors import StoreError, TermLost
from pool.maintenance.term import RENEWAL, TERM, Term, maintaining, margin
from pool.model import TaskState
from pool.observability.health import ANSWER_FOR, HealthReport
from pool.store import Store
from pool.store.checking import check_store


def maintains(daemon: Stepped) -> bool:
    return daemon._daemon.maintenance is not None


def pass_term(clock: ManualClock, daemon: Stepped) -> float:
    """Have a daemon try every so often until it maintains the store; answers how long that took."""
    began = clock.monotonic()
    while not daemon.renew():
        clock.advance(RENEWAL)
        assert clock.monotonic() - began < 60.0
    return clock.monotonic() - began


def test_another_daemon_takes_over_within_ten_seconds(
    start: Start, clock: ManualClock, store: Store
) -> None:
    """Of one that is killed, stopped or cut off just after it has renewed its term."""
    first, second = start(), start()
    assert (maintains(first), maintains(second)) == (True, False)
    assert pass_term(clock, second) <= 10.0 - RENEWAL
    assert store.maintainer(now=clock.now()) == second.process.owner


def test_a_daemon_that_cannot_renew_ends_its_services_before_its_term_ends(
    start: Start, clock: ManualClock, store: Store, cvat: ScriptedCvat
) -> None:
    """And goes on serving, and maintains again when the store is back and no other does."""
    daemon = start()
    daemon.fill()
    before = daemon.maintenance
    term = store.present_term(now=clock.now())
    assert term is not None

    def away(*_: Any, **__: Any) -> None:
        raise StoreError("it is away")

    with mock.patch.object(store, "renew_term", away), mock.patch.object(store, "begin_term", away):
        clock.advance(TERM - margin() - 0.1)
        daemon._daemon.renew()
        assert maintains(daemon)
        clock.advance(0.1)
        daemon._daemon.renew()
        assert not maintains(daemon)
        assert clock.now() < term.until, "no other can have begun a term"
    request = daemon.accept()
    daemon.run("dispatch")
    daemon.drain()
    assert daemon.states(request) == {IMPORTING}
    clock.advance(TERM)
    assert daemon.renew()
    assert daemon.maintenance is not before
    assert check_store(store.connections).problems == ()


def test_services_go_on_where_no_other_has_maintained_the_store(
    start: Start, clock: ManualClock, store: Store
) -> None:
    daemon = start()
    before = daemon.maintenance
    number = before.term.number
    clock.advance(TERM + 1.0)
    assert daemon.renew()
    assert daemon.maintenance is before
    assert before.term.number > number
    assert check_store(store.connections).problems == ()


def test_nothing_is_deleted_once_the_term_is_over(
    start: Start, clock: ManualClock, store: Store, cvat: ScriptedCvat
) -> None:
    """The first daemon is stopped in the middle of its deletions, and goes on when another one
    maintains the store."""
    first, second = start(), start()
    first.fill()
    warm = len(store.tasks(states=[TaskState.WARM]))
    assert warm > 1
    store.drain("scenes", reason="", now=clock.now())
    deleted: list[str] = []

    def stopped(operation: str) -> None:
        if operation != "delete_task":
            return
        deleted.append(operation)
        if len(deleted) == 1:
            clock.advance(TERM)
            assert second.renew()

    cvat.before = stopped
    with pytest.raises(TermLost):
        first.run("delete")
    assert len(deleted) == 1, "each is checked before it is sent"
    first.renew()
    assert not maintains(first)
    clock.advance(61.0)
    second.process.heartbeat.run_once()
    second._daemon.renew()
    second.run("delete")
    assert len(store.tasks()) == 0
    with store.connections.reading() as db:
        terms = {term for (term,) in db.rows("SELECT term FROM tasks WHERE state = 'deleted'")}
    assert len(terms) == 2, "each row has its term"
    assert check_store(store.connections).problems == ()


def test_warm_tasks_are_verified_after_an_unclean_stop_that_no_daemon_has_seen(
    start: Start, clock: ManualClock, store: Store
) -> None:
    """Callers of a daemon that was there do not notice that another one is gone."""
    start().fill()
    second = start()

    def quarantined() -> bool:
        with store.connections.reading() as db:
            return db.number("SELECT COUNT(*) FROM tasks WHERE quarantined_until IS NOT NULL") > 0

    clock.advance(TERM)
    assert second.renew()
    assert not quarantined()
    lease = second.pool.acquire("scenes", timeout=0.0)
    assert lease.outcome is Outcome.HIT
    # And now all daemons are killed, and one is started.
    clock.advance(TERM + 1.0)
    assert maintains(start())
    assert quarantined()


def test_a_daemon_is_ready_while_it_takes_over(
    start: Start, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, second = start(), start()
    clock.advance(TERM)
    reports: list[HealthReport] = []
    begin = ByHand.start

    def look(scheduler: ByHand) -> None:
        reports.append(second._daemon.observation.health.run_once())
        begin(scheduler)

    monkeypatch.setattr(ByHand, "start", look)
    assert second.renew()
    clock.advance(ANSWER_FOR)
    reports.append(second._daemon.observation.health.run_once())
    assert [each.ready for each in reports] == [True, True]


def test_the_configuration_that_is_kept_is_the_maintainers(
    start: Start, clock: ManualClock, store: Store
) -> None:
    first, second = start(), start()
    kept = store.configuration()
    clock.advance(1.0)
    second._daemon._reload._loaded_at = clock.now()
    second.run("reload")
    assert store.configuration() == kept
    clock.advance(TERM)
    assert second.renew()
    assert store.configuration() != kept
    del first


def test_a_stop_gives_the_term_up_at_once(start: Start, clock: ManualClock, store: Store) -> None:
    first, second = start(), start()
    first.stop()
    assert [each.owner for each in store.daemons(now=clock.now())] == [second.process.owner]
    assert second.renew()
    assert second.maintenance.term.broken_off is None


def test_a_term_of_a_command_is_renewed_and_ends(store: Store, clock: ManualClock) -> None:
    with maintaining(store, "a command", clock=clock) as term:
        assert term is not None
        term.check()
        with maintaining(store, "another", clock=clock) as none:
            assert none is None
    assert store.maintainer(now=clock.now()) is None
    with pytest.raises(TermLost):
        term.check()


def test_a_check_whose_answer_comes_too_late_is_none(
    store: Store, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    term = Term.begin(store, "a", clock=clock)
    assert term is not None
    renew = store.renew_term

    def slow(*arguments: Any, **options: Any) -> bool:
        renewed = renew(*arguments, **options)
        clock.advance(TERM)
        return renewed

    monkeypatch.setattr(store, "renew_term", slow)
    with pytest.raises(TermLost):
        term.check()


def test_a_check_renews_the_term(store: Store, clock: ManualClock) -> None:
    term = Term.begin(store, "a", clock=clock)
    assert term is not None
    for _ in range(5):
        clock.advance(TERM / 2)
        term.check()
    assert store.maintainer(now=clock.now()) == "a"
    clock.advance(TERM)
    assert not term.lasts
    with pytest.raises(TermLost, match="term "):
        term.check()
