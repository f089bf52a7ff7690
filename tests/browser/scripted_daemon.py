"""The page's side of a daemon that says what a test has it say, on the product's own server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Self

from fastapi import FastAPI, HTTPException, Query
from fastapi import Request as HttpRequest
from fastapi.responses import StreamingResponse

from pool.clock import rfc3339
from pool.config.settings import DaemonSettings
from pool.errors import TooLate
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
    times["oldest_waiting_since"] = None
    words = {"hold_reason": "", "hold_code": "", "hooks": "alive"}
    levels = {"name": name, "target": 3, "warm": 3, "rate": 0.0}
    queue = {"queued_interactive": 0, "queued_bulk": 0, "waits_for": "nothing"}
    groups = {"places": 0, "group_sizes": []}
    slots = dict.fromkeys(("carriers", "slots_filled", "slots_retired"), 0)
    return {**levels, **numbers, **outcomes, **times, **words, **queue, **groups, **slots, **more}


def request_of(number: int, state: str = "importing", **more: Any) -> dict[str, Any]:
    """A request as the API tells it."""
    now = time.time()
    return {
        "id": f"request{number}",
        "template": "scenes",
        "tenant": "",
        "state": state,
        "task_id": 100 + number,
        "task_deleted": False,
        "url": f"https://cvat.example.com/tasks/{100 + number}",
        "outcome": "hit",
        "placed": "task",
        "no_slot": None,
        "stream": None,
        "name": None,
        "assignee": None,
        "priority": "normal",
        "files": [f"{number}.jpg"],
        "size": 2**20,
        "lease_id": f"lease{number}",
        "created_at": rfc3339(now - 3),
        "handed_out_at": rfc3339(now - 3),
        "uploaded_at": rfc3339(now - 2),
        "finished_at": rfc3339(now) if state in ("ready", "failed") else None,
        "shown_at": None,
        "jobs": None,
        "hidden": None,
        "error": None,
        "warnings": [],
        **more,
    }


def lease_of(number: int, **more: Any) -> dict[str, Any]:
    """A lease of a caller that has its task."""
    now = time.time()
    return {
        "id": f"lease{number}",
        "template": "scenes",
        "tenant": "",
        "state": "active",
        "task_id": 100 + number,
        "name": None,
        "task_name": f"task {number}",
        "url": f"https://cvat.example.com/tasks/{100 + number}",
        "outcome": "hit",
        "owner": "host:4711:7c0857",
        "created_at": rfc3339(now - 90),
        "expires_at": rfc3339(now + 3510),
        "jobs": None,
        "error": None,
        **more,
    }


def stream_of(name: str, **more: Any) -> dict[str, Any]:
    """A stream that is open."""
    now = time.time()
    return {
        "template": "scenes",
        "tenant": "",
        "name": name,
        "opened_at": rfc3339(now - 600),
        "used_at": rfc3339(now - 30),
        "tasks": 2,
        "task_id": 42,
        "url": "https://cvat.example.com/tasks/42",
        "filled": 12,
        "slots": 50,
        **more,
    }


LONG_NAME = "w" * 64


class ScriptedDaemon:
    """Serves the page, and what stands in its attributes as the API."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {
            "server": "https://cvat.example.com",
            "store": "sqlite:///pool.db",
            "maintainer": "host:4711:7c0857",
            "daemons": [{"owner": "host:4711:7c0857"}],
            "in_flight": 0,
            "held_since": None,
            "held_until": None,
            "hold_reason": "",
            "hold_code": "",
            "templates": [status_of("scenes")],
        }
        #: The role of the token that it is asked with.
        self.role = "operate"
        self.requests: list[dict[str, Any]] = []
        self.leases: list[dict[str, Any]] = []
        self.streams: list[dict[str, Any]] = []
        #: How many requests are looked through at a time for a text.
        self.searched_at_once = 20_000
        #: The events of each request, by its id.
        self.events: dict[str, list[dict[str, Any]]] = {}
        #: The paths, with their queries, of all calls of ``/v1`` in order.
        self.asked: list[str] = []
        self.history: dict[str, Any] = {
            "interval": 5.0, "at": [], "templates": {}, "requests": []
        }  # fmt: skip
        #: That of more than an hour.
        self.longer_history: dict[str, Any] = {**self.history, "interval": 600.0}
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

        @app.post("/v1/templates/resume")
        async def resume() -> Any:
            self.status |= {"hold_reason": "", "held_since": None, "held_until": None}
            return self.status

        @app.get("/v1/token")
        async def token() -> Any:
            return {"name": "", "role": self.role, "templates": []}

        @app.get("/v1/history")
        async def history(seconds: int = 3600) -> Any:
            return self.history if seconds <= 3600 else self.longer_history

        @app.middleware("http")
        async def note(request: HttpRequest, call_next: Any) -> Any:
            path, query = request.url.path, request.url.query
            self.asked.append(f"{request.method} {path}" + (f"?{query}" if query else ""))
            return await call_next(request)

        @app.get("/v1/requests")
        async def requests(
            state: Annotated[list[str], Query()] = [],  # noqa: B006 - FastAPI copies it
            template: str | None = None,
            text: str = "",
            since: str = "",
            limit: int = 50,
            cursor: int = 0,
        ) -> Any:
            def found(each: dict[str, Any]) -> bool:
                return (
                    (not state or each["state"] in state)
                    and template in (None, each["template"])
                    and text.lower() in f"{each['id']} {each['name']} {each['files']}".lower()
                    and each["created_at"] >= since
                )

            if not text:
                return _page([each for each in self.requests if found(each)], limit, cursor)
            page = _page(self.requests, self.searched_at_once, cursor)
            return {**page, "items": [each for each in page["items"] if found(each)]}

        @app.get("/v1/requests/{id}")
        async def request(id: str) -> Any:
            return _found(self.requests, id)

        @app.get("/v1/requests/{id}/events")
        async def request_events(id: str) -> Any:
            _found(self.requests, id)
            return {"items": self.events.get(id, [])}

        @app.delete("/v1/requests/{id}", status_code=204)
        async def cancel(id: str) -> None:
            found = _found(self.requests, id)
            if found["state"] != "queued":
                raise TooLate("it is not queued")
            found["state"] = "cancelled"

        @app.get("/v1/leases")
        async def leases(limit: int = 50, cursor: int = 0) -> Any:
            return _page(self.leases, limit, cursor)

        @app.delete("/v1/leases/{id}", status_code=204)
        async def release(id: str) -> None:
            self.leases.remove(_found(self.leases, id))

        @app.get("/v1/streams")
        async def streams() -> Any:
            return {"items": self.streams}

        @app.delete("/v1/streams", status_code=204)
        async def close(template: str, name: str, tenant: str) -> None:
            self.streams = [
                each
                for each in self.streams
                if (each["template"], each["name"], each["tenant"]) != (template, name, tenant)
            ]

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


