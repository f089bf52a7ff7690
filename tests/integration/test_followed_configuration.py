"""What a running daemon makes of a configuration that changes, and where it says so."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.api import Api, in_thread
from support.commands import Running, cvat_pool, running
from support.hooked import new_project
from support.waiting import PATIENCE

from pool import TaskPool
from pool.config.loader import load
from pool.cvat import connect
from pool.daemon import Daemon
from pool.simulator import SimulatorServer
from pool.simulator.faults import SlowImport
from pool.status import WebhookState
from pool.tracking.webhook_setup import WebhookSetup

SUCCESSFUL = "cvat_pool_config_last_reload_successful"


@contextmanager
def daemon(config_path: Path, **environment: Any) -> Iterator[tuple[Running, Api]]:
    with (
        running("run", cwd=config_path.parent, **environment) as process,
        Api(process.url) as api,
    ):
        process.wait_for("maintenance begun")
        yield process, api
        assert process.stop() == 0


def eventually(read: Callable[[], Any], accept: Callable[[Any], bool]) -> Any:
    """What is read as soon as it is acceptable; a daemon looks at its files every second."""
    for _ in range(round(PATIENCE / 0.05)):
        if accept(found := read()):
            return found
        threading.Event().wait(0.05)
    raise AssertionError(f"still {found}")


def metric(api: Api, name: str) -> float:
    lines = api.get("/metrics").body.decode().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.split()[1])


def status(folder: Path, *options: str) -> dict[str, Any]:
    shown = cvat_pool("status", "--json", *options, cwd=folder)
    assert (shown.returncode, shown.stderr) == (0, "")
    document: dict[str, Any] = json.loads(shown.stdout)
    return document


# --- A file that is wrong -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "after"),
    [("[templates.scenes", 1), ("[templates.more]\nlabels = []\nlabls = []\n", 3)],
)
def test_a_rejected_file_is_reported_wherever_people_look(
    config_path: Path, simulator: SimulatorServer, mistake: str, after: int
) -> None:
    folder, before = config_path.parent, config_path.read_text()
    place = f"config.toml:{before.count(chr(10)) + after}: "
    with daemon(config_path, CVAT_ACCESS_TOKEN=simulator.access_token) as (_, api):
        assert metric(api, SUCCESSFUL) == 1.0
        loaded_at = metric(api, "cvat_pool_config_last_reload_success_timestamp_seconds")
        assert api.get("/readyz").json["checks"]["configuration"]["ok"]
        config_path.write_text(before + mistake)
        health = eventually(
            lambda: api.get("/readyz"), lambda seen: not seen.json["checks"]["configuration"]["ok"]
        )
        assert (health.status, health.json["ready"]) == (200, True), "the old one is in force"
        assert health.json["checks"]["configuration"]["rejected_seconds"] >= 0.0
        assert "config.toml" not in json.dumps(health.json), "it is open to everybody"
        assert metric(api, SUCCESSFUL) == 0.0
        assert metric(api, "cvat_pool_config_last_reload_success_timestamp_seconds") == loaded_at

        here, there = status(folder), status(folder, "--server", api.url)
        for seen in (here, there, api.get("/v1/templates").json):
            assert place in seen["config_problems"][0]
            assert seen["config_rejected_at"] is not None
            assert [each["name"] for each in seen["templates"]] == ["scenes"]
            assert seen["templates"][0]["target"] == 2
        words = " ".join(cvat_pool("status", cwd=folder).stdout.split())
        assert "The configuration is wrong since " in words
        assert place in words
        assert "The daemon goes on with that of " in words

        config_path.write_text(before.replace("min_size = 2", "min_size = 3"))
        eventually(lambda: metric(api, SUCCESSFUL), lambda value: value == 1.0)
        seen = status(folder)
        assert (seen["config_rejected_at"], seen["config_problems"]) == (None, [])
        assert seen["templates"][0]["target"] == 3


def test_a_wrong_file_without_a_daemon_is_an_error(config_path: Path) -> None:
    assert cvat_pool("status", cwd=config_path.parent).returncode == 0
    config_path.write_text(config_path.read_text() + "[templates.more]\nlabels = []\nlabls = []\n")
    result = cvat_pool("status", cwd=config_path.parent)
    assert (result.returncode, result.stdout) == (2, "")
    assert "labls" in result.stderr


def test_a_file_whose_templates_are_gone_is_rejected(
    config_path: Path, simulator: SimulatorServer
) -> None:
    """As it is for a moment when an editor writes it in place; and no pool is thrown away."""
    before = config_path.read_text()
    with daemon(config_path, CVAT_ACCESS_TOKEN=simulator.access_token) as (process, api):
        config_path.write_text(before.partition("[templates")[0])
        assert "there is no template" in process.wait_for("not reloaded")
        assert [each["name"] for each in api.get("/v1/templates").json["templates"]] == ["scenes"]


# --- What a reload does not follow -------------------------------------------------------------


def test_keys_that_need_a_restart_are_named(config_path: Path, simulator: SimulatorServer) -> None:
    folder, before = config_path.parent, config_path.read_text()
    with daemon(config_path, CVAT_ACCESS_TOKEN=simulator.access_token) as (_, api):
        changed = before.replace("port = 0", 'port = 0\ntick = "3s"\nmax_queued = 7')
        config_path.write_text(changed.replace('timeout = "10s"', 'timeout = "11s"'))
        keys = ["cvat.timeout", "daemon.tick", "daemon.max_queued"]
        seen = eventually(
            lambda: api.get("/readyz").json["checks"]["configuration"],
            lambda check: not check["ok"],
        )
        assert seen == {"ok": False, "rejected_seconds": None, "restart": keys}
        assert metric(api, SUCCESSFUL) == 1.0
        assert metric(api, "cvat_pool_config_restart_needed") == 1.0
        words = " ".join(cvat_pool("status", cwd=folder).stdout.split())
        assert f"followed but for {', '.join(keys)}: restart the daemon." in words
        config_path.write_text(before)
        eventually(lambda: status(folder)["config_restart"], lambda keys: keys == [])


# --- Files that the configuration names ----------------------------------------------------------


def test_a_change_of_the_labels_file_is_followed(
    config_path: Path, simulator: SimulatorServer
) -> None:
    labels = config_path.parent / "labels.json"
    text = config_path.read_text()
    inline = 'labels = [{ name = "car" }, { name = "person" }]'
    assert inline in text
    config_path.write_text(text.replace(inline, 'labels_file = "labels.json"'))
    labels.write_text('[{"name": "tram"}]')
    with daemon(config_path, CVAT_ACCESS_TOKEN=simulator.access_token) as (process, api):
        labels.write_text('[{"name": "tram"}, {"name": "bus-of-a-reload"}]')
        assert "scenes" in process.wait_for("configuration reloaded")
        simulator.wait_for(
            lambda state: any(
                label.name == "bus-of-a-reload"
                for task in state.tasks.values()
                for label in state.labels_of(task)
            )
        )
        labels.unlink()
        eventually(lambda: metric(api, SUCCESSFUL), lambda value: value == 0.0)
        labels.write_text('[{"name": "ship"}]')
        eventually(lambda: metric(api, SUCCESSFUL), lambda value: value == 1.0)


def test_a_new_token_in_its_file_is_used_at_once(
    config_path: Path, simulator: SimulatorServer
) -> None:
    token = config_path.parent / "token"
    text = config_path.read_text()
    config_path.write_text(text.replace("[cvat]", '[cvat]\naccess_token_file = "token"'))
    token.write_text(simulator.readonly_token)
    token.chmod(0o600)
    with daemon(config_path) as (process, api):
        row = eventually(
            lambda: api.get("/v1/templates").json["templates"][0],
            lambda row: row["held_since"] is not None,
        )
        assert "read-only" in row["hold_reason"]
        token.write_text(simulator.access_token)
        process.wait_for("credentials renewed")
        row = eventually(
            lambda: api.get("/v1/templates").json["templates"][0], lambda row: row["warm"] == 2
        )
        assert row["held_since"] is None
        assert simulator.access_token not in "\n".join(process.lines)


# --- Webhooks of templates that came later -------------------------------------------------------


def test_the_webhook_of_a_template_that_came_with_a_reload_is_relied_on(
    config_path: Path,
    simulator: SimulatorServer,
    image: bytes,
    log_in: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pool.tracking.poll_schedule.SAFETY_FLOOR", 10.0)
    monkeypatch.setattr("pool.process.LOOK_EVERY", 0.0)
    with (
        in_thread(Daemon(load(config_path))) as daemon,
        TaskPool.from_config(config_path) as caller,
    ):
        project = new_project(simulator)
        with config_path.open("a") as file:
            file.write(
                f"\n[templates.hooked]\nproject = {project}\n"
                'pool = { min_size = 1, max_wait = "20s" }\n'
            )
        settings = load(config_path)
        with connect(settings.cvat) as cvat:
            setup = WebhookSetup(caller.store, cvat, settings, clock=caller.clock)
            reports = [setup.ping(each) for each in setup.install(f"{daemon.url}/webhooks/cvat")]
            assert [each.delivery for each in reports if each.scope] == ["delivered"]
            hooked = eventually(
                lambda: caller.status().templates[-1],
                lambda row: row.hooks is WebhookState.ALIVE and row.warm == 1,
            )
            assert hooked.name == "hooked"
            simulator.stats.reset()
            # Where the jobs exist before the caller has written that its data is there, their
            # frames are compared, which takes a call.
            simulator.faults.add(SlowImport(seconds=1.0, times=1))
            assert caller.submit("hooked", [("a.jpg", image)]).jobs(timeout=20)
            assert simulator.stats.calls["jobs:list"] == 0, "no call was needed"
            list(setup.remove())
