"""Metrics for Prometheus, named as https://prometheus.io/docs/practices/naming/ says.

Counters and histograms are fed by events, and so cover all processes of the store since this daemon
was started; gauges are read from the store, once for each scrape. Labels are names of the
configuration and words of ours: never ids, and nothing that a caller chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pool.errors import PoolError, StoreError, kind_of_error
from pool.events.sinks import SinkState
from pool.maintenance.reconcile import ReconcileReport
from pool.maintenance.reconcile_rules import Action
from pool.maintenance.scheduler import ServiceRecord
from pool.model import Event, Status, TemplateStatus
from pool.tracking.tracker import Finished
from pool.version import VERSION

#: Before the name of every metric of the pool's.
PREFIX: Final = "cvat_pool_"
#: Bounds of the buckets, in seconds.
HAND_OUT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
REQUEST_BUCKETS: Final = (
    *(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2.5, 5),
    *(10, 30, 60, 300, 600),
)
CALL_BUCKETS: Final = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ANSWER_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10, 60)
POLL_BUCKETS: Final = (0, 1, 2, 3, 4, 5, 7, 10, 20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the gauges are read from. Each may block, and raise what the store raises."""

    status: Callable[[], Status]
    services: Callable[[], Mapping[str, ServiceRecord]]
    sinks: Callable[[], Sequence[SinkState]]
    #: Events that are in the store and that this daemon has not looked at yet.
    unseen_events: Callable[[], int]
    spool_bytes: Callable[[], int]
    listeners: Callable[[], int]


