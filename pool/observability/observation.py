"""The observability of one daemon: metrics, history, health.

The gauges are collected here, at each scrape: from the store, and from the parts of the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pool.errors import CvatError, StoreError
from pool.events.sinks import Sinks, SinkState
from pool.maintenance.scheduler import Scheduler, ServiceRecord
from pool.maintenance.term import Term
from pool.model import ConfigRecord
from pool.observability.health import Health, ServerContact
from pool.observability.history import History
from pool.observability.metrics import PREFIX, Metrics
from pool.observability.status import read_status
from pool.process import Process
from pool.requests.breaker import server_is_open
from pool.status import Status, TemplateStatus, WaitReason

#: Seconds after which CVAT is asked for a sign of life by a daemon that has had no other.
ANSWER_EVERY: Final = 600.0


class Observation(Collector):
    """Metrics, history and health of one process.

    The daemon sets ``scheduler``, and says when a term of maintenance begins and ends; the app sets
    ``listeners``, which returns the number of clients with a stream of events.
    """

    def __init__(
        self, process: Process, *, configuration: Callable[[], ConfigRecord | None] = lambda: None
    ) -> None:
        """``configuration`` returns the one that this process has in force."""
        self._process = process
        self._contact = ServerContact(clock=process.clock)
        self.scheduler: Scheduler | None = None
        self.sinks: Sinks | None = None
        self._term: Term | None = None
        self._term_scheduler: Scheduler | None = None
        self.listeners: Callable[[], int] = lambda: 0
        self.metrics = Metrics()
        self.history = History(process.store, self.status, clock=process.clock)
        self.health = Health(
            process.store,
            self._contact,
            self._schedulers,
            process.templates,
            configuration,
            owner=process.owner,
            clock=process.clock,
        )
        process.tracker.listen(self.metrics.finished)
        self.metrics.add(self)

    def called(self, operation: str, seconds: float, result: str) -> None:
        """Record a call to CVAT; see :data:`pool.cvat.OnCall`."""
        self.metrics.call(operation, seconds, result)
        self._contact.call(result)

    def begin_maintenance(self, term: Term, scheduler: Scheduler, sinks: Sinks) -> None:
        """Show the services of a term, too."""
        self._term, self._term_scheduler, self.sinks = term, scheduler, sinks

    def end_maintenance(self, term: Term) -> None:
        """Show the services of a term no more."""
        if self._term is term:
            self._term = self._term_scheduler = self.sinks = None

    def keep_contact(self) -> None:
        """Find out whether CVAT answers this process, where no other call has shown that lately.
        A hold has tries of its own."""
        process, ago = self._process, self._contact.answered_ago
        if server_is_open(process.store, now=process.clock.now()):
            return
        fine = not self._contact.lost and not self._contact.refused
        if process.breaker.cut_off:
            # Where it answers, this process goes on at once.
            process.breaker.ask()
        elif not fine or ago is None or ago >= ANSWER_EVERY:
            with suppress(CvatError):
                process.cvat().tasks([0])

    def _schedulers(self) -> list[Scheduler]:
        return [each for each in (self.scheduler, self._term_scheduler) if each is not None]

    def status(self) -> Status:
        """Return the status of the pool, with the templates in force."""
        process = self._process
        return read_status(
            process.store, process.settings, process.templates, now=process.clock.now()
        )

    def describe(self) -> Iterable[Metric]:
        # Registering must not read the store just for the names.
        return ()

    def _present_term(self) -> int:
        present = self._process.store.present_term(now=self._process.clock.now())
        return present.term if present else 0

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges as they are now."""
        store, feed, spool = self._process.store, self._process.feed, self._process.spool
        yield from _of_services(
            {name: each for one in self._schedulers() for name, each in one.records.items()}
        )
        term = self._term
        yield _gauge("maintains", "Whether this daemon maintains the store.", term is not None)
        yield _gauge("event_listeners", "Clients that have a stream of events.", self.listeners())
        try:
            metrics = [
                *_of_status(self.status(), now=self._process.clock.now()),
                _gauge(
                    "term", "The term of maintenance of the store; 0: none.", self._present_term()
                ),
                *_of_sinks(self.sinks.states() if self.sinks else ()),
                _gauge(
                    "unseen_events",
                    "Events that this daemon has not read yet.",
                    max(0, store.last_event_id() - feed.cursor),
                ),
                _gauge("spool_bytes", "Bytes in the spool.", spool.room.used),
            ]
        except StoreError:
            metrics = []
        yield _gauge("store_readable", "Whether the store can be read.", bool(metrics))
        yield from metrics


