"""When to ask CVAT whether an import is done: late enough to find jobs, early enough not to wait.

The first poll goes out so that it is answered near a low quantile of the times that were seen,
for each template and size class; what follows is spaced by a share of the time already waited.
So the wait that polling adds is a bounded share of the server's own time, at any scale. While
webhooks are alive, polling is their safety net and begins later.
"""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pool.clock import Clock
from pool.errors import PoolError
from pool.logs import get_logger
from pool.model import ImportRecord, LearnedPace
from pool.store import Store

log = get_logger(__name__)

#: This share of the imports of a class is to be done when the first poll looks.
FIRST_POLL_SHARE = 0.25
#: Without any history, the first poll looks after this many seconds.
FIRST_POLL_UNSEEN = 0.12
#: How far one import moves the first poll, as a share of its time: large at first, then small,
#: so that it settles within a few imports and still follows a server that changes.
FIRST_STEP = 0.5
LAST_STEP = 0.06
#: First polls in a row that find the jobs, after which the step doubles with each further one. A
#: moment that is right finds them so often in one of sixty cases; one that was learned of an import
#: that hung would else be far too late for some sixty imports.
USUALLY_IN_A_ROW = 3
#: The next poll comes after this share of the time waited so far, within the two bounds.
GROWTH = 0.05
SHORTEST_PAUSE = 0.01
LONGEST_PAUSE = 1.0
#: While webhooks are alive, the first poll comes after this multiple of the moment at which it
#: would have been due: a lost delivery costs that at most. Not of the slowest imports seen, since
#: one burst of requests would spoil that for long.
SAFETY_FACTOR = 2.5
SAFETY_FLOOR = 0.3
#: Then the next after this share of the time waited so far, in seconds at most.
SAFETY_GROWTH = 0.1
SAFETY_PAUSE = 10.0
#: Seconds between two polls of a task into which its caller uploads, and while webhooks are alive.
LEASE_PAUSE = 1.0
LEASE_PAUSE_RELAXED = 5.0
#: Imports that are due within this many seconds go into the same poll; and leases, so that however
#: many there are, CVAT is asked ten times a second for them at the most.
TOGETHER = 0.01
LEASES_TOGETHER = 0.1
#: An import is late after this multiple of the time within which nearly all are done.
LATE_FACTOR = 1.5
LATE_FLOOR = 0.3
#: How many times of a class are remembered.
MEMORY = 50
#: How far one upload moves what uploads of its class are expected to take.
UPLOAD_STEP = 0.3
#: Seconds between two writes of what was learned.
KEEP_EVERY = 10.0


@dataclass(slots=True)
class Tracked:
    """One task that is tracked. Times are of the monotonic clock."""

    pooled_id: str
    task_id: int
    template: str
    since: float
    due: float
    deadline: float = math.inf
    size_class: str = ""
    pace_class: str = ""
    lease_id: str | None = None
    #: As its row was when tracking began; None while its caller uploads by itself.
    importing: ImportRecord | None = None
    empty_at: float = 0.0
    polls: int = 0
    errors: int = 0
    state_due: float = 0.0
    #: Answers in a row that knew nothing of the import.
    unknown: int = 0
    #: A webhook is expected to announce its end, so that polling waits; and it has.
    relaxed: bool = False
    announced: bool = False
    #: Announced after the poll that is under way was sent, so that another one is due.
    hurry: bool = False
    #: Another process tracks it; this one has a webhook delivery about it.
    borrowed: bool = False

    @property
    def foreign(self) -> bool:
        """Whether the caller uploads by itself, so that the time of the upload is unknown."""
        return self.importing is None

    @property
    def grouped(self) -> bool:
        """Whether requests may share the import."""
        return self.importing is not None and self.importing.grouped

    @property
    def repeatable(self) -> bool:
        """Whether its data can be sent again, should CVAT lose the import."""
        return self.importing is not None and self.importing.repeatable

    @property
    def request_ids(self) -> tuple[str, ...]:
        """The members of the import; none of a caller's own upload."""
        return self.importing.request_ids if self.importing is not None else ()


# --- Which imports to ask for, and when ------------------------------------------------------


