"""A store in a SQLite file: a connection a thread, the transactions on it, and how it is made."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from sqlite_utils import Database

from pool.errors import PoolClosed, StoreError
from pool.forks import prepare_for_forks
from pool.permissions import create_file, narrow
from pool.store.connections import Column, Connection, Connections, Row, Trigger
from pool.store.copying import refuse_unusable, usable_pool_id
from pool.store.failures import check_place, explain, is_busy, spoils_connection
from pool.store.migrations import is_current, known, migrate, outdated

T = TypeVar("T")

#: Longest pause, in seconds, between two tries to write while another process writes.
LONGEST_PAUSE = 0.004
#: Longest pause, in seconds, before another try at a file that other processes are making.
_OPENING_PAUSE: Final = 0.05

_serials = count()


class _Opening:
    """Threads of one process that open a store do so one after the other, and none does while the
    process forks: it has a connection open (see :meth:`SqliteConnections.before_fork`)."""

    def __init__(self) -> None:
        # Reentrant, as that of a slot is.
        self.lock = threading.RLock()
        prepare_for_forks(self)

    def before_fork(self) -> None:
        self.lock.acquire()

    def after_fork(self) -> None:
        self.lock.release()


_opening: Final = _Opening()


class SqliteConnection(Database, Connection):
    """A connection to a file."""

    def rows(self, sql: str, /, **parameters: Any) -> list[Any]:
        """Return all rows. Reading them all is also what completes an ``UPDATE … RETURNING``."""
        return self.execute(sql, parameters).fetchall()

    def changed(self, sql: str, /, **parameters: Any) -> int:
        return int(self.execute(sql, parameters).rowcount)

    @staticmethod
    def using(index: str) -> str:
        """SQLite's planner does not know that a partial index is small, and could choose one that
        is full of finished rows."""
        return f"INDEXED BY {index}"

    @staticmethod
    def least(one: str, other: str) -> str:
        return f"MIN({one}, {other})"

    @staticmethod
    def greatest(one: str, other: str) -> str:
        return f"MAX({one}, {other})"

    @staticmethod
    def of_last(array: str, key: str) -> str:
        return f"json_extract({array}, '$[#-1].{key}')"

    @staticmethod
    def make_trigger(trigger: Trigger) -> Sequence[str]:
        return (
            f"""
            CREATE TRIGGER {trigger.name} AFTER {trigger.event} ON {trigger.table}
            WHEN {trigger.when} BEGIN {trigger.body} END
            """,
        )

    @staticmethod
    def drop_trigger(trigger: Trigger) -> str:
        return f"DROP TRIGGER IF EXISTS {trigger.name}"

    def insert(self, table: str, columns: Sequence[str], rows: Collection[Row]) -> None:
        self.conn.executemany(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            rows,
        )

    def columns(self, table: str) -> Sequence[Column]:
        found = self.rows("SELECT name, pk FROM pragma_table_info(:table)", table=table)
        return [Column(name, False, in_key) for name, in_key in found]

    def advance_counters(self) -> None:
        """Nothing: SQLite counts on from the largest number that is there."""

    def damage(self) -> Sequence[str]:
        found = [line for (line,) in self.rows("PRAGMA integrity_check") if line != "ok"]
        for table, row, other, _ in self.rows("PRAGMA foreign_key_check"):
            found.append(f"{table}: row {row} refers to a row of {other} that is not there")
        return found

    def trigger_names(self) -> Collection[str]:
        return {
            name for (name,) in self.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        }


class _Slot:
    """The place of one thread's connection. It ends with the thread, and the connection with it.

    The lock is there for :meth:`Connections.close` and for forks, which close connections of other
    threads: SQLite does not stand a close in the middle of a statement. It is reentrant so that a
    store used from a signal handler or a finalizer gets an error instead of a deadlock.
    """

    __slots__ = ("__weakref__", "db", "lock", "serial")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.db: SqliteConnection | None = None
        self.serial = -1

    def open(self, db: SqliteConnection) -> None:
        self.db = db
        self.serial = next(_serials)

    def close(self) -> None:
        db, self.db = self.db, None
        if db is not None:
            db.conn.close()

    def __del__(self) -> None:
        self.close()


class SqliteConnections(Connections):
    """The connections of one process to one file."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self.path = path
        self.place = f"sqlite:///{path}"
        super().__init__(busy_timeout=busy_timeout)
        self._slots: weakref.WeakSet[_Slot] = weakref.WeakSet()
        self._threads = threading.local()
        prepare_for_forks(self)

    def exists(self) -> bool:
        check_place(self.path)
        if not self.path.exists():
            return False
        with self.reading() as db:
            tables = {name for (name,) in db.rows("SELECT name FROM sqlite_master")}
        if tables and "copies" not in tables:
            raise StoreError(f"{self.path} holds something else already; choose another path")
        return bool(tables)

    def make_ready(self) -> str:
        return self._make_ready(None, lambda db: usable_pool_id(db, self.place))

    def make_tables(self, copy: Mapping[str, Any] | None = None) -> None:
        self._make_ready(copy, lambda _: None)

    def _make_ready(
        self, copy: Mapping[str, Any] | None, then: Callable[[SqliteConnection], T]
    ) -> T:
        """Make the file and its tables, where they are missing, and return what ``then`` finds.

        Several processes may do this at the same time. SQLite does not wait, but fails, when two of
        them switch a new file to write-ahead logging, so the one that was too early tries again.
        """
        check_place(self.path)
        give_up = time.monotonic() + self.busy_timeout
        with _opening.lock:
            while True:
                try:
                    make_file(self.path)
                    with closing(connect(self.path, busy_timeout=self.busy_timeout)) as db:
                        _make(db, self.path, copy)
                        return then(db)
                except sqlite3.Error as error:
                    if not is_busy(error) or time.monotonic() > give_up:
                        raise explain(error, self.path, busy_timeout=self.busy_timeout) from error
                time.sleep(random.uniform(0.0, _OPENING_PAUSE))

    @contextmanager
    def reading(self) -> Iterator[SqliteConnection]:
        """This thread's connection, for one query."""
        with self._borrowed() as slot:
            assert slot.db is not None
            yield slot.db

    @contextmanager
    def writing(self) -> Iterator[SqliteConnection]:
        """This thread's connection in a transaction, which is durable when the block has ended.

        It is the only one that writes from its beginning: a transaction that began by reading
        could find, when it comes to write, that another one has written since, and fail.
        """
        with self._borrowed() as slot:
            assert slot.db is not None
            if slot.db.conn.in_transaction:
                raise StoreError("it was called from within one of its own calls")
            if not self._writer.acquire(timeout=self.busy_timeout):
                raise StoreError(
                    f"another thread has been writing to {self.path} for {self.busy_timeout:g} s"
                )
            changes = slot.db.conn.total_changes
            try:
                with _transaction(slot.db, self._begin_writing):
                    yield slot.db
            finally:
                self._writer.release()
            changed = slot.db.conn.total_changes != changes
        if changed:
            self._committed()

    def change_token(self) -> tuple[int, int, int]:
        """Differs after every commit: of another connection, or of this thread's own."""
        with self._borrowed() as slot:
            assert slot.db is not None
            # Of sqlite3 itself: it is asked fifty times a second.
            version = slot.db.conn.execute("PRAGMA data_version").fetchone()[0]
            return slot.serial, version, slot.db.conn.total_changes

    def close(self) -> None:
        """Close all connections, each when its thread's call has ended."""
        with self._register:
            self._closed = True
            slots = list(self._slots)
        for slot in slots:
            with slot.lock:
                slot.close()

    @contextmanager
    def _borrowed(self) -> Iterator[_Slot]:
        slot = self._slot()
        with slot.lock:
            if self._closed:
                raise PoolClosed("the store is closed")
            try:
                if slot.db is None:
                    slot.open(connect(self.path, busy_timeout=self.busy_timeout))
                yield slot
            except sqlite3.Error as error:
                if spoils_connection(error):
                    slot.close()
                elif "no such table" in str(error) and slot.db is not None:
                    # A copy has taken it away since the store was opened.
                    with suppress(sqlite3.Error):
                        refuse_unusable(slot.db, self.place)
                raise explain(error, self.path, busy_timeout=self.busy_timeout) from error
            except (OverflowError, UnicodeEncodeError) as error:
                # Of a number beyond 64 bits, or text that is no Unicode.
                raise StoreError(f"{self.path} refused a value ({error})") from error

    def _begin_writing(self, db: SqliteConnection) -> None:
        """Begin a transaction that writes, once no other process does. SQLite's own waiting
        lengthens its pauses up to 0.1 s, so that the process that has waited longest is the least
        likely to be next, for seconds at worst."""
        give_up = time.monotonic() + self.busy_timeout
        db.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    db.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError as error:
                    if not is_busy(error) or time.monotonic() >= give_up:
                        raise
                time.sleep(random.uniform(0.0, LONGEST_PAUSE))
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(1000 * self.busy_timeout)}")
        newer = db.conn.execute(
            "SELECT version FROM pool_migrations WHERE number > :known AND needs > :known",
            {"known": known()},
        ).fetchone()
        if newer is not None:
            raise outdated(self.place, newer[0])

    def _slot(self) -> _Slot:
        slot: _Slot | None = getattr(self._threads, "slot", None)
        if slot is None:
            slot = _Slot()
            with self._register:
                self._slots.add(slot)
            self._threads.slot = slot
        return slot

    # --- Forks ----------------------------------------------------------------------------------

    # SQLite keeps the locks that it holds on files in memory, which a fork copies, while the
    # kernel gives the child none of them: a child that used a copied connection, or opened the
    # file next to one, could destroy it. So no connection is open while a process forks; each
    # thread, of the parent and of the child, opens its own again when it needs it.

    def before_fork(self) -> None:
        self._register.acquire()
        self._forking = list(self._slots)
        for slot in self._forking:
            slot.lock.acquire()
            slot.close()

    def after_fork(self) -> None:
        for slot in self._forking:
            slot.lock.release()
        self._forking = []
        self._register.release()


