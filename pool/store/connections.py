"""What the nouns of the store need of a database, whichever it is.

Their SQL is written once, in what SQLite and PostgreSQL both understand, with named parameters
(``:name``). What differs stands behind these two classes, in :mod:`pool.store.sqlite` and
:mod:`pool.store.postgresql`: how a transaction begins, how a change of another process is noticed,
and the few words that SQL has no standard for.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

Row: TypeAlias = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. ``in_key`` is its place in the primary key, from 1, or 0."""

    name: str
    is_boolean: bool
    in_key: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    """What is written after a row was, as ``event`` says, where ``when`` holds of ``OLD`` and
    ``NEW``."""

    name: str
    table: str
    event: str
    when: str = "TRUE"
    body: str


class Dialect(ABC):
    """The words that differ between databases."""

    @staticmethod
    @abstractmethod
    def using(index: str) -> str:
        """Name the index that a query uses, where the planner would take another."""

    @staticmethod
    @abstractmethod
    def least(one: str, other: str) -> str:
        """The smaller of two expressions; NULL where one of them is."""

    @staticmethod
    @abstractmethod
    def greatest(one: str, other: str) -> str:
        """The larger of two expressions; NULL where one of them is."""

    @staticmethod
    @abstractmethod
    def of_last(array: str, key: str) -> str:
        """The text at ``key`` of the last object in a column that holds a JSON array."""

    @staticmethod
    @abstractmethod
    def make_trigger(trigger: Trigger) -> Sequence[str]:
        """The statements that make a trigger."""

    @staticmethod
    @abstractmethod
    def drop_trigger(trigger: Trigger) -> str:
        """The statement that drops a trigger, where there is one."""


class Connection(Dialect):
    """A connection, and the short ways to run one statement on it. Parameters are named."""

    @abstractmethod
    def rows(self, sql: str, /, **parameters: Any) -> list[Any]:
        """Return all rows, also of an ``UPDATE … RETURNING``."""

    @abstractmethod
    def changed(self, sql: str, /, **parameters: Any) -> int:
        """Make a change, and return how many rows were in the state that it expects."""

    def later(self, sql: str, /, **parameters: Any) -> Callable[[], list[Any]]:
        """Run a statement at the latest with the commit, and return what returns its rows, as soon
        as they are asked for. A server gets it in one message with those that follow."""
        found = self.rows(sql, **parameters)
        return lambda: found

    @abstractmethod
    def insert(self, table: str, columns: Sequence[str], rows: Collection[Row]) -> None:
        """Insert rows."""

    @abstractmethod
    def columns(self, table: str) -> Sequence[Column]:
        """Return the columns of a table, in their order."""

    @abstractmethod
    def advance_counters(self) -> None:
        """Have the counters of rows go on after the highest number that is there."""

    @abstractmethod
    def trigger_names(self) -> Collection[str]:
        """Return the names of the triggers that are in force."""

    @abstractmethod
    def damage(self) -> Sequence[str]:
        """Return what the database itself finds wrong: pages, indexes, references, counters."""

    def one(self, sql: str, /, **parameters: Any) -> Row | None:
        """Return the first row, if there is one."""
        found = self.rows(sql, **parameters)
        return found[0] if found else None

    def number(self, sql: str, /, **parameters: Any) -> int:
        """Return the one number that the query counts."""
        return int(self.rows(sql, **parameters)[0][0])

    def met(self, sql: str, /, **parameters: Any) -> bool:
        """Make a change, and return whether a row was in the state that it expects."""
        return bool(self.changed(sql, **parameters))

    def upsert(self, table: str, row: Mapping[str, Any], *, key: str) -> None:
        """Write a row, in place of the one with the same ``key``."""
        self.changed(
            f"""
            INSERT INTO {table} ({", ".join(row)}) VALUES ({", ".join(f":{name}" for name in row)})
            ON CONFLICT ({key}) DO UPDATE
            SET {", ".join(f"{name} = excluded.{name}" for name in row if name != key)}
            """,
            **row,
        )


class Listener:
    """Hears of the commits of other processes. This one hears of none: they have to be found by
    looking at the change counter."""

    #: Whether what other processes commit is heard at once.
    hears = False

    def close(self) -> None:
        """Hear no more."""


class Connections(ABC):
    """The connections of one process to one store. Thread-safe."""

    #: Where the store is, as it may be shown and as ``store.url`` names it.
    place: str

    def __init__(self, *, busy_timeout: float) -> None:
        self.busy_timeout = busy_timeout
        self._closed = False
        #: Guards what the threads of the process share.
        self._register = threading.Lock()
        #: Threads of one process queue for writing here. A server would want a connection for each
        #: of them, and SQLite's own waiting is polling, with pauses of up to 0.1 s.
        self._writer = threading.Lock()
        self._listeners: tuple[Callable[[], None], ...] = ()

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is a store, which is not made by this."""

    @abstractmethod
    def make_ready(self) -> str:
        """Make the tables, or what is missing of them, and return the pool's id.

        :raises StoreError: the store cannot be used; the message says why.
        """

    @abstractmethod
    def make_tables(self, copy: Mapping[str, Any] | None = None) -> None:
        """Make the tables, where they are missing, with the row ``copy`` in ``copies``, also of a
        store that cannot be used yet, or any more."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Connection]:
        """A connection for queries, each of which sees what is committed when it begins."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[Connection]:
        """A connection in a transaction, which is durable when the block has ended. It is the only
        one that writes, of all processes, from its first statement to its end."""

    def on_commit(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called after each commit that changed a row; return what ends that."""
        with self._register:
            self._listeners += (listener,)
        return lambda: self._forget(listener)

    def _forget(self, listener: Callable[[], None]) -> None:
        with self._register:
            self._listeners = tuple(each for each in self._listeners if each != listener)

    def _committed(self) -> None:
        for listener in self._listeners:
            listener()

    @abstractmethod
    def change_token(self) -> object:
        """Return what differs after every commit."""

    def listen(self, heard: Callable[[], None]) -> Listener:
        """Have ``heard`` called, on any thread, soon after other processes have committed, as long
        as what is returned :attr:`~Listener.hears`, and when it begins or ceases to."""
        del heard
        return Listener()

    def time(self) -> float | None:
        """Return the time of the machine where the rows are, in seconds since the epoch; None where
        that is this one."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close all connections, each when its thread's call has ended."""


def listed(values: Collection[Any]) -> tuple[str, dict[str, Any]]:
    """Return values as they stand between the parentheses of an ``IN``, and as its parameters.
    Where there are none it is ``IN (NULL)``, which nothing is."""
    parameters = {f"listed{number}": value for number, value in enumerate(values)}
    return ", ".join(f":{name}" for name in parameters) or "NULL", parameters


class Connected:
    """The base of each noun of the store: its methods run on the connections of the process."""

    connections: Connections
