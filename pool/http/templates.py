"""``/v1/templates``: the status of the pool, and its control."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request

from pool import errors
from pool.errors import UnknownTemplate
from pool.http import openapi
from pool.http.access import GuardedRoute, caller_of
from pool.http.context import AppState, state_of
from pool.http.reading import read_json
from pool.http.schemas import (
    LONGEST_TEMPLATE,
    DrainedTemplate,
    PrewarmBody,
)
from pool.model import EVERYTHING, Scope
from pool.status import Status, TemplateStatus

router = APIRouter(
    prefix="/v1/templates",
    tags=["templates"],
    responses=openapi.PROTECTED,
    route_class=GuardedRoute,
)

Name = Annotated[str, Path(description="The template's name", max_length=LONGEST_TEMPLATE)]

_UNKNOWN = openapi.problems(UnknownTemplate, errors.InputError)
_DONE = "The present status of the template"


@router.get(
    "",
    summary="Read the status of all templates",
    response_description="The present status",
)
async def status(request: Request) -> Status:
    """Of the templates that the caller sees. One that sees what is its own only does not see the
    store, the daemons and the configuration, and `in_flight` are its own."""
    return await _status(state_of(request), caller_of(request).scope)


@router.post(
    "/resume",
    operation_id="resume_all",
    summary="Create tasks of all templates again",
    response_description="The present status",
)
async def resume_all(request: Request) -> Status:
    """As `resume` for each template that the caller sees; ends all holds."""
    state, scope = state_of(request), caller_of(request).scope
    if scope == EVERYTHING:
        await state.workers.store(state.pool.resume)
    for name in state.pool.process.templates.within(scope) if scope.templates else ():
        await state.workers.store(state.pool.resume, name)
    return await _status(state, scope)


@router.post(
    "/{name}/pause",
    operation_id="pause_template",
    summary="Stop creating tasks",
    response_description=_DONE,
    responses=_UNKNOWN,
)
async def pause(name: Name, request: Request) -> TemplateStatus:
    """Until the template is resumed. Warm tasks are still handed out."""
    state = state_of(request)
    return await _control(state, name, state.pool.pause)


@router.post(
    "/{name}/resume",
    operation_id="resume_template",
    summary="Create tasks again",
    response_description=_DONE,
    responses=_UNKNOWN,
)
async def resume(name: Name, request: Request) -> TemplateStatus:
    """After pause or drain; ends the hold of the template, and that of the server."""
    state = state_of(request)
    return await _control(state, name, state.pool.resume)


@router.post(
    "/{name}/drain",
    operation_id="drain_template",
    summary="Take all warm tasks out of the pool",
    response_description="The template, and how many tasks were taken out",
    responses=_UNKNOWN,
)
async def drain(name: Name, request: Request) -> DrainedTemplate:
    """Also stops creating tasks until resume. Leased tasks stay with their callers."""
    state = state_of(request)
    retired = await state.workers.store(state.pool.drain, name)
    template = await _find(state, name)
    return DrainedTemplate(**vars(template), retired=retired)


@router.post(
    "/{name}/prewarm",
    operation_id="prewarm_template",
    summary="Keep more tasks warm for a while",
    response_description=_DONE,
    responses=openapi.problems(*openapi.WITH_BODY, UnknownTemplate),
    openapi_extra=openapi.takes(PrewarmBody, example={"count": 50, "seconds": 900}),
)
async def prewarm(name: Name, request: Request) -> TemplateStatus:
    """Replaces an earlier prewarm; a count of 0 ends it."""
    state = state_of(request)
    body = await read_json(request, PrewarmBody, timeout=state.receive_timeout)
    return await _control(
        state, name, lambda name: state.pool.prewarm(name, body.count, duration=body.seconds)
    )


async def _status(state: AppState, scope: Scope = EVERYTHING) -> Status:
    return await state.workers.store(state.pool.status, scope=scope)


async def _control(state: AppState, name: str, change: Callable[[str], Any]) -> TemplateStatus:
    """Make a change, and return the status of the template after it."""
    await state.workers.store(change, name)
    return await _find(state, name)


async def _find(state: AppState, name: str) -> TemplateStatus:
    for template in (await _status(state)).templates:
        if template.name == name:
            return template
    raise UnknownTemplate(f"{name!r} is no longer in the configuration")
