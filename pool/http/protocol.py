"""HTTP/1.1 as callers from anywhere may send it: with bounds on the head of a request, in bytes and
in time, and problem documents for what is no HTTP at all."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pool.http.problems import MEDIA_TYPE, problem

#: Bytes of the longest head of a request: its first line and its headers.
LONGEST_HEAD: Final = 2**16
#: Seconds in which the head of a request has to come.
HEAD_WITHIN: Final = 10.0
#: Seconds for which a caller that was answered before it had sent everything may go on sending.
#: To close at once would have the answer lost on its way.
LINGER: Final = 5.0
#: Connections at the same time.
MOST_CONNECTIONS: Final = 4000


class BadHead(Exception):
    """The head of a request cannot be read, or will not be."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        #: Bytes that came while a head was expected, and those that its lines have.
        self._head_bytes = 0
        self._head_size = 0
        self._in_head = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self._in_body = False
        #: Whether it ends as soon as the caller has sent what was answered already.
        self._leaving = False
        self._refused = HTTPStatus.BAD_REQUEST
        self._deaf = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        self._end_linger()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._linger_timer is None:
            super().shutdown()
        else:
            self.leave()

    def leave(self) -> None:
        """Close the connection; one that still sends what was answered already, once that has come,
        or it has seen that nothing more is sent to it and had :data:`LINGER` seconds to end."""
        if self._in_body and self.transport.can_write_eof():
            self._leaving = True
            self.transport.write_eof()
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not (self._in_head or self._in_body):
            self._begin_head()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > LONGEST_HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        self._refuse(self._refused)

    # --- What the parser finds ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if not self._in_head:
            self._begin_head()
        self._head_size = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._end_head()
        self._in_body = True
        super().on_headers_complete()
        self.cycle.transport = _Answering(self)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._leaving:
            self.transport.close()
        elif self._linger_timer is not None:
            # What was answered early has been sent to its end after all.
            self._end_linger()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(LINGER, self.transport.close)

    # --- Bounds ---------------------------------------------------------------------------------

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > LONGEST_HEAD:
            self._refused = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise BadHead

    def _begin_head(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_WITHIN, self._head_is_late)

    def _end_head(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _end_linger(self) -> None:
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer, and hear nothing more on this connection."""
        self._deaf = True
        self._end_head()
        self._end_linger()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                # It would be garbled.
                self.transport.close()
                return
            # Whoever makes its answer sees that nobody wants it any more.
            cycle.disconnected = True
            cycle.message_event.set()
        body = problem(status).body
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + bytes(body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER, self.transport.close)


class _Answering:
    """What an answer writes to: a close ends the connection so that the answer is not lost. A close
    while the caller sends would have its system drop what it has not read yet."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        self._protocol.leave()
