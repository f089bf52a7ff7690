"""The faults of a running server, from the threads of those who test against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from .fault_table import Active, Faults
from .faults import Fault
from .state import State

T = TypeVar("T")


class Loop(Protocol):
    """The way to a server's own thread, whose the faults are."""

    def call(self, function: Callable[[], T], timeout: float = 10.0) -> T:
        """Run something there and return its result."""

    def wait_for(self, condition: Callable[[State], bool], timeout: float = 10.0) -> None:
        """Wait until something is true of the state. Raises ``TimeoutError``."""


class Handle:
    """A rule that was added."""

    def __init__(self, control: FaultControl, loop: Loop, active: Active[Fault]) -> None:
        self._control = control
        self._loop = loop
        self._active = active

    def __repr__(self) -> str:
        return f"<{self.fault!r}, fired {self.fired} times>"

    @property
    def id(self) -> int:
        return self._active.id

    @property
    def fault(self) -> Fault:
        return self._active.fault

    @property
    def fired(self) -> int:
        """How often it has hit something so far."""
        return self._active.fired

    def wait(self, times: int = 1, timeout: float = 10.0) -> None:
        """Wait until it has hit so often. Raises ``TimeoutError``."""
        self._loop.wait_for(lambda _: self._active.fired >= times, timeout)

    def remove(self) -> bool:
        """End it, and let go on what it holds up; False if it has ended already."""
        return self._control.remove(self)


class FaultControl:
    """Adds and removes rules. Thread-safe; when a method returns, it is done."""

    def __init__(self, faults: Faults, loop: Loop) -> None:
        self._faults = faults
        self._loop = loop

    def add(self, fault: Fault) -> Handle:
        """Put a rule in force. Raises ``InvalidFault`` if no operation fits its pattern."""
        return Handle(self, self._loop, self._loop.call(lambda: self._faults.add(fault)))

    def remove(self, handle: Handle) -> bool:
        """As :meth:`Handle.remove`."""
        return self._loop.call(lambda: self._faults.remove(handle.id))

    def clear(self) -> None:
        """End all rules."""
        self._loop.call(self._faults.clear)

    def __iter__(self) -> Iterator[Handle]:
        found = self._loop.call(lambda: [*self._faults])
        return iter([Handle(self, self._loop, each) for each in found])
