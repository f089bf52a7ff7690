"""The end of a watched import: written down once, whoever finds it, and told to who listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pool.clock import Clock
from pool.errors import ImportLost, PoolError, StoreError
from pool.logs import get_logger
from pool.model import Job, new_id
from pool.store import Store
from pool.tracking.watched import Finished, Watched

log = get_logger(__name__)


class Endings:
    """Ends imports in the store. A poll, a webhook and another process may find the same end at
    the same time: the first does what there is to do, and the others get None."""

    def __init__(self, store: Store, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._listeners: list[Callable[[Finished], None]] = []

    def listen(self, listener: Callable[[Finished], None]) -> Callable[[], None]:
        """Have ``listener`` called by :meth:`tell`, until what is returned is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def ready(self, watched: Watched, jobs: Sequence[Job], seen_at: float) -> Finished | None:
        """The jobs exist, and were seen at ``seen_at`` by the monotonic clock."""
        if not self._store.complete_import(watched.pooled_id, jobs, now=self._clock.now()):
            return None
        log.info(
            "jobs are ready",
            template=watched.template,
            task_id=watched.task_id,
            request_id=watched.request_id,
            jobs=len(jobs),
            seconds=round(seen_at - watched.since, 3),
            polls=watched.polls,
        )
        return self._finished(watched, jobs=jobs)

    def failed(self, watched: Watched, error: PoolError) -> Finished | None:
        """The import came to nothing. That is no end for a request whose data CVAT has lost and
        is in the spool: it gets another task."""
        if isinstance(error, ImportLost) and self._send_again(watched, error):
            return None
        if not self._store.fail_import(
            watched.pooled_id, code=error.code, message=error.detail, now=self._clock.now()
        ):
            return None
        log.warning(
            "import failed",
            template=watched.template,
            task_id=watched.task_id,
            request_id=watched.request_id,
            why=str(error),
        )
        return self._finished(watched, code=error.code)

    def _send_again(self, watched: Watched, error: PoolError) -> bool:
        if not watched.repeatable or watched.request_id is None:
            return False
        now = self._clock.now()
        log.warning("import lost", request_id=watched.request_id, task_id=watched.task_id)
        return self._store.requeue_request(
            watched.request_id, lease_id=new_id(now), reason=str(error), now=now
        )

    def tell(self, finished: Finished) -> None:
        """Tell all who listen, on this thread."""
        for listener in tuple(self._listeners):
            try:
                listener(finished)
            except StoreError:
                log.exception("listener failed", task_id=finished.task_id)

    def _finished(self, watched: Watched, *, jobs: Sequence[Job] = (), code: str = "") -> Finished:
        return Finished(
            pooled_id=watched.pooled_id,
            task_id=watched.task_id,
            request_id=watched.request_id,
            jobs=tuple(jobs),
            code=code,
            polls=watched.polls,
        )
