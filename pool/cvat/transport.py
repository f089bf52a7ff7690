"""One call to CVAT: its headers, time-outs, the one retry that is safe, errors and the log line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from urllib.parse import quote

from pool.clock import Clock
from pool.config.settings import CvatSettings
from pool.cvat import failures
from pool.cvat.body import Body, BytesBody, Sending
from pool.cvat.credentials import AccessTokenCredentials, Credentials, PasswordCredentials
from pool.cvat.sdk import checked_url, sdk_client
from pool.cvat.session import PasswordSession, RedactedHeaders
from pool.errors import CvatRefusedCredentials, CvatUnreachable, PoolError
from pool.logs import get_logger

log = get_logger(__name__)

#: Called after every call with its operation, its seconds, and "ok" or the code of the error.
OnCall = Callable[[str, float, str], None]

ACCEPT: Final = "application/vnd.cvat+json"
#: Seconds to get a connection; also the longest that sending one chunk may stall.
_CONNECT_TIMEOUT: Final = 10.0
#: Methods that have the same effect when the server gets them twice.
_REPEATABLE: Final = frozenset({"GET", "HEAD", "DELETE", "PATCH"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server sent back."""

    status: int
    headers: Mapping[str, str]
    data: bytes
    server: str

    def json(self) -> Any:
        """The body as JSON. Raises CvatError when it is none: this is no CVAT server."""
        try:
            return json.loads(self.data)
        except ValueError:
            kind = self.headers.get("content-type", "").partition(";")[0] or "nothing"
            raise failures.not_cvat(self.server, self.status, kind) from None


