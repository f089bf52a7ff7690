"""Middleware of all calls: access control, call ids, the access log, security headers."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pool.config.tokens import OPERATOR, Caller, Tokens
from pool.config.urls import is_loopback
from pool.errors import Forbidden, Stopping, Unauthorized
from pool.http.access import ALLOWED, CALLER, caller_in
from pool.http.problems import problem, problem_of
from pool.logs import get_logger
from pool.model import new_id

log = get_logger(__name__)

CALL_ID: Final = "X-Request-Id"
#: CVAT's webhooks: their deliveries are signed.
WEBHOOKS: Final = "/webhooks/cvat"
#: Open without a token: the page without its data, the manual, and the health checks.
OPEN: Final = frozenset({"/", "/docs", "/healthz", "/readyz", WEBHOOKS})
OPEN_BELOW: Final = ("/static/", "/docs/")
#: Routes that monitoring calls all the time; the label of calls that match no route.
PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
NO_ROUTE: Final = "none"
_SANE_ID: Final = re.compile(r"[0-9A-Za-z._:/+=-]{1,128}")

#: Called with the method, the route, the status, and the seconds until the answer began.
OnAnswer = Callable[[str, str, int, float], None]


class CallLog:
    """Give each call an id, for its answer and its log lines: the caller's own, if it is valid.

    Log each answer in one line, and pass it to ``on_answer``. Turn unhandled exceptions into a 500
    problem.
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
        call_id = given if _SANE_ID.fullmatch(given) else new_id()
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
                whose = tenant_of(caller_in(scope))
                log.exception("call failed", **whose, path=scope["path"], why=repr(error))
                if status:
                    raise
                await problem(500)(scope, receive, send_on)
            self._record(scope, status, answered - began, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float, in_all: float) -> None:
        # Not the path and the query: callers may have put secrets into them.
        route = getattr(scope.get("route"), "path", NO_ROUTE)
        if self._on_answer is not None and status:
            self._on_answer(scope["method"], route, status, seconds)
        # Probes come every few seconds, and a page has dozens of files: logged only when they fail.
        quiet = route in PROBES or route in OPEN or route.startswith(OPEN_BELOW)
        write = log.debug if quiet and route != WEBHOOKS and status < 400 else log.info
        write(
            "answered",
            **tenant_of(caller_in(scope)),
            method=scope["method"],
            route=route,
            status=status or None,
            milliseconds=round(1000 * in_all, 1),
        )


class AccessControl:
    """Find out who calls, and refuse unauthorized callers with a problem.

    With tokens, everything that is not open needs one of them. Without tokens, the daemon listens
    on this machine only, and calls that a browser may make for another site's page are refused:
    a Host other than this machine (DNS rebinding), and calls that the browser marks as cross-site.
    """

    def __init__(self, app: ASGIApp, *, tokens: Tokens) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        caller = self._caller(scope)
        if not isinstance(caller, Caller):
            await problem_of(caller)(scope, receive, send)
            return
        scope[CALLER] = caller
        scope[ALLOWED] = lambda: self._caller(scope) == caller
        with structlog.contextvars.bound_contextvars(**tenant_of(caller)):
            await self._app(scope, receive, send)

    def _caller(self, scope: Scope) -> Caller | Forbidden | Unauthorized:
        """Return whose call it is, or why it is refused."""
        path, headers = scope["path"], Headers(scope=scope)
        if path == WEBHOOKS:
            return OPERATOR
        is_open = path in OPEN or path.startswith(OPEN_BELOW)
        if not self._tokens:
            return _foreign(headers, is_open=is_open) or OPERATOR
        if is_open:
            return OPERATOR
        scheme, _, token = headers.get("authorization", "").partition(" ")
        known = self._tokens.caller(token.strip().encode("latin-1"))
        if known is not None and scheme.lower() == "bearer":
            return known
        return Unauthorized(
            "send Authorization: Bearer and a token of the daemon's POOL_API_TOKEN or [tokens]"
        )


def tenant_of(caller: Caller) -> dict[str, str]:
    """Return what log lines say of a caller: nothing of the operator."""
    return {"tenant": caller.tenant} if caller.tenant else {}


def _foreign(headers: Mapping[str, str], *, is_open: bool) -> Forbidden | None:
    """Return why a call without a token does not come from a program on this machine, or None."""
    host = headers.get("host", "")
    if not is_loopback(_name_in(host)):
        return Forbidden(
            f"the Host {host[:100]!r} is not this machine: callers from elsewhere, and those that "
            "come through a proxy, need a token; set POOL_API_TOKEN"
        )
    if is_open:
        return None  # no data and no effect, and other sites may link to the page
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return Forbidden("pages of other sites are not served")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return Forbidden("pages of other sites are not served")
    return None


def _name_in(host: str) -> str:
    """Return the name in a Host header, which may have a port after it."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host
