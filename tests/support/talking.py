"""Plays the daemon in the talks of a remote client, and a network that loses what it is told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from pool.client.steps import Answer, Call, Lost, Pause, Talk
from support.clock import ManualClock

T = TypeVar("T")

ADDRESS = "http://pool.test:8765"
Reply = Answer | Lost | Callable[[Call], Answer]

JOB = {"id": 7, "url": "http://cvat/7", "start_frame": 0, "stop_frame": 1, "assignee": None}
LEASE = {
    "id": "l1",
    "template": "scenes",
    "state": "active",
    "task_id": 42,
    "name": "[cvat-pool p] scenes",
    "url": "http://cvat/tasks/42",
    "outcome": "hit",
    "expires_at": "2026-01-01T12:00:00.123Z",
    "jobs": None,
    "error": None,
}
REQUEST = {
    "id": "r1",
    "template": "scenes",
    "state": "importing",
    "task_id": 42,
    "url": "http://cvat/tasks/42",
    "outcome": "wait",
    "name": "night ride",
    "assignee": 3,
    "files": ["a.jpg", "b.jpg"],
    "size": 10_000,
    "lease_id": "l1",
    "created_at": "2026-01-01T12:00:00.123Z",
    "handed_out_at": "2026-01-01T12:00:00.125Z",
    "uploaded_at": None,
    "finished_at": None,
    "jobs": None,
    "error": None,
}


def told(document: Any, status: int = 200, **headers: str) -> Answer:
    """A document as an answer; ``retry_after="3"`` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    content = json.dumps(document).encode()
    return Answer(
        address=ADDRESS,
        status=status,
        headers={"content-type": "application/json", **named},
        content=content,
    )


def problem(
    status: int, code: str, detail: str = "", title: str = "Title", **headers: str
) -> Answer:
    """A problem document as an answer."""
    kind = f"urn:cvat-task-pool:error:{code}" if code else "about:blank"
    document = {"type": kind, "title": title, "status": status, "detail": detail}
    return told(document, status, content_type="application/problem+json", **headers)


def page(status: int, **headers: str) -> Answer:
    """What something other than a pool answers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(
        address=ADDRESS,
        status=status,
        headers={"content-type": "text/html", **named},
        content=b"<html>",
    )


class Daemon:
    """Replies in turn; writes down what it was asked. ``pauses`` are what the client waited."""

    def __init__(self, clock: ManualClock, *replies: Reply) -> None:
        self.clock = clock
        self.replies = list(replies)
        self.calls: list[Call] = []
        self.pauses: list[float] = []

    def talk(self, talk: Talk[T]) -> T:
        """Take a talk to its end."""
        try:
            step = next(talk)
            while True:
                step = self._take(talk, step)
        except StopIteration as end:
            result: T = end.value
            return result

    def _take(self, talk: Talk[T], step: Call | Pause) -> Call | Pause:
        if isinstance(step, Pause):
            self.pauses.append(step.seconds)
            self.clock.advance(step.seconds)
            return talk.send(None)
        self.calls.append(step)
        reply = self.replies.pop(0)
        if isinstance(reply, Lost):
            return talk.throw(reply)
        return talk.send(reply(step) if callable(reply) else reply)
