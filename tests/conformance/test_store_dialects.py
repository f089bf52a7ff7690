"""What two databases understand in different ways, without a word."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from conformance.store_processes import die_in_a_transaction, run
from conformance.store_scene import FINGERPRINT, NOW, TEMPLATE, Scene, data, everything, wish
from pool.errors import StoreError
from pool.model import Hold, Outcome, RequestWarning
from pool.store import Store, open_store

#: Text that is no Unicode, and that C ends early.
ODD = "a\0b\ud800c"
SHOWN = "a?b?c"


# --- Order -----------------------------------------------------------------------------------


def test_an_event_never_comes_in_behind_one_that_was_seen(store: Store, store_url: str) -> None:
    """Ids are drawn before the commit, so of two that overlap the first to commit could have the
    larger one, and a reader would step over the other."""
    other = open_store(store_url, busy_timeout=0.1)
    seen = store.last_event_id()
    with store.connections.writing() as db:
        write_event(db.changed, "task.warm")
        with pytest.raises(StoreError, match="stayed locked"), other.connections.writing() as late:
            write_event(late.changed, "task.retired")
        assert list(other.events_after(seen, limit=9)) == []
    with other.connections.writing() as late:
        write_event(late.changed, "task.retired")
    assert [event.kind for event in store.events_after(seen, limit=9)] == [
        "task.warm",
        "task.retired",
    ]
    other.close()


def write_event(change: Callable[..., int], kind: str) -> None:
    change("INSERT INTO events (kind, at, template, state) VALUES (:kind, 1.0, 'a', '')", kind=kind)


def test_transactions_that_want_the_same_rows_in_another_order(
    scene: Scene, open_another: Callable[[], Store]
) -> None:
    """They would wait for each other, and one would be undone; here one begins after the other."""
    rows = [scene.warm().id, scene.warm().id]
    stores = [scene.store, open_another()]
    begin = threading.Barrier(2)

    def change(store: Store, order: list[str]) -> None:
        begin.wait()
        for _ in range(25):
            with store.connections.writing() as db:
                for pooled_id in order:
                    db.changed(
                        "UPDATE tasks SET changed_at = changed_at + 1 WHERE id = :id", id=pooled_id
                    )

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(change, stores, (rows, rows[::-1])))
    assert [scene.task(each).changed_at for each in rows] == [NOW + 50, NOW + 50]


def test_names_are_in_the_order_of_their_characters(store: Store) -> None:
    """Not in that of a language, and large letters before small ones."""
    store.open_sinks(["ä", "b", "B", "a", "Z", "a-b", "a b", "aa"])
    assert list(store.sinks()) == ["B", "Z", "a", "a b", "a-b", "aa", "b", "ä"]


# --- Values ----------------------------------------------------------------------------------


def test_small_and_large_letters_are_different(scene: Scene) -> None:
    store = scene.store
    first = store.open_lease(wish(key="Key", payload="1"), now=NOW)
    second = store.open_lease(wish(key="key", payload="2"), now=NOW)
    assert first.lease.id != second.lease.id and not second.replayed
    store.pause("Streets", now=NOW)
    assert set(store.paused()) == {"Streets"} and not store.resume("streets")
    scene.warm()
    assert store.warm_of(TEMPLATE.upper(), FINGERPRINT) == 0


def test_signs_that_a_pattern_would_have_are_letters(store: Store) -> None:
    for name in ("a%", "a_", "100%s", "%(x)s", ":name", "a'b", 'a"b', "a\\b", "a;--b"):
        store.pause(name, now=NOW)
        assert store.paused() == {name: NOW}
        assert store.resume(name)


def test_truth_is_true_or_false(scene: Scene) -> None:
    """And no number, of which a comparison by identity or JSON would know."""
    queued = scene.queued()
    assert queued.request is not None and queued.request.spooled is False
    assert scene.warm().prepared is True and scene.creating().prepared is False
    scene.store.hold(
        Hold(template="a", code="c", reason="", since=1.0, retry_at=None, uploads=True)
    )
    assert scene.store.holds()["a"].uploads is True


def test_text_that_not_every_database_takes(scene: Scene) -> None:
    store = scene.store
    uploading = scene.uploading()
    assert uploading.request is not None and uploading.task is not None
    assert store.warn(uploading.request.id, RequestWarning(code="odd", text=ODD), now=NOW)
    assert store.fail_import(uploading.task.id, code="failed", message=ODD, now=NOW)
    failed = scene.request(uploading.request)
    assert (failed.error, failed.warnings[0].text) == (SHOWN, SHOWN)
    assert scene.task(uploading.task.id).reason.endswith(SHOWN)
    retired = scene.warm()
    assert store.retire(retired.id, reason=ODD, now=NOW)
    assert scene.task(retired.id).reason == SHOWN
    store.hold(Hold(template="a", code="c", reason=ODD, since=1.0, retry_at=None, uploads=False))
    assert store.holds()["a"].reason == SHOWN
    scene.warm()
    named = store.open_lease(wish(), request=data(ODD, "grüße.png"), now=NOW)
    assert named.request is not None and named.request.files == (ODD, "grüße.png")


def test_a_key_that_is_no_text(scene: Scene) -> None:
    """It is refused, since another one could be found in its place."""
    key = "\ud800"
    before = everything(scene.store)
    with pytest.raises(StoreError, match="refused a value"):
        scene.store.open_lease(wish(key=key), now=NOW)
    with pytest.raises(StoreError, match="refused a value"):
        scene.store.request_by_key(key)
    assert everything(scene.store) == before
    assert scene.store.request_by_key("other") is None, "the connection is in order"


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_a_number_that_no_column_takes(scene: Scene, number: int) -> None:
    task = scene.creating()
    with pytest.raises(StoreError, match="refused a value"):
        scene.store.record_created(task.id, task_id=number, now=NOW)
    assert scene.store.record_created(task.id, task_id=2**63 - 1, now=NOW)
    assert scene.task(task.id).task_id == 2**63 - 1


def test_times_keep_all_their_digits(scene: Scene) -> None:
    now = 1_700_000_000.123_456_7
    assert scene.task(scene.creating(now=now).id).created_at == now


def test_none_of_none(scene: Scene) -> None:
    """``IN ()``, which SQL does not have."""
    scene.leased()
    assert scene.store.leases_at_end([]) == frozenset()
    assert scene.store.requests_at_end([]) == frozenset()
    assert scene.store.clear_quarantine([], now=NOW) == 0
    scene.store.open_sinks([])
    assert scene.store.sinks() == {}
    assert scene.store.hand_outs() == {TEMPLATE: {Outcome.HIT: 1}}


# --- Transactions that are left open --------------------------------------------------------------


def test_a_transaction_of_a_process_that_died(store: Store, store_url: str) -> None:
    run(die_in_a_transaction, (store_url,), killed=True)
    assert store.paused() == {}
    store.pause("later", now=NOW)
    assert set(store.paused()) == {"later"}


def test_a_transaction_of_a_thread_that_ended(store: Store) -> None:
    def leave() -> None:
        transaction = store.connections.writing()
        transaction.__enter__().changed("INSERT INTO pauses (template, since) VALUES ('left', 1)")

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert store.paused() == {}
    store.pause("later", now=NOW)
    assert set(store.paused()) == {"later"}


def test_an_error_in_a_transaction_undoes_it(store: Store) -> None:
    def fail() -> None:
        with store.connections.writing() as db:
            db.changed("INSERT INTO pauses (template, since) VALUES ('left', 1)")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert store.paused() == {}
