"""``cvat-pool init``: by options and on a terminal, against the simulator; ``check`` accepts what
it writes."""

from __future__ import annotations

import json
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.commands import cvat_pool
from support.hooked import new_project
from support.terminal import in_a_terminal

from pool.simulator import OrganizationSettings, SimulatorServer, SimulatorSettings, Timings


@pytest.fixture(scope="module")
def cvat() -> Iterator[SimulatorServer]:
    settings = SimulatorSettings(
        timings=Timings.zero(), organizations=(OrganizationSettings(slug="lab", owner="bot"),)
    )
    with SimulatorServer(settings) as server:
        new_project(server, name="Street scenes, Köln", labels=("car", "person", "tram"))
        for _ in range(2):
            new_project(server, name="twice")
        new_project(server, "lab", name="Cells", labels=("nucleus",))
        yield server


@pytest.fixture
def known(cvat: SimulatorServer) -> dict[str, Any]:
    return {"CVAT_URL": cvat.url, "CVAT_ACCESS_TOKEN": cvat.access_token}


def written(folder: Path, name: str = "config.toml") -> dict[str, Any]:
    return tomllib.loads((folder / name).read_text())


def accepted(folder: Path, token: str) -> None:
    """``check`` accepts the configuration, and the token does not stand in it."""
    path = folder / "config.toml"
    assert token not in path.read_text()
    # Another daemon of this machine may have the usual port.
    path.write_text(path.read_text().replace("port = 8765", "port = 0"))
    check = cvat_pool("check", cwd=folder, CVAT_ACCESS_TOKEN=token)
    assert check.returncode == 0, check.stdout
    assert check.stdout.endswith(" checks passed\n")


def test_options_name_the_labels(
    cvat: SimulatorServer, known: dict[str, Any], tmp_path: Path
) -> None:
    options = ("--labels", ' car,a "b\\" c,', "--template", "cam.1", "--min-size", "300")
    result = cvat_pool("init", "--url", f"{cvat.url}/", *options, cwd=tmp_path, **known)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        'wrote config.toml: template cam.1, labels car, a "b\\" c, 300 tasks to keep warm\n'
    )
    assert result.stderr == "Next: 'cvat-pool check', then 'cvat-pool run'\n"
    found = written(tmp_path)
    assert found["cvat"]["url"] == cvat.url
    (template,) = found["templates"].items()
    assert template[0] == "cam.1"
    assert template[1]["labels"] == [{"name": "car"}, {"name": 'a "b\\" c'}]
    assert template[1]["pool"]["min_size"] == 300 < template[1]["pool"]["max_size"]
    accepted(tmp_path, cvat.access_token)


@pytest.mark.parametrize("by", ["id", "name"])
def test_options_name_a_project(
    cvat: SimulatorServer, known: dict[str, Any], tmp_path: Path, by: str
) -> None:
    project = {"id": "1", "name": "street SCENES, köln"}[by]
    result = cvat_pool("init", "--project", project, "--json", cwd=tmp_path, **known)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["next"] == ["cvat-pool check", "cvat-pool run"]
    assert document["labels"] == ["car", "person", "tram"]
    (template,) = written(tmp_path)["templates"].items()
    assert template[0] == document["template"] == "street-scenes-k-ln"
    assert template[1]["project"] == document["project"] == 1
    accepted(tmp_path, cvat.access_token)


def test_a_project_of_an_organization(
    cvat: SimulatorServer, known: dict[str, Any], tmp_path: Path
) -> None:
    options = ("--organization", "lab", "--project", "cells")
    assert cvat_pool("init", *options, cwd=tmp_path, **known).returncode == 0
    assert written(tmp_path)["cvat"]["organization"] == "lab"
    accepted(tmp_path, cvat.access_token)


def test_a_terminal_is_asked_until_the_answers_can_be_used(
    cvat: SimulatorServer, tmp_path: Path
) -> None:
    with in_a_terminal(
        "init", cwd=tmp_path, COLUMNS="60", CVAT_ACCESS_TOKEN=cvat.access_token
    ) as terminal:
        terminal.wait_for("Address of CVAT [http://localhost:8080]: ")
        terminal.type("localhost")
        terminal.wait_for("expected an address such as")
        terminal.type(cvat.url)
        terminal.wait_for(f"CVAT 2.73.0 at {cvat.url}, as bot")
        terminal.wait_for("Project, by id or name (none: labels of its own): ")
        assert "Street scenes, Köln  car, person, tram" in terminal.shown
        terminal.type("scenes")
        terminal.wait_for("there is no project 'scenes'")
        terminal.type("twice")
        terminal.wait_for("there are several projects 'twice'")
        terminal.type("Street scenes, Köln")
        terminal.wait_for("Name of the template [street-scenes-k-ln]: ")
        terminal.type("a/b")
        terminal.wait_for("letters, digits")
        terminal.type("streets")
        terminal.wait_for("Tasks to keep warm [5]: ")
        terminal.type("many")
        terminal.wait_for("give a number")
        terminal.type("")
        output = terminal.finish()
    assert terminal.process.returncode == 0
    assert output.startswith("wrote config.toml: template streets, project ")
    assert terminal.shown.rstrip().endswith("Next: 'cvat-pool check', then 'cvat-pool run'")
    (template,) = written(tmp_path)["templates"].items()
    assert template[0] == "streets" and template[1]["pool"]["min_size"] == 5
    accepted(tmp_path, cvat.access_token)


