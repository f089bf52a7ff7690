"""``cvat-pool check`` proves slots by one that it fills and shows."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.api import settings_for
from support.bucket import bucket
from support.commands import cvat_pool
from support.simulated import Caller
from support.slots import FOLDER, slot_server, slot_settings, slot_table, slot_template

from pool.check import CheckResult, run_checks
from pool.clock import SystemClock
from pool.config.settings import SlotSettings, Template
from pool.cvat import CvatClient
from pool.requests.slot_storage import MARKER
from pool.simulator import CloudStorageSettings, SimulatorServer
from pool.simulator.buckets import S3


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    with slot_server() as server:
        yield server


def check(
    server: SimulatorServer, folder: Path, slots: SlotSettings, **environment: Any
) -> tuple[int, str]:
    """The exit code of the command, and its line on slots."""
    (folder / "config.toml").write_text(
        f'[cvat]\nurl = "{server.url}"\n[daemon]\nport = 0\n'
        f"[templates.camera]\nlabels = []\n{slot_table(slots)}\n"
    )
    environment.setdefault("CVAT_ACCESS_TOKEN", server.access_token)
    result = cvat_pool("check", cwd=folder, **environment)
    assert result.stderr == ""
    (line,) = (line for line in result.stdout.splitlines() if "slots of camera" in line)
    return result.returncode, line


def left(server: SimulatorServer) -> tuple[Iterable[int], list[str]]:
    """What is left of a check: tasks, and files but for the marker."""
    files = (server.share / FOLDER).rglob("*.*")
    return Caller(server).listed("tasks"), [each.name for each in files if each.name != MARKER]


def test_slots_on_a_share(server: SimulatorServer, tmp_path: Path) -> None:
    """Of several frames too; a new storage is marked, and nothing else is left."""
    slots = slot_settings(server.share, marked=False, frames=2, per_task=4, format="png")
    marker = server.share / FOLDER / MARKER
    assert not marker.exists()
    code, line = check(server, tmp_path, slots)
    assert code == 0, line
    assert line.startswith("ok") and "marked as new is share:pool" in line
    assert marker.exists() and left(server) == ([], [])
    code, line = check(server, tmp_path, slots)
    assert code == 0 and "marked" not in line


def test_slots_in_a_bucket(tmp_path: Path) -> None:
    with bucket() as there:
        storage = S3(there.name, endpoint=there.endpoint, key="k" * 20, secret="s" * 40)
        with slot_server(
            cloud_storages=(CloudStorageSettings(display_name="slots", bucket=storage),)
        ) as server:
            slots = SlotSettings(size="64x48", storage=f"s3://{there.name}/pool", server="cloud:1")
            environment = {
                "AWS_ENDPOINT_URL": there.endpoint,
                "AWS_ACCESS_KEY_ID": "k" * 20,
                "AWS_SECRET_ACCESS_KEY": "s" * 40,
                "AWS_REGION": "us-east-1",
            }
            code, line = check(server, tmp_path, slots, **environment)
            assert code == 0 and "is cloud:1" in line, line
            assert storage.keys("pool/") == [f"pool/{MARKER}"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"server": "share:elsewhere"}, "from share:elsewhere: CVAT could not import"),
        ({"cache_storage": 99}, "cache by cloud storage 99: CVAT rejected"),
        ({"storage": "file:///nowhere/at/all"}, "file:///nowhere/at/all: "),
    ],
)
def test_slots_that_do_not_work(
    server: SimulatorServer, tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    """It says where and what to do, and leaves nothing behind, no marker either: what is not the
    place that CVAT reads may be the mount point of a share that is not mounted."""
    code, line = check(server, tmp_path, slot_settings(server.share, marked=False, **wrong))
    assert code == 1
    assert line.startswith("FAIL") and words in line
    assert left(server) == ([], [])
    assert not (server.share / FOLDER / MARKER).exists()


def test_a_token_that_may_only_read(server: SimulatorServer, tmp_path: Path) -> None:
    slots = slot_settings(server.share)
    code, line = check(server, tmp_path, slots, CVAT_ACCESS_TOKEN=server.readonly_token)
    assert code == 4 and "creating a task: " in line and "the token has to be allowed" in line
    assert (server.share / FOLDER / MARKER).exists()


def checked(server: SimulatorServer, folder: Path, template: Template) -> CheckResult:
    settings = settings_for(server.url, f"sqlite:///{folder / 'pool.db'}", template)
    environ = {"CVAT_ACCESS_TOKEN": server.access_token}
    results = run_checks(settings, environ=environ, clock=SystemClock())
    return next(result for result in results if result.name == "slots of camera")


def test_a_cache_that_is_not_dropped(
    server: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before CVAT 2.44: it takes the id of the cloud storage, and does nothing by it."""
    show = CvatClient.show_frames

    def ignorant(
        cvat: CvatClient, task_id: int, hidden: Any, *, cloud_storage_id: int | None
    ) -> frozenset[int]:
        return show(cvat, task_id, hidden, cloud_storage_id=None)

    monkeypatch.setattr(CvatClient, "show_frames", ignorant)
    result = checked(server, tmp_path, slot_template(server.share))
    assert not result.ok
    assert "the placeholder still" in result.words and "2.44" in result.words
    assert left(server) == ([], [])


def test_a_bucket_without_the_extra(
    server: SimulatorServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    slots = SlotSettings(size="64x48", storage="s3://bucket/pool", server="cloud:1")
    result = checked(server, tmp_path, Template(name="camera", slots=slots))
    assert not result.ok and "pip install 'cvat-task-pool[storage]'" in result.words
