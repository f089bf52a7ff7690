"""The parts of a daemon that its routes work on.

Routes ask for them by plain calls: with FastAPI's ``Depends`` a hand-out over HTTP takes 750
Python calls in place of 650.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from pool.http.events import Broadcaster
from pool.http.shutdown import Shutdown
from pool.http.uploads import Uploads
from pool.http.waiting import Waiting
from pool.http.workers import Workers
from pool.observability.observation import Observation
from pool.requests.dispatcher import Dispatcher
from pool.taskpool import TaskPool
from pool.tracking.webhook_receiver import WebhookReceiver


@dataclass(frozen=True, kw_only=True)
class AppState:
    """The parts of one daemon that its routes work on, as ``app.state.parts``."""

    pool: TaskPool
    workers: Workers
    waiting: Waiting
    uploads: Uploads
    broadcaster: Broadcaster
    observation: Observation
    receiver: WebhookReceiver
    dispatcher: Dispatcher
    shutdown: Shutdown
    #: Leases whose callers wait for a task.
    waiting_leases: set[str] = field(default_factory=set)

    @property
    def receive_timeout(self) -> float:
        """Seconds for which a body may make no progress."""
        return self.pool.settings.daemon.receive_timeout


def state_of(request: Request) -> AppState:
    """Return the parts of the daemon that is called."""
    state: AppState = request.app.state.parts
    return state
