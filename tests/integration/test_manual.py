"""Every command and snippet of the README and the manual is run, on the simulator.

The blocks in Python, the shell and JSON run as they stand, but for the addresses, credentials and
ids in :data:`Place.others`. What :data:`RECIPES` says of a block of the shell is what differs from
running it to its end. Blocks with a second word behind their fence are tested where
:data:`ELSEWHERE` says.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import certifi
import pytest
import urllib3
import yaml
from support.api import in_thread
from support.commands import cvat_pool, running
from support.hooked import new_project
from support.manual import DOCUMENTS, ROOT, Block, block, blocks
from support.postgres import shared_server
from support.slots import picture_of, slot_server, slot_settings, slot_table
from support.waiting import PATIENCE

from pool import RemotePool, TaskPool
from pool.config.loader import load
from pool.daemon import Daemon
from pool.simulator import SimulatorServer

ELSEWHERE: Final = {
    ("python", "receiver"): "test_manual_events",
    ("python", "feed"): "test_brokers",
    ("python", "publish"): "test_brokers",
    ("toml", "sink"): "test_manual_events",
    ("toml", "faults"): "test_simulator_faults",
    ("yaml", ""): "test_manual_events, and below",
    ("yaml", "scrape"): "below",
    ("yaml", "alerts"): "test_manual_events",
    ("yaml", "compose"): "test_balancers",
    ("nginx", ""): "test_balancers",
    ("haproxy", ""): "test_balancers",
    ("ini", "systemd"): "below",
    ("sh", "root"): "below",
    ("sql", ""): "below",
    ("text", ""): "what is printed: below, where it can be compared",
}
RUN_HERE: Final = {("sh", ""), ("python", ""), ("json", ""), ("toml", "")}


@dataclass(frozen=True)
class Recipe:
    """How a block of the shell is run that does not simply end."""

    #: What its output shows when it has done what it is there for; it is stopped then.
    until: str = ""
    #: What is put in place of what, so that it takes no time, or no port that others have.
    instead: dict[str, str] = field(default_factory=dict)
    #: What it says when it is refused: there is nothing here that it could be done to.
    refused: str = ""
    #: The folder that it is run in, of those beside that of the others.
    folder: str = ""


RECIPES: Final = {
    "cvat-pool demo": Recipe(instead={"cvat-pool demo": "cvat-pool demo --speed 0"}),
    "cvat-pool bench": Recipe(
        instead={"cvat-pool bench": "cvat-pool bench --flows pool --requests 2 --speed 0"}
    ),
    "cvat-pool simulator": Recipe(
        until="export CVAT_ACCESS_TOKEN",
        instead={"cvat-pool simulator": "cvat-pool simulator --port 0"},
    ),
    "cvat-pool run": Recipe(until="listening", folder="alone"),
    "cvat-pool init": Recipe(folder="empty"),
    "pip install . && mkdir": Recipe(folder="empty"),
    "cvat-pool status --watch": Recipe(until=r"hit/wait/cold"),
    "curl -N": Recipe(until="event: levels"),
    "pytest": Recipe(instead={"pytest": "pytest --version"}),
    "--abort": Recipe(refused="is not being copied|copy that one"),
}


@dataclass(frozen=True)
class Place:
    """A folder with all that the blocks name, a CVAT and a daemon."""

    folder: Path
    simulator: SimulatorServer
    daemon: Daemon
    pool: TaskPool
    #: What blocks have printed, by their places.
    printed: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("POOL_")}
        return {
            **kept,
            "PATH": f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "CVAT_ACCESS_TOKEN": self.simulator.access_token,
            "COLUMNS": "80",
            "PYTHONUNBUFFERED": "1",
        }

    def written(self, text: str) -> str:
        """A block with the addresses and ids of this place."""
        for old, new in self.others(text).items():
            text = text.replace(old, new)
        return text

    def others(self, text: str) -> dict[str, str]:
        others = {
            "http://127.0.0.1:8765": self.daemon.url,
            "http://pool.example.com:8765": self.daemon.url,
            "https://cvat.example.com": self.simulator.url,
            # The daemon of the configuration has any free port.
            "webhook install": f"webhook install --url {self.daemon.url}",
            "CVAT_ACCESS_TOKEN=...": f"CVAT_ACCESS_TOKEN={self.simulator.access_token}",
            "POOL_API_TOKEN=...": "POOL_API_TOKEN=a-token",
        }
        if "01kdw8zp70b3k9c2n4wq6m8s1d" in text:
            request = self.pool.submit("street-scenes", [self.folder / "a.jpg"])
            others["01kdw8zp70b3k9c2n4wq6m8s1d"] = request.id
        if "/tasks/42/" in text:
            others["/tasks/42/"] = f"/tasks/{self.pool.acquire('street-scenes').task_id}/"
        return others


#: In place of the installation, which a test does not do again: says whether there is such a
#: thing to install.
PIP: Final = f"""#!{sys.executable}
import re, sys, tomllib
from pathlib import Path

