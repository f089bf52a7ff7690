"""Where the files of slots stand: the same over a folder and over a bucket, and what goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.bucket import Bucket, bucket, bucket_environment
from unit.cvat_stub import Reply, StubServer

from pool.config.settings import SlotSettings
from pool.errors import ConfigError, SlotStorageUnavailable
from pool.requests.slot_storage import MARKER, SlotStorage


def on_share(folder: Path) -> SlotSettings:
    return SlotSettings(
        size="64x48", storage=f"file://{folder}", server="share:slots", cache_storage=3
    )


def in_bucket(name: str) -> SlotSettings:
    return SlotSettings(size="64x48", storage=f"s3://{name}", server="cloud:3")


@dataclass(frozen=True, slots=True)
class Place:
    """A storage, and what CVAT sees of it: a file by its name there."""

    storage: SlotStorage
    seen: Callable[[str], bytes | None]


@pytest.fixture(scope="module")
def shared_bucket() -> Iterator[Bucket]:
    with bucket() as shared:
        yield shared


@pytest.fixture
def share(tmp_path: Path) -> Path:
    """A share that has a folder of ours, as CVAT has it mounted."""
    share = tmp_path / "share"
    share.mkdir()
    return share


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, share: Path) -> Place:
    if request.param == "folder":
        (share / "slots").mkdir()
        storage = SlotStorage(on_share(share / "slots"), "pool-1")

        def seen(name: str) -> bytes | None:
            path = share / name
            return path.read_bytes() if path.exists() else None

        return Place(storage, seen)
    shared = request.getfixturevalue("shared_bucket")
    prefix = f"{shared.name}/{share.parent.name}"
    return Place(SlotStorage(in_bucket(prefix), "pool-1"), shared.get)


def test_files_are_written_replaced_and_deleted(place: Place) -> None:
    storage = place.storage
    storage.mark()
    storage.mark()
    storage.require()
    keys = [storage.key("carrier-1", number) for number in range(30)]
    other = storage.key("carrier-2", 0)
    storage.write_all([*keys, other], b"placeholder")
    assert {storage.read(key) for key in [*keys, other]} == {b"placeholder"}

    storage.write(keys[3], b"picture" * 20_000)
    assert storage.read(keys[3]) == b"picture" * 20_000
    assert place.seen(storage.on_server(keys[3])) == b"picture" * 20_000
    # It is the only one.
    assert {storage.read(key) for key in keys if key != keys[3]} == {b"placeholder"}

    storage.write_all(keys, b"placeholder 2")
    assert {storage.read(key) for key in keys} == {b"placeholder 2"}

    for _ in range(2):
        storage.delete([*keys, storage.key("carrier-9", 0)])
    assert place.seen(storage.on_server(keys[3])) is None
    with pytest.raises(FileNotFoundError):
        storage.read(keys[3])
    assert storage.read(other) == b"placeholder"


def test_a_file_is_whole_while_many_write_it(place: Place) -> None:
    place.storage.mark()
    key = place.storage.key("carrier-1", 7)
    contents = {bytes([number]) * 50_000 for number in range(12)}
    with ThreadPoolExecutor(12) as threads:
        for _ in threads.map(lambda content: place.storage.write(key, content), contents):
            assert place.storage.read(key) in contents
    place.storage.delete([key])


def test_without_its_marker_a_storage_is_refused(place: Place) -> None:
    with pytest.raises(
        SlotStorageUnavailable, match=r"\.cvat-task-pool.*cvat-pool check"
    ) as caught:
        place.storage.require()
    assert "\n" not in str(caught.value)


# --- A folder -------------------------------------------------------------------------------------


def test_nothing_is_written_into_an_empty_mount_point(tmp_path: Path) -> None:
    storage = SlotStorage(on_share(tmp_path), "pool-1")
    key = storage.key("carrier-1", 0)
    calls: list[Callable[[], Any]] = [
        storage.require,
        lambda: storage.write(key, b"x"),
        lambda: storage.write_all([key], b"x"),
        lambda: storage.read(key),
        lambda: storage.delete([key]),
    ]
    for call in calls:
        with pytest.raises(
            SlotStorageUnavailable, match=f"file://{tmp_path} has no file .*mount it"
        ):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_share_that_is_not_there_is_named(tmp_path: Path) -> None:
    storage = SlotStorage(on_share(tmp_path / "no" / "slots"), "pool-1")
    for call in (storage.mark, storage.require, lambda: storage.read("pool-1/a/0000.jpg")):
        with pytest.raises(
            SlotStorageUnavailable, match=f"{tmp_path}/no/slots: no such file.*mount"
        ):
            call()


def test_a_share_that_goes_away_does_not_divert_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written stays in the folder that had the marker."""
    slots, gone = tmp_path / "slots", tmp_path / "gone"
    storage = SlotStorage(on_share(slots), "pool-1")
    storage.mark()
    stat = os.stat

    def unmounted(path: Any, **kinds: Any) -> os.stat_result:
        found = stat(path, **kinds)
        if path == MARKER and slots.exists() and not gone.exists():
            slots.rename(gone)
            slots.mkdir()
        return found

    monkeypatch.setattr(os, "stat", unmounted)
    key = storage.key("carrier-1", 0)
    storage.write(key, b"picture")
    assert list(slots.iterdir()) == []
    assert (gone / key).read_bytes() == b"picture"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.ESTALE, errno.EIO])
