"""``/v1/leases``: tasks for callers that upload by themselves, or later."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.requests import ClientDisconnect

from pool import errors
from pool.config.settings import Template
from pool.errors import LeaseEnded, PoolError, QueueFull, Stopping, WaitTimeout
from pool.http import openapi
from pool.http.access import GuardedRoute, caller_of
from pool.http.context import AppState, state_of
from pool.http.reading import applied, key_of, read_json, wait_of
from pool.http.requests import LONGEST_PAGE, PAGE, Cursor, Tenant
from pool.http.schemas import LONGEST_TEMPLATE, Lease, LeaseBody, LeasePage
from pool.http.shutdown import Connection
from pool.model import Handout, Job, LeaseRecord, LeaseState
from pool.requests.results import read_lease
from pool.store import Opened
from pool.taskpool import TaskPool

router = APIRouter(
    prefix="/v1/leases", tags=["leases"], responses=openapi.PROTECTED, route_class=GuardedRoute
)

LeaseId = Annotated[str, Path(description="The lease's id", max_length=64)]


@router.post(
    "",
    status_code=201,
    response_model=Lease,
    summary="Lease a task",
    responses={
        **openapi.problems(
            *openapi.WITH_BODY,
            *openapi.FROM_CVAT,
            errors.UnknownTemplate,
            errors.IdempotencyConflict,
            errors.LeaseEnded,
            errors.PoolEmpty,
            errors.QueueFull,
            errors.WaitTimeout,
        ),
        201: openapi.answer("The lease", {"Location": "The address of the lease"}),
    },
    openapi_extra={
        **openapi.takes(LeaseBody, example={"template": "street-scenes", "timeout": 5}),
        "parameters": [openapi.KEY],
    },
)
async def open_lease(request: Request) -> Response:
    """Answered at once if the pool has a warm task. An empty pool waits or creates one, as the
    template's `on_empty` and `max_wait` say, and waits `timeout` seconds at most.

    Of a template with slots it is one of these, whose job exists already: fill it by
    `POST /v1/requests` with its `lease_id`, and by no other tool."""
    state, key, caller = state_of(request), key_of(request), caller_of(request)
    body = await read_json(request, LeaseBody, timeout=state.receive_timeout)
    template = state.pool.process.templates.within(caller.scope).named(body.template)
    opened = await state.workers.store(
        state.pool.process.placement.open_alone,
        template,
        tenant=caller.tenant,
        name=body.name,
        idempotency_key=key,
        ttl=body.ttl,
    )
    if opened.lease.state is LeaseState.WAITING:
        async with state.shutdown.watching(request) as connection:
            if opened.replayed:
                opened = await _await_first_call(state, opened.lease, body.timeout, connection)
            else:
                opened = await _obtain(
                    state,
                    template,
                    opened.lease.id,
                    body.timeout,
                    connection,
                    keeps=key is not None,
                )
    if opened.task is None:
        raise LeaseEnded(f"the lease of this idempotency key ended ({opened.lease.state})")
    jobs: Sequence[Job] = ()
    if opened.task.carrier_id is not None:
        # The job of a slot exists before its data.
        jobs = await state.workers.store(state.pool.store.jobs_of, opened.task.id)
    document = Lease.of(opened.lease, state.pool.task_url, jobs=jobs)
    return document.response(201, {"Location": f"{router.prefix}/{opened.lease.id}"})


@router.get(
    "",
    response_model=LeasePage,
    summary="List the leases that wait for a task or have one, newest first",
    response_description="One page",
    responses=openapi.problems(errors.InputError),
)
async def list_leases(
    request: Request,
    template: Annotated[
        str | None,
        Query(description="Only those of this template", max_length=LONGEST_TEMPLATE),
    ] = None,
    tenant: Tenant = None,
    limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = PAGE,
    cursor: Cursor = None,
) -> Response:
    """Who holds what, since when. Those that the pool has opened for requests are not among them,
    nor those that have ended."""
    state, scope = state_of(request), caller_of(request).scope_of(tenant)
    page = await state.workers.store(
        state.pool.store.open_leases, template=template, scope=scope, limit=limit, cursor=cursor
    )
    items = [Lease.of(record, state.pool.task_url) for record in page.leases]
    return LeasePage(items=items, next_cursor=page.next_cursor).response()


@router.get(
    "/{lease_id}",
    response_model=Lease,
    summary="Read a lease, with its jobs once they exist",
    responses={
        **openapi.problems(errors.UnknownLease, errors.InputError),
        200: openapi.answer("As it is now", openapi.APPLIED),
    },
    openapi_extra={"parameters": [openapi.WAIT]},
)
async def see_lease(lease_id: LeaseId, request: Request) -> Response:
    """With `Prefer: wait=10` the answer waits until the jobs exist, whichever tool uploaded."""
    state, wait = state_of(request), wait_of(request)
    if wait is None:
        result = await state.workers.store(read_lease, state.pool.store, lease_id)
    else:
        await state.workers.store(_follow, state.pool, lease_id)
        result = await state.waiting.lease(lease_id, seconds=wait, caller=request)
    document = Lease.of(result.record, state.pool.task_url, jobs=result.jobs, error=result.error)
    return document.response(headers=applied(wait))


@router.delete(
    "/{lease_id}",
    status_code=204,
    response_class=Response,
    summary="Give back an untouched task",
    response_description="The task is in the pool again",
    responses=openapi.problems(
        *openapi.FROM_CVAT,
        errors.UnknownLease,
        errors.InputError,
        errors.LeaseInUse,
        errors.LeaseEnded,
    ),
)
async def release(lease_id: LeaseId, request: Request) -> None:
    """CVAT is asked whether the task has data."""
    state = state_of(request)
    await state.workers.cvat(state.pool.release, lease_id)


# --- Waiting for a task, without a thread ---------------------------------------------------------


async def _obtain(
    state: AppState,
    template: Template,
    lease_id: str,
    timeout: float | None,
    connection: Connection,
    *,
    keeps: bool,
) -> Opened:
    """Return a waiting lease once it has its task; end a lease that gets none.

    :raises PoolError: as :meth:`pool.requests.placement.Placement.obtain`.
    :raises QueueFull: as many callers as ``daemon.max_queued`` allows wait already.
    :raises Stopping: the server is stopping; the caller may repeat the call with its key.
    :raises starlette.requests.ClientDisconnect: the caller has gone.
    """
    placement, store = state.pool.process.placement, state.workers.store
    try:
        handout = await _wait_or_create(state, template, lease_id, timeout, connection)
    except PoolError:
        given = await asyncio.shield(store(placement.abandon, lease_id))
        if given is None:
            raise
        handout = given
    except BaseException:
        await asyncio.shield(store(placement.leave, lease_id, keeps=keeps))
        raise
    if connection.gone.done():
        await asyncio.shield(store(placement.leave, lease_id, keeps=keeps))
        raise ClientDisconnect
    return Opened(lease=handout.lease, task=handout.task, request=None, replayed=False)


async def _wait_or_create(
    state: AppState,
    template: Template,
    lease_id: str,
    timeout: float | None,
    connection: Connection,
) -> Handout:
    process, store, waiting = state.pool.process, state.workers.store, state.waiting_leases
    patience = await store(process.placement.patience, template, timeout)
    most = process.settings.daemon.max_queued
    if patience > 0 and len(waiting) >= most:
        raise QueueFull(f"{most} callers wait, as many as daemon.max_queued allows")
    waiting.add(lease_id)
    try:
        handout = await process.feed.wait_for_async(
            partial(store, process.placement.held, lease_id),
            patience,
            lease=lease_id,
            stop=connection.stop,
        )
    finally:
        waiting.discard(lease_id)
    if handout is not None:
        return handout
    if connection.gone.done():
        raise ClientDisconnect
    if state.shutdown.begun:
        raise Stopping
    if template.pool.on_empty != "create":
        # Creates nothing: raises why there is no task.
        return await store(process.placement.create, template, lease_id, waited=patience)
    creating = asyncio.wrap_future(state.dispatcher.create(template, lease_id, waited=patience))
    # Completed even for a caller that has gone: the pool keeps the task then.
    creating.add_done_callback(_retrieve)
    await asyncio.wait((creating, connection.gone), return_when=asyncio.FIRST_COMPLETED)
    if not creating.done():
        raise ClientDisconnect
    return creating.result()


async def _await_first_call(
    state: AppState, lease: LeaseRecord, timeout: float | None, connection: Connection
) -> Opened:
    """Wait for the task of an earlier call with the same key.

    :raises WaitTimeout: that call is still waiting after ``timeout`` seconds.
    :raises PoolEmpty: it got no task.
    :raises Stopping: the server is stopping.
    :raises starlette.requests.ClientDisconnect: the caller has gone.
    """
    process, store = state.pool.process, state.workers.store

    async def check() -> LeaseRecord | None:
        current = await store(process.store.lease, lease.id)
        if current is None:
            return replace(lease, state=LeaseState.ABANDONED)
        return None if current.state is LeaseState.WAITING else current

    current = await process.feed.wait_for_async(
        check, timeout, lease=lease.id, stop=connection.stop
    )
    if connection.gone.done():
        raise ClientDisconnect
    if current is not None:
        return await store(process.placement.replay, current)
    if state.shutdown.begun:
        raise Stopping
    raise WaitTimeout("the first call with this idempotency key is still waiting")


def _retrieve(creating: asyncio.Future[Handout]) -> None:
    """Retrieve the error of a create whose caller has gone, so that asyncio does not log it."""
    if not creating.cancelled():
        creating.exception()


def _follow(pool: TaskPool, lease_id: str) -> None:
    """Have the tracker poll the task of a lease soon: a caller waits for its jobs."""
    record = pool.store.lease(lease_id)
    if record is None or record.state not in (LeaseState.ACTIVE, LeaseState.USED):
        return
    found = pool.store.task_on_server(record.task_id) if record.task_id else None
    if found is None:
        return
    task, importing = found
    # The import of a request has a poll schedule of its own.
    if importing is None and task.lease_id == lease_id:
        pool.process.tracker.watch_lease(Handout(lease=record, task=task))
