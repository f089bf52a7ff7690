"""The spool: what is complete, what is kept, and what is not."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pool.config.source import Upload, build_upload
from pool.errors import InputError, SpoolFull, StoreError, TooLarge
from pool.model import SpoolRecord
from pool.requests.incoming import MANIFEST
from pool.requests.spool import Spool
from pool.requests.spool_files import make_id

LIMIT = 10_000


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "pool.spool" / "pool1", limit=LIMIT)


def contents(upload: Upload | None) -> list[tuple[str, bytes]]:
    assert upload is not None
    return [(file.name, Path(str(file.source)).read_bytes()) for file in upload.files]


def files_in(spool: Spool) -> list[str]:
    folder = spool.folder
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- What comes in pieces ------------------------------------------------------------------------


def test_pieces_become_an_entry(spool: Spool) -> None:
    incoming = spool.receive("r1")
    first = incoming.add("cam1/a.jpg")
    for piece in (b"some ", memoryview(b"more "), bytearray(b"bytes")):
        assert first.write(piece) == len(piece)
    incoming.add("b.jpg").write(b"b")
    assert spool.load("r1") is None, "it is none until it is finished"
    upload = incoming.finish(params={"image_quality": 80}, sync=True)
    assert upload == spool.load("r1")
    assert contents(upload) == [("a.jpg", b"some more bytes"), ("b.jpg", b"b")]
    assert (upload.extra, upload.size) == ({"image_quality": 80}, 16)


@pytest.mark.parametrize(
    "given",
    [
        {"share": ["cam1/a.jpg", "cam2"]},
        {"urls": ["https://example.test/a.jpg"]},
        {"cloud": (7, ["a.jpg", "b/c.jpg"])},
    ],
)
def test_names_alone_are_an_entry(spool: Spool, given: dict[str, object]) -> None:
    upload = spool.receive("r1").finish(**given, sync=False)  # type: ignore[arg-type]
    assert upload == spool.load("r1") == build_upload(**given)  # type: ignore[arg-type]
    assert files_in(spool) == ["r1/manifest.json"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "..",
        "cam/..",
        "a.jpg ",
        "a\x00.jpg",
        "\udcff.jpg",
        "\u3000",
        "😀" * 63 + ".png",
    ],
)
def test_names_that_cvat_would_not_take_are_refused(spool: Spool, name: str) -> None:
    with spool.receive("r1") as incoming, pytest.raises(InputError):
        incoming.add(name)
    assert files_in(spool) == []


def test_names_that_would_meet_on_the_server_become_others(spool: Spool) -> None:
    with spool.receive("r1") as incoming:
        incoming.add("cam1/a.jpg").write(b"a")
        incoming.add("cam2/a.jpg").write(b"b")
        incoming.add("b.jpg").write(b"c")
        incoming.add("b.jpg").write(b"d")
        upload = incoming.finish(sync=False)
    assert spool.load("r1") == upload
    assert upload.names == ("cam1_a.jpg", "cam2_a.jpg", "b.jpg", "b-2.jpg")
    assert upload.given == ("cam1/a.jpg", "cam2/a.jpg", "b.jpg", "b.jpg")


def test_names_never_become_paths(spool: Spool) -> None:
    incoming = spool.receive("r1")
    incoming.add("manifest.json").write(b"{}")
    incoming.add("0000").write(b"zero")
    incoming.add("ä \N{SNOWMAN}.jpg").write(b"snow")
    upload = incoming.finish(sync=False)
    assert files_in(spool) == ["r1/0000", "r1/0001", "r1/0002", "r1/manifest.json"]
    assert [name for name, _ in contents(spool.load("r1"))] == [file.name for file in upload.files]


@pytest.mark.parametrize(
    ("parts", "given"),
    [([], {}), ([b""], {}), ([b"x"], {"share": ["a"]}), ([], {"urls": ["ftp://x"]})],
)
def test_no_data_or_too_many_kinds_of_it(
    spool: Spool, parts: list[bytes], given: dict[str, object]
) -> None:
    with spool.receive("r1") as incoming:
        for number, content in enumerate(parts):
            incoming.add(f"{number}.jpg").write(content)
        with pytest.raises(InputError):
            incoming.finish(**given, sync=False)  # type: ignore[arg-type]
    assert files_in(spool) == []


def test_what_is_discarded_leaves_nothing(spool: Spool) -> None:
    incoming = spool.receive("r1")
    incoming.add("a.jpg").write(b"a")
    incoming.discard()
    incoming.discard()
    assert (list(spool.folder.iterdir()), spool.room.used) == ([], 0)


def test_what_is_finished_is_not_discarded(spool: Spool) -> None:
    with spool.receive("r1") as incoming:
        incoming.add("a.jpg").write(b"a")
        incoming.finish(sync=False)
    assert spool.load("r1") is not None


def test_an_id_that_is_none_leads_nowhere(spool: Spool) -> None:
    for request_id in ("", "..", "a/b", "../../etc", "x" * 65, "a\n"):
        with pytest.raises(InputError):
            spool.receive(request_id)
        with pytest.raises(InputError):
            spool.drop(request_id)


def test_nobody_else_can_read_it(spool: Spool) -> None:
    spool.keep("r1", build_upload([("a.jpg", b"a")]))
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in spool.folder.rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700


# --- What is kept --------------------------------------------------------------------------------


def test_all_kinds_of_files_are_kept(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"of a path")
    stream = io.BytesIO(b"skipped, of a stream")
    stream.seek(9)
    upload = build_upload(
        [tmp_path / "a.jpg", ("b.jpg", b"of bytes"), ("c.jpg", stream)], params={"start_frame": 1}
    )
    stream.seek(0, os.SEEK_END)  # where an upload that came to nothing left it
    spool.keep("r1", upload)
    (tmp_path / "a.jpg").unlink()
    kept = spool.load("r1")
    assert contents(kept) == [
        ("a.jpg", b"of a path"),
        ("b.jpg", b"of bytes"),
        ("c.jpg", b"of a stream"),
    ]
    assert kept is not None and kept.extra == {"start_frame": 1}


def test_what_cannot_be_read_is_not_kept(spool: Spool, tmp_path: Path) -> None:
    stream = io.BytesIO(b"closed")
    path = tmp_path / "gone.jpg"
    path.write_bytes(b"gone")
    closed, gone = build_upload([("c.jpg", stream)]), build_upload([path])
    stream.close()
    path.unlink()
    for upload in (closed, gone):
        with pytest.raises(InputError):
            spool.keep("r1", upload)
    assert (list(spool.folder.iterdir()), spool.room.used) == ([], 0)


def test_keeping_twice_is_keeping_once(spool: Spool) -> None:
    spool.keep("r1", build_upload([("a.jpg", b"first")]))
    spool.keep("r1", build_upload([("a.jpg", b"second")]))
    assert contents(spool.load("r1")) == [("a.jpg", b"first")]


def test_a_process_that_died_while_it_wrote_left_no_entry(spool: Spool) -> None:
    script = (
        "import os, sys; from pathlib import Path; from pool.requests.spool import Spool\n"
        "incoming = Spool(Path(sys.argv[1]), limit=10_000).receive('r1')\n"
        "part = incoming.add('a.jpg'); part.write(b'half'); part.close(); os._exit(9)"
    )
    ended = subprocess.run([sys.executable, "-c", script, spool.folder], check=False)
    assert ended.returncode == 9
    assert files_in(spool) == ["r1/0000"]
    assert spool.load("r1") is None
    assert spool.room.used == 4, "it takes up room all the same"
    spool.keep("r1", build_upload([("a.jpg", b"whole")]))
    assert contents(spool.load("r1")) == [("a.jpg", b"whole")]


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "part gone", "part short"])
def test_an_entry_that_lacks_something_is_none(spool: Spool, damage: str) -> None:
    spool.keep("r1", build_upload([("a.jpg", b"whole")]))
    folder = spool.folder / "r1"
    match damage:
        case "no manifest":
            (folder / MANIFEST).unlink()
        case "half a manifest":
            os.truncate(folder / MANIFEST, 20)
        case "part gone":
            (folder / "0000").unlink()
        case "part short":
            os.truncate(folder / "0000", 2)
    assert spool.load("r1") is None


def test_an_entry_of_another_version_is_not_guessed_at(spool: Spool) -> None:
    spool.keep("r1", build_upload([("a.jpg", b"a")]))
    manifest = spool.folder / "r1" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreError, match="another version"):
        spool.load("r1")


def test_dropping(spool: Spool) -> None:
    spool.keep("r1", build_upload([("a.jpg", b"a")]))
    spool.drop("r1")
    spool.drop("r1")
    assert (spool.load("r1"), spool.room.used) == (None, 0)


def test_syncing_afterwards(spool: Spool) -> None:
    incoming = spool.receive("r1")
    incoming.add("a.jpg").write(b"a")
    incoming.finish(sync=False)
    spool.sync("r1")
    with pytest.raises(StoreError):
        spool.sync("r2")


# --- Room ----------------------------------------------------------------------------------------


def test_what_has_no_room_is_refused_and_leaves_nothing(spool: Spool) -> None:
    spool.keep("r1", build_upload([("a.jpg", bytes(6_000))]))
    used = spool.room.used
    assert 6_000 < used < 6_400, "with the manifest"
    with pytest.raises(SpoolFull, match="spool_limit"):
        spool.keep("r2", build_upload([("a.jpg", bytes(5_000))]))
    assert (spool.room.used, [path.name for path in spool.folder.iterdir()]) == (used, ["r1"])
    spool.drop("r1")
    spool.keep("r2", build_upload([("a.jpg", bytes(5_000))]))


def test_what_is_too_large_alone_will_never_have_room(spool: Spool) -> None:
    with pytest.raises(TooLarge):
        spool.keep("r1", build_upload([("a.jpg", bytes(LIMIT + 1))]))


def test_pieces_that_have_no_room_are_refused_where_they_come(spool: Spool) -> None:
    first, second = spool.receive("r1"), spool.receive("r2")
    first.add("a.jpg").write(bytes(7_000))
    part = second.add("a.jpg")
    part.write(bytes(2_000))
    with pytest.raises(SpoolFull):
        part.write(bytes(2_000))
    first.discard()
    part.write(bytes(2_000))
    assert second.finish(sync=False).size == 4_000
    assert 4_000 < spool.room.used < 4_400


def test_a_full_spool_takes_nothing_new(spool: Spool) -> None:
    spool.keep("r1", build_upload([("a.jpg", bytes(LIMIT - 300))]))
    (spool.folder / "r1" / "0001").write_bytes(bytes(300))
    spool = Spool(spool.folder, limit=LIMIT)
    with pytest.raises(SpoolFull):
        spool.receive("r2")


def test_the_room_that_others_take_counts(spool: Spool) -> None:
    other = Spool(spool.folder, limit=LIMIT)
    spool.keep("r1", build_upload([("a.jpg", bytes(3_000))]))
    assert other.room.used == spool.room.used
    other.drop("r1")
    assert spool.room.used == 0


@pytest.mark.parametrize("sizes", [(1, 30), (30, 1)])
def test_a_spool_of_many_is_full_when_it_really_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]
) -> None:
    """A few of them are counted at a time; nothing is refused before all are."""
    for name in ("COUNTED", "MANY"):
        monkeypatch.setattr(f"pool.requests.spool_room.{name}", 3)
    writer = Spool(tmp_path / "spool", limit=10**9)
    for number in range(20):
        writer.keep(f"r{number}", build_upload([("a.jpg", bytes(sizes[number % 2]))]))
    spool = Spool(writer.folder, limit=writer.room.used + 300)
    spool.keep("fits", build_upload([("a.jpg", b"x")]))
    with pytest.raises(SpoolFull):
        spool.keep("more", build_upload([("a.jpg", bytes(300))]))
    for number in range(2, 20):
        spool.drop(f"r{number}")
    assert spool.room.used == Spool(writer.folder, limit=1).room.used > 0


def test_a_disk_that_is_full_is_said_to_be(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    incoming = spool.receive("r1")
    part = incoming.add("a.jpg")

    def full(_data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(part, "_stream", type("Stream", (), {"write": staticmethod(full)})())
        with pytest.raises(StoreError, match="No space left on device; make room"):
            part.write(b"a")
    incoming.discard()


# --- Sweeping ------------------------------------------------------------------------------------


GRACE = 600.0


def sweep(spool: Spool, *needed: str, at: float) -> int:
    return spool.sweep(lambda _: needed, older_than=GRACE, now=at)


def test_sweeping_takes_what_was_there_unchanged_for_a_while(spool: Spool) -> None:
    upload = build_upload([("a.jpg", b"a")])
    for request_id in ("needed", "old"):
        spool.keep(request_id, upload)
    half = Spool(spool.folder, limit=LIMIT).receive("half")
    half.add("a.jpg").close()
    assert sweep(spool, "needed", at=0.0) == 0
    spool.keep("young", upload)
    assert sweep(spool, "needed", at=GRACE - 1.0) == 0
    assert sweep(spool, "needed", at=GRACE) == 2
    assert sorted(path.name for path in spool.folder.iterdir()) == ["needed", "young"]


@pytest.mark.parametrize("written_at", [0.0, 2e9, 4e9])
def test_sweeping_goes_by_no_clock_that_may_be_wrong(spool: Spool, written_at: float) -> None:
    """That of the machine which writes, or of this one, was set."""
    spool.keep("r1", build_upload([("a.jpg", b"a")]))
    for each in (*(spool.folder / "r1").iterdir(), spool.folder / "r1"):
        os.utime(each, (written_at,) * 2)
    assert sweep(spool, at=0.0) == 0
    assert sweep(spool, at=GRACE - 1.0) == 0
    assert sweep(spool, at=GRACE) == 1


def test_sweeping_leaves_what_is_still_written_to(spool: Spool) -> None:
    mine, theirs = spool.receive("mine"), Spool(spool.folder, limit=LIMIT).receive("theirs")
    mine.add("a.jpg")
    theirs.add("a.jpg").close()
    assert sweep(spool, at=0.0) == 0
    # A large file: its folder was made long ago.
    os.utime(spool.folder / "theirs" / "0000", (3e9, 3e9))
    assert sweep(spool, at=GRACE) == 0
    assert sweep(spool, at=2 * GRACE) == 1
    mine.discard()


def test_what_was_needed_meanwhile_is_seen_anew(spool: Spool) -> None:
    spool.keep("r1", build_upload([("a.jpg", b"a")]))
    assert sweep(spool, at=0.0) == 0
    assert sweep(spool, "r1", at=GRACE / 2) == 0
    assert sweep(spool, at=GRACE) == 0
    assert sweep(spool, at=2 * GRACE) == 1


def test_sweeping_where_there_is_nothing(spool: Spool) -> None:
    assert sweep(spool, at=0.0) == 0


def test_what_could_not_be_deleted_at_once_is_swept(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, **_: object) -> None:
        raise PermissionError

    incoming = spool.receive("r1")
    incoming.add("a.jpg").write(b"x" * 1000)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", refuse)
        with pytest.raises(StoreError):
            incoming.discard()
    assert spool.room.used <= 1000, "it has no room for more"
    assert sweep(spool, at=0.0) == 0
    assert sweep(spool, at=GRACE) == 1
    assert spool.room.used == 0


# --- Which spool it is ---------------------------------------------------------------------------


def test_a_folder_has_one_id_for_all_that_use_it(tmp_path: Path) -> None:
    registered: list[SpoolRecord] = []
    one, another = (
        Spool(tmp_path / "spool" / "pool1", limit=LIMIT, register=registered.append)
        for _ in range(2)
    )
    assert (one.id, one.ids, one.troubles) == ("", (), {})
    one.register()
    assert registered == []
    one.open()
    assert one.id and one.ids == (one.id,) and one.troubles == {one.id: ""}
    assert another.id == one.id
    another.keep("r1", build_upload([("a.jpg", b"a")]))
    (first, second) = registered
    assert first == second
    assert (first.id, first.place, first.shared) == (one.id, str(tmp_path / "spool"), False)
    assert first.host
    other = Spool(tmp_path / "other" / "pool1", limit=LIMIT)
    other.open()
    assert other.id != one.id


def test_two_that_make_a_folder_at_once_agree_on_its_id(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(lambda _: make_id(tmp_path / "spool" / "spool.id"), range(8)))
    assert len(made) == 1
    assert [each.name for each in (tmp_path / "spool").iterdir()] == ["spool.id"]


def test_nothing_is_kept_where_the_spool_cannot_be_registered(tmp_path: Path) -> None:
    def refuse(_: SpoolRecord) -> None:
        raise StoreError("away")

    spool = Spool(tmp_path / "spool" / "pool1", limit=LIMIT, register=refuse)
    for _ in range(2):
        with pytest.raises(StoreError, match="away"):
            spool.keep("r1", build_upload([("a.jpg", b"a")]))
    assert spool.load("r1") is None
