"""Takes the steps of talks: over a thread's connection, or on asyncio's event loop. httpx is used
only here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from pool.client.body import FilesBody
from pool.client.steps import Answer, Call, Lost, Pause, Talk
from pool.clock import Clock
from pool.config.arguments import check_seconds
from pool.config.urls import split_url
from pool.errors import ConfigError, PoolClosed
from pool.version import VERSION

T = TypeVar("T")
#: Waits for so many seconds without holding up the loop.
Sleep = Callable[[float], Awaitable[None]]

#: Seconds of the shortest time-out of a client.
SHORTEST_TIMEOUT: Final = 0.001
#: Seconds to get a connection.
CONNECT: Final = 5.0
#: Seconds for which an idle connection is kept: less than the daemon keeps it, so that it is not
#: closed there just when it is used here.
KEEP_ALIVE: Final = 60.0
#: Idle connections that are kept. How many are in use at the same time is the caller's matter.
KEPT: Final = 100
LIMITS: Final = httpx.Limits(
    max_connections=None, max_keepalive_connections=KEPT, keepalive_expiry=KEEP_ALIVE
)

#: Failures that the same call would meet again.
_LASTING: Final = (socket.gaierror, ssl.SSLCertVerificationError)


def address_of(url: str) -> str:
    """The address of a daemon, without a slash at its end.

    :raises ConfigError: it is none, or has a password in it.
    """
    parts = split_url(url.strip())
    if parts is None:
        raise ConfigError(f"{url!r} is no address of a pool: give one such as http://host:8765")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the address of a pool has no password: set POOL_API_TOKEN")
    if parts.query or parts.fragment:
        raise ConfigError(f"{url!r}: the address of a pool ends before the '?' or '#'")
    return parts.geturl().rstrip("/")


def find_token(token: str | None) -> str | None:
    """The token to show: the given one, or else the first in ``POOL_API_TOKEN``.

    :raises ConfigError: it cannot be sent; the message does not have it.
    """
    told = os.environ.get("POOL_API_TOKEN", "") if token is None else token
    first = told.split(",")[0].strip()
    if not first.isprintable() or " " in first:
        raise ConfigError("the token of the pool has spaces or characters that cannot be printed")
    return first or None


class _Line:
    """What both ways of sending share: where to, with what headers, and with which time-outs."""

    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        self.address = address_of(url)
        self._closed = False
        self._timeout = check_seconds("timeout", timeout, least=SHORTEST_TIMEOUT)
        self._headers = httpx.Headers(
            {"Accept": "application/json", "User-Agent": f"cvat-task-pool/{VERSION}"}
        )
        if token is not None:
            # As bytes: the daemon takes a token as UTF-8, and httpx would want ASCII.
            bearer = httpx.Headers([(b"Authorization", f"Bearer {token}".encode())])
            self._headers.update(bearer)

    def trusts_environment(self) -> bool:
        """Whether the proxies of the environment apply: this machine's own daemon needs none,
        and a proxy elsewhere could not reach it."""
        return not _is_here(urlsplit(self.address).hostname or "")

    def request(self, call: Call) -> dict[str, Any]:
        """How httpx is told of a call, but for its body."""
        headers = self._headers.copy()
        headers.update(call.headers)
        if call.body is not None:
            headers["Content-Type"] = call.body.content_type
            headers["Content-Length"] = str(call.body.length)
        return {
            "method": call.method,
            "url": self.address + call.path,
            "params": dict(call.query) or None,
            "headers": headers,
            "json": call.json,
            "timeout": httpx.Timeout(
                self._timeout,
                connect=min(CONNECT, self._timeout),
                read=self._timeout + call.patience,
            ),
        }

    def head(self, response: httpx.Response) -> Answer:
        """An answer whose content is not read yet."""
        return Answer(
            address=self.address,
            status=response.status_code,
            headers={name.lower(): value for name, value in response.headers.items()},
        )

    def answer(self, response: httpx.Response) -> Answer:
        return replace(self.head(response), content=response.content)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Have a failed call told as one that was lost, and one on a closed client as such."""
        if self._closed:
            raise PoolClosed
        try:
            yield
        except httpx.RequestError as error:
            raise self.lost(error) from None
        except RuntimeError:
            if self._closed:
                raise PoolClosed from None
            raise

    def lost(self, error: httpx.RequestError) -> Lost:
        sent = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
        causes = list(_causes(error))
        told = [_words(cause) for cause in causes if isinstance(cause, OSError)]
        why = next(filter(None, told), str(error) or type(error).__name__)
        hint = "" if sent else "; is 'cvat-pool run' running there?"
        return Lost(
            f"{self.address}, {why}{hint}",
            sent=sent,
            lasting=any(isinstance(cause, _LASTING) for cause in causes),
        )


