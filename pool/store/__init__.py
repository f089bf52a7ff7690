"""The rows of a pool. ``tests/conformance`` is the definition of what a store does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from pool.errors import ConfigError
from pool.store.connections import Connections, Listener
from pool.store.demand import DEMAND_BUCKET, DemandHistory
from pool.store.events import Events
from pool.store.final_steps import FinalSteps
from pool.store.imports import FINAL_GRACE, Imports
from pool.store.leases import Leases
from pool.store.level_history import STEPS, LevelHistory
from pool.store.maintenance import Maintenance
from pool.store.migrations import newer_version
from pool.store.queue import Queue
from pool.store.records import (
    UNOWNED,
    Asked,
    CreateLimit,
    LeasePage,
    MadeFor,
    NewLease,
    NewMember,
    NewRequest,
    Opened,
    OpenStream,
    Page,
    Unserved,
)
from pool.store.requests import Requests
from pool.store.slots import LOOKS, Slots
from pool.store.spools import Spools
from pool.store.sqlite import SqliteConnections
from pool.store.streams import USED_WITHIN, Streams
from pool.store.tasks import Tasks
from pool.store.terms import Terms
from pool.store.webhooks import HEARD_FOR, Webhooks

__all__ = [
    "DEMAND_BUCKET",
    "FINAL_GRACE",
    "HEARD_FOR",
    "LOOKS",
    "STEPS",
    "UNOWNED",
    "USED_WITHIN",
    "Asked",
    "CreateLimit",
    "LeasePage",
    "Listener",
    "MadeFor",
    "NewLease",
    "NewMember",
    "NewRequest",
    "OpenStream",
    "Opened",
    "Page",
    "Store",
    "Unserved",
    "connections_of",
    "open_store",
]

_SQLITE: Final = "sqlite:///"
_POSTGRESQL: Final = "postgresql://"


class Store(
    Tasks,
    Leases,
    Requests,
    Queue,
    Imports,
    Slots,
    Streams,
    FinalSteps,
    DemandHistory,
    LevelHistory,
    Events,
    Maintenance,
    Terms,
    Webhooks,
    Spools,
):
    """The rows of one pool, in a SQLite file or a PostgreSQL database; any number of threads and
    processes may share it.

    A file has to be local: the locks that SQLite needs do not work on network drives. Three
    rules hold for every method that changes something:

    * It is one transaction, durable when the method returns: after a power cut the change is there.
    * It says the state that it expects. When the row is in another one, nothing changes and the
      method returns None, False, 0 or an empty list; no other decision is overwritten.
    * ``now`` is given by the caller (seconds since the epoch), so a store has no clock of its own.

    ``pool_id`` is eight characters, chosen when the store was made; they mark this pool's tasks.

    :raises StoreError: from any method, when the store cannot be used; the message says why.
    """

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        try:
            self.pool_id = connections.make_ready()
        except BaseException:
            connections.close()
            raise

    def close(self) -> None:
        """Close all connections. Closing twice does nothing."""
        self.connections.close()

    def check_writable(self) -> None:
        """Raise :class:`pool.errors.StoreError` when a durable write is not possible now."""
        with self.connections.writing() as db:
            db.changed(
                """
                UPDATE meta SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)
                WHERE key = 'writes_checked'
                """
            )

    def newer_version(self) -> str | None:
        """Return the version of the product that has changed the store since this one, if one has:
        machines are upgraded one by one, and this process goes on."""
        with self.connections.reading() as db:
            return newer_version(db)

    def on_commit(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called after each commit of this process that changed a row, on the
        thread that made it; return what ends that. It must be quick and raise nothing."""
        return self.connections.on_commit(listener)

    def listen(self, heard: Callable[[], None]) -> Listener:
        """Have ``heard`` called, on any thread, soon after other processes have committed, as long
        as what is returned :attr:`~Listener.hears`, and when it begins or ceases to. It must be
        quick and raise nothing."""
        return self.connections.listen(heard)

    def time(self) -> float | None:
        """Return the time of the machine where the rows are, in seconds since the epoch; None where
        that is this one. It is what callers on several machines go by
        (:class:`pool.clock.StoreClock`)."""
        return self.connections.time()

    def change_token(self) -> object:
        """Return a value that differs from the last one when the store has changed since.

        Cheap enough to ask several times a second; false alarms are allowed, misses are not.
        The value means nothing across threads.
        """
        return self.connections.change_token()


def open_store(url: str, *, busy_timeout: float = 30.0) -> Store:
    """Open the store at ``url``; a file that is not there is made, its folder is not, nor is a
    database.

    ``sqlite:///pool.db`` is relative to the current folder, ``sqlite:////var/lib/pool.db`` is
    absolute. ``postgresql://host/database`` is what libpq reads; what it leaves out, libpq takes
    from the environment, a service file or a password file. ``busy_timeout`` is how long, in
    seconds, a call waits for other processes that write, and for a server that is away.

    :raises ConfigError: no store is kept at such a URL.
    :raises StoreError: the store cannot be used; the message says why.
    """
    return Store(connections_of(url, busy_timeout=busy_timeout))


def connections_of(url: str, *, busy_timeout: float = 30.0) -> Connections:
    """Return the connections to the store at ``url``, none of which is open.

    :raises ConfigError: no store is kept at such a URL.
    """
    if url.startswith(_POSTGRESQL):
        return _postgresql(url, busy_timeout)
    path = url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or not path or path == ":memory:":
        # What it is may hold a password, so it is not shown.
        raise ConfigError(
            "no store is kept at this address; write sqlite:///relative.db, "
            "sqlite:////absolute.db or postgresql://HOST/DATABASE"
        )
    return SqliteConnections(Path(path).absolute(), busy_timeout=busy_timeout)


def _postgresql(url: str, busy_timeout: float) -> Connections:
    try:
        # Only here, since it is not installed where it is not used.
        from pool.store.postgresql import PostgresConnections
    except ImportError as error:
        raise ConfigError(
            "a store in PostgreSQL needs psycopg; pip install 'cvat-task-pool[postgres]'"
        ) from error
    return PostgresConnections(url, busy_timeout=busy_timeout)
