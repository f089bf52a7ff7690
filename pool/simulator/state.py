"""All that the server knows: the rows and the ways to find them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Protocol

from .records import (
    AccessToken,
    CloudStorage,
    Delivery,
    Job,
    Label,
    Organization,
    Project,
    Request,
    Task,
    User,
    Webhook,
)


class Ids:
    """One sequence for each kind of row, as in the database."""

    def __init__(self) -> None:
        self.task = itertools.count(1)
        self.job = itertools.count(1)
        self.data = itertools.count(1)
        self.label = itertools.count(1)
        self.attribute = itertools.count(1)
        self.project = itertools.count(1)
        self.webhook = itertools.count(1)
        self.delivery = itertools.count(1)
        self.annotation = itertools.count(1)
        self.cloud_storage = itertools.count(1)
        self.export = itertools.count(1)


def _machine_time() -> datetime:
    return datetime.now(UTC)


class State:
    """The tables. Changed on the server's loop only; reading elsewhere gives a recent picture.

    ``utc`` is the clock of the server's machine, for tests that move time by hand.
    """

    def __init__(self, utc: Callable[[], datetime] = _machine_time) -> None:
        self._utc = utc
        self.ids = Ids()
        #: How far this server's clock is off.
        self.clock_offset = timedelta()
        self.users: dict[int, User] = {}
        self.tokens: dict[str, AccessToken] = {}
        self.sessions: dict[str, User] = {}
        self.session_keys: dict[str, User] = {}
        self.organizations: dict[int, Organization] = {}
        self.cloud_storages: dict[int, CloudStorage] = {}
        self.projects: dict[int, Project] = {}
        self.tasks: dict[int, Task] = {}
        self.jobs: dict[int, Job] = {}
        self.labels: dict[int, Label] = {}
        self.requests: dict[str, Request] = {}
        self.webhooks: dict[int, Webhook] = {}
        self.deliveries: dict[int, Delivery] = {}

    def now(self) -> datetime:
        """This server's clock, as its rows carry it."""
        return self._utc() + self.clock_offset

    def user_named(self, name: str) -> User | None:
        """The user with this user name or mail address."""
        for user in self.users.values():
            if name and name in (user.username, user.email):
                return user
        return None

    def organization_named(self, slug: str) -> Organization | None:
        for organization in self.organizations.values():
            if organization.slug == slug:
                return organization
        return None

    def jobs_of(self, task: Task) -> Iterator[Job]:
        return (self.jobs[job_id] for job_id in task.job_ids)

    def labels_of(self, owner: Task | Project) -> list[Label]:
        """The labels that count for a task (its project's, if it has one) or a project."""
        if isinstance(owner, Task) and owner.project is not None:
            owner = owner.project
        return [self.labels[label_id] for label_id in owner.label_ids]

    def tasks_of(self, project: Project) -> list[Task]:
        return [task for task in self.tasks.values() if task.project is project]

    def request_of(self, request_id: str) -> Request | None:
        """A request that is still kept; one whose time is over is forgotten here."""
        request = self.requests.get(request_id)
        if request is None:
            return None
        if request.expires is not None and request.expires <= self.now():
            del self.requests[request_id]
            return None
        return request

    def forget_expired_requests(self) -> None:
        for request_id in list(self.requests):
            self.request_of(request_id)

    def forget_task(self, task: Task) -> None:
        """Delete a task with its jobs and labels. Its request stays, as it does in Redis."""
        for job_id in task.job_ids:
            del self.jobs[job_id]
        for label_id in task.label_ids:
            del self.labels[label_id]
        del self.tasks[task.id]

    def forget_project(self, project: Project) -> None:
        for label_id in project.label_ids:
            del self.labels[label_id]
        for webhook in [w for w in self.webhooks.values() if w.project_id == project.id]:
            self.forget_webhook(webhook)
        del self.projects[project.id]

    def forget_webhook(self, webhook: Webhook) -> None:
        for delivery_id in webhook.deliveries:
            self.deliveries.pop(delivery_id, None)
        del self.webhooks[webhook.id]


class Caller(Protocol):
    """Who does something on a server: a call, or a person in a browser."""

    @property
    def user(self) -> User: ...

    @property
    def base_url(self) -> str: ...