def _page(items: list[dict[str, Any]], limit: int, cursor: int) -> dict[str, Any]:
    after = cursor + limit
    more = str(after) if after < len(items) else None
    return {"items": items[cursor:after], "next_cursor": more}


def _found(items: list[dict[str, Any]], id: str) -> dict[str, Any]:
    for each in items:
        if each["id"] == id:
            return each
    raise HTTPException(404)


# --- All that the page can show ------------------------------------------------------------------


def in_seconds(seconds: float) -> str:
    return rfc3339(time.time() + seconds)


def filled(daemon: ScriptedDaemon, *, templates: int = 1) -> ScriptedDaemon:
    """All that the page can show: history, requests, failures, holds, long names, large numbers."""
    now = time.time()
    at = [now - 600 + 5 * n for n in range(120)]
    rows = [status_of(f"template-{n:02}", hits=1_234_567, waits=98_765) for n in range(templates)]
    held = {"held_since": in_seconds(-60), "held_until": in_seconds(75)}
    prewarm = {"prewarm_size": 12_345, "prewarm_until": in_seconds(900)}
    rows[0] |= {"name": LONG_NAME, "hold_reason": f"CVAT rejected the call: {'x' * 300}", **held}
    rows[0] |= {"queued": 50_000, "queued_bulk": 49_000, "waits_for": "place", "places": 16}
    rows[0] |= {"group_sizes": [1 + n * 7 % 200 for n in range(100)]}
    rows[0] |= {"paused_since": in_seconds(-60), "waiting": 99_999, "hooks": "silent", **prewarm}
    daemon.status |= {"templates": rows, "hold_reason": "CVAT is overloaded", **held}
    daemon.history |= {
        "at": at,
        "templates": {
            row["name"]: {
                "warm": [n % 5 for n in range(120)],
                "creating": [n % 2 for n in range(120)],
                "target": [5] * 120,
            }
            for row in rows
        },
        "requests": [
            {
                "request_id": f"old{n}",
                "template": rows[n % templates]["name"],
                "outcome": "hit",
                "at": now - 3 * n,
                "seconds": 0.2 + n / 500,
                "server_seconds": 0.15 + n / 500,
                "state": "ready",
                "code": "",
                "error": None,
            }
            for n in range(100)
        ],
    }
    error = {"code": "import-failed", "title": "CVAT could not import the data", "status": 422}
    daemon.requests = [request_of(n, name="n" * 90, template=LONG_NAME) for n in range(20)] + [
        request_of(
            n, "failed", template=LONG_NAME, error={**error, "detail": f"{'d' * 200} {chr(n)}"}
        )
        for n in range(100, 110)
    ]
    return daemon