class Transport:
    """Sends calls to one server for one organization and credential. Thread-safe.

    Built on the SDK's client: its connection pool, TLS settings, organization header and
    credentials. Its endpoints and models are not used, because the models refuse an answer
    that lacks a field and take most of the time of a poll.
    """

    def __init__(
        self,
        settings: CvatSettings,
        credentials: Credentials,
        *,
        clock: Clock,
        pool_size: int,
        user_agent: str,
        on_call: OnCall | None,
    ) -> None:
        self.server = checked_url(settings.url)
        self.timeout = settings.timeout
        self.clock = clock
        self._on_call = on_call
        self._client = sdk_client(self.server, settings, pool_size, user_agent)
        self._session: PasswordSession | None = None
        self._headers = RedactedHeaders()
        self.use(credentials)

    def use(self, credentials: Credentials) -> None:
        """Make all calls that begin from now on with these credentials."""
        if isinstance(credentials, PasswordCredentials):
            self._session = PasswordSession(
                self._client.api_client, credentials, self._post_login, self.clock
            )
        else:
            self._use_token(credentials)
            self._session = None

    def _use_token(self, credentials: AccessTokenCredentials) -> None:
        from cvat_sdk.core.client import AccessTokenCredentials as SdkToken
        from cvat_sdk.core.helpers import make_request_headers

        self._client.login(SdkToken(credentials.token))
        self._headers = RedactedHeaders(make_request_headers(self._client.api_client))

    @property
    def uses_token(self) -> bool:
        return self._session is None

    def close(self) -> None:
        """Close all connections that are not in use. The transport can be used again."""
        self._client.close()
        self._client.api_client.rest_client.pool_manager.clear()

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
        after the call was sent. A call that is ``repeatable`` (every method but POST, unless
        told otherwise) is made once more when the connection turns out to be dead, as
        keep-alive connections are that the server has closed; no other call ever is.

        Raises the errors of :mod:`pool.errors`, and no other. Those raised after the first
        byte of a body was sent are marked for :func:`pool.cvat.failures.left_untouched`.
        """
        if body is None and data is not None:
            body = BytesBody(json.dumps(data).encode())
        if repeatable is None:
            repeatable = method in _REPEATABLE
        url = self.server + path + _query(query)
        started = self.clock.monotonic()
        result, status = "error", 0
        try:
            answer = self._send(
                method,
                url,
                body,
                headers or {},
                timeout=self.timeout if timeout is None else timeout,
                repeatable=repeatable and (body is None or body.replayable),
                progress=progress,
            )
            status = answer.status
            if not (200 <= status < 300 or status in accept):
                raise failures.error_from_answer(
                    status, answer.headers, answer.data, method=method, now=self.clock.now()
                )
            result = "ok"
            return answer
        except PoolError as error:
            result = error.code
            raise
        finally:
            self._report(operation, started, status, result, task_id)

    def open_connections(self, operation: str, path: str, count: int) -> None:
        """Open ``count`` connections at once and leave them in the pool, authenticated."""
        self.call(operation, "GET", path)
        held: list[Any] = []
        try:
            while len(held) < count:
                # An answer that is not read keeps its connection, so the next call opens one.
                held.append(self._urlopen("GET", self.server + path, preload_content=False))
        except _connection_errors() as error:
            mapped = failures.error_from_exception(
                error, method="GET", server=self.server, sent=False, timeout=self.timeout
            )
            raise mapped from None
        finally:
            for response in held:
                response.drain_conn()
                response.release_conn()

    # --- In the order of a call ---------------------------------------------------------------

    def _send(
        self,
        method: str,
        url: str,
        body: Body | None,
        headers: Mapping[str, str],
        *,
        timeout: float,
        repeatable: bool,
        progress: Callable[[int], None] | None,
    ) -> Answer:
        """Send with the credentials; when a session has expired, log in again and resend."""

        def exchange(credentials: Mapping[str, str]) -> Answer:
            return self._exchange(
                method,
                url,
                body,
                RedactedHeaders({**credentials, "Accept": ACCEPT, **headers}),
                timeout=timeout,
                repeatable=repeatable,
                progress=progress,
            )

        if self._session is None:
            return exchange(self._headers)
        login = self._session.current()
        answer = exchange(login.headers)
        # A 401 is decided before CVAT looks at the body, so sending it again is safe.
        if answer.status == 401 and (body is None or body.replayable):
            renewed = self._session.renewed(login)
            if renewed is not login:
                answer = exchange(renewed.headers)
        return answer

    def _exchange(
        self,
        method: str,
        url: str,
        body: Body | None,
        headers: RedactedHeaders,
        *,
        timeout: float,
        repeatable: bool,
        progress: Callable[[int], None] | None,
    ) -> Answer:
        if body is not None:
            headers["Content-Type"] = body.content_type
            headers["Content-Length"] = str(body.length)
        attempts = 2 if repeatable else 1
        while True:
            attempts -= 1
            sending = Sending(body, progress) if body is not None else None
            try:
                response = self._urlopen(
                    method, url, body=sending, headers=headers, timeout=timeout
                )
                return Answer(response.status, response.headers, response.data, self.server)
            except PoolError as error:  # from the body: a file that changed
                if sending is not None and sending.started:
                    failures.mark_touched(error)
                raise
            except _connection_errors() as error:
                if attempts and _may_be_stale(error):
                    continue
                mapped = failures.error_from_exception(
                    error,
                    method=method,
                    server=self.server,
                    sent=_was_sent(error, sending),
                    timeout=timeout,
                    cut_after=_cut_after(sending),
                )
                if sending is not None and sending.started:
                    failures.mark_touched(mapped)
            # Outside of the handler, and so without the frames below, whose variables hold
            # the headers.
            raise mapped

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

    def _urlopen(
        self,
        method: str,
        url: str,
        *,
        body: Sending | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        preload_content: bool = True,
    ) -> Any:
        """The SDK's connection pool, without its retries and redirects.

        Not the SDK's ``rest_client.request``, which sends bytes only, retries a 503 of its own
        accord for several seconds, and follows a redirect with the credentials.
        """
        import urllib3

        read = self.timeout if timeout is None else timeout
        if headers is None:
            login = self._headers if self._session is None else self._session.current().headers
            headers = RedactedHeaders({**login, "Accept": ACCEPT})
        return self._client.api_client.rest_client.pool_manager.urlopen(
            method,
            url,
            body=body,
            headers=headers,
            timeout=urllib3.Timeout(connect=min(_CONNECT_TIMEOUT, read), read=read),
            retries=False,
            redirect=False,
            preload_content=preload_content,
        )

    def _post_login(self, data: Mapping[str, str]) -> Answer:
        """The call that a session begins with: without credentials, and never made twice."""
        from cvat_sdk.core.helpers import make_request_headers

        plain = RedactedHeaders(make_request_headers(self._client.api_client))
        plain.pop("X-Organization", None)
        started = self.clock.monotonic()
        result, status = CvatUnreachable.code, 0
        try:
            answer = self._exchange(
                "POST",
                self.server + "/api/auth/login",
                BytesBody(json.dumps(data).encode()),
                RedactedHeaders({**plain, "Accept": ACCEPT}),
                timeout=self.timeout,
                repeatable=False,
                progress=None,
            )
            status = answer.status
            result = "ok" if status == 200 else CvatRefusedCredentials.code
            return answer
        except CvatUnreachable as error:
            # A login whose outcome is unknown changed nothing that anybody would look for.
            raise CvatUnreachable(error.detail) from None
        finally:
            self._report("login", started, status, result, None)


def _query(query: Mapping[str, object] | None) -> str:
    """The query string; commas and colons stay as they are, since long lists of ids go here."""
    if not query:
        return ""
    return "?" + "&".join(f"{key}={quote(str(value), safe=',:')}" for key, value in query.items())


def _connection_errors() -> tuple[type[Exception], ...]:
    import urllib3

    return (urllib3.exceptions.HTTPError, HTTPException, OSError)


def _may_be_stale(error: Exception) -> bool:
    import urllib3

    return isinstance(error, urllib3.exceptions.ProtocolError)


def _was_sent(error: Exception, sending: Sending | None) -> bool:
    """Whether the server may have had the whole call when the connection failed."""
    from urllib3 import exceptions as urllib3

    if isinstance(error, urllib3.NewConnectionError | urllib3.ConnectTimeoutError):
        return False
    return sending is None or sending.complete


def _cut_after(sending: Sending | None) -> tuple[int, int] | None:
    if sending is None or sending.complete or not sending.started:
        return None
    return sending.sent, sending.length
