"""A server that says what a test tells it to, and keeps what it was sent."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Seen:
    """A request that the server got."""

    method: str
    path: str
    headers: Message
    body: bytes
    #: The number of the connection it came on, from 1.
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """What the server does with a request.

    ``cut`` closes the connection instead of answering, ``reset`` does so with a TCP reset,
    ``stall`` never answers, ``leave`` answers and then closes without having announced it, as
    a server does with a connection that was idle for too long.
    """

    status: int = 200
    data: Any = None
    text: str | None = None
    kind: str = "application/vnd.cvat+json"
    headers: dict[str, str | list[str]] = field(default_factory=dict)
    cut: bool = False
    reset: bool = False
    stall: bool = False
    leave: bool = False

    @property
    def body(self) -> bytes:
        if self.text is not None:
            return self.text.encode()
        return b"" if self.data is None else json.dumps(self.data).encode()


Answering = Callable[[Seen], Reply]


class StubServer(ThreadingHTTPServer):
    """Answers each request with what ``answer`` returns for it."""

    daemon_threads = True
    # A client's pool opens several connections at once.
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Answering = lambda _: Reply(data={})
        #: Asked before the body is read; True cuts the connection there.
        self.refuse_body: Callable[[str, str], bool] = lambda *_: False
        self.seen: list[Seen] = []
        self.connections = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        #: Set when a connection was left.
        self.left = threading.Event()
        self._stopped = threading.Event()
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for open_socket in self._sockets:
            _shut(open_socket)
        self.shutdown()
        self._thread.join()
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        self.connections += 1
        self._sockets.append(request)
        return request, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what many tests are about."""

    def stall(self) -> None:
        self._stopped.wait(30)

    def paths(self, method: str = "") -> list[str]:
        """The paths asked for, without their queries."""
        return [
            seen.path.partition("?")[0] for seen in self.seen if not method or seen.method == method
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    # Headers and body go out together.
    wbufsize = -1
    server: StubServer

    def setup(self) -> None:
        super().setup()
        self.number = self.server.connections

    def _serve(self) -> None:
        if self.server.refuse_body(self.command, self.path):
            self.connection.recv(1)
            self._close(hard=True)
            return
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        seen = Seen(self.command, self.path, self.headers, body, self.number)
        if len(body) < length:
            self.close_connection = True
            return
        self.server.seen.append(seen)
        reply = self.server.answer(seen)
        if reply.stall:
            self.server.stall()
        if reply.stall or reply.cut or reply.reset:
            self._close(hard=reply.reset)
            return
        self.send_response_only(reply.status)
        if reply.body or reply.text is not None:
            self.send_header("Content-Type", reply.kind)
        for name, value in reply.headers.items():
            for line in value if isinstance(value, list) else [value]:
                self.send_header(name, line)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)
        if reply.leave:
            self.wfile.flush()
            self._close(hard=False)
            self.server.left.set()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _close(self, *, hard: bool) -> None:
        if hard:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        else:
            _shut(self.connection)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def _shut(open_socket: socket.socket) -> None:
    with contextlib.suppress(OSError):
        open_socket.shutdown(socket.SHUT_RDWR)


def closed_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
