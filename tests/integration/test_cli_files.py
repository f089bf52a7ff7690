"""``cvat-pool get FOLDER --job-size N``: many images in few tasks, resumable."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.commands import cvat_pool
from support.pools import HERE, serving, write_config

from pool.cli.files import MOST_BYTES, MOST_FILES, MOST_JOBS, divided, files_of
from pool.config.source import build_upload
from pool.errors import InputError
from pool.simulator import SimulatorServer
from pool.simulator.faults import FailedImport

Run = Callable[..., subprocess.CompletedProcess[str]]


def picture(width: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, 8)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Two cameras with pictures of one name, and what is none."""
    folder = tmp_path / "drive"
    for place, camera in enumerate(("cam2", "cam1", "cam1/.thumbs", "__MACOSX")):
        (folder / camera).mkdir(parents=True)
        for number in range(3):
            (folder / camera / f"{number}.png").write_bytes(picture(10 * (place + 1) + number))
    for name in ("notes.txt", "._0.png", "clip.mp4"):
        (folder / "cam1" / name).write_bytes(b"no picture")
    (folder / "TOP.PNG").write_bytes(picture(99))
    return folder


@pytest.fixture(params=[HERE, "daemon"])
def run(request: pytest.FixtureRequest, tmp_path: Path, simulator: SimulatorServer) -> Any:
    """Runs ``cvat-pool get scenes``, here or over HTTP."""
    path = write_config(tmp_path, simulator)

    def get(*arguments: str | Path, to: str) -> subprocess.CompletedProcess[str]:
        return cvat_pool(
            *("get", "scenes", to.split()[0], to.split()[1]),
            *arguments,
            cwd=tmp_path,
            CVAT_ACCESS_TOKEN=simulator.access_token,
        )

    if request.param == HERE:
        yield lambda *arguments: get(*arguments, to=f"--config {path}")
    else:
        with serving(path, simulator) as daemon:
            yield lambda *arguments: get(*arguments, to=f"--server {daemon.url}")


