"""The organization that a call is made in, and who may see what of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from .call import Call
from .records import Organization, User
from .replies import detail, forbidden, invalid, missing


class Owned(Protocol):
    """A row that belongs to a user and perhaps to an organization."""

    @property
    def organization(self) -> Organization | None: ...

    @property
    def owner(self) -> User: ...


R = TypeVar("R", bound=Owned)


def resolve_organization(call: Call) -> None:
    """Read the context from ``X-Organization`` or ``org``.

    An empty slug is the personal workspace; neither of the two is "no context": everything.
    Raises 404 for an organization that does not exist and 400 for contradictions.
    """
    slug, header = call.query.get("org"), call.header("x-organization")
    if slug is not None and header is not None and slug != header:
        raise invalid(
            'You cannot specify "org" query parameter and '
            '"X-Organization" HTTP header with different values.'
        )
    slug = slug if slug is not None else header
    call.organization_given = slug is not None
    if not slug:
        return
    call.organization = call.state.organization_named(slug)
    if call.organization is None:
        raise detail(404, f"{slug} organization does not exist.")
    if not is_member(call.user, call.organization):
        raise forbidden()


def is_member(user: User, organization: Organization) -> bool:
    return user.is_superuser or user.id in organization.members


def may_list(call: Call, row: Owned) -> bool:
    """In an organization its rows; in the workspace the personal ones; else all one may see."""
    if call.organization_given and row.organization is not call.organization:
        return False
    return may_see(call, row)


def may_see(call: Call, row: Owned) -> bool:
    user = call.user
    if user.is_superuser or row.owner is user:
        return True
    return row.organization is not None and user.id in row.organization.members


def visible(call: Call, rows: Mapping[int, R], model: str) -> R:
    """The row that the path names. Raises 404 for none, 403 for one the caller may not see."""
    row = rows.get(call.number())
    if row is None:
        raise missing(model)
    if not may_see(call, row):
        raise forbidden()
    return row