class Metrics:
    """All metrics of one daemon. Thread-safe."""

    def __init__(self) -> None:
        # When each series was created would double the number of series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        build = InfoMetricFamily(f"{PREFIX}build", "The version that is running.")
        build.add_metric((), {"version": VERSION})
        self._registry.register(_Fixed(build))
        self._hand_outs = self._histogram(
            "hand_out_seconds",
            "Time from asking for a task to having it; next to nothing for a hit.",
            ("template", "outcome"),
            HAND_OUT_BUCKETS,
        )
        self._requests = self._histogram(
            "request_seconds",
            "Time from a request to its job ids.",
            ("template", "outcome"),
            REQUEST_BUCKETS,
        )
        self._own_share = self._histogram(
            "request_own_seconds",
            "The pool's part of it: waiting for a task, and the upload.",
            ("template",),
            REQUEST_BUCKETS,
        )
        self._server_share = self._histogram(
            "request_server_seconds",
            "CVAT's part of it: the import, and noticing its end; and being held before that.",
            ("template",),
            REQUEST_BUCKETS,
        )
        self._ends = self._counter("requests", "Requests that have ended.", ("template", "state"))
        self._failures = self._counter(
            "request_failures",
            "Requests that have failed, by the code of the error.",
            ("template", "code"),
        )
        self._polls = self._histogram(
            "request_polls",
            "Polls that each import took which this process has watched.",
            (),
            POLL_BUCKETS,
        )
        self._calls = self._counter(
            "cvat_calls", "Calls to CVAT, by what came of them.", ("operation", "result")
        )
        self._call_seconds = self._histogram(
            "cvat_call_seconds", "Time that calls to CVAT took.", ("operation",), CALL_BUCKETS
        )
        self._answers = self._histogram(
            "http_answer_seconds",
            "Time to the beginning of an answer over HTTP.",
            ("method", "route", "status"),
            ANSWER_BUCKETS,
        )
        self._reconciled = self._counter(
            "reconciled",
            "What reconciling has put right; adopt and delete are orphans, that is leaks.",
            ("action",),
        )
        for action in _ACTIONS.values():
            self._reconciled.labels(action)

    def read_from(self, sources: Sources) -> None:
        """Expose the present state as well."""
        self._registry.register(_State(sources))

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics as the Accept header asks for them, and their media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    # --- Counting ---------------------------------------------------------------------------

    def take(self, events: Sequence[Event]) -> None:
        """Count what has happened."""
        for event in events:
            match event.kind:
                case "lease.handed_out":
                    self._hand_outs.labels(event.template, event.outcome or "").observe(
                        event.seconds or 0.0
                    )
                case "request.ready":
                    self._take_ready(event)
                case "request.failed":
                    self._ends.labels(event.template, event.state).inc()
                    self._failures.labels(event.template, _known(event.code)).inc()
                case "request.cancelled":
                    self._ends.labels(event.template, event.state).inc()

    def _take_ready(self, event: Event) -> None:
        self._ends.labels(event.template, event.state).inc()
        seconds = event.seconds or 0.0
        self._requests.labels(event.template, event.outcome or "").observe(seconds)
        if event.server_seconds is not None:
            self._server_share.labels(event.template).observe(event.server_seconds)
            self._own_share.labels(event.template).observe(max(0.0, seconds - event.server_seconds))

    def finished(self, finished: Finished) -> None:
        """Count the polls of an import that this process has watched."""
        self._polls.observe(finished.polls)

    def call(self, operation: str, seconds: float, result: str) -> None:
        """Count a call to CVAT; see :data:`pool.cvat.OnCall`."""
        self._calls.labels(operation, result).inc()
        self._call_seconds.labels(operation).observe(seconds)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer over HTTP. ``route`` is the route's pattern, not the path."""
        self._answers.labels(_method(method), route, str(status)).observe(seconds)

    def reconciled(self, report: ReconcileReport) -> ReconcileReport:
        """Count what was put right; return the report."""
        for action, times in report.done.items():
            self._reconciled.labels(_ACTIONS[action]).inc(times)
        return report

    # --- Making -----------------------------------------------------------------------------

    def _counter(self, name: str, what: str, labels: Sequence[str]) -> Counter:
        return Counter(f"{PREFIX}{name}", what, labels, registry=self._registry)

    def _histogram(
        self, name: str, what: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Histogram:
        return Histogram(f"{PREFIX}{name}", what, labels, registry=self._registry, buckets=buckets)


_ACTIONS: Final[Mapping[Action, str]] = {
    action: action.name.lower() for action in Action if action is not Action.LEAVE
}
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _method(method: str) -> str:
    """Return a method as a label: a caller may make up others."""
    return method if method in _METHODS else "other"


def _known(code: str) -> str:
    """Return a code as a label: a row may have one of an older version."""
    return code if kind_of_error(code) is not None else PoolError.code


class _Fixed(Collector):
    """One metric that never changes."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


# --- The present state ----------------------------------------------------------------------------


class _State(Collector):
    """The present state, read once for each scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        # Nothing is read just to learn the names.
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from _of_services(self._sources.services())
        yield _gauge(
            "event_listeners", "Clients that have a stream of events.", self._sources.listeners()
        )
        try:
            metrics = [
                *_of_status(self._sources.status()),
                *_of_sinks(self._sources.sinks()),
                _gauge(
                    "unseen_events",
                    "Events that this daemon has not looked at yet.",
                    self._sources.unseen_events(),
                ),
                _gauge("spool_bytes", "Bytes in the spool.", self._sources.spool_bytes()),
            ]
        except StoreError:
            metrics = []
        yield _gauge("store_readable", "Whether the store can be read.", bool(metrics))
        yield from metrics


def _of_status(status: Status) -> Iterator[Metric]:
    yield _gauge(
        "maintained", "Whether a daemon maintains the store.", status.maintainer is not None
    )
    yield _gauge(
        "requests_in_flight", "Requests that are uploading or importing.", status.in_flight
    )
    yield _gauge(
        "server_held",
        "Whether nothing is created since CVAT cannot be reached or is too busy.",
        status.held_since is not None,
    )
    if status.config_loaded_at is not None:
        yield _gauge(
            "config_last_reload_successful",
            "Whether the configuration could be read when it was read last.",
            status.config_rejected_at is None,
        )
        yield _gauge(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration that is in force was read.",
            status.config_loaded_at.timestamp(),
        )
        yield _gauge(
            "config_restart_needed",
            "Whether the configuration has changes that only a restart follows.",
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
        "Whether nothing is created or sent for it; code says why.",
        labels=("template", "code"),
    )
    for each in status.templates:
        held.add_metric((each.name, each.hold_code), each.held_since is not None)
    yield held
    for name, what, value in _OF_TEMPLATE:
        gauge = GaugeMetricFamily(f"{PREFIX}{name}", what, labels=("template",))
        for each in status.templates:
            gauge.add_metric((each.name,), float(value(each)))
        yield gauge


#: Gauges that there are for each template.
_OF_TEMPLATE: Final[tuple[tuple[str, str, Callable[[TemplateStatus], float]], ...]] = (
    ("target_tasks", "How many tasks are to be warm.", lambda each: each.target),
    (
        "lead_time_seconds",
        "Time that a create takes, by which the target is taken.",
        lambda each: each.lead_time,
    ),
    (
        "leases_waiting",
        "Callers that wait for a task and have no request queued.",
        lambda each: each.waiting,
    ),
    ("requests_queued", "Requests that are queued.", lambda each: each.queued),
    (
        "template_paused",
        "Whether nothing is created since it was paused.",
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
        "Events after the last one that a sink has had, for it or not.",
        lambda sink: sink.backlog,
    ),
    (
        "sink_lag_seconds",
        "Age of the delivery that is being tried; 0 when there is none.",
        lambda sink: sink.lag,
    ),
    (
        "sink_gone",
        "Whether a sink has answered that it is gone, and is sent nothing more.",
        lambda sink: sink.gone,
    ),
    ("sink_deliveries", "Deliveries that a sink has accepted.", lambda sink: sink.delivered),
    ("sink_failed_tries", "Tries to deliver that failed.", lambda sink: sink.failed_tries),
    ("sink_given_up", "Deliveries that were given up.", lambda sink: sink.given_up),
)
_SINK_COUNTERS: Final = frozenset({"sink_deliveries", "sink_failed_tries", "sink_given_up"})


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{PREFIX}{name}", what, value=float(value))