extras = tomllib.loads(Path({str(ROOT / "pyproject.toml")!r}).read_text())["project"]
command, what = sys.argv[1:]
named = re.fullmatch(r"\\.(?:\\[([a-z,]+)\\])?", what)
assert command == "install" and named, sys.argv
for extra in filter(None, (named[1] or "").split(",")):
    assert extra in extras["optional-dependencies"], extra
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("manual")
    for name in ("a.jpg", "b.jpg", "frame.jpg", "frame-0001.jpg"):
        (folder / name).write_bytes(picture_of())
    (folder / "bin").mkdir()
    (folder / "bin" / "pip").write_text(PIP)
    (folder / "bin" / "pip").chmod(0o755)
    shutil.copy(certifi.where(), folder / "ca.pem")
    with slot_server() as simulator, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CVAT_ACCESS_TOKEN", simulator.access_token)
        (simulator.share / "cam1").mkdir()
        (simulator.share / "cam1" / "a.jpg").write_bytes(picture_of())
        slots = slot_table(slot_settings(simulator.share, per_task=4))
        text = (
            f'[cvat]\nurl = "{simulator.url}"\n[daemon]\nport = 0\n[store]\nurl = "sqlite:///pool.db"\n'
            f"[templates.street-scenes]\nproject = {new_project(simulator)}\n"
            'pool = { min_size = 2, max_wait = "5s" }\n'
            f'[templates.camera]\nlabels = [{{ name = "car" }}]\n{slots}\n'
            'pool = { min_size = 4, max_size = 20, max_wait = "5s" }\n'
        )
        (folder / "config.toml").write_text(text)
        for name in ("empty", "alone"):
            (folder / name).mkdir()
        (folder / "alone" / "config.toml").write_text(text)
        for name in ("old", "new"):
            (folder / f"{name}.toml").write_text(text.replace("pool.db", f"{name}.db"))
        TaskPool.from_config(folder / "old.toml").close()
        with (
            in_thread(Daemon(load(folder / "config.toml"))) as daemon,
            TaskPool.from_config(folder / "config.toml") as pool,
        ):
            yield Place(folder, simulator, daemon, pool)


def test_every_block_is_tested_somewhere() -> None:
    assert {(each.language, each.use) for each in blocks()} <= {*ELSEWHERE, *RUN_HERE}


# --- The shell ------------------------------------------------------------------------------------


def run(place: Place, source: Block) -> str:
    """Run a block of the shell; return what it printed."""
    recipes = [recipe for words, recipe in RECIPES.items() if words in source.text]
    text = place.written(source.text)
    if source.place in place.printed:
        return place.printed[source.place]
    until, refused, folder = "", "", place.folder
    for recipe in recipes:
        for old, new in recipe.instead.items():
            text = text.replace(old, new)
        until, refused = recipe.until or until, recipe.refused or refused
        folder = place.folder / recipe.folder
    with shell(text, folder, place.environment) as process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if until and re.search(until, line):
                break
        else:
            code = process.wait(PATIENCE)
            assert not until, f"ended without {until!r}: {printed}"
            assert code == (1 if refused else 0), printed
    assert re.search(refused, printed), printed
    place.printed[source.place] = printed
    return printed


