"""``/v1/leases``: tasks for callers who upload themselves, or later."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from pool import errors
from pool.errors import LeaseEnded
from pool.http import openapi
from pool.http.dependencies import IdempotencyKey, State, Wait, applied
from pool.http.limits import read_json
from pool.http.schemas import Lease, LeaseBody
from pool.http.views import read_lease
from pool.http.waiting import noticing
from pool.model import Handout, LeaseState
from pool.taskpool import TaskPool

router = APIRouter(prefix="/v1/leases", tags=["leases"], responses=openapi.PROTECTED)

LeaseId = Annotated[str, Path(description="The lease's id", max_length=64)]


@router.post(
    "",
    status_code=201,
    summary="Get a task for yourself",
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
        201: openapi.answer("It is yours", {"Location": "Where the lease can be seen"}),
    },
    openapi_extra=openapi.takes(LeaseBody, example={"template": "street-scenes", "timeout": 5}),
)
async def open_lease(
    state: State, key: IdempotencyKey, request: Request, response: Response
) -> Lease:
    """At once when the pool has a warm one; an empty pool waits and creates as the template's
    `on_empty` and `max_wait` say, and waits `timeout` seconds at most."""
    body = await read_json(request, LeaseBody, timeout=state.receive_timeout)
    template = state.pool.engine.templates.named(body.template)
    opened = await state.handing_out.begin(
        template, idempotency_key=key, payload=f"lease {template.name}", ttl=body.ttl
    )
    if opened.lease.state is LeaseState.WAITING:
        async with noticing(request) as gone:
            opened = await state.handing_out.wait(
                template, opened, idempotency_key=key, timeout=body.timeout, gone=gone
            )
    if opened.task is None:
        raise LeaseEnded(f"the lease of this idempotency key ended ({opened.lease.state})")
    response.headers["Location"] = f"{router.prefix}/{opened.lease.id}"
    return Lease.of(opened.lease, state.pool.task_url)


@router.get(
    "/{lease_id}",
    summary="See a lease, with its jobs once they exist",
    responses={
        **openapi.problems(errors.UnknownLease, errors.InputError),
        200: openapi.answer("As it is now", openapi.APPLIED),
    },
)
async def see_lease(
    state: State, wait: Wait, lease_id: LeaseId, request: Request, response: Response
) -> Lease:
    """With `Prefer: wait=10` the answer waits until there are jobs, also those of an upload that
    did not go through the pool."""
    if wait is None:
        view = await state.workers.store(read_lease, state.pool.store, lease_id)
    else:
        await state.workers.store(_follow, state.pool, lease_id)
        view = await state.waiting.lease(lease_id, seconds=wait, caller=request)
    response.headers.update(applied(wait))
    return Lease.of(view.record, state.pool.task_url, jobs=view.jobs, error=view.error)


@router.delete(
    "/{lease_id}",
    status_code=204,
    response_class=Response,
    summary="Give an untouched task back",
    response_description="It is in the pool again",
    responses=openapi.problems(
        *openapi.FROM_CVAT,
        errors.UnknownLease,
        errors.InputError,
        errors.LeaseInUse,
        errors.LeaseEnded,
    ),
)
async def release(state: State, lease_id: LeaseId) -> None:
    """CVAT is asked whether the task really is untouched."""
    await state.workers.cvat(state.pool.release, lease_id)


def _follow(pool: TaskPool, lease_id: str) -> None:
    """Have the tracker ask for the task of a lease soon: a caller waits for its jobs."""
    record = pool.store.lease(lease_id)
    if record is None or record.state not in (LeaseState.ACTIVE, LeaseState.USED):
        return
    found = pool.store.task_on_server(record.task_id) if record.task_id else None
    if found is None:
        return
    task, importing = found
    # The import of a request is followed at its own pace.
    if importing is None and task.lease_id == lease_id:
        pool.engine.tracker.watch_lease(Handout(lease=record, task=task))
