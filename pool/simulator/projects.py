"""Projects: as much of them as a pool's tasks need to live in one."""

from __future__ import annotations

from .call import Call
from .fields import Fields
from .filters import Field, Listing
from .labels import add_labels, check_labels, read_labels, update_labels
from .organizations import may_list, visible
from .paging import page
from .records import Project
from .render import project_json
from .replies import Reply, detail
from .tasks import remove_task
from .users import assign, assignee_of

PATCHABLE = frozenset(
    {"owner_id", "assignee_id", "name", "labels", "bug_tracker", "organization_id",
     "source_storage", "target_storage"}
)  # fmt: skip

LISTING: Listing[Project] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "name": Field(lambda row: row.name),
        "owner": Field(lambda row: row.owner.username),
        "assignee": Field(lambda row: row.assignee.username if row.assignee else None),
        "status": Field(lambda _: "annotation"),
        "updated_date": Field(lambda row: row.updated, "date"),
    },
    search=("name", "owner", "assignee"),
)


def project_of(call: Call) -> Project:
    return visible(call, call.state.projects, "Project")


async def create_project(call: Call) -> Reply:
    fields = Fields(await call.json_object())
    name = fields.text("name", required=True, blank=False, longest=256)
    tracker = fields.text("bug_tracker", default="", longest=2000)
    labels = read_labels(fields)
    fields.check()
    check_labels(labels)
    await call.spend(call.timings.task_create_per_label * len(labels))
    assignee = assignee_of(call, fields.values.get("assignee_id"))
    moment = call.state.now()
    project = Project(
        id=next(call.state.ids.project),
        name=name or "",
        owner=call.user,
        assignee=assignee,
        bug_tracker=tracker or "",
        organization=call.organization,
        created=moment,
        updated=moment,
    )
    call.state.projects[project.id] = project
    add_labels(call.state, project, labels)
    body = project_json(project, call.state, call.base_url)
    return Reply(body, status=201, headers={"location": body["url"]})


async def list_projects(call: Call) -> Reply:
    rows = (row for row in call.state.projects.values() if may_list(call, row))
    body, _ = page(
        call,
        LISTING.apply(rows, call.query),
        lambda row: project_json(row, call.state, call.base_url),
    )
    return Reply(body)


async def get_project(call: Call) -> Reply:
    return Reply(project_json(project_of(call), call.state, call.base_url))


async def patch_project(call: Call) -> Reply:
    project = project_of(call)
    given = await call.json_object()
    if not given.keys() <= PATCHABLE:
        raise detail(403, "Attempted to update an unknown field")
    fields = Fields(given)
    name = fields.text("name", default=project.name, blank=False, longest=256)
    tracker = fields.text("bug_tracker", default=project.bug_tracker, longest=2000)
    labels = read_labels(fields)
    fields.check()
    if "assignee_id" in fields:
        assign(call, project, given["assignee_id"])
    project.name, project.bug_tracker = name or project.name, tracker or ""
    update_labels(call.state, project, labels)
    project.updated = call.state.now()
    return Reply(project_json(project, call.state, call.base_url))


async def delete_project(call: Call) -> Reply:
    project = project_of(call)
    for task in call.state.tasks_of(project):
        async with task.lock:
            if task.id in call.state.tasks:
                remove_task(call, task)
    call.state.forget_project(project)
    return Reply(status=204)
