"""The page's side of a daemon that says what a test has it say, on the product's own server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, Self

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse

from pool.clock import rfc3339
from pool.config.settings import DaemonSettings
from pool.http import page
from pool.http.problems import install
from pool.http.server import HttpServer


def status_of(name: str, **more: Any) -> dict[str, Any]:
    """The status of a template at which nothing is special, but for what is said."""
    numbers = dict.fromkeys(
        ("creating", "leased", "importing", "deleting", "waiting", "queued", "prewarm_size"), 0
    )
    outcomes = dict.fromkeys(("hits", "waits", "colds"), 0)
    times = dict.fromkeys(
        ("paused_since", "held_since", "held_until", "prewarm_until", "hooks_silent_since")
    )
    words = {"hold_reason": "", "hooks": "alive"}
    levels = {"name": name, "target": 3, "warm": 3, "rate": 0.0}
    queue = {"queued_interactive": 0, "queued_bulk": 0, "waits_for": "nothing"}
    groups = {"places": 0, "group_sizes": []}
    return {**levels, **numbers, **outcomes, **times, **words, **queue, **groups, **more}


def request_of(number: int, state: str = "importing", **more: Any) -> dict[str, Any]:
    """A request as the API tells it."""
    now = time.time()
    return {
        "id": f"request{number}",
        "template": "scenes",
        "state": state,
        "task_id": 100 + number,
        "url": f"https://cvat.example.com/tasks/{100 + number}",
        "outcome": "hit",
        "name": None,
        "assignee": None,
        "files": [f"{number}.jpg"],
        "size": 2**20,
        "lease_id": f"lease{number}",
        "created_at": rfc3339(now - 3),
        "handed_out_at": rfc3339(now - 3),
        "uploaded_at": rfc3339(now - 2),
        "finished_at": rfc3339(now) if state in ("ready", "failed") else None,
        "jobs": None,
        "error": None,
        "warnings": [],
        **more,
    }


class ScriptedDaemon:
    """Serves the page, and what stands in its attributes as the API."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {
            "server": "https://cvat.example.com",
            "store": "sqlite:///pool.db",
            "maintainer": "host:1",
            "in_flight": 0,
            "held_since": None,
            "held_until": None,
            "hold_reason": "",
            "templates": [status_of("scenes")],
        }
        self.requests: list[dict[str, Any]] = []
        self.history: dict[str, Any] = {
            "interval": 5.0, "at": [], "templates": {}, "requests": []
        }  # fmt: skip
        #: The ``Last-Event-ID`` of each stream that was asked for.
        self.resumed: list[str | None] = []
        self._last_id = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._streams: set[asyncio.Queue[str]] = set()
        self._listened = threading.Event()
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, at the same address as before if it was stopped."""
        self._server = HttpServer(self._app, DaemonSettings(port=self._port))
        self._server.start()
        self.url = self._server.url
        self._port = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        """Refuse connections, and end those that are open."""
        if self._loop is not None:
            self._send("")
        self._server.stop(10.0)
        self._loop = None
        self._listened.clear()

    def tell(self, kind: str, request: dict[str, Any], **more: Any) -> None:
        """Send an event of a request to all who listen."""
        self._last_id += 1
        names = ("template", "task_id", "lease_id", "state", "outcome")
        event = {
            "id": self._last_id,
            "kind": kind,
            "at": rfc3339(time.time()),
            "request_id": request["id"],
            **{name: request[name] for name in names},
            "code": (request["error"] or {}).get("code", ""),
            "seconds": None,
            "server_seconds": None,
            **more,
        }
        self._send(f"id: {self._last_id}\nevent: {kind}\ndata: {json.dumps(event)}\n\n")

    def tell_levels(self) -> None:
        """Send the status to all who listen."""
        self._send(self._levels())

    def _send(self, text: str) -> None:
        assert self._listened.wait(10.0), "no page listens"
        assert self._loop is not None

        def send() -> None:
            for each in self._streams:
                each.put_nowait(text)

        self._loop.call_soon_threadsafe(send)

    def _levels(self) -> str:
        return f"event: levels\ndata: {json.dumps(self.status)}\n\n"

    def _app(self) -> FastAPI:
        app = FastAPI()
        install(app)
        app.include_router(page.router)

        @app.get("/v1/templates")
        async def templates() -> Any:
            return self.status

        @app.get("/v1/history")
        async def history() -> Any:
            return self.history

        @app.get("/v1/requests")
        async def requests(state: str | None = None) -> Any:
            items = [each for each in self.requests if state in (None, each["state"])]
            return {"items": items, "next_cursor": None}

        @app.get("/v1/events")
        async def events(request: HttpRequest) -> StreamingResponse:
            self._loop = asyncio.get_running_loop()
            self.resumed.append(request.headers.get("last-event-id"))
            return StreamingResponse(self._stream(), media_type="text/event-stream")

        return app

    async def _stream(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._streams.add(queue)
        self._listened.set()
        try:
            yield self._levels()
            while text := await queue.get():
                yield text
        finally:
            self._streams.discard(queue)
