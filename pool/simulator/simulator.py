"""The simulated server: its backend and its HTTP, put together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from starlette.applications import Starlette
from starlette.responses import Response

from .app import Passage, create_app
from .backend import Backend
from .call import Call
from .passage import FaultyPassage
from .routes import OPERATIONS
from .settings import SimulatorSettings


class Simulator(Backend):
    """A CVAT server without a socket: everything behind its HTTP.

    Make it, :meth:`start` it on a running loop, serve :attr:`app`, :meth:`stop` it. All of it
    belongs to that one loop. ``utc`` is its machine's clock, by default this one's.
    """

    def __init__(
        self,
        settings: SimulatorSettings | None = None,
        *,
        utc: Callable[[], datetime] | None = None,
    ) -> None:
        super().__init__(settings, utc, {operation.name for operation in OPERATIONS})
        #: Wraps every request. This one makes the faults of calls.
        self.passage: Passage = FaultyPassage(self.faults)
        self.app: Starlette = create_app(self, self._pass)

    async def _pass(self, call: Call, answer: Callable[[], Awaitable[Response]]) -> Response:
        return await self.passage(call, answer)
