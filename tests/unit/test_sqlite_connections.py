from __future__ import annotations

import os
import signal
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pool.model import new_id
from pool.store import CreateLimit, NewLease, Store, open_store
from pool.store.sqlite import SqliteConnection, SqliteConnections, connect, make_file

NOW = 1_700_000_000.0


class Opened:
    """The connections that were opened."""

    def __init__(self) -> None:
        self._made: list[SqliteConnection] = []

    def connect(self, path: Path, *, busy_timeout: float) -> SqliteConnection:
        self._made.append(connect(path, busy_timeout=busy_timeout))
        return self._made[-1]

    def count(self) -> int:
        """How many of them are open now."""
        return sum(map(self._is_open, self._made))

    @staticmethod
    def _is_open(db: SqliteConnection) -> bool:
        try:
            return db.conn.total_changes >= 0
        except sqlite3.ProgrammingError:
            return False


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    opened = Opened()
    monkeypatch.setattr("pool.store.sqlite.connect", opened.connect)
    return opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(SqliteConnections(tmp_path / "pool.db", busy_timeout=5.0))
    yield store
    store.close()


def wish() -> NewLease:
    return NewLease(id=new_id(), template="a", fingerprint="f", owner="o", ttl=60.0)


def make_warm(store: Store) -> str:
    pooled_id = new_id()
    limit = CreateLimit(capacity=10**6, concurrency=10**6)
    assert store.begin_create(pooled_id, "a", "f", limit=limit, owner="o", now=NOW)
    assert store.record_created(pooled_id, task_id=1, now=NOW)
    assert store.finish_create(pooled_id, prepared=False, now=NOW)
    return pooled_id


def test_the_connections_of_ended_threads_do_not_stay(opened: Opened, store: Store) -> None:
    store.levels()
    for _ in range(20):
        threads = [threading.Thread(target=store.levels) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert opened.count() == 1


def test_closing_closes_the_connections_of_all_threads(opened: Opened, store: Store) -> None:
    ready, done = threading.Barrier(4), threading.Event()

    def look() -> None:
        store.levels()
        ready.wait()
        done.wait()

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait()
    assert opened.count() == 3
    store.close()
    assert opened.count() == 0
    done.set()
    for thread in threads:
        thread.join()


def test_a_forked_process_can_use_the_store_next_to_its_parent(store: Store) -> None:
    taken = {make_warm(store), make_warm(store), make_warm(store)}
    token = store.change_token()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        pooled_id = store.open_lease(wish(), now=NOW).lease.pooled_id
        os.write(writing, str(pooled_id).encode())
        os._exit(0)
    os.waitpid(child, 0)
    by_child = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    mine = {store.open_lease(wish(), now=NOW).lease.pooled_id for _ in range(2)}
    assert mine | {by_child} == taken
    assert store.change_token() != token


@pytest.mark.usefixtures("store")
def test_no_connection_is_open_while_a_process_forks(tmp_path: Path, opened: Opened) -> None:
    connections = SqliteConnections(tmp_path / "pool.db", busy_timeout=1.0)
    with connections.reading():
        pass
    before = opened.count()
    connections.before_fork()
    connections.after_fork()
    assert opened.count() < before
    with connections.reading() as db:
        assert db.execute("SELECT COUNT(*) FROM tasks").fetchone() == (0,)
    connections.close()


def test_a_process_that_forks_while_a_store_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child could not open one: the lock for that would stay taken for ever."""
    opening, go_on = threading.Event(), threading.Event()

    def make(path: Path) -> None:
        opening.set()
        go_on.wait()
        make_file(path)

    monkeypatch.setattr("pool.store.sqlite.make_file", make)
    url = f"sqlite:///{tmp_path / 'pool.db'}"
    with ThreadPoolExecutor(1) as thread:
        opened = thread.submit(open_store, url)
        opening.wait()
        threading.Timer(0.5, go_on.set).start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)
            go_on.set()
            os._exit(len(open_store(url).levels()))
        assert os.waitpid(child, 0)[1] == 0
        opened.result().close()


def test_a_connection_that_cannot_be_set_up_is_closed(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        connect(tmp_path / "none.db", busy_timeout=1.0)
