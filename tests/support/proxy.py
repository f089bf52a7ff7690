"""A TCP proxy that a test can stop, slow down, or have cut connections after so many bytes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import urlsplit

Direction = Literal["up", "down"]
BLOCK = 2**16
PATIENCE = 5.0


@dataclass(frozen=True)
class Cut:
    """One connection to cut: the first on which ``direction`` is to pass more than ``after``
    bytes, once it has passed ``sent`` bytes up. Up is from the client to the server.

    The bytes up to there arrive, and no more. With ``reset`` both sides get a TCP reset, else
    they see an ordinary end.
    """

    direction: Direction
    after: int
    sent: int
    reset: bool


@dataclass
class Connection:
    """The two ends of a connection, and what it has passed on."""

    client: socket.socket
    server: socket.socket
    up: int = 0
    down: int = 0
    #: Threads that have not done with it.
    users: int = 2
    #: Set when the server has closed its end.
    left_by_server: threading.Event = field(default_factory=threading.Event)

    def passed(self, direction: Direction) -> int:
        return self.up if direction == "up" else self.down


class CuttingProxy:
    """A proxy in front of the server at ``url``; its own address is :attr:`url`.

    ``delay`` is in seconds, before each block of at most 64 KiB in either direction, so it also
    bounds what one connection carries. Cuts are taken in order, each by one connection.
    """

    def __init__(self, url: str, *, delay: float = 0.0) -> None:
        parts = urlsplit(url)
        self._server = (parts.hostname or "", parts.port or 80)
        self.delay = delay
        #: Connections accepted, and those of them that were cut.
        self.connections = 0
        self.cuts = 0
        #: Bytes passed on, by direction.
        self.passed: dict[Direction, int] = {"up": 0, "down": 0}
        self._guard = threading.Lock()
        self._pending: list[Cut] = []
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def cut(
        self,
        direction: Direction,
        after: int,
        *,
        sent: int = 0,
        times: int = 1,
        reset: bool = True,
    ) -> None:
        """Have the next ``times`` connections that get so far cut there. See :class:`Cut`."""
        with self._guard:
            self._pending += [Cut(direction, after, sent, reset)] * times

    def forget_cuts(self) -> None:
        """Cut nothing more of what :meth:`cut` was told."""
        with self._guard:
            self._pending.clear()

    @property
    def listening(self) -> bool:
        """Whether new connections are taken."""
        return self._listener is not None

    def start(self) -> None:
        """Listen, on the same port as before if it was stopped."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        # So that a client knows more or less how far it got when it is cut.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BLOCK)
        self._port = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener)

    def stop(self) -> None:
        """Refuse new connections and reset all that are open."""
        if self._listener is not None:
            # A blocked accept does not notice a close, only a shutdown.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.reset_all()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._threads.clear()

    def reset_all(self) -> None:
        """Reset all open connections; new ones are taken."""
        with self._guard:
            sockets = list(self._sockets)
        for each in sockets:
            _end(each, reset=True)

    # --- Inside ---------------------------------------------------------------------------------

    def _spawn(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server, PATIENCE)
            except OSError:
                _end(client, reset=True)
                client.close()
                continue
            server.settimeout(None)
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._guard:
                self.connections += 1
                self._sockets |= {client, server}
            connection = Connection(client, server)
            self._spawn(self._pass_on, "up", connection)
            self._spawn(self._pass_on, "down", connection)

    def _pass_on(self, direction: Direction, connection: Connection) -> None:
        source, target = connection.client, connection.server
        if direction == "down":
            source, target = target, source
        with contextlib.suppress(OSError):
            while data := source.recv(BLOCK):
                if self.delay:
                    time.sleep(self.delay)
                cut, data = self._count(direction, connection, data)
                target.sendall(data)
                if cut is not None:
                    self._cut(connection, cut)
                    break
            else:
                target.shutdown(socket.SHUT_WR)
        if direction == "down":
            connection.left_by_server.set()
        with self._guard:
            connection.users -= 1
            if connection.users:
                return
            self._sockets -= {source, target}
        source.close()
        target.close()

    def _count(
        self, direction: Direction, connection: Connection, data: bytes
    ) -> tuple[Cut | None, bytes]:
        """The cut to make, if it is time for one, and as much of the data as still passes."""
        with self._guard:
            cut = self._pending[0] if self._pending else None
            before = connection.passed(direction)
            if (
                cut is not None
                and cut.direction == direction
                and before + len(data) > cut.after
                and connection.up >= cut.sent
            ):
                self._pending.pop(0)
                self.cuts += 1
                data = data[: max(0, cut.after - before)]
            else:
                cut = None
            if direction == "up":
                connection.up += len(data)
            else:
                connection.down += len(data)
            self.passed[direction] += len(data)
            return cut, data

    def _cut(self, connection: Connection, cut: Cut) -> None:
        """The server hears of it first, so that a client that asks afterwards what the server has
        is told something that is certain."""
        if cut.direction == "up":
            _end(connection.server, reset=False, how=socket.SHUT_WR)
            connection.left_by_server.wait(PATIENCE)
        _end(connection.server, reset=cut.reset)
        _end(connection.client, reset=cut.reset)


def _end(each: socket.socket, *, reset: bool, how: int = socket.SHUT_RDWR) -> None:
    """End a connection for both threads that use it; the last of them closes it."""
    with contextlib.suppress(OSError):
        if reset:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.shutdown(how)
