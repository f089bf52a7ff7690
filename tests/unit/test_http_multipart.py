"""Forms as they come: whatever the pieces, the same files and fields."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool.config.source import Upload
from pool.errors import InputError, SpoolFull
from pool.http.multipart import FormReader
from pool.model import new_id
from pool.requests.spool import Spool

BOUNDARY = b"b"
# What looks like the end of a part is what a reader could get wrong.
TRICKY = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"b", b"\r\n--b", b"\r\n--"]), min_size=1)
NAMES = st.text(
    st.characters(categories=["L", "N"], include_characters=" ._-"), min_size=1, max_size=20
).filter(lambda name: name.strip(" ."))


def form(fields: dict[str, str], files: list[tuple[str, bytes]]) -> bytes:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (name.encode(), value.encode())
        for name, value in fields.items()
    ]
    parts += [
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n'
        % (name.encode(), content)
        for name, content in files
    ]
    return b"".join(parts) + b"--b--\r\n"


def reader_on(spool: Spool, *, most_files: int = 10, digests: bool = True) -> FormReader:
    return FormReader(
        "multipart/form-data; boundary=b",
        partial(spool.receive, new_id()),
        fields=frozenset({"template", "name"}),
        most_files=most_files,
        digests=digests,
    )


def contents(upload: Upload) -> list[tuple[str, bytes]]:
    return [(file.name, Path(str(file.source)).read_bytes()) for file in upload.files]


def finish(reader: FormReader) -> Upload:
    return reader.end().finish(sync=False)


@given(
    files=st.lists(st.binary(min_size=1, max_size=200) | TRICKY.map(b"".join), min_size=1).filter(
        # A part cannot have the boundary in it.
        lambda files: not any(b"\r\n--b" in b"\r\n" + content for content in files)
    ),
    name=NAMES,
    cuts=st.lists(st.integers(min_value=0, max_value=2000), max_size=8),
)
@settings(max_examples=60)
def test_however_it_is_cut(files: list[bytes], name: str, cuts: list[int]) -> None:
    named = [(f"{number}.jpg", content) for number, content in enumerate(files[:10])]
    body = form({"template": "scenes", "name": name}, named)
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    with tempfile.TemporaryDirectory() as folder:
        reader = reader_on(Spool(Path(folder) / "spool", limit=2**30))
        for start, stop in itertools.pairwise(edges):
            reader.feed(body[start:stop])
        assert contents(finish(reader)) == named
    assert reader.fields == {"template": "scenes", "name": name}
    assert reader.digests == [hashlib.sha256(content).digest() for _, content in named]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", limit=10**6)


def test_byte_by_byte(spool: Spool) -> None:
    body = form({"template": "scenes"}, [("a.jpg", b"\r\n--\r\n-b\r\n")])
    reader = reader_on(spool)
    for byte in body:
        reader.feed(bytes([byte]))
    assert contents(finish(reader)) == [("a.jpg", b"\r\n--\r\n-b\r\n")]


def test_what_is_discarded_leaves_nothing(spool: Spool) -> None:
    reader = reader_on(spool)
    reader.feed(form({}, [("a.jpg", b"x")])[:-5])
    reader.discard()
    assert list(spool.folder.iterdir()) == []
    with pytest.raises(InputError):
        reader.feed(b"more")
    reader.discard()


def test_what_is_finished_stays(spool: Spool) -> None:
    reader = reader_on(spool, digests=False)
    reader.feed(form({}, [("a.jpg", b"x")]))
    upload = finish(reader)
    reader.discard()
    assert contents(upload) == [("a.jpg", b"x")]
    assert reader.digests == []


def test_a_full_spool(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", limit=1000)
    reader = reader_on(spool)
    with pytest.raises(SpoolFull):
        reader.feed(form({}, [("a.jpg", b"x" * 2000)]))
    reader.discard()
    assert spool.room.used == 0


def test_no_more_files_than_allowed(spool: Spool) -> None:
    reader = reader_on(spool, most_files=2)
    with pytest.raises(InputError, match="at most 2 files"):
        reader.feed(form({}, [(f"{number}.jpg", b"x") for number in range(3)]))
