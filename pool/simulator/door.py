"""The socket that a simulator is reached by: it can be shut, and opened again where it was."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette

from .connection import Connection
from .fault_table import Faults
from .state import State

#: How long an idle connection is kept, as by the web server in front of CVAT.
KEEP_ALIVE_SECONDS = 75
#: Far beyond the longest request line, so that it is we who answer 414.
LONGEST_HEAD = 1 << 20
BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ``OSError`` for a taken port."""
    listener = _bound(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port))
    try:
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _bound(family: int, address: tuple[str, int]) -> socket.socket:
    # Named as TCP, because asyncio turns Nagle's algorithm off only for sockets that say so:
    # without it every answer waits 40 ms for the client's delayed acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


class Door(uvicorn.Server):
    """A uvicorn server that can go down and come up, and leaves the signals to us."""

    def __init__(
        self, app: Starlette, state: State, faults: Faults, listener: socket.socket
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="critical",
                access_log=False,
                lifespan="off",
                loop="asyncio",
                http=Connection,
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=1,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                h11_max_incomplete_event_size=LONGEST_HEAD,
            )
        )
        self._state = state
        self._faults = faults
        #: While the door is shut: bound, so that the port stays taken, but not listening.
        self._socket = listener
        self._accepting: set[asyncio.Task[Any]] = set()
        self.is_shut = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Not with uvicorn's own accepting, which takes several rounds of the loop to begin: in
        # between it could neither be stopped nor be said to run.
        await super().startup(sockets=sockets or [])
        self.open()

    def open(self) -> None:
        """Take connections from now on."""
        if not self.is_shut:
            return
        self.is_shut = False
        self._socket.listen(BACKLOG)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            accepted, _ = self._socket.accept()
        except OSError:
            # Closed by the client before it was accepted.
            return
        accepted.setblocking(False)
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._new_connection, accepted))
        self._accepting.add(task)

        def connected(task: asyncio.Task[Any]) -> None:
            self._accepting.discard(task)
            if task.cancelled() or task.exception() is not None:
                accepted.close()

        task.add_done_callback(connected)

    def _new_connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    def shut(self) -> None:
        """Refuse connections, reset those that are open, and drop the calls under way."""
        if self.is_shut:
            return
        self.is_shut = True
        family, address = self._socket.family, self._socket.getsockname()
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = _bound(family, address)
        self.cut_all()
        for task in (*self._accepting, *self.server_state.tasks):
            task.cancel()

    def cut_all(self) -> int:
        """Reset all connections; returns how many there were."""
        connections = [cast(Connection, each) for each in self.server_state.connections]
        found = [each for each in connections if each.is_open]
        for each in found:
            each.cut(reset=True)
        return len(found)

    def stamp(self) -> None:
        """Send the simulator's date with every answer from now on, rather than ours."""
        date = formatdate(self._state.now().timestamp(), usegmt=True)
        headers = self.config.encoded_headers
        self.server_state.default_headers = [(b"date", date.encode()), *headers]

    async def on_tick(self, counter: int) -> bool:
        done = await super().on_tick(counter)
        if self._state.clock_offset:
            self.stamp()
        return done

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # First of all, which ends the calls that a rule holds up.
        self._faults.close()
        if not self.is_shut:
            asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        await super().shutdown(sockets)
