"""Delete what a bench has made on a server: also after a failure, and after Ctrl-C."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from pool.bench.plain import plain_client
from pool.config.settings import CvatSettings
from pool.cvat import connect, find_credentials
from pool.errors import CvatError, PoolError
from pool.model import TaskState, pool_mark
from pool.store import open_store

#: Deletions at once.
AT_ONCE = 4


def delete_all(
    server: CvatSettings, environment: Mapping[str, str], stores: Sequence[Path], mark: str
) -> int:
    """Delete the tasks and projects that bear ``mark`` or belong to a pool of one of the
    ``stores``. Return how many tasks.

    :raises PoolError: some are left, and which.
    """
    with connect(server, environment) as cvat:
        found = {task.id for task in cvat.marked_tasks(mark)}
        for store in stores:
            pool_id, task_ids = _pooled(store)
            found |= task_ids | {task.id for task in cvat.marked_tasks(pool_mark(pool_id))}
        left = []

        def delete(task_id: int) -> None:
            try:
                cvat.delete_task(task_id)
            except CvatError:
                left.append(task_id)

        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(delete, sorted(found)))
    _delete_projects(server, environment, mark)
    if left:
        raise PoolError(f"these tasks of the bench could not be deleted: {sorted(left)}")
    return len(found)


def _delete_projects(server: CvatSettings, environment: Mapping[str, str], name: str) -> None:
    with plain_client(server, find_credentials(server, environment)) as client:
        projects = client.api_client.projects_api
        _, answer = projects.list(name=name, _parse_response=False)
        for project in json.loads(answer.data)["results"]:
            projects.destroy(project["id"])


def _pooled(path: Path) -> tuple[str, set[int]]:
    """Return a pool's id, and the ids of all tasks that are not deleted yet."""
    store = open_store(f"sqlite:///{path}")
    try:
        states: Sequence[TaskState] = [state for state in TaskState if state != TaskState.DELETED]
        tasks = store.tasks(states=states)
        return store.pool_id, {task.task_id for task in tasks if task.task_id is not None}
    finally:
        store.close()


@contextmanager
def stoppable() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does, so that what was made is deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore a second Ctrl-C in the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
