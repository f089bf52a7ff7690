"""The faults of a running server, from the threads of those who test against it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .fault_table import Active
from .faults import Fault

if TYPE_CHECKING:
    from .server import SimulatorServer


class Handle:
    """A rule that was added."""

    def __init__(self, server: SimulatorServer, active: Active[Fault]) -> None:
        self._server = server
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
        self._server.wait_for(lambda _: self._active.fired >= times, timeout)

    def remove(self) -> bool:
        """End it, and let go on what it holds up; False if it has ended already."""
        return self._server.faults.remove(self)


class FaultControl:
    """Adds and removes rules. Thread-safe; when a method returns, it is done."""

    def __init__(self, server: SimulatorServer) -> None:
        self._server = server

    def add(self, fault: Fault) -> Handle:
        """Put a rule in force. Raises ``InvalidFault`` if no operation fits its pattern."""
        faults = self._server.simulator.faults
        return Handle(self._server, self._server.call(lambda: faults.add(fault)))

    def remove(self, handle: Handle) -> bool:
        """As :meth:`Handle.remove`."""
        faults = self._server.simulator.faults
        return self._server.call(lambda: faults.remove(handle.id))

    def clear(self) -> None:
        """End all rules."""
        self._server.call(self._server.simulator.faults.clear)

    def __iter__(self) -> Iterator[Handle]:
        faults = self._server.simulator.faults
        return iter([Handle(self._server, each) for each in self._server.call(lambda: [*faults])])
