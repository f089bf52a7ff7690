"""A spool in a bucket: entries that are whole, wherever they are read, and a server that fails."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bucket import Bucket, bucket, refusing_writes

from pool.config.source import Upload, build_upload
from pool.errors import SpoolFull, StoreError
from pool.model import SpoolRecord
from pool.requests.shared_spool import CHUNK, SharedSpool
from pool.requests.spool import Spool

LIMIT = 10 * CHUNK
FILES = [("cam1/a.jpg", b"some bytes"), ("b.jpg", b"\n\n"), ("c.jpg", b"x" * 5000)]


@pytest.fixture
def there() -> Iterator[Bucket]:
    with bucket() as made:
        yield made


def spool_of(there: Bucket, folder: Path, *, limit: int = LIMIT) -> Spool:
    """The spool of a machine that has a folder of its own."""
    shared = SharedSpool(f"s3://{there.name}/spool", "pool1")
    return Spool(folder / "spool" / "pool1", limit=limit, shared=shared)


@pytest.fixture
def here(there: Bucket, tmp_path: Path) -> Spool:
    return spool_of(there, tmp_path / "here")


@pytest.fixture
def elsewhere(there: Bucket, tmp_path: Path) -> Spool:
    return spool_of(there, tmp_path / "elsewhere")


def contents(upload: Upload | None) -> list[tuple[str, bytes]]:
    assert upload is not None
    return [(file.given or file.name, Path(str(file.source)).read_bytes()) for file in upload.files]


def key(request_id: str) -> str:
    return f"spool/pool1/{request_id}"


def test_an_entry_is_one_object_that_another_machine_reads(
    there: Bucket, here: Spool, elsewhere: Spool
) -> None:
    upload = build_upload(FILES, params={"image_quality": 80})
    here.keep("r1", upload)
    content = there.get(key("r1"))
    assert content is not None
    manifest, _, files = content.partition(b"\n")
    assert [each["name"] for each in json.loads(manifest)["files"]] == list(upload.names)
    assert files == b"".join(data for _, data in FILES)
    found = elsewhere.load("r1")
    assert contents(found) == FILES
    assert found is not None and found.extra == {"image_quality": 80}
    assert contents(here.load("r1")) == FILES


def test_one_of_many_pieces_is_read_as_it_was(here: Spool, elsewhere: Spool) -> None:
    """More than is sent, and than is fetched, at a time."""
    files = [("a.mp4", os.urandom(2 * CHUNK + 7)), ("b.jpg", b"b")]
    with here.receive("r1") as incoming:
        for name, data in files:
            part = incoming.add(name)
            for first in range(0, len(data), CHUNK // 8):
                part.write(data[first : first + CHUNK // 8])
        incoming.finish(sync=False)
    assert contents(elsewhere.load("r1")) == files


def test_names_alone_are_an_entry(here: Spool, elsewhere: Spool) -> None:
    upload = here.receive("r1").finish(share=["cam1/a.jpg", "cam2"], sync=False)
    assert elsewhere.load("r1") == upload


def test_it_is_fetched_once(
    there: Bucket, here: Spool, elsewhere: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.keep("r1", build_upload(FILES))
    assert elsewhere.shared is not None
    fetched: list[str] = []
    fetch = elsewhere.shared.fetch

    def count(request_id: str) -> Iterator[bytes]:
        fetched.append(request_id)
        return fetch(request_id)

    monkeypatch.setattr(elsewhere.shared, "fetch", count)
    threads = [threading.Thread(target=elsewhere.load, args=("r1",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["r1"]
    assert contents(elsewhere.load("r1")) == FILES


def test_what_is_to_be_fetched_first(here: Spool, elsewhere: Spool) -> None:
    for name in ("r1", "r2"):
        here.keep(name, build_upload(FILES))
    assert elsewhere.load("r1")
    assert elsewhere.elsewhere(["r1", "r2", "unknown"]) == {"r2", "unknown"}
    assert here.elsewhere(["r1", "r2"]) == frozenset()


def test_what_is_dropped_is_gone_for_all(there: Bucket, here: Spool, elsewhere: Spool) -> None:
    for name in ("r1", "r2"):
        here.keep(name, build_upload(FILES))
    elsewhere.drop("r1", "unknown")
    assert there.get(key("r1")) is None
    assert elsewhere.load("r1") is None
    assert contents(elsewhere.load("r2")) == FILES


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"more",
        lambda content: content.replace(b'"files"', b'"fools"'),
        lambda _: b"{}\n",
        lambda _: b"no line",
        lambda content: content[:20],
    ],
)
def test_a_damaged_entry_is_none(
    there: Bucket, here: Spool, elsewhere: Spool, damage: Callable[[bytes], bytes]
) -> None:
    here.keep("r1", build_upload(FILES))
    content = there.get(key("r1"))
    assert content is not None
    there.put(key("r1"), damage(content))
    assert elsewhere.load("r1") is None
    assert not (elsewhere.folder / "r1").exists()


def test_an_entry_that_the_bucket_does_not_take_is_none(there: Bucket, here: Spool) -> None:
    upload = build_upload(FILES)
    with refusing_writes(), pytest.raises(StoreError, match=rf"the spool s3://{there.name}: "):
        here.keep("r1", upload)
    assert "s3://" in here.troubles[here.id]
    assert here.load("r1") is None
    assert there.get(key("r1")) is None
    assert list(here.folder.iterdir()) == []
    assert here.room.used == 0
    here.keep("r1", upload)
    assert here.troubles == {here.id: ""}


def test_what_cannot_be_fetched_now_is_there_later(
    there: Bucket, here: Spool, elsewhere: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.keep("r1", build_upload(FILES))
    assert elsewhere.shared is not None
    fetch = elsewhere.shared.fetch

    def break_off(request_id: str) -> Iterator[bytes]:
        yield next(fetch(request_id))[:100]
        raise StoreError("timed out")

    with monkeypatch.context() as patched:
        patched.setattr(elsewhere.shared, "fetch", break_off)
        with pytest.raises(StoreError, match="timed out"):
            elsewhere.load("r1")
    assert contents(elsewhere.load("r1")) == FILES


def test_the_limit_is_that_of_all_machines(there: Bucket, here: Spool, tmp_path: Path) -> None:
    here.keep("r1", build_upload([("a.jpg", b"x" * 6000)]))
    another = spool_of(there, tmp_path / "another", limit=10_000)
    with pytest.raises(SpoolFull, match=f"s3://{there.name}/spool has the 10000 bytes"):
        another.keep("r2", build_upload([("b.jpg", b"x" * 6000)]))
    assert 6000 < another.room.used < 6500
    another.drop("r1")
    assert another.room.used == 0
    another.keep("r2", build_upload([("b.jpg", b"x" * 6000)]))


def test_what_no_request_needs_is_swept_by_one_for_all(
    there: Bucket, here: Spool, elsewhere: Spool
) -> None:
    for name in ("kept", "left"):
        here.keep(name, build_upload(FILES))
        elsewhere.load(name)

    def needed(names: object) -> list[str]:
        return ["kept"]

    assert elsewhere.sweep_shared(needed, older_than=600.0, now=0.0) == 0, "it may be needed soon"
    assert elsewhere.sweep_shared(needed, older_than=600.0, now=599.0) == 0
    assert elsewhere.sweep_shared(needed, older_than=600.0, now=600.0) == 1
    assert there.get(key("left")) is None
    assert there.get(key("kept")) is not None
    assert (here.folder / "left").exists()
    assert here.sweep(needed, older_than=600.0, now=0.0) == 0
    assert here.sweep(needed, older_than=600.0, now=600.0) == 1
    assert sorted(each.name for each in here.folder.iterdir()) == ["kept"]
    assert there.get(key("kept")) is not None


def test_a_folder_that_was_the_spool_before_is_read_still(there: Bucket, tmp_path: Path) -> None:
    folder = tmp_path / "spool" / "pool1"
    before = Spool(folder, limit=LIMIT)
    before.keep("r1", build_upload(FILES))
    registered: list[SpoolRecord] = []
    spool = Spool(
        folder,
        limit=LIMIT,
        shared=SharedSpool(f"s3://{there.name}", "pool1"),
        register=registered.append,
    )
    assert spool.ids == (f"s3://{there.name}", before.id)
    assert contents(spool.load("r1")) == FILES
    spool.open()
    assert [(each.id, each.shared, bool(each.host)) for each in registered] == [
        (f"s3://{there.name}", True, False),
        (before.id, False, True),
    ]


def test_a_check_leaves_nothing(there: Bucket) -> None:
    shared = SharedSpool(f"s3://{there.name}/spool", "pool1")
    shared.check()
    assert shared.entries() == {}
    with refusing_writes(), pytest.raises(StoreError, match=there.name):
        shared.check()
    with pytest.raises(StoreError, match="NoSuchBucket"):
        SharedSpool("s3://not-there", "pool1").check()
