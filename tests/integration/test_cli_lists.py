"""``cvat-pool requests`` and ``leases``, of the store here and of a daemon elsewhere."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from support.api import in_thread
from support.commands import cvat_pool

from pool import ImportFailed, Lease, Request, TaskPool
from pool.config.loader import load
from pool.daemon import Daemon
from pool.model import new_id
from pool.simulator import SimulatorServer
from pool.store import NewRequest

Command = Callable[..., subprocess.CompletedProcess[str]]
NAME = "Camera 7, the entrance of the car park, morning of the first of May"


@pytest.fixture
def pool(config_path: Path, simulator: SimulatorServer, log_in: None) -> Iterator[TaskPool]:
    text = config_path.read_text()
    config_path.write_text(
        f"{text}\n[templates.parcels-of-the-whole-country]\nlabels = []\n"
        "pool = { min_size = 0 }\n"
    )
    with TaskPool.from_config(config_path) as pool:
        yield pool


@pytest.fixture(params=["here", "elsewhere"])
def command(request: pytest.FixtureRequest, pool: TaskPool, config_path: Path) -> Iterator[Command]:
    """Runs a command on the store, or on a daemon."""

    def here(*arguments: str, **extra: Any) -> subprocess.CompletedProcess[str]:
        return cvat_pool(*arguments, cwd=config_path.parent, **extra)

    def elsewhere(*arguments: str, **extra: Any) -> subprocess.CompletedProcess[str]:
        return here(*arguments, "--server", daemon.url, **extra)

    if request.param == "here":
        yield here
    else:
        with in_thread(Daemon(load(config_path))) as daemon:
            yield elsewhere


@pytest.fixture
def made(pool: TaskPool, image: bytes) -> tuple[Request, Request, Request]:
    """One that is ready with two jobs, one that has failed, and one of another template."""
    ready = pool.submit("scenes", [("a.jpg", image), ("b.jpg", image)], job_size=1, name=NAME)
    ready.jobs(timeout=20)
    failed = pool.submit("scenes", [("broken.jpg", b"no picture")])
    with pytest.raises(ImportFailed):
        failed.jobs(timeout=20)
    other = pool.submit("parcels-of-the-whole-country", [("c.jpg", image)])
    other.jobs(timeout=20)
    return ready, failed, other


def listed(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The ids of a list."""
    assert (result.returncode, result.stderr) == (0, "")
    return [each["id"] for each in json.loads(result.stdout)]


def test_requests_in_json(command: Command, made: tuple[Request, Request, Request]) -> None:
    ready, failed, other = made
    assert listed(command("requests", "--json")) == [other.id, failed.id, ready.id]
    assert listed(command("requests", "--json", "--state", "failed")) == [failed.id]
    both = ("--state", "failed", "--state", "ready", "--template", "scenes")
    assert listed(command("requests", "--json", *both)) == [failed.id, ready.id]
    assert listed(command("requests", "--json", "CAMERA 7")) == [ready.id]
    assert listed(command("requests", "--json", "broken")) == [failed.id]
    assert len(listed(command("requests", "--json", "--since", "1h"))) == 3
    (document,) = json.loads(command("requests", "--json", ready.id).stdout)
    assert [job["id"] for job in document["jobs"]] == [job.id for job in ready.jobs(timeout=0)]
    assert (document["state"], document["name"], document["error"]) == ("ready", NAME, None)
    assert document["url"].endswith(f"/tasks/{document['task_id']}")
    (document,) = json.loads(command("requests", "--json", failed.id).stdout)
    assert document["jobs"] == [] and document["error"]["code"] == "import-failed"
    newest = command("requests", "--json", "--limit", "2")
    assert [each["id"] for each in json.loads(newest.stdout)] == [other.id, failed.id]
    assert newest.stderr == "These are the newest 2: --limit shows more.\n"


