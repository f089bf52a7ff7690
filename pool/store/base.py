"""What a store must do. ``tests/conformance`` is the definition; this is its vocabulary.

The protocol speaks of what happens to tasks, leases and requests, never of SQL. Three rules
hold for every method that changes something:

* It is one transaction, durable when the method returns: after a power cut the change is there.
* It says the state that it expects. When the row is in another one, nothing changes and the
  method answers None, False or an empty list; nobody's decision is overwritten.
* ``now`` is given by the caller (seconds since the epoch), so a store has no clock of its own.

A store may be used from any number of threads and, on one machine, processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pool.model import (
    Demand,
    FinalKind,
    FinalStep,
    Handout,
    Job,
    LearnedPace,
    LeaseRecord,
    LeaseState,
    Levels,
    Outcome,
    PooledTask,
    RequestRecord,
    RequestState,
    RequestWarning,
    TaskState,
)
from pool.store.event_rows import EventRows
from pool.store.queue_rows import QueueRows
from pool.store.upkeep_rows import UpkeepRows
from pool.store.waiting_rows import WaitingRows
from pool.store.webhook_rows import WebhookRows

#: Seconds in one bucket of the demand history.
DEMAND_BUCKET = 10.0
#: Seconds for which the process that served a request is left to name and assign its task.
FINAL_GRACE = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRequest:
    """The part of a request that its caller decides; see :class:`pool.model.RequestRecord`."""

    id: str
    name: str | None = None
    assignee: int | None = None
    files: tuple[str, ...] = ()
    size: int = 0
    spooled: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NewLease:
    """A caller's wish for a task.

    ``fingerprint`` is the only one that will do, so that no task made by an older template is
    handed out; unless ``older_from`` names the origin of those that will do where none of the
    fingerprint is warm. ``ttl`` is how long the hand-out lasts, in seconds. ``payload`` is a
    digest of what is asked for; an ``idempotency_key`` is bound to it.
    """

    id: str
    template: str
    fingerprint: str
    owner: str
    ttl: float
    older_from: str | None = None
    idempotency_key: str | None = None
    payload: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What :meth:`Store.open_lease` did.

    ``replayed`` tells that the idempotency key was known, so that ``lease`` and ``request``
    are those of the first call, in whatever state they are now. ``task`` is None while the
    lease waits for one.
    """

    lease: LeaseRecord
    task: PooledTask | None
    request: RequestRecord | None
    replayed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class CreateLimit:
    """How many tasks of a template may be warm or on their way, and how many on their way."""

    capacity: int
    concurrency: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """When tasks were asked for, in ascending order, and how often that came to which outcome;
    None is no task at all."""

    times: Sequence[float]
    outcomes: Mapping[Outcome | None, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page of requests, newest first, and the cursor of the next one, if there is one."""

    requests: tuple[RequestRecord, ...]
    next_cursor: str | None


class Store(EventRows, QueueRows, UpkeepRows, WaitingRows, WebhookRows, Protocol):
    """The rows of one pool."""

    @property
    def pool_id(self) -> str:
        """Eight characters chosen when the store was made; they mark this pool's tasks."""

    def close(self) -> None:
        """Let go of all connections. Closing twice does nothing."""

    def check_writable(self) -> None:
        """Raise :class:`pool.errors.StoreError` when a durable write is not possible now."""

    def on_commit(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after each commit of this process that changed a row, on the
        thread that made it. It must be quick and raise nothing."""

    def change_token(self) -> object:
        """A value that differs from the last one when anybody has changed the store since.

        Cheap enough to ask several times a second; False alarms are allowed, misses are not.
        The value means nothing across threads.
        """

    # --- Owners: the processes at work on the store ---------------------------------------

    def renew_owner(self, owner: str, *, until: float) -> None:
        """Say that the process ``owner`` is alive, and will have said so again by ``until``."""

    def forget_owner(self, owner: str) -> None:
        """The process ``owner`` ends in an orderly way: what it owns is free at once."""

    # --- Creating ---------------------------------------------------------------------------

    def begin_create(
        self,
        pooled_id: str,
        template: str,
        fingerprint: str,
        *,
        origin: str = "",
        limit: CreateLimit | None,
        owner: str,
        now: float,
    ) -> PooledTask | None:
        """Write down the intent to create a task, as ``CREATING``, before the server is told.

        With a ``limit``, only while fewer than ``limit.capacity`` tasks of the template and
        fingerprint are warm or creating, and fewer than ``limit.concurrency`` of the template
        are creating for the pool (cold ones, that is without a limit, do not count). None when the
        limit is reached: count and insert are one statement.
        """

    def record_created(self, pooled_id: str, *, task_id: int, now: float) -> bool:
        """CVAT has answered with its id; the task is still ``CREATING``."""

    def finish_create(
        self, pooled_id: str, *, prepared: bool, took: float | None = None, now: float
    ) -> bool:
        """``CREATING`` to ``WARM``; needs :meth:`record_created` before. From the seconds that it
        ``took``, where they are known, the template's lead time is learned."""

    def finish_cold(
        self, pooled_id: str, lease_id: str, *, prepared: bool, now: float
    ) -> Handout | None:
        """``CREATING`` to ``LEASED``, for the waiting lease that it was created for (``COLD``).

        None when the lease waits no longer; the task is then left as it is, and
        :meth:`finish_create` can put it into the pool.
        """

    def fail_create(self, pooled_id: str, *, reason: str, now: float) -> bool:
        """``CREATING`` to ``FAILED``: the server certainly has no such task, or it is no use."""

    # --- Handing out ------------------------------------------------------------------------

    def open_lease(
        self,
        lease: NewLease,
        *,
        request: NewRequest | None = None,
        claim: bool = True,
        most_queued: int | None = None,
        now: float,
    ) -> Opened:
        """Accept a wish for a task and, in the same transaction, claim a warm one if there is.

        With a task: the lease is ``ACTIVE``, the task ``LEASED``, a request ``UPLOADING``; and a
        ``HIT`` is counted, for a request once its data is accepted. Without: the lease is
        ``WAITING`` and a request ``QUEUED``. The template's oldest warm task of the fingerprint is
        taken; where there is none, and only then, the newest of ``lease.older_from``. No two
        callers get the same. Without ``claim``
        none is looked for. A spooled request that is ``QUEUED`` is nobody's.

        A known ``idempotency_key`` changes nothing and answers what it answered before, except
        for a task that was given back: ``task`` is None then. Keys of leases and of requests are
        separate; with a request, the key stands in the request alone.

        :raises pool.errors.IdempotencyConflict: the key is known with another ``payload``.
        :raises pool.errors.QueueFull: the request would be ``QUEUED`` and as many as
            ``most_queued`` spooled ones are already; nothing has changed.
        """

    def claim_warm(
        self, lease_id: str, fingerprint: str, *, older_from: str | None = None, now: float
    ) -> Handout | None:
        """Claim a warm task for a ``WAITING`` lease, as :meth:`open_lease` does; a ``WAIT`` is
        counted, for a request once its data is accepted.

        None when there is no warm task, or when the lease does not wait (any more). A cheap
        read comes first, so that many waiters can ask often.
        """

    def inherit_lease(self, lease_id: str, *, owner: str, now: float) -> bool:
        """A ``WAITING`` lease without a request, whose owner is gone, is ``owner``'s: another call
        with its idempotency key waits in place of the first. One's own is not taken."""

    def attach_request(
        self,
        lease_id: str,
        request: NewRequest,
        *,
        owner: str,
        idempotency_key: str | None = None,
        payload: str = "",
        now: float,
    ) -> Handout | None:
        """The holder of an ``ACTIVE`` lease gives data to the pool: the request is ``UPLOADING``
        into the lease's task, with the lease's outcome. None when the lease is not active, or
        has a request already. No hand-out is counted: the lease was. An ``idempotency_key`` must
        not be known (:meth:`request_by_key`)."""

    def abandon_lease(self, lease_id: str, *, now: float) -> bool:
        """A ``WAITING`` lease stops waiting; its idempotency key is free for another try. So is
        that of the request that waits with it, if one does, which is ``CANCELLED``."""

    def give_back(self, lease_id: str, *, now: float, expired: bool = False) -> bool:
        """An ``ACTIVE`` lease without a request ends, and its untouched task is ``WARM`` again.

        The lease becomes ``RELEASED``, or ``EXPIRED`` when ``expired`` is set.
        """

    def end_lease(self, lease_id: str, *, reason: str, now: float) -> bool:
        """An ``ACTIVE`` lease without a request ends (``EXPIRED``), its task is ``RETIRED``."""

    def expired_leases(self, *, now: float, limit: int = 100) -> Sequence[Handout]:
        """``ACTIVE`` leases without a request whose ``expires_at`` has passed."""

    def watched_leases(self) -> Sequence[Handout]:
        """``ACTIVE`` leases without a request, and ``USED`` ones whose task is ``IMPORTING``:
        their callers upload by themselves, and the pool watches."""

    # --- Data on its way --------------------------------------------------------------------

    # A call that names a lease as ``under`` has no effect once the request has another: whoever
    # had worked on it was taken for dead, and somebody else does now.

    def begin_import(
        self, request_id: str, *, under: str | None = None, deadline: float, now: float
    ) -> bool:
        """CVAT has accepted the data: request and task are ``IMPORTING``, the lease ``USED``."""

    def begin_foreign_import(self, lease_id: str, *, now: float) -> bool:
        """A caller's own upload was noticed: the task is ``IMPORTING``, the lease ``USED``."""

    def complete_import(self, pooled_id: str, jobs: Sequence[Job], *, now: float) -> bool:
        """The jobs exist: the task is ``READY`` from ``IMPORTING`` or ``LEASED``, its lease
        ``USED``, its requests (``IMPORTING`` or ``UPLOADING``) ``READY``; the jobs are kept."""

    def fail_import(self, pooled_id: str, *, code: str, message: str, now: float) -> bool:
        """The task is burnt: ``FAILED`` from ``IMPORTING`` or ``LEASED``, its lease ``USED``,
        and its requests ``FAILED`` with ``code`` and ``message``."""

    def fail_request(
        self, request_id: str, *, under: str | None = None, code: str, message: str, now: float
    ) -> bool:
        """A request fails before CVAT has accepted its data.

        From ``QUEUED``: its waiting lease is ``ABANDONED``, and its idempotency key is free for
        another try, since nothing was done for it; that of a spooled one is not, since its caller
        was told that it is accepted. From ``UPLOADING``: its lease is ``USED`` and its task
        ``FAILED``, since data may have touched it.
        """

    def return_request(
        self, request_id: str, *, under: str | None = None, code: str, message: str, now: float
    ) -> bool:
        """A request fails before any data was sent: as :meth:`fail_request`, but from
        ``UPLOADING`` its untouched task is ``WARM`` again, its lease ``RELEASED``, and its key
        free like that of a ``QUEUED`` one."""

    def requeue_request(
        self, request_id: str, *, under: str | None = None, lease_id: str, reason: str, now: float
    ) -> bool:
        """A request needs another task: ``QUEUED`` from ``UPLOADING`` or ``IMPORTING``, with a
        fresh waiting lease ``lease_id``. The old task is ``FAILED``, the old lease ``USED``; one
        more task is spent. A spooled request is nobody's then."""

    def cancel_request(self, request_id: str, *, now: float) -> bool:
        """A ``QUEUED`` request is ``CANCELLED``, and its waiting lease ``ABANDONED``."""

    def adopt_requests(self, owner: str, *, now: float) -> Sequence[RequestRecord]:
        """Take over all unfinished requests whose owner is gone (not renewed in time, or
        forgotten), with their leases. Each is taken over by one process only. Answers those
        taken. Leases that wait without a request, and whose owner is gone, are ``ABANDONED``.
        Spooled requests that CVAT has not accepted yet are left to :meth:`take_spooled`."""

    def importing_tasks(self, *, owner: str) -> Sequence[tuple[PooledTask, RequestRecord]]:
        """``IMPORTING`` requests that ``owner`` tracks, with their tasks."""

    # --- What is left to do for a ready task --------------------------------------------------

    def due_steps(self, *, now: float, limit: int) -> Sequence[FinalStep]:
        """What is left for ``READY`` tasks and due, the longest due first. :meth:`complete_import`
        leaves a name for each task, and an assignment where the request has an assignee, due
        :data:`FINAL_GRACE` later: until then the process that served it does them."""

    def steps_of(self, pooled_id: str) -> Sequence[FinalStep]:
        """What is left for one task, due or not."""

    def end_step(
        self,
        pooled_id: str,
        kind: FinalKind,
        *,
        name: str | None = None,
        warning: RequestWarning | None = None,
        now: float,
    ) -> bool:
        """A step is done, or given up: then its request has the ``warning``. ``name`` is what the
        task is called from now on. Once only."""

    def postpone_step(
        self,
        pooled_id: str,
        kind: FinalKind,
        *,
        tries: int,
        left: Sequence[int] | None,
        due_at: float,
    ) -> bool:
        """A step is to be tried again; the values are those of :class:`pool.model.FinalStep`."""

    def warn(self, request_id: str, warning: RequestWarning, *, now: float) -> bool:
        """Warn of something; of each code once for a request."""

    # --- Looking ----------------------------------------------------------------------------

    def levels(self) -> Mapping[str, Levels]:
        """Live tasks by template and state. Costs the same however many rows are finished."""

    def warm_of(self, template: str, fingerprint: str) -> int:
        """How many warm tasks of the fingerprint there are."""

    def older_warm_of(self, template: str, fingerprint: str, *, older_from: str) -> int:
        """How many warm tasks of other fingerprints and of the origin ``older_from`` there are."""

    def capacity_of(self, template: str, fingerprint: str) -> int:
        """How many tasks of the fingerprint are warm, or being created for the pool (not cold):
        what ``CreateLimit.capacity`` is compared with."""

    def in_flight(self) -> int:
        """Requests ``UPLOADING`` or ``IMPORTING``, of all processes: the foreground."""

    def last_activity(self) -> float:
        """When one of the newest requests last began or ended; 0 when there never was one."""

    def waiting(self, template: str) -> int:
        """How many leases without a request wait for a task of the template, of all processes.
        What else wants a task is :meth:`queued`."""

    def task(self, pooled_id: str) -> PooledTask | None:
        """One task by our id."""

    def tasks(
        self, *, template: str | None = None, states: Sequence[TaskState] = ()
    ) -> Sequence[PooledTask]:
        """Tasks in live states (or in ``states``), oldest first."""

    def lease(self, lease_id: str) -> LeaseRecord | None:
        """One lease."""

    def leases(
        self, states: Sequence[LeaseState] = (), *, limit: int = 100
    ) -> Sequence[LeaseRecord]:
        """The newest leases first."""

    def request(self, request_id: str) -> RequestRecord | None:
        """One request."""

    def requests(
        self,
        *,
        state: RequestState | None = None,
        template: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """The newest requests first, a page at a time.

        :raises pool.errors.InputError: no page gave such a cursor, or ``limit`` is below 1.
        """

    def jobs_of(self, pooled_id: str) -> Sequence[Job]:
        """The jobs of a ready task, by id; empty before that."""

    # --- Demand and what was learned ----------------------------------------------------------

    def demand(self, template: str, *, since: float) -> Sequence[Demand]:
        """Hand-outs by bucket of :data:`DEMAND_BUCKET` seconds, oldest first, empty ones left
        out."""

    def hand_outs(self) -> Mapping[str, Mapping[Outcome, int]]:
        """All hand-outs ever, by template and outcome."""

    def lead_times(self) -> Mapping[str, float]:
        """Seconds that a create takes, by template, as learned by :meth:`finish_create`."""

    def asked(self, template: str, *, since: float, until: float, limit: int) -> Asked:
        """When tasks of a template were asked for, from ``since`` to ``until``, the newest
        ``limit`` times. A request counts once, when it was made, however many leases it has used
        up; what still waits does not count. Takes eight bytes of memory for each."""

    def create_times(self, template: str, *, since: float) -> Sequence[float]:
        """How many seconds the creates for a template's pool took that began after ``since``, in
        ascending order."""

    def learned_paces(self) -> Mapping[str, LearnedPace]:
        """What was kept by :meth:`learn_paces`, by size class."""

    def learn_paces(self, paces: Mapping[str, LearnedPace]) -> None:
        """Keep what was learned of import times, each in place of what was kept before."""
