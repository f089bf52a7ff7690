"""What a daemon tells of itself, and to whom: metrics, history, readiness, and the sinks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pool.errors import StoreError
from pool.events.sinks import Sinks
from pool.logs import get_logger
from pool.maintenance.scheduler import Scheduler
from pool.model import Job, RequestRecord, Status
from pool.observability.health import Health, ServerContact
from pool.observability.history import History
from pool.observability.metrics import Metrics, Sources
from pool.observability.status import read_status
from pool.process import Engine

log = get_logger(__name__)


class Observation:
    """The parts that look at one engine. Nothing runs before :meth:`begin`.

    ``describe`` makes the document of a request and its jobs that sinks are sent. ``metrics`` and
    ``contact`` are those that hear of the engine's calls to the server.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        describe: Callable[[RequestRecord, Sequence[Job]], Mapping[str, Any]],
        metrics: Metrics | None = None,
        contact: ServerContact | None = None,
    ) -> None:
        self._engine = engine
        self._make_document = describe
        self._scheduler: Scheduler | None = None
        self._guard = threading.Lock()
        self._wanted = False
        self._unwatch: Callable[[], None] | None = None
        #: How many clients are told of events; the app says how.
        self.listeners: Callable[[], int] = lambda: 0
        self.metrics = metrics or Metrics()
        self.history = History(engine.store, self.status, clock=engine.clock)
        self.health = Health(
            engine.store,
            contact or ServerContact(clock=engine.clock),
            lambda: self._scheduler,
            engine.templates,
            owner=engine.owner,
            clock=engine.clock,
        )
        self.sinks = Sinks(
            engine.settings.events, engine.store, engine.feed, self._describe, clock=engine.clock
        )
        engine.tracker.listen(self.metrics.finished)
        self.metrics.read_from(
            Sources(
                status=self.status,
                services=lambda: self._scheduler.records if self._scheduler else {},
                sinks=self.sinks.states,
                unseen_events=self._unseen_events,
                spool_bytes=lambda: engine.spool.used,
                listeners=lambda: self.listeners(),
            )
        )

    def begin(self, scheduler: Scheduler) -> None:
        """Count what happens, sample, and tell the sinks from now on; or a little later, when the
        store cannot be used now."""
        self._scheduler = scheduler
        with self._guard:
            self._wanted = True
        try:
            self.run_once()
        except StoreError as error:
            log.warning("nobody is told of events yet", why=str(error))
        scheduler.add("history", self.history.run_once)
        scheduler.add("observe", self.run_once)

    def run_once(self) -> None:
        """Begin what has not begun yet.

        :raises StoreError: the store cannot be used; it is to be tried again.
        """
        with self._guard:
            if not self._wanted:
                return
            if self._unwatch is None:
                self._unwatch = self._engine.feed.on(self.metrics.take)
            self.sinks.start()

    def end(self, timeout: float) -> None:
        """Count and tell nothing more, until it begins again."""
        with self._guard:
            self._wanted = False
            unwatch, self._unwatch = self._unwatch, None
            if unwatch is not None:
                unwatch()
            self.sinks.stop(timeout)

    def status(self) -> Status:
        """What the pool looks like now, by the templates in force."""
        engine = self._engine
        in_force = replace(engine.settings, templates=dict(engine.templates))
        return read_status(engine.store, in_force, now=engine.clock.now())

    def _describe(self, record: RequestRecord) -> Mapping[str, Any]:
        store = self._engine.store
        jobs = store.jobs_of(record.pooled_id, request_id=record.id) if record.pooled_id else ()
        return self._make_document(record, jobs)

    def _unseen_events(self) -> int:
        return max(0, self._engine.store.last_event_id() - self._engine.feed.cursor)
