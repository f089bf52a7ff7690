"""``cvat-pool requests`` and ``leases``: what callers have asked for, and who holds what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pool.cli.options import ConfigOption, JsonOption, ServerOption, open_pool, seconds_of
from pool.cli.output import counted, error_document, hint, print_json
from pool.cli.table import Column, table, terminal_width
from pool.clock import SystemClock

if TYPE_CHECKING:
    from pool.client import RemotePool
    from pool.handles import Lease, Request
    from pool.model import Job
    from pool.taskpool import TaskPool

_EXCEPTION: Final = re.compile(r"^[\w.]+(?:Error|Exception): (?=\S)")

_FOLDER: Final = re.compile(r"/home/django/data/data/\d+/raw/")

TemplateOption = Annotated[
    str | None,
    typer.Option("--template", metavar="NAME", help="Only those of this template."),
]
TenantOption = Annotated[
    str | None,
    typer.Option("--tenant", metavar="NAME", help="Only those of this tenant: a token's name."),
]


def requests(
    text: Annotated[
        str | None,
        typer.Argument(
            help="Only those with this in their id, name, stream or the name of a file.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    server: ServerOption = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="Only those in this state: queued, uploading, importing, ready, failed or "
            "cancelled; may be repeated.",
            show_default=False,
        ),
    ] = None,
    template: TemplateOption = None,
    tenant: TenantOption = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help='Only those accepted in the last "1h", for instance.',
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list at most.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List requests, the newest first, with their job ids or what went wrong."""
    seconds = seconds_of("--since", since)
    now = datetime.fromtimestamp(SystemClock().now(), UTC)
    with closing(open_pool(config, server)) as pool:
        matching = pool.requests(
            state or (),
            template=template,
            tenant=tenant,
            text=text,
            since=None if seconds is None else now - timedelta(seconds=seconds),
        )
        found = list(islice(matching, limit + 1))
        more, found = found[limit:], found[:limit]
        jobs = _jobs_of(pool, found)
    if as_json:
        print_json([_request_document(each, jobs.get(each.id, ())) for each in found])
    elif found:
        columns = _request_columns(found, jobs, now.timestamp())
        print("\n".join(table(columns, width=terminal_width())))
    else:
        print("no requests")
    if more:
        hint(f"These are the newest {limit}: --limit shows more.")


def _jobs_of(pool: TaskPool | RemotePool, found: Sequence[Request]) -> Mapping[str, Sequence[Job]]:
    """Return the jobs of requests, in one query: those of a daemon came with them."""
    records = [each.record for each in found]
    if (store := getattr(pool, "store", None)) is not None:
        return dict(store.jobs_of_requests(records))
    return {each.id: getattr(each, "jobs", None) or () for each in records}


def _request_document(request: Request, jobs: Sequence[Job]) -> dict[str, Any]:
    from pool.handles import error_of, when

    record = request.record
    return {
        "id": record.id,
        "state": record.state,
        "template": record.template,
        "tenant": record.tenant,
        "name": record.name,
        "stream": record.stream,
        "files": record.given,
        "outcome": record.outcome,
        "task_id": record.task_id,
        "url": request.url,
        "jobs": list(jobs),
        "created_at": when(record.created_at),
        "finished_at": when(record.finished_at),
        "error": error_document(error_of(record)) if record.error_code else None,
        "data_away": record.data_away or None,
    }


def _request_columns(
    found: Sequence[Request], jobs: Mapping[str, Sequence[Job]], now: float
) -> list[Column]:
    from pool.handles import error_of

    def result(request: Request) -> str:
        if request.record.error_code:
            error = error_of(request.record)
            # Without what is the longer part of many: the exception's name, the folder in CVAT.
            words = _EXCEPTION.sub("", " ".join((error.detail or error.title).split()))
            return _FOLDER.sub("", words)
        if request.record.data_away:
            return request.record.data_away
        ids = [str(job.id) for job in jobs.get(request.id, ())]
        return ids[0] if len(ids) == 1 else _span(ids)

    def called(request: Request) -> str:
        record = request.record
        more = f" +{len(record.given) - 1}" if len(record.given) > 1 else ""
        return record.name or (f"{record.given[0]}{more}" if record.given else "")

    records = [each.record for each in found]
    failed = any(each.error_code or each.data_away for each in records)
    return [
        Column(heading="request", values=[each.id for each in records]),
        Column(heading="state", values=[each.state.value for each in records]),
        Column(heading="age", values=[age(now - each.created_at) for each in records], right=True),
        Column(
            heading="template",
            values=[each.template for each in records],
            least=12,
            rank=2,
            idle=len({each.template for each in records}) == 1,
        ),
        *tenant_column([each.tenant for each in records]),
        Column(heading="name", values=list(map(called, found)), least=8, rank=1),
        Column(
            heading="jobs, or why not" if failed else "jobs",
            values=list(map(result, found)),
            least=16,
            tail=True,
        ),
    ]


def tenant_column(tenants: Sequence[str]) -> list[Column]:
    """Return a column with the tenant of each row, where there are any."""
    if not any(tenants):
        return []
    return [Column(heading="tenant", values=list(tenants), least=6, rank=1)]


def _span(ids: Sequence[str]) -> str:
    """Return the ids of jobs: a few as they are, of many the first, the last and their number."""
    if len(ids) <= 3:
        return ", ".join(ids)
    return f"{ids[0]} … {ids[-1]} ({len(ids)})"


def leases(
    template: Annotated[
        str | None, typer.Argument(help="A template; those of all of them by default.")
    ] = None,
    config: ConfigOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the tasks that callers have leased: who, since when and until when.

    Those that requests use are not among them.
    """
    with closing(open_pool(config, server)) as pool:
        found = pool.leases(template)
    if as_json:
        print_json([_lease_document(each) for each in found])
    elif found:
        print("\n".join(table(_lease_columns(found), width=terminal_width())))
        print(counted(len(found), "lease"))
    else:
        print("no leases")


def _lease_document(lease: Lease) -> dict[str, Any]:
    from dataclasses import fields

    from pool.handles import LeaseHandle

    return {each.name: getattr(lease, each.name) for each in fields(LeaseHandle)}


def _lease_columns(found: Sequence[Lease]) -> list[Column]:
    from pool.observability.status import moment, owner_in_words

    now = SystemClock().now()
    ages = [age(now - each.created_at.timestamp()) for each in found]
    return [
        Column(heading="lease", values=[each.id for each in found]),
        Column(heading="task", values=[str(each.task_id) for each in found], right=True),
        Column(heading="age", values=ages, right=True),
        Column(heading="until", values=[moment(each.expires_at, now) for each in found]),
        Column(heading="template", values=[each.template for each in found], least=8, rank=1),
        *tenant_column([each.tenant for each in found]),
        Column(heading="name", values=[each.name or "" for each in found], least=8, rank=2),
        Column(
            heading="taken by",
            values=[owner_in_words(each.owner) for each in found],
            least=12,
            rank=3,
        ),
    ]


def age(seconds: float) -> str:
    """Return how long ago something was, in its largest unit: "40s", "3m", "5h", "12d"."""
    for unit, factor in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= factor:
            return f"{seconds // factor:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
