"""How flows are run in turn, and their calls counted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pool.bench.bench import FLOWS, BenchOptions, parse_flows, requests_of, run_flows
from pool.bench.measure import (
    CallCounter,
    OwnTime,
    Sample,
    count_calls,
    logged_calls,
    operation_of,
)
from pool.bench.plain import PlainFlow
from pool.errors import InputError


class Scripted:
    """A flow that makes two calls, one of them after its job ids are out."""

    def __init__(self, name: str, diary: list[str], *, at_once: int = 1) -> None:
        self.name = name
        self.diary = diary
        self.at_once = at_once
        self.counter = CallCounter()

    def prepare(self) -> None:
        self.counter.on_call("create_task", 0.1, "ok")

    def run(self, number: int) -> list[Sample]:
        self.diary.append(f"{self.name}{number}")
        self.counter.on_call("jobs", 0.02, "ok")
        return [
            Sample(task_id=1000 * self.at_once + number, ours_ms=5.0, began=0.0, ended=0.0)
            for _ in range(self.at_once)
        ]

    def settle(self) -> None:
        self.counter.on_call("rename_task", 0.03, "ok")


class Times:
    how, exact = "made up", True

    def __init__(self) -> None:
        self.noted: list[int] = []

    def note(self, sample: Sample) -> None:
        self.noted.append(sample.task_id)

    def of(self, task_ids: Iterable[int]) -> dict[int, OwnTime]:
        return {}


def test_flows_take_turns_after_their_warm_up() -> None:
    diary: list[str] = []
    flows = {"a": Scripted("a", diary), "b": Scripted("b", diary, at_once=2)}
    times = Times()
    advanced: list[str] = []
    results = run_flows(
        flows, {"a": 2, "b": 1}, times, warm_ups={"a": 1}, advance=advanced.append, rest=0.0
    )
    assert diary == ["a-1", "a0", "a1", "b1"]
    assert advanced == ["a", "a", "a", "b"]
    assert times.noted == [1000, 1001, 2001, 2001]
    assert [len(results[name].samples) for name in "ab"] == [2, 2]


def test_calls_count_from_the_request_on_and_to_the_end_of_what_follows() -> None:
    flows = {"a": Scripted("a", [])}
    result = run_flows(flows, {"a": 3}, Times(), warm_ups={"a": 2}, rest=0.0)["a"]
    assert result.calls == {"jobs": [0.02] * 3, "rename_task": [0.03] * 3}


def test_a_plain_flow_is_timed_with_its_last_upload() -> None:
    counter = CallCounter()

    def ask(number: int) -> int:
        counter.on_call("upload", 0.5, "")
        counter.on_call("upload", 0.06, "")
        return number

    (sample,) = PlainFlow(ask, counter).run(7)
    assert (sample.task_id, sample.post_ms, sample.hit) == (7, 60.0, None)
    assert 0 < sample.ended - sample.began < 60


# --- Calls -----------------------------------------------------------------------------------


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
    assert counter.last_seconds("jobs") is not None
    assert counter.last_seconds("upload") is None
    taken = counter.take()
    assert {operation: len(each) for operation, each in taken.items()} == {
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


# --- Options ---------------------------------------------------------------------------------


def test_flows_are_in_the_order_of_the_report() -> None:
    assert parse_flows(None) == FLOWS
    assert parse_flows("pool, sdk") == ["sdk", "pool"]


@pytest.mark.parametrize("text", ["pools", "sdk,nothing", "", ","])
def test_an_unknown_flow(text: str) -> None:
    with pytest.raises(InputError, match="there are sdk, "):
        parse_flows(text)


def test_what_takes_long_is_run_less_often() -> None:
    counts = requests_of(BenchOptions(requests=50))
    assert counts["sdk"] == 3
    assert counts["pool-concurrent"] == 5
    assert {counts[name] for name in set(FLOWS) - {"sdk", "pool-concurrent"}} == {50}
    assert set(requests_of(BenchOptions(requests=1)).values()) == {1}