@contextmanager
def _transaction(
    db: SqliteConnection, begin: Callable[[SqliteConnection], object]
) -> Iterator[None]:
    try:
        begin(db)
        yield
        db.execute("COMMIT")
    except BaseException:
        # Some errors, a full disk among them, have ended the transaction already.
        if db.conn.in_transaction:
            db.conn.rollback()
        raise


def make_file(path: Path) -> None:
    """Create the file of a store, private (see :mod:`pool.permissions`). SQLite gives the files
    beside it the permissions that it finds on this one. :func:`connect` reports errors."""
    # SQLite follows links too, and puts its files beside what it finds.
    path = path.resolve()
    try:
        # Closed at once: closing the file drops the locks of the process's connections to it, but
        # a new file has none.
        os.close(create_file(path))
    except FileExistsError:
        for end in ("", "-wal", "-shm"):
            narrow(path.with_name(path.name + end))
    except OSError:
        pass


def connect(path: Path, *, busy_timeout: float) -> SqliteConnection:
    """A connection to a file that is there, whose commits are on the disk when they return."""
    conn = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=busy_timeout,
        check_same_thread=False,
    )
    try:
        db = SqliteConnection(conn, execute_plugins=False, strict=True)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        conn.close()
        raise
    return db


# --- Making a file into a store -------------------------------------------------------------------


class _Maker:
    """The connection that makes the tables."""

    dialect: Final = SqliteConnection

    def __init__(self, db: SqliteConnection, place: str) -> None:
        self._db = db
        self.rows = db.rows
        self.place = place

    def has_migrations(self) -> bool:
        return bool(self.rows("SELECT 1 FROM sqlite_master WHERE name = 'pool_migrations'"))

    def define(self, statement: str) -> None:
        self._db.execute(statement)

    def make_functions(self) -> None:
        """SQLite has all of its own."""


def _make(db: SqliteConnection, path: Path, copy: Mapping[str, Any] | None) -> None:
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise StoreError(f"{path} is where SQLite cannot share memory; use a local disk")
    maker = _Maker(db, f"sqlite:///{path}")
    if not is_current(maker):
        with _transaction(db, lambda db: db.execute("BEGIN IMMEDIATE")):
            migrate(maker, now=time.time(), copy=copy)
