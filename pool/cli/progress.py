"""Progress of an upload and its import, shown on standard error if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pool.errors import WaitTimeout
from pool.model import Job

if TYPE_CHECKING:
    from pool.config.source import Progress
    from pool.handles import Request

#: Bytes from which an upload gets a progress bar.
BAR_FROM = 2**20
#: Seconds after which a wait for jobs gets a spinner.
SPINNER_AFTER = 0.5


@contextmanager
def upload_progress() -> Iterator[Progress | None]:
    """Show a progress bar for a large upload. It stays on the screen, with the time taken."""
    if not sys.stderr.isatty():
        yield None
        return
    bar = _UploadBar()
    try:
        yield bar.show
    finally:
        bar.stop()


class _UploadBar:
    """A progress bar that appears with the first call for a large upload."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._row: Any = None
        self._shown = 0

    def show(self, sent: int, total: int) -> None:
        if total < BAR_FROM:
            return
        if self._bar is None:
            self._bar = self._begin()
            self._row = self._bar.add_task("uploading", total=total)
        if sent < self._shown:
            # The connection was lost: all data is sent again, to another task.
            self._bar.reset(self._row, total=total, description="uploading again")
        self._shown = sent
        self._bar.update(self._row, completed=sent)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _begin(self) -> Any:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        bar.start()
        return bar


def wait_for_jobs(request: Request, timeout: float | None) -> Sequence[Job]:
    """Return the jobs of a request; show a spinner when that takes long.

    :raises WaitTimeout: as :meth:`pool.Request.jobs`, after ``timeout`` seconds.
    """
    if not sys.stderr.isatty() or (timeout is not None and timeout <= SPINNER_AFTER):
        return request.jobs(timeout=timeout)
    try:
        return request.jobs(timeout=SPINNER_AFTER)
    except WaitTimeout:
        pass
    from rich.console import Console

    with Console(stderr=True).status("importing…"):
        return request.jobs(timeout=None if timeout is None else timeout - SPINNER_AFTER)
