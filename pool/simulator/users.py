"""Users."""

from __future__ import annotations

from .call import Call
from .filters import Field, Listing
from .paging import page
from .records import Json, User
from .render import basic_user, full_user
from .replies import Reply, missing

LISTING: Listing[User] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "username": Field(lambda row: row.username),
        "first_name": Field(lambda _: ""),
        "last_name": Field(lambda _: ""),
        "is_active": Field(lambda _: True, "boolean"),
    },
    simple=("username", "first_name", "last_name", "is_active"),
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
