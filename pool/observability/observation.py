"""What one daemon shows of itself: its metrics, the last hour, and whether it is ready."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pool.events.sinks import Sinks
from pool.maintenance.scheduler import Scheduler
from pool.model import Status
from pool.observability.health import Health, ServerContact
from pool.observability.history import History
from pool.observability.metrics import Metrics, Sources
from pool.observability.status import read_status
from pool.process import Process


class Observation:
    """The parts that look at one process. ``metrics`` and ``contact`` are those that its calls to
    the server are reported to.

    The daemon sets ``scheduler`` and ``sinks`` when a term begins, and the app ``listeners``, which
    returns how many clients have a stream of events.
    """

    def __init__(
        self,
        process: Process,
        *,
        metrics: Metrics | None = None,
        contact: ServerContact | None = None,
    ) -> None:
        self._engine = process
        self.scheduler: Scheduler | None = None
        self.sinks: Sinks | None = None
        self.listeners: Callable[[], int] = lambda: 0
        self.metrics = metrics or Metrics()
        self.history = History(process.store, self.status, clock=process.clock)
        self.health = Health(
            process.store,
            contact or ServerContact(clock=process.clock),
            lambda: self.scheduler,
            process.templates,
            owner=process.owner,
            clock=process.clock,
        )
        process.tracker.listen(self.metrics.finished)
        self.metrics.read_from(
            Sources(
                status=self.status,
                services=lambda: self.scheduler.records if self.scheduler else {},
                sinks=lambda: self.sinks.states() if self.sinks else (),
                unseen_events=self._unseen_events,
                spool_bytes=lambda: process.spool.used,
                listeners=lambda: self.listeners(),
            )
        )

    def status(self) -> Status:
        """Return the present state of the pool, by the templates in force."""
        process = self._engine
        in_force = replace(process.settings, templates=dict(process.templates))
        return read_status(process.store, in_force, now=process.clock.now())

    def _unseen_events(self) -> int:
        return max(0, self._engine.store.last_event_id() - self._engine.feed.cursor)
