"""``cvat-pool lease`` and ``release``: empty tasks, to upload into yourself."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.options import (
    ConfigOption,
    JsonOption,
    KeyOption,
    ServerOption,
    TemplateArgument,
    TimeoutOption,
    open_pool,
    seconds_of,
)
from pool.cli.output import done, print_json
from pool.errors import PoolError, UnknownLease
from pool.model import LeaseState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pool.handles import Lease
    from pool.model import Job


def lease(
    template: TemplateArgument,
    config: ConfigOption = None,
    server: ServerOption = None,
    timeout: TimeoutOption = None,
    name: Annotated[
        str | None,
        typer.Option(help="What it is called in lists, and its task once that has data."),
    ] = None,
    ttl: Annotated[str | None, typer.Option(help='How long to keep it, such as "1h".')] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lease an empty task, to upload into it yourself.

    Of a template with slots it is a slot, whose job exists already: "lease.upload" in Python and
    "lease_id" over HTTP fill it, and no other tool.
    """
    with closing(open_pool(config, server)) as pool:
        taken = pool.acquire(
            template,
            timeout=seconds_of("--timeout", timeout),
            ttl=seconds_of("--ttl", ttl),
            idempotency_key=key,
            name=name,
        )
        jobs = _jobs_now(taken)
    if as_json:
        print_json(lease_document(taken, jobs))
    else:
        print(f"lease {taken.id}{f'  {taken.name}' if taken.name else ''}")
        print(f"task  {taken.task_id}  {taken.url}")
        for job in jobs or ():
            print(f"job   {job.id}  {job.url}")
        print(f"until {taken.expires_at:%Y-%m-%d %H:%M:%S} UTC ({taken.outcome.value})")


def lease_document(lease: Lease, jobs: Sequence[Job] | None) -> dict[str, object]:
    """Return a lease for ``--json``, with its jobs once they exist."""
    fields = ("id", "name", "task_id", "task_name", "url", "template", "outcome", "expires_at")
    return {**{name: getattr(lease, name) for name in fields}, "jobs": jobs}


def _jobs_now(lease: Lease) -> list[Job] | None:
    """Return the jobs of a lease that exist already: that of a slot."""
    try:
        return lease.jobs(timeout=0)
    except PoolError:
        # None yet; or not known, which is no reason to fail: the lease is the caller's.
        return None


def release(
    lease_id: Annotated[str, typer.Argument(metavar="LEASE", help="The id of a lease.")],
    config: ConfigOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an untouched task back to the pool."""
    with closing(open_pool(config, server)) as pool:
        try:
            pool.release(lease_id)
        except UnknownLease:
            raise UnknownLease(f"{lease_id}; 'cvat-pool leases' lists them") from None
    document = {"id": lease_id, "state": LeaseState.RELEASED}
    done(f"released {lease_id}", document, as_json=as_json)
