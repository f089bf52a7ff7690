"""``multipart/form-data`` streamed from files, bytes and open files, with its exact length."""

from __future__ import annotations

import mimetypes
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote

from pool.config.source import LocalFile
from pool.errors import InputError

#: Bodies up to this size are built in memory and sent in one go (bytes).
SMALL: Final = 2**20
#: Bytes read and sent at a time.
CHUNK: Final = 256 * 1024


def form_fields(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield parameters as form fields, nested as Django REST framework reads them.

    ``{"a": [["x"]]}`` is ``a[0][0]=x`` and ``{"a": {"b": 1}}`` is ``a.b=1`` (recording
    job_file_mapping). None is not sent.
    """
    for key, value in params.items():
        if isinstance(value, Mapping):
            yield from form_fields({f"{key}.{inner}": item for inner, item in value.items()})
        elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
            yield from form_fields({f"{key}[{index}]": item for index, item in enumerate(value)})
        elif isinstance(value, bool):
            yield key, "true" if value else "false"
        elif value is not None:
            yield key, str(value)


class OpenFile:
    """A file to upload, opened before anything is sent.

    Without ``keep``, it is closed and opened again when it is sent.

    :raises InputError: it cannot be opened, or has another size.
    """

    def __init__(self, file: LocalFile, stack: ExitStack, *, keep: bool = True) -> None:
        source = file.source
        self.name, self.size = file.name, file.size
        #: Where reading starts; None where the file cannot be rewound.
        self._start: int | None = 0
        self._open: Callable[[], AbstractContextManager[BinaryIO]]
        if isinstance(source, bytes):
            self.size = len(source)
            self._open = lambda: BytesIO(source)
        elif isinstance(source, Path):
            stream = _opened(source)
            # The file's own size counts, so that one written to since it was listed is whole.
            self.size = os.fstat(stream.fileno()).st_size
            if keep:
                stack.enter_context(stream)
                self._open = lambda: nullcontext(stream)
            else:
                stream.close()
                self._open = lambda: source.open("rb")
        else:
            self._start = _position(source, file)
            self._open = lambda: nullcontext(source)

    @property
    def replayable(self) -> bool:
        """Return whether the bytes can be read again from the start."""
        return self._start is not None

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """Yield the file's bytes, ``size`` at a time.

        :raises InputError: the file has changed.
        """
        # An OSError must not leave here: it would be taken for one of the connection.
        try:
            with self._open() as stream:
                yield from self._read(stream, size)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"{self.name} cannot be read: {reason}") from None

    def _read(self, stream: BinaryIO, size: int) -> Iterator[bytes]:
        if self._start is not None:
            stream.seek(self._start)
        left = self.size
        while left:
            chunk = stream.read(min(size, left))
            if not chunk:
                raise InputError(f"{self.name} became shorter while it was being read")
            left -= len(chunk)
            yield chunk
        if stream.read(1):
            raise InputError(f"{self.name} became longer while it was being read")


class Multipart:
    """One multipart body: the fields first, then the files, each as a ``field`` with its index.

    ``verbatim`` sends the names of the files exactly as they are, for the daemon; CVAT decodes
    them, and gets names that stay the same.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        files: Sequence[OpenFile],
        *,
        field: str = "client_files[{}]",
        verbatim: bool = False,
    ) -> None:
        filename = _verbatim if verbatim else _quoted
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = b"".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
            f"{value}\r\n".encode()
            for name, value in form_fields(params)
        )
        self._files = [
            (
                f"--{boundary}\r\nContent-Disposition: form-data; "
                f'name="{field.format(index)}"; {filename(file.name)}\r\n'
                f"Content-Type: {content_type(file.name)}\r\n\r\n".encode(),
                file,
            )
            for index, file in enumerate(files)
        ]
        self._tail = f"--{boundary}--\r\n".encode()
        self.length = (
            len(self._head)
            + sum(len(head) + file.size + 2 for head, file in self._files)
            + len(self._tail)
        )

    @property
    def replayable(self) -> bool:
        """Return whether :meth:`chunks` can be called again, after a renewed login."""
        return all(file.replayable for _, file in self._files)

    def chunks(self) -> Iterator[bytes]:
        """Yield the body, :attr:`length` bytes in all.

        :raises InputError: a file has changed.
        """
        # Gathered, since each piece costs a system call and a packet.
        waiting: list[bytes] = []
        size = 0
        for piece in self.pieces():
            if size + len(piece) > CHUNK and waiting:
                yield b"".join(waiting)
                waiting, size = [], 0
            waiting.append(piece)
            size += len(piece)
        yield b"".join(waiting)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it comes, as :meth:`chunks`: for one that is put together in memory."""
        yield self._head
        for head, file in self._files:
            yield head
            yield from file.chunks()
            yield b"\r\n"
        yield self._tail


def content_type(name: str) -> str:
    """Return the media type of a file, by its name."""
    guessed, encoding = _types().guess_type(Path(name).name)
    return guessed if guessed and not encoding else "application/octet-stream"


@cache
def _types() -> mimetypes.MimeTypes:
    # Python's own table and not the machine's, so that every machine sends the same.
    return mimetypes.MimeTypes()


def _quoted(name: str) -> str:
    """Return a name as a parameter of a header, in which Django decodes character references."""
    quoted = name.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"')
    return f'filename="{quoted}"'


def _verbatim(name: str) -> str:
    """Return a name as a parameter of a header, encoded where it is more than plain characters (RFC
    8187, section 3.2)."""
    if name.isprintable() and not any(each in name for each in '&"\\'):
        return f'filename="{name}"'
    return f"filename*=utf-8''{quote(name, safe='/')}"


def _opened(path: Path) -> BinaryIO:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder")
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror or error}") from None


def _position(stream: BinaryIO, file: LocalFile) -> int | None:
    """Return the position of an open file; None when it cannot be rewound."""
    try:
        if not stream.seekable():
            return None
        # An upload that failed may have left it at another position.
        start = stream.tell() if file.start is None else file.start
        left = stream.seek(0, os.SEEK_END) - start
        stream.seek(start)
    except (OSError, ValueError) as error:
        raise InputError(f"{file.name} cannot be read: {error}") from None
    if left != file.size:
        raise InputError(f"{file.name} holds {left} bytes, not {file.size}")
    return start
