"""A task for a lease or a request: a warm one at once, or after a wait, or one made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient
from pool.errors import (
    CvatAmbiguous,
    CvatError,
    IdempotencyConflict,
    LeaseEnded,
    PoolEmpty,
    PoolError,
    QueueFull,
    UnknownLease,
    WaitTimeout,
)
from pool.events.feed import Feed
from pool.logs import get_logger
from pool.model import (
    STREAM_FINGERPRINT,
    Handout,
    LeaseRecord,
    LeaseState,
    Levels,
    PooledTask,
    RequestRecord,
    new_id,
)
from pool.requests.breaker import SERVER, Breaker, Circuit
from pool.requests.lifecycle import is_away, outcome_unknown
from pool.requests.recovery import Recovery
from pool.store import NewLease, NewMember, NewRequest, Opened, Store, Unserved

log = get_logger(__name__)


class Placement:
    """Finds a task for each caller, and each task for one caller. Thread-safe.

    The store gives a task that becomes warm to the lease that has waited longest, in the same
    transaction (:func:`pool.store.handout.give_to_waiting`), whichever process it is of. So a
    waiter waits for an event of its own lease only.
    """

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        recovery: Recovery,
        breaker: Breaker,
        *,
        owner: str,
        max_queued: int,
        feed: Feed,
        clock: Clock,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._recovery = recovery
        self._breaker = breaker
        self._owner = owner
        self._max_queued = max_queued
        self._feed = feed
        self._clock = clock

    # --- Rows -------------------------------------------------------------------------------------

    def open(
        self,
        template: Template,
        *,
        request: NewRequest | None = None,
        tenant: str = "",
        name: str | None = None,
        idempotency_key: str | None = None,
        payload: str = "",
        ttl: float | None = None,
        claim: bool = True,
        places: int | None = None,
        max_queued: int | None = None,
    ) -> Opened:
        """Record a lease, with its request, whose tenant it is of then, or its ``name`` if it has
        one, and claim a warm task if there is one and ``claim`` is set; one of a stream claims what
        is the stream's. ``places`` as for :meth:`~pool.store.Store.open_lease`. A known
        ``idempotency_key`` gives the answer of the first call (``replayed``). Without a task the
        lease waits, until :meth:`obtain` or the dispatcher find it one.

        :raises IdempotencyConflict: the key was used with other content.
        :raises QueueFull: as many as ``max_queued`` spooled requests wait already.
        """
        now = self._clock.now()
        asks, tenant = request, request.tenant if request else tenant
        if asks and asks.stream and self._request_with(idempotency_key, tenant):
            # It is answered as before, which takes nothing for its stream.
            asks = None
        fingerprint, reusable_origin = self.wanted(template, asks)
        lease = NewLease(
            id=new_id(now),
            template=template.name,
            fingerprint=fingerprint,
            reusable_origin=reusable_origin,
            owner=self._owner,
            tenant=tenant,
            name=name,
            ttl=template.pool.lease_ttl if ttl is None else ttl,
            idempotency_key=idempotency_key,
            payload=payload,
        )
        return self._store.open_lease(
            lease, request=request, claim=claim, places=places, most_queued=max_queued, now=now
        )

    def accept(
        self,
        template: Template,
        request: NewRequest,
        *,
        idempotency_key: str | None,
        payload: str,
        claim: bool,
        places: int | None = None,
    ) -> Opened:
        """Record a request whose data is in the spool, with a warm task if ``claim`` is set, there
        is one, and no other request waits for it. With ``places`` it waits for one of these too,
        for which no request of any template may wait.

        :raises QueueFull: too many requests wait already.
        :raises PoolEmpty: there is no task, and the template says not to wait for one.
        :raises IdempotencyConflict: the key was used with other content.
        """
        if template.slots is None:
            # A slot is not held up by what has to wait for CVAT.
            waiting = self._store.queued()
            claim = (
                claim
                and self._breaker.uploads(template.name) is Circuit.CLOSED
                and not (waiting.get(template.name) if places is None else any(waiting.values()))
            )
        # With CVAT away, "the pool is empty" would be no reason; with nothing in it, it is.
        # One that waits for a place may find a task then.
        claims = claim and places is None
        fails = template.pool.on_empty == "fail" and (claims or not self.has_warm(template))
        try:
            return self.open(
                template,
                request=request,
                idempotency_key=idempotency_key,
                payload=payload,
                claim=claim,
                places=places,
                max_queued=0 if fails else self._max_queued,
            )
        except QueueFull as error:
            if fails:
                raise _never_waits(template) from None
            error.retry_after = self._breaker.retry_after()
            raise

    def attach(
        self,
        lease_id: str,
        request: NewRequest,
        *,
        idempotency_key: str | None = None,
        payload: str = "",
    ) -> Opened:
        """Record a request for the task of a lease.

        :raises UnknownLease: there is no such lease.
        :raises LeaseEnded: the lease is not active, or has a request already.
        :raises IdempotencyConflict: the key was used with other content.
        """
        known = self._known(request, idempotency_key, payload)
        if known is not None:
            return known
        handout = self._store.attach_request(
            lease_id,
            request,
            owner=self._owner,
            idempotency_key=idempotency_key,
            payload=payload,
            now=self._clock.now(),
        )
        if handout is not None:
            return _opened(handout)
        # The first call with this key may have come in between.
        known = self._known(request, idempotency_key, payload)
        if known is not None:
            return known
        lease = self._store.lease(lease_id)
        if lease is None:
            raise UnknownLease(lease_id)
        raise LeaseEnded(f"lease {lease_id} is {lease.state.value} or has a request already")

    def _request_with(self, key: str | None, tenant: str) -> RequestRecord | None:
        return None if key is None else self._store.request_by_key(key, tenant=tenant)

    def _known(self, new: NewRequest, key: str | None, payload: str) -> Opened | None:
        request = self._request_with(key, new.tenant)
        if request is None:
            return None
        lease = self._store.lease(request.lease_id)
        if request.payload != payload or lease is None:
            raise IdempotencyConflict(f"{key!r}; choose another key")
        return Opened(lease=lease, task=None, request=request, replayed=True)

    # --- A caller on a thread ---------------------------------------------------------------------

    def open_alone(
        self,
        template: Template,
        *,
        tenant: str = "",
        name: str | None,
        idempotency_key: str | None,
        ttl: float | None,
    ) -> Opened:
        """As :meth:`open`, a lease without a request. A key is bound to the template and the
        name."""
        payload = f"lease {template.name}"
        return self.open(
            template,
            tenant=tenant,
            name=name,
            idempotency_key=idempotency_key,
            payload=payload if name is None else f"{payload} {name}",
            ttl=ttl,
        )

    def acquire(
        self,
        template: Template,
        *,
        name: str | None,
        idempotency_key: str | None,
        ttl: float | None,
        timeout: float | None,
    ) -> Opened:
        """Return a lease with its task; with a known ``idempotency_key`` that of the first call,
        whose task may have been given back since.

        :raises WaitTimeout: another call with the same key still waits for its task.
        :raises IdempotencyConflict: the key was used with other content.
        :raises PoolError: as :meth:`obtain`.
        """
        opened = self.open_alone(template, name=name, idempotency_key=idempotency_key, ttl=ttl)
        if opened.replayed:
            return self._await_first_call(template, opened.lease, timeout)
        if opened.task is not None:
            return opened
        keeps = idempotency_key is not None
        return self._obtain_lease(template, opened.lease.id, timeout, keeps=keeps)

    def obtain_slot(
        self, template: Template, lease_id: str, timeout: float | None, *, request: NewRequest
    ) -> Handout | None:
        """Wait for a slot for the waiting lease of a request, as :meth:`obtain` does for a task;
        None when the template says not to wait any longer, but to make a task.

        :raises PoolEmpty: there is none, and the template says not to make a task.
        """
        patience = self.patience(template, timeout)

        def look() -> Handout | None:
            held = self.held(lease_id)
            return held or self.claim(template, lease_id, request=request)

        handout = self._feed.wait_for(look, patience, lease=lease_id)
        if handout is None and template.pool.on_empty == "wait":
            # Creates nothing: raises why there is no slot.
            return self.create(template, lease_id, waited=patience)
        return handout

    def obtain(self, template: Template, lease_id: str, timeout: float | None) -> Handout:
        """Wait for a warm task for a waiting lease, and create one if none becomes warm, as the
        template's ``on_empty`` and ``max_wait`` say; ``timeout`` seconds at most.

        :raises PoolEmpty: there is none, and the template says not to make one.
        :raises CvatError: the pool was empty and CVAT did not make one.
        """
        handout = self.held(lease_id) or self.claim(template, lease_id)
        if handout is not None:
            return handout
        patience = self.patience(template, timeout)
        handout = self._feed.wait_for(lambda: self.held(lease_id), patience, lease=lease_id)
        return handout or self.create(template, lease_id, waited=patience)

    def _obtain_lease(
        self, template: Template, lease_id: str, timeout: float | None, *, keeps: bool
    ) -> Opened:
        with self._recovery.guarding(lease=lease_id):
            try:
                return _opened(self.obtain(template, lease_id, timeout))
            except PoolError:
                handout = self.abandon(lease_id)
                if handout is None:
                    raise
                return _opened(handout)
            except BaseException:
                self.leave(lease_id, keeps=keeps)
                raise

    def _await_first_call(
        self, template: Template, lease: LeaseRecord, timeout: float | None
    ) -> Opened:
        """Wait with the first call with this key; in its place when its process is gone."""

        def check() -> LeaseRecord | None:
            current = self._store.lease(lease.id)
            if current is None:
                return replace(lease, state=LeaseState.ABANDONED)
            if current.state is not LeaseState.WAITING:
                return current
            return current if self._recovery.inherit(lease.id) else None

        current = self._feed.wait_for(check, timeout, lease=lease.id)
        if current is None:
            raise WaitTimeout("the first call with this idempotency key still waits")
        if current.state is LeaseState.WAITING:
            return self._obtain_lease(template, lease.id, timeout, keeps=True)
        return self.replay(current)

    # --- Steps ------------------------------------------------------------------------------------

    def held(self, lease_id: str) -> Handout | None:
        """Return the task that a lease was given, with the request that it is for; None while it
        waits.

        :raises PoolEmpty: the lease has ended without one.
        """
        lease = self._store.lease(lease_id)
        if lease is None or lease.state not in (LeaseState.WAITING, LeaseState.ACTIVE):
            raise PoolEmpty("the lease ended while it waited for a task")
        task = self._store.task(lease.pooled_id) if lease.pooled_id else None
        if task is None:
            return None
        request = self._store.request(lease.request_id) if lease.request_id else None
        return Handout(lease=lease, task=task, request=request)

    def abandon(self, lease_id: str) -> Handout | None:
        """Abandon a lease that waits, so that the next one gets the task. Return its task instead
        if it was given one at the last moment."""
        if self._store.abandon_lease(lease_id, now=self._clock.now()):
            return None
        with suppress(PoolEmpty):
            return self.held(lease_id)
        return None

    def leave(self, lease_id: str, *, keeps: bool) -> None:
        """Give up a lease whose caller has gone. ``keeps`` says that another call with its
        idempotency key may still ask for its task; without, the task is warm again."""
        if self.abandon(lease_id) is None or keeps:
            return
        if self._store.give_back(lease_id, now=self._clock.now()):
            log.info("hand-out taken back: its caller left before the answer", lease_id=lease_id)

    def replay(self, lease: LeaseRecord) -> Opened:
        """Return what the first call with an idempotency key was answered, the task while the
        lease has it.

        :raises PoolEmpty: it got no task.
        """
        if lease.pooled_id is None:
            raise PoolEmpty("the first call with this idempotency key got no task; try again")
        task = self._store.task(lease.pooled_id)
        held = task if task is not None and task.lease_id == lease.id else None
        return Opened(lease=lease, task=held, request=None, replayed=True)

    def patience(self, template: Template, timeout: float | None) -> float:
        """Return how many seconds a caller who would wait ``timeout`` of them waits for a warm
        task.

        :raises PoolEmpty: none at all: the template says to fail.
        """
        settings = template.pool
        if settings.on_empty == "fail":
            raise _never_waits(template)
        patience = settings.max_wait
        if timeout is not None:
            patience = timeout if settings.on_empty == "wait" else min(patience, timeout)
        if settings.on_empty == "create" and not self._is_refilled(template):
            return 0.0
        return patience

    def has_warm(self, template: Template) -> bool:
        """Whether there is a warm task that would do."""
        return warm_tasks(self._store, template) > 0

    def wanted(
        self, template: Template, request: NewRequest | Unserved | None
    ) -> tuple[str, str | None]:
        """Return the fingerprint of what will do for a request, and the origin of older tasks that
        would. A stream gets a task for itself, if one is there, and no older request of the stream
        waits; else nothing will do for now."""
        if request is None or request.stream is None or template.slots is None:
            return template.fingerprint, template.reusable_origin
        used = self._store.use_stream(
            template.name,
            request.stream,
            template.fingerprint,
            tenant=request.tenant,
            request_id=request.id,
            now=self._clock.now(),
        )
        return used.fingerprint if used else STREAM_FINGERPRINT, None

    def claim(
        self,
        template: Template,
        lease_id: str,
        members: Sequence[NewMember] = (),
        *,
        request: NewRequest | None = None,
    ) -> Handout | None:
        """Claim a warm task for a lease that waits, or for several requests, the first of which is
        that of the lease; None when there is none, or one of them waits no longer. A
        ``request`` of a stream gets one of its slots."""
        fingerprint, reusable_origin = self.wanted(template, request)
        if members:
            return self._store.claim_queued(
                members,
                fingerprint,
                reusable_origin=reusable_origin,
                owner=self._owner,
                now=self._clock.now(),
            )
        return self._store.claim_warm(
            lease_id, fingerprint, reusable_origin=reusable_origin, now=self._clock.now()
        )

    def create(
        self,
        template: Template,
        lease_id: str,
        *,
        waited: float,
        joined: Callable[[], Sequence[NewMember]] = tuple,
    ) -> Handout:
        """Create a task for a lease that has waited in vain for so many seconds, unless one is warm
        by now, or the lease was given one meanwhile: then the created one goes to the pool.

        ``joined`` is called when the task is there, and returns the requests that share it, the
        lease's first; none where that has it for itself. Where one of the others waits no longer,
        none of them shares it.

        :raises PoolEmpty: the template says not to make one, or the lease has ended.
        :raises CvatError: CVAT did not make one.
        """
        members: Sequence[NewMember] = ()
        handout = self.held(lease_id)
        if handout is None and self.has_warm(template):
            members = joined()
            handout = self.claim(template, lease_id, members)
        if handout is not None:
            return handout
        if template.pool.on_empty == "wait":
            raise PoolEmpty(
                f"no task of template {template.name!r} became warm within {round(waited, 1):g} s; "
                f"{self._why_empty(template)}"
            )
        # Before there is a row: without credentials there is nothing to create with.
        cvat = self._cvat()
        now = self._clock.now()
        pooled = self._store.begin_create(
            new_id(now),
            template.name,
            template.fingerprint,
            origin=template.origin,
            limit=None,
            owner=self._owner,
            now=now,
        )
        if pooled is None:
            raise PoolError("a create without a limit was refused by the store")
        try:
            prepared = create_on_server(self._store, cvat, template, pooled, clock=self._clock)
        except CvatError as error:
            log.warning("cold create failed", template=template.name, why=str(error))
            # A refusal may be about the credentials of this process alone.
            if is_away(error) and self._breaker.has_daemon():
                self._breaker.create_failed(template, error)
            raise
        self._breaker.create_worked(template.name)
        members = members or joined()
        for shared in (members, ()) if members else ((),):
            handout = handout or self._store.finish_cold(
                pooled.id,
                lease_id,
                members=shared,
                prepared=prepared,
                owner=self._owner,
                now=self._clock.now(),
            )
        now = self._clock.now()
        if handout is None:
            self._store.finish_create(pooled.id, prepared=prepared, now=now)
            handout = self.held(lease_id)
        if handout is None:
            raise PoolError(f"lease {lease_id} did not take the task that was created for it")
        return handout

    def _is_refilled(self, template: Template) -> bool:
        store = self._store
        if store.maintainer(now=self._clock.now()) is None or template.name in store.paused():
            return False
        return not self._store.holds().keys() & {template.name, SERVER}

    def _why_empty(self, template: Template) -> str:
        levels = self._store.levels().get(template.name, Levels())
        if levels.capacity and not self._store.capacity_of(template.name, template.fingerprint):
            return (
                "those of the pool were made by another version of the template: is the "
                "configuration of this process older than the daemon's?"
            )
        return "see 'cvat-pool status'"


def warm_tasks(store: Store, template: Template) -> int:
    """Return how many warm tasks of a template can be handed out, with those that it made before
    a change that does not matter for them."""
    return store.warm_of(template.name, template.fingerprint) + older_warm(store, template)


def older_warm(store: Store, template: Template) -> int:
    """Return how many warm tasks that the template made before can still be handed out."""
    if template.reusable_origin is None:
        return 0
    return store.older_warm_of(
        template.name, template.fingerprint, reusable_origin=template.reusable_origin
    )


def create_on_server(
    store: Store, cvat: CvatClient, template: Template, pooled: PooledTask, *, clock: Clock
) -> bool:
    """Create the task of a ``CREATING`` row and prepare its upload; return whether it is prepared.

    The row is still ``CREATING`` afterwards, with CVAT's id. When the server has certainly made
    nothing, the row is ``FAILED``. After a 5xx the task is looked up by its name at once. When the
    answer was lost the create may still happen: the row stays, to be settled by its name later.

    :raises pool.errors.CvatError: the task was not created, or that is unknown.
    """
    try:
        task_id = cvat.create_task(template.create_fields, pooled.name)
    except CvatError as error:
        made = None
        if outcome_unknown(error):
            if isinstance(error, CvatAmbiguous):
                raise
            made = _task_named(cvat, pooled.name, error)
        if made is None:
            store.fail_create(pooled.id, reason=str(error), now=clock.now())
            raise
        task_id = made
    store.record_created(pooled.id, task_id=task_id, now=clock.now())
    try:
        cvat.prepare_upload(task_id)
    except CvatError as error:
        # The upload does without it, only a little slower.
        log.info("upload not prepared", task_id=task_id, template=template.name, why=str(error))
        return False
    return True


def _task_named(cvat: CvatClient, name: str, error: CvatError) -> int | None:
    """Return the task that a create has made although its answer was a 5xx; None if it made none.

    :raises pool.errors.CvatError: ``error``, when the server cannot be asked.
    """
    try:
        found = cvat.find_tasks(name)
    except CvatError:
        raise error from None
    return found[0].id if found else None


def _never_waits(template: Template) -> PoolEmpty:
    return PoolEmpty(
        f'template {template.name!r} has on_empty = "fail", so try again in a moment; see '
        "'cvat-pool status'"
    )


def _opened(handout: Handout) -> Opened:
    return Opened(lease=handout.lease, task=handout.task, request=handout.request, replayed=False)
