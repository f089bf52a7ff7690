"""Runs flows in turn, so that a drift of the machine meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from pool.bench.calls import CallCounter
from pool.bench.measure import FlowResult, Sample, interleave
from pool.bench.server_time import ServerTimes

#: Unmeasured requests of each flow ahead of the others: connections are opened, and the pool
#: learns how long imports take, which it keeps from one start to the next.
WARM_UP = 3
#: Seconds between two requests, in which the server ends what the one before has left to do: an
#: import says that it is finished some 40 ms after its jobs are there.
REST = 0.1


class Flow(Protocol):
    """One way to job ids."""

    #: Counts the calls that it makes.
    counter: CallCounter

    def prepare(self) -> None:
        """What is ready before the request comes; not measured."""

    def run(self, number: int) -> list[Sample]:
        """One request, or several at once."""

    def settle(self) -> None:
        """Wait for what follows after the job ids are out; not measured, but its calls count."""


class PlainFlow:
    """One of the plain ways, of which a call gives a task's id."""

    def __init__(self, ask: Callable[[int], int], counter: CallCounter) -> None:
        self._ask = ask
        self.counter = counter

    def prepare(self) -> None:
        """Nothing: everything is a part of the request."""

    def run(self, number: int) -> list[Sample]:
        began, started = time.time(), time.perf_counter()
        task_id = self._ask(number)
        ours_ms = (time.perf_counter() - started) * 1000
        post = self.counter.last_seconds("upload") or 0.0
        return [
            Sample(
                task_id=task_id,
                ours_ms=ours_ms,
                began=began,
                ended=began + ours_ms / 1000,
                post_ms=post * 1000,
            )
        ]

    def settle(self) -> None:
        """Nothing."""


def run_flows(
    flows: Mapping[str, Flow],
    counts: Mapping[str, int],
    times: ServerTimes,
    *,
    warm_ups: Mapping[str, int],
    advance: Callable[[str], None] = lambda _: None,
    rest: float = REST,
) -> dict[str, FlowResult]:
    """Each flow as often as ``counts`` says, one of each in turn; ``advance`` is called with the
    name of the flow after each, the unmeasured ``warm_ups`` included. ``rest`` is in seconds."""
    results = {name: FlowResult(name) for name in flows}

    def once(name: str, number: int, *, measured: bool) -> None:
        flow = flows[name]
        flow.prepare()
        time.sleep(rest)
        flow.counter.take()
        samples = flow.run(number)
        flow.settle()
        calls = flow.counter.take()
        if measured:
            for sample in samples:
                times.note(sample)
            results[name].add(samples, calls)
        advance(name)

    for number, names in interleave(warm_ups):
        for name in names:
            once(name, -1 - number, measured=False)
    for number, names in interleave(counts):
        for name in names:
            once(name, number, measured=True)
    return results