def test_a_write_that_fails_leaves_the_file_that_was_there(
    share: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    storage = SlotStorage(on_share(share / "slots"), "pool-1")
    storage.mark()
    key = storage.key("carrier-1", 0)
    storage.write(key, b"placeholder")

    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", fail)
        with pytest.raises(SlotStorageUnavailable) as caught:
            storage.write(key, b"picture")
    assert str(share / "slots") in str(caught.value)
    assert os.strerror(code).lower() in str(caught.value)
    assert storage.read(key) == b"placeholder"
    assert [path.name for path in (share / "slots" / key).parent.iterdir()] == ["0000.jpg"]


def test_a_write_is_durable_by_two_fsyncs(share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's before it has its name, and its folder's thereafter."""
    storage = SlotStorage(on_share(share / "slots"), "pool-1")
    storage.mark()
    keys = [storage.key("carrier-1", number) for number in range(50)]
    storage.write_all(keys, b"placeholder")
    calls: list[str] = []
    for name in ("fsync", "rename"):
        call = getattr(os, name)

        def counted(*given: Any, call: Any = call, name: str = name, **named: Any) -> None:
            where = Path(f"/proc/self/fd/{given[0]}").readlink().name if name == "fsync" else ""
            calls.append(f"{name} {where[-9:]}".strip())
            call(*given, **named)

        monkeypatch.setattr(os, name, counted)
    storage.write(keys[0], b"picture")
    assert [call.rpartition(".")[2] for call in calls] == ["part", "rename", "fsync carrier-1"]

    calls.clear()
    storage.write_all([storage.key("carrier-2", number) for number in range(50)], b"placeholder")
    # A new folder takes one of the folder above it.
    assert len([call for call in calls if call.startswith("fsync")]) == 3


def test_what_a_dead_process_has_begun_to_write_goes_with_the_last_file(share: Path) -> None:
    storage = SlotStorage(on_share(share / "slots"), "pool-1")
    storage.mark()
    keys = [storage.key("carrier-1", number) for number in range(2)]
    storage.write_all(keys, b"placeholder")
    folder = (share / "slots" / keys[0]).parent
    left = folder / ".0000.jpg.0badcafe.part"
    left.write_bytes(b"half a pict")
    storage.delete(keys[:1])
    assert left.exists()
    storage.delete(keys[1:])
    assert not folder.exists()


@pytest.mark.parametrize("key", ["0000.jpg", "../0000.jpg", "pool-1/../0000.jpg", "/etc/x", "a//b"])
def test_a_key_leads_nowhere_else(share: Path, key: str) -> None:
    storage = SlotStorage(on_share(share / "slots"), "pool-1")
    storage.mark()
    with pytest.raises(ValueError, match="is no key"):
        storage.write(key, b"x")


# --- A bucket -------------------------------------------------------------------------------------


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    with StubServer() as server:
        bucket_environment(monkeypatch, server.url)
        yield server


@pytest.mark.parametrize(
    ("reply", "tries", "said"),
    [
        (Reply(503), 3, "s3://bucket: answered 503 Service Unavailable"),
        (Reply(500), 3, "500 Internal Server Error"),
        (
            Reply(
                403,
                text="<Error><Code>InvalidAccessKeyId</Code><Message>It does not exist.</Message>"
                "<AWSAccessKeyId>key-of-the-tests</AWSAccessKeyId></Error>",
            ),
            1,
            "InvalidAccessKeyId: It does not exist.",
        ),
        (Reply(404, text="<Error><Code>NoSuchBucket</Code></Error>"), 1, "NoSuchBucket"),
        (Reply(cut=True), 3, "credentials in the environment"),
    ],
)
def test_a_server_that_fails_is_given_up_soon(
    s3: StubServer, reply: Reply, tries: int, said: str
) -> None:
    s3.answer = lambda _: reply
    storage = SlotStorage(in_bucket("bucket/slots"), "pool-1")
    with pytest.raises(SlotStorageUnavailable) as caught:
        storage.write("pool-1/carrier-1/0000.jpg", b"picture")
    assert said in str(caught.value)
    assert "of-the-tests" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert len(s3.seen) == tries
    assert {seen.path for seen in s3.seen} == {"/bucket/slots/pool-1/carrier-1/0000.jpg"}


def test_writes_share_connections(s3: StubServer) -> None:
    s3.answer = lambda _: Reply(headers={"ETag": '"1"'})
    storage = SlotStorage(in_bucket("bucket"), "pool-1")
    for number in range(20):
        storage.write(storage.key("carrier-1", number), b"picture" * 10_000)
    assert len(s3.seen) == 20
    # One that is not back yet when the next write begins has another opened.
    assert s3.connections < 5


def test_one_of_many_that_fails_is_reported(s3: StubServer) -> None:
    s3.answer = lambda seen: Reply(
        status=403 if seen.path.endswith("0007.jpg") else 200, headers={"ETag": '"1"'}
    )
    storage = SlotStorage(in_bucket("bucket"), "pool-1")
    with pytest.raises(SlotStorageUnavailable, match="403"):
        storage.write_all([storage.key("carrier-1", number) for number in range(20)], b"x")


FORKING = """
import os
from pool.config.settings import SlotSettings
from pool.errors import SlotStorageUnavailable
from pool.requests.slot_storage import SlotStorage

storage = SlotStorage(SlotSettings(size="64x48", storage="s3://bucket", server="cloud:3"), "pool-1")
storage.write("pool-1/carrier-1/0000.jpg", b"x")
if os.fork() == 0:
    try:
        storage.write("pool-1/carrier-1/0001.jpg", b"x")
    except SlotStorageUnavailable as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
storage.write("pool-1/carrier-1/0002.jpg", b"x")
"""


def test_a_process_that_was_forked_is_refused_at_once(s3: StubServer) -> None:
    """The client's threads are not in it, so that it would wait for ever."""
    s3.answer = lambda _: Reply(headers={"ETag": '"1"'})
    ran = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=60, check=True
    )
    assert "forked" in ran.stdout
    assert [seen.path[-8:] for seen in s3.seen] == ["0000.jpg", "0002.jpg"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("obstore", "obstore.store", "obstore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    storage = SlotStorage(in_bucket("bucket"), "pool-1")
    for call in (storage.mark, storage.require, lambda: storage.read("pool-1/a/0000.jpg")):
        with pytest.raises(ConfigError, match=r"pip install 'cvat-task-pool\[storage\]'"):
            call()


def test_a_client_of_each_cloud_finds_its_settings(
    s3: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "czNjcjN0")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{s3.url}/account")
    s3.answer = lambda _: Reply(201, headers={"ETag": '"1"'})
    settings = SlotSettings(size="64x48", storage="az://container/slots", server="cloud:3")
    SlotStorage(settings, "pool-1").write("pool-1/carrier-1/0000.jpg", b"picture")
    assert s3.seen[0].path == "/account/container/slots/pool-1/carrier-1/0000.jpg"
    assert s3.seen[0].body == b"picture"


@pytest.mark.parametrize(
    ("storage", "server", "name"),
    [
        ("file:///mnt/share/slots", "share:slots", "slots/pool-1/carrier-1/0012.jpg"),
        ("file:///mnt/share", "share:", "pool-1/carrier-1/0012.jpg"),
        ("s3://bucket/a/b", "cloud:3", "a/b/pool-1/carrier-1/0012.jpg"),
        ("gs://bucket", "cloud:3", "pool-1/carrier-1/0012.jpg"),
    ],
)
def test_what_the_server_calls_a_file(storage: str, server: str, name: str) -> None:
    settings = SlotSettings(size="64x48", storage=storage, server=server, cache_storage=3)
    placed = SlotStorage(settings, "pool-1")
    assert placed.on_server(placed.key("carrier-1", 12)) == name