def test_the_tenant_of_requests_is_shown_where_there_is_one(
    command: Command, made: tuple[Request, Request, Request], pool: TaskPool
) -> None:
    assert "tenant" not in command("requests", COLUMNS="160").stdout.splitlines()[0]
    ready, *others = made
    placement, record = pool.process.placement, ready.record
    opened = placement.open(
        pool.process.template("scenes"),
        request=NewRequest(id=new_id(pool.clock.now()), tenant="robot", given=record.given),
    )
    assert opened.request is not None
    headings, first, *_ = command("requests", COLUMNS="160").stdout.splitlines()
    at = headings.index("tenant")
    assert first.startswith(opened.request.id) and first[at:].split()[0] == "robot"
    assert listed(command("requests", "--json", "--tenant", "robot")) == [opened.request.id]
    assert len(listed(command("requests", "--json", "--tenant", ""))) == 1 + len(others)
    assert listed(command("requests", "--json", "--tenant", "nobody-such")) == []
    wrong = command("requests", "--tenant", "no body")
    assert wrong.returncode == 2 and "no tenant is called 'no body'" in wrong.stderr


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_the_table_of_requests_fits(
    command: Command, made: tuple[Request, Request, Request], width: int
) -> None:
    ready, failed, other = made
    result = command("requests", COLUMNS=str(width))
    assert (result.returncode, result.stderr) == (0, "")
    headings, *rows = result.stdout.splitlines()
    assert max(map(len, (headings, *rows))) <= width
    # What is typed into the next command is whole at any width.
    assert [row.split()[:2] for row in rows] == [
        [other.id, "ready"],
        [failed.id, "failed"],
        [ready.id, "ready"],
    ]
    assert ("template" in headings, "name" in headings) == (width > 80, width > 60)
    assert "jobs, or" in headings
    if width > 50:
        assert rows[2].endswith(", ".join(str(job.id) for job in ready.jobs(timeout=0)))
        assert "  cannot ident" in rows[1]
    if width > 60:
        assert NAME[:4] in rows[2] and "  broken.jpg  " in rows[1] and "  c.jpg  " in rows[0]


def test_without_a_terminal_nothing_is_cut(
    config_path: Path, made: tuple[Request, Request, Request]
) -> None:
    result = cvat_pool("requests", cwd=config_path.parent, COLUMNS="")
    assert NAME in result.stdout and "…" not in result.stdout
    assert "  cannot identify image file 'broken.jpg'\n" in result.stdout


def test_wide_characters_fit_and_controls_do_not_reach_the_terminal(
    pool: TaskPool, config_path: Path, image: bytes
) -> None:
    request = pool.submit(
        "scenes", [("a.jpg", image)], name="駐車場の入口を見るカメラ七号機、五月一日の朝"
    )
    request.jobs(timeout=20)
    result = cvat_pool("requests", cwd=config_path.parent, COLUMNS="80")
    (row,) = result.stdout.splitlines()[1:]
    assert "駐車場" in row and cell_len(row) <= 80
    pool.submit("scenes", [("a.jpg", image)], name="a\x1b[2Jb").jobs(timeout=20)
    shown = cvat_pool("requests", cwd=config_path.parent, COLUMNS="80").stdout
    assert "  a?[2Jb  " in shown and "\x1b" not in shown


def test_no_requests_and_wrong_filters(command: Command) -> None:
    assert command("requests").stdout == "no requests\n"
    assert command("requests", "--json").stdout == "[]\n"
    for wrong in (("--state", "done"), ("--since", "5"), ("--limit", "0"), ("--template", "a/b")):
        result = command("requests", *wrong)
        assert result.returncode == 2, wrong
        assert len(result.stderr.splitlines()) == 1


def test_leases(command: Command, pool: TaskPool) -> None:
    assert command("leases").stdout == "no leases\n"
    mine: Lease = pool.acquire("scenes", name="mine")
    other = pool.acquire("parcels-of-the-whole-country")
    assert listed(command("leases", "--json")) == [other.id, mine.id]
    assert listed(command("leases", "scenes", "--json")) == [mine.id]
    (document,) = json.loads(command("leases", "scenes", "--json").stdout)
    assert (document["name"], document["task_id"]) == ("mine", mine.task_id)
    assert document["owner"] == pool.process.owner
    for width in (60, 80, 120):
        headings, *rows, last = command("leases", COLUMNS=str(width)).stdout.splitlines()
        assert [row.split()[:2] for row in rows] == [
            [other.id, str(other.task_id)],
            [mine.id, str(mine.task_id)],
        ]
        assert last == "2 leases"
        assert max(map(len, (headings, *rows))) <= width
    assert "taken by" in headings and f"process {pool.process.owner.split(':')[1]}" in rows[0]
