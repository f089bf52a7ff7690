"""Connections to a SQLite file: one a thread, and the transactions on them.

What differs between databases stands here and in :mod:`pool.store.schema`: how a transaction
begins, how a change of another process is noticed, and the few words that SQL has no standard for.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from sqlite_utils import Database

from pool.errors import PoolClosed, StoreError
from pool.permissions import create_file, narrow
from pool.store.failures import explain, is_busy, spoils_connection

#: Longest pause, in seconds, between two tries to write while another process writes.
LONGEST_PAUSE = 0.004

Row: TypeAlias = Sequence[Any]

_serials = count()


class Connection(Database):
    """A connection, and the short ways to run one statement on it. Parameters are named."""

    def rows(self, sql: str, /, **parameters: Any) -> list[Any]:
        """Return all rows. Reading them all is also what completes an ``UPDATE … RETURNING``."""
        return self.execute(sql, parameters).fetchall()

    def one(self, sql: str, /, **parameters: Any) -> Row | None:
        """Return the first row, if there is one."""
        found = self.rows(sql, **parameters)
        return found[0] if found else None

    def number(self, sql: str, /, **parameters: Any) -> int:
        """Return the one number that the query counts."""
        return int(self.rows(sql, **parameters)[0][0])

    def changed(self, sql: str, /, **parameters: Any) -> int:
        """Make a change, and return how many rows were in the state that it expects."""
        return int(self.execute(sql, parameters).rowcount)

    def met(self, sql: str, /, **parameters: Any) -> bool:
        """Make a change, and return whether a row was in the state that it expects."""
        return bool(self.changed(sql, **parameters))

    def upsert(self, table: str, row: Mapping[str, Any], *, key: str) -> None:
        """Write a row, in place of the one with the same ``key``."""
        self.table(table).upsert(dict(row), pk=key)

    @staticmethod
    def using(index: str) -> str:
        """Name the index that a query uses. SQLite's planner does not know that a partial index is
        small, and could choose one that is full of finished rows."""
        return f"INDEXED BY {index}"

    @staticmethod
    def least(one: str, other: str) -> str:
        """The smaller of two expressions."""
        return f"MIN({one}, {other})"

    @staticmethod
    def greatest(one: str, other: str) -> str:
        """The larger of two expressions."""
        return f"MAX({one}, {other})"


def listed(values: Collection[Any]) -> tuple[str, dict[str, Any]]:
    """Return values as they stand between the parentheses of an ``IN``, and as its parameters."""
    parameters = {f"listed{number}": value for number, value in enumerate(values)}
    return ", ".join(f":{name}" for name in parameters), parameters


class _Slot:
    """The place of one thread's connection. It ends with the thread, and the connection with it.

    The lock is there for :meth:`Connections.close` and for forks, which close connections of other
    threads: SQLite does not stand a close in the middle of a statement. It is reentrant so that a
    store used from a signal handler or a finalizer gets an error instead of a deadlock.
    """

    __slots__ = ("__weakref__", "db", "lock", "serial")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.db: Connection | None = None
        self.serial = -1

    def open(self, db: Connection) -> None:
        self.db = db
        self.serial = next(_serials)

    def close(self) -> None:
        db, self.db = self.db, None
        if db is not None:
            db.conn.close()

    def __del__(self) -> None:
        self.close()


class Connections:
    """The connections of one process to one file."""

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        self.path = path
        self.busy_timeout = busy_timeout
        self._slots: weakref.WeakSet[_Slot] = weakref.WeakSet()
        self._register = threading.Lock()
        self._threads = threading.local()
        # Threads of one process queue for writing here: SQLite's own waiting is polling, with
        # pauses of up to 0.1 s.
        self._writer = threading.Lock()
        self._closed = False
        self._listeners: tuple[Callable[[], None], ...] = ()
        _all.add(self)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """This thread's connection, for one query."""
        with self._borrowed() as slot:
            assert slot.db is not None
            yield slot.db

    @contextmanager
    def writing(self) -> Iterator[Connection]:
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
            for listener in self._listeners:
                listener()

    def on_commit(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called after each commit that changed a row; return what ends that."""
        with self._register:
            self._listeners += (listener,)
        return lambda: self._forget(listener)

    def _forget(self, listener: Callable[[], None]) -> None:
        with self._register:
            self._listeners = tuple(each for each in self._listeners if each != listener)

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
                raise explain(error, self.path, busy_timeout=self.busy_timeout) from error

    def _begin_writing(self, db: Connection) -> None:
        """Begin a transaction that writes, once no other process does. SQLite's own waiting
        lengthens its pauses up to 0.1 s, so that the process that has waited longest is the least
        likely to be next, for seconds at worst."""
        give_up = time.monotonic() + self.busy_timeout
        db.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    db.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if not is_busy(error) or time.monotonic() >= give_up:
                        raise
                time.sleep(random.uniform(0.0, LONGEST_PAUSE))
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(1000 * self.busy_timeout)}")

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
def _transaction(db: Connection, begin: Callable[[Connection], object]) -> Iterator[None]:
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


def connect(path: Path, *, busy_timeout: float) -> Connection:
    """A connection to a file that is there, whose commits are on the disk when they return."""
    conn = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=busy_timeout,
        check_same_thread=False,
    )
    try:
        db = Connection(conn, execute_plugins=False, strict=True)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
    except BaseException:
        conn.close()
        raise
    return db


class Connected:
    """The base of each noun of the store: its methods run on the connections of the process."""

    connections: Connections


_all: weakref.WeakSet[Connections] = weakref.WeakSet()
_forking: list[Connections] = []


def _before_fork() -> None:
    _forking.extend(_all)
    for connections in _forking:
        connections.before_fork()


def _after_fork() -> None:
    for connections in _forking:
        connections.after_fork()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
