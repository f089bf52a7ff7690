"""Delete what a bench has made on a server: also after a failure, and after Ctrl-C."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from pool.bench.plain import plain_client
from pool.config.settings import CvatSettings
from pool.cvat import connect, find_credentials
from pool.errors import CvatError, PoolError
from pool.model import TaskState, pool_mark
from pool.store import open_store

#: Deletions at once.
AT_ONCE = 4


def delete_all(
    server: CvatSettings, environment: Mapping[str, str], store_path: Path, mark: str
) -> None:
    """Delete the tasks and projects that bear ``mark`` or belong to the pool of the store, if
    there is one.

    :raises PoolError: some are left, and which.
    """
    left = []
    with connect(server, environment) as cvat:
        found = {task.id for task in cvat.marked_tasks(mark)}
        if store_path.exists():
            with closing(open_store(f"sqlite:///{store_path}")) as store:
                tasks = store.tasks(states=[each for each in TaskState if each != "deleted"])
                found |= {task.task_id for task in tasks if task.task_id is not None}
                found |= {task.id for task in cvat.marked_tasks(pool_mark(store.pool_id))}

        def delete(task_id: int) -> None:
            try:
                cvat.delete_task(task_id)
            except CvatError:
                left.append(task_id)

        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(delete, sorted(found)))
    with plain_client(server, find_credentials(server, environment)) as client:
        projects = client.api_client.projects_api
        _, answer = projects.list(name=mark, _parse_response=False)
        for project in json.loads(answer.data)["results"]:
            projects.destroy(project["id"])
    if left:
        raise PoolError(f"these tasks of the bench could not be deleted: {sorted(left)}")


@contextmanager
def stoppable() -> Iterator[None]:
    """Have SIGTERM end the block as Ctrl-C does, so that what was made is deleted."""

    def stop(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    with _handling(stop, signal.SIGTERM):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore a second Ctrl-C in the block."""
    with _handling(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def _handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Handle signals in the block. Python allows that in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
