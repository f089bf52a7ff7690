"""Installing and removing webhooks, by the command too, and the address of the daemon."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.hooked import Counted, install, new_project
from support.waiting import PATIENCE, wait_until
from typer.testing import CliRunner

from pool import TaskPool
from pool.cli.app import app
from pool.config.loader import load
from pool.config.settings import DaemonSettings
from pool.cvat import CvatClient
from pool.daemon import Daemon
from pool.errors import CannotListen, ConfigError, PoolError
from pool.simulator import SimulatorServer
from pool.tracking.webhook_setup import WebhookSetup

# --- Installing ---------------------------------------------------------------------------------


def ours(cvat: CvatClient, project: int | None) -> list[Any]:
    return cvat.webhooks.of(project)


def test_installing_again_changes_nothing(
    setup: WebhookSetup,
    hooked_daemon: Daemon,
    caller: Counted,
    project: int,
    simulator: SimulatorServer,
) -> None:
    first = install(setup, hooked_daemon)
    assert first.action == "installed"
    (hook,) = ours(caller.pool.process.cvat(), project)
    caller.calls.clear()
    again = install(setup, hooked_daemon)
    assert (again.action, again.webhook_id) == ("unchanged", hook.id)
    assert caller.calls == {"webhooks": 1, "ping_webhook": 1}
    assert ours(caller.pool.process.cvat(), project) == [hook]
    assert set(hook.events) == {"create:job", "completed:request[create:task]"}
    secret = caller.pool.store.webhook_secret()
    assert simulator.state.webhooks[hook.id].secret == secret
    list(setup.remove())


def test_what_is_out_of_order_is_repaired(
    setup: WebhookSetup,
    hooked_daemon: Daemon,
    caller: Counted,
    project: int,
    simulator: SimulatorServer,
) -> None:
    hook_id = install(setup, hooked_daemon).webhook_id
    hook = simulator.state.webhooks[hook_id or 0]
    for name, value in (
        ("is_active", False),
        ("target_url", "http://127.0.0.1:9/"),
        ("events", ("update:task",)),
    ):
        simulator.call(partial(setattr, hook, name, value))
        report = install(setup, hooked_daemon)
        assert (report.action, report.reachable) == ("repaired", True), name
    simulator.call(lambda: setattr(hook, "secret", "another"))
    assert install(setup, hooked_daemon).reachable, "a wrong secret shows in the ping"
    other = {"target_url": "http://elsewhere/", "description": "not ours", "secret": "s"}
    caller.pool.process.cvat().webhooks.create(project, **other)
    surplus = {**other, "description": hook.description}
    caller.pool.process.cvat().webhooks.create(project, **surplus)
    install(setup, hooked_daemon)
    assert len(ours(caller.pool.process.cvat(), project)) == 2
    removed = [report for report in setup.remove() if report.action == "removed"]
    assert [report.scope for report in removed] == [f"project:{project}"]
    assert [each.description for each in ours(caller.pool.process.cvat(), project)] == ["not ours"]
    assert [report.action for report in setup.remove()] == ["not installed"]


def test_a_webhook_that_somebody_deleted_is_installed_again(
    setup: WebhookSetup, hooked_daemon: Daemon, caller: Counted
) -> None:
    first = install(setup, hooked_daemon)
    assert first.webhook_id is not None
    caller.pool.process.cvat().webhooks.delete(first.webhook_id)
    assert install(setup, hooked_daemon).action == "installed"
    list(setup.remove())


def test_an_organization_has_one_webhook_for_all(
    config_path: Path, log_in: None, simulator: SimulatorServer
) -> None:
    project = new_project(simulator, "lab")
    config_path.write_text(
        config_path.read_text().replace("[cvat]", '[cvat]\norganization = "lab"')
        + f"\n[templates.hooked]\nproject = {project}\n"
    )
    with TaskPool.from_config(config_path) as pool:
        cvat = pool.process.cvat()
        setup = WebhookSetup(pool.store, cvat, pool.settings, clock=pool.clock)
        pool.store.keep_webhook(f"project:{project}", hook_id=99, target_url="u", now=1.0)
        one, stale = setup.install("http://127.0.0.1:9/webhooks/cvat")
        assert (one.scope, one.templates) == ("organization", ("scenes", "hooked"))
        assert (stale.scope, stale.action) == (f"project:{project}", "not installed")
        assert set(pool.store.webhooks()) == {"organization"}
        assert setup.ping(one).reachable is False
        assert [report.action for report in setup.remove()] == ["removed"]
        assert ours(cvat, None) == []


# --- The command --------------------------------------------------------------------------------


@dataclass
class Command:
    """``cvat-pool`` with the configuration, in this process."""

    config: Path

    def __call__(self, *arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, [*arguments, "--config", str(self.config)])
        if isinstance(result.exception, PoolError):  # what main() turns into a line and a code
            assert result.exception.exit_code == code
            return str(result.exception)
        assert result.exit_code == code, result.output
        return result.output

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture(autouse=True)
def unconfigured_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command run in this process leaves the logs as they are for other tests."""
    monkeypatch.setattr("pool.logs.configure", lambda **_: None)


