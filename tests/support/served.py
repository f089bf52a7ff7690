"""Small HTTP servers for tests: one that receives webhooks, one that has files."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Delivered:
    """A webhook that was received."""

    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def signed_with(self, secret: str, *, header: str = "X-Signature-256") -> bool:
        digest = hmac.new(secret.encode(), self.body, hashlib.sha256).hexdigest()
        return self.headers.get(header) == f"sha256={digest}"


#: A status and headers.
Answer = tuple[int, Mapping[str, str]]


class _Silent(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(
        self, content: bytes = b"", *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def receiver(
    answer: Callable[[Delivered], Answer] = lambda _: (200, {}),
) -> Iterator[tuple[str, list[Delivered]]]:
    """A receiver of webhooks: its URL, and what it got so far; ``answer`` says what it answers."""
    delivered: list[Delivered] = []

    class Handler(_Silent):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            delivered.append(Delivered(dict(self.headers.items()), body))
            status, headers = answer(delivered[-1])
            self.answer(status=status, headers=headers)

    with _serving(Handler) as url:
        yield f"{url}/hook", delivered


@contextmanager
def files_at(folder: Path) -> Iterator[str]:
    """The files of a folder over HTTP: the URL of the folder."""

    def answer(path: str) -> tuple[int, Mapping[str, str], bytes]:
        return 200, {}, (folder / path.lstrip("/")).read_bytes()

    with getting(answer) as (url, _):
        yield url


@contextmanager
def getting(
    answer: Callable[[str], tuple[int, Mapping[str, str], bytes]],
) -> Iterator[tuple[str, list[str]]]:
    """A server that answers each GET by its path and query: its URL, and what was asked so far."""
    asked: list[str] = []

    class Handler(_Silent):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, content = answer(self.path)
            self.answer(content, status=status, headers=headers)

    with _serving(Handler) as url:
        yield url, asked


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
