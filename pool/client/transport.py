"""One call to a daemon over HTTP, with its retries, time-outs and errors.

Every call of the API may be repeated: calls that create something have an idempotency key, and the
others are idempotent. So a call whose answer was lost is retried, for a bounded time.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from inspect import isawaitable
from itertools import count
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from pool.backoff import backoff
from pool.client.parse import named_error, understood
from pool.clock import Clock
from pool.config.arguments import check_seconds
from pool.config.source import LocalFile, Upload
from pool.config.units import retry_after
from pool.config.urls import is_loopback, split_url
from pool.cvat.multipart import Multipart, OpenFile
from pool.errors import (
    ConfigError,
    CvatError,
    ImportTimedOut,
    InputError,
    PoolClosed,
    PoolEmpty,
    PoolError,
    PoolUnreachable,
    WaitTimeout,
)
from pool.logs import get_logger
from pool.version import VERSION

log = get_logger(__name__)

#: Waits for a number of seconds without blocking the loop.
Sleep = Callable[[float], Awaitable[None]]
#: Called with (bytes sent, bytes in all) during an upload; awaited when it is a coroutine.
AsyncProgress = Callable[[int, int], Awaitable[None] | None]

#: Seconds of the shortest time-out of a client.
SHORTEST_TIMEOUT: Final = 0.001
#: Seconds to get a connection.
CONNECT: Final = 5.0
#: The number of connections is not limited: it is the number of calls that the caller makes at the
#: same time. Idle connections expire here before they expire at the daemon, so that none is closed
#: there just when it is used here. Few are kept: httpcore goes through all connections for each
#: idle one at the beginning and the end of every call, so that 200 callers at once would be slower
#: with a hundred of them than with new ones.
LIMITS: Final = httpx.Limits(
    max_connections=None, max_keepalive_connections=16, keepalive_expiry=60.0
)

#: Seconds before the second attempt, and the longest pause between two.
BASE: Final = 0.2
CAP: Final = 5.0
#: Seconds for which a daemon that has never answered is tried: it may be starting, but more likely
#: it does not run, or the address is wrong.
FIRST_CONTACT: Final = 5.0

#: Number of files of an upload up to which all are kept open; more might exceed the limit of open
#: files.
MOST_KEPT_OPEN: Final = 64

#: Bytes of the longest name of a file that has room in a header of a form, however it is encoded.
LONGEST_NAME: Final = 1200

#: Statuses of temporary failures (RFC 9110, section 15; RFC 6585, section 4).
_PASSING: Final = frozenset({429, 502, 503, 504})
#: Results, not refusals: not retried.
_VERDICTS: Final = (PoolEmpty, WaitTimeout, ImportTimedOut, CvatError)
#: Permanent failures: the same call would fail again.
_LASTING: Final = (socket.gaierror, ssl.SSLCertVerificationError)

_PROBLEM: Final = "application/problem+json"
#: Before the code of an error in the ``type`` of its problem document.
_TYPE_PREFIX: Final = "urn:cvat-task-pool:error:"


def address_of(url: str) -> str:
    """Return the address of a daemon, without a trailing slash.

    :raises ConfigError: it is invalid, or contains a password.
    """
    parts = split_url(url.strip())
    if parts is None:
        raise ConfigError(f"{url!r} is not the address of a pool, such as http://host:8765")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the address of a pool must not contain a password: set POOL_API_TOKEN")
    if parts.query or parts.fragment:
        raise ConfigError(f"{url!r}: the address of a pool must not have a query or a fragment")
    return parts.geturl().rstrip("/")


def find_token(token: str | None) -> str | None:
    """Return the token to send: the given one, or else the first in ``POOL_API_TOKEN``.

    :raises ConfigError: it is invalid; the message does not contain it.
    """
    given = os.environ.get("POOL_API_TOKEN", "") if token is None else token
    first = given.split(",")[0].strip()
    if not first.isprintable() or " " in first:
        raise ConfigError(
            "the token of the pool contains spaces or characters that cannot be printed"
        )
    return first or None


class FilesBody:
    """A multipart body of the API: the fields, then the files in their order."""

    def __init__(
        self,
        fields: Mapping[str, str],
        files: Sequence[OpenFile],
        progress: AsyncProgress | None,
    ) -> None:
        self._multipart = Multipart(fields, files, field="files", verbatim=True)
        self._total = sum(file.size for file in files)
        self._progress = progress
        self.headers = {
            "Content-Type": self._multipart.content_type,
            "Content-Length": str(self._multipart.length),
        }

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body; read it on another thread, so that a slow disk does not block the loop.

        :raises InputError: a file has changed, or can no longer be read.
        """
        chunks, sent = self._multipart.chunks(), 0
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            yield chunk
            sent += len(chunk)
            if self._progress is not None:
                shown = self._total * sent // self._multipart.length
                if isawaitable(done := self._progress(shown, self._total)):
                    await done


