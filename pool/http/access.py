"""Who may call what: one table for all routes; and the rows that a caller does not see.

A route below is a :class:`GuardedRoute`, which refuses before anything of the call is read. So what
is in a path is checked here alone; what is in a query or a body is checked where it is read, by the
:attr:`~pool.config.tokens.Caller.scope` of :func:`caller_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol, get_args

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from pool.config.tokens import OPERATOR, Caller
from pool.errors import NotAllowed, UnknownLease, UnknownRequest
from pool.http.workers import Workers
from pool.model import EVERYTHING, Role
from pool.taskpool import TaskPool

#: Where a call's scope has its caller.
CALLER: Final = "pool.caller"
#: Where it has a function that tells whether its token is still good for the same.
ALLOWED: Final = "pool.allowed"

ALL: Final[frozenset[Role]] = frozenset(get_args(Role))
SUBMITS: Final[frozenset[Role]] = frozenset({"submit", "operate"})
READS: Final[frozenset[Role]] = frozenset({"read", "operate"})
OPERATES: Final[frozenset[Role]] = frozenset({"operate"})

#: The roles that may call each route that needs a token. With ``ALL``, a caller is answered of what
#: it sees.
ROLES: Final[Mapping[tuple[str, str], frozenset[Role]]] = {
    ("POST", "/v1/leases"): SUBMITS,
    ("GET", "/v1/leases"): ALL,
    ("GET", "/v1/leases/{lease_id}"): ALL,
    ("DELETE", "/v1/leases/{lease_id}"): SUBMITS,
    ("POST", "/v1/requests"): SUBMITS,
    ("GET", "/v1/requests"): ALL,
    ("GET", "/v1/requests/{request_id}"): ALL,
    ("GET", "/v1/requests/{request_id}/events"): ALL,
    ("DELETE", "/v1/requests/{request_id}"): SUBMITS,
    ("GET", "/v1/streams"): ALL,
    ("DELETE", "/v1/streams"): SUBMITS,
    ("GET", "/v1/events"): ALL,
    ("GET", "/v1/templates"): ALL,
    ("POST", "/v1/templates/resume"): OPERATES,
    ("POST", "/v1/templates/{name}/pause"): OPERATES,
    ("POST", "/v1/templates/{name}/resume"): OPERATES,
    ("POST", "/v1/templates/{name}/drain"): OPERATES,
    ("POST", "/v1/templates/{name}/prewarm"): OPERATES,
    ("GET", "/v1/history"): ALL,
    ("GET", "/v1/token"): ALL,
    ("GET", "/metrics"): READS,
}


def caller_of(request: Request) -> Caller:
    """Return who calls."""
    return caller_in(request.scope)


def caller_in(scope: Scope) -> Caller:
    """Return whose call this is; the operator's where none is known."""
    caller: Caller = scope.get(CALLER, OPERATOR)
    return caller


class _State(Protocol):
    """What is needed of :class:`pool.http.context.AppState`."""

    @property
    def pool(self) -> TaskPool: ...

    @property
    def workers(self) -> Workers: ...


class GuardedRoute(APIRoute):
    """A route of the table above: the ``route_class`` of its router."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A method that the route does not have is answered by it.
        if scope["method"] in (self.methods or ()):
            caller = caller_in(scope)
            _check_role(caller, ROLES.get((scope["method"], self.path), OPERATES))
            if caller.scope != EVERYTHING:
                await _check_path(caller, scope)
        await super().handle(scope, receive, send)


def _check_role(caller: Caller, roles: frozenset[Role]) -> None:
    if caller.role not in roles:
        others = " or ".join(role for role in get_args(Role) if role in roles)
        raise NotAllowed(
            f"the role of the token {caller.tenant!r} is {caller.role!r}, and this needs {others}"
        )


def check_sees_all(caller: Caller) -> None:
    """
    :raises NotAllowed: the caller does not see all templates.
    """
    if caller.scope != EVERYTHING:
        raise NotAllowed(f"the token {caller.tenant!r} is not for all templates, as this is")


async def _check_path(caller: Caller, scope: Scope) -> None:
    """Answer for what a caller does not see as for what there is not.

    :raises UnknownLease: it sees no such lease.
    :raises UnknownRequest: it sees no such request.
    :raises UnknownTemplate: it sees no such template.
    """
    state: _State = scope["app"].state.parts
    parameters, seen = scope["path_params"], caller.scope
    store, threads = state.pool.store, state.workers.store
    if (lease_id := parameters.get("lease_id")) is not None:
        lease = await threads(store.lease, lease_id)
        if lease is None or not seen.covers(lease):
            raise UnknownLease(lease_id[:100])
    if (request_id := parameters.get("request_id")) is not None:
        request = await threads(store.request, request_id)
        if request is None or not seen.covers(request):
            raise UnknownRequest(request_id[:100])
    if (name := parameters.get("name")) is not None:
        state.pool.process.templates.within(seen).named(name)
