"""A login with a user and a password: made once, kept, and renewed once when it has expired."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any, Final

from pool.clock import Clock
from pool.cvat import failures
from pool.cvat.credentials import PasswordCredentials
from pool.errors import CvatError, CvatRefusedCredentials

if TYPE_CHECKING:
    from pool.cvat.transport import Answer

#: Seconds in which no second login is tried. CVAT takes 100 anonymous calls a minute, logins
#: included, and many threads may find out at once that the password is wrong.
LOGIN_PAUSE: Final = 30.0


class RedactedHeaders(dict[str, str]):
    """Headers that do not show their values, since tracebacks may print local variables."""

    def __repr__(self) -> str:
        return f"<headers: {', '.join(self)}>"

    def copy(self) -> RedactedHeaders:
        return RedactedHeaders(self)


@dataclass(frozen=True, slots=True, eq=False)
class Login:
    """The headers of one login, and when it was made (monotonic seconds)."""

    headers: RedactedHeaders
    at: float


class PasswordSession:
    """Keeps the one login that all threads share. Thread-safe."""

    def __init__(
        self,
        api_client: Any,
        credentials: PasswordCredentials,
        post_login: Callable[[Mapping[str, str]], Answer],
        clock: Clock,
    ) -> None:
        self._api_client = api_client
        self._credentials = credentials
        self._post_login = post_login
        self._clock = clock
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._refused: tuple[float, CvatError] | None = None

    def current(self) -> Login:
        """The login to use; the first caller makes it. Raises CvatRefusedCredentials."""
        login = self._login
        if login is not None:
            return login
        with self._lock:
            # Many threads may have waited here for the first of them to log in.
            return self._login or self._log_in()

    def renewed(self, stale: Login) -> Login:
        """A login made after ``stale``, which the server no longer takes.

        ``stale`` itself is returned when it is so young that another login would not help.
        """
        with self._lock:
            if self._login is not None and self._login is not stale:
                return self._login
            if self._clock.monotonic() - stale.at < LOGIN_PAUSE:
                return stale
            return self._log_in()

    def _log_in(self) -> Login:
        now = self._clock.monotonic()
        if self._refused is not None and now - self._refused[0] < LOGIN_PAUSE:
            raise CvatRefusedCredentials(self._refused[1].detail)
        self._forget()
        answer = self._post_login(
            {"username": self._credentials.username, "password": self._credentials.password}
        )
        if answer.status != 200:
            error = self._refusal(answer)
            if isinstance(error, CvatRefusedCredentials):
                self._refused = (now, error)
            raise error
        self._refused = None
        self._login = Login(self._keep(answer), now)
        return self._login

    def _forget(self) -> None:
        self._login = None
        self._api_client.cookies.clear()
        self._api_client.configuration.api_key.pop("csrfHeaderAuth", None)

    def _keep(self, answer: Answer) -> RedactedHeaders:
        """What ``cvat_sdk.Client.login`` does with the answer, which itself has no time-out."""
        from cvat_sdk.core.helpers import make_request_headers

        cookies = self._api_client.cookies
        for line in answer.headers.getlist("set-cookie"):  # type: ignore[attr-defined]
            try:
                cookies.update(SimpleCookie(line))
            except CookieError:
                continue
        if "sessionid" not in cookies:
            raise failures.not_cvat(answer.server, answer.status, "no session in the login")
        if "csrftoken" in cookies:
            keys = self._api_client.configuration.api_key
            keys["csrfHeaderAuth"] = cookies["csrftoken"].value
        return RedactedHeaders(make_request_headers(self._api_client))

    def _refusal(self, answer: Answer) -> CvatError:
        error = failures.error_from_answer(
            answer.status, answer.headers, answer.data, method="GET", now=self._clock.now()
        )
        if answer.status in (400, 401, 403):
            return CvatRefusedCredentials(error.detail, http_status=answer.status)
        return error
