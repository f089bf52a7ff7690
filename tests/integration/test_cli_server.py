"""The command line on a daemon elsewhere: no configuration and no credentials of CVAT's here."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.commands import cvat_pool, running
from support.pools import write_config
from support.terminal import in_a_terminal

from pool.simulator import SimulatorServer

TOKEN = "new-token,old-token"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, simulator: SimulatorServer) -> Iterator[str]:
    """Where a daemon listens that wants a token."""
    folder = tmp_path_factory.mktemp("daemon")
    write_config(folder, simulator)
    with running(
        "run", cwd=folder, CVAT_ACCESS_TOKEN=simulator.access_token, POOL_API_TOKEN=TOKEN
    ) as daemon:
        found = re.search(r"http://[\d.]+:\d+", daemon.wait_for("listening"))
        assert found is not None
        paused = cvat_pool("pause", "strict", cwd=folder)
        assert paused.returncode == 0
        yield found[0]
        assert daemon.stop() == 0
        assert not any("new-token" in line or "old-token" in line for line in daemon.lines)


@pytest.fixture
def there(url: str, tmp_path: Path) -> Command:
    """Runs a command on the daemon, from a folder with nothing in it."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        known: dict[str, Any] = {"POOL_SERVER": url, "POOL_API_TOKEN": TOKEN}
        return cvat_pool(*arguments, cwd=folder, **{**known, **extra})

    return run


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("cvat-pool: ")
    assert "-token" not in line
    return line


def template(there: Command, name: str = "scenes") -> Any:
    status = json.loads(there("status", "--json").stdout)
    return next(each for each in status["templates"] if each["name"] == name)


def test_get_prints_job_ids(there: Command, image_path: Path) -> None:
    result = there("get", "scenes", image_path, "--timeout", "20s")
    assert (result.returncode, result.stderr) == (0, "")
    job_id, url, frames = result.stdout.strip().split("\t")
    assert url.endswith(f"/jobs/{job_id}")
    assert frames == "frames 0-0"


def test_get_as_json_and_with_a_key(there: Command, image_path: Path) -> None:
    arguments = ["get", "scenes", str(image_path), "--json", "--key", "k", "--name", "n"]
    answers = [json.loads(there(*arguments).stdout) for _ in range(2)]
    assert answers[0] == answers[1]
    names = {"request_id", "task_id", "url", "template", "outcome", "jobs", "frames", "warnings"}
    assert set(answers[0]) == names | {"placed", "no_slot", "state", "stream"}


def test_get_from_the_share(there: Command) -> None:
    result = there("get", "scenes", "--share", "cam1/a.jpg", "--share", "cam1/b.jpg")
    assert result.stdout.strip().endswith("frames 0-1")


def test_the_option_names_the_daemon_too(url: str, tmp_path: Path) -> None:
    result = cvat_pool("lease", "scenes", "--server", url, cwd=tmp_path, POOL_API_TOKEN=TOKEN)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("lease ")


def test_lease_and_release(there: Command) -> None:
    lease = json.loads(there("lease", "scenes", "--json", "--ttl", "5m").stdout)
    fields = {
        *("id", "name", "task_id", "task_name"),
        *("url", "template", "outcome", "expires_at", "jobs"),
    }
    assert set(lease) == fields and lease["jobs"] is None
    back = there("release", lease["id"])
    assert (back.returncode, back.stderr) == (0, "")
    assert back.stdout == f"released {lease['id']}\n"
    again = there("release", lease["id"])
    assert again.returncode == 1
    assert "released" in one_line(again)


def test_cancel_and_erase(there: Command) -> None:
    served = json.loads(there("get", "scenes", "--share", "cam1/a.jpg", "--json").stdout)
    late = there("cancel", served["request_id"])
    assert late.returncode == 1 and "too late" in one_line(late)
    for command in (("cancel", "--hide"), ("erase",)):
        result = there(*command, served["request_id"])
        assert (result.returncode, result.stderr) == (0, "")
        assert (
            f"their bytes stay in CVAT until task {served['task_id']} is deleted" in result.stdout
        )
    assert there("erase", "no-such-request").returncode != 0


def test_status(there: Command) -> None:
    table = there("status")
    assert table.returncode == 0
    assert "scenes" in table.stdout and "strict" in table.stdout
    assert "maintained by" in table.stdout and "nobody" not in table.stdout


def test_status_that_is_watched(url: str, tmp_path: Path) -> None:
    known: dict[str, Any] = {"POOL_SERVER": url, "POOL_API_TOKEN": TOKEN}
    with in_a_terminal("status", "--watch", cwd=tmp_path, output=True, **known) as terminal:
        terminal.wait_for("maintained by")
        assert cvat_pool("prewarm", "scenes", "4", cwd=tmp_path, **known).returncode == 0
        terminal.wait_for("least")
        terminal.process.send_signal(signal.SIGINT)
        terminal.finish()
    assert terminal.process.returncode == 0


