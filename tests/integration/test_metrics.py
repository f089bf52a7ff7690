"""What is measured: what happens in any process, how things stand, and that it costs little."""

from __future__ import annotations

from types import SimpleNamespace
from typing import NoReturn, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.clock import ManualClock
from support.happening import make_warm, serve

from pool.errors import StoreError
from pool.events.sinks import Sinks, SinkState
from pool.maintenance.reconcile import ReconcileReport
from pool.maintenance.reconcile_rules import Action
from pool.maintenance.scheduler import Scheduler, ServiceRecord
from pool.model import Hold
from pool.observability.metrics import Metrics
from pool.observability.observation import Observation
from pool.process import Process
from pool.requests.breaker import SERVER
from pool.store import Store
from pool.store.sqlite import SqliteConnection
from pool.tracking.tracker import Finished

LABELS = (
    *("template", "outcome", "state", "code", "operation", "result", "service", "sink"),
    *("reason", "priority"),
)


class Scrape:
    """What is exposed now: a value by its name and labels."""

    def __init__(self, metrics: Metrics) -> None:
        text, self.media_type = metrics.expose()
        self.families = list(text_string_to_metric_families(text.decode()))
        self.values = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.values.get((f"cvat_pool_{name}", tuple(sorted(labels.items()))))


@pytest.fixture
def observation(engine: Process) -> Observation:
    return Observation(engine)


@pytest.fixture
def metrics(observation: Observation) -> Metrics:
    return observation.metrics


def take_all(metrics: Metrics, store: Store) -> None:
    metrics.take(store.events_after(0, limit=1000))


# --- What happens ---------------------------------------------------------------------------------


def test_requests_by_how_long_they_took_and_whose_time_it_was(
    metrics: Metrics, store: Store
) -> None:
    serve(store, "r1", now=100.0, took=0.45, server=0.22)
    serve(store, "r2", now=200.0, took=3.0, failed="import-failed")
    take_all(metrics, store)
    scrape = Scrape(metrics)
    hit = {"template": "scenes", "outcome": "hit"}
    assert scrape("hand_out_seconds_count", **hit) == 2
    assert scrape("hand_out_seconds_bucket", **hit, le="0.01") == 2
    assert scrape("request_seconds_count", **hit) == 1
    assert scrape("request_seconds_sum", **hit) == pytest.approx(0.45)
    assert scrape("request_server_seconds_sum", template="scenes") == pytest.approx(0.22)
    assert scrape("request_held_seconds_sum", template="scenes") == 0.0
    assert scrape("request_own_seconds_sum", template="scenes") == pytest.approx(0.23)
    assert scrape("requests_total", template="scenes", state="ready") == 1
    assert scrape("requests_total", template="scenes", state="failed") == 1
    assert scrape("request_failures_total", template="scenes", code="import-failed") == 1


def test_a_code_that_is_not_ours_makes_no_series(metrics: Metrics, store: Store) -> None:
    serve(store, "r1", failed="from-another-version")
    take_all(metrics, store)
    assert Scrape(metrics)("request_failures_total", template="scenes", code="failed") == 1


def test_calls_to_the_server(metrics: Metrics) -> None:
    metrics.call("jobs", 0.03, "ok")
    metrics.call("jobs", 0.04, "cvat-busy")
    scrape = Scrape(metrics)
    assert scrape("cvat_calls_total", operation="jobs", result="ok") == 1
    assert scrape("cvat_calls_total", operation="jobs", result="cvat-busy") == 1
    assert scrape("cvat_call_seconds_sum", operation="jobs") == pytest.approx(0.07)


def test_polls_of_each_import(metrics: Metrics) -> None:
    for polls in (0, 1, 1, 6):
        metrics.finished(Finished(task_id=1, polls=polls))
    scrape = Scrape(metrics)
    assert [scrape("request_polls_bucket", le=le) for le in ("0.0", "1.0", "5.0", "7.0")] == [
        *(1, 3, 3, 4)
    ]


def test_requests_of_each_import(metrics: Metrics) -> None:
    for requests, code in ((1, ""), (40, ""), (40, "import-failed"), (0, "")):
        metrics.finished(Finished(task_id=1, requests=requests, code=code))
    scrape = Scrape(metrics)
    assert [scrape("import_requests_bucket", le=le) for le in ("1.0", "20.0", "50.0")] == [1, 1, 2]


def test_leaks_that_were_found(metrics: Metrics) -> None:
    assert Scrape(metrics)("reconciled_total", action="delete") == 0, "there before the first"
    metrics.reconciled(ReconcileReport(done={Action.ADOPT: 1, Action.DELETE: 2}))
    scrape = Scrape(metrics)
    assert scrape("reconciled_total", action="adopt") == 1
    assert scrape("reconciled_total", action="delete") == 2


