"""Progress of an upload and its import, shown on standard error if that is a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pool.clock import SystemClock
from pool.errors import WaitTimeout
from pool.model import Job

if TYPE_CHECKING:
    from pool.config.source import Progress
    from pool.handles import Lease, Request

#: Bytes from which an upload gets a progress bar.
BAR_FROM = 2**20
#: Columns from which there is room for the speed.
WIDE = 76
#: Seconds after which a wait for jobs gets a spinner.
SPINNER_AFTER = 0.5
#: Seconds between two looks at what is waited for.
LOOK = 1.0


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
    """A progress bar that appears with the first call for a large upload. Until then a spinner says
    after a while that there is no task yet, and of a small upload that it is on its way."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._row: Any = None
        self._shown = 0
        self._guard = threading.Lock()
        self._stopped = False
        self._says = "waiting for a task…"
        self._spinner: Any = None
        self._timer = threading.Timer(SPINNER_AFTER, self._spin)
        self._timer.daemon = True
        self._timer.start()

    def _spin(self) -> None:
        from rich.console import Console

        with self._guard:
            if not self._stopped and self._bar is None:
                self._spinner = Console(stderr=True).status(self._says)
                self._spinner.start()

    def _end_spinner(self) -> None:
        self._timer.cancel()
        with self._guard:
            self._stopped = True
            if self._spinner is not None:
                self._spinner.stop()

    def show(self, sent: int, total: int) -> None:
        if total < BAR_FROM:
            with self._guard:
                self._says = "uploading…"
                if self._spinner is not None:
                    self._spinner.update(self._says)
            return
        self._end_spinner()
        if self._bar is None:
            self._bar = self._begin()
            self._row = self._bar.add_task("uploading", total=total)
        if sent < self._shown:
            # The connection was lost: all data is sent again, to another task.
            self._bar.reset(self._row, total=total, description="uploading again")
        self._shown = sent
        self._bar.update(self._row, completed=sent)

    def stop(self) -> None:
        self._end_spinner()
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

        console = Console(stderr=True)
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            DownloadColumn(),
            *([TransferSpeedColumn()] if console.width >= WIDE else []),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
        )
        bar.start()
        return bar


def wait_for_jobs(
    handle: Request | Lease, timeout: float | None, stage: Callable[[], str], *, shown: bool
) -> Sequence[Job]:
    """Return the jobs of a request or a lease. Where they may be ``shown``, and that takes long, a
    spinner says what is waited for, which is ``stage`` by then.

    :raises WaitTimeout: as :meth:`pool.Request.jobs`, after ``timeout`` seconds.
    """
    if not (shown and sys.stderr.isatty()) or (timeout is not None and timeout <= SPINNER_AFTER):
        return handle.jobs(timeout=timeout)
    clock = SystemClock()
    end = None if timeout is None else clock.monotonic() + timeout
    try:
        return handle.jobs(timeout=SPINNER_AFTER)
    except WaitTimeout:
        pass
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(f"{escape(stage())}…") as spinner:
        while True:
            left = LOOK if end is None else min(LOOK, end - clock.monotonic())
            try:
                return handle.jobs(timeout=max(0.0, left))
            except WaitTimeout:
                if end is not None and clock.monotonic() >= end:
                    raise
            spinner.update(f"{escape(stage())}…")


# --- Many requests --------------------------------------------------------------------------------


class RequestsBar:
    """Shows nothing, and prints: there is no terminal."""

    #: Whether a person sees what it says.
    shown = False

    def sending(self, _number: int, /) -> Progress | None:
        """Return what the upload of a request reports its progress to."""
        return None

    def ended(self, number: int, ready: int, failed: int) -> None:
        """Show that a request has ended, and how many are ready and have failed by now."""

    def say(self, words: str) -> None:
        """Say what is waited for."""

    def print(self, text: str, *, hint: bool = False) -> None:
        """Print a line on standard output, or as a hint on standard error."""
        print(text, file=sys.stderr if hint else sys.stdout, flush=True)

    def stop(self) -> None:
        """Leave the bar as it is."""


@contextmanager
def requests_bar(count: int, sizes: Sequence[int]) -> Iterator[RequestsBar]:
    """Show one bar for so many requests, whose data has these ``sizes``, if any is sent. It stays
    on the screen, with the time taken."""
    bar = _RequestsBar(count, sizes) if sys.stderr.isatty() else RequestsBar()
    try:
        yield bar
    finally:
        bar.stop()


class _RequestsBar(RequestsBar):
    """One line for all, and below it what is waited for."""

    shown = True

    def __init__(self, count: int, sizes: Sequence[int]) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.text import Text

        says = self._says = Text(style="dim")

        class Bar(Progress):
            def get_renderables(self) -> Iterator[Any]:
                yield from super().get_renderables()
                if says.plain:
                    yield says

        self._count = count
        self._sizes = sizes
        self._sent = [0] * len(sizes)
        self._guard = threading.Lock()
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=None)]
        # Fewer are sent before anything is shown.
        self._in_bytes = sum(sizes) >= BAR_FROM
        self._bar = Bar(
            *columns,
            *([DownloadColumn()] if self._in_bytes else []),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._row = self._bar.add_task("", total=sum(sizes) if self._in_bytes else count)
        self.ended(-1, 0, 0)
        self._bar.start()

    def sending(self, number: int, /) -> Progress | None:
        if not self._in_bytes:
            return None

        def show(sent: int, _: int) -> None:
            self._show_sent(number, sent)

        return show

    def ended(self, number: int, ready: int, failed: int) -> None:
        words = f"{ready} of {self._count} ready"
        self._bar.update(self._row, description=f"{words}, {failed} failed" if failed else words)
        if not self._in_bytes:
            self._bar.update(self._row, completed=ready + failed)
        elif number >= 0:
            # Also what an earlier run has sent.
            self._show_sent(number, self._sizes[number])

    def say(self, words: str) -> None:
        self._says.plain = words

    def print(self, text: str, *, hint: bool = False) -> None:
        if hint or sys.stdout.isatty():
            # Above the bar, and not broken: the terminal does that.
            self._bar.console.print(text, soft_wrap=True, markup=False, highlight=False)
        else:
            super().print(text)

    def stop(self) -> None:
        self._says.plain = ""
        self._bar.stop()

    def _show_sent(self, number: int, sent: int) -> None:
        with self._guard:
            more, self._sent[number] = sent - self._sent[number], sent
            self._bar.advance(self._row, more)