def due_together(tracked: Iterable[Tracked], now: float) -> list[Tracked]:
    """Return what one poll asks for: the imports that are due, and with them all that were asked
    for before, since one more id costs the server a hundredth of a millisecond and a poll of its
    own twenty. So imports that wait together are polled together, however they began."""
    tracked = list(tracked)
    if not any(each.due <= now + TOGETHER for each in tracked):
        return []
    return [
        each
        for each in tracked
        if each.due <= now + (LEASES_TOGETHER if each.foreign else TOGETHER)
        or (each.polls and not (each.errors or each.foreign or each.relaxed))
    ]


def pause_after(waited: float, rng: random.Random) -> float:
    """Return the seconds until the next poll of an import that was not done ``waited`` seconds
    after its POST; jittered by a tenth, so that pollers that began together drift apart."""
    pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, GROWTH * waited))
    return pause * rng.uniform(0.9, 1.1)


def safety_net_pause(waited: float) -> float:
    """Return the seconds until the next poll while webhooks are alive."""
    return min(SAFETY_PAUSE, SAFETY_GROWTH * waited)


def lease_pause(rng: random.Random, *, webhooks_alive: bool) -> float:
    """Return the seconds until the next poll of a task into which its caller uploads."""
    return (LEASE_PAUSE_RELAXED if webhooks_alive else LEASE_PAUSE) * rng.uniform(0.9, 1.1)


# --- How long imports take --------------------------------------------------------------------


def size_class(template: str, *, files: int, size: int, kind: str) -> str:
    """Return the class of an import. Imports of one class take about as long: same template,
    kind, and powers of two of the number of files and of four of the bytes."""
    return f"{template}/{kind}/{int(math.log2(max(files, 1)))}/{int(math.log2(max(size, 1)) / 2)}"


def pace_class(name: str, *, ahead: int) -> str:
    """Return the class by which an import of a size class is asked for: how long it takes is also
    a matter of how many are under way before it, in powers of two. So what a burst took does not
    count for the one that comes alone after it."""
    return f"{name}/{ahead.bit_length()}"


