"""The faults in force: which of them hit what comes by, and how often each has."""

from __future__ import annotations

import asyncio
import difflib
import random
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

from .faults import CallFault, Fault, ImportFault, InvalidFault
from .stats import Stats

F = TypeVar("F", bound=Fault, covariant=True)
Family = TypeVar("Family", bound=Fault)


class Active(Generic[F]):
    """A rule in force. What it holds up goes on when it is released: on its removal."""

    def __init__(self, number: int, fault: F, seed: int) -> None:
        self.id = number
        self.fault = fault
        self.fired = 0
        self.released = asyncio.Event()
        self._then: list[Callable[[], None]] = []
        # One sequence for each rule, so that no rule changes what another one hits.
        self._rng = random.Random(f"{seed} fault {number}")

    def fires(self, name: str) -> bool:
        """Whether it hits this one, which counts if so."""
        fault = self.fault
        if fault.times is not None and self.fired >= fault.times:
            return False
        # An event such as completed:request[create:task] is no pattern with a set in it.
        if name != fault.where and not fnmatchcase(name, fault.where):
            return False
        if fault.rate < 1.0 and self._rng.random() >= fault.rate:
            return False
        self.fired += 1
        return True

    def seconds(self, least: float, most: float | None) -> float:
        """A duration out of a range."""
        return least if most is None else self._rng.uniform(least, most)

    def when_released(self, function: Callable[[], None]) -> None:
        self._then.append(function)

    def release(self) -> None:
        self.released.set()
        for function in self._then:
            function()
        self._then.clear()

    def to_json(self) -> dict[str, Any]:
        return {"id": self.id, **self.fault.to_json(), "fired": self.fired}


class Faults:
    """All rules of a server. Belongs to its loop, as everything behind the socket."""

    def __init__(self, seed: int, stats: Stats, operations: Iterable[str]) -> None:
        self._seed = seed
        self._stats = stats
        self._operations = tuple(operations)
        self._active: dict[int, Active[Fault]] = {}
        self._last = 0
        #: Set when the server stops: what is held up then ends rather than goes on.
        self.closed = asyncio.Event()

    def __iter__(self) -> Iterator[Active[Fault]]:
        return iter(list(self._active.values()))

    def __bool__(self) -> bool:
        return bool(self._active)

    @property
    def name_tasks(self) -> bool:
        """Whether it depends on a task's name what is hit."""
        faults = (active.fault for active in self._active.values())
        return any(isinstance(fault, CallFault) and fault.task != "*" for fault in faults)

    def check(self, fault: Fault) -> None:
        """Raises :class:`InvalidFault` for a pattern that no operation fits."""
        if not isinstance(fault, CallFault):
            return
        if any(fnmatchcase(name, fault.where) for name in self._operations):
            return
        near = difflib.get_close_matches(fault.where, self._operations, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidFault(f"{fault.kind}: where: no operation fits {fault.where!r}{hint}")

    def add(self, fault: Fault) -> Active[Fault]:
        self.check(fault)
        self._last += 1
        active = self._active[self._last] = Active(self._last, fault, self._seed)
        return active

    def remove(self, number: int) -> bool:
        """End a rule and let go on what it holds up; False if it has ended already."""
        active = self._active.pop(number, None)
        if active is None:
            return False
        active.release()
        return True

    def clear(self) -> None:
        for number in list(self._active):
            self.remove(number)

    def close(self) -> None:
        """End all rules because the server stops."""
        self.closed.set()
        self.clear()

    def firing(
        self,
        family: type[Family],
        name: str,
        concerned: Callable[[Family], bool] = lambda _: True,
    ) -> list[Active[Family]]:
        """The rules of a family that hit this one, in their order; each is counted."""
        found: list[Active[Family]] = []
        if not self._active:
            return found
        for active in self._active.values():
            if not isinstance(active.fault, family) or not concerned(active.fault):
                continue
            if active.fires(name):
                self._stats.faults[_label(active.fault, name)] += 1
                found.append(active)  # type: ignore[arg-type]
        return found

    async def pause(self, seconds: float) -> None:
        """Let time pass, but not beyond the end of the server."""
        try:
            await asyncio.wait_for(self.closed.wait(), seconds)
        except TimeoutError:
            return


def _label(fault: Fault, name: str) -> str:
    # Names of tasks are all different, so they would only fill the counters.
    return fault.kind if isinstance(fault, ImportFault) else f"{fault.kind} {name}"
