"""What CVAT answers, and what an answer or a broken connection means: an error of
:mod:`pool.errors` each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import RemoteDisconnected
from typing import Any

from urllib3 import HTTPHeaderDict
from urllib3 import exceptions as urllib3

from pool.config.units import retry_after
from pool.config.urls import without_secrets
from pool.errors import (
    ConfigError,
    CvatAmbiguous,
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatRejected,
    CvatUnreachable,
    InputError,
)

#: The longest ``Retry-After`` that is honoured, in seconds: as long as a back-off lasts.
LONGEST_BACK_OFF = 60.0
_LONGEST_WORDS = 500
_SAFE_METHODS = frozenset({"GET", "HEAD"})
#: Django REST framework's messages of a refusal that give no reason.
_PLAIN_REFUSALS = ("you do not have permission to perform this action", "not authorized")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server at ``server`` sent back."""

    status: int
    headers: HTTPHeaderDict
    data: bytes
    server: str

    def json(self) -> Any:
        """Return the body as JSON.

        :raises CvatError: it is none, so this is no CVAT server.
        """
        try:
            return json.loads(self.data)
        except ValueError:
            kind = self.headers.get("content-type", "").partition(";")[0] or "nothing"
            raise not_cvat(self, kind) from None

    @property
    def is_json(self) -> bool:
        """Whether it is labelled as JSON, as CVAT labels what it says itself."""
        return "json" in self.headers.get("content-type", "")


def error_from_answer(answer: Answer, *, method: str, now: float) -> CvatError:
    """Return the error that an answer outside of what was expected means; ``now`` in Unix seconds.

    502 and 504 are a proxy's, which lost CVAT on the way: it may still be at work, so to a
    call that changes something they are CvatAmbiguous. 500 and 503 are CVAT's own (CvatBusy).
    """
    status, headers = answer.status, answer.headers
    words = server_words(headers.get("content-type", ""), answer.data)
    message = f"HTTP {status} {_phrase(status)}" + (f": {words}" if words else "")
    kind: type[CvatError] = CvatError
    match status:
        case 401:
            kind = CvatRefusedCredentials
        case 403:
            kind, message = CvatForbidden, message + _hint_for_forbidden(words, method)
        case 404:
            kind, message = CvatNotFound, message + _hint_for_not_found(words)
        case 413:
            kind = CvatRejected
            message += (
                "; the upload is larger than the server or a proxy before it takes, "
                "so lower import.single_request_limit"
            )
        case 502 | 504 if method not in _SAFE_METHODS:
            kind = CvatAmbiguous
        case _ if status == 429 or status >= 500:
            wait = retry_after(headers.get("retry-after"), now=now, most=LONGEST_BACK_OFF)
            return CvatBusy(message, http_status=status, retry_after=wait)
        case _ if status >= 400:
            kind = CvatRejected
        case _ if status >= 300:
            # Never followed: a POST would be sent again, and the credentials to another server.
            target = headers.get("location", "").partition("?")[0] or "another address"
            message = f"HTTP {status} redirects to {target}, so cvat.url may be the wrong address"
    return kind(message, http_status=status)


def error_from_exception(
    error: Exception,
    *,
    method: str,
    server: str,
    sent: bool,
    timeout: float,
    cut_after: tuple[int, int] | None = None,
) -> CvatError:
    """Return the error that a failure of the connection means.

    With ``sent``, the whole call was given to the connection, so the server may have acted on it,
    and the outcome of a call that changes something is unknown. ``cut_after`` is how many bytes
    of a body were sent, and of how many.
    """
    detail = f"{server}: {broken_reason(error, timeout)}"
    if cut_after is not None:
        # Proxies that find a body too large often do not wait to say so.
        detail += (
            f", after {cut_after[0]} of {cut_after[1]} bytes (if this happens again, a proxy may "
            "refuse uploads of this size: lower import.single_request_limit)"
        )
    if sent and method not in _SAFE_METHODS:
        return CvatAmbiguous(detail)
    return CvatUnreachable(detail)


def not_cvat(answer: Answer, what: str) -> CvatError:
    """Return the error for an answer that no CVAT server gives, such as a proxy's login page."""
    return CvatError(
        f"{answer.server} does not look like a CVAT server (HTTP {answer.status} with {what}), "
        "check cvat.url",
        http_status=answer.status,
    )


def organization_unknown(body: bytes) -> bool:
    """Return whether a 404 means that the organization does not exist."""
    return b"organization does not exist" in body


def of_server(error: Exception) -> bool:
    """Return whether a failure is probably the server's as a whole rather than this call's."""
    if isinstance(error, CvatBusy):
        return error.http_status in (429, 503)
    return isinstance(error, CvatUnreachable | CvatRefusedCredentials)


# --- What an error leaves behind ---------------------------------------------------------------


