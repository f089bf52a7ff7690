"""Which of many waits are over."""

from __future__ import annotations

from conformance.store_scene import JOBS, NOW, Scene
from pool.store import Opened


def request_id(opened: Opened) -> str:
    assert opened.request is not None
    return opened.request.id


def test_requests_at_their_end(scene: Scene) -> None:
    store = scene.store
    importing, ready, failed = scene.importing(), scene.importing(), scene.importing()
    uploading, queued, cancelled = scene.uploading(), scene.queued(), scene.queued()
    everyone = [importing, ready, failed, uploading, queued, cancelled]
    assert store.complete_import(ready.lease.pooled_id or "", JOBS, now=NOW)
    assert store.fail_import(failed.lease.pooled_id or "", code="c", message="m", now=NOW)
    assert store.cancel_request(request_id(cancelled), now=NOW)

    ended = store.requests_at_end([*map(request_id, everyone), "unknown"])

    assert ended == {request_id(ready), request_id(failed), request_id(cancelled)}
    assert store.requests_at_end([request_id(importing)]) == frozenset()
    assert store.requests_at_end([]) == frozenset()


def test_leases_at_their_end(scene: Scene) -> None:
    store = scene.store
    active, released, ready, importing, failed = (scene.leased() for _ in range(5))
    gone, abandoned, waiting = scene.leased(), scene.waiting(), scene.waiting()
    everyone = [active, released, ready, importing, failed, gone, abandoned, waiting]
    assert store.give_back(released.lease.id, now=NOW)
    for opened in (ready, importing, failed):
        assert store.begin_foreign_import(opened.lease.id, now=NOW)
    assert store.complete_import(ready.lease.pooled_id or "", JOBS, now=NOW)
    assert store.fail_import(failed.lease.pooled_id or "", code="c", message="m", now=NOW)
    assert store.end_lease(gone.lease.id, reason="deleted", now=NOW)
    assert store.abandon_lease(abandoned.lease.id, now=NOW)

    ended = store.leases_at_end([*(each.lease.id for each in everyone), "unknown"])

    over = (released, ready, failed, gone, abandoned)
    assert ended == {each.lease.id for each in over}
    assert store.leases_at_end([]) == frozenset()


def test_many_at_once(scene: Scene) -> None:
    ready = [scene.importing() for _ in range(3)]
    for opened in ready:
        scene.store.complete_import(opened.lease.pooled_id or "", JOBS, now=NOW)
    ids = [f"r{number}" for number in range(2000)]
    ended = scene.store.requests_at_end([*ids, *map(request_id, ready)])
    assert ended == set(map(request_id, ready))