@contextmanager
def body_of(
    upload: Upload, fields: Mapping[str, Any], progress: AsyncProgress | None
) -> Iterator[FilesBody | None]:
    """Yield the body with the files of an upload, which are open meanwhile; None without files.

    ``progress`` is called with (bytes sent, bytes in all) of the files; it begins again when the
    body is sent again.

    :raises InputError: a file cannot be opened.
    """
    if not upload.files:
        yield None
        return
    with ExitStack() as stack:
        keep = len(upload.files) <= MOST_KEPT_OPEN
        files = [OpenFile(_as_given(file), stack, keep=keep) for file in upload.files]
        # In a form, values other than texts are JSON.
        text = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
        }
        yield FilesBody(text, files, progress)


def _as_given(file: LocalFile) -> LocalFile:
    """Return a file as its caller calls it: the daemon makes the name in CVAT of that, as is done
    here. One that is too long for a header has its name in CVAT."""
    given = file.given
    if given is None or len(given.encode()) > LONGEST_NAME:
        return file
    return replace(file, name=given)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One HTTP request to the daemon; ``path`` is relative to its address, and encoded.

    ``slack`` is added to the time-out of the answer, in seconds.
    """

    method: str
    path: str
    query: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    body: FilesBody | None = None
    slack: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The last answer to a call; ``error`` is None if the call succeeded.

    ``doubtful``: an earlier attempt may have taken effect, although its answer was lost.
    """

    response: httpx.Response
    error: PoolError | None
    doubtful: bool


