"""Every operation of the server: its name, its address, who answers it and what it costs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from . import (
    about,
    auth,
    cloud_storages,
    data,
    exports,
    frames,
    job_annotations,
    jobs,
    labels,
    projects,
    requests_api,
    tasks,
    tus,
    users,
    webhooks,
)
from .call import Call
from .replies import Reply
from .settings import SimulatorSettings
from .versions import ACCESS_TOKENS, Version

Handler = Callable[[Call], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path. ``cost`` names the field of ``Timings`` that is paid on entry."""

    name: str
    method: str
    path: str
    handler: Handler
    cost: str | None = None
    #: Answered without credentials.
    public: bool = False
    since: Version = (2, 0)


TASK = "/api/tasks/{id:int}"
JOB = "/api/jobs/{id:int}"
PROJECT = "/api/projects/{id:int}"
HOOK = "/api/webhooks/{id:int}"
STORAGE = "/api/cloudstorages/{id:int}"

OPERATIONS: tuple[Operation, ...] = (
    Operation("about", "GET", "/api/server/about", about.get_about, "about", public=True),
    Operation("share:list", "GET", "/api/server/share", about.list_share, "share"),
    Operation("login", "POST", "/api/auth/login", auth.login, public=True),
    Operation("logout", "POST", "/api/auth/logout", auth.logout, "about", public=True),
    Operation("token:self", "GET", "/api/auth/access_tokens/self", auth.own_token,
              "access_token", since=ACCESS_TOKENS),
    Operation("users:self", "GET", "/api/users/self", users.get_self, "users_self"),
    Operation("users:get", "GET", "/api/users/{id:int}", users.get_user, "users_self"),
    Operation("users:list", "GET", "/api/users", users.list_users, "user_list"),
    Operation("tasks:list", "GET", "/api/tasks", tasks.list_tasks, "task_list"),
    Operation("tasks:create", "POST", "/api/tasks", tasks.create_task, "task_create"),
    Operation("tasks:get", "GET", TASK, tasks.get_task, "task_get"),
    Operation("tasks:patch", "PATCH", TASK, tasks.patch_task, "task_patch"),
    Operation("tasks:delete", "DELETE", TASK, tasks.delete_task, "task_delete"),
    Operation("tasks:status", "GET", TASK + "/status", tasks.task_status, "request_get"),
    Operation("tasks:preview", "GET", TASK + "/preview", frames.get_task_preview, "preview"),
    Operation("data:get", "GET", TASK + "/data", frames.get_task_data, "frame"),
    Operation("data:post", "POST", TASK + "/data", data.post_data),
    Operation("data:get", "GET", TASK + "/data/", frames.get_task_data, "frame"),
    Operation("data:post", "POST", TASK + "/data/", data.post_data),
    Operation("data:meta", "GET", TASK + "/data/meta", data.get_meta, "data_meta"),
    Operation("data:meta:patch", "PATCH", TASK + "/data/meta", data.patch_meta),
    Operation("tasks:export", "POST", TASK + "/dataset/export", exports.export_task,
              "export_begin"),
    Operation("tasks:download", "GET", TASK + "/dataset/download", exports.download, "task_get"),
    Operation("tus:head", "HEAD", TASK + "/data/{file_id}", tus.head_upload, "upload_tus"),
    Operation("tus:patch", "PATCH", TASK + "/data/{file_id}", tus.patch_upload, "upload_tus"),
    Operation("validation:layout", "GET", TASK + "/validation_layout", data.get_layout,
              "task_get"),
    Operation("jobs:list", "GET", "/api/jobs", jobs.list_jobs, "job_list"),
    Operation("jobs:create", "POST", "/api/jobs", jobs.create_job, "job_get"),
    Operation("jobs:get", "GET", JOB, jobs.get_job, "job_get"),
    Operation("jobs:patch", "PATCH", JOB, jobs.patch_job, "job_patch"),
    Operation("jobs:delete", "DELETE", JOB, jobs.delete_job, "job_get"),
    Operation("jobs:data", "GET", JOB + "/data", frames.get_job_data, "frame"),
    Operation("jobs:meta", "GET", JOB + "/data/meta", data.get_job_meta, "data_meta"),
    Operation("jobs:meta:patch", "PATCH", JOB + "/data/meta", data.patch_job_meta),
    Operation("annotations:get", "GET", JOB + "/annotations", job_annotations.get_annotations,
              "annotations"),
    Operation("annotations:put", "PUT", JOB + "/annotations", job_annotations.put_annotations,
              "annotations"),
    Operation("annotations:patch", "PATCH", JOB + "/annotations",
              job_annotations.patch_annotations, "annotations"),
    Operation("annotations:delete", "DELETE", JOB + "/annotations",
              job_annotations.delete_annotations, "annotations"),
    Operation("jobs:export", "POST", JOB + "/dataset/export", exports.export_job, "export_begin"),
    Operation("jobs:download", "GET", JOB + "/dataset/download", exports.download, "job_get"),
    Operation("jobs:preview", "GET", JOB + "/preview", frames.get_job_preview, "preview"),
    Operation("labels:list", "GET", "/api/labels", labels.list_labels, "label_list"),
    Operation("labels:get", "GET", "/api/labels/{id:int}", labels.get_label, "label_list"),
    Operation("requests:list", "GET", "/api/requests", requests_api.list_requests, "request_list"),
    Operation("requests:get", "GET", "/api/requests/{rq_id}", requests_api.get_request,
              "request_get"),
    Operation("requests:cancel", "POST", "/api/requests/{rq_id}/cancel",
              requests_api.cancel_request, "request_get"),
    Operation("projects:list", "GET", "/api/projects", projects.list_projects, "task_list"),
    Operation("projects:create", "POST", "/api/projects", projects.create_project,
              "project_create"),
    Operation("projects:get", "GET", PROJECT, projects.get_project, "project_get"),
    Operation("projects:patch", "PATCH", PROJECT, projects.patch_project, "task_patch"),
    Operation("projects:delete", "DELETE", PROJECT, projects.delete_project, "task_delete"),
    Operation("cloudstorages:create", "POST", "/api/cloudstorages",
              cloud_storages.create_storage, "cloud_storage_create"),
    Operation("cloudstorages:get", "GET", STORAGE, cloud_storages.get_storage,
              "cloud_storage_read"),
    Operation("cloudstorages:delete", "DELETE", STORAGE, cloud_storages.delete_storage,
              "cloud_storage_delete"),
    Operation("cloudstorages:status", "GET", STORAGE + "/status", cloud_storages.get_status,
              "cloud_storage_read"),
    Operation("cloudstorages:content", "GET", STORAGE + "/content-v2",
              cloud_storages.get_content, "cloud_storage_read"),
    Operation("webhooks:list", "GET", "/api/webhooks", webhooks.list_webhooks, "webhook_read"),
    Operation("webhooks:create", "POST", "/api/webhooks", webhooks.create_webhook, "webhook_write"),
    Operation("webhooks:events", "GET", "/api/webhooks/events", webhooks.list_events, "about",
              public=True),
    Operation("webhooks:get", "GET", HOOK, webhooks.get_webhook, "webhook_read"),
    Operation("webhooks:delete", "DELETE", HOOK, webhooks.delete_webhook, "webhook_write"),
    Operation("webhooks:patch", "PATCH", HOOK, webhooks.patch_webhook, "webhook_write"),
    Operation("webhooks:put", "PUT", HOOK, webhooks.patch_webhook, "webhook_write"),
    Operation("webhooks:ping", "POST", HOOK + "/ping", webhooks.ping_webhook, "webhook_write"),
    Operation("webhooks:deliveries", "GET", HOOK + "/deliveries", webhooks.list_deliveries,
              "webhook_read"),
    Operation("webhooks:redeliver", "POST", HOOK + "/deliveries/{delivery_id:int}/redelivery",
              webhooks.redeliver, "webhook_write"),
)  # fmt: skip

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
#: Webhooks have their own list of methods, in an order of its own and without OPTIONS.
_WEBHOOK_METHODS = ("GET", "POST", "DELETE", "PATCH", "PUT")


def by_path(settings: SimulatorSettings) -> dict[str, dict[str, Operation]]:
    """The operations that the server's version has on each path, by method."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        if settings.since(operation.since):
            paths.setdefault(operation.path, {})[operation.method] = operation
    return paths


def allowed(path: str, methods: dict[str, Operation]) -> str:
    """The ``Allow`` header of a path."""
    if path.startswith("/api/webhooks"):
        return ", ".join(method for method in _WEBHOOK_METHODS if method in methods)
    names = [method for method in _METHODS if method in methods]
    if "GET" in methods:
        names.append("HEAD")
    return ", ".join([*names, "OPTIONS"])
