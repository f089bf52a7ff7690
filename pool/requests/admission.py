"""Writes down requests that callers hand to the daemon, whose data is complete in the spool."""

from __future__ import annotations

from pool.clock import Clock
from pool.config.settings import Template
from pool.errors import IdempotencyConflict, LeaseEnded, PoolEmpty, QueueFull
from pool.requests.breaker import Breaker
from pool.requests.placement import HandOut
from pool.requests.queue import Queue
from pool.store import NewRequest, Opened, Store


class Acceptance:
    """Gives a request a task where there is one for it, or has it wait, or refuses it."""

    def __init__(
        self,
        store: Store,
        hand_out: HandOut,
        queue: Queue,
        breaker: Breaker,
        *,
        owner: str,
        most_queued: int,
        clock: Clock,
    ) -> None:
        self._store = store
        self._hand_out = hand_out
        self._queue = queue
        self._breaker = breaker
        self._owner = owner
        self._most_queued = most_queued
        self._clock = clock

    def open(
        self,
        template: Template,
        request: NewRequest,
        *,
        idempotency_key: str | None,
        payload: str,
        claim: bool,
    ) -> Opened:
        """Accept a request for a template, with a warm task if there is one and ``claim`` is set.

        :raises QueueFull: too many requests wait already.
        :raises PoolEmpty: there is no task, and the template says not to wait for one.
        :raises IdempotencyConflict: the key was used with other content.
        """
        # Whoever came before is served before.
        first = (
            claim
            and self._breaker.takes_uploads(template.name)
            and not self._store.queued().get(template.name)
        )
        # With CVAT away, "the pool is empty" would be no reason; with nothing in it, it is.
        fails = template.pool.on_empty == "fail" and (
            first or not self._hand_out.has_warm(template)
        )
        try:
            return self._hand_out.begin(
                template,
                request=request,
                idempotency_key=idempotency_key,
                payload=payload,
                claim=first,
                most_queued=0 if fails else self._most_queued,
            )
        except QueueFull as error:
            if fails:
                raise PoolEmpty(f'template {template.name!r} has on_empty = "fail"') from None
            error.retry_after = self._queue.retry_after()
            raise

    def attach(
        self, request: NewRequest, lease_id: str, *, idempotency_key: str | None, payload: str
    ) -> Opened:
        """Accept a request for the task of a lease.

        :raises LeaseEnded: the lease is not active, or has a request already.
        :raises IdempotencyConflict: the key was used with other content.
        """
        known = self._known(idempotency_key, payload)
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
        if handout is None:
            # The first call with this key may have come in between.
            known = self._known(idempotency_key, payload)
            if known is not None:
                return known
            raise LeaseEnded(f"lease {lease_id} is not active, or has a request already")
        return Opened(
            lease=handout.lease, task=handout.task, request=handout.request, replayed=False
        )

    def _known(self, key: str | None, payload: str) -> Opened | None:
        """What was answered to a key before; None when it is new, or there is none."""
        request = None if key is None else self._store.request_by_key(key)
        if request is None:
            return None
        lease = self._store.lease(request.lease_id)
        if request.payload != payload or lease is None:
            raise IdempotencyConflict(f"{key!r}; choose another key")
        return Opened(lease=lease, task=None, request=request, replayed=True)
