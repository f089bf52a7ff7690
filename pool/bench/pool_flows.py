"""The pool's own way to job ids: alone, while it refills, and many at once.

The pool belongs to this bench alone; a daemon of its own fills it. Between requests it is paused,
so that a request finds the server quiet unless its flow is about refilling.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pool.bench.measure import Sample
from pool.bench.supply import Supply
from pool.handles import Request
from pool.model import Outcome

#: Names of the two templates, which make the same tasks: one is filled once and then rests, of
#: the other one there is always something to refill.
RESTING = "bench"
REFILLING = "bench-refill"

#: Requests in flight at once.
AT_ONCE = 20
#: Tasks that the refilling pool lacks when a request comes, and those that it has.
LACKING = 50
STOCK = 20
#: A request comes up to so many seconds after a create has begun.
MOMENT = 0.2
#: Seconds until a request has its jobs.
PATIENCE = 120.0


class Hits:
    """One request at a time, of a pool that rests."""

    def __init__(
        self,
        supply: Supply,
        pictures: Sequence[bytes],
        *,
        mark: str,
        template: str = RESTING,
    ) -> None:
        self.template = template
        self.counter = supply.counter
        self._supply = supply
        self._pictures = pictures
        self._mark = mark

    def prepare(self) -> None:
        """Have a warm task, and a server with nothing else to do."""
        self._supply.ensure_warm(self.template, 1)

    def run(self, number: int) -> list[Sample]:
        """One request, from its data to its job ids."""
        return [self._ask(number)]

    def settle(self) -> None:
        """Wait until what is done after the job ids are out is done, too."""
        self._supply.wait_for_names()

    def _ask(self, number: int) -> Sample:
        files = [
            (f"frame{number:03d}_{index:03d}.jpg", picture)
            for index, picture in enumerate(self._pictures)
        ]
        name = f"{self._mark} {self.template} {number}"
        began, started = time.time(), time.perf_counter()
        request = self._supply.pool.submit(self.template, files, name=name)
        request.jobs(timeout=PATIENCE)
        ours_ms = (time.perf_counter() - started) * 1000
        return self._sample(request, began, ours_ms)

    def _sample(self, request: Request, began: float, ours_ms: float) -> Sample:
        record = request.record
        claimed, uploaded = record.handed_out_at or began, record.uploaded_at or began
        finished, ended = record.finished_at or began, began + ours_ms / 1000
        return Sample(
            task_id=record.task_id or 0,
            ours_ms=ours_ms,
            began=began,
            ended=ended,
            post_ms=(uploaded - claimed) * 1000,
            hit=record.outcome is Outcome.HIT,
            steps_ms={
                "claim": (claimed - began) * 1000,
                "post": (uploaded - claimed) * 1000,
                "import_and_polls": (finished - uploaded) * 1000,
                "hand_over": (ended - finished) * 1000,
            },
        )


class RefillingHits(Hits):
    """One request at a time, each at some moment of a refill of :data:`LACKING` tasks."""

    def __init__(
        self,
        supply: Supply,
        pictures: Sequence[bytes],
        *,
        mark: str,
        rng: random.Random,
    ) -> None:
        super().__init__(supply, pictures, mark=mark, template=REFILLING)
        self._rng = rng
        self._before = 0
        #: Tasks that the daemon made while requests were being served, or just before.
        self.refilled = 0

    def prepare(self) -> None:
        """Take tasks out until the pool lacks enough, and have the daemon begin to refill."""
        supply, template = self._supply, self.template
        supply.ensure_warm(template, STOCK, up_to=STOCK)
        while supply.level(template).warm > STOCK:
            supply.pool.acquire(template)
        self._before = supply.made(template)
        supply.pool.resume(template)
        supply.wait_for(lambda: supply.level(template).creating > 0, "a refill to begin")
        time.sleep(self._rng.uniform(0.0, MOMENT))

    def settle(self) -> None:
        self._supply.rest(self.template)
        # The request took one.
        self.refilled += self._supply.made(self.template) - self._before + 1
        super().settle()


class ConcurrentHits(Hits):
    """:data:`AT_ONCE` requests in flight at once."""

    def prepare(self) -> None:
        self._supply.ensure_warm(self.template, AT_ONCE)

    def run(self, number: int) -> list[Sample]:
        together = threading.Barrier(AT_ONCE)

        def ask(one: int) -> Sample:
            together.wait(PATIENCE)
            return self._ask(number * AT_ONCE + one)

        with ThreadPoolExecutor(AT_ONCE) as callers:
            return list(callers.map(ask, range(AT_ONCE)))
