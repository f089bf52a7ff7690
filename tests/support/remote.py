"""A scripted daemon for the remote pools: it answers in turn, and time passes when they pause."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from pool import AsyncRemotePool, RemotePool
from support.blocking import Blocking, EventLoop
from support.clock import ManualClock

ADDRESS = "http://127.0.0.1:8765"

Reply = Any

JOB: dict[str, Any] = {
    "id": 7,
    "url": "http://cvat/7",
    "start_frame": 0,
    "stop_frame": 1,
    "assignee": None,
}
LEASE: dict[str, Any] = {
    "id": "l1",
    "template": "scenes",
    "state": "active",
    "name": None,
    "task_id": 42,
    "task_name": "[cvat-pool p] scenes",
    "url": "http://cvat/tasks/42",
    "outcome": "hit",
    "owner": "host 1 ab",
    "created_at": "2026-01-01T11:00:00.123Z",
    "expires_at": "2026-01-01T12:00:00.123Z",
    "jobs": None,
    "error": None,
}
REQUEST: dict[str, Any] = {
    "id": "r1",
    "template": "scenes",
    "state": "importing",
    "task_id": 42,
    "url": "http://cvat/tasks/42",
    "outcome": "wait",
    "name": "night ride",
    "assignee": 3,
    "files": ["a.jpg", "b.jpg"],
    "size": 10_000,
    "lease_id": "l1",
    "created_at": "2026-01-01T12:00:00.123Z",
    "handed_out_at": "2026-01-01T12:00:00.125Z",
    "uploaded_at": None,
    "finished_at": None,
    "jobs": None,
    "error": None,
}
READY = {**REQUEST, "state": "ready", "jobs": [JOB]}


def problem(
    status: int, code: str, detail: str = "", title: str = "Title", **more: Any
) -> httpx.Response:
    """A problem document; ``retry_after="3"`` is its header."""
    headers = {"Content-Type": "application/problem+json"}
    if "retry_after" in more:
        headers["Retry-After"] = more.pop("retry_after")
    kind = f"urn:cvat-task-pool:error:{code}" if code else "about:blank"
    document = {"type": kind, "title": title, "status": status, "detail": detail, **more}
    return httpx.Response(status, headers=headers, json=document)


def page(status: int, **headers: str) -> httpx.Response:
    """An answer of something else than a pool."""
    return httpx.Response(status, headers=headers, html="<html>")


def refused() -> Exception:
    """A connection that nothing listens to."""
    error = httpx.ConnectError("All connection attempts failed")
    error.__cause__ = ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 8765)")
    return error


def cut() -> Exception:
    """A connection that is lost once the call was sent."""
    return httpx.ReadError("connection reset")


class ScriptedDaemon:
    """Gives its replies in order, and the last one again and again.

    A reply is a document, a response, an error to raise, or a function of the request that
    returns one of them. Every body is read to its end.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.replies: list[Reply] = []
        self.requests: list[httpx.Request] = []
        #: Seconds of the pauses that the client made.
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, httpx.Response):
            # A response can be sent once only.
            return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)
        if callable(reply):
            reply = reply(request)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, httpx.Response):
            return reply
        return httpx.Response(200, json=reply)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.advance(seconds)

    @contextmanager
    def connected(self, kind: str, **options: Any) -> Iterator[Any]:
        """A pool of a kind before this daemon, used in the same way whatever its kind."""
        client = httpx.AsyncClient(transport=httpx.MockTransport(self))
        options = {
            "client": client,
            "clock": self.clock,
            "sleep": self.sleep,
            "rng": random.Random(1),
            **options,
        }
        if kind == "RemotePool":
            with RemotePool(ADDRESS, **options) as pool:
                yield pool
        else:
            with EventLoop() as loop:
                yield Blocking(loop, AsyncRemotePool(ADDRESS, **options))
                loop.call(client.aclose)


Connect = Callable[..., Any]


def wait_of(request: httpx.Request) -> int:
    """The seconds of ``Prefer: wait``."""
    return int(request.headers.get("Prefer", "wait=0").removeprefix("wait="))