def test_a_terminal_is_asked_for_labels_where_no_project_is_chosen(
    cvat: SimulatorServer, known: dict[str, Any], tmp_path: Path
) -> None:
    with in_a_terminal("init", "--min-size", "1", cwd=tmp_path, **known) as terminal:
        terminal.wait_for("Project, by")
        terminal.type("")
        terminal.wait_for("Labels, such as")
        terminal.type("car,car")
        terminal.wait_for("  labels 'car,car': ")
        terminal.type("car, person")
        terminal.wait_for("Name of the template [street-scenes]: ")
        terminal.type("")
        assert terminal.finish().endswith("labels car, person, 1 task to keep warm\n")
    accepted(tmp_path, cvat.access_token)


def test_ctrl_c_at_a_question_writes_nothing(known: dict[str, Any], tmp_path: Path) -> None:
    with in_a_terminal("init", cwd=tmp_path, **known) as terminal:
        terminal.wait_for("Project, by")
        terminal.type("\x04")  # the end of the input
        terminal.finish()
    assert terminal.process.returncode == 1
    assert terminal.shown.rstrip().endswith("cvat-pool: given up")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_by_force_alone(known: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("# mine\n")
    result = cvat_pool("init", "--labels", "car", cwd=tmp_path, **known)
    assert result.returncode == 2
    assert result.stderr.endswith(
        "config.toml exists: --force replaces it, --output names another file\n"
    )
    assert path.read_text() == "# mine\n"
    other = cvat_pool("init", "--labels", "car", "-o", "other.toml", cwd=tmp_path, **known)
    assert "'cvat-pool check --config other.toml'" in other.stderr
    assert cvat_pool("init", "--labels", "car", "--force", cwd=tmp_path, **known).returncode == 0
    assert written(tmp_path) == written(tmp_path, "other.toml")
    assert {each.name for each in tmp_path.iterdir()} == {"config.toml", "other.toml"}


@pytest.mark.parametrize(
    ("options", "extra", "code", "words"),
    [
        ("--labels car", {"CVAT_URL": ""}, 2, "where is CVAT? give --url or set CVAT_URL"),
        ("--labels car --url localhost", {}, 2, "--url: expected an address such as"),
        ("--labels car --url http://u:hush@h", {}, 2, "credentials do not belong in the address"),
        ("--labels car", {"CVAT_ACCESS_TOKEN": ""}, 2, "no credentials for CVAT were found"),
        ("--labels car", {"CVAT_ACCESS_TOKEN": "hush"}, 4, "CVAT refused the credentials"),
        ("--labels car", {"CVAT_URL": "{nothing}"}, 1, "CVAT cannot be reached"),
        ("--labels car --project 2", {}, 2, "either --project or --labels"),
        ("--labels ,", {}, 2, "name at least one"),
        ("--labels car,car", {}, 2, "labels 'car,car': "),
        ("--labels car --template a/b", {}, 2, "template 'a/b': "),
        ("--labels car --min-size -1", {}, 2, "'--min-size'"),
        ("--labels car --output no/config.toml", {}, 2, "there is no folder no"),
        ("--labels car --output .", {}, 2, ".: is a folder"),
        ("--project 99", {}, 2, "no project '99' in the personal workspace of this user; there is"),
        ("--project cells", {}, 2, "there is no project 'cells'"),
        ("--project twice", {}, 2, "there are several projects 'twice': give the id"),
        ("--project 2 --organization nowhere", {}, 1, "nowhere"),
        ("", {}, 2, "Street scenes, Köln (car, person, tram)"),
        ("--organization lab", {}, 2, "the projects are"),
    ],
)
def test_what_is_wrong_is_one_line_and_writes_nothing(
    known: dict[str, Any],
    tmp_path: Path,
    options: str,
    extra: dict[str, Any],
    code: int,
    words: str,
) -> None:
    with socket.socket() as bound:
        # Bound, but not listening: refused.
        bound.bind(("127.0.0.1", 0))
        nothing = f"http://127.0.0.1:{bound.getsockname()[1]}"
        extra = {name: value.format(nothing=nothing) for name, value in extra.items()}
        result = cvat_pool("init", *options.split(), cwd=tmp_path, **{**known, **extra})
    assert result.returncode == code, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("cvat-pool: ") and words in line
    assert "hush" not in line
    assert list(tmp_path.iterdir()) == []


def test_a_token_that_may_only_read_is_mentioned(
    cvat: SimulatorServer, known: dict[str, Any], tmp_path: Path
) -> None:
    known["CVAT_ACCESS_TOKEN"] = cvat.readonly_token
    result = cvat_pool("init", "--labels", "car", cwd=tmp_path, **known)
    assert result.returncode == 0
    assert "is read-only" in result.stderr.splitlines()[0]
