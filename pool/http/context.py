"""What a call comes with: the app's state, and what its caller says in headers.

Routes ask for these by plain calls: with FastAPI's ``Depends`` a hand-out over HTTP takes 750
Python calls in place of 650.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from fastapi import Request

from pool.config.arguments import check_key
from pool.errors import InputError
from pool.http.live import Live
from pool.http.shutdown import Shutdown
from pool.http.uploads import Uploads
from pool.http.waiting import Waiting
from pool.http.workers import Workers
from pool.observability.observation import Observation
from pool.requests.dispatcher import Dispatcher
from pool.taskpool import TaskPool
from pool.tracking.webhook_receiver import WebhookReceiver

PREFER: Final = "Prefer"
PREFERENCE_APPLIED: Final = "Preference-Applied"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
RETRY_AFTER: Final = "Retry-After"

#: Seconds for which one answer waits at most.
LONGEST_WAIT: Final = 60

#: ``Prefer: wait=10`` among other preferences (RFC 7240, sections 2 and 4.3).
_WAIT: Final = re.compile(
    r"""\s*wait\s*=\s*(?P<quote>"?)(?P<seconds>\d{1,9})(?P=quote)\s*(;.*)?""", re.I
)


@dataclass(frozen=True, kw_only=True)
class AppState:
    """The parts of one daemon that its routes work on, as ``app.state.parts``."""

    pool: TaskPool
    workers: Workers
    waiting: Waiting
    uploads: Uploads
    live: Live
    observation: Observation
    receiver: WebhookReceiver
    dispatch: Dispatcher
    shutdown: Shutdown
    #: Leases whose callers wait for a task.
    waiting_leases: set[str] = field(default_factory=set)

    @property
    def receive_timeout(self) -> float:
        """Seconds for which a body may make no progress."""
        return self.pool.settings.daemon.receive_timeout

    def close(self) -> None:
        """Begin nothing more; what is under way ends by itself."""
        self.workers.close()


def state_of(request: Request) -> AppState:
    """Return the parts of the daemon that is called."""
    state: AppState = request.app.state.parts
    return state


def wait_of(request: Request) -> int | None:
    """Return the seconds that the answer may wait, at most :data:`LONGEST_WAIT`; None where the
    caller does not say. A preference that cannot be read is none (RFC 7240, section 2)."""
    for line in request.headers.getlist(PREFER):
        for preference in line.split(","):
            if match := _WAIT.fullmatch(preference):
                return min(int(match["seconds"]), LONGEST_WAIT)
    return None


def key_of(request: Request) -> str | None:
    """Return the caller's idempotency key, if it gave one.

    :raises InputError: it is no key, or there are two.
    """
    keys = request.headers.getlist(IDEMPOTENCY_KEY)
    if len(keys) > 1:
        raise InputError(f"{IDEMPOTENCY_KEY} is given twice")
    return check_key(keys[0]) if keys else None


def applied(wait: int | None) -> dict[str, str]:
    """Return the header that says that a wait was honoured."""
    return {} if wait is None else {PREFERENCE_APPLIED: f"wait={wait}"}
