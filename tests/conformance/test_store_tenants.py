"""Rows of tenants: keys and streams of their own, and what a scope leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conformance.store_scene import (
    FINGERPRINT,
    JOBS,
    NOW,
    TEMPLATE,
    Scene,
    data,
    make_carrier,
    wish,
)
from pool.errors import IdempotencyConflict
from pool.model import RequestState, Scope, new_id
from pool.store import NewMember, NewRequest, Opened, Store

TENANTS = ("", "alice", "bob")


def request_of(tenant: str, *, template: str = TEMPLATE) -> NewRequest:
    return replace(data(f"{tenant or 'ours'}.jpg"), tenant=tenant)


def opened_by(store: Store, tenant: str, *, key: str | None = None, alone: bool = False) -> Opened:
    return store.open_lease(
        replace(wish(key=key), tenant=tenant),
        request=None if alone else request_of(tenant),
        now=NOW,
    )


@pytest.mark.parametrize("alone", [True, False])
def test_each_tenant_has_its_own_keys(store: Store, alone: bool) -> None:
    first = {tenant: opened_by(store, tenant, key="k", alone=alone) for tenant in TENANTS}
    assert len({each.lease.id for each in first.values()}) == 3
    for tenant, opened in first.items():
        assert opened.lease.tenant == tenant
        again = opened_by(store, tenant, key="k", alone=alone)
        assert again.replayed and again.lease.id == opened.lease.id
        if not alone:
            assert opened.request and opened.request.tenant == tenant
            assert store.request_by_key("k", tenant=tenant) == opened.request
    assert store.request_by_key("k", tenant="nobody") is None
    with pytest.raises(IdempotencyConflict):
        store.open_lease(
            replace(wish(key="k", payload="other"), tenant="bob"),
            request=None if alone else request_of("bob"),
            now=NOW,
        )


def test_events_have_the_tenant_of_their_request_or_lease(scene: Scene) -> None:
    store = scene.store
    for tenant in TENANTS:
        scene.warm()
        before = store.last_event_id()
        opened = opened_by(store, tenant)
        assert opened.request is not None
        assert scene.begin_import(opened, now=NOW)
        store.complete_import(opened.lease.pooled_id or "", JOBS, now=NOW)
        events = store.events_after(before, limit=99)
        assert {"request.uploading", "request.ready", "lease.handed_out"} <= {
            each.kind for each in events
        }
        assert {each.tenant for each in events} == {tenant}
    scene.warm()
    before = store.last_event_id()
    lease = opened_by(store, "alice", alone=True).lease
    store.end_lease(lease.id, reason="gone", now=NOW)
    found = {each.kind: each.tenant for each in store.events_after(before, limit=99)}
    assert found == {
        "lease.handed_out": "alice",
        "lease.expired": "alice",
        "task.retired": "alice",
    }
    assert store.events_after(0, limit=1)[0].tenant == ""


def test_a_request_that_is_queued_again_keeps_its_tenant(scene: Scene) -> None:
    scene.store.renew_owner("here", until=NOW + 9)
    scene.warm()
    request = replace(request_of("alice"), spooled=True)
    opened = scene.store.open_lease(
        replace(wish(), tenant="alice"), request=request, most_queued=9, now=NOW
    )
    queued = scene.store.queue_request(
        request.id, expected_lease_id=opened.lease.id, most=None, now=NOW
    )
    assert queued is not None and queued.state is RequestState.QUEUED
    fresh = scene.store.lease(queued.lease_id)
    assert fresh is not None and (fresh.id, fresh.tenant) != (opened.lease.id, "")
    assert (queued.tenant, fresh.tenant) == ("alice", "alice")
    handout = scene.store.claim_queued(
        [NewMember(request_id=request.id)], FINGERPRINT, owner="here", now=NOW
    )
    assert handout is not None and handout.lease.tenant == "alice"


def test_lists_of_what_a_scope_covers(scene: Scene) -> None:
    store = scene.store
    made: dict[tuple[str, str], str] = {}
    leases: dict[tuple[str, str], str] = {}
    for tenant in TENANTS:
        for template in (TEMPLATE, "other"):
            opened = store.open_lease(
                replace(wish(template=template), tenant=tenant),
                request=request_of(tenant),
                now=NOW,
            )
            assert opened.request is not None
            made[tenant, template] = opened.request.id
            alone = replace(wish(template=template), tenant=tenant)
            leases[tenant, template] = store.open_lease(alone, now=NOW).lease.id
    for scope in (
        Scope(),
        Scope(tenant=""),
        Scope(tenant="alice"),
        Scope(tenant="nobody"),
        Scope(templates=frozenset({"other"})),
        Scope(templates=frozenset({"other", TEMPLATE, "third"})),
        Scope(tenant="bob", templates=frozenset({"other"})),
    ):

        def seen(rows: dict[tuple[str, str], str], scope: Scope = scope) -> list[str]:
            covered = [
                name
                for (tenant, template), name in rows.items()
                if scope.tenant in (None, tenant) and scope.covers_template(template)
            ]
            return covered[::-1]

        pages, cursor = [], None
        while True:
            page = store.requests(scope=scope, limit=1, cursor=cursor)
            pages += [each.id for each in page.requests]
            assert all(map(scope.covers, page.requests))
            if (cursor := page.next_cursor) is None:
                break
        assert pages == seen(made)
        for which in ({"text": ".JPG"}, {"since": NOW - 1}, {"states": [RequestState.QUEUED]}):
            found = store.requests(scope=scope, limit=99, **which)
            assert [each.id for each in found.requests] == seen(made), which
        assert not store.requests([RequestState.READY], scope=scope).requests
        both = store.requests(template="other", scope=scope).requests
        assert [each.id for each in both] == [each for each in seen(made) if each in _of(made)]
        found_leases = store.open_leases(scope=scope, limit=99).leases
        assert [each.id for each in found_leases] == seen(leases)
        for request_id in made.values():
            assert store.request(request_id)


def _of(made: dict[tuple[str, str], str]) -> list[str]:
    return [name for (_, template), name in made.items() if template == "other"]


def test_figures_of_what_a_scope_covers(scene: Scene) -> None:
    store = scene.store
    for tenant in ("alice", "alice", "bob"):
        scene.warm()
        opened_by(store, tenant)
    assert store.in_flight() == 3
    assert store.in_flight(scope=Scope(tenant="alice")) == 2
    assert store.in_flight(scope=Scope(templates=frozenset({"other"}))) == 0
    for request in store.requests(limit=9).requests:
        store.fail_request(request.id, code="cvat", message="no", now=NOW)
    ended = store.ended_requests(since=NOW - 9, limit=9, scope=Scope(tenant="bob"))
    assert [each.tenant for each in ended] == ["bob"]
    assert len(store.ended_requests(since=NOW - 9, limit=9)) == 3


def test_each_tenant_has_streams_of_its_own(store: Store) -> None:
    for number in range(2):
        make_carrier(store, 2, task_id=70 + number, first_job=500 + 100 * number)
    mine = store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, tenant="alice", now=NOW)
    theirs = store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, tenant="bob", now=NOW)
    assert mine and theirs and mine.id != theirs.id
    assert (mine.tenant, theirs.tenant) == ("alice", "bob")
    assert store.use_stream(TEMPLATE, "camera 7", FINGERPRINT, now=NOW) is None
    assert [each.stream.tenant for each in store.streams()] == ["alice", "bob"]
    assert store.stream(TEMPLATE, "camera 7") is None
    assert store.stream(TEMPLATE, "camera 7", tenant="bob") == theirs
    assert store.close_stream(theirs.id, reason="closed", now=NOW)
    assert store.stream(TEMPLATE, "camera 7", tenant="alice") == mine


def test_a_request_of_another_tenant_is_not_before_one_in_a_stream(store: Store) -> None:
    make_carrier(store, 2)
    for tenant in ("alice", "bob"):
        request = replace(data(), id=new_id(NOW), tenant=tenant, stream="camera 7", spooled=True)
        store.open_lease(
            replace(wish(fingerprint="none"), tenant=tenant),
            request=request,
            claim=False,
            most_queued=9,
            now=NOW,
        )
    # Both wait, and each is the first of its own stream.
    assert store.carriers_missing(TEMPLATE, FINGERPRINT, now=NOW) == 1
    last = store.requests(limit=1).requests[0]
    assert last.tenant == "bob"
    assert store.use_stream(
        TEMPLATE, "camera 7", FINGERPRINT, tenant="bob", request_id=last.id, now=NOW
    )
