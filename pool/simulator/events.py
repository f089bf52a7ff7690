"""What happened, for those who subscribed to it: the payloads of webhooks."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .deliveries import Sender
from .records import ImportRequest, Job, Json, Organization, Task, User, Webhook
from .render import (
    basic_user,
    created_job_json,
    job_json,
    request_json,
    task_json,
    timestamp,
)
from .state import Caller, State

Snapshot = Mapping[str, Any]


def _group(name: str, *keys: str) -> list[tuple[str, str]]:
    return [(key, name) for key in keys]


#: Events that a project's webhook can ask for, in the order in which CVAT offers them.
PROJECT_EVENTS: tuple[tuple[str, str], ...] = (
    *_group("Task", "create:task", "update:task", "delete:task"),
    *_group("Job", "create:job", "update:job", "delete:job"),
    *_group("Issue", "create:issue", "update:issue", "delete:issue"),
    *_group("Comment", "create:comment", "update:comment", "delete:comment"),
    *_group(
        "Dataset export", "completed:request[export:annotations]",
        "completed:request[export:dataset]",
    ),
    *_group("Backup export", "completed:request[export:backup]"),
    *_group("Task data creation", "completed:request[create:task]"),
    *_group("Consensus merge", "completed:request[merge:task]", "completed:request[merge:job]"),
    *_group("Quality report creation", "completed:request[calculate:quality]"),
    *_group("Project", "update:project", "delete:project"),
)  # fmt: skip

ORGANIZATION_EVENTS: tuple[tuple[str, str], ...] = (
    *PROJECT_EVENTS,
    *_group("Project", "create:project"),
    *_group("Invitation", "create:invitation", "delete:invitation"),
    *_group("Membership", "update:membership", "delete:membership"),
    *_group("Organization", "update:organization"),
)

ALL_EVENTS = ORGANIZATION_EVENTS


class Events:
    """Hands each event to the sender, once for each webhook that wants it."""

    def __init__(self, state: State, sender: Sender) -> None:
        self._state = state
        self._sender = sender

    def task_created(self, task: Task, call: Caller) -> None:
        self._about_task("create:task", task, call.base_url, _caller(call))

    def task_deleted(self, task: Task, call: Caller) -> None:
        for job in self._state.jobs_of(task):
            self._about_job("delete:job", job, job_json(job, call.base_url), _caller(call))
        self._about_task("delete:task", task, call.base_url, _caller(call))

    def task_updated(self, task: Task, before: Snapshot, call: Caller) -> None:
        changes = _changes(before, self.snapshot(task))
        self._about_task("update:task", task, call.base_url, _caller(call), changes)

    def task_imported(self, task: Task, before: Snapshot, owner: User) -> None:
        """An ``update:task`` by the import worker: relative URLs, no name of the project."""
        changes = _changes(before, self.snapshot(task))
        unknown = {"project_name": None}
        self._about_task("update:task", task, "", _worker(owner), changes, unknown)

    def job_created(self, job: Job, sender: User) -> None:
        self._about_job("create:job", job, created_job_json(job), _worker(sender))

    def job_updated(self, job: Job, before: Snapshot, call: Caller) -> None:
        changes = _changes(before, self.job_snapshot(job))
        self._about_job("update:job", job, job_json(job, call.base_url), _caller(call), changes)

    def request_completed(self, request: ImportRequest, *, status: str) -> None:
        """Send ``status`` as it will be: the request itself changes a little later."""
        self._emit(
            "completed:request[create:task]",
            request.project_id,
            request.organization,
            lambda: {"request": request_json(request) | {"status": status}},
        )

    def snapshot(self, task: Task) -> Snapshot:
        """The columns of a task, to tell later what changed."""
        return {
            "name": task.name,
            "bug_tracker": task.bug_tracker,
            "subset": task.subset,
            "owner_id": task.owner.id,
            "assignee_id": task.assignee.id if task.assignee else None,
            "assignee_updated_date": task.assignee_updated,
            "project_id": task.project.id if task.project else None,
            "updated_date": task.updated,
            "data_id": task.data.id if task.data else None,
            "overlap": task.overlap,
            "segment_size": task.segment_size,
            "dimension": task.dimension,
            "mode": task.mode,
            "media_type": task.media_type,
        }

    def job_snapshot(self, job: Job) -> Snapshot:
        return {
            "assignee_id": job.assignee.id if job.assignee else None,
            "assignee_updated_date": job.assignee_updated,
            "updated_date": job.updated,
            "stage": job.stage,
            "state": job.state,
        }

    def _about_task(
        self,
        event: str,
        task: Task,
        base_url: str,
        sender: Json | None,
        changes: Json | None = None,
        unknown: Json | None = None,
    ) -> None:
        self._emit(
            event,
            task.project.id if task.project else None,
            task.organization,
            lambda: {
                "task": task_json(task, self._state, base_url) | (unknown or {}),
                "sender": sender,
                **(changes or {}),
            },
        )

    def _about_job(
        self, event: str, job: Job, body: Json, sender: Json | None, changes: Json | None = None
    ) -> None:
        task = job.task
        self._emit(
            event,
            task.project.id if task.project else None,
            task.organization,
            lambda: {"job": body, "sender": sender, **(changes or {})},
        )

    def _emit(
        self, event: str, project_id: int | None, organization: Organization | None, payload: Any
    ) -> None:
        webhooks = [w for w in self._subscribed(project_id, organization) if event in w.events]
        if not webhooks:
            return
        body = payload()
        for webhook in webhooks:
            self._sender.put(webhook, {"event": event, "webhook_id": webhook.id} | body)

    def _subscribed(
        self, project_id: int | None, organization: Organization | None
    ) -> list[Webhook]:
        return [
            webhook
            for webhook in self._state.webhooks.values()
            if webhook.is_active
            and (
                (webhook.type == "project" and webhook.project_id == project_id)
                or (webhook.type == "organization" and webhook.organization is organization)
            )
        ]


def _caller(call: Caller) -> Json | None:
    return basic_user(call.user, call.base_url)


def _worker(owner: User) -> Json:
    """Whom the import worker acts for, as it says it."""
    return {"id": owner.id, "username": owner.username, "email": owner.email}


def _changes(before: Snapshot, after: Snapshot) -> Json:
    changed = [name for name in after if after[name] != before[name]]
    return {
        "before_update": {name: _plain(before[name]) for name in changed},
        "changes": {
            name: {"from": _plain(before[name]), "to": _plain(after[name])} for name in changed
        },
    }


def _plain(value: Any) -> Any:
    return timestamp(value) if isinstance(value, datetime) else value
