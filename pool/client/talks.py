"""Every talk with a daemon: what to send next, and what the answers come to. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pool.client.answers import (
    SeenLease,
    SeenRequest,
    drained_in,
    error_in,
    lease_in,
    not_a_pool,
    request_in,
    status_in,
)
from pool.client.body import FilesBody
from pool.client.events import Following
from pool.client.retries import Retries
from pool.client.steps import Answer, Call, Pause, Talk
from pool.clock import Clock
from pool.config.arguments import (
    check_assignee,
    check_id,
    check_key,
    check_prewarm,
    check_task_name,
    check_template,
    check_timeout,
    check_ttl,
)
from pool.cvat.records import Upload
from pool.errors import LeaseEnded, UnknownLease, UnknownRequest, WaitTimeout
from pool.handles import error_of
from pool.model import Job, LeaseState, RequestState

if TYPE_CHECKING:
    from pool.model import Status

T = TypeVar("T")

#: Seconds of one long poll: well below the minute after which proxies take a silent connection
#: for dead, and after which the daemon answers anyway.
LONGEST_POLL: Final = 30.0
#: Seconds that the daemon may take to create a task when a pool is empty, beside what the caller
#: wants to wait.
COLD: Final = 120.0
#: Seconds until the first further look when a long poll has ended early, or less than a second is
#: left; doubled for each further one, up to the longest.
FIRST_LOOK: Final = 0.05
LONGEST_LOOK: Final = 1.0
#: Seconds for which a lost call of a wait is tried again even if the wait is nearly over.
LEAST_PATIENCE: Final = 1.0
#: Bytes a second of the slowest disk that the daemon writes an upload to, and the seconds at most
#: that this adds to the time-out.
_SLOWEST: Final = 2**20
_LONGEST_PATIENCE: Final = 600.0


class Talks:
    """The talks of one client with one daemon."""

    def __init__(self, retries: Retries, *, clock: Clock) -> None:
        self._retries = retries
        self._clock = clock

    # --- Leases -----------------------------------------------------------------------------------

    def acquire(
        self, template: str, *, timeout: float | None, ttl: float | None, key: str | None
    ) -> Talk[SeenLease]:
        """A task for the caller alone."""
        timeout = check_timeout(timeout)
        wanted = {"template": check_template(template), "timeout": timeout, "ttl": check_ttl(ttl)}
        call = Call(
            method="POST",
            path="/v1/leases",
            headers=_keyed(key),
            json={name: value for name, value in wanted.items() if value is not None},
            patience=COLD + (timeout or 0.0),
        )
        return lease_in((yield from self._granted(call)))

    def lease(self, lease_id: str) -> Talk[SeenLease]:
        """A lease by its id."""
        return lease_in((yield from self._granted(_look(_lease_path(lease_id)))))

    def release(self, lease_id: str) -> Talk[None]:
        """Give a lease back; one whose first try was lost after it had worked is back, too."""
        call = Call(method="DELETE", path=_lease_path(lease_id))
        answer = yield from self._retries.insist(call)
        if answer.status < 300:
            return
        error = error_in(answer)
        if isinstance(error, LeaseEnded) and answer.doubted:
            lease = yield from self.lease(lease_id)
            if lease.state is LeaseState.RELEASED:
                return
        raise error

    def jobs_of_lease(self, lease_id: str, timeout: float | None) -> Talk[list[Job]]:
        """The jobs in the task of a lease, waited for."""

        def found(answer: Answer) -> list[Job] | None:
            lease = lease_in(answer)
            if lease.jobs is not None:
                return list(lease.jobs)
            if lease.error is not None:
                raise lease.error
            if lease.state not in (LeaseState.ACTIVE, LeaseState.USED):
                raise LeaseEnded(f"lease {lease_id} is {lease.state.value}")
            return None

        return (yield from self._poll(_lease_path(lease_id), found, timeout, f"lease {lease_id}"))

    # --- Requests ---------------------------------------------------------------------------------

    def submit(
        self,
        fields: Mapping[str, Any],
        upload: Upload,
        body: FilesBody | None,
        *,
        key: str | None,
        timeout: float | None = None,
    ) -> Talk[SeenRequest]:
        """Give data to the pool: the files in ``body``, or else what ``upload`` names elsewhere.

        No try is made any more after ``timeout`` seconds.
        """
        call = Call(
            method="POST",
            path="/v1/requests",
            headers=_keyed(key),
            json=None if body is not None else {**fields, **_sources(upload)},
            body=body,
            patience=min(upload.size / _SLOWEST, _LONGEST_PATIENCE),
        )
        return request_in((yield from self._granted(call, until=self._end(timeout))))

    def request(self, request_id: str) -> Talk[SeenRequest]:
        """A request by its id."""
        return request_in((yield from self._granted(_look(_request_path(request_id)))))

    def cancel(self, request_id: str) -> Talk[bool]:
        """Cancel a request that is still queued; False when it is too late."""
        call = Call(method="DELETE", path=_request_path(request_id))
        answer = yield from self._retries.insist(call)
        if answer.status < 300:
            return True
        if answer.status != 409:
            raise error_in(answer)
        if answer.doubted:
            request = yield from self.request(request_id)
            return request.state is RequestState.CANCELLED
        return False

    def end_of_request(self, request_id: str, timeout: float | None) -> Talk[SeenRequest]:
        """A request that has its jobs, waited for."""

        def found(answer: Answer) -> SeenRequest | None:
            request = request_in(answer)
            if request.state is RequestState.READY and request.jobs is not None:
                return request
            if request.state in (RequestState.FAILED, RequestState.CANCELLED):
                raise error_of(request)
            return None

        path = _request_path(request_id)
        return (yield from self._poll(path, found, timeout, f"request {request_id}"))

    # --- Control ----------------------------------------------------------------------------------

    def status(self) -> Talk[Status]:
        """Levels, demand and troubles of all templates."""
        return status_in((yield from self._granted(_look("/v1/templates"))))

    def drain(self, template: str) -> Talk[int]:
        """Drain a template; of a try that was lost after it had worked, the tasks are not
        counted."""
        return drained_in((yield from self.control(template, "drain")))

    def prewarm(self, template: str, count: int, duration: float) -> Talk[Answer]:
        """Ask for more warm tasks for a while."""
        count, seconds = check_prewarm(count, duration)
        return (yield from self.control(template, "prewarm", count=count, seconds=seconds))

    def control(self, template: str | None, what: str, **told: float) -> Talk[Answer]:
        """Pause, resume, drain or prewarm a template, or resume all; each may be said twice."""
        every = template is None and what == "resume"
        whose = "" if every else f"{check_template(template)}/"
        call = Call(method="POST", path=f"/v1/templates/{whose}{what}", json=told or None)
        return (yield from self._granted(call))

    # --- Events -----------------------------------------------------------------------------------

    def listen(self, following: Following) -> Talk[Answer]:
        """Ask for the events from where ``following`` stands."""
        answer = yield from self._granted(following.call())
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise not_a_pool(answer)
        return answer

    def rest(self) -> Talk[None]:
        """Wait a moment before a stream that ended is asked for again."""
        yield Pause(FIRST_LOOK)

    # --- Inside -----------------------------------------------------------------------------------

    def _granted(self, call: Call, *, until: float | None = None) -> Talk[Answer]:
        """The answer to a call; one that is refused raises its error."""
        answer = yield from self._retries.insist(call, until=until)
        if answer.status >= 300:
            raise error_in(answer)
        return answer

    def _poll(
        self, path: str, found: Callable[[Answer], T | None], timeout: float | None, what: str
    ) -> Talk[T]:
        """What is found in one of the answers, asked for in long polls.

        A daemon that ends them early, since it is being restarted, is asked again.
        """
        end = self._end(timeout)
        look = FIRST_LOOK
        while True:
            began = self._clock.monotonic()
            left = LONGEST_POLL if end is None else max(0.0, end - began)
            call = _look(path, wait=int(min(LONGEST_POLL, left)))
            until = None if end is None else max(end, began + LEAST_PATIENCE)
            result = found((yield from self._granted(call, until=until)))
            if result is not None:
                return result
            now = self._clock.monotonic()
            if end is not None and now >= end:
                raise WaitTimeout(what)
            if now - began < max(call.patience, look):
                yield Pause(look if end is None else min(look, end - now))
                look = min(LONGEST_LOOK, 2 * look)

    def _end(self, timeout: float | None) -> float | None:
        timeout = check_timeout(timeout)
        return None if timeout is None else self._clock.monotonic() + timeout


def fields_of(
    upload: Upload,
    *,
    template: str,
    lease_id: str | None = None,
    name: str | None = None,
    assignee: int | None = None,
) -> dict[str, Any]:
    """What is told with the data of a request, by the API's names.

    :raises InputError: the name or the assignee cannot be used.
    """
    told = {
        "template": check_template(template),
        "lease_id": lease_id,
        "params": upload.extra or None,
        "name": check_task_name(name),
        "assignee": check_assignee(assignee),
    }
    return {field: value for field, value in told.items() if value is not None}


def _sources(upload: Upload) -> dict[str, Any]:
    if upload.cloud is not None:
        return {"cloud": {"storage_id": upload.cloud[0], "keys": list(upload.cloud[1])}}
    return {"share": list(upload.share)} if upload.share else {"urls": list(upload.urls)}


def _look(path: str, *, wait: int = 0) -> Call:
    # RFC 7240, section 4.3: whole seconds.
    headers = {"Prefer": f"wait={wait}"} if wait else {}
    return Call(method="GET", path=path, headers=headers, patience=float(wait))


def _keyed(key: str | None) -> dict[str, str]:
    """A call with its caller's key, or one made up: two tries of one call are then told from two
    calls."""
    key = check_key(key) or secrets.token_hex(16)
    return {"Idempotency-Key": key}


def _lease_path(lease_id: str) -> str:
    return f"/v1/leases/{check_id(lease_id, UnknownLease)}"


def _request_path(request_id: str) -> str:
    return f"/v1/requests/{check_id(request_id, UnknownRequest)}"
