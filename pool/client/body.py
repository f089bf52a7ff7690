"""The files of a request on their way to a daemon: streamed, with their exact length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from json import dumps
from typing import Any, Final

from pool.cvat.multipart import Multipart, OpenFile
from pool.cvat.records import Progress, Upload

#: Files of an upload up to which all are held open until the end; more might be too many for
#: the process.
MOST_KEPT_OPEN: Final = 64


class FilesBody:
    """A multipart body of the API: the fields, then the files in their order."""

    def __init__(
        self, fields: Mapping[str, str], files: Sequence[OpenFile], progress: Progress | None
    ) -> None:
        self._multipart = Multipart(fields, files, field="files")
        self._total = sum(file.size for file in files)
        self._progress = progress
        self.content_type = self._multipart.content_type
        self.length = self._multipart.length
        self.replayable = self._multipart.replayable

    def chunks(self) -> Iterator[bytes]:
        """The body, ``length`` bytes in all.

        :raises InputError: a file has changed, or cannot be read any more.
        """
        return self._multipart.chunks()

    def tell(self, sent: int) -> None:
        """Tell whoever looks on that so many bytes of the body were sent."""
        if self._progress is not None:
            self._progress(self._total * sent // self.length, self._total)


@contextmanager
def body_of(
    upload: Upload, fields: Mapping[str, Any], progress: Progress | None
) -> Iterator[FilesBody | None]:
    """The body for the files of an upload, which are open meanwhile; None when there are none.

    ``progress`` is called with (bytes sent, bytes in all) of the files, and begins again when the
    body is sent again.

    :raises InputError: a file cannot be opened; one that changes while it is sent raises it there.
    """
    if not upload.files:
        yield None
        return
    with ExitStack() as stack:
        keep = len(upload.files) <= MOST_KEPT_OPEN
        files = [OpenFile(file, stack, keep=keep) for file in upload.files]
        yield FilesBody(_as_text(fields), files, progress)


def _as_text(fields: Mapping[str, Any]) -> dict[str, str]:
    """The fields of the JSON body as those of a form: what is no text becomes JSON."""
    return {
        name: value if isinstance(value, str) else dumps(value) for name, value in fields.items()
    }
