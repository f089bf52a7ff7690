"""Jobs: list, see, assign, change the state of."""

from __future__ import annotations

from collections.abc import Iterable

from .call import Call
from .fields import Fields
from .filters import Field, Listing, wanted
from .organizations import may_list, may_see
from .paging import page
from .records import Job
from .render import job_json
from .replies import Reply, detail, forbidden, invalid, missing
from .users import assign

STAGES = ("annotation", "validation", "acceptance")
STATES = ("new", "in progress", "completed", "rejected")
TYPES = ("annotation", "ground_truth", "consensus_replica")
PATCHABLE = frozenset({"assignee", "stage", "state"})

LISTING: Listing[Job] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "task_id": Field(lambda row: row.task.id, "number"),
        "task_name": Field(lambda row: row.task.name),
        "project_id": Field(
            lambda row: row.task.project.id if row.task.project else None, "number"
        ),
        "project_name": Field(lambda row: row.task.project.name if row.task.project else None),
        "assignee": Field(lambda row: row.assignee.username if row.assignee else None),
        "type": Field(lambda row: row.type, choices=TYPES),
        "parent_job_id": Field(lambda row: row.parent_job_id, "number"),
        "dimension": Field(lambda row: row.task.dimension),
        "media_type": Field(lambda row: row.task.media_type),
        "mode": Field(lambda row: row.task.mode),
        "state": Field(lambda row: row.state, choices=STATES),
        "stage": Field(lambda row: row.stage, choices=STAGES),
        "updated_date": Field(lambda row: row.updated, "date"),
    },
    search=("task_name", "project_name", "assignee"),
)  # fmt: skip


def job_of(call: Call) -> Job:
    job = call.state.jobs.get(call.number())
    if job is None:
        raise missing("Job")
    if not may_see(call, job.task) and job.assignee is not call.user:
        raise forbidden()
    return job


async def list_jobs(call: Call) -> Reply:
    state, query = call.state, call.query
    numbers = wanted(query, "task_id")
    rows: Iterable[Job] = state.jobs.values()
    if numbers is not None:
        await call.spend(call.timings.filter_per_value * len(numbers))
        tasks = (state.tasks[number] for number in sorted(numbers) if number in state.tasks)
        rows = (job for task in tasks for job in state.jobs_of(task))
    found = LISTING.apply((row for row in rows if _may_list(call, row)), query)
    body, count = page(call, found, lambda row: job_json(row, call.base_url))
    await call.spend(call.timings.job_list_per_row * count)
    return Reply(body)


def _may_list(call: Call, job: Job) -> bool:
    return may_list(call, job.task) or (
        job.assignee is call.user
        and not (call.organization_given and job.task.organization is not call.organization)
    )


async def create_job(_: Call) -> Reply:
    """Only ground truth jobs are made by hand, and the simulator has none."""
    raise invalid("The simulator makes no ground truth jobs")


async def get_job(call: Call) -> Reply:
    return Reply(job_json(job_of(call), call.base_url))


async def patch_job(call: Call) -> Reply:
    job = job_of(call)
    given = await call.json_object()
    if not given.keys() <= PATCHABLE:
        raise detail(403, "Attempted to update an unknown field")
    fields = Fields(given)
    stage = fields.choice("stage", STAGES, default=job.stage)
    state = fields.choice("state", STATES, default=job.state)
    fields.check()
    before = call.simulator.events.job_snapshot(job)
    if "assignee" in fields:
        assign(call, job, given["assignee"])
    if stage != job.stage and "state" not in fields:
        state = "new"
    job.stage, job.state = stage or job.stage, state or job.state
    job.updated = call.state.now()
    call.simulator.events.job_updated(job, before, call)
    return Reply(job_json(job, call.base_url))


async def delete_job(call: Call) -> Reply:
    """Only ground truth jobs can go, and nothing here makes any."""
    job_of(call)
    raise invalid("Only ground truth jobs can be removed")
