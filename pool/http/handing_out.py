"""Handing out to callers that wait without a thread: what
:class:`pool.requests.placement.Placement` does, step by step, with nothing between the steps but an
event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import ClientDisconnect

from pool.config.settings import Template
from pool.errors import PoolEmpty, PoolError, QueueFull, Stopping, WaitTimeout
from pool.http.ending import Ending
from pool.http.waiting import Gone
from pool.http.watch import Watch
from pool.http.workers import Workers
from pool.logs import get_logger
from pool.model import Handout, LeaseRecord, LeaseState
from pool.process import Engine
from pool.store import Opened

log = get_logger(__name__)

#: Seconds between two looks at what became of the first call with the same key.
LOOK: Final = 0.05


@dataclass(eq=False)
class _Waiter:
    """Somebody who waits for a warm task. The future's answer is None when there is none, and
    no use in waiting on."""

    template: Template
    lease_id: str
    future: asyncio.Future[Handout | None] = field(repr=False)


class HandingOut:
    """Gives tasks to callers over HTTP, in the order in which they came."""

    def __init__(self, engine: Engine, workers: Workers, ending: Ending) -> None:
        self._store = engine.store
        self._hand_out = engine.placement
        self._clock = engine.clock
        self._warm = engine.warm
        self._workers = workers
        self._ending = ending
        self._most_waiting = engine.settings.daemon.max_queued
        self._line: list[_Waiter] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        #: These belong to the thread that looks.
        self._seen_token: object = None
        self._seen_warm = -1
        self._watch = Watch("http-handing-out", self._look, wanted=lambda: bool(self._line))
        self._forget_warm = engine.warm.listen(self._watch.wake)
        ending.listen(self._end)

    async def begin(
        self, template: Template, *, idempotency_key: str | None, payload: str, ttl: float | None
    ) -> Opened:
        """Write the wish down, and take a warm task if there is one. While the lease that it
        answers is ``WAITING``, go on with :meth:`wait`.

        :raises IdempotencyConflict: the key was used with other content.
        """
        return await self._workers.store(
            self._hand_out.open,
            template,
            idempotency_key=idempotency_key,
            payload=payload,
            ttl=ttl,
        )

    async def wait(
        self,
        template: Template,
        opened: Opened,
        *,
        idempotency_key: str | None,
        timeout: float | None,
        gone: Gone,
    ) -> Opened:
        """A task for a lease that waits: see
        :meth:`pool.requests.placement.Placement.obtain`, whose promises and errors are these too.

        :raises QueueFull: as many callers as ``daemon.max_queued`` allows wait already.
        :raises Stopping: the server is about to stop; the caller may ask again with its key.
        :raises starlette.requests.ClientDisconnect: the caller has gone; its lease waits no more.
        """
        if opened.replayed:
            return await self._first_call(opened, timeout, gone)
        try:
            opened = _opened(await self._obtain(template, opened, timeout, gone))
        except BaseException:
            await asyncio.shield(self._leave(opened.lease, idempotency_key))
            raise
        if gone.done():
            await asyncio.shield(self._leave(opened.lease, idempotency_key))
            raise ClientDisconnect
        return opened

    def close(self) -> None:
        """Look no more."""
        self._forget_warm()
        self._watch.close()

    # --- On the event loop ----------------------------------------------------------------------

    async def _obtain(
        self, template: Template, opened: Opened, timeout: float | None, gone: Gone
    ) -> Handout:
        patience = await self._workers.store(self._hand_out.patience, template, timeout)
        handout = await self._wait(template, opened.lease.id, patience, gone)
        if handout is not None:
            return handout
        if gone.done():
            raise ClientDisconnect
        if self._ending.told:
            raise Stopping
        # Where nothing is created, this only says why there is nothing.
        creates = template.pool.on_empty == "create"
        run = self._workers.cvat if creates else self._workers.store
        creating = asyncio.ensure_future(
            run(self._claim_or_create, template, opened.lease.id, patience)
        )
        # Made to its end even for a caller that has gone: the task goes to the pool then.
        creating.add_done_callback(_retrieve)
        await asyncio.wait((creating, gone), return_when=asyncio.FIRST_COMPLETED)
        if not creating.done():
            raise ClientDisconnect
        return creating.result()

    def _claim_or_create(self, template: Template, lease_id: str, waited: float) -> Handout:
        # The turn to create may come late, and something be warm by then; and the thread that
        # looks may just have found something.
        handout = self._hand_out.claim(template, lease_id) or self._held(lease_id)
        if handout is not None:
            return handout
        try:
            return self._hand_out.create(template, lease_id, waited=waited)
        except PoolEmpty:
            handout = self._held(lease_id)
            if handout is None:
                raise
            return handout

    def _held(self, lease_id: str) -> Handout | None:
        lease = self._store.lease(lease_id)
        if lease is None or lease.state is not LeaseState.ACTIVE or lease.pooled_id is None:
            return None
        task = self._store.task(lease.pooled_id)
        return None if task is None else Handout(lease=lease, task=task)

    async def _wait(
        self, template: Template, lease_id: str, patience: float, gone: Gone
    ) -> Handout | None:
        if patience <= 0:
            return None
        if len(self._line) >= self._most_waiting:
            raise QueueFull(
                f"{self._most_waiting} callers wait, as many as daemon.max_queued allows"
            )
        self._loop = loop = asyncio.get_running_loop()
        waiter = _Waiter(template, lease_id, loop.create_future())
        timer = loop.call_later(patience, _tell, waiter, None)
        gone.add_done_callback(lambda _: _tell(waiter, None))
        self._line.append(waiter)
        try:
            if self._ending.told:
                return None
            self._watch.begin()
            self._watch.wake()
            return await waiter.future
        finally:
            timer.cancel()
            self._line.remove(waiter)

    async def _leave(self, lease: LeaseRecord, key: str | None) -> None:
        """Nobody waits for a task any more, or for the answer that tells of one."""
        if await self._workers.store(self._store.abandon_lease, lease.id, now=self._clock.now()):
            return
        if key is None and await self._workers.store(
            # Without a key nobody can ever hear of it.
            self._store.give_back,
            lease.id,
            now=self._clock.now(),
        ):
            log.info("hand-out taken back: its caller left before the answer", lease_id=lease.id)
            self._warm.announce()

    async def _first_call(self, opened: Opened, timeout: float | None, gone: Gone) -> Opened:
        """The first call with this key may still wait for its task; wait with it."""
        lease: LeaseRecord | None = opened.lease
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while lease is not None and lease.state is LeaseState.WAITING:
            if gone.done():
                raise ClientDisconnect
            if self._ending.told:
                raise Stopping
            if deadline is not None and loop.time() >= deadline:
                raise WaitTimeout("the first call with this idempotency key still waits")
            await asyncio.sleep(LOOK)
            lease = await self._workers.store(self._store.lease, opened.lease.id)
        if lease is None or lease.pooled_id is None:
            raise PoolEmpty("the first call with this idempotency key got no task; try again")
        task = await self._workers.store(self._store.task, lease.pooled_id)
        held = task if task is not None and task.lease_id == lease.id else None
        return Opened(lease=lease, task=held, request=None, replayed=True)

    # --- On other threads -----------------------------------------------------------------------

    def _end(self) -> None:
        if self._loop is not None:
            # An error means that the loop has ended, and everybody who waited with it.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop_waiting)

    def _stop_waiting(self) -> None:
        for waiter in self._line:
            _tell(waiter, None)

    def _look(self) -> Callable[[], None]:
        warm, token = self._warm.count, self._store.change_token()
        if (token, warm) == (self._seen_token, self._seen_warm):
            return _nothing
        self._seen_token, self._seen_warm = token, warm
        line = tuple(self._line)
        told = [
            (waiter, handout)
            for name in dict.fromkeys(waiter.template.name for waiter in line)
            for waiter, handout in self._serve(
                [each for each in line if each.template.name == name]
            )
        ]

        def settle() -> None:
            for waiter, handout in told:
                _tell(waiter, handout)

        return settle

    def _serve(self, line: list[_Waiter]) -> list[tuple[_Waiter, Handout | None]]:
        """Give the first in line of one template what is warm."""
        served: list[tuple[_Waiter, Handout | None]] = []
        for waiter in line:
            if waiter.future.done():
                continue
            try:
                handout = self._hand_out.claim(waiter.template, waiter.lease_id)
            except PoolError:
                break
            if handout is None and self._waits(waiter.lease_id):
                break
            served.append((waiter, handout))
        return served

    def _waits(self, lease_id: str) -> bool:
        lease = self._store.lease(lease_id)
        return lease is not None and lease.state is LeaseState.WAITING


def _opened(handout: Handout) -> Opened:
    return Opened(lease=handout.lease, task=handout.task, request=None, replayed=False)


def _tell(waiter: _Waiter, handout: Handout | None) -> None:
    if not waiter.future.done():
        waiter.future.set_result(handout)


def _retrieve(creating: asyncio.Future[Handout]) -> None:
    """Have the error of a create that nobody waits for any more count as seen."""
    if not creating.cancelled():
        creating.exception()


def _nothing() -> None:
    """There is nothing to tell."""