class Transport:
    """Calls of one client to one daemon, on one event loop."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        timeout: float,
        patience: float,
        client: httpx.AsyncClient | None,
        clock: Clock,
        sleep: Sleep,
        rng: random.Random,
    ) -> None:
        self.address = address_of(url)
        self._timeout = check_seconds("timeout", timeout, least=SHORTEST_TIMEOUT)
        self._patience = check_seconds("patience", patience)
        self.clock = clock
        self.sleep = sleep
        self._rng = rng
        self._headers = httpx.Headers(
            {"Accept": "application/json", "User-Agent": f"cvat-task-pool/{VERSION}"}
        )
        if (token := find_token(token)) is not None:
            # As bytes: the daemon reads tokens as UTF-8, and httpx encodes texts as ASCII.
            bearer = httpx.Headers([(b"Authorization", f"Bearer {token}".encode())])
            self._headers.update(bearer)
        if client is not None and not isinstance(client, httpx.AsyncClient):
            raise InputError(f"client takes an httpx.AsyncClient, not {type(client).__name__}")
        self._own = client is None
        # The proxies of the environment do not apply to a daemon on this machine: a proxy elsewhere
        # could not reach it.
        self._client = client or httpx.AsyncClient(
            limits=LIMITS, trust_env=not is_loopback(urlsplit(self.address).hostname or "")
        )
        self._closed = False
        self._reached = False

    async def close(self) -> None:
        """Close the connections, also those that are in use."""
        self._closed = True
        if self._own:
            await self._client.aclose()

    async def call(self, call: Call, *, until: float | None = None) -> dict[str, Any]:
        """Return the JSON object of the answer, an empty one for no content; see :meth:`answer`.

        :raises PoolError: the daemon refused the call; of the class that the daemon raised.
        :raises PoolUnreachable: the answer is not that of a pool.
        """
        answer = await self.answer(call, until=until)
        if answer.error is not None:
            raise answer.error
        return {} if answer.response.status_code == 204 else self._document(answer.response)

    async def stream(self, call: Call) -> httpx.Response:
        """Return an answer of server-sent events, which the caller reads and closes.

        :raises PoolError: the daemon refused the call.
        :raises PoolUnreachable: the answer is not a stream of events.
        """
        answer = await self.answer(call, stream=True)
        if answer.error is not None:
            raise answer.error
        if not answer.response.headers.get("content-type", "").startswith("text/event-stream"):
            await answer.response.aclose()
            raise self._not_a_pool(answer.response)
        return answer.response

    async def answer(
        self, call: Call, *, until: float | None = None, stream: bool = False
    ) -> Answer:
        """Return the final answer to a call: a success or a refusal.

        Lost calls and temporary refusals are retried for the pool's patience after the first
        failure, but not after ``until``, by the monotonic clock. The body of a successful
        ``stream`` is not read.

        :raises PoolUnreachable: no answer came in time.
        :raises PoolClosed: after :meth:`close`.
        """
        end: float | None = None
        doubtful = False
        for attempt in count(1):
            response: httpx.Response | None = None
            wanted: float | None = None
            try:
                response = await self._send(call, stream)
            except _Lost as lost:
                doubtful = doubtful or lost.sent
                error: PoolError = PoolUnreachable(lost.why)
                again = not lost.lasting
            else:
                self._reached = True
                if response.status_code < 300:
                    return Answer(response, None, doubtful)
                said = response.headers.get("retry-after")
                wanted = retry_after(said, now=self.clock.now())
                error = self._error(response, wanted)
                again = _may_pass(response, error)
                # From a proxy: whether the daemon acted on the call is unknown.
                doubtful = doubtful or (again and isinstance(error, PoolUnreachable))
            now = self.clock.monotonic()
            if end is None:
                end = now + (
                    self._patience if self._reached else min(self._patience, FIRST_CONTACT)
                )
                end = end if until is None else min(end, until)
            # In addition to Retry-After: callers refused together should not return together.
            pause = (wanted or 0.0) + backoff(attempt, base=BASE, cap=CAP, rng=self._rng)
            if not again or now + pause > end:
                if response is None:
                    raise error
                return Answer(response, error, doubtful)
            log.info("retrying call", path=call.path, why=str(error), pause=round(pause, 3))
            await self.sleep(pause)
        raise AssertionError("tries end with an answer or an error")

    async def _send(self, call: Call, stream: bool) -> httpx.Response:
        if self._closed:
            raise PoolClosed
        headers = self._headers.copy()
        headers.update(call.headers)
        if call.body is not None:
            headers.update(call.body.headers)
        request = self._client.build_request(
            call.method,
            self.address + call.path,
            params=call.query,
            headers=headers,
            json=call.json,
            content=call.body.pieces() if call.body is not None else None,
            timeout=httpx.Timeout(
                self._timeout,
                connect=min(CONNECT, self._timeout),
                read=self._timeout + call.slack,
            ),
        )
        try:
            # A redirect would take the token with it.
            response = await self._client.send(request, stream=stream, follow_redirects=False)
            if stream and response.status_code >= 300:
                await response.aread()
        except httpx.RequestError as error:
            raise _Lost(self.address, error) from None
        except RuntimeError:
            # httpx raises it if the client was closed meanwhile.
            if self._closed:
                raise PoolClosed from None
            raise
        return response

    # --- Errors ----------------------------------------------------------------------

    def _error(self, response: httpx.Response, wanted: float | None) -> PoolError:
        """Return the error in a problem document, of the class that the daemon raised.

        A class of a newer daemon, which is unknown here, becomes a PoolError with the daemon's
        text. ``wanted`` are the seconds of ``Retry-After``.
        """
        if not response.headers.get("content-type", "").startswith(_PROBLEM):
            return self._not_a_pool(response)
        problem = self._document(response)
        with understood():
            findings = (
                f"{each.get('where', '')}: {each.get('what', '')}"
                for each in problem.get("errors", ())
            )
            error = named_error(
                str(problem.get("type", "")).removeprefix(_TYPE_PREFIX),
                str(problem.get("title", "")),
                str(problem.get("detail", "")) or "; ".join(findings),
            )
        error.retry_after = wanted
        return error

    def _document(self, response: httpx.Response) -> dict[str, Any]:
        try:
            document = json.loads(response.content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise self._not_a_pool(response)
        return document

    def _not_a_pool(self, response: httpx.Response) -> PoolUnreachable:
        try:
            phrase = f" {HTTPStatus(response.status_code).phrase}"
        except ValueError:
            phrase = ""
        return PoolUnreachable(
            f"{self.address} answers {response.status_code}{phrase}, which is not a pool's answer"
        )


class _Lost(Exception):
    """A call got no answer.

    ``sent``: the daemon may have acted on it. ``lasting``: a retry would fail, too, for example
    because of an unknown host name or an untrusted certificate.
    """

    def __init__(self, address: str, error: httpx.RequestError) -> None:
        self.sent = not isinstance(
            error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout
        )
        causes = list(_causes(error))
        self.lasting = any(isinstance(cause, _LASTING) for cause in causes)
        words = (_words(cause) for cause in causes if isinstance(cause, OSError))
        reason = next(filter(None, words), str(error) or type(error).__name__)
        hint = "" if self.sent else "; is 'cvat-pool run' running there?"
        self.why = f"{address}, {reason}{hint}"
        super().__init__(self.why)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _words(error: OSError) -> str:
    """Return the system's message for an error; asyncio's is different."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return (error.strerror or "").lower()


def _may_pass(response: httpx.Response, error: PoolError) -> bool:
    """Return whether the refusal is temporary.

    The daemon says so by ``Retry-After``; for a proxy, whose daemon may be restarting, it is
    assumed.
    """
    if response.status_code not in _PASSING or isinstance(error, _VERDICTS):
        return False
    return "retry-after" in response.headers or isinstance(error, PoolUnreachable)
