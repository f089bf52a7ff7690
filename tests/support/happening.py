"""Has things happen in a store, for tests of those who are told of them."""

from __future__ import annotations

from pool.model import Job, new_id
from pool.store import CreateLimit, NewLease, NewRequest, Store

TEMPLATE = "scenes"
_LIMIT = CreateLimit(capacity=10_000, concurrency=10_000)


def make_warm(store: Store, *task_ids: int, template: str = TEMPLATE, now: float = 1.0) -> None:
    """Tasks become warm, each with an event."""
    for task_id in task_ids:
        pooled_id = new_id()
        store.begin_create(pooled_id, template, "f", limit=_LIMIT, owner="o", now=now)
        store.record_created(pooled_id, task_id=task_id, now=now)
        store.finish_create(pooled_id, prepared=True, now=now)


def serve(
    store: Store,
    request_id: str,
    *,
    template: str = TEMPLATE,
    task_id: int = 42,
    job_id: int | None = None,
    assignee: int | None = None,
    failed: str = "",
    now: float = 1.0,
    took: float = 0.0,
    server: float = 0.0,
) -> None:
    """A request is served, or has ``failed`` with a code: it took so many seconds up to ``now``,
    ``server`` of them after its data was accepted."""
    make_warm(store, task_id, template=template, now=now - took)
    lease = NewLease(id=new_id(), template=template, fingerprint="f", owner="o", ttl=60.0)
    request = NewRequest(id=request_id, assignee=assignee, files=("a.jpg",), size=10)
    opened = store.open_lease(lease, request=request, now=now - took)
    assert opened.task is not None and opened.request is not None
    store.begin_import(opened.request.import_id or "", deadline=now + 60, now=now - server)
    if failed:
        store.fail_import(opened.task.id, code=failed, message="why", now=now)
    else:
        job = Job(id=job_id or task_id * 10, url="u", start_frame=0, stop_frame=0)
        store.complete_import(opened.task.id, [job], now=now)
