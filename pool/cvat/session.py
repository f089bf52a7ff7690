"""How a call authenticates: with a token, or with a session that one login has opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Final

from pool.clock import Clock
from pool.config.urls import origin
from pool.cvat.credentials import AccessTokenCredentials, PasswordCredentials
from pool.cvat.failures import Answer, error_from_answer, not_cvat
from pool.errors import CvatError, CvatRefusedCredentials

#: Seconds in which no second login is tried. CVAT takes 100 anonymous calls a minute, logins
#: included, and a wrong password fails in many threads at once.
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
    at: float = 0.0


class TokenLogin:
    """An access token, which CVAT checks with each call."""

    def __init__(self, credentials: AccessTokenCredentials) -> None:
        self._login = Login(RedactedHeaders(Authorization=f"Bearer {credentials.token}"))

    def current(self) -> Login:
        """Return the one there is."""
        return self._login

    def renewed(self, stale: Login) -> Login:
        """Return ``stale``: a token that was refused stays refused."""
        return stale


class PasswordSession:
    """One login with a password for all threads; renewed once when it has expired. Thread-safe.

    ``post_login`` sends a user name and a password, and no headers of another login.
    """

    def __init__(
        self,
        credentials: PasswordCredentials,
        post_login: Callable[[Mapping[str, str]], Answer],
        clock: Clock,
    ) -> None:
        self._credentials = credentials
        self._post_login = post_login
        self._clock = clock
        self._lock = threading.Lock()
        self._login: Login | None = None
        self._refused: tuple[float, CvatError] | None = None

    def current(self) -> Login:
        """Return the login to use; the first caller makes it.

        :raises CvatRefusedCredentials: CVAT does not take the password.
        """
        login = self._login
        if login is not None:
            return login
        with self._lock:
            # Many threads may have waited here for the first of them to log in.
            return self._login or self._log_in()

    def renewed(self, stale: Login) -> Login:
        """Return a login made after ``stale``, which the server no longer takes.

        Return ``stale`` itself when it is so young that another login would not help.
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
        self._login = None
        answer = self._post_login(
            {"username": self._credentials.username, "password": self._credentials.password}
        )
        if answer.status != 200:
            error = self._refusal(answer)
            if isinstance(error, CvatRefusedCredentials):
                self._refused = (now, error)
            raise error
        self._refused = None
        self._login = Login(_session_headers(answer), now)
        return self._login

    def _refusal(self, answer: Answer) -> CvatError:
        error = error_from_answer(answer, method="GET", now=self._clock.now())
        if answer.status in (400, 401, 403):
            return CvatRefusedCredentials(error.detail, http_status=answer.status)
        return error


def _session_headers(answer: Answer) -> RedactedHeaders:
    """Return what the SDK sends in a session: its cookies, and what Django checks against CSRF."""
    cookies: SimpleCookie = SimpleCookie()
    for line in answer.headers.getlist("set-cookie"):
        try:
            cookies.update(SimpleCookie(line))
        except CookieError:
            continue
    if "sessionid" not in cookies:
        raise not_cvat(answer, "no session in the login")
    headers = RedactedHeaders(Cookie=cookies.output(attrs=[], header="", sep=";").strip())
    if "csrftoken" in cookies:
        headers["X-CSRFToken"] = cookies["csrftoken"].value
        headers["Origin"] = origin(answer.server)
    return headers