def _words(error: OSError) -> str:
    """What the system says of an error, which asyncio rewords."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or "").lower()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _run(talk: Talk[T], take: Callable[[Call | Pause], Answer | None]) -> T:
    try:
        step = next(talk)
        while True:
            try:
                came = take(step)
            except Lost as lost:
                step = talk.throw(lost)
            else:
                step = talk.send(came)
    except StopIteration as end:
        result: T = end.value
        return result


async def _run_async(talk: Talk[T], take: Callable[[Call | Pause], Awaitable[Answer | None]]) -> T:
    try:
        step = next(talk)
        while True:
            try:
                came = await take(step)
            except Lost as lost:
                step = talk.throw(lost)
            else:
                step = talk.send(came)
    except StopIteration as end:
        result: T = end.value
        return result


class Wire(_Line):
    """Takes the steps of talks on the thread that runs them; any number of threads may."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        timeout: float,
        clock: Clock,
        client: httpx.Client | None = None,
    ) -> None:
        super().__init__(url, token, timeout)
        self._clock = clock
        self._own = client is None
        self._client = client or httpx.Client(limits=LIMITS, trust_env=self.trusts_environment())

    def run(self, talk: Talk[T]) -> T:
        """Take a talk to its end.

        :raises PoolClosed: after :meth:`close`.
        """
        return _run(talk, self._take)

    def open(self, talk: Talk[Answer]) -> httpx.Response:
        """Take a talk to its end, and leave its last answer to be read in pieces."""
        opened: list[httpx.Response] = []

        def take(step: Call | Pause) -> Answer | None:
            if isinstance(step, Pause):
                return self._take(step)
            with self._failures():
                request = self._client.build_request(**self.request(step))
                response = self._client.send(request, stream=True, follow_redirects=False)
                if response.status_code < 300:
                    opened[:] = [response]
                    return self.head(response)
                response.read()
                return self.answer(response)

        try:
            _run(talk, take)
        except BaseException:
            for response in opened:
                response.close()
            raise
        return opened[0]

    def pieces(self, response: httpx.Response) -> Iterator[bytes]:
        """The pieces of an answer, until it ends or the connection is lost."""
        with suppress(httpx.RequestError, httpx.StreamError):
            yield from response.iter_bytes()

    def hang_up(self, response: httpx.Response) -> None:
        """End an answer that another thread is reading."""
        stream = response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream is not None else None
        if connection is not None:
            # Closing it would not wake the other thread.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections, also those that are in use."""
        self._closed = True
        if self._own:
            self._client.close()

    def _take(self, step: Call | Pause) -> Answer | None:
        if self._closed:
            raise PoolClosed
        if isinstance(step, Pause):
            self._clock.sleep(step.seconds)
            return None
        with self._failures():
            content = None if step.body is None else _pieces(step.body)
            request = self._client.build_request(content=content, **self.request(step))
            return self.answer(self._client.send(request, follow_redirects=False))


def _pieces(body: FilesBody) -> Iterator[bytes]:
    sent = 0
    for chunk in body.chunks():
        yield chunk
        sent += len(chunk)
        body.tell(sent)


class AsyncWire(_Line):
    """Takes the steps of talks on an event loop; any number of its tasks may run some."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        timeout: float,
        sleep: Sleep = asyncio.sleep,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(url, token, timeout)
        self._sleep = sleep
        self._own = client is None
        self._client = client or httpx.AsyncClient(
            limits=LIMITS, trust_env=self.trusts_environment()
        )

    async def run(self, talk: Talk[T]) -> T:
        """Take a talk to its end.

        :raises PoolClosed: after :meth:`close`.
        """
        return await _run_async(talk, self._take)

    async def open(self, talk: Talk[Answer]) -> httpx.Response:
        """Take a talk to its end, and leave its last answer to be read in pieces."""
        opened: list[httpx.Response] = []

        async def take(step: Call | Pause) -> Answer | None:
            if isinstance(step, Pause):
                return await self._take(step)
            with self._failures():
                request = self._client.build_request(**self.request(step))
                response = await self._client.send(request, stream=True, follow_redirects=False)
                if response.status_code < 300:
                    opened[:] = [response]
                    return self.head(response)
                await response.aread()
                return self.answer(response)

        try:
            await _run_async(talk, take)
        except BaseException:
            for response in opened:
                await response.aclose()
            raise
        return opened[0]

    async def pieces(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        """The pieces of an answer, until it ends or the connection is lost."""
        with suppress(httpx.RequestError, httpx.StreamError):
            async for piece in response.aiter_bytes():
                yield piece

    async def close(self) -> None:
        """Close the connections, also those that are in use."""
        self._closed = True
        if self._own:
            await self._client.aclose()

    async def _take(self, step: Call | Pause) -> Answer | None:
        if self._closed:
            raise PoolClosed
        if isinstance(step, Pause):
            await self._sleep(step.seconds)
            return None
        with self._failures():
            content = None if step.body is None else _async_pieces(step.body)
            request = self._client.build_request(content=content, **self.request(step))
            return self.answer(await self._client.send(request, follow_redirects=False))


async def _async_pieces(body: FilesBody) -> AsyncIterator[bytes]:
    """Read on another thread, so that a slow disk stops nobody else on the loop."""
    chunks, sent = body.chunks(), 0
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
        sent += len(chunk)
        body.tell(sent)
