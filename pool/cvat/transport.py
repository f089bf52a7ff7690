"""One call to CVAT: its headers, time-outs, the one retry that is safe, errors and the log line."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InsecureRequestWarning,
    NewConnectionError,
    ProtocolError,
)

from pool.clock import Clock
from pool.config.settings import CvatSettings
from pool.cvat import failures
from pool.cvat.credentials import Credentials, PasswordCredentials
from pool.cvat.failures import Answer
from pool.cvat.multipart import Multipart
from pool.cvat.session import PasswordSession, RedactedHeaders, TokenLogin
from pool.errors import CvatRefusedCredentials, CvatUnreachable, PoolError
from pool.logs import get_logger
from pool.version import VERSION

log = get_logger(__name__)

#: Called after every call with its operation, its seconds, and "ok" or the code of the error.
OnCall = Callable[[str, float, str], None]

#: Connections that stay open.
POOL_SIZE: Final = 32
#: Seconds to get a connection; also the longest that sending one chunk may stall.
_CONNECT_TIMEOUT: Final = 10.0
#: Methods that have the same effect when the server gets them twice.
_REPEATABLE: Final = frozenset({"GET", "HEAD", "DELETE", "PATCH"})
#: Bytes given to the connection at a time: few enough that a slow line does not stall one
#: piece for the whole time-out.
_SEND_SIZE: Final = 256 * 1024
_CONNECTION_ERRORS: Final = (HTTPError, HTTPException, OSError)


@dataclass(frozen=True, slots=True)
class BytesBody:
    """A body that is in memory already."""

    data: bytes | memoryview
    content_type: str = "application/json"
    replayable: bool = True

    @property
    def length(self) -> int:
        return len(self.data)

    def chunks(self) -> Iterator[bytes | memoryview]:
        view = memoryview(self.data)
        for start in range(0, len(view), _SEND_SIZE):
            yield view[start : start + _SEND_SIZE]


#: What is sent with a call.
Body = BytesBody | Multipart


class _Sending:
    """Gives a body to the connection piece by piece and counts what the connection has taken."""

    def __init__(self, body: Body, progress: Callable[[int], None] | None) -> None:
        self._body = body
        self._progress = progress
        self.sent = 0
        self.started = False
        self.complete = False

    def __iter__(self) -> Iterator[bytes | memoryview]:
        for chunk in self._body.chunks():
            self.started = True
            yield chunk
            self.sent += len(chunk)
            if self._progress is not None:
                self._progress(self.sent)
        self.complete = True

    @property
    def cut_after(self) -> tuple[int, int] | None:
        """How many bytes were sent, and of how many, if the body was cut in the middle."""
        if self.complete or not self.started:
            return None
        return self.sent, self._body.length


class Transport:
    """Sends calls to one server for one organization and credential. Thread-safe.

    Over the connections of cvat-sdk's client, and with its headers, but not by its endpoints and
    its REST client: those refuse an answer that lacks a field and take most of the time of a poll;
    this one sends bytes only, retries a 503 of its own accord for several seconds, and follows a
    redirect with the credentials.
    """

    def __init__(
        self,
        settings: CvatSettings,
        credentials: Credentials,
        *,
        clock: Clock,
        on_call: OnCall | None,
    ) -> None:
        self.server = settings.url
        self.timeout = settings.timeout
        self.clock = clock
        from cvat_sdk.core.helpers import make_request_headers

        sdk = _sdk_client(settings)
        self.connections: urllib3.PoolManager = sdk.rest_client.pool_manager
        self._on_call = on_call
        self._headers = {**make_request_headers(sdk), "Accept": "application/vnd.cvat+json"}
        self._logins: TokenLogin | PasswordSession
        self.use(credentials)

    def use(self, credentials: Credentials) -> None:
        """Make all calls that begin from now on with these credentials."""
        if isinstance(credentials, PasswordCredentials):
            self._logins = PasswordSession(credentials, self._post_login, self.clock)
        else:
            self._logins = TokenLogin(credentials)

    @property
    def uses_token(self) -> bool:
        """Whether calls are made with an access token."""
        return isinstance(self._logins, TokenLogin)

    def close(self) -> None:
        """Close all connections that are not in use. The transport can be used again."""
        self.connections.clear()

    def call(
        self,
        operation: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        data: Any = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (),
        timeout: float | None = None,
        repeatable: bool | None = None,
        task_id: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Answer:
        """Make one call and return its answer, if it is a 2xx or its status is in ``accept``.

        ``data`` is sent as JSON, ``body`` as it is. ``timeout`` is in seconds, for the answer
        after the call was sent. A call that is ``repeatable`` (by default every method but POST)
        is made once more when the connection turns out to be dead, as keep-alive connections are
        that the server has closed; no other call ever is.

        Errors after the first byte of a body was sent are marked for
        :func:`pool.cvat.failures.left_untouched`.

        :raises PoolError: the call failed; no other class is raised.
        """
        if body is None and data is not None:
            body = BytesBody(json.dumps(data).encode())
        replayable = body is None or body.replayable
        if repeatable is None:
            repeatable = method in _REPEATABLE
        exchange = partial(
            self._exchange,
            method,
            self.server + path + (_query(query) if query else ""),
            body,
            timeout=self.timeout if timeout is None else timeout,
            repeatable=repeatable and replayable,
            progress=progress,
        )
        started = self.clock.monotonic()
        result, status = "error", 0
        try:
            login = self._logins.current()
            answer = exchange(self._with(login.headers, headers))
            # A 401 is decided before CVAT looks at the body, so sending it again is safe.
            if answer.status == 401 and replayable:
                renewed = self._logins.renewed(login)
                if renewed is not login:
                    answer = exchange(self._with(renewed.headers, headers))
            status = answer.status
            if not (200 <= status < 300 or status in accept):
                raise failures.error_from_answer(answer, method=method, now=self.clock.now())
            result = "ok"
            return answer
        except PoolError as error:
            result = error.code
            raise
        finally:
            self._report(operation, started, status, result, task_id)

    def warm_up(self, count: int) -> None:
        """Open ``count`` connections at once and leave them in the pool, authenticated."""
        path = "/api/users/self"
        self.call("warm_up", "GET", path)
        headers = self._with(self._logins.current().headers)
        held: list[Any] = []
        try:
            while len(held) < count:
                # An answer that is not read keeps its connection, so the next call opens one.
                held.append(
                    self._open("GET", self.server + path, headers, self.timeout, preload=False)
                )
        except _CONNECTION_ERRORS as error:
            mapped = failures.error_from_exception(
                error, method="GET", server=self.server, sent=False, timeout=self.timeout
            )
            raise mapped from None
        finally:
            for response in held:
                response.drain_conn()
                response.release_conn()

    # --- In the order of a call ---------------------------------------------------------------

    def _with(self, *more: Mapping[str, str] | None) -> RedactedHeaders:
        headers = RedactedHeaders(self._headers)
        for each in more:
            headers.update(each or {})
        return headers

    def _exchange(
        self,
        method: str,
        url: str,
        body: Body | None,
        headers: RedactedHeaders,
        *,
        timeout: float,
        repeatable: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Answer:
        """Send once, or twice if ``repeatable``, and read the answer, whatever its status."""
        if body is not None:
            headers["Content-Type"] = body.content_type
            headers["Content-Length"] = str(body.length)
        attempts = 2 if repeatable else 1
        while True:
            attempts -= 1
            sending = _Sending(body, progress) if body is not None else None
            try:
                response = self._open(method, url, headers, timeout, body=sending)
                return Answer(response.status, response.headers, response.data, self.server)
            except PoolError as error:  # from the body: a file that changed
                if sending is not None and sending.started:
                    error.task_touched = True
                raise
            except _CONNECTION_ERRORS as error:
                if attempts and isinstance(error, ProtocolError):
                    continue
                never_sent = isinstance(error, NewConnectionError | ConnectTimeoutError)
                mapped = failures.error_from_exception(
                    error,
                    method=method,
                    server=self.server,
                    sent=not never_sent and (sending is None or sending.complete),
                    timeout=timeout,
                    cut_after=sending.cut_after if sending is not None else None,
                )
                if sending is not None and sending.started:
                    mapped.task_touched = True
            # Outside of the handler, and so without the frames below, whose variables hold
            # the headers.
            raise mapped

    def _open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        timeout: float,
        *,
        body: _Sending | None = None,
        preload: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        return self.connections.urlopen(
            method,
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=min(_CONNECT_TIMEOUT, timeout), read=timeout),
            retries=False,
            redirect=False,
            preload_content=preload,
        )

    def _report(
        self, operation: str, started: float, status: int, result: str, task_id: int | None
    ) -> None:
        seconds = self.clock.monotonic() - started
        log.debug(
            "cvat call",
            operation=operation,
            task_id=task_id,
            status=status or None,
            result=result,
            ms=round(seconds * 1000, 1),
        )
        if self._on_call is not None:
            self._on_call(operation, seconds, result)

    def _post_login(self, data: Mapping[str, str]) -> Answer:
        """Make the call that opens a session: without an organization, and never twice."""
        headers = self._with()
        del headers["X-Organization"]
        started = self.clock.monotonic()
        result, status = CvatUnreachable.code, 0
        try:
            answer = self._exchange(
                "POST",
                f"{self.server}/api/auth/login",
                BytesBody(json.dumps(data).encode()),
                headers,
                timeout=self.timeout,
            )
            status = answer.status
            result = "ok" if status == 200 else CvatRefusedCredentials.code
            return answer
        except CvatUnreachable as error:
            # Never ambiguous: a login that may have worked has changed nothing.
            raise CvatUnreachable(error.detail) from None
        finally:
            self._report("login", started, status, result, None)


def _sdk_client(settings: CvatSettings) -> Any:
    """Return the SDK's API client, with a pool of connections that stay open."""
    from cvat_sdk import Client, Config
    from cvat_sdk.api_client.rest import RESTClientObject

    if not settings.verify_tls:
        log.warning("certificates of CVAT are not verified", server=settings.url)
        urllib3.disable_warnings(InsecureRequestWarning)
    config = Config(verify_ssl=settings.verify_tls)
    client = Client(settings.url, config=config, check_server_version=False)
    client.organization_slug = settings.organization
    sdk = client.api_client
    sdk.user_agent = f"cvat-task-pool/{VERSION}"
    sdk.configuration.connection_pool_maxsize = POOL_SIZE
    sdk.configuration.socket_options = [
        *HTTPConnection.default_socket_options,  # TCP_NODELAY
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    # The pool was made by the client's constructor, before its size could be set.
    sdk.rest_client = RESTClientObject(sdk.configuration)
    return sdk


def _query(query: Mapping[str, object]) -> str:
    """Return the query string. Commas and colons are not escaped: lists of ids are long."""
    return "?" + "&".join(f"{key}={quote(str(value), safe=',:')}" for key, value in query.items())
