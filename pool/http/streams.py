"""``/v1/streams``: requests whose jobs follow each other in the same tasks."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from pool import errors
from pool.config.arguments import LONGEST_STREAM
from pool.http import openapi
from pool.http.access import GuardedRoute, caller_of
from pool.http.context import state_of
from pool.http.requests import Tenant
from pool.http.schemas import LONGEST_TEMPLATE, StreamList

router = APIRouter(
    prefix="/v1/streams", tags=["streams"], responses=openapi.PROTECTED, route_class=GuardedRoute
)


@router.get(
    "",
    summary="List the streams that are open",
    response_description="By template, name and tenant",
    responses=openapi.problems(errors.UnknownTemplate, errors.InputError),
)
async def list_streams(
    request: Request,
    template: Annotated[
        str | None,
        Query(description="Only those of this template", max_length=LONGEST_TEMPLATE),
    ] = None,
    tenant: Tenant = None,
) -> StreamList:
    """A stream opens with its first request: `POST /v1/requests` with a `stream`. Each tenant has
    streams of its own, whatever they are called."""
    state, scope = state_of(request), caller_of(request).scope_of(tenant)
    return StreamList(items=await state.workers.store(state.pool.streams, template, scope=scope))


@router.delete(
    "",
    status_code=204,
    response_class=Response,
    summary="Close a stream",
    response_description="The stream is closed",
    responses=openapi.problems(errors.UnknownStream, errors.UnknownTemplate, errors.InputError),
)
async def close_stream(
    request: Request,
    template: Annotated[str, Query(max_length=LONGEST_TEMPLATE)],
    name: Annotated[
        str, Query(max_length=LONGEST_STREAM, description="The stream's name, such as camera 7")
    ],
    tenant: Annotated[
        str | None,
        Query(
            max_length=LONGEST_TEMPLATE,
            description="The tenant whose stream it is; by default the caller's own",
        ),
    ] = None,
) -> None:
    """What is left of its task is filled no more. A later request of the same name opens another,
    in a task of its own."""
    state, caller = state_of(request), caller_of(request)
    whose = caller.scope_of(caller.tenant if tenant is None else tenant)
    state.pool.process.templates.within(whose).named(template)
    await state.workers.store(state.pool.close_stream, template, name, tenant=whose.tenant or "")
