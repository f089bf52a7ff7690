"""``/v1/leases``: tasks for callers who upload by themselves, or later."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from pool import errors
from pool.errors import LeaseEnded
from pool.http import openapi
from pool.http.bodies import LeaseWish, parse
from pool.http.handing_out import HandingOut
from pool.http.headers import applied, key_of, wait_of
from pool.http.limits import read_json
from pool.http.views import LeaseView, Views
from pool.http.waiting import Waiting, noticing
from pool.http.workers import Workers
from pool.model import Handout, LeaseState
from pool.taskpool import TaskPool

PATH: Final = "/v1/leases"

_ID: Final = Path(description="The lease's id", max_length=64)
_EXAMPLE: Final = {
    "id": "01kdw8zp6vxb1tqf0v3e8z5n7c",
    "template": "street-scenes",
    "state": "active",
    "task_id": 42,
    "name": "[cvat-pool 3f9a1c2e] street-scenes: empty, waiting for data 01kdw8v5q2m7",
    "url": "http://localhost:8080/tasks/42",
    "outcome": "hit",
    "expires_at": "2026-01-01T13:00:00.123Z",
    "jobs": None,
    "error": None,
}


def lease_router(
    pool: TaskPool, workers: Workers, views: Views, waiting: Waiting, handing_out: HandingOut
) -> APIRouter:
    """The routes, on one pool."""
    router = APIRouter(tags=["leases"])
    patience = pool.settings.daemon.receive_timeout

    @router.post(
        PATH,
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
            201: openapi.answer(
                "It is yours",
                "Lease",
                example=_EXAMPLE,
                headers={"Location": "Where the lease can be seen"},
            ),
        },
        openapi_extra={
            **openapi.takes("LeaseWish", example={"template": "street-scenes", "timeout": 5}),
            "parameters": [openapi.KEY_HEADER],
        },
    )
    async def open_lease(request: Request) -> Response:
        """At once when the pool has a warm one; an empty pool waits and creates as the template's
        `on_empty` and `max_wait` say, and waits `timeout` seconds at most."""
        key = key_of(request)
        wish = parse(LeaseWish, await read_json(request, patience=patience))
        template = pool.engine.templates.named(wish.template)
        opened = await handing_out.begin(
            template, idempotency_key=key, payload=f"lease {template.name}", ttl=wish.ttl
        )
        if opened.lease.state is LeaseState.WAITING:
            async with noticing(request) as gone:
                opened = await handing_out.wait(
                    template, opened, idempotency_key=key, timeout=wish.timeout, gone=gone
                )
        if opened.task is None:
            raise LeaseEnded(f"the lease of this idempotency key ended ({opened.lease.state})")
        document = views.lease_document(LeaseView(record=opened.lease))
        return JSONResponse(document, 201, headers={"Location": f"{PATH}/{opened.lease.id}"})

    @router.get(
        PATH + "/{lease_id}",
        summary="See a lease, with its jobs once they exist",
        responses={
            **openapi.problems(errors.UnknownLease, errors.InputError),
            200: openapi.answer("As it is now", "Lease", example=_EXAMPLE, headers=openapi.APPLIED),
        },
        openapi_extra={"parameters": [openapi.WAIT_HEADER]},
    )
    async def see_lease(request: Request, lease_id: str = _ID) -> Response:
        """With `Prefer: wait=10` the answer waits until there are jobs, whoever uploads."""
        wait = wait_of(request)

        async def read() -> LeaseView:
            return await workers.store(views.lease, lease_id)

        if wait is None:
            view = await read()
        else:
            await workers.store(_follow, pool, lease_id)
            async with noticing(request) as gone:
                view = await waiting.lease(lease_id, read, seconds=wait, gone=gone)
        return JSONResponse(views.lease_document(view), headers=applied(wait))

    @router.delete(
        PATH + "/{lease_id}",
        status_code=204,
        summary="Give an untouched task back",
        responses={
            **openapi.problems(
                *openapi.FROM_CVAT,
                errors.UnknownLease,
                errors.InputError,
                errors.LeaseInUse,
                errors.LeaseEnded,
            ),
            204: openapi.answer("It is in the pool again"),
        },
    )
    async def release(lease_id: str = _ID) -> Response:
        """CVAT is asked whether the task really is untouched."""
        await workers.cvat(pool.release, lease_id)
        return Response(status_code=204)

    return router


def _follow(pool: TaskPool, lease_id: str) -> None:
    """Have the task of a lease asked for soon: somebody wants to know of its jobs."""
    record = pool.store.lease(lease_id)
    if record is None or record.state not in (LeaseState.ACTIVE, LeaseState.USED):
        return
    found = pool.store.task_on_server(record.task_id) if record.task_id else None
    if found is None:
        return
    task, request = found
    # The import of a request is followed at its own pace.
    if request is None and task.lease_id == lease_id:
        pool.engine.tracker.watch_lease(Handout(lease=record, task=task))