def _of_status(status: Status, *, now: float) -> Iterator[Metric]:
    yield _gauge(
        "maintained", "Whether a daemon maintains the store.", status.maintainer is not None
    )
    yield _gauge("daemons", "Daemons that are at work on the store.", len(status.daemons))
    yield _gauge(
        "daemons_cut_off",
        "Daemons that CVAT does not answer, while it answers others.",
        sum(each.cut_off for each in status.daemons),
    )
    yield _gauge(
        "requests_in_flight", "Requests that are uploading or importing.", status.in_flight
    )
    yield _gauge(
        "import_places_used",
        "Imports under way of requests that may share a task.",
        status.places_used,
    )
    yield _gauge(
        "server_held",
        "Whether nothing is created because CVAT cannot be reached or is too busy.",
        status.held_since is not None,
    )
    if status.config_loaded_at is not None:
        yield _gauge(
            "config_last_reload_successful",
            "Whether the last reload of the configuration succeeded.",
            status.config_rejected_at is None,
        )
        yield _gauge(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read.",
            status.config_loaded_at.timestamp(),
        )
        yield _gauge(
            "config_restart_needed",
            "Whether the configuration has changes that need a restart.",
            bool(status.config_restart),
        )
    levels = GaugeMetricFamily(f"{PREFIX}tasks", "Tasks by state.", labels=("template", "state"))
    hand_outs = CounterMetricFamily(
        f"{PREFIX}hand_outs",
        "Hand-outs since the store was made.",
        labels=("template", "outcome"),
    )
    for each in status.templates:
        for state in ("warm", "creating", "leased", "importing", "deleting"):
            levels.add_metric((each.name, state), getattr(each, state))
        for outcome, count in (("hit", each.hits), ("wait", each.waits), ("cold", each.colds)):
            hand_outs.add_metric((each.name, outcome), count)
    yield levels
    yield hand_outs
    held = GaugeMetricFamily(
        f"{PREFIX}template_held",
        "Whether nothing is created or sent for the template; code says why.",
        labels=("template", "code"),
    )
    for each in status.templates:
        held.add_metric((each.name, each.hold_code), each.held_since is not None)
    yield held
    oldest = GaugeMetricFamily(
        f"{PREFIX}oldest_waiting_seconds",
        "For how long the request or the caller has waited that waits the longest; 0: none does.",
        labels=("template",),
    )
    for each in status.templates:
        since = each.oldest_waiting_since
        oldest.add_metric((each.name,), max(0.0, now - since.timestamp()) if since else 0.0)
    yield oldest
    waiting = GaugeMetricFamily(
        f"{PREFIX}requests_waiting",
        "Requests that are queued, by what they wait for now.",
        labels=("template", "reason"),
    )
    levels_of = GaugeMetricFamily(
        f"{PREFIX}requests_queued_by_priority",
        "Requests that are queued, by priority.",
        labels=("template", "priority"),
    )
    for each in status.templates:
        for reason in WaitReason:
            if reason is not WaitReason.NOTHING:
                count = each.queued if each.waits_for is reason else 0
                waiting.add_metric((each.name, reason.value), count)
        normal = each.queued - each.queued_interactive - each.queued_bulk
        levels_of.add_metric((each.name, "interactive"), each.queued_interactive)
        levels_of.add_metric((each.name, "normal"), normal)
        levels_of.add_metric((each.name, "bulk"), each.queued_bulk)
    yield waiting
    yield levels_of
    for name, what, value in _OF_TEMPLATE:
        gauge = GaugeMetricFamily(f"{PREFIX}{name}", what, labels=("template",))
        for each in status.templates:
            gauge.add_metric((each.name,), float(value(each)))
        yield gauge


