"""All failures, one class each; a class's docstring is its message.

Each has an ``exit_code`` for the command line, a ``status`` for HTTP, and a ``code``, a stable name
for programs. ``str(error)`` is one line that says what is wrong and, where a person can do
something about it, what to do.
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

    def __init__(self, detail: str = "", *, retry_after: float | None = None) -> None:
        self.detail = detail
        #: Seconds after which the same may succeed (``Retry-After``), or None.
        self.retry_after = retry_after
        #: Of a failed upload: data may have reached the task; the import was never asked for.
        self.task_touched = False
        self.import_not_begun = False
        super().__init__(detail)

    @property
    def title(self) -> str:
        """The first line of the class's docstring, without its full stop."""
        return (type(self).__doc__ or "").strip().splitlines()[0].rstrip(".")

    def __str__(self) -> str:
        detail = " ".join(self.detail.split())
        return f"{self.title}: {detail}" if detail else f"{self.title}."


# --- What callers ask for -----------------------------------------------------------------


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


class UnknownStream(InputError):
    """No stream of that name is open."""

    code = "unknown-stream"
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


class NotAllowed(Forbidden):
    """The token does not allow this."""

    code = "not-allowed"


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


class SpoolFull(QueueFull):
    """The data of the requests that wait takes up all the room there is for it."""

    # Not 507, which forbids automatic retries (RFC 4918, section 11.5): the spool empties as the
    # requests are served, and then the same call succeeds.
    code = "spool-full"


class DataGone(PoolError):
    """The data that was kept for the request cannot be found any more."""

    code = "data-gone"


class Stopping(PoolError):
    """The daemon is stopping; ask again in a moment."""

    code = "stopping"
    status = 503


class TermLost(PoolError):
    """This process does not maintain the store any more."""

    code = "term-lost"
    status = 503


class RequestCancelled(PoolError):
    """The request was cancelled."""

    code = "cancelled"
    status = 409


class PoolUnreachable(PoolError):
    """No pool answers."""

    code = "pool-unreachable"
    status = 502


# --- The store ---------------------------------------------------------------------------------


class StoreError(PoolError):
    """The store cannot be used."""

    code = "store"
    status = 503

    #: Whether all may be written even so: the answer to the commit was lost.
    in_doubt = False


class StoreOutdated(StoreError):
    """A newer version has changed the store, and this one cannot use it any more."""


# --- Slots -------------------------------------------------------------------------------------


class SlotStorageUnavailable(PoolError):
    """The storage of slots cannot be used."""

    code = "slot-storage"
    status = 503


# --- Imports -----------------------------------------------------------------------------------


class ImportFailed(PoolError):
    """CVAT could not import the data."""

    code = "import-failed"
    status = 422


class ImportLost(ImportFailed):
    """CVAT lost the import."""

    # The code of ImportFailed: only a process that still has the data tells the two apart.


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


# --- CVAT's answers ----------------------------------------------------------------------------


class CvatError(PoolError):
    """CVAT answered with an error."""

    code = "cvat"
    status = 502

    def __init__(
        self,
        detail: str = "",
        *,
        http_status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        #: The status of CVAT's answer; None when there was none.
        self.http_status = http_status
        super().__init__(detail, retry_after=retry_after)


class CvatUnreachable(CvatError):
    """CVAT cannot be reached."""

    code = "cvat-unreachable"


class CvatAmbiguous(CvatUnreachable):
    """The connection to CVAT was lost after the call was sent, so its outcome is unknown."""

    code = "cvat-ambiguous"


class CvatBusy(CvatError):
    """CVAT is overloaded or failing."""

    code = "cvat-busy"


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
    """Return the class with a ``code``, as rows and problem documents have it, or None."""
    kinds: list[type[PoolError]] = [PoolError]
    for kind in kinds:
        if kind.code == code:
            return kind
        kinds.extend(kind.__subclasses__())
    return None
