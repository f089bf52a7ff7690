"""What the tests have other processes do, and how they are started.

Every process waits at a gate until all have started, so that they meet in the store.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from support.forked import forkserver

from conformance.store_scene import FINGERPRINT, NOW, TEMPLATE, wish
from pool.errors import IdempotencyConflict
from pool.model import new_id
from pool.store import CreateLimit, NewMember, open_store


def pool_id(url: str) -> str:
    """Opens the store, which may have to be made first."""
    store = open_store(url)
    try:
        return store.pool_id
    finally:
        store.close()


def claim_all(url: str) -> list[int]:
    """Takes tasks until there are none."""
    store = open_store(url)
    task_ids = []
    while (task := store.open_lease(wish(), now=NOW).task) is not None:
        assert task.task_id is not None
        task_ids.append(task.task_id)
    store.close()
    return task_ids


def claim(url: str) -> str:
    """Takes a task, and keeps the store open."""
    return open_store(url).open_lease(wish(), now=NOW).lease.id


def open_with_key(url: str, key: str, payload: str) -> str:
    """Asks with a key; says which lease it got, or that the key was taken."""
    store = open_store(url)
    try:
        return store.open_lease(wish(key=key, payload=payload), now=NOW).lease.id
    except IdempotencyConflict as error:
        return error.code
    finally:
        store.close()


def create_all(url: str, capacity: int) -> int:
    """Begins creates until the limit is reached."""
    store = open_store(url)
    limit = CreateLimit(capacity=capacity, concurrency=capacity)
    begun = 0
    while store.begin_create(new_id(), TEMPLATE, FINGERPRINT, limit=limit, owner="there", now=NOW):
        begun += 1
    store.close()
    return begun


def adopt(url: str, owner: str) -> list[str]:
    """Takes over what has no live owner."""
    store = open_store(url)
    adopted = [request.id for request in store.adopt_requests(owner, now=NOW)]
    store.close()
    return adopted


def take_spooled(url: str, owner: str, waiting: list[str]) -> list[str]:
    """Takes what has no live owner, request by request."""
    store = open_store(url)
    taken = [each for each in waiting if store.take_spooled(each, owner=owner, now=NOW)]
    store.close()
    return taken


def claim_queued(
    url: str, owner: str, waiting: list[str], places: int | None = None
) -> list[tuple[str, int | None]]:
    """Claims tasks for what has no live owner, while there are places."""
    store = open_store(url)
    claimed = []
    for each in waiting:
        handout = store.claim_queued(
            [NewMember(request_id=each)], FINGERPRINT, places=places, owner=owner, now=NOW
        )
        if handout is not None:
            claimed.append((each, handout.task.task_id))
    store.close()
    return claimed


def delete_all(url: str, owner: str) -> list[str]:
    """Takes tasks to delete, a few at a time."""
    store = open_store(url)
    taken = []
    while some := store.begin_delete(owner=owner, limit=3, retry_after=60.0, now=NOW):
        taken += [task.id for task in some]
    store.close()
    return taken


def keep_secret(url: str, secret: str) -> str:
    """Brings a secret; answers the one that is kept."""
    store = open_store(url)
    try:
        return store.keep_webhook_secret(secret)
    finally:
        store.close()


def maintain(url: str, owner: str) -> bool:
    """Tries to become the one that maintains the store."""
    store = open_store(url)
    won = store.begin_term(owner, seconds=10, clock=lambda: NOW) is not None
    store.close()
    return won


def die_in_a_transaction(url: str) -> None:
    """Changes something, and does not commit: it is killed when it has answered."""
    transaction = open_store(url).connections.writing()
    db = transaction.__enter__()
    db.changed("INSERT INTO pauses (template, since) VALUES ('left', 1)")
    _left.append(transaction)


#: What stays open until the process ends.
_left: list[Any] = []


def run(action: Callable[..., Any], *calls: tuple[Any, ...], killed: bool = False) -> list[Any]:
    """Run an action in as many processes as there are calls, at once; their answers. With
    ``killed`` each is killed as soon as it has answered."""
    context = forkserver()
    gate = context.Barrier(len(calls))
    lines = [context.Pipe(duplex=False) for _ in calls]
    processes = [
        context.Process(target=_act, args=(action, call, gate, line, killed))
        for call, (_, line) in zip(calls, lines, strict=True)
    ]
    for process in processes:
        process.start()
    for _, line in lines:
        line.close()
    answers = []
    for answer, _ in lines:
        with answer:
            answers.append(answer.recv())
    for process in processes:
        process.join()
        assert process.exitcode == (-signal.SIGKILL if killed else 0)
        process.close()
    return answers


def _act(
    action: Callable[..., Any],
    call: tuple[Any, ...],
    gate: Barrier,
    line: Connection,
    killed: bool,
) -> None:
    gate.wait()
    line.send(action(*call))
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
