"""When to ask CVAT whether an import is done: late enough to find jobs, early enough not to wait.

The first poll goes out so that it is answered near a low quantile of the times that were seen,
for each template and size class; what follows is spaced by a share of the time already waited.
So the wait that polling adds is a bounded share of the server's own time, at any scale.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field

from pool.model import LearnedPace

#: This share of the imports of a class is to be done when the first poll looks.
FIRST_POLL_SHARE = 0.25
#: Without any history, the first poll looks after this many seconds.
FIRST_POLL_UNSEEN = 0.12
#: How far one import moves the first poll, as a share of its time: large at first, then small,
#: so that it settles within a few imports and still follows a server that changes.
FIRST_STEP = 0.5
LAST_STEP = 0.06
#: The next poll comes after this share of the time waited so far, within the two bounds.
GROWTH = 0.05
SHORTEST_PAUSE = 0.01
LONGEST_PAUSE = 1.0
#: An import is late after this multiple of the time within which nearly all are done.
LATE_FACTOR = 1.5
LATE_FLOOR = 0.3
#: How many times of a class are remembered.
MEMORY = 50


def size_class(template: str, *, files: int, size: int, kind: str) -> str:
    """Imports of one class take about as long: same template, kind, and powers of two of
    the number of files and of four of the bytes."""
    return f"{template}/{kind}/{int(math.log2(max(files, 1)))}/{int(math.log2(max(size, 1)) / 2)}"


@dataclass(slots=True)
class Pace:
    """What was learned of one class: seconds from the accepted POST to visible jobs.

    The moment of the first poll follows a quantile by stochastic approximation (Robbins and
    Monro, 1951), in logarithms: a poll that finds the jobs moves it down, one that does not moves
    it up, in the ratio of the quantile. This needs only what a poll tells, before or after, and
    not the import's exact time, which nobody sees.
    """

    first: float = FIRST_POLL_UNSEEN
    imports: int = 0
    seen: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))

    def learn(self, *, not_before: float, done_by: float) -> None:
        """Remember one import: it was not done at ``not_before``, which is 0 when the first
        poll found its jobs, and done at ``done_by``."""
        self.imports += 1
        step = max(LAST_STEP, FIRST_STEP / self.imports)
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

    @classmethod
    def from_learned(cls, learned: LearnedPace) -> Pace:
        """A pace as it was kept in the store."""
        return cls(learned.first, learned.imports, deque(learned.seen, maxlen=MEMORY))

    def learned(self) -> LearnedPace:
        """What is worth keeping in the store."""
        return LearnedPace(first=self.first, imports=self.imports, seen=tuple(self.seen))

    def late_after(self) -> float:
        """Seconds after which an import is late, so that its own state is worth a call."""
        if not self.seen:
            return LATE_FLOOR
        ordered = sorted(self.seen)
        usual = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
        return max(LATE_FLOOR, LATE_FACTOR * usual)


def pause_after(waited: float, rng: random.Random) -> float:
    """Seconds until the next poll of an import that was not done ``waited`` seconds after its
    POST; jittered by a tenth, so that pollers that began together drift apart."""
    pause = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, GROWTH * waited))
    return pause * rng.uniform(0.9, 1.1)
