"""A connection that a call can be cut off from, and answers that do not arrive in one piece."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_KEY = "simulator.connection"
#: What nginx notes down for a connection that it closed without an answer.
NO_ANSWER = 444


class Connection(H11Protocol):
    """uvicorn's protocol; each call's scope leads to the connection that it came by."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, _KEY: self}, _loop)

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    def cut(self, *, reset: bool) -> None:
        """End the connection now: with a TCP reset, or after what has been written."""
        if not reset:
            self.transport.close()
            return
        with contextlib.suppress(OSError):
            # Closing a socket that may not linger sends a reset and drops what is unsent.
            self.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.transport.abort()


def connection_of(scope: Scope) -> Connection:
    connection: Connection = scope["state"][_KEY]
    return connection


class CutReply(Response):
    """No answer: the connection is cut."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__(status_code=NO_ANSWER)
        self._reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await _cut(connection_of(scope), receive, reset=self._reset)


class HalfReply(Response):
    """The head of an answer and half of its body, then a cut. Without a body: half a line."""

    def __init__(self, whole: Response, *, reset: bool) -> None:
        super().__init__(status_code=whole.status_code)
        self._whole = whole
        self._reset = reset

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection, body = connection_of(scope), bytes(self._whole.body)
        if body and scope["method"] != "HEAD":
            await send(_head(self._whole))
            half = body[: len(body) // 2]
            await send({"type": "http.response.body", "body": half, "more_body": True})
        else:
            connection.transport.write(b"HTTP/1.1")
        await _cut(connection, receive, reset=self._reset)


class SlowReply(Response):
    """An answer whose body comes in pieces, with a pause before each."""

    def __init__(
        self, whole: Response, *, pieces: int, pause: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(status_code=whole.status_code)
        self._whole = whole
        self._pieces = pieces
        self._pause = pause

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        connection, body = connection_of(scope), bytes(self._whole.body)
        await send(_head(self._whole))
        size = -(-len(body) // self._pieces) or 1
        for start in range(0, len(body), size):
            if not connection.is_open:
                return
            await self._pause()
            piece = {"type": "http.response.body", "body": body[start : start + size]}
            await send(piece | {"more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _head(whole: Response) -> dict[str, object]:
    return {
        "type": "http.response.start",
        "status": whole.status_code,
        "headers": whole.raw_headers,
    }


async def _cut(connection: Connection, receive: Receive, *, reset: bool) -> None:
    connection.cut(reset=reset)
    # Until the connection knows that it is gone, it would have an answer to every call.
    while (await receive())["type"] != "http.disconnect":
        pass