#: The gauges of each template.
_OF_TEMPLATE: Final[tuple[tuple[str, str, Callable[[TemplateStatus], float]], ...]] = (
    ("target_tasks", "The number of tasks, or of slots, to keep warm.", lambda each: each.target),
    (
        "carriers",
        "Tasks whose jobs are slots, as long as any of these is warm or leased.",
        lambda each: each.carriers,
    ),
    ("slots_filled", "Slots of these tasks that hold data.", lambda each: each.slots_filled),
    ("slots_retired", "Slots of these tasks that never will.", lambda each: each.slots_retired),
    (
        "lead_time_seconds",
        "Time that a create takes, from which the target is computed.",
        lambda each: each.lead_time,
    ),
    (
        "leases_waiting",
        "Callers that wait for a task and have no request queued.",
        lambda each: each.waiting,
    ),
    ("requests_queued", "Requests that are queued.", lambda each: each.queued),
    (
        "import_places",
        "Imports that may be under way of requests that may share a task; 0: they do not share.",
        lambda each: each.places,
    ),
    (
        "template_paused",
        "Whether the template is paused.",
        lambda each: each.paused_since is not None,
    ),
)


def _of_services(services: Mapping[str, ServiceRecord]) -> Iterator[Metric]:
    success = GaugeMetricFamily(
        f"{PREFIX}service_last_success_timestamp_seconds",
        "When a service last ran without an error.",
        labels=("service",),
    )
    for name, record in services.items():
        if record.last_success is not None:
            success.add_metric((name,), record.last_success)
    yield success
    for name, what, value in _OF_SERVICE:
        counter = CounterMetricFamily(f"{PREFIX}{name}", what, labels=("service",))
        for service, record in services.items():
            counter.add_metric((service,), value(record))
        yield counter


_OF_SERVICE: Final[tuple[tuple[str, str, Callable[[ServiceRecord], float]], ...]] = (
    ("service_runs", "Runs without an error.", lambda record: record.runs),
    ("service_errors", "Runs that ended with an error.", lambda record: record.errors),
    ("service_missed", "Runs that could not begin in time.", lambda record: record.missed),
    (
        "service_blocked",
        "Runs that were due while the one before took longer than its interval.",
        lambda record: record.blocked,
    ),
)


def _of_sinks(sinks: Sequence[SinkState]) -> Iterator[Metric]:
    for name, what, value in _OF_SINK:
        family = CounterMetricFamily if name in _SINK_COUNTERS else GaugeMetricFamily
        metric = family(f"{PREFIX}{name}", what, labels=("sink",))
        for sink in sinks:
            metric.add_metric((sink.name,), float(value(sink)))
        yield metric


_OF_SINK: Final[tuple[tuple[str, str, Callable[[SinkState], float]], ...]] = (
    (
        "sink_backlog_events",
        "Events after the last one that a sink has handled.",
        lambda sink: sink.backlog,
    ),
    (
        "sink_lag_seconds",
        "Age of the delivery being tried; 0 if there is none.",
        lambda sink: sink.lag,
    ),
    (
        "sink_gone",
        "Whether a sink has answered 410 Gone, and gets no more deliveries.",
        lambda sink: sink.gone,
    ),
    ("sink_deliveries", "Deliveries that a sink has accepted.", lambda sink: sink.delivered),
    ("sink_failed_tries", "Delivery attempts that failed.", lambda sink: sink.failed_tries),
    ("sink_given_up", "Deliveries that were abandoned.", lambda sink: sink.given_up),
)
_SINK_COUNTERS: Final = frozenset({"sink_deliveries", "sink_failed_tries", "sink_given_up"})


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", what, value=float(value))
