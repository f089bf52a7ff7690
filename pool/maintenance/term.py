"""A term in which this process maintains the store, and no other process does.

It ends when it has not been renewed for :data:`TERM` seconds, so that another daemon takes over
within ten seconds when this one is killed, stopped, or cut off from the store. This one knows by
the monotonic clock, without the store: it ends its services before, and asks the store once more
before each deletion on the server, since nothing takes that back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pool.clock import Clock, StoreClock
from pool.errors import StoreError, TermLost
from pool.logs import get_logger
from pool.model import TermRecord
from pool.store import Store

log = get_logger(__name__)

#: Seconds of a term, and between two renewals.
TERM = 6.0
RENEWAL = 2.0


def margin() -> float:
    """Return the seconds before its end from which on a term is no longer counted on."""
    return TERM / 12


class Term:
    """A term of maintenance. Thread-safe."""

    def __init__(self, store: Store, record: TermRecord, *, ends: float, clock: Clock) -> None:
        """``ends`` is by the monotonic clock."""
        self._store = store
        self._record = record
        self._ends = ends
        self._clock = clock
        self._guard = threading.Lock()

    @classmethod
    def begin(cls, store: Store, owner: str, *, clock: Clock) -> Term | None:
        """Begin a term, unless another one lasts.

        :raises StoreError: the store cannot be used.
        """
        if isinstance(clock, StoreClock):
            # This machine may have slept, in which its monotonic clock stands still.
            clock.compare()
        # Not when it is done: the store may have kept this waiting.
        ends = clock.monotonic() + TERM
        record = store.begin_term(owner, seconds=TERM, clock=clock.now)
        return cls(store, record, ends=ends, clock=clock) if record else None

    @property
    def number(self) -> int:
        """The number of the term in the store."""
        return self._record.term

    @property
    def broken_off(self) -> str | None:
        """The process whose term before this one has not ended in order, if it has not."""
        return self._record.broken_off

    @property
    def broken_off_at(self) -> float | None:
        """When that term ended, in seconds since the epoch."""
        return self._record.broken_off_at

    @property
    def lasts(self) -> bool:
        """Whether it can be counted on for a moment, as far as is known here."""
        return self._clock.monotonic() < self._ends - margin()

    def renew(self, *, deleting: str | None = None) -> bool:
        """Have it last for another :data:`TERM` seconds; False when it is over. The row of the task
        ``deleting`` says that it is deleted in this term.

        :raises StoreError: the store cannot be used.
        """
        record = self._record
        ends = self._clock.monotonic() + TERM
        renewed = self._store.renew_term(
            record.term, record.owner, seconds=TERM, clock=self._clock.now, deleting=deleting
        )
        with self._guard:
            if renewed and record is self._record:
                self._ends = max(self._ends, ends)
        return renewed

    def check(self, *, deleting: str | None = None) -> None:
        """Make sure, by the store, that it lasts: before each deletion on the server. The row of
        the task ``deleting`` has the term then.

        :raises TermLost: it is over.
        :raises StoreError: the store cannot be used.
        """
        # Once more afterwards: the answer of the store may have taken longer than the term.
        if not (self.lasts and self.renew(deleting=deleting) and self.lasts):
            raise TermLost(f"term {self.number}")

    def continues_as(self, later: Term) -> bool:
        """Go on as the ``later`` term of the same process, if no other process has maintained the
        store in between; return whether that is so."""
        if later.broken_off != self._record.owner:
            return False
        with self._guard:
            self._record, self._ends = later._record, later._ends
        return True

    def end(self) -> None:
        """End it in order, so that another daemon can begin one at once.

        :raises StoreError: the store cannot be used.
        """
        with self._guard:
            self._ends = self._clock.monotonic()
        record = self._record
        self._store.end_term(record.term, record.owner, now=self._clock.now())


@contextmanager
def maintaining(store: Store, owner: str, *, clock: Clock) -> Iterator[Term | None]:
    """Maintain the store for the time of the block; None where another process does.

    :raises StoreError: the store cannot be used.
    """
    term = Term.begin(store, owner, clock=clock)
    if term is None:
        yield None
        return
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEWAL):
            with suppress(StoreError):
                term.renew()

    thread = threading.Thread(target=renew, name="term", daemon=True)
    thread.start()
    try:
        yield term
    finally:
        over.set()
        thread.join(RENEWAL)
        try:
            term.end()
        except StoreError as error:
            log.warning("maintenance not given up", why=str(error))
