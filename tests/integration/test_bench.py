"""The bench, against a simulator in no time: what it prints, and that it leaves nothing behind."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress
from support.commands import cvat_pool
from support.slots import slot_server, slot_settings, slot_table

from pool.bench import processes
from pool.bench.bench import Bench
from pool.bench.bulk import SCENARIOS, Bulk
from pool.bench.plain import plain_client
from pool.bench.server_time import DatedTimes, SimulatorTimes, is_simulator
from pool.config.data_params import DataParams
from pool.config.loader import load
from pool.config.settings import CvatSettings, Template
from pool.config.source import LocalFile, Upload
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.simulator import SimulatorServer
from pool.simulator.faults import Error


def on_server(simulator: SimulatorServer) -> tuple[set[int], set[int]]:
    """The tasks and the projects that are there."""
    return simulator.call(lambda: (set(simulator.state.tasks), set(simulator.state.projects)))


def test_a_configured_server_is_measured_and_left_as_it_was(
    config_path: Path, simulator: SimulatorServer
) -> None:
    before = on_server(simulator)
    # Those with the fewest tasks to make and delete; the others are run on a server of their own.
    flows = "sdk-100ms,busy-loop,pool,pool-webhooks"
    result = cvat_pool(
        "bench",
        "--config",
        config_path,
        "--flows",
        flows,
        "--requests",
        "1",
        "--json",
        cwd=config_path.parent,
        CVAT_ACCESS_TOKEN=simulator.access_token,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert on_server(simulator) == before
    assert list(config_path.parent.glob("*.db")) == [], "the configured store is left alone"
    figures = json.loads(result.stdout)
    assert set(figures) == {"version", "conditions", "flows", "idle", "bulk", "slots"}
    assert figures["conditions"]["server_time_exact"] is True
    assert figures["conditions"]["template"] == "scenes"
    assert list(figures["flows"]) == flows.split(",")
    for name, flow in figures["flows"].items():
        check_flow(name, flow, requests=1)
    polls = {name: flow["polls_per_request"] for name, flow in figures["flows"].items()}
    assert polls["pool"] >= 1
    assert polls["pool-webhooks"] <= 1
    assert figures["flows"]["pool"]["calls"].keys() >= {"upload", "jobs", "rename_task"}


def check_flow(name: str, flow: Any, *, requests: int) -> None:
    """Every request was a hit, and its figures fit together."""
    assert flow["available"], (name, flow)
    assert (flow["requests"], flow["misses"]) == (requests, 0), name
    assert flow["ours_ms"]["median"] > flow["server_ms"]["median"] > 0
    assert flow["ours_to_server"]["median"] > 1
    assert flow["calls_per_request"] >= flow["polls_per_request"]


def test_the_calls_are_those_that_the_server_saw(
    config_path: Path, simulator: SimulatorServer, log_in: None
) -> None:
    def calls() -> dict[str, int]:
        return simulator.call(lambda: dict(simulator.stats.calls))

    bench = Bench(
        settings=load(config_path), simulator=False, requests=3, flows=["busy-loop"], speed=0.0
    )
    before = calls()
    figures = bench.run(Progress(disable=True))
    seen = {name: count - before.get(name, 0) for name, count in calls().items()}
    counted = figures["flows"]["busy-loop"]["calls"]
    # The three that warm up are not counted, but the server saw them, too.
    assert counted["upload"]["count"] == 3
    assert seen["data:post"] == 6
    assert 3 <= counted["jobs"]["count"] <= seen["jobs:list"] - 3


class Interrupted(Progress):
    """Ctrl-C after the first request."""

    def update(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def test_nothing_is_left_when_it_is_interrupted(
    config_path: Path, simulator: SimulatorServer, log_in: None
) -> None:
    before = on_server(simulator)
    flows = ["poll-500ms", "pool-webhooks"]
    bench = Bench(settings=load(config_path), simulator=False, requests=1, flows=flows, speed=0.0)
    with pytest.raises(KeyboardInterrupt):
        bench.run(Interrupted(disable=True))
    assert on_server(simulator) == before


def test_what_the_sdk_cannot_do_is_one_line(
    config_path: Path, simulator: SimulatorServer, log_in: None
) -> None:
    before = on_server(simulator)
    with simulator.fault(Error(where="projects:create", status=500)):
        result = cvat_pool(
            "bench",
            *("--config", config_path, "--flows", "pool-webhooks", "--requests", "1"),
            cwd=config_path.parent,
            CVAT_ACCESS_TOKEN=simulator.access_token,
        )
    assert result.returncode == 1, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "HTTP 500" in result.stderr
    assert on_server(simulator) == before


def bench_of_its_own(cwd: Path, *options: str) -> str:
    """What a bench prints on a simulator of its own."""
    result = cvat_pool("bench", "--speed", "0", *options, cwd=cwd)
    assert (result.returncode, result.stderr) == (0, "")
    assert list(cwd.iterdir()) == []
    return result.stdout


def test_a_server_of_its_own_needs_no_configuration(tmp_path: Path) -> None:
    options = ("--flows", "poll-500ms", "--requests", "2", "--labels", "3", "--images", "2")
    printed = bench_of_its_own(tmp_path, *options)
    assert "From 2 images to job ids, with 3 labels, on a simulated CVAT at speed 0" in printed
    assert "CVAT's are its own part of it: the simulator's record" in " ".join(printed.split())


def test_a_pool_under_load(tmp_path: Path) -> None:
    printed = bench_of_its_own(
        tmp_path, "--flows", "pool-refill,pool-concurrent", "--requests", "1", "--json"
    )
    flows = json.loads(printed)["flows"]
    check_flow("pool-refill", flows["pool-refill"], requests=1)
    check_flow("pool-concurrent", flows["pool-concurrent"], requests=20)
    assert flows["pool-refill"]["refilled"] >= 1
    assert flows["pool-concurrent"]["polls_per_request"] < 1


def test_an_idle_daemon(tmp_path: Path) -> None:
    figures = json.loads(bench_of_its_own(tmp_path, "--idle", "500ms", "--json"))
    assert figures["flows"] == {}
    assert figures["idle"]["tasks"] == 100
    assert figures["idle"]["seconds"] >= 0.5
    assert 20 < figures["idle"]["rss_mb"] < 300
    assert figures["idle"]["calls_per_minute"] >= 0


def test_modules_in_the_folder_it_is_started_in_are_not_taken_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "queue.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    with processes.simulator(tmp_path, speed=0.0) as environment:
        assert is_simulator(environment["CVAT_URL"])


# --- What goes wrong -----------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("matplotlib") is not None, reason="matplotlib is installed")
def test_a_picture_without_matplotlib(tmp_path: Path) -> None:
    result = cvat_pool("bench", "--plot", "out.png", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "pip install '.[plot]'" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--flows", "pools"], "there are sdk, "),
        (["--template", "scenes"], "--config"),
        (["--idle", "5"], "--idle"),
        (["--config", "config.toml", "--template", "scences"], "there is scenes"),
    ],
)
def test_wrong_usage(config_path: Path, arguments: list[str], words: str) -> None:
    result = cvat_pool("bench", *arguments, cwd=config_path.parent, CVAT_ACCESS_TOKEN="x")
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert words in line


def test_wrong_credentials(config_path: Path) -> None:
    result = cvat_pool(
        "bench",
        "--config",
        config_path,
        "--flows",
        "pool",
        cwd=config_path.parent,
        CVAT_ACCESS_TOKEN="wrong-one",
    )
    assert result.returncode == 4
    assert "Traceback" not in result.stderr
    assert "wrong-one" not in result.stdout + result.stderr


# --- The server's own time -----------------------------------------------------------------------


def test_the_server_s_own_time_in_two_ways(simulator: SimulatorServer, image: bytes) -> None:
    settings = CvatSettings(url=simulator.url)
    token = AccessTokenCredentials(simulator.access_token)
    with CvatClient(settings, token) as cvat:
        task_id = cvat.create_task({"labels": []}, "server time")
        cvat.upload(
            task_id,
            Upload(files=(LocalFile("a.jpg", image, len(image)),)),
            DataParams(),
            single_request_limit=2**20,
            prepared=False,
        )
    simulator.wait_idle()
    assert is_simulator(simulator.url)
    recorded = SimulatorTimes(simulator.url)
    exact = recorded.of(task_id)
    assert exact is not None and exact.committed_at is not None
    assert recorded.of(987654) is None
    with plain_client(settings, token) as client:
        dated = DatedTimes(client)
        approximate = dated.of(task_id, 50.0)
        assert approximate is not None and approximate.committed_at is None
        assert 50.0 <= approximate.own_ms < 50.0 + 5_000
        assert dated.of(987654, 50.0) is None


def test_what_is_no_simulator() -> None:
    assert not is_simulator("http://127.0.0.1:9")


def test_bulk_measures_every_scenario(tmp_path: Path) -> None:
    with processes.simulator(tmp_path, speed=0.02) as environment:
        bulk = Bulk(
            server=CvatSettings(url=environment["CVAT_URL"]),
            template=Template(name="scenes", labels=({"name": "car"},)),
            environment=environment,
            folder=tmp_path,
            mark="[bulk]",
            say=lambda what: None,
            few=3,
            many=8,
            rounds=1,
            pairs=2,
            seconds=1.0,
            queued=20,
        )
        figures = bulk.run()
    assert list(figures) == list(SCENARIOS)
    bursts = figures["bursts"]
    assert {name: each["requests"] for name, each in bursts.items() if name != "ratios"} == {
        "one": 1,
        "few": 3,
        "few-grouped": 3,
        "many-grouped": 8,
        "one-import": 1,
        "many": 8,
    }
    assert bursts["many"]["imports"] == 8 > bursts["many-grouped"]["imports"]
    assert figures["idle"]["pairs"] == 2
    corrupt = figures["corrupt"]
    assert (corrupt["ready"], corrupt["failed"], corrupt["jobs_given_twice"]) == (7, 1, 0)
    assert "truncated" in corrupt["why"][0]
    arrivals = figures["arrivals"]
    for name in ("grouped", "single"):
        assert arrivals[name]["served"] == arrivals[name]["requests"] > 0
        assert len(arrivals[name]["waiting"]) == 1
    queue = figures["queue"]
    assert queue["waiting"]["after_restart"] >= 20
    assert queue["submit"]["full"]["ratio"] > 0


def test_bulk_on_a_configured_server_leaves_nothing(
    config_path: Path, simulator: SimulatorServer
) -> None:
    before = on_server(simulator)
    options = ("--config", config_path, "--flows", "idle", "--requests", "2", "--json")
    token = simulator.access_token
    result = cvat_pool("bench", "--bulk", *options, cwd=config_path.parent, CVAT_ACCESS_TOKEN=token)
    assert (result.returncode, result.stderr) == (0, "")
    assert on_server(simulator) == before
    low, high = json.loads(result.stdout)["bulk"]["idle"]["interval_ms"]
    assert low < high


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--flows", "pool"], "there are bursts, idle, corrupt, arrivals, queue"),
        (["--images", "2"], "--bulk has requests of one image"),
        (["--idle", "1s"], "--bulk has requests of one image"),
    ],
)
def test_bulk_refuses_what_is_no_part_of_it(tmp_path: Path, options: list[str], words: str) -> None:
    result = cvat_pool("bench", "--bulk", *options, cwd=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr


# --- Slots ---------------------------------------------------------------------------------------


def test_slots_beside_an_ordinary_hit_and_the_sdk(tmp_path: Path) -> None:
    options = ("--slots", "--requests", "1", "--seconds", "2", "--json")
    figures = json.loads(bench_of_its_own(tmp_path, *options))["slots"]
    assert list(figures) == ["skipped", "placed", "ids", "burst", "lone", "rate", "aims"]
    # One request of each kind is not measured.
    assert figures["placed"] == {"slot": 2 * (10 + 10 + 10 + 20 + 20 + 1), "otherwise": 0}
    ids = figures["ids"]
    assert ids["slots"]["requests"] == ids["http"]["requests"] == ids["fsync"]["requests"] == 10
    assert ids["bucket"]["requests"] == 10
    assert ids["pool"]["requests"] == ids["sdk"]["requests"] == 1
    assert ids["sooner_than_sdk"] > 1
    assert figures["burst"]["http"]["requests"] == 1
    rate = figures["rate"]
    assert (rate["requests"], rate["failed"], rate["not_shown"]) == (100, [], 0)
    assert rate["placed"] == {"slot": 100, "otherwise": 0}
    assert rate["shown_s"]["requests"] == 100
    assert rate["tasks"] > 1, "it was refilled"
    assert 0 <= rate["import_busy"] < 1


def test_slots_of_a_configured_server_are_measured_and_left_as_they_were(tmp_path: Path) -> None:
    with slot_server() as server:
        slots = slot_settings(server.share, size="320x240", format="png", per_task=20)
        config = tmp_path / "config.toml"
        config.write_text(
            f'[cvat]\nurl = "{server.url}"\n'
            f'[templates.camera]\nlabels = [{{ name = "car" }}]\n{slot_table(slots)}\n'
        )
        before, files = on_server(server), sorted(server.share.rglob("*"))
        options = ("--config", config, "--flows", "burst,lone", "--requests", "1")
        token = server.access_token
        result = cvat_pool("bench", "--slots", *options, cwd=tmp_path, CVAT_ACCESS_TOKEN=token)
        assert (result.returncode, result.stderr) == (0, "")
        assert "20 at once, over HTTP, all ids, p50" in result.stdout
        assert on_server(server) == before
        left = [path for path in sorted(server.share.rglob("*")) if path not in files]
        assert [path for path in left if path.is_file()] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--flows", "pool"], "there are ids, burst, lone, rate"),
        (["--bulk"], "--slots has requests of one image"),
        (["--config", "config.toml"], "template 'scenes' has none"),
    ],
)
def test_slots_refuse_what_is_no_part_of_them(
    config_path: Path, options: list[str], words: str
) -> None:
    result = cvat_pool("bench", "--slots", *options, cwd=config_path.parent, CVAT_ACCESS_TOKEN="x")
    assert result.returncode == 2
    assert words in result.stderr
