"""The manual is true about events, sinks and metrics."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.daemons import maintains
from support.happening import serve
from support.manual import DOCUMENTS, FOLDER, block, blocks, rows

from pool.clock import SystemClock
from pool.config.loader import loads
from pool.config.settings import SinkSettings
from pool.events.delivery import Endpoint, Reply
from pool.events.sinks import Sinks, SinkState
from pool.maintenance.scheduler import Scheduler, ServiceRecord
from pool.model import KINDS, ConfigRecord
from pool.observability.observation import Observation
from pool.process import Process
from pool.store import Store

PATIENCE = 20.0


# --- Events and sinks -----------------------------------------------------------------------------


def test_every_kind_of_event_is_in_the_table() -> None:
    kinds = [kind for row in rows("events", "kind") for kind in re.findall(r"`([a-z._]+)`", row[0])]
    assert kinds == list(KINDS)


def test_the_example_of_a_sink_is_valid() -> None:
    settings = loads(block("toml", "sink").text + "\n[templates.street-scenes]\nlabels = []\n")
    assert settings.events.sinks == (
        SinkSettings(
            url="https://example.org/cvat-pool",
            secret_env="POOL_SINK_SECRET",
            templates=("street-scenes",),
        ),
    )


@contextmanager
def receiver(folder: Path, secret: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The manual's own, at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = block("python", "receiver").text
    assert "9000" in code
    file = folder / "receiver.py"
    file.write_text(code.replace("9000", str(port)))
    process = subprocess.Popen(
        [sys.executable, "-u", str(file)],
        env={**os.environ, "POOL_SINK_SECRET": secret},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{port}/", process
    finally:
        process.kill()
        process.communicate()


def test_the_example_of_a_receiver_takes_what_is_signed_once(tmp_path: Path) -> None:
    body = (
        b'{"delivery_id":"d1","kind":"request.ready",'
        b'"request":{"name":"monday","jobs":[7],"error":null}}'
    )

    def send(secret: str) -> Reply:
        sink = SinkSettings(url=url, secret_env="S")
        endpoint = Endpoint(sink, clock=SystemClock(), environ={"S": secret})
        try:
            return endpoint.post(body, delivery_id="d1", kind="request.ready")
        finally:
            endpoint.close()

    with receiver(tmp_path, "right") as (url, process):
        begun = threading.Event()
        while send("right").status != 204:
            begun.wait(0.02)  # until it listens
        assert send("right").status == 204
        assert send("wrong").status == 401
        process.terminate()
        printed, _ = process.communicate(timeout=PATIENCE)
    assert printed.splitlines() == ["request.ready monday [7]"]


# --- Metrics --------------------------------------------------------------------------------------


@pytest.fixture
def exposed(engine: Process, store: Store) -> dict[str, set[str]]:
    """All metrics of a daemon's, each with its labels."""
    now = engine.clock.now()
    maintains(store, until=now + 60.0, now=now)
    store.keep_configuration(ConfigRecord(loaded_at=now))
    observation = Observation(engine)
    metrics = observation.metrics
    sink = SinkState(
        name="s", backlog=0, lag=0.0, delivered=0, given_up=0, failed_tries=0, gone=False
    )
    records = {"refill": ServiceRecord(last_success=1.0)}
    observation.scheduler = cast(Scheduler, SimpleNamespace(records=records))
    observation.sinks = cast(Sinks, SimpleNamespace(states=lambda: [sink]))
    serve(store, "r1")
    serve(store, "r2", failed="import-failed")
    metrics.take(store.events_after(0, limit=99))
    metrics.call("jobs", 0.1, "ok")
    metrics.answered("GET", "/", 200, 0.1)
    text, _ = metrics.expose()
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text.decode()):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        if name.startswith("cvat_pool_"):
            found[name] = labels
    return found


def test_every_metric_is_in_the_table_with_its_labels(exposed: dict[str, set[str]]) -> None:
    table = {
        row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows("metrics", "metric")
    }
    assert table == exposed


def test_the_alerts_are_about_metrics_that_there_are(exposed: dict[str, set[str]]) -> None:
    rules = "\n".join(each.text for each in blocks("yaml") if "alert:" in each.text)
    known = {
        **exposed,
        **{f"{name}_bucket": {*labels, "le"} for name, labels in exposed.items()},
    }
    asked = re.findall(r"(cvat_pool_\w+)(?:\{(.*?)\})?", rules)
    assert len(asked) >= 10
    for name, matchers in asked:
        assert name in known
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|=)", matchers)) <= known[name], name


def test_metrics_elsewhere_in_the_text_exist(exposed: dict[str, set[str]]) -> None:
    for text in DOCUMENTS.values():
        assert set(re.findall(r"`(cvat_pool_\w+)`", text)) <= set(exposed)


# --- The dashboard for Grafana --------------------------------------------------------------------

DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
CHARTS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
#: What Prometheus and histograms add.
ADDED = {"job", "instance", "le"}


def queries() -> list[tuple[str, str]]:
    """All expressions, each with what it is called by."""
    variables = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    asked = [re.findall(r"label_values\((.*), (\w+)\)", each["definition"]) for each in variables]
    return [
        *(
            (target["expr"], target["legendFormat"])
            for each in CHARTS
            for target in each["targets"]
        ),
        *((expression, f"{{{{{label}}}}}") for ((expression, label),) in asked),
    ]


@pytest.mark.parametrize(("expression", "legend"), queries())
def test_a_chart_asks_for_a_metric_and_labels_that_there_are(
    expression: str, legend: str, exposed: dict[str, set[str]]
) -> None:
    names = re.findall(r"cvat_pool_\w+", expression)
    assert names
    for name in names:
        metric = name if name in exposed else re.sub(r"_(bucket|sum|count)$", "", name)
        assert metric in exposed, name
        labels = exposed[metric] | ADDED
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression)) <= labels
        by = {
            label for each in re.findall(r"by \((.*?)\)", expression) for label in each.split(", ")
        }
        assert by <= labels
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= (by or labels)
        assert name.endswith("_bucket") == ("histogram_quantile" in expression)
    assert set(re.findall(r"\$(\w+)", expression)) <= {"job", "template", "__rate_interval"}
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)


def test_grafana_can_import_the_dashboard() -> None:
    assert DASHBOARD["uid"] and DASHBOARD["title"] and DASHBOARD["schemaVersion"] >= 36
    names = [each["name"] for each in DASHBOARD["templating"]["list"]]
    assert names[0] == "datasource", "a choice of the one who imports it"
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in CHARTS:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"] and panel["description"]
        assert [each["refId"] for each in panel["targets"]] == list("ABCDEFG")[
            : len(panel["targets"])
        ]
        assert all(each["datasource"] == panel["datasource"] for each in panel["targets"])


def test_charts_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & taken, panel["title"]
        taken |= own
