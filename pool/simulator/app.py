"""The application: finds the operation of a request and takes it through the server."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .auth import authenticate, unauthorized
from .backend import Backend
from .call import Call
from .control import own_routes
from .organizations import resolve_organization
from .replies import HTML, NOT_FOUND, Refusal, Reply, crash, detail, nginx_page
from .routes import Operation, allowed, by_path

logger = logging.getLogger(__name__)

CLIENT_GONE = 499

Endpoint = Callable[[Request], Awaitable[Response]]
#: Around every operation: gets the call and what would answer it. The place for faults.
Passage = Callable[[Call, Callable[[], Awaitable[Response]]], Awaitable[Response]]


def create_app(simulator: Backend, passage: Passage) -> Starlette:
    """The server's routes: CVAT's, and its own below ``/simulator``."""
    routes = [
        Route(path, _endpoint(simulator, passage, path, methods), methods=_all_methods(methods))
        for path, methods in by_path(simulator.settings).items()
    ]

    routes += own_routes(simulator)

    async def not_found(request: Request, _: Exception) -> Response:
        if _request_line(request) > simulator.settings.max_request_line:
            return nginx_page(414)
        return Response(NOT_FOUND, status_code=404, headers={"content-type": HTML})

    return Starlette(routes=routes, exception_handlers={404: not_found})


def _all_methods(methods: dict[str, Operation]) -> list[str]:
    # Every method reaches the endpoint, which answers 405 in CVAT's words.
    return sorted({*methods, "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


def _endpoint(
    simulator: Backend, passage: Passage, path: str, methods: dict[str, Operation]
) -> Endpoint:
    allow = allowed(path, methods)

    async def endpoint(request: Request) -> Response:
        if _request_line(request) > simulator.settings.max_request_line:
            return nginx_page(414)
        operation = methods.get(request.method)
        if operation is None and request.method == "HEAD":
            operation = methods.get("GET")
        name = operation.name if operation else f"{request.method} {path}"
        call = Call(simulator, request, name)

        async def answer() -> Response:
            reply = await _answer(call, operation)
            reply.seal(allow, anonymous_possible=call.cookie_mattered)
            return reply

        try:
            response = await passage(call, answer)
        except ClientDisconnect:
            # The caller is gone: what the web server in front notes down for such a request.
            response = Response(status_code=CLIENT_GONE)
        finally:
            await request.close()
        simulator.stats.count(name, response.status_code)
        if name == "data:post" and response.status_code == 202 and response.body:
            simulator.stats.times(call.number()).accepted_at = simulator.clock()
        return response

    return endpoint


async def _answer(call: Call, operation: Operation | None) -> Reply:
    try:
        return await _handle(call, operation)
    except Refusal as refusal:
        await call.drain()
        if call.request.method not in ("GET", "HEAD") and operation and not operation.cost:
            await call.spend(call.timings.refusal)
        return Reply.of_refusal(refusal)
    except ClientDisconnect:
        raise
    except Exception:
        # Our own mistake: the caller sees what CVAT shows for its own, the log says the rest.
        logger.exception("%s failed", call.operation)
        return Reply.of_refusal(crash())


async def _handle(call: Call, operation: Operation | None) -> Reply:
    """Authentication, organization, cost, handler: in the order in which Django has them."""
    if call.request.method == "OPTIONS":
        return Reply({"name": call.operation})
    if operation is None or not operation.public:
        await authenticate(call)
        if call.is_anonymous:
            call.simulator.throttle()
            raise unauthorized("Authentication credentials were not provided.")
        resolve_organization(call)
    elif "authorization" not in call.request.headers:
        call.simulator.throttle()
        call.cookie_mattered = True
    if operation is None:
        raise detail(405, f'Method "{call.request.method}" not allowed.')
    if operation.cost is not None:
        await call.spend(getattr(call.timings, operation.cost))
    return await operation.handler(call)


def _request_line(request: Request) -> int:
    path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    query: bytes = request.scope["query_string"]
    return len(request.method) + len(path) + len(query) + len("  ? HTTP/1.1")
