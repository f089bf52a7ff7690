"""HTTP/1.1 under bounds that no setting of uvicorn gives.

``tests/integration/test_http_connections.py`` shows what breaks without this subclass:

- ``test_a_head_that_is_too_long``: httptools gathers the head of a request without a bound, until
  memory ends. (h11 has one, ``h11_max_incomplete_event_size``, and takes several times as long for
  a request.)
- ``test_a_head_that_does_not_come``, ``test_a_connection_that_says_nothing``: uvicorn gives a
  caller all the time that there is, and so it holds a connection.
- ``test_an_answer_before_the_end_of_the_last_body``: uvicorn closes while the caller still sends.
  The caller's system then drops the answer, a 413 or 429, with the connection.
- ``test_an_answer_before_the_end_of_an_endless_body``: with keep-alive it reads such a body for
  ever.
- ``test_what_is_no_http``, ``test_too_many_connections``: its own answers are plain text, and here
  every error is a problem document.
"""

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
#: Seconds for which a caller that was answered early may go on sending.
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
        #: Bytes of a head that is not complete.
        self._head_bytes = 0
        self._in_body = False
        self._refused = False
        #: Whether it closes once the caller has sent all of what was answered early.
        self._leaving = False
        #: Ends the wait for a head, or for the rest of what was answered early.
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
        # A head, or nothing that means anything, and not all of it.
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
        """Close the connection. While the caller sends, only say that nothing more comes to it:
        to close would have its system drop the answer."""
        if self._in_body and self.transport.can_write_eof():
            self._leaving = True
            self.transport.write_eof()
        else:
            self.transport.close()

    # --- What the parser finds ------------------------------------------------------------------

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
            # What was answered early has been sent to its end after all.
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
                # It would be garbled.
                self.transport.close()
                return
            # As when the caller has gone: nothing more is written by what makes the answer.
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
    """The transport of an answer, which leaves where uvicorn would close at once."""

    def __init__(self, protocol: Protocol) -> None:
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.leave