@pytest.fixture
def command(hooked_config: Path, log_in: None) -> Command:
    return Command(hooked_config)


@contextmanager
def answering(status: int, text: str) -> Iterator[str]:
    """A server that has one answer to everything, as a proxy that refuses has."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(PATIENCE)


def test_the_command_installs_and_removes(
    command: Command,
    hooked_daemon: Daemon,
    simulator: SimulatorServer,
    project: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG", "pool")
    assert "--url" in command("webhook", "install", code=2), "the port is not known beforehand"
    shown = [command("webhook", "install", "--url", hooked_daemon.url)]
    lines = dict(line.split(": ", 1) for line in shown[0].splitlines())
    assert lines["scenes"].startswith("not installed, since CVAT has no webhooks")
    assert lines[f"project {project} (hooked)"].startswith("installed, webhook ")
    assert lines[f"project {project} (hooked)"].endswith("ping: delivered")
    wait_until(
        hooked_daemon.process.store,
        lambda: command.json("status")["templates"][1]["hooks"] == "alive",
    )
    shown.append(command("status"))
    assert "webhooks: not possible (scenes)\nwebhooks: alive (hooked)\n" in shown[-1]
    (none, one) = again = command.json("webhook", "install", "--url", hooked_daemon.url)
    assert (none["scope"], none["templates"]) == (None, ["scenes"])
    assert (one["action"], one["delivery"], one["reachable"]) == ("unchanged", "delivered", True)
    secret = simulator.state.webhooks[one["webhook_id"]].secret
    assert len(secret) > 40
    assert "ping_webhook" in caplog.text
    assert secret not in caplog.text + json.dumps(again) + "".join(shown)
    assert "removed" in command("webhook", "remove")
    assert [row["action"] for row in command.json("webhook", "remove")] == ["not installed"]
    assert one["webhook_id"] not in simulator.state.webhooks


def test_without_a_daemon_nothing_is_tried(command: Command) -> None:
    assert "no daemon runs" in command("webhook", "install", "--url", "http://127.0.0.1:9")
    assert "silent since" in command("status")
    command("webhook", "remove")


def test_a_proxy_that_refuses_is_named(command: Command, hooked_daemon: Daemon) -> None:
    denial = "Egress proxying is denied to host '127.0.0.1': private address."
    with answering(407, denial) as url:
        shown = command("webhook", "install", "--url", url, code=1)
    assert "smokescreen" in shown
    assert "SMOKESCREEN_OPTS" in shown
    assert denial in shown
    with answering(200, "hello") as url:
        assert "something else" in command("webhook", "install", "--url", url, code=1)
    command("webhook", "remove")


def test_a_refusal_has_its_exit_code(
    command: Command, simulator: SimulatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", simulator.readonly_token)
    shown = command("webhook", "install", "--url", "http://127.0.0.1:9", code=4)
    assert "read-only" in shown


def test_nothing_to_install_is_a_failure(config_path: Path, log_in: None) -> None:
    arguments = ("webhook", "install", "--url", "http://127.0.0.1:9")
    assert "outside of a project" in Command(config_path)(*arguments, code=1)


# --- The daemon's address -----------------------------------------------------------------------


def test_a_daemon_whose_port_is_taken_says_so(config_path: Path, log_in: None) -> None:
    settings = load(config_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        taken = replace(settings, daemon=DaemonSettings(port=port))
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}: address already in use"):
            Daemon(taken).run()
    with TaskPool(settings) as pool:
        assert pool.status().maintainer is None


def test_a_daemon_that_others_can_reach_needs_a_token(config_path: Path, log_in: None) -> None:
    exposed = replace(load(config_path), daemon=DaemonSettings(host="0.0.0.0", port=0))
    with pytest.raises(ConfigError, match="POOL_API_TOKEN"):
        Daemon(exposed)
    Daemon(exposed, api_token="a token").process.close()
