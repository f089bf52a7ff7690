"""A connection that a call can be cut off from."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_KEY = "simulator.connection"


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
