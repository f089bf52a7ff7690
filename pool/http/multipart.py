"""Streaming parser of ``multipart/form-data``: files go to the spool, fields are kept in memory.

python-multipart bounds the headers of a part by itself.
"""

from __future__ import annotations

import hashlib
import logging
import re
import threading
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pool.errors import InputError, TooLarge
from pool.requests.incoming import Incoming, Part

#: The name of the parts that are files.
FILES: Final = "files"
#: Bytes of the longest boundary (RFC 2046, section 5.1.1), and of one field.
LONGEST_BOUNDARY: Final = 70
LONGEST_FIELD: Final = 2**16

#: A file name that is not ASCII, as old clients send it (RFC 8187, section 3.2).
_EXTENDED_NAME: Final = re.compile(rb";\s*filename\*\s*=\s*utf-8'[^';]*'([^;\s]*)", re.I)
_QUOTED: Final = re.compile(rb'"(?:\\.|[^"\\])*"')

# It logs warnings about what callers send; they get an error instead.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class FormReader:
    """Parser of one form with these ``fields`` and up to ``most_files`` files.

    ``incoming`` makes the spool entry for the files at the first :meth:`feed`; the caller finishes
    or discards it. With ``digests``, the SHA-256 digest of each file is computed.
    """

    def __init__(
        self,
        content_type: str,
        incoming: Callable[[], Incoming],
        *,
        fields: frozenset[str],
        most_files: int,
        digests: bool,
    ) -> None:
        self._make_incoming = incoming
        self._known = fields
        self._most_files = most_files
        self._with_digests = digests
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= LONGEST_BOUNDARY:
            raise InputError("the Content-Type has no valid boundary")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self.on_part_begin,
                "on_part_data": self.on_part_data,
                "on_part_end": self.on_part_end,
                "on_header_field": self.on_header_field,
                "on_header_value": self.on_header_value,
                "on_header_end": self.on_header_end,
                "on_headers_finished": self.on_headers_finished,
                "on_end": self.on_end,
            },
        )
        self._name = b""
        self._value = b""
        self._disposition: bytes | None = None
        self._field: str | None = None
        self._text = bytearray()
        self._file: Part | None = None
        self._content: Any = None
        self._ended = False
        self._discarded = False
        self._guard = threading.Lock()
        self.incoming: Incoming | None = None
        self.fields: dict[str, str] = {}
        self.files = 0
        #: The digests of the files, in their order, when they were asked for.
        self.digests: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the body, on the calling thread.

        :raises InputError: the form is malformed, a name is invalid, or there are too many parts.
        :raises TooLarge: a field is too long.
        :raises SpoolFull: the spool has no room.
        """
        with self._guard:
            if self._discarded:
                raise InputError("the upload was aborted")
            if self.incoming is None:
                self.incoming = self._make_incoming()
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise InputError(f"malformed form: {error}") from None

    def discard(self) -> None:
        """Delete the spool entry, once a feed on another thread has returned. Does nothing if the
        entry is finished."""
        with self._guard:
            self._discarded = True
            if self.incoming is not None:
                self.incoming.discard()

    def end(self) -> Incoming:
        """Return the spool entry with all files, after the last feed.

        :raises InputError: the form is incomplete, or has no files.
        """
        if not self._ended or self.incoming is None:
            raise InputError("the body ends before the form does")
        if not self.files:
            raise InputError(f"the form has no {FILES}")
        return self.incoming

    # --- Callbacks of the parser ------------------------------------------------------------------

    def on_part_begin(self) -> None:
        self._disposition = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            if self._disposition is not None:
                raise InputError("a part of the form has two Content-Disposition headers")
            self._disposition = self._value
        self._name = self._value = b""

    def on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._disposition)
        # Where both are given, this one counts, as in CVAT (recording names).
        if extended := _EXTENDED_NAME.search(_QUOTED.sub(b'""', self._disposition or b"")):
            options[b"filename"] = unquote_to_bytes(extended[1])
        if kind != b"form-data" or b"name" not in options:
            raise InputError("a part of the form has no name")
        name = _text(options[b"name"], "the name of a part")
        if name == FILES:
            self._begin_file(options.get(b"filename"))
        else:
            self._begin_field(name)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            # No copy: large bodies pass here.
            piece = memoryview(data)[start:end]
            self._file.write(piece)
            if self._content is not None:
                self._content.update(piece)
        elif len(self._text) + end - start > LONGEST_FIELD:
            raise TooLarge(f"{self._field}: at most {LONGEST_FIELD} bytes")
        else:
            self._text += data[start:end]

    def on_part_end(self) -> None:
        if self._file is not None:
            self._end_file(self._file)
        elif self._field is not None:
            self.fields[self._field] = _text(bytes(self._text), self._field)
            self._field = None

    def on_end(self) -> None:
        self._ended = True

    # --- Parts ----------------------------------------------------------------------------------

    def _begin_field(self, name: str) -> None:
        if name not in self._known:
            known = ", ".join(sorted(self._known))
            raise InputError(f"unknown field {name[:80]!r}; the fields are {FILES}, {known}")
        if name in self.fields:
            raise InputError(f"{name} is given twice")
        self._field = name
        self._text.clear()

    def _begin_file(self, filename: bytes | None) -> None:
        if not filename:
            raise InputError("a file has no name: send it with a filename")
        self.files += 1
        if self.files > self._most_files:
            raise InputError(f"at most {self._most_files} files; send an archive")
        name = _text(filename, "the name of a file")
        assert self.incoming is not None
        self._file = self.incoming.add(name)
        self._content = hashlib.sha256() if self._with_digests else None

    def _end_file(self, file: Part) -> None:
        file.close()
        if not file.size:
            raise InputError(f"{file.name}: is empty")
        if self._content is not None:
            self.digests.append(self._content.digest())
        self._file = self._content = None


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{what} is not UTF-8") from None
