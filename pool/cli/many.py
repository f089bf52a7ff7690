"""Many requests of one command: some are under way at a time, and each is printed when it is ready.
One that fails does not stop the others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from pool.cli.output import Served, error_document, hint, json_line
from pool.cli.progress import RequestsBar, requests_bar
from pool.cli.table import printable
from pool.errors import (
    EXIT_FAILED,
    DataGone,
    ImportFailed,
    ImportTimedOut,
    OwnerGone,
    PoolError,
    RequestCancelled,
    TaskGone,
    TooLarge,
    WaitTimeout,
)

if TYPE_CHECKING:
    from pool.config.source import Progress
    from pool.handles import Lease, Request
    from pool.model import RequestRecord

#: Failures of one request. Any other would meet the next ones, too: no more are begun.
OWN_FAILURES: Final = (
    ImportFailed,
    ImportTimedOut,
    TaskGone,
    DataGone,
    OwnerGone,
    RequestCancelled,
    TooLarge,
)
#: Seconds for which an interrupted command lets requests be sent to the end.
GRACE: Final = 2.0
#: Seconds between two looks at what the requests wait for, while none is ready.
LOOK: Final = 1.0


class Many:
    """Requests that threads begin and wait for; the thread that calls prints them.

    The threads do not keep the process: an interrupted command ends, whatever is being sent.
    """

    def __init__(
        self,
        labels: Sequence[str],
        begin: Callable[[int, Progress | None], Request | Lease],
        finish: Callable[[Request | Lease], Served],
        *,
        in_flight: int,
        at_once: int,
        stage: Callable[[Request | Lease], str],
        being_sent: Callable[[], Sequence[RequestRecord]] = tuple,
        sizes: Sequence[int] = (),
        resumable: bool = False,
    ) -> None:
        """``labels`` are what the requests are called, and ``sizes`` their bytes, where any are
        sent. ``begin`` gets the number of a request, from 0, and returns it once it has its data;
        ``finish`` waits for its jobs. Of ``in_flight`` requests at a time ``at_once`` are begun, in
        their order. ``stage`` says what a request waits for, ``being_sent`` which requests this
        process has not sent to the end. Of ``resumable`` ones the same command begins only those
        that are not ready yet."""
        self._labels = labels
        #: For people: a terminal would follow what the name of a file holds of controls.
        self._names = [printable(label) for label in labels]
        self._begin = begin
        self._finish = finish
        self._threads = min(in_flight, len(labels))
        self._most_at_once = at_once
        self._at_once = threading.Semaphore(at_once)
        self._stage = stage
        self._being_sent = being_sent
        self._sizes = sizes
        self._resumable = resumable
        self._guard = threading.Lock()
        self._numbers = iter(range(len(labels)))
        self._stopped = False
        #: None: a thread has ended.
        self._results = queue.SimpleQueue[tuple[int, Served | Exception] | None]()
        #: The requests under way by their numbers; None while one is being sent.
        self._under_way: dict[int, Request | Lease | None] = {}
        self._ready = 0
        self._failed: list[tuple[str, PoolError]] = []

    def run(self, text: Callable[[int, Served], Sequence[str]], *, as_json: bool) -> None:
        """Begin all, and wait for all; print the lines of ``text`` for each that is ready, or with
        ``as_json`` the line of JSON, which a failed one has, too. ``text`` may return none.

        :raises PoolError: some have failed, or no more could be begun.
        """
        lasting: Exception | None = None
        with requests_bar(len(self._labels), self._sizes) as bar:
            for _ in range(self._threads):
                threading.Thread(target=self._work, args=(bar,), daemon=True).start()
            try:
                for number, result in self._results_of(bar):
                    if not isinstance(result, Exception):
                        self._ready += 1
                        bar.ended(number, self._ready, len(self._failed))
                        for line in text(number, result):
                            bar.print(line)
                        for note in result.notes:
                            bar.print(f"{self._names[number]}: {note}", hint=True)
                    elif isinstance(result, OWN_FAILURES):
                        self._failed.append((self._names[number], result))
                        bar.ended(number, self._ready, len(self._failed))
                        self._print_failure(bar, number, result, as_json=as_json)
                    else:
                        self._stopped = True
                        lasting = lasting or result
            except KeyboardInterrupt:
                self._stopped = True
                bar.stop()
                self._await_sent(GRACE)
                hint(f"cvat-pool: interrupted: {self._left()}")
                raise
        if lasting is not None:
            raise self._with_left(lasting)
        if self._failed:
            first, error = self._failed[0]
            kind = type(error) if error.exit_code == EXIT_FAILED else PoolError
            raise kind(
                f"{len(self._failed)} of {len(self._labels)} failed, the first with {first}: "
                f"{error.detail or error.title}"
                + ("; the same command tries these again, and no others" if self._resumable else "")
            )

    def _results_of(self, bar: RequestsBar) -> Iterator[tuple[int, Served | Exception]]:
        """Yield what the threads bring until all have ended; let the bar say meanwhile what is
        waited for."""
        running = self._threads
        while running:
            try:
                result = self._results.get(timeout=LOOK if bar.shown else None)
            except queue.Empty:
                oldest = next((each for each in list(self._under_way.values()) if each), None)
                bar.say(self._stage(oldest) if oldest is not None else "")
                continue
            if result is None:
                running -= 1
            else:
                bar.say("")
                yield result

    def _print_failure(
        self, bar: RequestsBar, number: int, error: PoolError, *, as_json: bool
    ) -> None:
        if as_json:
            bar.print(json_line({"file": self._labels[number], "error": error_document(error)}))
        else:
            bar.print(f"{self._names[number]}: {error}", hint=True)

    def _with_left(self, error: Exception) -> Exception:
        """Return an error that has ended all, with what is left."""
        begun = self._ready or self._failed or self._under_way
        if not isinstance(error, PoolError) or len(self._labels) == 1 or not begun:
            return error
        left = self._left()
        return type(error)(left if isinstance(error, WaitTimeout) else f"{error.detail}; {left}")

    def _left(self) -> str:
        """Print the requests that are under way, and return what became of all."""
        under_way = dict(self._under_way)
        known = {each.id: self._names[number] for number, each in under_way.items() if each}
        cut = [each for each in self._being_sent() if each.id not in known]
        for request_id, name in known.items():
            hint(f"{request_id}  {name}")
        for record in cut:
            hint(f"{record.id}  {printable(record.given[0])}, which may not have been sent whole")
        words = f"{self._ready} of {len(self._labels)} ready"
        if self._failed:
            words += f", {len(self._failed)} failed"
        if known or cut:
            words += f", {len(known) + len(cut)} on their way: 'cvat-pool wait ID' waits for one"
        return words + ("; the same command goes on where it was" if self._resumable else "")

    def _await_sent(self, timeout: float) -> None:
        """Wait for the requests that are being sent, ``timeout`` seconds at most: where that is cut
        off, how much of the data has arrived is unknown."""
        end = time.monotonic() + timeout
        for _ in range(self._most_at_once):
            if not self._at_once.acquire(timeout=max(0.0, end - time.monotonic())):
                return

    # --- The threads ------------------------------------------------------------------------------

    def _work(self, bar: RequestsBar) -> None:
        while self._one(bar):
            pass
        self._results.put(None)

    def _one(self, bar: RequestsBar) -> bool:
        """Begin the next request, and wait for it; False where there is none."""
        result: Served | Exception
        with self._at_once:
            # Only here: of two threads the one that begins first has the lower number.
            with self._guard:
                number = None if self._stopped else next(self._numbers, None)
            if number is None:
                return False
            self._under_way[number] = None
            try:
                request = self._begin(number, bar.sending(number))
            except Exception as error:
                del self._under_way[number]
                self._results.put((number, error))
                return True
            self._under_way[number] = request
        try:
            result = self._finish(request)
        except Exception as error:
            result = error
        if not isinstance(result, Exception) or isinstance(result, OWN_FAILURES):
            del self._under_way[number]
        self._results.put((number, result))
        return True
