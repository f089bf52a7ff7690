"""What every answer bears: the id of its call, and what browsers are to make of it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pool.errors import Stopping
from pool.http.problems import problem, problem_of
from pool.logs import get_logger
from pool.model import new_id

log = get_logger(__name__)

CALL_ID: Final = "X-Request-Id"
#: Called with a method, a route, a status and seconds.
OnAnswer = Callable[[str, str, int, float], None]
#: Routes that are asked for all the time, by machines; and what stands for no route at all.
PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
NO_ROUTE: Final = "none"
_SANE: Final = re.compile(r"[0-9A-Za-z._:/+=-]{1,128}")


class Envelope:
    """Gives each call an id, the caller's own if that is sane: the answer bears it, and the log
    lines of the call do. Nothing that goes wrong inside leaves without an answer.

    Each answer is one line in the log, and ``on_answer`` is told of it: its method, the pattern of
    its route, its status, and the seconds up to its beginning.
    """

    def __init__(self, app: ASGIApp, *, on_answer: OnAnswer | None = None) -> None:
        self._app = app
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get(CALL_ID, "")
        call_id = given if _SANE.fullmatch(given) else new_id()
        status = 0
        answered = began

        async def send_on(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = time.perf_counter()
                headers = MutableHeaders(scope=message)
                headers[CALL_ID] = call_id
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        with structlog.contextvars.bound_contextvars(call_id=call_id):
            try:
                await self._app(scope, receive, send_on)
            except asyncio.CancelledError:
                # The server stops, and has waited for as long as it may.
                if not status:
                    await problem_of(Stopping())(scope, receive, send_on)
            except Exception as error:
                log.exception("call failed", path=scope["path"], why=repr(error))
                if status:
                    raise
                await problem(500)(scope, receive, send_on)
            self._tell(scope, status, answered - began, time.perf_counter() - began)

    def _tell(self, scope: Scope, status: int, seconds: float, in_all: float) -> None:
        # Not the path and its query, which callers may have put anything into.
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        if self._on_answer is not None and status:
            self._on_answer(scope["method"], route, status, seconds)
        # Probes come every few seconds for ever, and say nothing as long as all is well.
        tell = log.debug if route in PROBES and status < 400 else log.info
        tell(
            "answered",
            method=scope["method"],
            route=route,
            status=status or None,
            milliseconds=round(1000 * in_all, 1),
        )
