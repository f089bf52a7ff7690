"""Who can read what the pool writes to the disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from support.api import Api
from support.commands import cvat_pool, running

from pool.simulator import SimulatorServer
from pool.simulator.faults import Hang


def modes(folder: Path) -> dict[str, set[str]]:
    """The permissions of the files and the folders of a store in a folder."""
    found: dict[str, set[str]] = {"files": set(), "folders": set()}
    for path in (*folder.glob("pool.db*"), *folder.glob("pool.db.spool/**/*")):
        kind = "folders" if path.is_dir() else "files"
        found[kind].add(oct(stat.S_IMODE(path.stat().st_mode)))
    return found


@pytest.mark.parametrize(
    ("umask", "files", "folders"),
    [
        (0o002, "0o600", "0o700"),
        (0o007, "0o660", "0o770"),
        (0o027, "0o640", "0o750"),
    ],
)
def test_what_a_daemon_writes(
    tmp_path: Path,
    config_path: Path,
    simulator: SimulatorServer,
    image: bytes,
    umask: int,
    files: str,
    folders: str,
) -> None:
    """The store with its files, and the spool with the data of a request that is under way."""
    hang = simulator.faults.add(Hang("data:post"))
    try:
        with running(
            "run", cwd=tmp_path, umask=umask, CVAT_ACCESS_TOKEN=simulator.access_token
        ) as daemon:
            with Api(daemon.url) as api:
                assert api.submit([("a.jpg", image)]).status == 202
            names = {path.name for path in tmp_path.rglob("*")}
            assert {"pool.db", "pool.db-wal", "pool.db-shm", "pool.db.spool", "0000"} <= names
            assert modes(tmp_path) == {"files": {files}, "folders": {folders}}
            hang.remove()
    finally:
        hang.remove()


@pytest.mark.parametrize(
    ("umask", "before", "after"),
    [(0o022, 0o644, 0o600), (0o007, 0o666, 0o660), (0o022, 0o660, 0o660)],
)
def test_a_store_that_others_could_read(
    tmp_path: Path, config_path: Path, umask: int, before: int, after: int
) -> None:
    """It is narrowed, once and with a warning; what its owner gave to the group alone stays."""
    store, status = tmp_path / "pool.db", ("--log-level", "warning", "status")
    assert cvat_pool(*status, cwd=tmp_path).returncode == 0
    store.chmod(before)
    narrowed = cvat_pool(*status, cwd=tmp_path, umask=umask)
    assert ("others could read it" in narrowed.stderr) == (before != after)
    assert stat.S_IMODE(store.stat().st_mode) == after
    assert "others" not in cvat_pool(*status, cwd=tmp_path, umask=umask).stderr


def test_a_folder_of_somebodys_own_for_the_spool_is_left_as_it_is(
    tmp_path: Path, config_path: Path, simulator: SimulatorServer, image: bytes
) -> None:
    """Only what is in it is the pool's."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    text = config_path.read_text()
    config_path.write_text(text + '\n[store]\nspool = "shared"\n')
    with running("run", cwd=tmp_path, CVAT_ACCESS_TOKEN=simulator.access_token) as daemon:
        with Api(daemon.url) as api:
            assert api.submit([("a.jpg", image)], wait=20).status == 201
        assert daemon.stop() == 0
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
    modes = {each.is_dir(): stat.S_IMODE(each.stat().st_mode) for each in shared.iterdir()}
    assert modes == {True: 0o700, False: 0o600}, "the pool's folder, and the spool's id"


def test_the_secret_of_a_sink_that_others_can_read(
    tmp_path: Path, config_path: Path, simulator: SimulatorServer
) -> None:
    secret = tmp_path / "sink-secret"
    secret.write_text("do not tell")
    secret.chmod(0o644)
    sink = '\n[[events.sinks]]\nurl = "http://127.0.0.1:9/hook"\nsecret_file = "sink-secret"\n'
    config_path.write_text(config_path.read_text() + sink)
    with running("run", cwd=tmp_path, CVAT_ACCESS_TOKEN=simulator.access_token) as daemon:
        assert "chmod 600" in daemon.wait_for("secret file of a sink can be read by other users")
        assert daemon.stop() == 0
    assert "do not tell" not in "\n".join(daemon.lines)
