"""The command line, as processes of their own, against the simulator."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.commands import cvat_pool, running
from support.terminal import in_a_terminal
from typer.testing import CliRunner

from pool import Job, Request, TaskPool
from pool.cli.app import app
from pool.clock import SystemClock
from pool.simulator import SimulatorServer
from pool.store import open_store


@pytest.fixture
def folder(config_path: Path) -> Path:
    return config_path.parent


@pytest.fixture
def token(simulator: SimulatorServer) -> str:
    return simulator.access_token


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """What the command complained of: one line, no traceback."""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("cvat-pool: ")
    return line


def test_get_prints_job_ids(folder: Path, token: str, image_path: Path) -> None:
    result = cvat_pool("get", "scenes", image_path, cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert (result.returncode, result.stderr) == (0, "")
    job_id, url, frames = result.stdout.strip().split("\t")
    assert job_id.isdecimal()
    assert url.endswith(f"/jobs/{job_id}")
    assert frames == "frames 0-0"


def test_get_as_json_and_with_a_key(folder: Path, token: str, image_path: Path) -> None:
    answers = [
        json.loads(
            cvat_pool(
                "get",
                "scenes",
                image_path,
                "--json",
                "--key",
                "k",
                "--name",
                "n",
                "--priority",
                "bulk",
                cwd=folder,
                CVAT_ACCESS_TOKEN=token,
            ).stdout
        )
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    names = {"request_id", "task_id", "url", "template", "outcome", "jobs", "frames", "warnings"}
    assert set(answers[0]) == names | {"placed", "no_slot", "state", "stream"}
    assert (answers[0]["placed"], answers[0]["no_slot"]) == ("task", None)
    assert answers[0]["frames"] == [{"file": "frame.jpg", "name": "frame.jpg", "number": 0}]
    assert set(answers[0]["jobs"][0]) == {"id", "url", "start_frame", "stop_frame", "assignee"}
    store = open_store(f"sqlite:///{folder / 'pool.db'}")
    request = store.request(answers[0]["request_id"])
    store.close()
    assert request is not None
    assert request.priority == "bulk"


def test_get_makes_jobs_of_a_size(folder: Path, token: str, image_path: Path) -> None:
    result = cvat_pool(
        *("get", "scenes", "--job-size", "2", "--json"),
        *("--share", "cam1/b.jpg", "--share", "cam1/a.jpg"),
        cwd=folder,
        CVAT_ACCESS_TOKEN=token,
    )
    assert [job["stop_frame"] for job in json.loads(result.stdout)["jobs"]] == [1]
    files = [folder / name / "0001.jpg" for name in ("cam2", "cam1")]
    for file in files:
        file.parent.mkdir()
        file.write_bytes(image_path.read_bytes())
    result = cvat_pool(
        *("get", "scenes", "--job-size", "1", "--json"),
        *files,
        cwd=folder,
        CVAT_ACCESS_TOKEN=token,
    )
    answer = json.loads(result.stdout)
    assert [(job["start_frame"], job["stop_frame"]) for job in answer["jobs"]] == [(0, 0), (1, 1)]
    assert answer["frames"] == [
        {"file": "cam2/0001.jpg", "name": "cam2_0001.jpg", "number": 0},
        {"file": "cam1/0001.jpg", "name": "cam1_0001.jpg", "number": 1},
    ]


def test_get_from_the_share(folder: Path, token: str) -> None:
    result = cvat_pool(
        "get",
        "scenes",
        "--share",
        "cam1/a.jpg",
        "--share",
        "cam1/b.jpg",
        cwd=folder,
        CVAT_ACCESS_TOKEN=token,
    )
    assert result.stdout.strip().endswith("frames 0-1")


def test_lease_and_release(folder: Path, token: str) -> None:
    taken = cvat_pool(
        "lease", "scenes", "--name", "drive 7", "--json", cwd=folder, CVAT_ACCESS_TOKEN=token
    )
    lease = json.loads(taken.stdout)
    fields = {
        *("id", "name", "task_id", "task_name"),
        *("url", "template", "outcome", "expires_at", "jobs"),
    }
    assert set(lease) == fields and lease["jobs"] is None
    assert lease["name"] == "drive 7"
    back = cvat_pool("release", lease["id"], cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert (back.returncode, back.stderr) == (0, "")
    assert back.stdout == f"released {lease['id']}\n"
    again = cvat_pool("release", lease["id"], cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert again.returncode == 1
    assert "released" in one_line(again)


def test_status_needs_no_server(folder: Path) -> None:
    table = cvat_pool("status", cwd=folder)
    assert table.returncode == 0
    assert "scenes" in table.stdout
    assert "cvat-pool run" in table.stdout
    status = json.loads(cvat_pool("status", "--json", cwd=folder).stdout)
    (template,) = status["templates"]
    assert (template["name"], template["target"], template["warm"]) == ("scenes", 2, 0)


def test_pause_shows_in_the_status(folder: Path) -> None:
    assert cvat_pool("pause", "scenes", cwd=folder).returncode == 0
    assert "paused" in cvat_pool("status", cwd=folder).stdout
    assert cvat_pool("resume", "scenes", cwd=folder).returncode == 0
    assert "paused" not in cvat_pool("status", cwd=folder).stdout


def test_check_passes_and_leaves_nothing_behind(
    folder: Path, token: str, simulator: SimulatorServer
) -> None:
    before = len(simulator.state.tasks)
    result = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 0, result.stdout
    assert "CVAT 2.73.0" in result.stdout
    assert "template scenes: accepted" in result.stdout
    assert len(simulator.state.tasks) == before


def test_get_tells_of_an_assignee_that_is_none(folder: Path, token: str, image_path: Path) -> None:
    plain, as_json = (
        cvat_pool(
            *("get", "scenes", image_path, "--assignee", "999", *more),
            cwd=folder,
            CVAT_ACCESS_TOKEN=token,
        )
        for more in ((), ("--json",))
    )
    assert (plain.returncode, as_json.returncode) == (0, 0)
    assert plain.stdout.strip().endswith("frames 0-0")
    first = plain.stderr.splitlines()[0]
    assert first.startswith("Warning: CVAT shows no user 999")
    assert first.endswith("(unknown-assignee)")
    warnings = json.loads(as_json.stdout)["warnings"]
    assert warnings[0]["code"] == "unknown-assignee"
    assert [f"Warning: {each['text']} ({each['code']})" for each in warnings] == (
        as_json.stderr.splitlines()
    )


def test_check_shows_what_cvat_takes_although_it_is_of_no_use(
    folder: Path, token: str, simulator: SimulatorServer
) -> None:
    config = folder / "config.toml"
    labels = '{ name = "two\u202fwords", color = "red" }, { name = "b", color = "blue" }'
    config.write_text(config.read_text() + f"\n[templates.odd]\nlabels = [{labels}]\n")
    result = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 0, result.stdout
    assert "ok    template odd: accepted" in result.stdout
    warned = [line for line in result.stdout.splitlines() if line.startswith("warn  ")]
    assert [line.rpartition(", found ")[2] for line in warned] == ['"red"', '"blue"']
    as_json = cvat_pool("check", "--json", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert json.loads(as_json.stdout)[0]["warnings"] == [line[6:] for line in warned]


def test_check_says_which_tokens_have_a_secret_of_their_own(folder: Path, token: str) -> None:
    config = folder / "config.toml"
    config.write_text(
        # Tokens in the file alone let it be reached from elsewhere.
        config.read_text().replace("port = 0", 'port = 0\nhost = "0.0.0.0"')
        + "".join(
            f'\n[tokens.{name}]\nrole = "submit"\nsecret = "${{T_{name.upper()}}}"\n'
            for name in ("robot", "other", "third", "none")
        )
    )
    environment: dict[str, Any] = {"CVAT_ACCESS_TOKEN": token, "POOL_API_TOKEN": ""}
    environment |= {"T_ROBOT": "hunter2", "T_OTHER": "fresh, hunter2", "T_THIRD": "hunter3"}
    result = cvat_pool("check", cwd=folder, **environment)
    assert result.returncode != 0, result.stdout
    lines = {line.split(":")[0]: line for line in result.stdout.splitlines()}
    assert lines["ok    exposure"] == "ok    exposure: listens at 0.0.0.0"
    assert lines["ok    token robot"].endswith("submit, all templates; its secret was found")
    assert "ok    token third" in lines
    (other,) = (line for line in lines.values() if "token other" in line)
    assert "the secret of tokens.other is that of tokens.robot: each needs its own" in other
    (none,) = (line for line in lines.values() if "token none" in line)
    assert "T_NONE, which is not set" in none
    environment |= {"T_OTHER": "hunter4", "T_NONE": "hunter5", "POOL_API_TOKEN": "x, hunter5"}
    again = cvat_pool("check", cwd=folder, **environment)
    assert "the secret of tokens.none is one of POOL_API_TOKEN" in again.stdout
    for secret in ("hunter", "fresh"):
        assert secret not in f"{result.stdout}{result.stderr}{again.stdout}{again.stderr}"


def test_check_names_assignees_that_cvat_does_not_know(
    folder: Path, token: str, simulator: SimulatorServer
) -> None:
    config = folder / "config.toml"
    known = simulator.state.users[min(simulator.state.users)].username
    config.write_text(
        f"{config.read_text()}\n[templates.divided]\nlabels = []\n"
        f'assignees = ["{known}", "ghost"]\n'
    )
    result = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 0, result.stdout
    warned = [line for line in result.stdout.splitlines() if line.startswith("warn  ")]
    assert warned == ["warn  CVAT shows no user ghost, an assignee"]


# --- What goes wrong: a line that says what to do, and an exit code -----------------------------


def test_an_unreachable_server(folder: Path, token: str, image_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        config = folder / "config.toml"
        config.write_text(
            f'[cvat]\nurl = "http://127.0.0.1:{port}"\n[templates.scenes]\nlabels = []\n'
        )
        result = cvat_pool("get", "scenes", image_path, cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in one_line(result)


@pytest.mark.parametrize("command", ["get", "check"])
def test_a_wrong_token(folder: Path, image_path: Path, command: str) -> None:
    arguments = ["scenes", str(image_path)] if command == "get" else []
    result = cvat_pool(command, *arguments, cwd=folder, CVAT_ACCESS_TOKEN="wrong-one")
    assert result.returncode == 4
    assert "refused the credentials" in result.stdout + result.stderr
    assert "wrong-one" not in result.stdout + result.stderr


@pytest.mark.parametrize("command", ["get", "check"])
def test_a_read_only_token(
    folder: Path, simulator: SimulatorServer, image_path: Path, command: str
) -> None:
    arguments = ["scenes", str(image_path)] if command == "get" else []
    result = cvat_pool(command, *arguments, cwd=folder, CVAT_ACCESS_TOKEN=simulator.readonly_token)
    assert result.returncode == 4
    assert "read-only" in result.stdout + result.stderr


@pytest.mark.parametrize("command", ["get", "lease"])
def test_no_credentials(folder: Path, image_path: Path, command: str) -> None:
    arguments = ["scenes", image_path] if command == "get" else ["scenes"]
    result = cvat_pool(command, *arguments, cwd=folder, HOME=str(folder))
    assert result.returncode == 2
    assert "CVAT_ACCESS_TOKEN" in one_line(result)
    status = json.loads(cvat_pool("status", "--json", cwd=folder).stdout)
    (levels,) = [each for each in status["templates"] if each["name"] == "scenes"]
    assert (levels["creating"], levels["waiting"], levels["queued"]) == (0, 0, 0)


def test_an_unknown_organization(folder: Path, token: str, image_path: Path) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("[cvat]", '[cvat]\norganization = "nobody"'))
    result = cvat_pool("get", "scenes", image_path, cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 1
    assert "nobody" in one_line(result)


def test_a_template_that_the_server_refuses(folder: Path, token: str, image_path: Path) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text() + "\n[templates.lost]\nproject = 999999\n")
    result = cvat_pool("get", "lost", image_path, cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 1
    assert "Project matching query does not exist" in one_line(result)
    check = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert check.returncode == 1
    assert "ok    template scenes" in check.stdout
    assert "FAIL  template lost" in check.stdout


def test_check_says_what_to_look_at_when_cvat_fails_at_a_template(folder: Path, token: str) -> None:
    config = folder / "config.toml"
    config.write_text(
        f"{config.read_text()}\n[templates.poisoned]\nlabels = []\ntask = {{ assignee = 99999 }}\n"
    )
    check = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert check.returncode == 1
    (line,) = (line for line in check.stdout.splitlines() if "template poisoned" in line)
    assert "HTTP 500" in line
    assert line.endswith("so look at the template's assignee 99999")


def test_a_missing_file(folder: Path, token: str) -> None:
    result = cvat_pool("get", "scenes", "nothing.jpg", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 2
    assert "nothing.jpg" in one_line(result)


def test_a_file_that_is_no_image(folder: Path, token: str) -> None:
    (folder / "text.jpg").write_text("this is no image")
    result = cvat_pool("get", "scenes", "text.jpg", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 1
    assert "cannot identify image file" in one_line(result)


def test_an_unknown_template(folder: Path, token: str, image_path: Path) -> None:
    result = cvat_pool("get", "scences", image_path, cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 2
    assert "there is scenes" in one_line(result)


def test_an_empty_pool_that_may_not_create(folder: Path, token: str) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('"5s"', '"200ms", on_empty = "fail"'))
    result = cvat_pool("lease", "scenes", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 5
    assert "No warm task" in one_line(result)


def test_a_time_out_leaves_the_request_running(
    folder: Path, token: str, image_path: Path, simulator: SimulatorServer
) -> None:
    simulator.hold_imports()
    try:
        result = cvat_pool(
            "get",
            "scenes",
            image_path,
            "--timeout",
            "100ms",
            cwd=folder,
            CVAT_ACCESS_TOKEN=token,
        )
    finally:
        simulator.release_imports()
    assert result.returncode == 3
    assert "still running" in one_line(result)


def test_the_time_out_is_for_the_whole_of_get(
    folder: Path, log_in: None, image_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[float] = []
    patience: list[float | None] = []
    submit, jobs, monotonic = TaskPool.submit, Request.jobs, SystemClock.monotonic

    def slow(pool: TaskPool, *arguments: Any, **options: Any) -> Request:
        patience.append(options["timeout"])
        request = submit(pool, *arguments, **options)
        late.append(50.0)
        return request

    def waits(request: Request, timeout: float | None = None) -> list[Job]:
        patience.append(timeout)
        return jobs(request, timeout)

    monkeypatch.setattr(TaskPool, "submit", slow)
    monkeypatch.setattr(Request, "jobs", waits)
    monkeypatch.setattr(SystemClock, "monotonic", lambda clock: monotonic(clock) + sum(late))
    config = ["--config", str(folder / "config.toml")]
    result = CliRunner().invoke(
        app, ["get", "scenes", str(image_path), "--timeout", "60s", *config]
    )
    assert result.exit_code == 0
    to_a_task, to_the_jobs = patience
    assert to_a_task is not None and 50.0 < to_a_task <= 60.0
    assert to_the_jobs is not None and 0.0 < to_the_jobs <= 10.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[cvta]\n", "config.toml:1"),
        ("[templates.scenes]\nlabels = []\nmin_size = 3\n", "config.toml:3"),
        ("not toml", "config.toml:1"),
    ],
)
def test_a_wrong_configuration_names_its_line(folder: Path, text: str, words: str) -> None:
    (folder / "config.toml").write_text(text)
    result = cvat_pool("status", cwd=folder)
    assert result.returncode == 2
    assert words in one_line(result)


def test_no_configuration(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = cvat_pool("status", cwd=empty)
    assert result.returncode == 2
    assert "config.toml" in one_line(result)


def test_a_store_in_a_folder_that_is_not_there(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text() + '\n[store]\nurl = "sqlite:///nowhere/pool.db"\n')
    result = cvat_pool("status", cwd=folder)
    assert result.returncode == 1
    assert "nowhere" in one_line(result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("gte", "no such command 'gte'. Did you mean 'get'; try 'cvat-pool --help'"),
        ("status --nope", "no such option: --nope; try 'cvat-pool status --help'"),
        ("get", "missing argument 'template'; try 'cvat-pool get --help'"),
        ("lease scenes --ttl 5", "--ttl '5': expected a duration with a unit"),
        ("prewarm scenes 3 --for 1x", "--for '1x': expected a duration"),
        ("--log-level", "option '--log-level' requires an argument"),
        ("webhook nope", "no such command 'nope'; try 'cvat-pool webhook --help'"),
        ("simulator --port 99999", "invalid value for '--port': "),
    ],
)
def test_wrong_usage_is_said_in_one_line(folder: Path, arguments: str, words: str) -> None:
    result = cvat_pool(*arguments.split(), cwd=folder)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in one_line(result)


@pytest.mark.parametrize(("arguments", "code"), [("", 2), ("webhook", 2), ("-h", 0), ("get -h", 0)])
def test_help_is_shown_as_a_whole(folder: Path, arguments: str, code: int) -> None:
    result = cvat_pool(*arguments.split(), cwd=folder)
    assert (result.returncode, result.stderr) == (code, "")
    assert "Usage: cvat-pool" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--log-level", "loud", "status"),
        ("status", "--log-level", "loud"),
        ("status", "--json", "--log-level=loud"),
    ],
)
def test_the_log_level_may_stand_anywhere(folder: Path, arguments: tuple[str, ...]) -> None:
    result = cvat_pool(*arguments, cwd=folder)
    assert result.returncode == 2
    assert "--log-level 'loud': give debug, info, warning or error" in one_line(result)


def test_a_file_may_be_called_like_an_option(folder: Path, token: str) -> None:
    result = cvat_pool("get", "scenes", "--", "--log-json", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 2
    assert "--log-json" in one_line(result)


def test_help_is_broken_at_the_width_of_the_terminal(folder: Path) -> None:
    wide = cvat_pool("get", "-h", cwd=folder, COLUMNS="300").stdout
    assert "With --job-size, the images of folders and patterns go into as many tasks" in wide
    for columns in (60, 80):
        narrow = cvat_pool("get", "-h", cwd=folder, COLUMNS=str(columns)).stdout
        assert max(map(len, narrow.splitlines())) <= columns
        prose = [line for line in narrow.partition("Arguments")[0].splitlines() if line.strip()]
        assert sum(len(line.split()) < 4 for line in prose) <= 5, "ends of paragraphs alone"


def test_the_version(folder: Path) -> None:
    from pool import __version__

    assert cvat_pool("--version", cwd=folder).stdout == f"cvat-task-pool {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--port", "{taken}"], 1, "Cannot listen: 127.0.0.1:{taken}: address already in use"),
        (["--host", "192.0.2.1"], 1, "Cannot listen: 192.0.2.1:8766: cannot assign"),
        (["--host", "no.such.host.invalid"], 1, "Cannot listen: no.such.host.invalid:8766: "),
        (["--share", "nowhere"], 2, "'nowhere' does not exist"),
        (["--share", "config.toml"], 2, "'config.toml' is a file"),
        (["--faults", "nowhere"], 2, "cannot read nowhere"),
        (["--token", "a b"], 2, "--token 'a b': give ASCII letters"),
        (["--cloud-storage", "nowhere"], 2, "'nowhere' is no folder"),
        (["--cloud-storage", "s3://"], 2, "'s3://' is not s3://BUCKET"),
        (["--speed", "inf"], 2, "or equal to 1000"),
        (["--speed", "nan"], 2, "invalid value for '--speed'"),
    ],
)
def test_a_simulator_that_cannot_start_says_why(
    folder: Path, arguments: list[str], code: int, words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        filled = [argument.format(taken=taken) for argument in arguments]
        result = cvat_pool("simulator", *filled, cwd=folder)
    assert result.returncode == code
    assert words.format(taken=taken) in one_line(result)


def test_checks_are_broken_between_words_on_a_narrow_terminal(folder: Path, token: str) -> None:
    known: dict[str, Any] = {"cwd": folder, "CVAT_ACCESS_TOKEN": token}
    with in_a_terminal("check", output=True, COLUMNS="40", **known) as terminal:
        terminal.finish()
    assert terminal.process.returncode == 0
    lines = terminal.shown.replace("\r", "").splitlines()
    assert "ok    template scenes: accepted (one" in lines
    assert "      task created and deleted)" in lines
    plain = cvat_pool("check", COLUMNS="40", **known).stdout
    assert "ok    template scenes: accepted (one task created and deleted)\n" in plain


def test_mistakes_of_the_file_are_in_the_error_in_json(folder: Path) -> None:
    (folder / "config.toml").write_text('[daemon]\nport = "x"\ntik = "5s"\n')
    result = cvat_pool("pause", "scenes", "--json", cwd=folder)
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert (error["code"], error["exit_code"]) == ("config", 2)
    assert [(each["line"], each["key"]) for each in error["problems"]] == [
        (2, "daemon.port"),
        (3, "daemon.tik"),
    ]
    assert "config.toml:2: daemon.port" in one_line(result)


# --- What run needs, and check finds -----------------------------------------------------------


def test_every_mistake_of_the_file_is_shown_with_its_line(folder: Path, token: str) -> None:
    (folder / "config.toml").write_text(
        '[daemon]\nport = "x"\ntik = "5s"\n[templates.a]\nlabels = [{ name = "" }]\n'
        '[templates.b]\nlabels_file = "labels.json"\n'
    )
    (folder / "labels.json").write_text('[{"name": "a", "type": "circle"}, {"name": "a"}]')
    result = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert (result.returncode, result.stderr) == (2, "")
    *lines, last = result.stdout.splitlines()
    assert last == f"{len(lines)} mistakes in the configuration"
    places = [line.partition(": ")[2].split(" ")[0] for line in lines]
    assert places[:3] == ["config.toml:2:", "config.toml:3:", "config.toml:5:"]
    assert set(places[3:]) == {"config.toml:7:"}
    assert all(line.startswith("FAIL  configuration: ") for line in lines)
    shown = json.loads(cvat_pool("check", "--json", cwd=folder).stdout)
    assert [each["detail"] for each in shown] == [line.partition(": ")[2] for line in lines]
    run = cvat_pool("run", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert run.returncode == 2
    assert f"and {len(lines) - 1} more: 'cvat-pool check' shows all" in one_line(run)


SINK = '\n[[events.sinks]]\nurl = "http://127.0.0.1:9/hook"\n'


@pytest.mark.parametrize(
    ("old", "new", "code", "words"),
    [
        ("port = 0", 'port = 0\nhost = "0.0.0.0"', 2, "set a token in POOL_API_TOKEN"),
        ("port = 0", "port = {taken}", 1, "127.0.0.1:{taken}: address already in use"),
        ("[daemon]", f'{SINK}secret = "${{NONE}}"\n[daemon]', 2, "in NONE, which is not set"),
        ("[daemon]", '[store]\nspool = "config.toml"\n[daemon]', 1, "config.toml: not a directory"),
        ("[daemon]", '[store]\nspool = "/proc/x"\n[daemon]', 1, "cannot write to /proc: no such"),
        ("[templates.scenes]", "", 2, "there is no template"),
    ],
)
def test_check_and_run_refuse_the_same(
    folder: Path, token: str, old: str, new: str, code: int, words: str
) -> None:
    config = folder / "config.toml"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = str(listener.getsockname()[1])
        text = config.read_text()
        kept = text.partition(old)[0] if old == "[templates.scenes]" else None
        config.write_text(kept or text.replace(old, new.replace("{taken}", taken)))
        checked = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
        assert (checked.returncode, checked.stderr) == (code, "")
        assert words.format(taken=taken) in checked.stdout
        if code:
            started = cvat_pool("run", cwd=folder, CVAT_ACCESS_TOKEN=token)
            assert started.returncode == code
            assert words.format(taken=taken) in started.stderr.splitlines()[-1]
            assert "Traceback" not in started.stderr


def test_check_passes_beside_the_daemon_that_has_the_port(folder: Path, token: str) -> None:
    config = folder / "config.toml"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    config.write_text(config.read_text().replace("port = 0", f"port = {port}"))
    with running("run", cwd=folder, CVAT_ACCESS_TOKEN=token) as daemon:
        daemon.wait_for("maintenance begun")
        result = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
        assert result.returncode == 0, result.stdout
        assert "port: in use by a daemon that is at work on the store" in result.stdout
        assert daemon.stop() == 0