def cut_off(error: BaseException) -> bool:
    """Return whether a connection, or an answer, was lost in the middle of an upload.

    The task has a part of the data and must be deleted, but its import has certainly not begun,
    and the same data can be sent to another task.
    """
    match error:
        case CvatAmbiguous():
            return error.import_not_begun
        case CvatBusy() if error.http_status is not None and error.http_status >= 500:
            return error.task_touched and error.import_not_begun
        case CvatUnreachable():
            return error.task_touched
    return False


#: CVAT's refusal of an upload into a task that has data.
_NO_MORE_DATA = "Adding more data is not supported"


#: The pool's message about a task whose data is not shown to be its request's.
OTHER_DATA = "data that was not seen to be the request's is in the task"


def tells_of_other_data(words: str) -> bool:
    """Return whether CVAT refused an upload because there is other data in the task, or the pool
    found some that may be another's (:data:`OTHER_DATA`)."""
    return _NO_MORE_DATA in words or OTHER_DATA in words


def left_untouched(error: BaseException) -> bool:
    """Return whether it is certain that a failed upload has sent nothing to its task.

    Such a task can go back to warm. Certain are input that was refused before the first byte was
    sent, a connection that was never made, and a refusal of the credentials, permissions or rate,
    which CVAT decides before it looks at the data.
    """
    match error:
        case CvatAmbiguous():
            return False
        case CvatBusy():
            return error.http_status == 429 and not error.task_touched
        case (
            InputError()
            | ConfigError()
            | CvatUnreachable()
            | CvatRefusedCredentials()
            | CvatForbidden()
        ):
            return not error.task_touched
    return False


# --- The server's own words --------------------------------------------------------------------


def server_words(content_type: str, body: bytes) -> str:
    """Return the server's message in the body of an error, on one line; "" without one.

    CVAT answers with a list of strings, with ``{"detail": …}``, with ``{"field": […]}`` nested
    like the body that was sent, and with plain text labelled as HTML (recordings bad_data,
    create_task and requests). A page made for people is left out, and so are secrets of URLs.
    """
    kind = content_type.partition(";")[0].strip().lower()
    text = body.decode("utf-8", "replace").strip()
    if kind.endswith("json"):
        try:
            return _shortened(_flatten(json.loads(text)))
        except ValueError:
            return ""
    if kind.startswith("text/") and not text.startswith("<") and len(text) <= _LONGEST_WORDS:
        return _shortened(text)
    return ""


def _flatten(payload: Any) -> str:
    if isinstance(payload, Mapping):
        parts = []
        for key, value in payload.items():
            words = _flatten(value)
            if words:
                plain = key in ("detail", "non_field_errors", "message")
                parts.append(words if plain else f"{key}: {words}")
        return "; ".join(parts)
    if isinstance(payload, list):
        return "; ".join(words for words in map(_flatten, payload) if words)
    return "" if payload is None else str(payload)


def _shortened(text: str) -> str:
    text = without_secrets(" ".join(text.split()))
    return text if len(text) <= _LONGEST_WORDS else text[: _LONGEST_WORDS - 1] + "…"


# --- Hints -------------------------------------------------------------------------------------


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _hint_for_forbidden(words: str, method: str) -> str:
    if method in _SAFE_METHODS or (words and words.rstrip(".").lower() not in _PLAIN_REFUSALS):
        return ""
    return " (the access token may be read-only, as tokens are by default)"


def _hint_for_not_found(words: str) -> str:
    return " (check cvat.organization)" if "organization does not exist" in words else ""


def broken_reason(error: Exception, timeout: float) -> str:
    """Return what happened to the connection, without the addresses that urllib3 repeats."""
    match error:
        case urllib3.NameResolutionError():
            return "the host name cannot be resolved"
        case urllib3.NewConnectionError():  # a ConnectTimeoutError as well
            cause = error.__cause__ or error.__context__
            return _system_words(cause) or "no connection"
        case urllib3.ConnectTimeoutError():
            return "no connection within the time-out"
        case urllib3.ReadTimeoutError():
            return f"no answer within {timeout:g} s"
        case urllib3.SSLError():
            cause = error.args[0] if error.args else error
            verify = getattr(cause, "verify_message", "") or getattr(cause, "reason", "")
            return f"TLS failed: {verify or cause}"
        case urllib3.ProtocolError() if len(error.args) > 1:
            return _broken(error.args[1])
    return _broken(error)


def _broken(cause: Any) -> str:
    match cause:
        case RemoteDisconnected():
            return "the server closed the connection without an answer"
        case TimeoutError():
            return "the connection stalled while sending"
        case OSError():
            return _system_words(cause) or "the connection broke"
    return f"the connection broke ({type(cause).__name__})"


def _system_words(cause: BaseException | None) -> str:
    words = getattr(cause, "strerror", None)
    return words[:1].lower() + words[1:] if isinstance(words, str) else ""
