"""Who is served: callers with a token, or this machine's own programs where no token is set."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pool.errors import Forbidden, PoolError, Unauthorized
from pool.http.problems import problem_of
from pool.http.server import is_loopback

#: Where CVAT's webhooks go, whose deliveries have signatures of their own.
WEBHOOKS: Final = "/webhooks/cvat"
#: Open to everybody: nothing but the page and whether the daemon works is told there.
OPEN: Final = frozenset({"/", "/healthz", "/readyz", WEBHOOKS})
OPEN_BELOW: Final = "/static/"


def tokens_in(text: str | None) -> tuple[str, ...]:
    """The tokens that ``POOL_API_TOKEN`` holds, separated by commas, so that a new one can be
    valid beside the old one while callers change over."""
    return tuple(filter(None, (token.strip() for token in (text or "").split(","))))


class Guard:
    """Answers callers that are not served with a problem, and lets all others through.

    With tokens, everything that is not open needs one of them. Without, the daemon listens to
    this machine only, and what could come from a web page of somebody else's is refused: a Host
    that is not this machine's (DNS rebinding), and requests that the browser marks as coming
    from another site.
    """

    def __init__(self, app: ASGIApp, *, tokens: tuple[str, ...]) -> None:
        self._app = app
        self._digests = tuple(sha256(token.encode()).digest() for token in tokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refused(scope)) is not None:
            await problem_of(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refused(self, scope: Scope) -> PoolError | None:
        path, headers = scope["path"], Headers(scope=scope)
        if path == WEBHOOKS:
            return None
        if not self._digests:
            return _foreign(path, headers)
        if is_open(path) or self._is_known(headers.get("authorization", "")):
            return None
        return Unauthorized("send Authorization: Bearer and one of the tokens of POOL_API_TOKEN")

    def _is_known(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        given = sha256(token.strip().encode("latin-1")).digest()
        # All of them every time, and by digests of one length: how long this takes tells nothing.
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        return any(matches) and scheme.lower() == "bearer"


def is_open(path: str) -> bool:
    """Whether no token is needed for a path."""
    return path in OPEN or path.startswith(OPEN_BELOW)


def _foreign(path: str, headers: Mapping[str, str]) -> Forbidden | None:
    """Why a caller without a token is not one of this machine's own programs; None if it is."""
    host = headers.get("host", "")
    if not is_loopback(_name_in(host)):
        return Forbidden(
            f"the Host {host[:100]!r} is not this machine: callers from elsewhere, and those that "
            "come through a proxy, need a token; set POOL_API_TOKEN"
        )
    if is_open(path):
        return None  # nothing is told or done there, and links to the page are welcome
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return Forbidden("pages of other sites are not served")
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return Forbidden("pages of other sites are not served")
    return None


def _name_in(host: str) -> str:
    """The name in a Host header, which may have a port after it."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host
