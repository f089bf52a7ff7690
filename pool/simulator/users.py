"""Users."""

from __future__ import annotations

from typing import Any

from .call import Call
from .filters import Field, Listing
from .paging import page
from .records import Job, Json, Project, Task, User
from .render import basic_user, full_user
from .replies import Reply, crash, forbidden, missing

LISTING: Listing[User] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "username": Field(lambda row: row.username),
        "first_name": Field(lambda row: row.first_name),
        "last_name": Field(lambda row: row.last_name),
        "is_active": Field(lambda _: True, "boolean"),
    },
    search=("username", "first_name", "last_name"),
)


async def get_self(call: Call) -> Reply:
    return Reply(full_user(call.user, call.base_url))


async def list_users(call: Call) -> Reply:
    rows = [row for row in call.state.users.values() if _may_see(call, row)]
    body, _ = page(call, LISTING.apply(rows, call.query), lambda row: _render(call, row))
    return Reply(body)


async def get_user(call: Call) -> Reply:
    user = call.state.users.get(call.number())
    if user is None or not _may_see(call, user):
        raise missing("User")
    return Reply(_render(call, user))


def assignee_of(call: Call, given: Any) -> User | None:
    """The user of an ``assignee`` or ``assignee_id`` in a body; ``None`` for ``null``.

    Raises 403 for another user than the caller, unless that is an administrator. An id that is
    no number crashes CVAT's permission check, one of no user is found by the database only.
    """
    if given is None:
        return None
    try:
        number = int(given)
    except (TypeError, ValueError):
        raise crash() from None
    if number not in (0, call.user.id) and not call.user.is_superuser:
        raise forbidden()
    user = call.state.users.get(number)
    if user is None:
        raise crash()
    return user


def assign(call: Call, row: Task | Job | Project, given: Any) -> None:
    assignee = assignee_of(call, given)
    if assignee is not row.assignee:
        row.assignee, row.assignee_updated = assignee, call.state.now()


def _render(call: Call, user: User) -> Json:
    if call.user.is_superuser:
        return full_user(user, call.base_url)
    return basic_user(user, call.base_url) or {}


def _may_see(call: Call, user: User) -> bool:
    if call.organization is not None:
        return user.id in call.organization.members
    if call.user.is_superuser or user is call.user:
        return True
    return any(
        {user.id, call.user.id} <= organization.members
        for organization in call.state.organizations.values()
    )
