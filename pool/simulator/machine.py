"""What all parts of a simulated server share: its settings, state, clock, processor and files."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from .settings import SimulatorSettings
from .state import State
from .stats import Clock, Stats
from .timing import Processor


class Machine:
    """The machine that a server runs on. ``utc`` is its clock, by default this one's."""

    def __init__(
        self, settings: SimulatorSettings | None, utc: Callable[[], datetime] | None
    ) -> None:
        self.settings = settings or SimulatorSettings()
        self.state = State() if utc is None else State(utc)
        self.stats = Stats()
        self.clock = Clock()
        self.processor = Processor(self.settings.cores)
        self.folder = Path(tempfile.mkdtemp(prefix="cvat-simulator-", dir=self.settings.folder))
        self.share = self.settings.share or self.folder / "share"
        self._busy = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def busy(self, change: int) -> None:
        """Count work that goes on in the background: imports and deliveries."""
        self._busy += change
        if self._busy:
            self._idle.clear()
        else:
            self._idle.set()

    async def idle(self) -> None:
        """Return once no import and no delivery is waiting or under way."""
        await self._idle.wait()
