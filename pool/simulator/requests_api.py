"""Background requests, imports and exports: list, see, cancel."""

from __future__ import annotations

import re
from typing import Any

from .call import Call
from .filters import Field, Listing
from .paging import page
from .records import ExportRequest, ImportRequest, Request, request_id
from .render import request_json
from .replies import NEVER_CACHE, Refusal, Reply, forbidden, invalid
from .versions import MESSAGE_WITH_FAILURE

_ID = re.compile(r"action=create&target=task&target_id=(\d+)\Z")
_LEGACY_ID = re.compile(r"create:task-(\d+)\Z")

TRACEBACK = """Traceback (most recent call last):
  File "/opt/venv/lib/python3.10/site-packages/rq/worker.py", line 1428, in perform_job
    rv = job.perform()
"""


def _exported(row: Request, name: str) -> Any:
    """A field that only exports have."""
    return getattr(row, name) if isinstance(row, ExportRequest) else None


LISTING: Listing[Request] = Listing(
    fields={
        "created_date": Field(lambda row: row.created, "date"),
        "status": Field(
            lambda row: row.status, choices=("queued", "started", "failed", "finished")
        ),
        "task_id": Field(lambda row: row.task_id, "number"),
        "project_id": Field(lambda row: row.project_id, "number"),
        "job_id": Field(lambda row: _exported(row, "job_id"), "number"),
        "action": Field(lambda row: "export" if isinstance(row, ExportRequest) else "create"),
        "target": Field(lambda row: "task" if _exported(row, "job_id") is None else "job"),
        "subresource": Field(
            lambda row: "dataset" if isinstance(row, ExportRequest) else None
        ),
        "format": Field(lambda row: _exported(row, "format")),
        "org": Field(lambda row: row.organization.slug if row.organization else None),
        "org_id": Field(lambda row: row.organization.id if row.organization else None, "number"),
    },
    not_simple=("created_date",),
    search=(),
    sort="-created_date",
)  # fmt: skip


def task_id_of(given: str) -> int | None:
    """The task that a request's id, of either form, is about."""
    match = _ID.match(given) or _LEGACY_ID.match(given)
    return int(match[1]) if match else None


def unknown_request() -> Refusal:
    return Refusal(404, html="There is no request with specified id", headers=NEVER_CACHE)


def _request_of(call: Call) -> Request:
    """The request of the path, by its own or its older id.

    Raises 404 for one that never was or is forgotten, 400 if its task is deleted meanwhile.
    """
    given = call.text("rq_id")
    if legacy := _LEGACY_ID.match(given):
        given = request_id(int(legacy[1]))
    request = call.state.request_of(given)
    if request is None:
        raise unknown_request()
    if request.task_id not in call.state.tasks:
        raise invalid("Task matching query does not exist.")
    if request.owner is not call.user and not call.user.is_superuser:
        raise forbidden()
    return request


async def get_request(call: Call) -> Reply:
    request = _request_of(call)
    body = request_json(request)
    if isinstance(request, ImportRequest) and request.status == "failed" and not request.looked_at:
        request.looked_at = True
        if not call.settings.since(MESSAGE_WITH_FAILURE):
            body["message"] = TRACEBACK + request.message
    return Reply(body, headers=NEVER_CACHE)


async def list_requests(call: Call) -> Reply:
    call.state.forget_expired_requests()
    rows = [row for row in call.state.requests.values() if row.owner is call.user]
    body, _ = page(call, LISTING.apply(rows, call.query), request_json)
    return Reply(body, headers=NEVER_CACHE)


async def cancel_request(call: Call) -> Reply:
    request = _request_of(call)
    if not isinstance(request, ImportRequest) or request.status != "queued":
        raise Refusal(
            400,
            html=f"Requests with status '{request.status}' cannot be cancelled",
            headers=NEVER_CACHE,
        )
    call.simulator.imports.cancel(request)
    return Reply(status=200, headers=NEVER_CACHE)
