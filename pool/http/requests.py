"""``/v1/requests``: data for the pool to bring into a task, on its way to job ids."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from pool import errors
from pool.errors import TooLate, WrongMediaType
from pool.http import openapi, schemas
from pool.http.accepting import Accepting
from pool.http.bodies import LONGEST_TEMPLATE
from pool.http.headers import applied, key_of, wait_of
from pool.http.limits import JSON, MULTIPART, media_type
from pool.http.problems import problem_of
from pool.http.schemas import request_document
from pool.http.views import RequestView, Views
from pool.http.waiting import Gone, Waiting, noticing
from pool.http.workers import Workers
from pool.model import RequestState
from pool.taskpool import TaskPool

PATH: Final = "/v1/requests"
#: Requests on one page, when the caller does not say, and at most.
PAGE: Final = 50
LONGEST_PAGE: Final = 200

_ID: Final = Path(description="The request's id", max_length=64)
_JOB: Final = {
    "id": 77,
    "url": "http://localhost:8080/tasks/42/jobs/77",
    "start_frame": 0,
    "stop_frame": 1,
    "assignee": None,
}
_READY: Final[dict[str, Any]] = {
    "id": "01kdw8zp70b3k9c2n4wq6m8s1d",
    "template": "street-scenes",
    "state": "ready",
    "task_id": 42,
    "url": "http://localhost:8080/tasks/42",
    "outcome": "hit",
    "name": "morning run",
    "assignee": None,
    "files": ["a.jpg", "b.jpg"],
    "size": 204800,
    "lease_id": "01kdw8zp6vxb1tqf0v3e8z5n7c",
    "created_at": "2026-01-01T12:00:00.123Z",
    "handed_out_at": "2026-01-01T12:00:00.123Z",
    "uploaded_at": "2026-01-01T12:00:00.178Z",
    "finished_at": "2026-01-01T12:00:00.331Z",
    "jobs": [_JOB],
    "error": None,
    "warnings": [],
}
_ACCEPTED: Final = {
    **_READY,
    "state": "uploading",
    "uploaded_at": None,
    "finished_at": None,
    "jobs": None,
}
_FORM: Final = {
    "schema": {
        "type": "object",
        "required": ["files"],
        "additionalProperties": False,
        "properties": {
            "template": {"type": "string", "description": "May be left out with lease_id"},
            "files": {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "format": "binary"},
                "description": "Images, an archive or a video; each part with a filename",
            },
            "params": openapi.ref("DataParams"),
            "name": {"type": "string", "minLength": 1, "maxLength": 256},
            "assignee": {"type": "integer", "minimum": 1},
            "lease_id": {"type": "string"},
        },
    },
    "encoding": {"params": {"contentType": JSON}},
}
#: What an import can come to, told in time to somebody who waits for it.
_FAILED: Final = (
    errors.ImportFailed,
    errors.ImportTimedOut,
    errors.TaskGone,
    errors.RequestCancelled,
)
_LOCATION: Final = {"Location": "Where the request can be seen"}


def request_router(
    pool: TaskPool, workers: Workers, views: Views, waiting: Waiting, accepting: Accepting
) -> APIRouter:
    """The routes, on one pool."""
    router = APIRouter(tags=["requests"])

    async def until_over(request_id: str, wait: int, gone: Gone) -> RequestView:
        async def read() -> RequestView:
            return await workers.store(views.request, request_id)

        return await waiting.request(request_id, read, seconds=wait, gone=gone)

    @router.post(
        PATH,
        status_code=202,
        summary="Give data to the pool",
        responses={
            **openapi.problems(
                *openapi.WITH_BODY,
                *openapi.FROM_CVAT,
                *_FAILED,
                errors.UnknownTemplate,
                errors.UnknownLease,
                errors.LeaseEnded,
                errors.IdempotencyConflict,
                errors.PoolEmpty,
                errors.QueueFull,
                errors.SpoolFull,
                errors.TooManyUploads,
                errors.OwnerGone,
            ),
            201: openapi.answer(
                "Its jobs exist",
                "Request",
                example=_READY,
                headers={**_LOCATION, **openapi.APPLIED},
            ),
            202: openapi.answer(
                "It is accepted, and on its way",
                "Request",
                example=_ACCEPTED,
                headers={**_LOCATION, **openapi.APPLIED},
            ),
        },
        openapi_extra={
            "requestBody": openapi.body(
                {
                    MULTIPART: _FORM,
                    JSON: {
                        "schema": openapi.ref("RequestWish"),
                        "example": {"template": "street-scenes", "share": ["cam1/a.jpg"]},
                    },
                }
            ),
            "parameters": [openapi.KEY_HEADER, openapi.WAIT_HEADER],
        },
    )
    async def submit(request: Request) -> Response:
        """Files as a form, or the names of what CVAT fetches itself as JSON. What is accepted is
        brought to its jobs even if CVAT or the daemon are away for a while.

        With `Prefer: wait=10` the answer waits until the jobs exist (201), or says that they do
        not yet (202); what has failed by then is answered as the problem that it is."""
        key, wait = key_of(request), wait_of(request)
        match media_type(request):
            case "multipart/form-data":
                record = await accepting.form(request, key)
            case "application/json":
                record = await accepting.json(request, key)
            case _:
                raise WrongMediaType(f"send {MULTIPART} with files, or {JSON}")
        headers = {"Location": f"{PATH}/{record.id}", **applied(wait)}
        if wait is None:
            view = await workers.store(views.of, record)
        else:
            async with noticing(request) as gone:
                view = await until_over(record.id, wait, gone)
        if not view.over:
            await accepting.keep(record.id)
        document = views.request_document(view)
        if wait is None:
            return JSONResponse(document, 202, headers=headers)
        if view.error is not None:
            return problem_of(view.error, headers=headers, request=document)
        ready = view.record.state is RequestState.READY
        return JSONResponse(document, 201 if ready else 202, headers=headers)

    @router.get(
        PATH + "/{request_id}",
        summary="See a request, with its jobs once it is ready",
        responses={
            **openapi.problems(errors.UnknownRequest, errors.InputError),
            200: openapi.answer("As it is now", "Request", example=_READY, headers=openapi.APPLIED),
        },
        openapi_extra={"parameters": [openapi.WAIT_HEADER]},
    )
    async def see_request(request: Request, request_id: str = _ID) -> Response:
        """With `Prefer: wait=10` the answer waits until nothing more will happen to it."""
        wait = wait_of(request)
        if wait is None:
            view = await workers.store(views.request, request_id)
        else:
            async with noticing(request) as gone:
                view = await until_over(request_id, wait, gone)
        return JSONResponse(views.request_document(view), headers=applied(wait))

    @router.delete(
        PATH + "/{request_id}",
        status_code=204,
        summary="Cancel a request that is still queued",
        responses={
            **openapi.problems(errors.UnknownRequest, errors.InputError, TooLate),
            204: openapi.answer("It is cancelled"),
        },
    )
    async def cancel(request_id: str = _ID) -> Response:
        """Cancelling it twice is no error."""
        await workers.store(_cancel, pool, request_id)
        return Response(status_code=204)

    @router.get(
        PATH,
        summary="List requests, the newest first",
        responses={
            **openapi.problems(errors.InputError),
            200: openapi.answer(
                "One page",
                "RequestPage",
                example={"items": [{**_READY, "jobs": None}], "next_cursor": "1042"},
            ),
        },
    )
    async def list_requests(
        state: Annotated[RequestState | None, Query(description="Only those in this state")] = None,
        template: Annotated[
            str | None,
            Query(description="Only those of this template", max_length=LONGEST_TEMPLATE),
        ] = None,
        limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = PAGE,
        cursor: Annotated[
            str | None, Query(description="The next_cursor of the page before", max_length=32)
        ] = None,
    ) -> Response:
        """Without their jobs."""
        page = await workers.store(
            pool.store.requests, state=state, template=template, limit=limit, cursor=cursor
        )
        document: schemas.RequestPage = {
            "items": [request_document(record, pool.task_url) for record in page.requests],
            "next_cursor": page.next_cursor,
        }
        return JSONResponse(document)

    return router


def _cancel(pool: TaskPool, request_id: str) -> None:
    request = pool.request(request_id)
    if not request.cancel() and request.refresh().state is not RequestState.CANCELLED:
        raise TooLate(f"request {request_id} is {request.record.state.value}")
