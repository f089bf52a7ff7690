"""Everything that can go wrong, one class a failure; a class's docstring is its message.

Every error carries what the three doors need: ``exit_code`` for the command line, ``status``
for HTTP, ``code`` as a stable machine-readable name. ``str(error)`` is one line that says what
is wrong and, where a person can do something about it, what to do.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_TIMED_OUT = 3
EXIT_REFUSED = 4
EXIT_EMPTY = 5


class PoolError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "failed"
    exit_code: ClassVar[int] = EXIT_FAILED
    status: ClassVar[int] = 500

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        super().__init__(detail)

    @property
    def title(self) -> str:
        """The first line of the class's docstring, without its full stop."""
        return (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")

    def __str__(self) -> str:
        detail = " ".join(self.detail.split())
        return f"{self.title}: {detail}" if detail else f"{self.title}."


# --- What the caller asked for -----------------------------------------------------------------


class ConfigError(PoolError):
    """The configuration is wrong."""

    code = "config"
    exit_code = EXIT_USAGE


class InputError(PoolError):
    """The input cannot be used."""

    code = "input"
    exit_code = EXIT_USAGE
    status = 422


class UnknownTemplate(InputError):
    """There is no such template in the configuration."""

    code = "unknown-template"
    status = 404


class UnknownLease(InputError):
    """There is no such lease."""

    code = "unknown-lease"
    status = 404


class UnknownRequest(InputError):
    """There is no such request."""

    code = "unknown-request"
    status = 404


class LeaseInUse(PoolError):
    """The lease cannot be given back, since its task has been touched."""

    code = "lease-in-use"
    status = 409


class LeaseEnded(PoolError):
    """The lease has ended."""

    code = "lease-ended"
    status = 409


class IdempotencyConflict(InputError):
    """The idempotency key was used before with other content."""

    code = "idempotency-conflict"
    status = 409


class PoolClosed(PoolError):
    """The pool is closed."""

    code = "closed"


class PoolEmpty(PoolError):
    """No warm task is available."""

    code = "pool-empty"
    exit_code = EXIT_EMPTY
    status = 503


class WaitTimeout(PoolError, TimeoutError):
    """Not ready in time; it is still running."""

    code = "timeout"
    exit_code = EXIT_TIMED_OUT
    status = 504


class CannotListen(PoolError):
    """Cannot listen."""

    code = "cannot-listen"


class BadSignature(PoolError):
    """The signature is missing or wrong."""

    code = "bad-signature"
    status = 401


class TooLarge(InputError):
    """The body is too large."""

    code = "too-large"
    status = 413


class TooBusy(PoolError):
    """Too much is waiting to be handled."""

    code = "too-busy"
    status = 503


class Unauthorized(PoolError):
    """A valid token is needed."""

    code = "unauthorized"
    status = 401


class Forbidden(PoolError):
    """This caller is not served."""

    code = "forbidden"
    status = 403


class TooSlow(PoolError):
    """The body did not come in time."""

    code = "too-slow"
    status = 408


class WrongMediaType(InputError):
    """The body is of a type that is not read here."""

    code = "media-type"
    status = 415


class TooManyUploads(PoolError):
    """Too many uploads are under way."""

    code = "too-many-uploads"
    status = 429


class TooLate(PoolError):
    """It is too late to cancel the request."""

    code = "too-late"
    status = 409


class QueueFull(PoolError):
    """Too many requests wait already."""

    code = "queue-full"
    status = 429

    def __init__(self, detail: str = "", *, retry_after: float | None = None) -> None:
        #: Seconds after which there may be room, or None.
        self.retry_after = retry_after
        super().__init__(detail)


class SpoolFull(QueueFull):
    """The data of the requests that wait takes up all the room there is for it."""

    # Not 507, which forbids to try again by itself (RFC 4918, section 11.5): the spool empties as
    # the requests are served, and then the same call succeeds.
    code = "spool-full"


class DataGone(PoolError):
    """The data that was kept for the request cannot be found any more."""

    code = "data-gone"


class Stopping(PoolError):
    """The daemon is stopping; ask again in a moment."""

    code = "stopping"
    status = 503


class RequestCancelled(PoolError):
    """The request was cancelled."""

    code = "cancelled"
    status = 409


class PoolUnreachable(PoolError):
    """No pool answers."""

    code = "pool-unreachable"
    status = 502


# --- What the store says -----------------------------------------------------------------------


class StoreError(PoolError):
    """The store cannot be used."""

    code = "store"
    status = 503


# --- What the import came to -------------------------------------------------------------------


class ImportFailed(PoolError):
    """CVAT could not import the data."""

    code = "import-failed"
    status = 422


class ImportLost(ImportFailed):
    """CVAT lost the import."""

    # The code of ImportFailed: only those who still have the data tell the two apart.


class ImportTimedOut(PoolError):
    """CVAT did not finish the import within the template's time-out."""

    code = "import-timed-out"
    status = 504


class TaskGone(PoolError):
    """The task was deleted on the server while it was in use."""

    code = "task-gone"
    status = 409


class OwnerGone(PoolError):
    """The process that held the data ended before the upload was complete."""

    code = "owner-gone"


# --- What CVAT answers -------------------------------------------------------------------------


class CvatError(PoolError):
    """CVAT answered with an error."""

    code = "cvat"
    status = 502

    def __init__(self, detail: str = "", *, http_status: int | None = None) -> None:
        self.http_status = http_status
        super().__init__(detail)


class CvatUnreachable(CvatError):
    """CVAT cannot be reached."""

    code = "cvat-unreachable"


class CvatAmbiguous(CvatUnreachable):
    """The connection to CVAT was lost after the call was sent, so its outcome is unknown."""

    code = "cvat-ambiguous"


class CvatBusy(CvatError):
    """CVAT is overloaded or failing."""

    code = "cvat-busy"

    def __init__(
        self,
        detail: str = "",
        *,
        http_status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        #: Seconds that the server asked to wait for (``Retry-After``), or None.
        self.retry_after = retry_after
        super().__init__(detail, http_status=http_status)


class CvatRefusedCredentials(CvatError):
    """CVAT refused the credentials."""

    code = "cvat-unauthorized"
    exit_code = EXIT_REFUSED


class CvatForbidden(CvatError):
    """CVAT does not allow this with these credentials."""

    code = "cvat-forbidden"
    exit_code = EXIT_REFUSED


class CvatNotFound(CvatError):
    """CVAT does not know this."""

    code = "cvat-not-found"


class CvatRejected(CvatError):
    """CVAT rejected the call."""

    code = "cvat-rejected"
    status = 422


class CvatTooOld(CvatError):
    """The server is not supported."""

    code = "cvat-too-old"


# --- Errors by their codes ---------------------------------------------------------------------


def kind_of_error(code: str) -> type[PoolError] | None:
    """The class with a ``code``, as a row or a problem document has it; None: there is none."""
    waiting: list[type[PoolError]] = [PoolError]
    while waiting:
        kind = waiting.pop(0)
        if kind.code == code:
            return kind
        waiting.extend(kind.__subclasses__())
    return None
