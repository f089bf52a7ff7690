"""Tasks: create, list, see, change, delete."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterable

from .call import Actor, Call
from .fields import Fields
from .filters import Field, Listing, wanted
from .labels import add_labels, check_labels, read_labels, update_labels
from .organizations import may_list, may_see, visible
from .paging import page
from .records import Json, Project, Task
from .render import task_json
from .replies import Reply, detail, forbidden, invalid
from .users import assign, assignee_of

STATUSES = ("annotation", "validation", "completed")
PATCHABLE = frozenset(
    {
        "owner_id", "assignee_id", "project_id", "name", "labels", "bug_tracker", "subset",
        "organization_id", "source_storage", "target_storage",
    }
)  # fmt: skip

LISTING: Listing[Task] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "project_id": Field(lambda row: row.project.id if row.project else None, "number"),
        "project_name": Field(lambda row: row.project.name if row.project else None),
        "name": Field(lambda row: row.name),
        "owner": Field(lambda row: row.owner.username),
        "assignee": Field(lambda row: row.assignee.username if row.assignee else None),
        "subset": Field(lambda row: row.subset),
        "tracker_link": Field(lambda row: row.bug_tracker),
        "status": Field(lambda _: "annotation", choices=STATUSES),
        "media_type": Field(lambda row: row.media_type),
        "mode": Field(lambda row: row.mode),
        "dimension": Field(lambda row: row.dimension),
        "validation_mode": Field(lambda _: None),
        "updated_date": Field(lambda row: row.updated, "date"),
    },
    search=("project_name", "name", "owner", "assignee", "subset", "tracker_link"),
)  # fmt: skip


def task_of(call: Call) -> Task:
    return visible(call, call.state.tasks, "Task")


@contextlib.asynccontextmanager
async def locked_task(call: Call) -> AsyncIterator[Task]:
    """Lock the task of the path against changes; it is looked up anew once it is locked."""
    task = task_of(call)
    async with task.lock:
        yield task_of(call)


async def create_task(call: Call) -> Reply:
    fields = Fields(await call.json_object())
    project = _project(call, fields)
    labels = read_labels(fields)
    name = fields.text("name", required=True, blank=False, longest=256)
    tracker = fields.text("bug_tracker", default="", longest=2000)
    subset = fields.text("subset", default="", longest=64)
    segment_size = fields.integer("segment_size", default=0, least=0)
    overlap = fields.integer("overlap", null=True, least=0)
    replicas = fields.integer("consensus_replicas", default=0, least=0)
    if replicas == 1 or (replicas or 0) > 10:
        fields.wrong(
            "consensus_replicas",
            "Consensus replicas must be 0 or a positive number more than 1 and less than 11, "
            f"got {replicas}",
        )
    fields.check()
    await call.spend(call.timings.task_create_per_label * len(labels))
    if labels and project is not None:
        raise invalid("Task must have only one of Label set or project_id")
    organization = call.organization
    if project is not None:
        if call.organization_given and project.organization is not organization:
            raise invalid("The task and its project should be in the same organization.")
        organization = project.organization
    check_labels(labels)
    assignee = assignee_of(call, fields.values.get("assignee_id"))
    state, moment = call.state, call.state.now()
    task = Task(
        id=next(state.ids.task),
        name=name or "",
        owner=call.user,
        assignee=assignee,
        project=project,
        organization=organization,
        bug_tracker=tracker or "",
        subset=subset or "",
        segment_size=segment_size or 0,
        overlap=overlap,
        consensus_replicas=replicas or 0,
        created=moment,
        updated=moment,
        assignee_updated=moment if assignee else None,
    )
    state.tasks[task.id] = task
    add_labels(state, task, labels)
    if project is not None:
        project.updated = moment
    call.simulator.events.task_created(task, call)
    body = task_json(task, state, call.base_url)
    return Reply(body, status=201, headers={"location": body["url"]})


def _project(call: Call, fields: Fields) -> Project | None:
    """The project of a new task: looked up before anything else, as the permission check does."""
    number = fields.integer("project_id", null=True)
    if number is None:
        return None
    project = call.state.projects.get(number)
    if project is None:
        raise invalid("Project matching query does not exist.")
    if not may_see(call, project):
        raise forbidden()
    return project


async def list_tasks(call: Call) -> Reply:
    state, query = call.state, call.query
    numbers = wanted(query, "id") if "filter" in query else None
    rows: Iterable[Task] = state.tasks.values()
    if numbers is not None:
        await call.spend(call.timings.filter_per_value * len(numbers))
        rows = [state.tasks[number] for number in numbers if number in state.tasks]
    found = LISTING.apply((row for row in rows if may_list(call, row)), query)
    body, count = page(call, found, lambda row: task_json(row, state, call.base_url))
    await call.spend(call.timings.task_list_per_row * count)
    return Reply(body)


async def get_task(call: Call) -> Reply:
    return Reply(task_json(task_of(call), call.state, call.base_url))


async def patch_task(call: Call) -> Reply:
    given = await call.json_object()
    async with locked_task(call) as task:
        if not given.keys() <= PATCHABLE:
            raise detail(403, "Attempted to update an unknown field")
        before = call.simulator.events.snapshot(task)
        _change(call, task, given)
        call.simulator.events.task_updated(task, before, call)
        return Reply(task_json(task, call.state, call.base_url))


def _change(call: Call, task: Task, given: Json) -> None:
    fields = Fields(given)
    name = fields.text("name", default=task.name, blank=False, longest=256)
    tracker = fields.text("bug_tracker", default=task.bug_tracker, longest=2000)
    subset = fields.text("subset", default=task.subset, longest=64)
    project_id = fields.integer("project_id", null=True)
    labels = read_labels(fields)
    fields.check()
    if project_id is not None and (task.project is None or task.project.id != project_id):
        # A move into a project is all that such a PATCH does: its other fields are dropped.
        move_task(call, task, project_id)
    else:
        # All or nothing: what can be refused comes first.
        check_labels(labels)
        owner = assignee_of(call, given.get("owner_id")) or task.owner
        if "assignee_id" in fields:
            assign(call, task, given["assignee_id"])
        if task.project is None:
            update_labels(call.state, task, labels)
        task.name, task.owner = name or task.name, owner
        task.bug_tracker, task.subset = tracker or "", subset or ""
    task.updated = call.state.now()


def move_task(call: Actor, task: Task, project_id: int) -> None:
    project = call.state.projects.get(project_id)
    if project is None:
        raise invalid("Project matching query does not exist.")
    if task.project is None:
        for label_id in task.label_ids:
            del call.state.labels[label_id]
        task.label_ids.clear()
    task.project = project
    task.organization = project.organization


async def delete_task(call: Call) -> Reply:
    async with locked_task(call) as task:
        cost = call.timings.task_delete_per_job * len(task.job_ids)
        if task.data is not None and task.data.storage != "local":
            cost += call.timings.task_delete_per_server_file * len(task.data.frames)
        await call.spend(cost)
        remove_task(call, task)
    return Reply(status=204)


def remove_task(call: Actor, task: Task) -> None:
    """Delete a task, its jobs, its labels and its files."""
    call.simulator.events.task_deleted(task, call)
    call.state.forget_task(task)
    if task.data is not None:
        folder = task.data.folder
        call.simulator.forget_uploads(task.data)
        asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, folder, True)


async def task_status(call: Call) -> Reply:
    """The state of the import as older clients ask for it."""
    task = task_of(call)
    request = call.state.request_of(f"action=create&target=task&target_id={task.id}")
    body: Json = {"state": "Unknown", "message": "", "progress": 0.0}
    if request is not None:
        body = {
            "state": request.status.capitalize(),
            "message": request.message,
            "progress": 0.0,
        }
    elif task.is_initialized:
        body["state"] = "Finished"
    return Reply(body)
