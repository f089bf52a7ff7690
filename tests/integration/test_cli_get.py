"""``cvat-pool get`` of folders, patterns and names, of each file and without waiting; ``wait``; and
what an interrupted command leaves."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.api import in_thread
from support.commands import cvat_pool, running
from support.pools import HERE, serving, write_config
from support.terminal import Terminal, in_a_terminal
from support.waiting import wait_until

from pool import TaskPool
from pool.cli.files import files_of
from pool.cli.get import IN_FLIGHT
from pool.config.loader import load
from pool.config.source import build_upload
from pool.daemon import Daemon
from pool.errors import InputError
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.faults import FailedImport, Hang
from pool.simulator.state import State

Run = Callable[..., subprocess.CompletedProcess[str]]


def picture(width: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, 8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Two cameras with two pictures each."""
    folder = tmp_path / "drive"
    for camera in (1, 2):
        (folder / f"cam{camera}").mkdir(parents=True)
        for number in range(2):
            path = folder / f"cam{camera}" / f"{number}.png"
            path.write_bytes(picture(10 * camera + number))
    return folder


@pytest.fixture(params=[HERE, "daemon"])
def run(
    request: pytest.FixtureRequest, tmp_path: Path, simulator: SimulatorServer
) -> Iterator[Run]:
    """Runs a command, here or on a daemon."""
    path = write_config(tmp_path, simulator)

    def command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return cvat_pool(
            *arguments, cwd=tmp_path, CVAT_ACCESS_TOKEN=simulator.access_token, **options
        )

    if request.param == HERE:
        yield command
    else:
        with serving(path, simulator) as daemon:
            yield lambda *arguments, **options: command(
                *arguments, **{"POOL_SERVER": daemon.url, **options}
            )


def documents(result: subprocess.CompletedProcess[str]) -> list[Any]:
    """What a command has printed as lines of JSON."""
    return [json.loads(line) for line in result.stdout.splitlines()]


# --- Files ----------------------------------------------------------------------------------------


