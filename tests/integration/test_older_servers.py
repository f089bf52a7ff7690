"""The product with CVAT servers of the last two years, on both sides of what they changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.commands import cvat_pool, running
from support.hooked import new_project
from support.pools import serving, write_config
from support.waiting import PATIENCE

from pool import CvatBusy, ImportFailed, TaskPool
from pool.config.loader import load
from pool.cvat import connect, resumable
from pool.cvat.transport import Transport
from pool.requests import sending
from pool.requests.lifecycle import MOST_TASKS
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.faults import Cut

LIMIT = 100_000

ServerOf = Callable[[str], SimulatorServer]


@pytest.fixture
def server_of() -> Iterator[ServerOf]:
    """A server of a version."""
    with ExitStack() as stack:

        def start(version: str) -> SimulatorServer:
            settings = SimulatorSettings(timings=Timings.zero(), version=version)
            return stack.enter_context(SimulatorServer(settings))

        yield start


@contextmanager
def pool_of(server: SimulatorServer, folder: Path) -> Iterator[tuple[TaskPool, Counter[str]]]:
    """A pool without a daemon, which creates each task on the spot, and what it calls. Files of
    more than :data:`LIMIT` bytes are sent resumably."""
    path = write_config(folder, server)
    path.write_text(path.read_text().replace('"5s"', f'"0s"\nsingle_request_limit = {LIMIT}'))
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CVAT_ACCESS_TOKEN", server.access_token)
        settings = load(path)
        cvat = connect(settings.cvat, on_call=lambda operation, *_: calls.update([operation]))
    with cvat, TaskPool(settings, cvat=cvat) as pool:
        yield pool, calls


@pytest.mark.parametrize("version", ["2.48.0", "2.55.0", "2.56.0", "2.72.0"])
def test_small_and_large_files_become_jobs(
    server_of: ServerOf, tmp_path: Path, image: bytes, version: str
) -> None:
    with pool_of(server_of(version), tmp_path) as (pool, calls):
        small = pool.submit("scenes", [("a.jpg", image)])
        large = pool.submit("scenes", [("b.jpg", image + bytes(LIMIT))])
        assert len(small.jobs(timeout=PATIENCE)) == len(large.jobs(timeout=PATIENCE)) == 1
    assert calls["tus_create"] == 1


def test_a_cold_task_is_prepared(server_of: ServerOf, tmp_path: Path, image: bytes) -> None:
    """Of 2.70 to 2.72, the import of an upload into a task that is not can fail."""
    with pool_of(server_of("2.71.0"), tmp_path) as (pool, _):
        request = pool.submit("scenes", [("a.jpg", image)])
        assert len(request.jobs(timeout=PATIENCE)) == 1
        assert pool.status().templates[0].colds == 1


def test_what_cvat_itself_fails_at_is_not_repeated(
    server_of: ServerOf, tmp_path: Path, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CVAT before 2.56 answers so to each announcement of a large file that lacks an origin."""
    monkeypatch.setattr(sending, "SETTLE_LOOKS", (0.0,))
    monkeypatch.setattr(Transport, "uses_token", False)
    with (
        pool_of(server_of("2.55.0"), tmp_path) as (pool, calls),
        pytest.raises(CvatBusy, match="500"),
    ):
        pool.submit("scenes", [("b.jpg", image + bytes(LIMIT))])
    assert calls["tus_create"] == calls["create_task"] == MOST_TASKS


@pytest.mark.parametrize("version", ["2.54.0", "2.55.0"])
def test_a_lost_answer_to_the_last_byte_ends_the_upload(
    server_of: ServerOf,
    tmp_path: Path,
    image: bytes,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resumable, "FIRST_PAUSE", 0.0)
    server = server_of(version)
    server.faults.add(Cut("tus:patch", at="after", times=2))
    with pool_of(server, tmp_path) as (pool, calls):
        request = pool.submit("scenes", [("b.jpg", image + bytes(LIMIT))])
        assert len(request.jobs(timeout=PATIENCE)) == 1
    assert (calls["tus_chunk"], calls["tus_offset"]) == (2, 2), "of the two pieces both were lost"
    assert calls["create_task"] == 1