def test_answers_over_http(metrics: Metrics) -> None:
    metrics.answered("GET", "/v1/leases/{lease_id}", 200, 0.002)
    metrics.answered("BREW", "/v1/leases/{lease_id}", 405, 0.002)
    scrape = Scrape(metrics)
    route = {"route": "/v1/leases/{lease_id}"}
    assert scrape("http_answer_seconds_count", method="GET", status="200", **route) == 1
    assert scrape("http_answer_seconds_count", method="other", status="405", **route) == 1


# --- How things stand -----------------------------------------------------------------------------


def test_levels_hand_outs_and_troubles(
    metrics: Metrics, store: Store, clock: ManualClock, engine: Process
) -> None:
    make_warm(store, 1, 2)
    serve(store, "r1", task_id=3)
    store.pause("scenes", now=clock.now())
    for name in (SERVER, "scenes"):
        hold = Hold(template=name, code="c", reason="r", since=clock.now(), retry_at=None)
        store.hold(hold)
    scrape = Scrape(metrics)
    assert scrape("tasks", template="scenes", state="warm") == 2
    assert scrape("tasks", template="scenes", state="creating") == 0
    assert scrape("target_tasks", template="scenes") == 3
    assert scrape("hand_outs_total", template="scenes", outcome="hit") == 1
    assert scrape("hand_outs_total", template="scenes", outcome="cold") == 0
    for name in ("leases_waiting", "requests_queued"):
        assert scrape(name, template="scenes") == 0
    assert scrape("template_paused", template="scenes") == 1
    assert scrape("template_held", template="scenes", code="c") == 1
    assert scrape("server_held") == 1
    assert (scrape("maintained"), scrape("requests_in_flight")) == (0, 0)
    assert (scrape("spool_bytes"), scrape("event_listeners")) == (0, 0)
    assert scrape("unseen_events") == store.last_event_id() - engine.feed.cursor
    assert scrape("store_readable") == 1
    assert any(name == "cvat_pool_build_info" for name, _ in scrape.values)


def with_services(observation: Observation, **records: ServiceRecord) -> Metrics:
    """The metrics of a daemon whose services have been doing so."""
    observation.scheduler = cast(Scheduler, SimpleNamespace(records=records))
    return observation.metrics


def test_services(observation: Observation) -> None:
    refill = ServiceRecord(runs=3, errors=1, missed=2, blocked=4, last_success=1234.5)
    scrape = Scrape(with_services(observation, refill=refill, prune=ServiceRecord()))
    assert scrape("service_last_success_timestamp_seconds", service="refill") == 1234.5
    assert scrape("service_last_success_timestamp_seconds", service="prune") is None
    told = {name: scrape(f"service_{name}_total", service="refill") for name in _COUNTED}
    assert told == {"runs": 3, "errors": 1, "missed": 2, "blocked": 4}


_COUNTED = ("runs", "errors", "missed", "blocked")


def test_sinks(observation: Observation) -> None:
    state = SinkState(
        name="host-1", backlog=7, lag=2.5, delivered=5, given_up=1, failed_tries=3, gone=True
    )
    observation.sinks = cast(Sinks, SimpleNamespace(states=lambda: [state]))
    scrape = Scrape(observation.metrics)
    told = {
        name: scrape(f"sink_{name}", sink="host-1")
        for name in (
            "backlog_events",
            "lag_seconds",
            "gone",
            "deliveries_total",
            "failed_tries_total",
            "given_up_total",
        )
    }
    assert list(told.values()) == [7, 2.5, 1, 5, 3, 1]


def test_a_store_that_cannot_be_read_is_told_of(
    observation: Observation, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def levels() -> NoReturn:
        raise StoreError

    monkeypatch.setattr(store, "levels", levels)
    scrape = Scrape(with_services(observation, refill=ServiceRecord(runs=1)))
    assert scrape("store_readable") == 0
    assert scrape("service_runs_total", service="refill") == 1


# --- All of it ------------------------------------------------------------------------------------


def test_names_and_units_are_as_prometheus_wants_them(
    metrics: Metrics, store: Store, clock: ManualClock
) -> None:
    serve(store, "r1", took=1.0)
    serve(store, "r2", failed="import-failed")
    take_all(metrics, store)
    metrics.call("jobs", 0.1, "ok")
    for family in Scrape(metrics).families:
        assert family.documentation.endswith("."), family.name
        if not family.name.startswith("cvat_pool_"):
            assert family.name.startswith("process_")
            continue
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        assert not family.name.endswith(("_ms", "_milliseconds", "_minutes", "_mb"))
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_polls", "_requests"))
        for sample in family.samples:
            assert set(sample.labels) <= {*LABELS, "le", "action", "version"}, sample
            assert "r1" not in sample.labels.values()


def test_a_scrape_reads_as_much_however_many_rows_are_finished(
    metrics: Metrics, store: Store, engine: Process
) -> None:
    def queries() -> int:
        asked: list[str] = []
        with store.connections.reading() as db:
            assert isinstance(db, SqliteConnection)
            tracing = db
        with tracing.tracer(lambda sql, _: asked.append(sql)):
            metrics.expose()
        return len(asked)

    few = queries()
    for number in range(30):
        serve(store, f"r{number}")
    assert queries() == few