def test_a_folder_goes_into_one_task(run: Run, drive: Path, simulator: SimulatorServer) -> None:
    result = run("get", "scenes", drive, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    request = json.loads(result.stdout)
    assert [frame["file"] for frame in request["frames"]] == [
        *("drive/cam1/0.png", "drive/cam1/1.png", "drive/cam2/0.png", "drive/cam2/1.png")
    ]
    data = simulator.state.tasks[request["task_id"]].data
    assert data is not None
    assert sorted(frame.width for frame in data.frames) == [10, 11, 20, 21]


def test_names_on_standard_input_are_the_files(run: Run, drive: Path) -> None:
    names = "drive/cam2/1.png\ndrive/cam1/0.png\n"
    result = run("get", "scenes", "-", "--json", input=names)
    assert (result.returncode, result.stderr) == (0, "")
    files = [frame["file"] for frame in json.loads(result.stdout)["frames"]]
    assert files == ["1.png", "0.png"]


def called(arguments: list[str], names: bytes = b"") -> list[str]:
    return list(build_upload(files_of(arguments, io.BytesIO(names))).given)


@pytest.mark.parametrize(
    ("arguments", "names", "files"),
    [
        (
            ["drive/cam2", "drive/cam1/1.png"],
            b"",
            ["cam2/0.png", "cam2/1.png", "cam1/1.png"],
        ),
        (["drive/cam1/*.png"], b"", ["0.png", "1.png"]),
        (["drive/cam1/[1-9].png"], b"", ["1.png"]),
        (["drive/*/0.png"], b"", ["cam1/0.png", "cam2/0.png"]),
        (["drive/cam*"], b"", [f"cam{cam}/{number}.png" for cam in (1, 2) for number in (0, 1)]),
        (["drive/**/1.png"], b"", ["cam1/1.png", "cam2/1.png"]),
        (["drive/cam1/**"], b"", ["0.png", "1.png"]),
        (["-"], b"drive/cam1/0.png\r\ndrive/cam1/1.png", ["0.png", "1.png"]),
        (["-"], b"drive/cam1/1.png\0odd\nname.png\0", ["1.png", "odd\nname.png"]),
        (["-", "drive/cam1/1.png"], b"drive/cam2\n", ["cam2/0.png", "cam2/1.png", "cam1/1.png"]),
        (["a[1].png"], b"", ["a[1].png"]),
    ],
)
def test_what_arguments_stand_for(
    drive: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    names: bytes,
    files: list[str],
) -> None:
    monkeypatch.chdir(drive.parent)
    for hidden in ("drive/.cam3/0.png", "drive/__MACOSX/0.png", "drive/cam1/.1.png"):
        path = Path(hidden)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture")
    for name in ("a[1].png", "a1.png", "odd\nname.png"):
        Path(name).write_bytes(picture(1))
    assert called(arguments, names) == files


@pytest.mark.parametrize(
    ("arguments", "names", "words"),
    [
        (["drive/*.jpg"], b"", r"drive/\*.jpg: matches no file"),
        (["-"], b"\n\n", "there are no names on standard input"),
        (["drive/cam1/*", "drive/cam1/0.png"], b"", "drive/cam1/0.png: is given twice"),
        (["-"], b"gone.png\n", "gone.png: No such file"),
    ],
)
def test_what_stands_for_no_file_is_refused(
    drive: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    names: bytes,
    words: str,
) -> None:
    monkeypatch.chdir(drive.parent)
    with pytest.raises(InputError, match=words):
        called(arguments, names)


# --- A request for each file ----------------------------------------------------------------------


def test_each_file_has_a_request_and_one_that_fails_stops_no_other(
    run: Run, drive: Path, simulator: SimulatorServer
) -> None:
    bad = drive / "cam1" / "bad.png"
    bad.write_bytes(b"no picture")
    command = ("get", "scenes", "drive/**/*.png", "--each", "--name", "drive")
    first = run(*command, "--json")
    assert first.returncode == 1
    (last,) = first.stderr.splitlines()
    assert "1 of 5 failed, the first with drive/cam1/bad.png: " in last
    assert last.endswith("; the same command tries these again, and no others")
    *lines, error = documents(first)
    assert error["error"]["exit_code"] == 1
    by_file = {line["file"]: line for line in lines}
    assert len(by_file) == 5
    problem = by_file.pop("drive/cam1/bad.png")["error"]
    assert problem["code"] == "import-failed" and "cannot identify" in problem["detail"]
    assert len({line["task_id"] for line in by_file.values()}) == 4
    task = by_file["drive/cam2/1.png"]["task_id"]
    simulator.wait_for(lambda state: state.tasks[task].name == "drive 1.png")
    bad.write_bytes(picture(3))
    again = run(*command)
    assert (again.returncode, again.stderr) == (0, "")
    rows = [line.split("\t") for line in again.stdout.splitlines()]
    ids = {file: int(job_id) for job_id, _, _, file in rows}
    assert ids.pop("drive/cam1/bad.png")
    assert ids == {file: line["jobs"][0]["id"] for file, line in by_file.items()}, "not sent again"
    other = run("get", "scenes", "drive/cam2/*", "--each", "--name", "other", "--json")
    known = {line["request_id"] for line in by_file.values()}
    assert not known & {line["request_id"] for line in documents(other)}


def test_equal_files_have_a_request_each(run: Run, drive: Path) -> None:
    (drive / "cam2" / "0.png").write_bytes((drive / "cam1" / "0.png").read_bytes())
    command = ("get", "scenes", "drive/*/0.png", "--each", "--json")
    first, again = ({line["request_id"] for line in documents(run(*command))} for _ in range(2))
    assert len(first) == 2
    assert again == first


def test_each_waits_for_a_task_that_becomes_warm(
    tmp_path: Path, drive: Path, simulator: SimulatorServer
) -> None:
    path = write_config(tmp_path, simulator)
    pool = 'pool = { min_size = 1, on_empty = "wait", max_wait = "1ms" }'
    path.write_text(f"{path.read_text()}\n[templates.waits]\nlabels = []\n{pool}\n")
    with serving(path, simulator):
        result = cvat_pool(
            *("get", "waits", drive, "--each"),
            cwd=tmp_path,
            CVAT_ACCESS_TOKEN=simulator.access_token,
        )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 4


def test_controls_in_a_name_do_not_reach_the_terminal(
    tmp_path: Path, config_path: Path, simulator: SimulatorServer
) -> None:
    names = ("good\x1b[2J\n.png", "bad\x1b[2J.png")
    for name, content in zip(names, (picture(1), b"no picture"), strict=True):
        (tmp_path / name).write_bytes(content)
    token = simulator.access_token
    text, as_json = (
        cvat_pool("get", "scenes", *names, "--each", *more, cwd=tmp_path, CVAT_ACCESS_TOKEN=token)
        for more in ((), ("--json",))
    )
    assert "\x1b" not in text.stdout + text.stderr
    assert text.stdout.endswith("\tgood?[2J?.png\n")
    assert "bad?[2J.png: CVAT could not import the data" in text.stderr
    assert {line.get("file") for line in documents(as_json)} == {*names, None}


def test_a_failure_that_meets_all_ends_the_command(run: Run, drive: Path) -> None:
    result = run("get", "nothing", drive, "--each")
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "'nothing'; there is " in line


def test_so_many_are_under_way_and_no_more(
    tmp_path: Path, config_path: Path, simulator: SimulatorServer
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(IN_FLIGHT + 4):
        (many / f"{number:02}.png").write_bytes(picture(100 + number))
    before = {*simulator.state.requests}
    simulator.hold_imports()
    try:
        with in_a_terminal(
            *("get", "scenes", "many", "--each"),
            cwd=tmp_path,
            CVAT_ACCESS_TOKEN=simulator.access_token,
        ) as terminal:
            simulator.wait_for(lambda state: imports_of(state, before) == IN_FLIGHT, timeout=60.0)
            terminal.process.send_signal(signal.SIGINT)
            terminal.finish()
    finally:
        simulator.release_imports()
    assert terminal.process.returncode == 130
    assert f"interrupted: 0 of {IN_FLIGHT + 4} ready, {IN_FLIGHT} on their way" in flat(terminal)
    named = re.findall(r"(01\w{24})  many/\d\d\.png", terminal.shown)
    assert len(set(named)) == IN_FLIGHT
    waited = cvat_pool(
        "wait", *named, "--json", cwd=tmp_path, CVAT_ACCESS_TOKEN=simulator.access_token
    )
    assert (waited.returncode, waited.stderr) == (0, "")
    assert {line["request_id"] for line in documents(waited)} == set(named)


def imports_of(state: State, before: set[str]) -> int:
    """How many imports there are that were not there before: also of tasks that are deleted."""
    return len(state.requests.keys() - before)


def flat(terminal: Terminal) -> str:
    """All that was shown, without the breaks of lines."""
    return re.sub(r"[\r\n]+", "", terminal.shown)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_person_sees_one_bar_for_all(
    tmp_path: Path, config_path: Path, drive: Path, simulator: SimulatorServer, columns: int
) -> None:
    (drive / "cam1" / "bad.png").write_bytes(b"no picture" + bytes(2**20))
    with in_a_terminal(
        *("get", "scenes", "drive", "--each"),
        cwd=tmp_path,
        output=True,
        COLUMNS=str(columns),
        CVAT_ACCESS_TOKEN=simulator.access_token,
    ) as terminal:
        terminal.finish()
    assert terminal.process.returncode == 1
    lines = terminal.shown.replace("\r", "\n").split("\n")
    bars = [line for line in lines if " of 5 ready" in line]
    assert bars[-1].startswith("4 of 5 ready, 1 failed") and "1.0/1.0 MB" in bars[-1]
    assert all(len(line.rstrip()) <= columns for line in bars)
    assert sum("frames 0-0" in line for line in lines) == 4
    assert "drive/cam1/bad.png: CVAT could not import the data" in flat(terminal)


def test_the_jobs_are_printed_before_the_name_is_set(
    tmp_path: Path, config_path: Path, image_path: Path, simulator: SimulatorServer
) -> None:
    with (
        simulator.fault(Hang("tasks:patch")) as handle,
        running(
            *("get", "scenes", image_path, "--name", "drive"),
            cwd=tmp_path,
            constants={"pool.cli.request.SETTLE": 1000.0},
            CVAT_ACCESS_TOKEN=simulator.access_token,
        ) as command,
    ):
        command.wait_for("frames 0-0")
        handle.remove()
        assert command.process.wait(60.0) == 0


# --- Without waiting, and waiting later -----------------------------------------------------------


def test_what_was_not_awaited_can_be_awaited_later(
    run: Run, drive: Path, simulator: SimulatorServer
) -> None:
    simulator.hold_imports()
    try:
        sent = run("get", "scenes", drive, "--no-wait")
        assert sent.returncode == 0
        request_id, _ = sent.stdout.strip().split("\t")
        assert sent.stderr == f"'cvat-pool wait {request_id}' waits for its jobs\n"
        late = run("wait", request_id, "--timeout", "50ms")
        assert late.returncode == 3
        assert re.search(
            rf"still running: request {request_id} is (queued|uploading|importing|waiting for .*); "
            rf"'cvat-pool wait {request_id}' goes on",
            late.stderr,
        )
    finally:
        simulator.release_imports()
    waited = run("wait", request_id)
    assert (waited.returncode, waited.stderr) == (0, "")
    assert waited.stdout.endswith("frames 0-3\n")
    document = json.loads(run("wait", request_id, "--json").stdout)
    assert (document["request_id"], document["state"]) == (request_id, "ready")


def test_each_without_waiting_prints_the_ids(run: Run, drive: Path) -> None:
    sent = run("get", "scenes", drive / "cam1", "--each", "--no-wait", "--json")
    assert sent.returncode == 0
    lines = documents(sent)
    assert sorted(line["file"] for line in lines) == sorted(map(str, (drive / "cam1").iterdir()))
    waited = run("wait", *(line["request_id"] for line in lines))
    assert (waited.returncode, waited.stderr) == (0, "")
    assert len(waited.stdout.splitlines()) == 2


def test_waiting_for_a_lease_and_for_what_there_is_not(run: Run, drive: Path) -> None:
    unknown = run("wait", "01kdw8tz00000000000000000")
    assert unknown.returncode == 2
    assert "nor is it a lease; 'cvat-pool requests'" in unknown.stderr
    lease = json.loads(run("lease", "scenes", "--json").stdout)
    late = run("wait", lease["id"], "--timeout", "50ms")
    assert late.returncode == 3
    assert f"lease {lease['id']} is waiting for its data" in late.stderr


def test_what_failed_is_said_by_a_wait(run: Run, drive: Path, simulator: SimulatorServer) -> None:
    with simulator.fault(FailedImport(message="OSError: disk full\n", times=1)) as handle:
        sent = run("get", "scenes", drive / "cam1", "--no-wait")
        handle.wait()
    result = run("wait", sent.stdout.split()[0])
    assert result.returncode == 1
    assert "CVAT could not import the data: OSError: disk full" in result.stderr


# --- Ctrl-C ---------------------------------------------------------------------------------------


def test_an_interrupted_wait_names_the_request_and_how_to_go_on(
    tmp_path: Path, config_path: Path, image_path: Path, simulator: SimulatorServer
) -> None:
    simulator.hold_imports()
    try:
        with in_a_terminal(
            *("get", "scenes", image_path),
            cwd=tmp_path,
            CVAT_ACCESS_TOKEN=simulator.access_token,
        ) as terminal:
            terminal.wait_for("importing…")
            terminal.process.send_signal(signal.SIGINT)
            terminal.finish()
    finally:
        simulator.release_imports()
    assert terminal.process.returncode == 130
    found = re.search(
        r"interrupted: request (01\w{24}), which is importing; 'cvat-pool wait \1' goes on",
        flat(terminal),
    )
    assert found is not None, terminal.shown
    assert "Traceback" not in terminal.shown
    waited = cvat_pool("wait", found[1], cwd=tmp_path, CVAT_ACCESS_TOKEN=simulator.access_token)
    assert (waited.returncode, waited.stderr) == (0, "")
    assert waited.stdout.endswith("frames 0-0\n")


def test_an_interrupted_upload_has_failed_and_says_so(
    tmp_path: Path, config_path: Path, image_path: Path, simulator: SimulatorServer
) -> None:
    text = config_path.read_text()
    # In pieces, so that the first is no longer the preparation.
    config_path.write_text(text.replace('"20s" }', '"20s", single_request_limit = "1 KiB" }'))
    with (
        simulator.fault(Hang("tus:patch")) as handle,
        in_a_terminal(
            *("get", "scenes", image_path),
            cwd=tmp_path,
            CVAT_ACCESS_TOKEN=simulator.access_token,
        ) as terminal,
    ):
        handle.wait()
        terminal.process.send_signal(signal.SIGINT)
        terminal.finish()
    assert terminal.process.returncode == 130
    found = re.search(
        r"interrupted while request (01\w{24}) was being sent: it has failed, so send it again",
        flat(terminal),
    )
    assert found is not None, terminal.shown
    waited = cvat_pool("wait", found[1], cwd=tmp_path, CVAT_ACCESS_TOKEN=simulator.access_token)
    assert waited.returncode == 1
    assert "the upload was interrupted" in waited.stderr


def test_an_interrupted_upload_to_a_daemon_names_the_key(tmp_path: Path, image_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        in_a_terminal(
            *("get", "scenes", image_path),
            cwd=tmp_path,
            POOL_SERVER=f"http://127.0.0.1:{listener.getsockname()[1]}",
        ) as terminal,
    ):
        connection, _ = listener.accept()
        with closing(connection):
            head = connection.recv(2**16).decode("latin-1")
            terminal.process.send_signal(signal.SIGINT)
            terminal.finish()
    assert terminal.process.returncode == 130
    key = re.search(r"idempotency-key: (\w+)", head, re.IGNORECASE)
    assert key is not None
    assert f"the same command with '--key {key[1]}' goes on" in flat(terminal)


# --- While CVAT is away ---------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    """One of our own, for others would miss it."""
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        monkeypatch.setenv("CVAT_ACCESS_TOKEN", server.access_token)
        yield server


class Queued:
    """A request that waits in the spool, since CVAT is away."""

    def __init__(self, server: SimulatorServer, folder: Path, pool: TaskPool, image: Path) -> None:
        self._server = server
        self._folder = folder
        self._pool = pool
        wait_until(pool.store, lambda: pool.status().templates[0].warm >= 1)
        server.actions.down()
        self.id, state = self.run("get", "scenes", image, "--no-wait").stdout.split()
        assert state == "queued"
        wait_until(pool.store, lambda: pool.status().hold_reason)

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        token = self._server.access_token
        return cvat_pool(*arguments, cwd=self._folder, CVAT_ACCESS_TOKEN=token)

    def end_outage(self) -> None:
        self._server.actions.up()
        self._pool.resume()


def test_what_is_queued_says_what_it_waits_for(
    tmp_path: Path, drive: Path, image_path: Path, server: SimulatorServer
) -> None:
    path = write_config(tmp_path, server)
    words = "waiting for CVAT, which cannot be reached: "
    with in_thread(Daemon(load(path))) as daemon, TaskPool.from_config(path) as pool:
        queued = Queued(server, tmp_path, pool, image_path)
        late = queued.run("wait", queued.id, "--timeout", "50ms")
        assert late.returncode == 3
        assert f"request {queued.id} is {words}" in late.stderr
        with in_a_terminal(
            *("get", "scenes", "drive", "--each"), cwd=tmp_path, POOL_SERVER=daemon.url
        ) as many:
            many.wait_for(words)
            many.process.send_signal(signal.SIGINT)
            many.finish()
        with in_a_terminal(
            *("wait", queued.id), cwd=tmp_path, POOL_SERVER=daemon.url, COLUMNS="200"
        ) as terminal:
            terminal.wait_for(words)
            queued.end_outage()
            assert terminal.finish().endswith("frames 0-0\n")
    assert terminal.process.returncode == 0
    assert "importing" not in terminal.shown.partition(words)[0]


def test_what_a_daemon_has_left_is_served_by_who_waits_for_it(
    tmp_path: Path, image_path: Path, server: SimulatorServer
) -> None:
    path = write_config(tmp_path, server)
    with TaskPool.from_config(path) as pool:
        with in_thread(Daemon(load(path))):
            queued = Queued(server, tmp_path, pool, image_path)
        queued.end_outage()
        waited = queued.run("wait", queued.id)
    assert (waited.returncode, waited.stderr) == (0, "")
    assert waited.stdout.endswith("frames 0-0\n")


# --- What was done, in one line -------------------------------------------------------------------


def test_what_is_wanted_no_more(run: Run, image_path: Path) -> None:
    request_id = json.loads(run("get", "scenes", image_path, "--json").stdout)["request_id"]
    late = run("cancel", request_id)
    assert late.returncode == 1
    assert f"request {request_id} is ready; 'cvat-pool erase' hides its frames" in late.stderr
    erased = json.loads(run("erase", request_id, "--json").stdout)
    assert (erased["request_id"], erased["state"]) == (request_id, "ready")
    assert erased["hidden"] in ("pending", "done")
    again = run("erase", request_id)
    assert (again.returncode, again.stderr) == (0, "")
    assert re.fullmatch(
        rf"(hid|will hide) the frames of {request_id}; their bytes stay in CVAT until task "
        rf"{erased['task_id']} is deleted\n",
        again.stdout,
    )
    unknown = run("cancel", "01kdw8tz00000000000000000")
    assert unknown.returncode == 2
    assert "'cvat-pool requests' lists them" in unknown.stderr
