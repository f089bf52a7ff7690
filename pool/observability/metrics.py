"""Metrics for Prometheus, named as https://prometheus.io/docs/practices/naming/ says.

Counters and histograms are fed by events, so they cover all processes on the store since this
daemon started; :mod:`pool.observability.observation` has the gauges. Labels are names from the
configuration and constants: never ids, and nothing that a caller chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pool.errors import PoolError, kind_of_error
from pool.maintenance.reconcile import ReconcileReport
from pool.maintenance.reconcile_rules import Action
from pool.model import Event
from pool.tracking.tracker import Finished
from pool.version import VERSION

#: The prefix of all names.
PREFIX: Final = "cvat_pool_"
#: Bounds of the buckets, in seconds.
HAND_OUT_BUCKETS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
REQUEST_BUCKETS: Final = (
    *(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2.5, 5),
    *(10, 30, 60, 300, 600),
)
CALL_BUCKETS: Final = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ANSWER_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10, 60)
GROUP_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
POLL_BUCKETS: Final = (0, 1, 2, 3, 4, 5, 7, 10, 20, 50, 100)


class Metrics:
    """All metrics of one daemon. Thread-safe."""

    def __init__(self) -> None:
        # Creation times would double the number of series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        build = Info(f"{PREFIX}build", "The version that is running.", registry=self._registry)
        build.info({"version": VERSION})
        self._hand_outs = self._histogram(
            "hand_out_seconds",
            "Time from the call for a task to its hand-out; close to 0 for a hit.",
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
            "The pool's part of request_seconds: waiting for a task, and the upload.",
            ("template",),
            REQUEST_BUCKETS,
        )
        self._server_share = self._histogram(
            "request_server_seconds",
            "CVAT's part of request_seconds: the import, noticing its end, and failed tries.",
            ("template",),
            REQUEST_BUCKETS,
        )
        self._held_share = self._histogram(
            "request_held_seconds",
            "The part of request_seconds while CVAT or the template was held, as in an outage.",
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
            "Polls for each import that this process tracked.",
            (),
            POLL_BUCKETS,
        )
        self._groups = self._histogram(
            "import_requests",
            "Requests of each import that this process tracked to its end.",
            (),
            GROUP_BUCKETS,
        )
        self._calls = self._counter(
            "cvat_calls", "Calls to CVAT, by result.", ("operation", "result")
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
            "Repairs by reconciliation; adopt and delete are those of orphans, which are leaks.",
            ("action",),
        )
        for action in _ACTIONS.values():
            self._reconciled.labels(action)

    def add(self, collector: Collector) -> None:
        """Add a collector, which is read at each scrape."""
        self._registry.register(collector)

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Return all metrics in the format that the Accept header asks for, and its media type."""
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    # --- Counting ---------------------------------------------------------------------------

    def take(self, events: Sequence[Event]) -> None:
        """Count events."""
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
        if event.server_seconds is not None and event.held_seconds is not None:
            own = seconds - event.server_seconds - event.held_seconds
            self._server_share.labels(event.template).observe(event.server_seconds)
            self._held_share.labels(event.template).observe(event.held_seconds)
            self._own_share.labels(event.template).observe(max(0.0, own))

    def finished(self, finished: Finished) -> None:
        """Count the polls and the requests of an import that this process tracked."""
        self._polls.observe(finished.polls)
        if finished.requests and not finished.code:
            self._groups.observe(finished.requests)

    def call(self, operation: str, seconds: float, result: str) -> None:
        """Count a call to CVAT; see :data:`pool.cvat.OnCall`."""
        self._calls.labels(operation, result).inc()
        self._call_seconds.labels(operation).observe(seconds)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer over HTTP. ``route`` is the route's pattern, not the path."""
        # Callers may make up other methods.
        method = method if method in _METHODS else "other"
        self._answers.labels(method, route, str(status)).observe(seconds)

    def reconciled(self, report: ReconcileReport) -> None:
        """Count repairs."""
        for action, times in report.done.items():
            self._reconciled.labels(_ACTIONS[action]).inc(times)

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


def _known(code: str) -> str:
    """Return a code as a label; rows of an older version may have an unknown one."""
    return code if kind_of_error(code) is not None else PoolError.code