def requests_of(result: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(result.stdout)["requests"]


def test_a_folder_is_one_task_with_jobs_of_a_size(
    run: Run, drive: Path, simulator: SimulatorServer
) -> None:
    result = run(drive, "--job-size", "3", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    (request,) = requests_of(result)
    ranges = [(job["start_frame"], job["stop_frame"]) for job in request["jobs"]]
    assert ranges == [(0, 2), (3, 5), (6, 6)]
    frames = [(frame["file"], frame["name"], frame["number"]) for frame in request["frames"]]
    assert frames == [
        ("drive/TOP.PNG", "TOP.PNG", 0),
        ("drive/cam1/0.png", "cam1_0.png", 1),
        ("drive/cam1/1.png", "cam1_1.png", 2),
        ("drive/cam1/2.png", "cam1_2.png", 3),
        ("drive/cam2/0.png", "cam2_0.png", 4),
        ("drive/cam2/1.png", "cam2_1.png", 5),
        ("drive/cam2/2.png", "cam2_2.png", 6),
    ]
    data = simulator.state.tasks[request["task_id"]].data
    assert data is not None
    assert [frame.width for frame in data.frames] == [99, 20, 21, 22, 10, 11, 12]


def test_the_same_command_goes_on_where_it_was(
    run: Run, tmp_path: Path, simulator: SimulatorServer
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(MOST_JOBS + 1):
        (folder / f"{number:04}.png").write_bytes(picture(1 + number % 50))
    # An image that CVAT does not read fails its own task, and no other.
    last = folder / f"{MOST_JOBS:04}.png"
    good = last.read_bytes()
    last.write_bytes(b"no picture")
    command = (folder, "--job-size", "1", "--name", "drive", "--json")
    first = run(*command)
    assert first.returncode == 1
    failed, line = first.stderr.splitlines()
    assert failed.startswith(f"{last}: CVAT could not import the data: ")
    assert f"1 of 2 failed, the first with {last}: " in line
    assert line.endswith("; the same command tries these again, and no others")
    assert "cannot identify image file" in failed and "cannot identify image file" in line
    assert [len(request["jobs"]) for request in requests_of(first)] == [MOST_JOBS]
    last.write_bytes(good)
    again = run(*command)
    assert (again.returncode, again.stderr) == (0, "")
    served = requests_of(again)
    assert [len(request["jobs"]) for request in served] == [MOST_JOBS, 1]
    assert served[0] == requests_of(first)[0], "it was not sent again"
    first_task, second_task = (request["task_id"] for request in served)
    simulator.wait_for(lambda state: state.tasks[first_task].name == "drive 1")
    simulator.wait_for(lambda state: state.tasks[second_task].name == "drive 2")
    assert requests_of(run(*command)) == served
    plain = run(*command[:-1])
    # Each task is printed as it is ready; its jobs are in order.
    assert sorted(line.split("\t")[0] for line in plain.stdout.splitlines()) == sorted(
        str(job["id"]) for request in served for job in request["jobs"]
    )


def test_a_run_that_was_cut_short_leaves_what_goes_on(
    run: Run, drive: Path, simulator: SimulatorServer
) -> None:
    command = (drive, "--job-size", "5", "--json")
    simulator.hold_imports()
    try:
        first = run(*command, "--timeout", "3s")
    finally:
        simulator.release_imports()
    assert first.returncode == 3, first.stderr
    assert requests_of(first) == []
    again = run(*command)
    assert again.returncode == 0, again.stderr
    (request,) = requests_of(again)
    assert len(request["jobs"]) == 2
    assert request["request_id"] in first.stderr, "it was not sent again"


def test_what_failed_in_an_earlier_run_is_tried_again(
    run: Run, drive: Path, simulator: SimulatorServer
) -> None:
    command = (drive, "--job-size", "50", "--json")
    with simulator.fault(FailedImport(message="OSError: disk full\n")):
        first = run(*command)
    assert first.returncode == 1
    assert "disk full; the same command tries these again, and no others" in first.stderr
    assert requests_of(first) == []
    again, replayed = run(*command), run(*command)
    assert again.returncode == 0, again.stderr
    assert len(requests_of(again)[0]["jobs"]) == 1
    assert requests_of(again) == requests_of(replayed)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["drive", "--each", "--job-size", "5"], "give one of --each and --job-size"),
        (["drive", "--job-size", "0"], "job_size is a whole number from 1"),
        (["drive", "--job-size", "5", "--key", "k"], "--key is for one request"),
        (["drive/cam1", "no.png", "--job-size", "5"], "no.png: No such file"),
        (["drive/__MACOSX/0.png", "drive/empty", "--job-size", "5"], "empty: has no images"),
        (["drive", "--job-size", "5", "--share", "a.jpg"], "give one of files, share"),
        (["drive", "drive/cam1", "--job-size", "50"], "drive/cam1/0.png: is given twice"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_done(
    config_path: Path, token: str, drive: Path, arguments: list[str], words: str
) -> None:
    (drive / "empty").mkdir()
    result = cvat_pool("get", "scenes", *arguments, cwd=config_path.parent, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert words in line
    assert "requests" not in result.stdout


@pytest.fixture
def token(simulator: SimulatorServer) -> str:
    return simulator.access_token


# --- How files are divided ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "job_size", "tasks"),
    [
        (1, 50, [1]),
        (10_000, 50, [10_000]),
        (20_001, 50, [10_000, 10_000, 1]),
        (1_000, 1, [300, 300, 300, 100]),
        (5, 2, [5]),
        (9_000, 7, [300 * 7] * 4 + [600]),
        # A job is not divided.
        (20_000, 12_000, [12_000, 8_000]),
    ],
)
def test_tasks_are_as_few_as_the_limits_allow(
    tmp_path: Path, files: int, job_size: int, tasks: list[int]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    named = [(f"{number}.png", path) for number in range(files)]
    parts = divided(named, job_size)
    assert [len(part) for part in parts] == tasks
    assert [file for part in parts for file in part] == named
    assert MOST_FILES == 10_000 and MOST_JOBS == 300


def test_large_files_make_more_tasks(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with path.open("wb") as sparse:
        sparse.truncate(MOST_BYTES // 3)
    named = [(f"{number}.png", path) for number in range(8)]
    assert [len(part) for part in divided(named, 2)] == [2, 2, 2, 2]
    assert [len(part) for part in divided(named, 1)] == [3, 3, 2]
    with pytest.raises(InputError, match="No such"):
        divided([("b.png", tmp_path / "b.png")], 1)


def test_files_keep_the_order_in_which_they_are_named(drive: Path) -> None:
    arguments = [str(drive / name) for name in ("cam2", "TOP.PNG", "cam1")]
    names = list(build_upload(files_of(arguments, io.BytesIO())).given)
    assert names == [
        *("cam2/0.png", "cam2/1.png", "cam2/2.png"),
        "TOP.PNG",
        *("cam1/0.png", "cam1/1.png", "cam1/2.png"),
    ]
