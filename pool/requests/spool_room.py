"""How much room there is in a spool: what its entries take, and what those that are being written
may take yet."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from pool.errors import SpoolFull, StoreError
from pool.logs import get_logger
from pool.requests.shared_spool import SharedSpool

log = get_logger(__name__)

#: Entries that are counted for a request that is to be kept, in half a millisecond.
COUNTED: Final = 10
#: Entries from which on a folder is not listed each time, and for how many times as long as that
#: took it is not.
MANY: Final = 1_000
LISTING_SHARE: Final = 200.0
#: Seconds between two listings of a shared spool at least.
LISTED_EVERY: Final = 10.0


class Room(ABC):
    """Room for ``limit`` bytes of entries at ``place``. Thread-safe."""

    def __init__(self, place: str, limit: int) -> None:
        self._place, self._limit = place, limit
        self._guard = threading.Lock()
        #: Bytes of entries that are complete, which do not change any more, and their sum.
        self._complete: dict[str, int] = {}
        self._completed = 0
        #: Bytes that entries under construction in this process have, or have room for.
        self._growing: dict[str, int] = {}
        #: From when on the entries are to be listed again.
        self._list_at = -math.inf

    @property
    def used(self) -> int:
        """Bytes of all entries, with the room that those under construction here were given."""
        self._look()
        with self._guard:
            return self._used()

    @property
    def growing(self) -> Collection[str]:
        """The entries under construction here."""
        return self._growing

    def begin(self, entry: str) -> None:
        """Count an entry as under construction from now on.

        :raises SpoolFull: there is no room at all.
        """
        self._look()
        with self._guard:
            self._check(1)
            self._growing[entry] = 0

    def grow(self, entry: str, size: int) -> None:
        """Reserve ``size`` bytes more for an entry under construction.

        :raises SpoolFull: there is not as much room.
        """
        with self._guard:
            self._check(size)
            self._growing[entry] += size

    def end(self, entry: str) -> None:
        """Count an entry, complete or given up, by what it has from now on."""
        with self._guard:
            self._growing.pop(entry, None)

    def note(self, entry: str, size: int) -> None:
        """Count a complete entry by its bytes."""
        with self._guard:
            self._note(entry, size)

    def forget(self, entries: Iterable[str]) -> None:
        """Count entries no more: they are gone."""
        with self._guard:
            for entry in entries:
                self._forget(entry)

    def _check(self, size: int) -> None:
        if not self._has(size):
            raise SpoolFull(
                f"{self._place} has the {self._limit} bytes that store.spool_limit allows"
            )

    def _has(self, size: int) -> bool:
        return self._used() + size <= self._limit

    def _used(self) -> int:
        return self._completed + sum(self._growing.values())

    def _note(self, entry: str, size: int) -> None:
        self._completed += size - self._complete.get(entry, 0)
        self._complete[entry] = size

    def _forget(self, entry: str) -> None:
        self._completed -= self._complete.pop(entry, 0)

    @abstractmethod
    def _look(self) -> None:
        """See what others have written, without the lock."""


class FolderRoom(Room):
    """Room in a folder whose entries ``entries`` lists; ``measure`` says whether one is complete,
    and its bytes on the disk."""

    def __init__(
        self,
        place: str,
        limit: int,
        *,
        entries: Callable[[], Sequence[str]],
        measure: Callable[[str], tuple[bool, int]],
    ) -> None:
        super().__init__(place, limit)
        self._entries, self._measure = entries, measure
        #: Bytes of entries that other processes were writing at the last look.
        self._partial: dict[str, int] = {}
        #: Entries whose bytes are to be counted, the latest last.
        self._uncounted: dict[str, None] = {}

    def end(self, entry: str) -> None:
        with self._guard:
            if self._growing.pop(entry, None) is not None:
                self._uncounted[entry] = None

    def _look(self) -> None:
        """A folder is listed when it is counted."""

    def _has(self, size: int) -> bool:
        # An estimate does while it leaves half of the room.
        if self._used(COUNTED) + size <= self._limit // 2:
            return True
        return self._used() + size <= self._limit

    def _used(self, most: int | None = None) -> int:
        """Return the bytes of all entries. With ``most``, no more entries than these are counted
        now, and those that are left as the mean of the others."""
        self._list()
        while self._uncounted and (most is None or most > 0):
            self._count(self._uncounted.popitem()[0])
            most = None if most is None else most - 1
        total = super()._used() + sum(self._partial.values())
        if self._uncounted:
            total += len(self._uncounted) * self._completed // max(1, len(self._complete))
        return total

    def _list(self) -> None:
        """See which entries there are. A folder of many is listed only so often that it takes a
        small share of the time: what other processes have done shows a little later there."""
        began = time.monotonic()
        if began < self._list_at and len(self._complete) + len(self._uncounted) >= MANY:
            return
        there = set(self._entries()) - self._growing.keys()
        for gone in [each for each in self._complete if each not in there]:
            self._forget(gone)
        self._partial.clear()
        self._uncounted = dict.fromkeys(there - self._complete.keys())
        self._list_at = time.monotonic() + LISTING_SHARE * (time.monotonic() - began)

    def _count(self, entry: str) -> None:
        complete, size = self._measure(entry)
        if complete:
            self._note(entry, size)
        else:
            self._partial[entry] = size

    def _forget(self, entry: str) -> None:
        super()._forget(entry)
        self._partial.pop(entry, None)
        self._uncounted.pop(entry, None)


class SharedRoom(Room):
    """Room in a spool that other machines use as well: what they write shows seconds later."""

    def __init__(self, shared: SharedSpool, limit: int) -> None:
        super().__init__(shared.address, limit)
        self._shared = shared

    def _look(self) -> None:
        """List the entries now and then, on one thread, without keeping the others."""
        began = time.monotonic()
        with self._guard:
            if began < self._list_at:
                return
            last, self._list_at = self._list_at, math.inf
            before = set(self._complete)
        found: dict[str, tuple[int, float]] | None = None
        try:
            found = self._shared.entries()
        except StoreError as error:
            # Whether data can be put there is seen when it is.
            log.warning("spool not listed", why=str(error))
        finally:
            now = time.monotonic()
            with self._guard:
                self._list_at = now + max(LISTED_EVERY, LISTING_SHARE * (now - began))
                if found is None:
                    self._list_at = now + LISTED_EVERY if last > -math.inf else last
                else:
                    # What came or went meanwhile may be in the listing or not.
                    for gone in before - found.keys():
                        self._forget(gone)
                    for name in found.keys() - self._growing.keys():
                        self._note(name, found[name][0])
