"""What ``cvat-pool get`` shows on a terminal, and to no program."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.commands import cvat_pool
from support.terminal import in_a_terminal

from pool.simulator import SimulatorServer
from pool.simulator.faults import Hang


@pytest.fixture
def large(image: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "large.jpg"
    path.write_bytes(image + bytes(3 * 2**20))
    return path


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_person_sees_the_upload_and_then_that_it_is_being_imported(
    config_path: Path, simulator: SimulatorServer, large: Path, columns: int
) -> None:
    simulator.hold_imports()
    try:
        with in_a_terminal(
            "get",
            "scenes",
            large,
            cwd=config_path.parent,
            COLUMNS=str(columns),
            CVAT_ACCESS_TOKEN=simulator.access_token,
        ) as terminal:
            terminal.wait_for("importing…")
            simulator.release_imports()
            output = terminal.finish()
    finally:
        simulator.release_imports()
    assert terminal.process.returncode == 0
    assert output.rstrip().endswith("frames 0-0")
    lines = terminal.shown.replace("\r", "\n").split("\n")
    bar = next(line for line in reversed(lines) if line.startswith("uploading"))
    assert "100%" in bar and "3.2/3.2 MB" in bar
    assert all(len(line) <= columns for line in lines)


def test_a_small_upload_is_not_worth_a_bar(
    config_path: Path, simulator: SimulatorServer, image_path: Path
) -> None:
    with in_a_terminal(
        "get",
        "scenes",
        image_path,
        cwd=config_path.parent,
        CVAT_ACCESS_TOKEN=simulator.access_token,
    ) as terminal:
        output = terminal.finish()
    assert output.rstrip().endswith("frames 0-0")
    # A spinner comes and goes where the machine is slow.
    assert "%" not in terminal.shown and " MB" not in terminal.shown


def test_a_person_sees_that_there_is_no_task_yet(
    config_path: Path, simulator: SimulatorServer, image_path: Path
) -> None:
    with (
        simulator.fault(Hang("tasks:create")) as handle,
        in_a_terminal(
            "get",
            "scenes",
            image_path,
            cwd=config_path.parent,
            CVAT_ACCESS_TOKEN=simulator.access_token,
        ) as terminal,
    ):
        terminal.wait_for("waiting for a task…")
        handle.remove()
        assert terminal.finish().rstrip().endswith("frames 0-0")
    assert terminal.process.returncode == 0


def test_a_program_sees_nothing_of_it(
    config_path: Path, simulator: SimulatorServer, large: Path
) -> None:
    result = cvat_pool(
        "get", "scenes", large, cwd=config_path.parent, CVAT_ACCESS_TOKEN=simulator.access_token
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_wait_that_times_out_ends_the_spinner(
    config_path: Path, simulator: SimulatorServer, large: Path
) -> None:
    simulator.hold_imports()
    try:
        with in_a_terminal(
            "get",
            "scenes",
            large,
            "--timeout",
            "600ms",
            cwd=config_path.parent,
            CVAT_ACCESS_TOKEN=simulator.access_token,
        ) as terminal:
            terminal.finish()
    finally:
        simulator.release_imports()
    assert terminal.process.returncode == 3
    assert "still running" in terminal.shown
