"""HTTP/1.1 under bounds that no setting of uvicorn gives.

``tests/integration/test_http_connections.py`` shows what breaks without this subclass:

- ``test_a_head_that_is_too_long``: httptools buffers the head of a request without a limit. (h11
  has one, ``h11_max_incomplete_event_size``, but takes several times as long for a request.)
- ``test_a_head_that_does_not_come``, ``test_a_connection_that_says_nothing``: uvicorn waits for a
  head without a time-out, so a silent caller keeps its connection.
- ``test_an_answer_before_the_end_of_the_last_body``: uvicorn closes the connection while the
  caller still sends. TCP then resets it, and the caller does not see the 413 or 429.
- ``test_an_answer_before_the_end_of_an_endless_body``: with keep-alive, uvicorn reads such a body
  for ever.
- ``test_what_is_no_http``, ``test_too_many_connections``: uvicorn answers in plain text; here every
  error is a problem document.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from pool.http.problems import MEDIA_TYPE, problem

#: Bytes of the longest head of a request: the request line and the headers.
LONGEST_HEAD: Final = 2**16
#: Seconds within which the head of a request must arrive.
HEAD_WITHIN: Final = 10.0
#: Seconds for which a caller may go on sending after an early answer.
LINGER: Final = 5.0
#: Connections at the same time.
MOST_CONNECTIONS: Final = 4000


class HeadTooLong(Exception):
    """The head of a request has more than :data:`LONGEST_HEAD` bytes."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._heads = 0
        #: Bytes received of an incomplete head.
        self._head_bytes = 0
        self._in_body = False
        self._refused = False
        #: Whether to close once the body that was answered early has been received.
        self._leaving = False
        #: Limits the wait for a head, or for the rest of a body that was answered early.
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        heads, in_body = self._heads, self._in_body
        super().data_received(data)
        if in_body or self._heads > heads:
            return
        # Part of a head, or garbage.
        self._head_bytes += len(data)
        if self._head_bytes > LONGEST_HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._timer is None:
            self._expect_head()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        self._refuse(HTTPStatus.BAD_REQUEST)

    def shutdown(self) -> None:
        if self._in_body and self.cycle.response_complete:
            self.leave()
        else:
            super().shutdown()

    def leave(self) -> None:
        """Close the connection. While the caller still sends, only close our side of it: a full
        close would reset the connection, and the answer would be lost."""
        if self._in_body and self.transport.can_write_eof():
            self._leaving = True
            self.transport.write_eof()
        else:
            self.transport.close()

    # --- Callbacks of the parser ------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        self._heads += 1
        self._head_bytes = 0
        self._in_body = True
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > LONGEST_HEAD:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            raise HeadTooLong
        super().on_headers_complete()
        self.cycle.transport = _Answering(self)  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()
        if self._leaving:
            self.transport.close()
        elif self._timer is not None:
            # The body that was answered early has been received within the time.
            self._stop_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._start_timer(LINGER, self.transport.close)

    # --- Bounds ---------------------------------------------------------------------------------

    def _expect_head(self) -> None:
        self._start_timer(HEAD_WITHIN, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def _start_timer(self, seconds: float, end: Any) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, end)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer, and read nothing more on this connection."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                # An answer is being sent: a second one would garble it.
                self.transport.close()
                return
            # As if the caller had gone: the app sends nothing more.
            cycle.disconnected = True
            cycle.message_event.set()
        body = bytes(problem(status).body)
        self.transport.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._start_timer(LINGER, self.transport.close)


class _Answering:
    """The transport given to uvicorn's answer: its ``close`` is :meth:`Protocol.leave`."""

    def __init__(self, protocol: Protocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.leave
