"""The store on SQLite: what the protocol names, as transactions on one file.

Every method is a function of the module that its subject names; here stands only in which kind
of transaction it runs. The promises are those of :class:`pool.store.base.Store`.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlite_utils import Database

from pool.errors import StoreError
from pool.model import Handout
from pool.store import (
    at_end,
    creating,
    eventing,
    finalizing,
    handing_out,
    importing,
    looking,
    pruning,
    queueing,
    retiring,
    timekeeping,
    upkeep,
)
from pool.store import webhooks as hooks
from pool.store.base import Store
from pool.store.connections import Connections, connect, make_file
from pool.store.failures import check_place, explain, is_busy
from pool.store.migrations import migrations, unknown_to_us

P = ParamSpec("P")
R = TypeVar("R")

#: Threads of one process that open a store do so one after the other.
_opening = threading.Lock()
#: Longest pause, in seconds, before another look at a file that is being made by others.
_PAUSE = 0.05


def _writes(
    function: Callable[Concatenate[Database, P], R],
) -> Callable[Concatenate[SqliteStore, P], R]:
    """A method that is one durable transaction."""

    def method(store: SqliteStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with store.connections.writing() as db:
            return function(db, *args, **kwargs)

    return _named_after(function, method)


def _reads(
    function: Callable[Concatenate[Database, P], R],
) -> Callable[Concatenate[SqliteStore, P], R]:
    """A method that only looks."""

    def method(store: SqliteStore, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with store.connections.reading() as db:
            return function(db, *args, **kwargs)

    return _named_after(function, method)


def _named_after(function: Callable[..., object], method: Callable[P, R]) -> Callable[P, R]:
    promised = getattr(Store, function.__name__, None)
    method.__name__ = function.__name__
    method.__qualname__ = f"SqliteStore.{function.__name__}"
    method.__doc__ = promised.__doc__ if promised else function.__doc__
    return method


class SqliteStore:
    """The rows of one pool in a SQLite file; any number of threads and processes may share it.

    It has to be a local file: the locks that SQLite needs do not work on network drives.
    """

    def __init__(self, path: Path, *, busy_timeout: float) -> None:
        check_place(path)
        with _opening:
            self._pool_id = _make_ready(path, busy_timeout)
        self.connections = Connections(path, busy_timeout=busy_timeout)

    @property
    def pool_id(self) -> str:
        return self._pool_id

    def close(self) -> None:
        self.connections.close()

    def change_token(self) -> object:
        return self.connections.change_token()

    def on_commit(self, listener: Callable[[], None]) -> None:
        self.connections.listeners += (listener,)

    check_writable = _writes(upkeep.check_writable)
    renew_owner = _writes(upkeep.renew_owner)
    forget_owner = _writes(upkeep.forget_owner)

    begin_create = _writes(creating.begin_create)
    record_created = _writes(creating.record_created)
    finish_create = _writes(creating.finish_create)
    finish_cold = _writes(creating.finish_cold)
    fail_create = _writes(creating.fail_create)

    open_lease = _writes(handing_out.open_lease)
    abandon_lease = _writes(handing_out.abandon_lease)
    give_back = _writes(handing_out.give_back)
    end_lease = _writes(handing_out.end_lease)
    attach_request = _writes(handing_out.attach_request)
    expired_leases = _reads(looking.expired_leases)
    watched_leases = _reads(looking.watched_leases)

    def inherit_lease(self, lease_id: str, *, owner: str, now: float) -> bool:
        # Asked as often as claim_warm, and nearly always in vain.
        with self.connections.reading() as db:
            if not handing_out.is_deserted(db, lease_id, owner=owner, now=now):
                return False
        with self.connections.writing() as db:
            return handing_out.inherit_lease(db, lease_id, owner=owner, now=now)

    def claim_warm(
        self, lease_id: str, fingerprint: str, *, older_from: str | None = None, now: float
    ) -> Handout | None:
        # Many waiters ask often, and mostly in vain; looking needs no turn at writing.
        with self.connections.reading() as db:
            if not handing_out.can_claim(db, lease_id, fingerprint, older_from=older_from, now=now):
                return None
        with self.connections.writing() as db:
            return handing_out.claim_warm(db, lease_id, fingerprint, older_from=older_from, now=now)

    def claim_queued(
        self,
        request_id: str,
        fingerprint: str,
        *,
        older_from: str | None = None,
        owner: str,
        now: float,
    ) -> Handout | None:
        with self.connections.reading() as db:
            if not queueing.can_claim_queued(
                db, request_id, fingerprint, older_from=older_from, now=now
            ):
                return None
        with self.connections.writing() as db:
            return queueing.claim_queued(
                db, request_id, fingerprint, older_from=older_from, owner=owner, now=now
            )

    begin_import = _writes(importing.begin_import)
    begin_foreign_import = _writes(importing.begin_foreign_import)
    complete_import = _writes(importing.complete_import)
    fail_import = _writes(importing.fail_import)
    fail_request = _writes(importing.fail_request)
    return_request = _writes(importing.return_request)
    requeue_request = _writes(importing.requeue_request)
    cancel_request = _writes(importing.cancel_request)
    adopt_requests = _writes(importing.adopt_requests)
    importing_tasks = _reads(looking.importing_tasks)
    queue_request = _writes(queueing.queue_request)
    take_spooled = _writes(queueing.take_spooled)
    unserved = _reads(queueing.unserved)
    queued = _reads(queueing.queued)
    request_by_key = _reads(queueing.request_by_key)
    queue_length = _reads(queueing.queue_length)
    due_steps = _reads(finalizing.due_steps)
    steps_of = _reads(finalizing.steps_of)
    end_step = _writes(finalizing.end_step)
    postpone_step = _writes(finalizing.postpone_step)
    warn = _writes(finalizing.warn)

    retire = _writes(retiring.retire)
    retire_other_fingerprints = _writes(retiring.retire_other_fingerprints)
    retire_older = _writes(retiring.retire_older)
    retire_excess = _writes(retiring.retire_excess)
    begin_delete = _writes(retiring.begin_delete)
    finish_delete = _writes(retiring.finish_delete)
    disown = _writes(retiring.disown)
    adopt_task = _writes(retiring.adopt_task)
    doubt_warm = _writes(retiring.doubt_warm)
    trust_warm = _writes(retiring.trust_warm)
    move_times = _writes(timekeeping.move_times)
    prune = _writes(pruning.prune)

    levels = _reads(looking.levels)
    warm_of = _reads(looking.warm_of)
    older_warm_of = _reads(looking.older_warm_of)
    capacity_of = _reads(looking.capacity_of)
    in_flight = _reads(looking.in_flight)
    last_activity = _reads(looking.last_activity)
    waiting = _reads(looking.waiting)
    task = _reads(looking.task)
    task_on_server = _reads(looking.task_on_server)
    tasks = _reads(looking.tasks)
    lease = _reads(looking.lease)
    leases = _reads(looking.leases)
    request = _reads(looking.request)
    requests = _reads(looking.requests)
    jobs_of = _reads(looking.jobs_of)
    requests_at_end = _reads(at_end.requests_at_end)
    leases_at_end = _reads(at_end.leases_at_end)

    demand = _reads(looking.demand)
    lead_times = _reads(looking.lead_times)
    asked = _reads(looking.asked)
    create_times = _reads(looking.create_times)
    hand_outs = _reads(looking.hand_outs)
    learned_paces = _reads(upkeep.learned_paces)
    learn_paces = _writes(upkeep.learn_paces)
    keep_configuration = _writes(upkeep.keep_configuration)
    configuration = _reads(upkeep.configuration)
    hold = _writes(upkeep.hold)
    release_hold = _writes(upkeep.release_hold)
    holds = _reads(upkeep.holds)
    others_created = _reads(upkeep.others_created)
    others_uploaded = _reads(upkeep.others_uploaded)
    pause = _writes(upkeep.pause)
    resume = _writes(upkeep.resume)
    paused = _reads(upkeep.paused)
    drain = _writes(retiring.drain)
    drained = _reads(upkeep.drained)
    prewarm = _writes(upkeep.prewarm)
    end_prewarm = _writes(upkeep.end_prewarm)
    prewarms = _reads(upkeep.prewarms)
    acquire_maintenance = _writes(upkeep.acquire_maintenance)
    release_maintenance = _writes(upkeep.release_maintenance)
    maintainer = _reads(upkeep.maintainer)
    broken_off_maintenance = _reads(upkeep.broken_off_maintenance)

    events_after = _reads(eventing.events_after)
    last_event_id = _reads(eventing.last_event_id)
    event_at = _reads(eventing.event_at)
    prune_events = _writes(eventing.prune_events)
    ended_requests = _reads(eventing.ended_requests)
    open_sinks = _writes(eventing.open_sinks)
    sinks = _reads(eventing.sinks)
    pass_events = _writes(eventing.pass_events)
    fail_sink = _writes(eventing.fail_sink)

    webhook_secret = _reads(hooks.webhook_secret)
    keep_webhook_secret = _writes(hooks.keep_webhook_secret)
    webhooks = _reads(hooks.webhooks)
    keep_webhook = _writes(hooks.keep_webhook)
    forget_webhook = _writes(hooks.forget_webhook)
    miss_webhook = _writes(hooks.miss_webhook)

    def hear_webhook(self, hook_id: int, *, now: float) -> bool:
        # Deliveries come many a second, and all but the first of them need no turn at writing.
        with self.connections.reading() as db:
            if not hooks.has_to_hear(db, hook_id, now=now):
                return False
        with self.connections.writing() as db:
            return hooks.hear_webhook(db, hook_id, now=now)


# --- Making a file into a store ------------------------------------------------------------------


def _make_ready(path: Path, busy_timeout: float) -> str:
    """Make the file and its tables, where they are missing, and answer the pool's id.

    Several processes may do this at the same time. SQLite does not wait, but fails, when two of
    them switch a new file to write-ahead logging, so whoever was too early tries again.
    """
    give_up = time.monotonic() + busy_timeout
    while True:
        try:
            return _try_make_ready(path, busy_timeout)
        except sqlite3.Error as error:
            if not is_busy(error) or time.monotonic() > give_up:
                raise explain(error, path, busy_timeout=busy_timeout) from error
        time.sleep(random.uniform(0.0, _PAUSE))


def _try_make_ready(path: Path, busy_timeout: float) -> str:
    make_file(path)
    db = connect(path, busy_timeout=busy_timeout)
    try:
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreError(f"{path} is where SQLite cannot share memory; use a local disk")
        if unknown_to_us(db):
            raise StoreError(f"{path} was made by a newer version of cvat-task-pool; upgrade")
        if migrations.pending(db):
            db.execute("BEGIN IMMEDIATE")
            migrations.apply(db)
            db.execute("COMMIT")
        return creating.pool_id(db)
    finally:
        db.conn.close()
