from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlite_utils import Database

from pool.errors import ConfigError, StoreError
from pool.model import LeaseState, Outcome, RequestState, TaskState, new_id
from pool.store import CreateLimit, NewLease, NewRequest, Store, open_store
from pool.store.sqlite import SqliteConnection, SqliteConnections

NOW = 1_700_000_000.0


@pytest.fixture
def open_sqlite(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def open_it(path: Path = tmp_path / "pool.db", busy_timeout: float = 5.0) -> Store:
        stores.append(Store(SqliteConnections(path, busy_timeout=busy_timeout)))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def store(open_sqlite: Callable[..., Store]) -> Store:
    return open_sqlite()


def wish() -> NewLease:
    return NewLease(id=new_id(), template="a", fingerprint="f", owner="o", ttl=60.0)


def make_warm(store: Store) -> str:
    pooled_id = new_id()
    limit = CreateLimit(capacity=10**6, concurrency=10**6)
    assert store.begin_create(pooled_id, "a", "f", limit=limit, owner="o", now=NOW)
    assert store.record_created(pooled_id, task_id=1, now=NOW)
    assert store.finish_create(pooled_id, prepared=False, now=NOW)
    return pooled_id


# --- Where it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "pool.db", "sqlite://", "sqlite:///", "sqlite:///:memory:", "mysql://host/db"]
)
def test_urls_that_no_store_is_kept_at(url: str) -> None:
    with pytest.raises(ConfigError, match=r"sqlite:///relative\.db"):
        open_store(url)


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("sqlite:///odd name%3f?.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(store.levels).result() == {}
    store.close()
    assert (tmp_path / "odd name%3f?.db").is_file()


def test_connections_are_as_durable_as_promised(store: Store) -> None:
    def pragmas() -> list[object]:
        with store.connections.reading() as db:
            return [
                db.rows(f"PRAGMA {name}")[0][0]
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            ]

    with ThreadPoolExecutor(1) as thread:
        assert pragmas() == thread.submit(pragmas).result() == ["wal", 2, 1, 5000]


def test_states_in_the_tables_are_those_of_the_model(store: Store) -> None:
    with store.connections.reading() as db:
        assert isinstance(db, SqliteConnection)
        for table, states in (
            ("tasks", TaskState),
            ("leases", LeaseState),
            ("requests", RequestState),
            ("leases", Outcome),
        ):
            schema = " ".join(db.table(table).schema.split())
            assert "IN (" + ", ".join(f"'{state}'" for state in states) + ")" in schema
            assert db.table(table).strict


# --- What can be wrong ---------------------------------------------------------------------------


def one_line(error: pytest.ExceptionInfo[StoreError]) -> str:
    message = str(error.value)
    assert message.startswith("The store cannot be used: ")
    assert "\n" not in message
    return message


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        open_store(f"sqlite:///{tmp_path}/no/such/pool.db")
    assert f"the folder {tmp_path}/no/such does not exist; create it" in one_line(error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        open_store(f"sqlite:///{tmp_path}")


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "pool.db"
    path.write_bytes(b"labels: [car]\n" * 1000)
    with pytest.raises(StoreError) as error:
        open_store(f"sqlite:///{path}")
    assert "is not a SQLite database; choose another path" in one_line(error)
    assert path.read_bytes() == b"labels: [car]\n" * 1000


def test_a_migration_that_fails_leaves_nothing(
    tmp_path: Path, open_sqlite: Callable[..., Store]
) -> None:
    db = Database(sqlite3.connect(tmp_path / "pool.db"))
    db.table("holds").create({"somebody": str})
    with pytest.raises(StoreError, match="already exists"):
        open_sqlite()
    assert db.table_names() == ["holds"]
    db.close()


def test_a_lock_that_is_not_let_go(tmp_path: Path, open_sqlite: Callable[..., Store]) -> None:
    store = open_sqlite(busy_timeout=0.02)
    other = sqlite3.connect(tmp_path / "pool.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as error:
        store.open_lease(wish(), now=NOW)
    assert "stayed locked by another process for 0.02 s" in one_line(error)
    assert store.levels() == {}, "looking needs no lock"
    other.execute("ROLLBACK")
    store.open_lease(wish(), now=NOW)
    other.close()


def test_a_thread_that_does_not_stop_writing(open_sqlite: Callable[..., Store]) -> None:
    store = open_sqlite(busy_timeout=0.02)
    with (
        store.connections.writing(),
        ThreadPoolExecutor(1) as thread,
        pytest.raises(StoreError, match="another thread"),
    ):
        thread.submit(store.open_lease, wish(), now=NOW).result()


def test_a_store_that_is_used_from_within_itself(store: Store) -> None:
    with store.connections.writing() as db:
        db.changed("INSERT INTO pauses (template, since) VALUES ('a', 1)")
        with pytest.raises(StoreError, match="within one of its own calls"):
            store.pause("b", now=NOW)
    assert store.paused() == {"a": 1.0}


def test_a_row_that_contradicts_others(store: Store) -> None:
    wanted = wish()
    store.open_lease(wanted, now=NOW)
    make_warm(store)
    with pytest.raises(StoreError, match="contradicts"):
        store.open_lease(wanted, now=NOW)
    assert store.warm_of("a", "f") == 1, "nothing was claimed"
    assert store.hand_outs() == {}


def test_a_file_that_was_deleted(tmp_path: Path, store: Store) -> None:
    for path in tmp_path.glob("pool.db*"):
        path.unlink()
    for use in (store.check_writable, store.check_writable, store.levels):
        with pytest.raises(StoreError, match="deleted or moved away"):
            use()
    assert not list(tmp_path.glob("pool.db")), "an empty store is not made in its place"


def test_a_file_that_was_damaged(tmp_path: Path, open_sqlite: Callable[..., Store]) -> None:
    open_sqlite().close()
    path = tmp_path / "pool.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError) as error:
        open_sqlite().levels()
    assert "is damaged" in one_line(error)


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder in which the test is an ordinary user, whom permissions bind."""
    folder = Path("/tmp") / f"pool-{new_id()}"
    folder.mkdir(mode=0o755)
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(folder, 65534, 65534)
        os.setresuid(65534, 65534, 0)
    try:
        yield folder
    finally:
        if was_root:
            os.setresuid(0, 0, 0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_folder(as_nobody: Path, exists: bool) -> None:
    if exists:
        Store(SqliteConnections(as_nobody / "pool.db", busy_timeout=1.0)).close()
    as_nobody.chmod(0o555)
    with pytest.raises(StoreError) as error:
        Store(SqliteConnections(as_nobody / "pool.db", busy_timeout=1.0))
    assert f"the folder {as_nobody} is read-only" in one_line(error)


def test_a_read_only_file(as_nobody: Path) -> None:
    Store(SqliteConnections(as_nobody / "pool.db", busy_timeout=1.0)).close()
    (as_nobody / "pool.db").chmod(0o444)
    with pytest.raises(StoreError) as error:
        Store(SqliteConnections(as_nobody / "pool.db", busy_timeout=1.0)).check_writable()
    assert f"{as_nobody}/pool.db is read-only; allow writing" in one_line(error)


# --- A full disk ---------------------------------------------------------------------------------


def fill_until_refused(store: Store) -> int:
    """Accept requests until the disk is full; how many were accepted."""
    for accepted in range(10_000):
        request = NewRequest(id=new_id(), files=("x" * 2000,))
        try:
            store.open_lease(wish(), request=request, now=NOW)
        except StoreError as error:
            if "is full; free some space" not in str(error):
                raise
            return accepted
    raise AssertionError("it never got full")


def counts(store: Store) -> tuple[int, int, int]:
    """Leases, requests, and tasks that were handed out."""
    return (
        len(store.leases(limit=10_000)),
        len(store.requests(limit=10_000).requests),
        store.levels()["a"][TaskState.LEASED],
    )


def test_a_write_that_finds_no_room_leaves_nothing(store: Store) -> None:
    for _ in range(3):
        make_warm(store)
    with store.connections.reading() as db:
        pages = db.number("PRAGMA page_count")
        db.rows(f"PRAGMA max_page_count = {pages + 20}")
    accepted = fill_until_refused(store)
    assert accepted >= 3
    assert counts(store) == (accepted, accepted, 3)
    with store.connections.reading() as db:
        db.rows("PRAGMA max_page_count = 1000000")
    store.open_lease(wish(), now=NOW)
    assert counts(store) == (accepted + 1, accepted, 3)


def test_a_full_disk(tmp_path: Path, open_sqlite: Callable[..., Store]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        store = open_sqlite(disk / "pool.db")
        make_warm(store)
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - 256 * 1024))
        accepted = fill_until_refused(store)
        assert accepted >= 1
        assert counts(store) == (accepted, accepted, 1)
        with ThreadPoolExecutor(1) as thread:
            # Another connection finds the same rows.
            assert thread.submit(counts, store).result() == (accepted, accepted, 1)
        ballast.unlink()
        store.check_writable()
        store.open_lease(wish(), now=NOW)
        assert counts(store) == (accepted + 1, accepted, 1)
        store.close()
        gc.collect()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        with pytest.raises(StoreError) as error:
            Store(SqliteConnections(disk / "pool.db", busy_timeout=1.0))
        assert "is full; free some space" in one_line(error)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