@pytest.mark.parametrize("version", ["2.69.0", "2.70.0"])
def test_a_failure_is_one_line(server_of: ServerOf, tmp_path: Path, version: str) -> None:
    with pool_of(server_of(version), tmp_path) as (pool, _):
        request = pool.submit("scenes", [("a.jpg", b"no image")])
        with pytest.raises(ImportFailed) as failed:
            request.jobs(timeout=PATIENCE)
    assert "UnidentifiedImageError: cannot identify image file" in str(failed.value)
    assert "Traceback" not in str(failed.value)


# --- Commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "code", "words"),
    [
        ("2.30.0", 1, ["The server is not supported: CVAT 2.30.0 is older than 2.48"]),
        ("2.48.0", 0, ["older than 2.73: its webhooks"]),
        ("2.72.0", 0, ["older than 2.73: its webhooks"]),
        ("2.73.0", 0, []),
    ],
)
def test_check_says_what_a_server_lacks(
    server_of: ServerOf, tmp_path: Path, version: str, code: int, words: list[str]
) -> None:
    server = server_of(version)
    path = write_config(tmp_path, server)
    checked = cvat_pool(
        "check", "--config", path, cwd=tmp_path, CVAT_ACCESS_TOKEN=server.access_token
    )
    said = " ".join((checked.stdout + checked.stderr).split())
    assert checked.returncode == code, said
    assert all(each in said for each in words), said
    assert said.count("older than") == len(words)
    assert "Something went wrong" not in said


@pytest.mark.parametrize(("version", "warnings"), [("2.47.0", 1), ("2.48.0", 0)])
def test_a_daemon_warns_once_of_a_server_that_is_too_old(
    server_of: ServerOf, tmp_path: Path, version: str, warnings: int
) -> None:
    server = server_of(version)
    path = write_config(tmp_path, server)
    with running(
        "run", "--config", path, cwd=tmp_path, CVAT_ACCESS_TOKEN=server.access_token
    ) as daemon:
        daemon.wait_for("the server is CVAT ")
        assert daemon.stop() == 0
    assert sum("server too old" in line for line in daemon.lines) == warnings


def hooked(server: SimulatorServer, folder: Path) -> Path:
    """A configuration with a template that can have a webhook."""
    path = write_config(folder, server)
    path.write_text(f"{path.read_text()}\n[templates.hooked]\nproject = {new_project(server)}\n")
    return path


def install(path: Path, url: str, token: str) -> tuple[str, dict[str, object]]:
    """What installing says to a person, and then to a program."""
    arguments = ("webhook", "install", "--url", url, "--config", path)
    said = cvat_pool(*arguments, cwd=path.parent, CVAT_ACCESS_TOKEN=token)
    assert said.returncode == 0, said.stderr
    again = cvat_pool(*arguments, "--json", cwd=path.parent, CVAT_ACCESS_TOKEN=token)
    (report,) = [each for each in json.loads(again.stdout) if each["scope"]]
    return said.stdout, report


def test_a_webhook_is_as_complete_as_the_server_allows(server_of: ServerOf, tmp_path: Path) -> None:
    server = server_of("2.72.0")
    path = hooked(server, tmp_path)
    with serving(path, server) as daemon:
        said, report = install(path, daemon.url, server.access_token)
    assert "installed, webhook" in said
    assert "reports new jobs only, so failed imports are found by polling" in said
    assert (report["action"], report["complete"]) == ("unchanged", False)
    assert report["reachable"] is True
    (hook,) = server.state.webhooks.values()
    assert set(hook.events) == {"create:job"}


def test_a_webhook_is_completed_after_an_upgrade(server_of: ServerOf, tmp_path: Path) -> None:
    server = server_of("2.73.0")
    path = hooked(server, tmp_path)
    with serving(path, server) as daemon:
        install(path, daemon.url, server.access_token)
    (hook,) = server.state.webhooks.values()
    # As it was installed before.
    server.call(lambda: setattr(hook, "events", ("create:job",)))
    with running(
        "run", "--config", path, cwd=tmp_path, CVAT_ACCESS_TOKEN=server.access_token
    ) as process:
        process.wait_for("webhook completed")
    assert set(hook.events) == {"create:job", "completed:request[create:task]"}
