"""``cvat-pool get``, ``lease`` and ``release``: tasks for data, and empty ones."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from pool.cli.options import (
    ConfigOption,
    JsonOption,
    KeyOption,
    ServerOption,
    TemplateArgument,
    TimeoutOption,
    open_pool,
    print_json,
    seconds_of,
)


def get(
    template: TemplateArgument,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Images, an archive or a video.")
    ] = None,
    config: ConfigOption = None,
    server: ServerOption = None,
    share: Annotated[
        list[str] | None, typer.Option(help="A file on the server's share; may be repeated.")
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option(help="An address that CVAT fetches; may be repeated.")
    ] = None,
    cloud: Annotated[
        list[str] | None,
        typer.Option(help="STORAGE_ID:KEY in a cloud storage of CVAT's; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The task's name.")] = None,
    assignee: Annotated[int | None, typer.Option(help="User id to assign the jobs to.")] = None,
    timeout: TimeoutOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put data into a task of the pool and print its job ids.

    The time-out is for all of it; what has been sent by then goes on.
    """
    from pool.cli.rendering import (
        cloud_keys,
        print_jobs,
        print_warnings,
        upload_progress,
        wait_for_jobs,
        warnings_of,
    )
    from pool.clock import SystemClock

    clock, patience = SystemClock(), seconds_of(timeout)
    began = clock.monotonic()
    with closing(open_pool(config, server)) as pool:
        with upload_progress() as progress:
            request = pool.submit(
                template,
                list(files) if files else None,
                share=share or None,
                urls=url or None,
                cloud=cloud_keys(cloud) if cloud else None,
                name=name,
                assignee=assignee,
                idempotency_key=key,
                timeout=patience,
                progress=progress,
            )
        if patience is not None:
            patience = max(0.0, patience - (clock.monotonic() - began))
        jobs = wait_for_jobs(request, patience)
        if not as_json:
            print_jobs(jobs)
        warnings = warnings_of(request, pool)
    print_warnings(warnings)
    if as_json:
        print_json(
            {
                "request_id": request.id,
                "task_id": request.task_id,
                "url": request.url,
                "template": request.template,
                "outcome": request.outcome,
                "jobs": jobs,
                "warnings": warnings,
            }
        )


def lease(
    template: TemplateArgument,
    config: ConfigOption = None,
    server: ServerOption = None,
    timeout: TimeoutOption = None,
    ttl: Annotated[str | None, typer.Option(help='How long to keep it, such as "1h".')] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take an empty task, to upload into it yourself; the pool watches it."""
    with closing(open_pool(config, server)) as pool:
        taken = pool.acquire(
            template, timeout=seconds_of(timeout), ttl=seconds_of(ttl), idempotency_key=key
        )
    if as_json:
        print_json(taken)
    else:
        print(f"lease {taken.id}")
        print(f"task  {taken.task_id}  {taken.url}")
        print(f"until {taken.expires_at:%Y-%m-%d %H:%M:%S} UTC ({taken.outcome.value})")


def release(
    lease_id: Annotated[str, typer.Argument(metavar="LEASE", help="The id of a lease.")],
    config: ConfigOption = None,
    server: ServerOption = None,
) -> None:
    """Give an untouched task back to the pool."""
    with closing(open_pool(config, server)) as pool:
        pool.release(lease_id)