@contextmanager
def shell(text: str, folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def kill() -> None:
        # What it has started, too.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(PATIENCE, kill)
    timer.start()
    try:
        yield process
    finally:
        timer.cancel()
        kill()
        process.communicate()


def of(*languages: str) -> list[Any]:
    return [pytest.param(each, id=each.place) for each in blocks(*languages) if not each.use]


@pytest.mark.parametrize("source", of("sh"))
def test_the_shell(place: Place, source: Block) -> None:
    run(place, source)


def test_six_commands_from_a_clone_to_a_job_id(place: Place, tmp_path: Path) -> None:
    """Those of the README, in their order, on a server that is a process of its own."""
    section = DOCUMENTS["README"].partition("## Your own server")[2].partition("\n## ")[0]
    commands = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    install, export, init, check, run_, get = (textwrap.dedent(each).strip() for each in commands)
    own, environment = tmp_path / "cvat-pool", {**place.environment, "HOME": str(tmp_path)}

    def done(command: str, folder: Path) -> str:
        result = subprocess.run(
            ["bash", "-euc", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    with running("simulator", "--port", "0", "--speed", "0", cwd=tmp_path) as server:
        url = server.wait_for("CVAT_URL").partition("=")[2]
        token = server.wait_for("CVAT_ACCESS_TOKEN").partition("=")[2]
        assert done(f"{install} && pwd", ROOT).strip() == str(own)
        name, _, given = export.removeprefix("export ").partition("=")
        assert given == "..."
        assert name == "CVAT_ACCESS_TOKEN"
        environment[name] = token
        done(init.replace("https://cvat.example.com", url), own)
        # The port that is usual may be another's on this machine.
        config = (own / "config.toml").read_text()
        assert "port = 8765" in config
        (own / "config.toml").write_text(config.replace("port = 8765", "port = 0"))
        done(check, own)
        (own / "frame.jpg").write_bytes(picture_of())
        program, *arguments = run_.split()
        assert program == "cvat-pool"
        with running(*arguments, cwd=own, CVAT_ACCESS_TOKEN=token) as daemon:
            assert daemon.url
            job_id, page, *_ = done(get, own).split()
        job = urllib3.request(
            "GET", f"{url}/api/jobs/{job_id}", headers={"Authorization": f"Bearer {token}"}
        )
        assert job.status == 200
        assert page.startswith(url) and page.endswith(f"/jobs/{job_id}")


# --- Python ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("topic", sorted({each.topic for each in blocks("python") if not each.use}))
def test_python(topic: str, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document, one after the other, with a pool that is open already."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", place.simulator.access_token)
    known: dict[str, Any] = {
        "pool": place.pool,
        "paths": ["a.jpg", "b.jpg"],
        "print": lambda *_: None,
    }
    for each in blocks("python", topic=topic):
        if each.use:
            continue
        code = compile(place.written(each.text), each.place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, known))
        else:
            exec(code, known)
        if isinstance(known["pool"], RemotePool):
            known["pool"].close()
        known["pool"] = place.pool


# --- What is printed ------------------------------------------------------------------------------


def words_of(text: str) -> str:
    """The words of a text, with any number for each of its numbers, and without rules."""
    return " ".join(re.sub(r"\d+(\.\d+)?", "0", text).replace("─", " ").split())


def test_the_demo_prints_what_the_readme_shows(place: Place) -> None:
    printed = run(place, block("sh", holding="cvat-pool demo"))
    assert words_of(block("text", holding="Milliseconds from a request").text) in words_of(printed)


def types_of(value: Any, path: str = "") -> dict[str, type]:
    """The places in a JSON document, each with its type; numbers are of one."""
    if not isinstance(value, dict):
        return {
            path: float if isinstance(value, int) and not isinstance(value, bool) else type(value)
        }
    return {
        place: kind
        for key, each in value.items()
        for place, kind in types_of(each, f"{path}.{key}").items()
    }


def test_a_daemon_that_is_well_answers_as_the_manual_shows(place: Place) -> None:
    shown = types_of(json.loads(block("json", holding='"scheduler"').text))
    answer = urllib3.request("GET", f"{place.daemon.url}/readyz")
    answered = types_of(answer.json())
    assert answer.status == 200
    assert {path: answered.get(path) for path in shown} == shown


def test_the_stream_begins_as_the_manual_shows(place: Place) -> None:
    shown = block("text", holding="event: levels").text
    printed = run(place, block("sh", holding="curl -N"))
    for line in ("retry: ", "id: ", "event: levels"):
        assert re.search(rf"^{line}", shown, re.MULTILINE)
        assert line in printed


def test_lists_have_the_columns_that_the_manual_shows(place: Place) -> None:
    place.pool.submit("street-scenes", [place.folder / "a.jpg"]).jobs(timeout=PATIENCE)
    listed = cvat_pool("requests", cwd=place.folder, CVAT_ACCESS_TOKEN=place.simulator.access_token)
    shown = block("text", holding="jobs, or why not").text
    # The last one says what there is: "jobs", or why there are none.
    columns = listed.stdout.partition("\n")[0].split()
    assert columns == [*shown.partition("\n")[0].split()[: len(columns) - 1], "jobs"]


@pytest.mark.parametrize("source", of("json"))
def test_json_is_json(source: Block) -> None:
    assert isinstance(json.loads(source.text), dict)


# --- PostgreSQL -----------------------------------------------------------------------------------


def test_an_administrator_can_set_postgresql_up() -> None:
    server = shared_server()
    statements = [each.strip() for source in blocks("sql") for each in source.text.split(";\n")]
    try:
        for statement in filter(None, statements):
            server.sql(statement)
        assert server.sql("SHOW server_encoding", database="cvat_pool") == "UTF8"
    finally:
        # Not in force before the configuration is read again.
        server.sql("ALTER SYSTEM RESET synchronous_standby_names")
        server.sql("DROP SCHEMA IF EXISTS cvat_pool")
        server.sql("DROP DATABASE IF EXISTS cvat_pool")
        server.sql("DROP USER IF EXISTS cvat_pool")


# --- What is not run ------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [pytest.param(each, id=each.place) for each in blocks("yaml")])
def test_yaml_is_yaml(source: Block) -> None:
    assert isinstance(yaml.safe_load(source.text), dict)


def test_the_unit_starts_what_is_installed(tmp_path: Path) -> None:
    unit = block("ini", "systemd").text
    values = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    install = block("sh", "root").text
    assert subprocess.run(["bash", "-n", "-c", install], check=False).returncode == 0
    program, *arguments = values["ExecStart"].split()
    assert f"{Path(program).parent}/pip install" in install
    assert f"useradd {values['User']} " in install
    help_of = subprocess.run(
        [Path(sys.executable).parent / "cvat-pool", *arguments, "--help"],
        capture_output=True,
        check=False,
    )
    assert help_of.returncode == 0
    stop = tomllib.loads((ROOT / "config.toml").read_text())["daemon"]["stop_timeout"]
    assert int(values["TimeoutStopSec"]) > int(stop.removesuffix("s"))
    if verify := shutil.which("systemd-analyze"):
        file = tmp_path / "cvat-pool.service"
        file.write_text(
            unit.replace(program, sys.executable).replace("User=cvat-pool", "User=root")
        )
        said = subprocess.run([verify, "verify", file], capture_output=True, text=True, check=False)
        assert "cvat-pool.service" not in said.stderr


def test_files_that_the_documents_name_are_there() -> None:
    for text in DOCUMENTS.values():
        for name in re.findall(r"`python (tests/[\w/]+\.py)", text):
            assert (ROOT / name).exists(), name
