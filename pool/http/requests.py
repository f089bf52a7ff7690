"""``/v1/requests``: data for the pool to import, and the jobs that CVAT makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import AwareDatetime

from pool import errors
from pool.config.arguments import (
    LONGEST_SEARCH,
    LONGEST_STREAM,
    LONGEST_USER,
    check_search,
    check_since,
)
from pool.errors import TooLate, WrongMediaType
from pool.http import openapi, schemas
from pool.http.access import GuardedRoute, caller_of
from pool.http.context import state_of
from pool.http.problems import problem_of
from pool.http.reading import JSON, MULTIPART, applied, key_of, media_type, wait_of
from pool.http.schemas import LONGEST_TEMPLATE, EventList, RequestBody, RequestPage
from pool.model import Job, Placed, Priority, RequestRecord, RequestState, Scope
from pool.requests.results import read_request, result_of
from pool.taskpool import TaskPool

#: Seconds for which the answer waits until a slot is filled. A storage may hang.
FILLED_WITHIN: Final = 2.0

router = APIRouter(
    prefix="/v1/requests", tags=["requests"], responses=openapi.PROTECTED, route_class=GuardedRoute
)

#: Requests on one page: the default, and the maximum.
PAGE: Final = 50
LONGEST_PAGE: Final = 200

RequestId = Annotated[str, Path(description="The request's id", max_length=64)]
Cursor = Annotated[
    str | None, Query(description="The next_cursor of the previous page", max_length=32)
]
Tenant = Annotated[
    str | None,
    Query(
        description="Only those of this tenant, the name of a token", max_length=LONGEST_TEMPLATE
    ),
]

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
            "params": {"$ref": "#/components/schemas/DataParams"},
            "name": {"type": "string", "minLength": 1, "maxLength": 256},
            "assignee": {
                "type": ["integer", "string"],
                "minimum": 1,
                "minLength": 1,
                "maxLength": LONGEST_USER,
            },
            "stream": {"type": "string", "minLength": 1, "maxLength": LONGEST_STREAM},
            "priority": {"type": "string", "enum": list(Priority)},
            "lease_id": {"type": "string"},
        },
    },
    "encoding": {"params": {"contentType": JSON}},
}
_JSON: Final = openapi.takes(
    RequestBody, example={"template": "street-scenes", "share": ["cam1/a.jpg"]}
)
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {MULTIPART: _FORM, **_JSON["requestBody"]["content"]},
    },
    "parameters": [openapi.KEY, openapi.WAIT],
}
_HEADERS: Final = {"Location": "The address of the request", **openapi.APPLIED}


@router.post(
    "",
    status_code=202,
    summary="Give data to the pool",
    responses={
        **openapi.problems(
            *openapi.WITH_BODY,
            *openapi.FROM_CVAT,
            errors.ImportFailed,
            errors.ImportTimedOut,
            errors.TaskGone,
            errors.RequestCancelled,
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
        201: {"model": schemas.Request, **openapi.answer("Its jobs exist", _HEADERS)},
        202: openapi.answer("It is accepted, and on its way", _HEADERS),
    },
    openapi_extra=_BODY,
    response_model=schemas.Request,
)
async def submit(request: Request) -> Response:
    """Send files as a form, or the names of files that CVAT fetches as JSON. An accepted request
    survives an outage of CVAT and a restart of the daemon.

    With `Prefer: wait=10` the answer waits for the jobs: 201 with the jobs, or 202 if they do not
    exist yet. If the request fails meanwhile, the answer is its problem. A request that goes into a
    slot has its jobs in the answer anyway, unless the storage of slots takes longer than 2 s."""
    state, key, wait = state_of(request), key_of(request), wait_of(request)
    match media_type(request):
        case "multipart/form-data":
            record = await state.uploads.form(request, key, caller_of(request))
        case "application/json":
            record = await state.uploads.json(request, key, caller_of(request))
        case _:
            raise WrongMediaType(f"send {MULTIPART} with files, or {JSON}")
    headers = {"Location": f"{router.prefix}/{record.id}", **applied(wait)}
    # A slot is filled in milliseconds: one call less, and the data need not be brought to the disk
    # in the spool.
    seconds = FILLED_WITHIN if wait is None and record.placed is Placed.SLOT else wait
    if seconds is None:
        result = await state.workers.store(result_of, state.pool.store, record)
    else:
        result = await state.waiting.request(record.id, seconds=seconds, caller=request)
    if not result.over:
        await state.uploads.keep(record.id)
    document = schemas.Request.of(result.record, state.pool.task_url, jobs=result.jobs)
    if wait is not None and result.error is not None:
        return problem_of(result.error, headers=headers, request=document)
    ready = wait is not None and result.record.state is RequestState.READY
    return document.response(201 if ready else 202, headers)


@router.get(
    "/{request_id}",
    response_model=schemas.Request,
    summary="Read a request, with its jobs once it is ready",
    responses={
        **openapi.problems(errors.UnknownRequest, errors.InputError),
        200: openapi.answer("As it is now", openapi.APPLIED),
    },
    openapi_extra={"parameters": [openapi.WAIT]},
)
async def see_request(request_id: RequestId, request: Request) -> Response:
    """With `Prefer: wait=10` the answer waits until the request has ended."""
    state, wait = state_of(request), wait_of(request)
    if wait is None:
        result = await state.workers.store(read_request, state.pool.store, request_id)
    else:
        result = await state.waiting.request(request_id, seconds=wait, caller=request)
    (record,) = await state.workers.store(
        state.pool.say_away, [result.record], caller_of(request).scope
    )
    document = schemas.Request.of(record, state.pool.task_url, jobs=result.jobs)
    return document.response(headers=applied(wait))


@router.delete(
    "/{request_id}",
    status_code=204,
    response_class=Response,
    summary="Cancel a request that is still queued, or hide its frames",
    response_description="The request is cancelled",
    responses={
        **openapi.problems(errors.UnknownRequest, errors.InputError, TooLate),
        202: {
            "model": schemas.Request,
            **openapi.answer("Its frames are hidden, or will be once they exist"),
        },
    },
)
async def cancel(
    request_id: RequestId,
    request: Request,
    hide: Annotated[
        bool,
        Query(
            description="Hide the frames of a request that is not queued any more, even if it is "
            "ready: their bytes stay in CVAT until its task is deleted, unless they are in a slot"
        ),
    ] = False,
) -> Response:
    """A second time is no error."""
    state = state_of(request)
    record = await state.workers.store(_cancel, state.pool, request_id, hide)
    if record.state is RequestState.CANCELLED:
        return Response(status_code=204)
    return schemas.Request.of(record, state.pool.task_url).response(202)


@router.get(
    "",
    response_model=RequestPage,
    summary="List requests, newest first",
    response_description="One page",
    responses=openapi.problems(errors.InputError),
)
async def list_requests(
    request: Request,
    states: Annotated[
        list[RequestState],
        Query(alias="state", description="Only those in this state; may be repeated"),
    ] = [],  # noqa: B006 - FastAPI copies it
    template: Annotated[
        str | None,
        Query(description="Only those of this template", max_length=LONGEST_TEMPLATE),
    ] = None,
    text: Annotated[
        str | None,
        Query(
            description="Only those with this text, in upper or lower case, in their id, their "
            "name, their stream or the name of a file",
            max_length=LONGEST_SEARCH,
        ),
    ] = None,
    since: Annotated[
        AwareDatetime | None, Query(description="Only those that were accepted then or later")
    ] = None,
    tenant: Tenant = None,
    limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = PAGE,
    cursor: Cursor = None,
) -> Response:
    """The frames are not included. A page of a search by `text` may have fewer than `limit`
    requests, or none, although it has a `next_cursor`: the search goes on with that."""
    state, caller = state_of(request), caller_of(request)
    records, jobs, next_cursor = await state.workers.store(
        _page,
        state.pool,
        states,
        template=template,
        scope=caller.scope_of(tenant),
        seen_by=caller.scope,
        text=check_search(text),
        since=check_since(since),
        limit=limit,
        cursor=cursor,
    )
    items = [
        schemas.Request.of(record, state.pool.task_url, jobs=jobs.get(record.id, ()), listed=True)
        for record in records
    ]
    return RequestPage(items=items, next_cursor=next_cursor).response()


@router.get(
    "/{request_id}/events",
    response_model=EventList,
    summary="Read the events of a request",
    response_description="Those that are still kept",
    responses=openapi.problems(errors.UnknownRequest, errors.InputError),
)
async def list_events(request_id: RequestId, request: Request) -> Response:
    """What has happened to it, the oldest first, as in `GET /v1/events`. Events are kept for a day,
    or until all sinks have them."""
    state = state_of(request)
    events = await state.workers.store(state.pool.events_of, request_id)
    return EventList(items=[schemas.Event.of(event) for event in events]).response()


def _page(
    pool: TaskPool, states: Sequence[RequestState], *, seen_by: Scope, **which: Any
) -> tuple[Sequence[RequestRecord], Mapping[str, Sequence[Job]], str | None]:
    page = pool.store.requests(states, **which)
    return (
        pool.say_away(page.requests, seen_by),
        pool.store.jobs_of_requests(page.requests),
        page.next_cursor,
    )


def _cancel(pool: TaskPool, request_id: str, hide: bool) -> RequestRecord:
    if hide:
        return pool.erase(request_id).record
    request = pool.request(request_id)
    if not request.cancel() and request.refresh().state is not RequestState.CANCELLED:
        raise TooLate(f"request {request_id} is {request.record.state.value}")
    return request.refresh()
