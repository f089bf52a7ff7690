"""In which order a bench runs its flows, and how it names and counts calls."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.bench.bench import FLOWS, Bench, parse_flows
from pool.bench.measure import CallCounter, count_calls, interleave, logged_calls, operation_of
from pool.errors import InputError

# --- The order of the flows -----------------------------------------------------------------------


def test_one_of_each_after_the_other() -> None:
    assert list(interleave({"a": 2, "b": 2})) == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_the_rarer_flow_is_spread_evenly() -> None:
    runs = interleave({"often": 9, "rare": 3})
    assert [number for name, number in runs if name == "rare"] == [2, 5, 8]


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 40), max_size=6))
def test_every_flow_is_run_as_often_as_wanted(counts: dict[str, int]) -> None:
    runs = list(interleave(counts))
    assert Counter(name for name, _ in runs) == Counter(counts)
    assert len(set(runs)) == len(runs)


def test_flows_are_in_the_order_of_the_report() -> None:
    assert parse_flows(None) == FLOWS
    assert parse_flows("pool, sdk") == ["sdk", "pool"]


@pytest.mark.parametrize("text", ["pools", "sdk,nothing", "", ","])
def test_an_unknown_flow(text: str) -> None:
    with pytest.raises(InputError, match="there are sdk, "):
        parse_flows(text)


def test_what_takes_long_is_run_less_often() -> None:
    runs = Bench(requests=50).runs()
    assert (runs.pop("sdk"), runs.pop("pool-concurrent")) == (3, 5)
    assert set(runs.values()) == {50}
    assert set(Bench(requests=1).runs().values()) == {1}


# --- Calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url", "operation"),
    [
        ("POST", "http://h/api/tasks", "create_task"),
        ("GET", "http://h/api/tasks/17", "task"),
        ("POST", "http://h/api/tasks/17/data", "upload"),
        ("POST", "http://h/api/tasks/17/data/", "upload"),
        ("PATCH", "http://h/prefix/api/tasks/17/data/3f-a.jpg", "upload"),
        ("GET", "http://h/api/jobs?task_id=17", "jobs"),
        ("get", "http://h/api/requests/action=create&target=task&target_id=17", "import_state"),
        ("GET", "http://h/api/requests/action%3Dcreate%26target%3Dtask", "import_state"),
        ("GET", "http://h/api/users/self", "GET /api/users/self"),
    ],
)
def test_the_calls_of_the_sdk_have_the_names_of_ours(method: str, url: str, operation: str) -> None:
    assert operation_of(method, url) == operation


def test_the_calls_of_a_client_are_counted_also_when_they_fail() -> None:
    def request(method: str, url: str, **_: Any) -> str:
        if "requests" in url:
            raise ConnectionError
        return "answer"

    rest = SimpleNamespace(request=request)
    counter = CallCounter()
    count_calls(SimpleNamespace(api_client=SimpleNamespace(rest_client=rest)), counter)
    assert rest.request("GET", "http://h/api/jobs", headers={}) == "answer"
    with pytest.raises(ConnectionError):
        rest.request("GET", "http://h/api/requests/1")
    assert counter.last_seconds("jobs") > 0
    assert counter.last_seconds("upload") == 0
    assert {name: len(each) for name, each in counter.take().items()} == {
        "jobs": 1,
        "import_state": 1,
    }
    assert counter.take() == {}


def test_the_calls_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.write_text(
        '{"event": "cvat call", "operation": "jobs", "ms": 30.0}\n'
        '{"event": "listening", "url": "http://h"}\n'
        "not JSON\n"
        '{"event": "cvat call", "operation": "jobs", "ms": 20.0}\n'
        '{"event": "cvat call", "oper'
    )
    assert logged_calls(log) == {"jobs": [0.03, 0.02]}
