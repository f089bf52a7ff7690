"""``/v1/templates``: what the pool looks like, and what people tell it while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse

from pool import errors
from pool.errors import UnknownTemplate
from pool.http import openapi
from pool.http.bodies import LONGEST_TEMPLATE, Prewarm, parse
from pool.http.limits import read_json
from pool.http.schemas import status_document, template_document
from pool.http.workers import Workers
from pool.taskpool import TaskPool

PATH: Final = "/v1/templates"

_NAME: Final = Path(description="The template's name", max_length=LONGEST_TEMPLATE)
_TEMPLATE: Final = {
    "name": "street-scenes",
    "target": 5,
    "warm": 4,
    "creating": 1,
    "leased": 0,
    "importing": 1,
    "deleting": 0,
    "waiting": 0,
    "queued": 0,
    "rate": 0.2,
    "peak_rate": 0.5,
    "lead_time": 1.0,
    "hits": 120,
    "waits": 3,
    "colds": 1,
    "paused_since": None,
    "held_since": None,
    "held_until": None,
    "hold_reason": "",
    "hold_code": "",
    "hooks": "not installed",
    "hooks_silent_since": None,
    "prewarm_size": 0,
    "prewarm_until": None,
}
_STATUS: Final = {
    "server": "http://localhost:8080",
    "store": "sqlite:////var/lib/cvat-pool/pool.db",
    "maintainer": "host 4711 01kdw8tz",
    "in_flight": 1,
    "held_since": None,
    "held_until": None,
    "hold_reason": "",
    "templates": [_TEMPLATE],
    "config_loaded_at": "2026-01-01T12:00:00.123Z",
    "config_rejected_at": None,
    "config_problems": [],
    "config_restart": [],
}


def template_router(pool: TaskPool, workers: Workers) -> APIRouter:
    """The routes, on one pool."""
    router = APIRouter(tags=["templates"])

    @router.get(
        PATH,
        summary="Levels, demand and troubles of all templates",
        responses={
            **openapi.problems(),
            200: openapi.answer("As it is now", "Status", example=_STATUS),
        },
    )
    async def status() -> Response:
        return JSONResponse(status_document(await workers.store(pool.status)))

    def control(verb: str, do: Callable[[str], object], summary: str, effect: str) -> None:
        async def told(name: str = _NAME) -> Response:
            return JSONResponse(await workers.store(_do, pool, name, do))

        told.__doc__ = effect
        router.add_api_route(
            f"{PATH}/{{name}}/{verb}",
            told,
            methods=["POST"],
            operation_id=f"{verb}_template",
            summary=summary,
            responses={**openapi.problems(UnknownTemplate, errors.InputError), 200: _done()},
        )

    @router.post(
        PATH + "/resume",
        operation_id="resume_all",
        summary="Create tasks of all templates again",
        responses={
            **openapi.problems(),
            200: openapi.answer("All templates as they are now", "Status", example=_STATUS),
        },
    )
    async def resume_all() -> Response:
        """As `resume` for each of them: after they were paused or drained; ends all holds."""
        return JSONResponse(await workers.store(_resume_all, pool))

    control("pause", pool.pause, "Create no more tasks", "Until it is resumed.")
    control(
        "resume",
        pool.resume,
        "Create tasks again",
        "After it was paused or drained; ends its hold and the server's.",
    )

    @router.post(
        PATH + "/{name}/drain",
        operation_id="drain_template",
        summary="Take all warm tasks out of the pool",
        responses={
            **openapi.problems(UnknownTemplate, errors.InputError),
            200: openapi.answer(
                "The template as it is now, and how many tasks were taken out",
                "DrainedTemplate",
                example={**_TEMPLATE, "warm": 0, "deleting": 4, "retired": 4},
            ),
        },
    )
    async def drain(name: str = _NAME) -> Response:
        """And create no more, until it is resumed. Tasks that callers have are left to them."""
        retired = []
        document = await workers.store(
            _do, pool, name, lambda template: retired.append(pool.drain(template))
        )
        return JSONResponse({**document, "retired": sum(retired)})

    @router.post(
        PATH + "/{name}/prewarm",
        summary="Keep more tasks warm for a while",
        responses={
            **openapi.problems(*openapi.WITH_BODY, UnknownTemplate),
            200: _done(),
        },
        openapi_extra=openapi.takes("Prewarm", example={"count": 50, "seconds": 900}),
    )
    async def prewarm(request: Request, name: str = _NAME) -> Response:
        """Takes the place of an earlier prewarm; a count of 0 ends it."""
        content = await read_json(request, patience=pool.settings.daemon.receive_timeout)
        wish = parse(Prewarm, content)

        def do(template: str) -> None:
            pool.prewarm(template, wish.count, duration=wish.seconds)

        return JSONResponse(await workers.store(_do, pool, name, do))

    return router


def _resume_all(pool: TaskPool) -> dict[str, Any]:
    pool.resume()
    return status_document(pool.status())


def _do(pool: TaskPool, name: str, do: Callable[[str], object]) -> dict[str, Any]:
    """Do it, and look at the template then."""
    do(name)
    for template in pool.status().templates:
        if template.name == name:
            return template_document(template)
    raise UnknownTemplate(f"{name!r} is in the configuration no more")


def _done() -> dict[str, Any]:
    return openapi.answer("The template as it is now", "TemplateStatus", example=_TEMPLATE)
