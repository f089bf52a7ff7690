"""The simulator's own routes, below ``/simulator``: its figures, its faults, what happens once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .actions import NAMES, ActionFailed, Actions
from .backend import Backend
from .fault_reading import read_arguments, read_fault, read_faults
from .faults import InvalidFault

Endpoint = Callable[[Request], Awaitable[Response]]


def own_routes(simulator: Backend) -> list[Route]:
    """The routes, which need no credentials and pass no faults."""
    control = Control(simulator)
    routes: tuple[tuple[str, str, Endpoint], ...] = (
        ("GET", "/simulator/stats", control.stats),
        ("POST", "/simulator/reset-stats", control.reset_stats),
        ("GET", "/simulator/faults", control.list_faults),
        ("POST", "/simulator/faults", control.add_fault),
        ("PUT", "/simulator/faults", control.replace_faults),
        ("DELETE", "/simulator/faults", control.clear_faults),
        ("DELETE", "/simulator/faults/{id:int}", control.remove_fault),
        ("POST", "/simulator/actions/{name}", control.act),
    )
    return [
        Route(path, _explained(endpoint), methods=[method]) for method, path, endpoint in routes
    ]


def _explained(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except InvalidFault as error:
            return JSONResponse({"detail": str(error)}, status_code=400)

    return answer


async def _body(request: Request) -> Any:
    body = await request.body()
    try:
        return json.loads(body or b"{}")
    except ValueError as error:
        raise InvalidFault(f"the body is not JSON: {error}") from None


class Control:
    """Answers the routes."""

    def __init__(self, simulator: Backend) -> None:
        self._simulator = simulator

    async def stats(self, _: Request) -> Response:
        return JSONResponse(self._simulator.stats.to_json())

    async def reset_stats(self, _: Request) -> Response:
        self._simulator.stats.reset()
        return Response(status_code=204)

    async def list_faults(self, _: Request) -> Response:
        return JSONResponse({"faults": [each.to_json() for each in self._simulator.faults]})

    async def add_fault(self, request: Request) -> Response:
        active = self._simulator.faults.add(read_fault(await _body(request)))
        return JSONResponse(active.to_json(), status_code=201)

    async def replace_faults(self, request: Request) -> Response:
        """All or none: a mistake in one leaves the rules as they were."""
        faults, wanted = self._simulator.faults, read_faults(await _body(request))
        for fault in wanted:
            faults.check(fault)
        faults.clear()
        for fault in wanted:
            faults.add(fault)
        return await self.list_faults(request)

    async def clear_faults(self, _: Request) -> Response:
        self._simulator.faults.clear()
        return Response(status_code=204)

    async def remove_fault(self, request: Request) -> Response:
        found = self._simulator.faults.remove(request.path_params["id"])
        return Response(status_code=204 if found else 404)

    async def act(self, request: Request) -> Response:
        """``{"result": ...}`` of an action; 404 for one that is not known, 409 if it fails."""
        name = request.path_params["name"]
        if name not in NAMES:
            return JSONResponse({"detail": f"there are {', '.join(NAMES)}"}, status_code=404)
        action = getattr(Actions(self._simulator, lambda function: function()), name)
        arguments = read_arguments(action, await _body(request))
        if name in ("down", "cut_connections"):
            return _afterwards(lambda: action(**arguments), arguments, name)
        try:
            return JSONResponse({"result": action(**arguments)})
        except ActionFailed as error:
            return JSONResponse({"detail": str(error)}, status_code=409)


def _afterwards(action: Callable[[], Any], arguments: dict[str, Any], name: str) -> Response:
    """Answer first: this connection goes with all others."""
    if name == "down" and arguments.get("seconds") is None:
        raise InvalidFault(
            "seconds: is needed, since a server that is down takes no call to come up"
        )

    async def act() -> None:
        asyncio.get_running_loop().call_soon(action)

    return JSONResponse(
        {"result": None}, headers={"connection": "close"}, background=BackgroundTask(act)
    )
