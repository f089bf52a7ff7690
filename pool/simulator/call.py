"""One request on its way through the server."""

from __future__ import annotations

import json
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request

from .backend import Backend
from .fields import not_an_object
from .records import Json, Organization, User
from .replies import Refusal, detail
from .settings import SimulatorSettings
from .state import Caller, State
from .timing import Timings


class Actor(Caller, Protocol):
    """A caller with the server that it does something on."""

    @property
    def simulator(self) -> Backend: ...

    @property
    def state(self) -> State: ...


class Call:
    """What a handler needs: who asks, in which organization, for what, and of which server."""

    def __init__(self, simulator: Backend, request: Request, operation: str) -> None:
        self.simulator = simulator
        self.request = request
        self.operation = operation
        self.received_at = simulator.clock()
        self.organization: Organization | None = None
        self.organization_given = False
        #: True when a cookie could have changed the answer: Django then says so in ``Vary``.
        self.cookie_mattered = False
        self._user: User | None = None

    @property
    def state(self) -> State:
        return self.simulator.state

    @property
    def timings(self) -> Timings:
        return self.simulator.settings.timings

    @property
    def settings(self) -> SimulatorSettings:
        return self.simulator.settings

    @property
    def user(self) -> User:
        if self._user is None:
            raise detail(401, "Authentication credentials were not provided.")
        return self._user

    @property
    def is_anonymous(self) -> bool:
        return self._user is None

    def authenticated_as(self, user: User) -> None:
        self._user = user

    @property
    def query(self) -> dict[str, str]:
        return dict(self.request.query_params)

    @property
    def base_url(self) -> str:
        """Scheme and host as the caller wrote them, for the URLs in the answer."""
        url = self.request.url
        return f"{url.scheme}://{url.netloc}"

    def number(self, name: str = "id") -> int:
        """A number out of the path."""
        return int(self.request.path_params[name])

    def text(self, name: str) -> str:
        """A string out of the path."""
        return str(self.request.path_params[name])

    def header(self, name: str) -> str | None:
        return self.request.headers.get(name)

    async def spend(self, milliseconds: float) -> None:
        """Use the server's processor for this request."""
        await self.simulator.processor.use(milliseconds)

    async def drain(self) -> None:
        """Read what is left of the body: the web server in front of CVAT takes all of it first."""
        try:
            async for _ in self.request.stream():
                pass
        except (ClientDisconnect, RuntimeError):
            # The caller has gone, or the body was read already.
            return

    async def json(self) -> Any:
        """The body as JSON; an empty body is an empty object, as for CVAT."""
        body = await self.request.body()
        if not body:
            return {}
        try:
            return json.loads(body)
        except ValueError as error:
            raise detail(400, f"JSON parse error - {error}") from None

    async def json_object(self) -> Json:
        body = await self.json()
        if not isinstance(body, dict):
            raise Refusal(400, not_an_object(body))
        return body
