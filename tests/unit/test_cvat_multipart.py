"""The multipart body: what Django must be able to read, and exactly as long as announced."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import BinaryIO

import pytest

from pool.config.source import LocalFile
from pool.cvat.multipart import (
    CHUNK,
    Multipart,
    OpenFile,
    content_type,
    form_fields,
)
from pool.errors import InputError


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Pipe(io.RawIOBase):
    """A stream that cannot be rewound and gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1000) if size >= 0 else 1000)


def parts(body: Multipart) -> list[tuple[Message, bytes]]:
    sent = b"".join(body.chunks())
    assert len(sent) == body.length
    head = f"Content-Type: {body.content_type}\r\n\r\n".encode()
    parsed = BytesParser(policy=HTTP).parsebytes(head + sent)
    payload = parsed.get_payload()
    assert isinstance(payload, list)
    found = []
    for part in payload:
        assert isinstance(part, Message)
        data = part.get_payload(decode=True)
        assert isinstance(data, bytes)
        found.append((part, data))
    return found


def test_parameters_become_fields_as_django_rest_framework_nests_them() -> None:
    fields = form_fields(
        {
            "image_quality": 70,
            "use_cache": True,
            "copy_data": False,
            "chunk_size": None,
            "job_file_mapping": [["a.jpg", "b.jpg"], ["c.jpg"]],
            "upload_file_order": ("b", "a"),
            "validation_params": {"mode": "gt", "frames": ["a.jpg"]},
        }
    )
    assert list(fields) == [
        ("image_quality", "70"),
        ("use_cache", "true"),
        ("copy_data", "false"),
        ("job_file_mapping[0][0]", "a.jpg"),
        ("job_file_mapping[0][1]", "b.jpg"),
        ("job_file_mapping[1][0]", "c.jpg"),
        ("upload_file_order[0]", "b"),
        ("upload_file_order[1]", "a"),
        ("validation_params.mode", "gt"),
        ("validation_params.frames[0]", "a.jpg"),
    ]


def test_bytes_paths_and_open_files_are_read_alike(tmp_path: Path, stack: ExitStack) -> None:
    path = tmp_path / "b.png"
    path.write_bytes(b"from a path")
    standing = io.BytesIO(b"skipped;from a file")
    standing.seek(8)
    files = [
        LocalFile("cam1/a.jpg", b"\r\n--from bytes", 14),
        LocalFile("b.png", path, 11),
        LocalFile("c", standing, 11),
        LocalFile("d.zip", Pipe(b"from a pipe"), 11),  # type: ignore[arg-type]
    ]
    body = Multipart({"image_quality": 70}, [OpenFile(file, stack) for file in files])
    (quality, value), *sent = parts(body)
    assert quality["Content-Disposition"] == 'form-data; name="image_quality"'
    assert value == b"70"
    assert [data for _, data in sent] == [
        b"\r\n--from bytes",
        b"from a path",
        b"from a file",
        b"from a pipe",
    ]
    assert [part.get_content_type() for part, _ in sent] == [
        "image/jpeg",
        "image/png",
        "application/octet-stream",
        "application/zip",
    ]
    assert [part.get_param("name", header="Content-Disposition") for part, _ in sent] == [
        f"client_files[{index}]" for index in range(4)
    ]
    assert sent[0][0].get_filename() == "cam1/a.jpg"


def test_names_keep_what_is_in_them(stack: ExitStack) -> None:
    name = 'é "so" \\ 画像.jpg'
    body = Multipart({}, [OpenFile(LocalFile(name, b"x", 1), stack)])
    sent = b"".join(body.chunks())
    assert 'filename="é \\"so\\" \\\\ 画像.jpg"'.encode() in sent


def test_large_bodies_come_in_pieces_and_can_be_read_twice(
    tmp_path: Path, stack: ExitStack
) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(256)) * 8192)
    files = [LocalFile("a.bin", path, 0), LocalFile("b.bin", b"y" * (CHUNK + 1), CHUNK + 1)]
    body = Multipart({}, [OpenFile(file, stack) for file in files])
    first, second = list(body.chunks()), list(body.chunks())
    assert max(map(len, first)) <= CHUNK
    assert b"".join(first) == b"".join(second)
    assert sum(map(len, first)) == body.length
    assert body.replayable


def test_many_small_files_are_sent_together(stack: ExitStack) -> None:
    files = [OpenFile(LocalFile(f"{n}.jpg", b"z" * 100, 100), stack) for n in range(6000)]
    body = Multipart({}, files)
    assert len(list(body.chunks())) < 10


def test_a_pipe_cannot_be_read_twice(stack: ExitStack) -> None:
    stream: BinaryIO = Pipe(b"abc")  # type: ignore[assignment]
    assert not Multipart({}, [OpenFile(LocalFile("a", stream, 3), stack)]).replayable


@pytest.mark.parametrize(("declared", "change"), [(4, "became shorter"), (2, "became longer")])
def test_a_pipe_of_another_length_is_noticed(stack: ExitStack, declared: int, change: str) -> None:
    stream: BinaryIO = Pipe(b"abc")  # type: ignore[assignment]
    with pytest.raises(InputError, match=change):
        b"".join(OpenFile(LocalFile("a", stream, declared), stack).chunks())


@pytest.mark.parametrize(("content", "change"), [(b"ab", "shorter"), (b"abcd", "longer")])
def test_a_file_that_changes_is_noticed(
    tmp_path: Path, stack: ExitStack, content: bytes, change: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    file = OpenFile(LocalFile("a", path, 3), stack)
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"became {change}"):
        list(file.chunks())


def test_files_that_cannot_be_opened(tmp_path: Path, stack: ExitStack) -> None:
    with pytest.raises(InputError, match=r"none\.jpg cannot be opened: No such file"):
        OpenFile(LocalFile("none.jpg", tmp_path / "none.jpg", 1), stack)
    with pytest.raises(InputError, match="is a folder"):
        OpenFile(LocalFile("folder", tmp_path, 1), stack)
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(InputError, match="cannot be read"):
        OpenFile(LocalFile("closed", closed, 1), stack)
    with pytest.raises(InputError, match="holds 1 bytes, not 2"):
        OpenFile(LocalFile("a", io.BytesIO(b"x"), 2), stack)


def test_a_stream_that_fails_is_not_a_failure_of_the_connection(stack: ExitStack) -> None:
    class Failing(Pipe):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error", size)

    stream: BinaryIO = Failing(b"")  # type: ignore[assignment]
    with pytest.raises(InputError, match="Input/output error"):
        list(OpenFile(LocalFile("a", stream, 1), stack).chunks())


def test_media_types() -> None:
    assert content_type("a.JPG") == "image/jpeg"
    assert content_type("clip.mp4") == "video/mp4"
    assert content_type("a.tar.gz") == "application/octet-stream"


def test_a_file_that_is_not_kept_open_is_opened_again(stack: ExitStack, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"first")
    file = OpenFile(LocalFile("a.jpg", path, 5), stack, keep=False)
    assert file.size == 5
    assert file.replayable
    assert b"".join(file.chunks(2)) == b"".join(file.chunks()) == b"first"
    path.write_bytes(b"longer")
    with pytest.raises(InputError, match=r"a\.jpg became longer"):
        list(file.chunks())
    path.unlink()
    with pytest.raises(InputError, match=r"a\.jpg cannot be read: No such file"):
        list(file.chunks())
    with pytest.raises(InputError, match="cannot be opened"):
        OpenFile(LocalFile("a.jpg", path, 5), stack, keep=False)