def test_a_watched_status_outlasts_its_daemon(tmp_path: Path, simulator: SimulatorServer) -> None:
    write_config(tmp_path, simulator)
    quick = {"pool.cli.status.EVERY": 0.01}
    with running("run", cwd=tmp_path, CVAT_ACCESS_TOKEN=simulator.access_token) as daemon:
        known: dict[str, Any] = {"cwd": tmp_path, "POOL_SERVER": daemon.url}
        with (
            running("status", "--watch", "--json", constants=quick, **known) as lines,
            in_a_terminal("status", "--watch", output=True, **known) as terminal,
        ):
            lines.wait_for('"templates"')
            terminal.wait_for("maintained by")
            assert daemon.stop() == 0
            error = json.loads(lines.wait_for('{"error"'))["error"]
            assert error["code"] == "pool-unreachable"
            terminal.wait_for("(trying again)")
            for process in (lines.process, terminal.process):
                process.send_signal(signal.SIGINT)
                assert process.wait(5) == 0


def test_an_interrupted_wait_ends_at_once_and_the_import_goes_on(
    url: str, tmp_path: Path, simulator: SimulatorServer, there: Command, image_path: Path
) -> None:
    known: dict[str, Any] = {"POOL_SERVER": url, "POOL_API_TOKEN": TOKEN}
    key = ("--key", "interrupted")
    simulator.hold_imports()
    try:
        with in_a_terminal("get", "scenes", image_path, *key, cwd=tmp_path, **known) as terminal:
            terminal.wait_for("importing")
            terminal.process.send_signal(signal.SIGINT)
            assert terminal.process.wait(5) == 130
            terminal.finish()
        assert "Traceback" not in terminal.shown
    finally:
        simulator.release_imports()
    again = there("get", "scenes", image_path, *key)
    assert (again.returncode, again.stdout.count("frames")) == (0, 1)


def test_control_says_what_was_done(there: Command) -> None:
    def line(*command: str) -> str:
        result = there(*command)
        assert (result.returncode, result.stderr) == (0, "")
        (line,) = result.stdout.splitlines()
        return line

    there("lease", "scenes", "--ttl", "1m")
    assert line("pause", "scenes") == "paused scenes"
    assert template(there)["paused_since"] is not None
    assert re.fullmatch(r"drained scenes: (no|\d+) warm tasks? retired", line("drain", "scenes"))
    drained = template(there)
    assert (drained["warm"], drained["paused_since"] is None) == (0, False)
    assert line("resume", "scenes") == "resumed scenes"
    assert line("resume") == "resumed all templates"
    words = line("prewarm", "scenes", "4", "--for", "5m")
    assert re.fullmatch(r"scenes: at least 4 warm until (\d\d \w{3} )?\d\d:\d\d", words)
    assert template(there)["prewarm_size"] == 4
    assert line("prewarm", "scenes", "0") == "scenes: the prewarm has ended"
    assert template(there)["prewarm_size"] == 0


def test_control_in_json(there: Command) -> None:
    def document(*command: str) -> Any:
        result = there(*command, "--json")
        assert (result.returncode, result.stderr) == (0, "")
        return json.loads(result.stdout)

    assert document("pause", "strict") == {"template": "strict", "paused": True}
    assert document("drain", "strict") == {"template": "strict", "paused": True, "retired": 0}
    assert document("resume") == {"template": None, "paused": False}
    prewarm = document("prewarm", "scenes", "3")
    left = datetime.fromisoformat(prewarm["until"]) - datetime.now(UTC)
    assert (prewarm["template"], prewarm["count"]) == ("scenes", 3)
    assert 0 < left.total_seconds() <= 900
    until = {"template": "scenes", "count": 0, "until": None}
    assert document("prewarm", "scenes", "0") == until
    assert document("pause", "strict")["paused"]


@pytest.mark.parametrize(
    ("command", "code", "exit_code"),
    [
        (("pause", "nothing"), "unknown-template", 2),
        (("status", "--server", "http://127.0.0.1:1"), "pool-unreachable", 1),
        (("status", "--config", "no.toml"), "config", 2),
        (("prewarm", "scenes", "many"), "input", 2),
        (("lease", "strict"), "pool-empty", 5),
    ],
)
def test_an_error_is_a_document_with_json_and_one_line_always(
    there: Command, command: tuple[str, ...], code: str, exit_code: int
) -> None:
    if "--config" in command:
        plain, result = (there(*command, *extra, POOL_SERVER="") for extra in ((), ("--json",)))
    else:
        plain, result = there(*command), there(*command, "--json")
    assert (plain.returncode, plain.stdout) == (exit_code, "")
    assert result.returncode == exit_code
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["exit_code"]) == (code, exit_code)
    assert error["title"] and error["detail"]
    assert one_line(result) == one_line(plain)