@dataclass(slots=True)
class Pace:
    """What was learned of one class of imports: seconds from the accepted POST to visible jobs.

    The moment of the first poll follows a quantile by stochastic approximation (Robbins and
    Monro, 1951), in logarithms: a poll that finds the jobs moves it down, one that does not moves
    it up, in the ratio of the quantile. This needs only what a poll shows, before or after, and
    not the import's exact time, which cannot be seen.
    """

    first: float = FIRST_POLL_UNSEEN
    imports: int = 0
    seen: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))
    #: First polls in a row, up to now, that found the jobs.
    in_a_row: int = 0

    def learn(self, *, not_before: float, done_by: float) -> None:
        """Remember one import: it was not done at ``not_before``, which is 0 when the first
        poll found its jobs, and done at ``done_by``."""
        self.imports += 1
        self.in_a_row = self.in_a_row + 1 if not_before <= 0.0 else 0
        faster = 2 ** min(8, max(0, self.in_a_row - USUALLY_IN_A_ROW))
        step = max(min(FIRST_STEP, LAST_STEP * faster), FIRST_STEP / self.imports)
        if not_before <= 0.0:
            # A first poll that went out late, because the poller was busy or had just taken the
            # import over, says nothing of the moment that was meant for it.
            if done_by <= LATE_FACTOR * self.first:
                self.first *= math.exp(-step * (1 - FIRST_POLL_SHARE))
        else:
            self.first *= math.exp(step * FIRST_POLL_SHARE)
            if self.imports == 1:
                self.first = (not_before + done_by) / 2
        self.seen.append(done_by)

    @property
    def safety_net(self) -> float:
        """Seconds after the POST at which polling begins while webhooks are alive."""
        return max(SAFETY_FLOOR, SAFETY_FACTOR * self.first)

    @property
    def usual(self) -> float | None:
        """Seconds from the POST to visible jobs, the median; None where none was seen."""
        return sorted(self.seen)[len(self.seen) // 2] if self.seen else None

    def late_after(self) -> float:
        """Return the seconds after which an import is late, so that its state is worth a call."""
        if not self.seen:
            return LATE_FLOOR
        ordered = sorted(self.seen)
        usual = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
        return max(LATE_FLOOR, LATE_FACTOR * usual)


class Paces:
    """The paces of all size classes, kept in the store. Thread-safe."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._guard = threading.Lock()
        #: By pace class.
        self._paces: dict[str, Pace] = {}
        #: Seconds from a hand-out to the accepted POST: by size class, and of the last of any.
        self._uploads: dict[str, float] = {}
        self._last_upload = 0.0
        self._learned: set[str] = set()
        self._keep_at = 0.0

    def load(self) -> None:
        """Begin with what was kept before."""
        kept = self._store.learned_paces()
        with self._guard:
            for name, pace in kept.items():
                self._paces.setdefault(
                    name, Pace(pace.first, pace.imports, deque(pace.seen, maxlen=MEMORY))
                )

    def _pace(self, name: str) -> Pace:
        """Return the pace of a class. One that was not seen begins as that with fewer ahead does:
        it takes no less."""
        if name not in self._paces:
            like = self._seen(name)
            self._paces[name] = Pace() if like is None else Pace(first=like.first)
        return self._paces[name]

    def _seen(self, name: str) -> Pace | None:
        """Return the pace of a class that was seen, of the same size and with as many ahead, or the
        next fewer."""
        size, _, ahead = name.rpartition("/")
        found = (self._paces.get(f"{size}/{number}") for number in reversed(range(int(ahead) + 1)))
        return next((pace for pace in found if pace is not None and pace.seen), None)

    def first_poll(self, name: str, *, relaxed: bool) -> float:
        """Return the seconds after the POST at which an import is first asked for; ``relaxed``
        when a webhook is expected to announce its end."""
        with self._guard:
            pace = self._pace(name)
            return pace.safety_net if relaxed else pace.first

    def late_after(self, name: str) -> float:
        """Return the seconds after which an import is late."""
        with self._guard:
            return self._pace(name).late_after()

    def usual(self, name: str) -> float | None:
        """Return the seconds from the POST to visible jobs; None where no import was seen."""
        with self._guard:
            pace = self._seen(name)
            return None if pace is None else pace.usual

    def usual_of(self, template: str, *, kind: str) -> list[tuple[int, float]]:
        """Return the sizes of imports that were seen, in files, and the seconds from the POST to
        visible jobs of each."""
        found: list[tuple[int, float]] = []
        with self._guard:
            for name, pace in self._paces.items():
                of, sort, files, _, ahead = name.rsplit("/", 4)
                # Of one that waited for others the time says little of its size.
                if (of, sort) == (template, kind) and int(ahead) < 2 and pace.usual is not None:
                    # The middle of the class.
                    found.append((3 * 2 ** int(files) // 2, pace.usual))
        return found

    def learn_upload(self, name: str, seconds: float) -> None:
        """Remember how long an upload took, from the hand-out of its task on."""
        with self._guard:
            before = self._uploads.get(name, seconds)
            self._uploads[name] = before + UPLOAD_STEP * (seconds - before)
            self._last_upload = seconds

    def upload(self, name: str) -> float:
        """Return the seconds that an upload takes, from the hand-out of its task on: as the last
        one did where none of its class was seen, and 0 where none was."""
        with self._guard:
            return self._uploads.get(name, self._last_upload)

    def learn(self, tracked: Tracked, seen_at: float) -> None:
        """Remember that an import was seen to be done at ``seen_at``, by the monotonic clock."""
        if tracked.foreign or tracked.borrowed or (tracked.relaxed and not tracked.announced):
            return  # when it was done is not known well enough
        done_by = seen_at - tracked.since
        with self._guard:
            pace = self._pace(tracked.pace_class)
            not_before = tracked.empty_at
            if tracked.announced and not_before <= 0.0 and done_by > pace.first:
                not_before = pace.first  # a poll at that moment would have been in vain
            pace.learn(not_before=not_before, done_by=done_by)
            self._learned.add(tracked.pace_class)

    def keep(self, *, at_once: bool = False) -> None:
        """Write down what was learned, every :data:`KEEP_EVERY` seconds: a write costs more than
        most of it is worth."""
        now = self._clock.monotonic()
        if not self._learned or (now < self._keep_at and not at_once):
            return
        self._keep_at = now + KEEP_EVERY
        with self._guard:
            learned = {
                name: LearnedPace(first=pace.first, imports=pace.imports, seen=tuple(pace.seen))
                for name in self._learned
                for pace in [self._paces[name]]
            }
            self._learned.clear()
        try:
            self._store.learn_paces(learned)
        except PoolError as error:
            log.info("import times not kept", why=str(error))
