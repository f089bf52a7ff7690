"""Handing out: a warm task at once, or after a wait, or one made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient
from pool.errors import CvatError, PoolEmpty, PoolError, WaitTimeout
from pool.events.notifier import Signal
from pool.logs import get_logger
from pool.model import Handout, LeaseRecord, LeaseState, Levels, RequestRecord, new_id
from pool.requests.backoff import SERVER, is_away
from pool.requests.breaker import Breaker
from pool.requests.create import create_on_server
from pool.requests.recovery import Strays
from pool.store import NewLease, NewRequest, Opened, Store

log = get_logger(__name__)

#: Has a request wait that nothing was done for because of an error, if that is a reason to.
PutAside = Callable[[RequestRecord, BaseException], RequestRecord | None]

#: Seconds between two looks into the store while waiting for a task that another process makes.
FIRST_LOOK = 0.01
LONGEST_LOOK = 0.1


class HandOut:
    """Gives tasks to callers, each to one."""

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        strays: Strays,
        breaker: Breaker,
        *,
        owner: str,
        clock: Clock,
        warm: Signal,
        handed_out: Signal,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._strays = strays
        self._breaker = breaker
        self._owner = owner
        self._clock = clock
        self._warm = warm
        self._handed_out = handed_out

    def open(
        self,
        template: Template,
        *,
        request: NewRequest | None = None,
        idempotency_key: str | None = None,
        payload: str = "",
        ttl: float | None = None,
        timeout: float | None = None,
        put_aside: PutAside | None = None,
    ) -> Opened:
        """A task for one caller, with the request it is for, if any.

        Waits and creates as the template's ``on_empty`` says, at most ``timeout`` seconds. With
        a known ``idempotency_key`` the answer is that of the first call (``replayed``). When CVAT
        does not make a task, ``put_aside`` may have the request wait for that: then the answer has
        no task.

        :raises PoolEmpty: there is none, and the template says not to make one.
        :raises WaitTimeout: another call with the same key still waits for its task.
        :raises CvatError: the pool was empty and CVAT did not make one.
        :raises IdempotencyConflict: the key was used with other content.
        """
        opened = self.begin(
            template, request=request, idempotency_key=idempotency_key, payload=payload, ttl=ttl
        )
        if opened.replayed:
            return self._await_first_call(template, opened, timeout)
        if opened.task is not None:
            return opened
        with nullcontext() if request else self._strays.of_lease(opened.lease.id):
            return self._obtain(template, opened, timeout, put_aside)

    # --- The steps of it, none of which waits -------------------------------------------------

    def begin(
        self,
        template: Template,
        *,
        request: NewRequest | None = None,
        idempotency_key: str | None = None,
        payload: str = "",
        ttl: float | None = None,
        claim: bool = True,
        most_queued: int | None = None,
    ) -> Opened:
        """Write the wish down, and take a warm task if there is one and ``claim`` is set. Without
        a task, the lease waits: the caller goes on with :meth:`claim` and :meth:`create`, or gives
        it up.

        :raises IdempotencyConflict: the key was used with other content.
        :raises QueueFull: as many as ``most_queued`` spooled requests wait already.
        """
        now = self._clock.now()
        lease = NewLease(
            id=new_id(now),
            template=template.name,
            fingerprint=template.fingerprint,
            older_from=template.older_from,
            owner=self._owner,
            ttl=template.pool.lease_ttl if ttl is None else ttl,
            idempotency_key=idempotency_key,
            payload=payload,
        )
        opened = self._store.open_lease(
            lease, request=request, claim=claim, most_queued=most_queued, now=now
        )
        if not opened.replayed:
            self._handed_out.announce()
        return opened

    def patience(self, template: Template, timeout: float | None) -> float:
        """How many seconds a caller who would wait ``timeout`` of them waits for a warm task.

        :raises PoolEmpty: none at all: the template says to fail.
        """
        settings = template.pool
        if settings.on_empty == "fail":
            raise PoolEmpty(f'template {template.name!r} has on_empty = "fail"')
        patience = settings.max_wait
        if timeout is not None:
            patience = timeout if settings.on_empty == "wait" else min(patience, timeout)
        if settings.on_empty == "create" and self._nobody_refills(template):
            return 0.0
        return patience

    def claim(self, template: Template, lease_id: str) -> Handout | None:
        """A warm task for a lease that waits; None when there is none, or it waits no longer."""
        return self._store.claim_warm(
            lease_id,
            template.fingerprint,
            older_from=template.older_from,
            now=self._clock.now(),
        )

    def create(self, template: Template, lease_id: str, *, waited: float) -> Handout:
        """A task made on the spot for a lease that has waited in vain for so many seconds.

        :raises PoolEmpty: the template says not to make one.
        :raises CvatError: CVAT did not make one.
        """
        if template.pool.on_empty == "wait":
            raise PoolEmpty(
                f"no task of template {template.name!r} became warm within {waited:g} s; "
                f"{self._why_empty(template)}"
            )
        return self._create_cold(template, lease_id)

    def has_warm(self, template: Template) -> bool:
        """Whether there is a warm task that would do."""
        store = self._store
        if store.warm_of(template.name, template.fingerprint):
            return True
        older = template.older_from
        return older is not None and bool(
            store.older_warm_of(template.name, template.fingerprint, older_from=older)
        )

    def give_up(self, opened: Opened, error: BaseException) -> None:
        """What was begun comes to nothing: its lease waits no longer, its request has failed."""
        now = self._clock.now()
        if opened.request is None:
            with self._strays.of_lease(opened.lease.id):
                self._store.abandon_lease(opened.lease.id, now=now)
            return
        code = error.code if isinstance(error, PoolError) else PoolError.code
        message = error.detail if isinstance(error, PoolError) else "interrupted"
        with self._strays.of_request(opened.request.id):
            self._store.fail_request(opened.request.id, code=code, message=message, now=now)

    # --- All of it ------------------------------------------------------------------------------

    def reopen(self, template: Template, lease: LeaseRecord) -> Handout:
        """Another task for a request that was queued again with a fresh waiting lease.

        :raises PoolError: as :meth:`open`.
        """
        handout = self.claim(template, lease.id)
        if handout is None:
            handout = self._wait_or_create(template, lease.id, None)
        self._handed_out.announce()
        return handout

    def _obtain(
        self,
        template: Template,
        opened: Opened,
        timeout: float | None,
        put_aside: PutAside | None,
    ) -> Opened:
        try:
            handout = self._wait_or_create(template, opened.lease.id, timeout)
        except BaseException as error:
            if put_aside is not None and opened.request is not None:
                waiting = put_aside(opened.request, error)
                if waiting is not None:
                    return replace(opened, request=waiting)
            self.give_up(opened, error)
            raise
        return Opened(
            lease=handout.lease, task=handout.task, request=handout.request, replayed=False
        )

    def _wait_or_create(self, template: Template, lease_id: str, timeout: float | None) -> Handout:
        patience = self.patience(template, timeout)
        handout = self._wait_for_warm(template, lease_id, patience)
        if handout is None:
            handout = self.create(template, lease_id, waited=patience)
        return handout

    def _why_empty(self, template: Template) -> str:
        levels = self._store.levels().get(template.name, Levels())
        if levels.capacity and not self._store.capacity_of(template.name, template.fingerprint):
            return (
                "those of the pool were made by another version of the template: is the "
                "configuration of this process older than the daemon's?"
            )
        return "see 'cvat-pool status'"

    def _nobody_refills(self, template: Template) -> bool:
        now = self._clock.now()
        if self._store.maintainer(now=now) is None:
            return True
        held = self._store.holds().keys() & {template.name, SERVER}
        return bool(held) or template.name in self._store.paused()

    def _wait_for_warm(self, template: Template, lease_id: str, patience: float) -> Handout | None:
        deadline = self._clock.monotonic() + patience
        look = FIRST_LOOK
        while (remaining := deadline - self._clock.monotonic()) > 0:
            seen = self._warm.count
            handout = self.claim(template, lease_id)
            if handout is not None:
                return handout
            self._warm.wait(seen, min(look, remaining))
            look = min(LONGEST_LOOK, look * 1.5)
        return None

    def _create_cold(self, template: Template, lease_id: str) -> Handout:
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
            if is_away(error) and self._store.maintainer(now=self._clock.now()) is not None:
                self._breaker.create_failed(template, error)
            raise
        self._breaker.create_worked(template.name)
        now = self._clock.now()
        handout = self._store.finish_cold(pooled.id, lease_id, prepared=prepared, now=now)
        if handout is None:
            # Somebody ended the lease meanwhile; the task is as good as any other.
            self._store.finish_create(pooled.id, prepared=prepared, now=now)
            raise PoolEmpty("the lease ended while its task was being created")
        return handout

    def _await_first_call(
        self, template: Template, opened: Opened, timeout: float | None
    ) -> Opened:
        """The first call with this key may still be waiting for its task; wait with it, or in its
        place when its process is gone."""
        if opened.request is not None:
            # A request's handle follows the request by itself.
            return opened
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        look = FIRST_LOOK
        lease: LeaseRecord | None = opened.lease
        while lease is not None and lease.state is LeaseState.WAITING:
            if deadline is not None and self._clock.monotonic() >= deadline:
                raise WaitTimeout("the first call with this idempotency key still waits")
            if self._store.inherit_lease(lease.id, owner=self._owner, now=self._clock.now()):
                return self._obtain(template, opened, timeout, None)
            seen = self._warm.count
            self._warm.wait(seen, look)
            look = min(LONGEST_LOOK, look * 1.5)
            lease = self._store.lease(opened.lease.id)
        if lease is None or lease.pooled_id is None:
            raise PoolEmpty("the first call with this idempotency key got no task; try again")
        return Opened(
            lease=lease, task=self._store.task(lease.pooled_id), request=None, replayed=True
        )