def test_a_status_that_is_watched_by_a_program(url: str, tmp_path: Path) -> None:
    known: dict[str, Any] = {"POOL_SERVER": url, "POOL_API_TOKEN": TOKEN}
    quick = {"pool.cli.status.EVERY": 0.01}
    with running("status", "--watch", "--json", cwd=tmp_path, constants=quick, **known) as command:
        first = json.loads(command.wait_for("{"))
        assert {each["name"] for each in first["templates"]} >= {"scenes", "strict"}
        assert cvat_pool("prewarm", "scenes", "4", cwd=tmp_path, **known).returncode == 0
        latest = command.wait_for('"prewarm_size": 4')
        assert json.loads(latest)["templates"]
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(5) == 0
    with running("status", "--watch", cwd=tmp_path, constants=quick, **known) as command:
        command.wait_for("at least 4 warm until")
        assert cvat_pool("prewarm", "scenes", "0", cwd=tmp_path, **known).returncode == 0
        command.lines.clear()
        command.wait_for("maintained by")
        command.process.send_signal(signal.SIGINT)
        assert command.process.wait(5) == 0
        assert not any("\x1b" in line for line in command.lines)


def test_drain_and_prewarm_of_the_store_here(config_path: Path) -> None:
    folder = config_path.parent
    assert cvat_pool("prewarm", "scenes", "4", cwd=folder).returncode == 0
    status = json.loads(cvat_pool("status", "--json", cwd=folder).stdout)
    assert status["templates"][0]["prewarm_size"] == 4
    assert cvat_pool("drain", "scenes", cwd=folder).returncode == 0
    assert "paused" in cvat_pool("status", cwd=folder).stdout
    too_many = cvat_pool("prewarm", "scenes", "100000", cwd=folder)
    assert too_many.returncode == 2
    assert "max_size" in one_line(too_many)


# --- Which pool it is -----------------------------------------------------------------------------


def test_a_configuration_that_is_named_goes_before_the_environment(
    there: Command, config_path: Path
) -> None:
    result = there("status", "--json", "--config", config_path)
    (only,) = json.loads(result.stdout)["templates"]
    assert only["target"] == 2


def test_both_at_once_are_refused(there: Command, url: str, config_path: Path) -> None:
    result = there("status", "--server", url, "--config", config_path)
    assert result.returncode == 2
    assert "--config" in one_line(result)


def test_what_is_no_address(there: Command) -> None:
    result = there("status", "--server", "localhost:8765")
    assert result.returncode == 2
    assert "http://host:8765" in one_line(result)


# --- What goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "a-wrong-token"])
def test_a_wrong_token(there: Command, token: str) -> None:
    result = there("status", POOL_API_TOKEN=token)
    assert result.returncode == 1
    assert "POOL_API_TOKEN" in one_line(result)


def test_each_of_several_tokens_will_do(there: Command) -> None:
    assert there("status", POOL_API_TOKEN="old-token").returncode == 0


def test_nobody_answers(there: Command) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = there("status", "--server", address)
    assert result.returncode == 1
    assert f"{address}, connection refused; is 'cvat-pool run' running there?" in one_line(result)


def test_somebody_else_answers(there: Command, simulator: SimulatorServer) -> None:
    result = there("status", "--server", simulator.url)
    assert result.returncode == 1
    assert "answers 404 Not Found, which is not a pool's answer" in one_line(result)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("get", "scenes", "nothing.jpg"), 2, "nothing.jpg"),
        (("get", "scences", "--share", "cam1/a.jpg"), 2, "there is scenes"),
        (("lease", "strict"), 5, "No warm task"),
        (("release", "no-such-lease"), 2, "no-such-lease"),
        (("prewarm", "scenes", "5000"), 2, "max_size"),
        (("prewarm", "scenes", "4", "--for", "soon"), 2, "duration"),
    ],
)
def test_what_cannot_be_done(
    there: Command, arguments: tuple[str, ...], code: int, words: str
) -> None:
    result = there(*arguments)
    assert result.returncode == code
    assert words in one_line(result)


def test_a_file_that_is_no_image(there: Command, tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("this is no image")
    result = there("get", "scenes", path)
    assert result.returncode == 1
    assert "cannot identify image file" in one_line(result)


def test_a_time_out_leaves_the_request_running(
    there: Command, image_path: Path, simulator: SimulatorServer
) -> None:
    simulator.hold_imports()
    try:
        result = there("get", "scenes", image_path, "--timeout", "200ms")
    finally:
        simulator.release_imports()
    assert result.returncode == 3
    assert "still running" in one_line(result)
