"""A daemon that is at work on a store, as its rows show it: it maintains the store, and does
nothing."""

from __future__ import annotations

from pool.model import TermRecord
from pool.store import Store

OWNER = "a daemon"


def maintains(store: Store, *, until: float, now: float, owner: str = OWNER) -> TermRecord:
    """Have a daemon be alive, and maintain the store."""
    store.renew_owner(owner, until=until, daemon=True, since=now)
    begun = store.begin_term(owner, seconds=until - now, clock=lambda: now)
    assert begun is not None
    return begun


def ends(store: Store, *, now: float) -> None:
    """Have the daemon that maintains the store end in order."""
    present = store.present_term(now=now)
    assert present is not None
    assert store.end_term(present.term, present.owner, now=now)
    store.forget_owner(present.owner)
