"""``cvat-pool get``, ``cancel`` and ``erase``: requests; ``lease`` and ``release``: empty tasks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
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
from pool.cli.output import print_json
from pool.cli.progress import upload_progress, wait_for_jobs
from pool.clock import SystemClock
from pool.errors import InputError, PoolError, TooLate
from pool.model import Hidden, Placed, RequestState

if TYPE_CHECKING:
    from pool.client import RemotePool
    from pool.config.source import Files
    from pool.handles import Lease, Request
    from pool.model import Job, RequestWarning
    from pool.taskpool import TaskPool

#: Seconds to wait for the name and the assignee, which are set after the job ids are known.
SETTLE = 5.0


def get(
    template: TemplateArgument,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Images, an archive or a video; folders with --job-size."),
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
        typer.Option(help="STORAGE_ID:KEY in a cloud storage of CVAT; may be repeated."),
    ] = None,
    job_size: Annotated[
        int | None, typer.Option(help="Images of each job, in the order given.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The name of the task.")] = None,
    assignee: Annotated[
        str | None, typer.Option(help="Name or id of the user to assign the jobs to.")
    ] = None,
    stream: Annotated[
        str | None,
        typer.Option(help="The stream that it belongs to, whose requests share a task."),
    ] = None,
    priority: Annotated[
        str | None,
        typer.Option(help="interactive, normal or bulk; by default the template's."),
    ] = None,
    timeout: TimeoutOption = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put data into a task of the pool and print its job ids.

    With --job-size, the images of folders go into as many tasks as it takes: the same command, run
    again, goes on where it was.

    The time-out covers the upload and the import. An import that has begun continues after it.
    """
    clock, patience = SystemClock(), seconds_of("--timeout", timeout)
    began = clock.monotonic()

    def remaining() -> float | None:
        return None if patience is None else max(0.0, patience - (clock.monotonic() - began))

    folders = [path for path in files or () if path.is_dir()]
    if folders and job_size is None:
        raise InputError(f"{folders[0]}: is a folder; name the files in it, or give --job-size")
    if folders and key is not None:
        raise InputError("--key is for one task: those of a folder have keys made from their files")
    served: list[dict[str, object]] = []

    def finish(request: Request) -> None:
        jobs = wait_for_jobs(request, remaining())
        if not as_json:
            for job in jobs:
                # The id first, so that ``cut -f1`` has the ids.
                print(f"{job.id}\t{job.url}\tframes {job.start_frame}-{job.stop_frame}", flush=True)
        if request.no_slot:
            print(f"Note: it is in no slot: {request.no_slot}", file=sys.stderr, flush=True)
        warnings = _warnings_of(request, pool)
        for warning in warnings:
            print(f"Warning: {warning.text} ({warning.code})", file=sys.stderr, flush=True)
        served.append(
            {
                "request_id": request.id,
                "task_id": request.task_id,
                "url": request.url,
                "template": request.template,
                "outcome": request.outcome,
                "placed": request.placed,
                "no_slot": request.no_slot or None,
                "stream": request.stream,
                "jobs": jobs,
                "frames": request.frames,
                "warnings": warnings,
            }
        )

    def submit(files: Files | None, key: str | None, name: str | None) -> Request:
        with upload_progress() as progress:
            return pool.submit(
                template,
                files,
                share=share or None,
                urls=url or None,
                cloud=_cloud_keys(cloud) if cloud else None,
                job_size=job_size,
                name=name,
                assignee=assignee,
                stream=stream,
                priority=priority,
                idempotency_key=key,
                timeout=remaining(),
                progress=progress,
            )

    with closing(open_pool(config, server)) as pool:
        if not folders:
            finish(submit(files or None, key, name))
        elif job_size is not None:
            from pool.cli.folder import divided, files_of, key_of, upload_all

            tasks = divided(files_of(files or ()), job_size)
            try:
                upload_all(
                    tasks,
                    lambda files: key_of(template, job_size, files),
                    # Without how many there are, which may be more in the next run.
                    lambda number, files, key: submit(files, key, name and f"{name} {number}"),
                    finish,
                )
            finally:
                if as_json:
                    print_json({"requests": served})
    if as_json and not folders:
        print_json(served[0])


def _warnings_of(request: Request, pool: TaskPool | RemotePool) -> tuple[RequestWarning, ...]:
    """Return the warnings of a request whose jobs exist. Where this process has served it, wait for
    its name and assignee first, :data:`SETTLE` seconds at most."""
    if (process := getattr(pool, "process", None)) is not None:
        process.settle(SETTLE)
    try:
        return request.warnings
    except PoolError:
        # The job ids are printed: the command has succeeded.
        return ()


def _cloud_keys(texts: Sequence[str]) -> tuple[int, list[str]]:
    """Return the storage and the keys of texts of the form ``STORAGE_ID:KEY``.

    :raises InputError: a text has another form, or they name several storages.
    """
    storages: set[int] = set()
    keys = []
    for text in texts:
        storage, colon, key = text.partition(":")
        if not (colon and key and storage.isdecimal()):
            raise InputError(f"--cloud {text!r}: give STORAGE_ID:KEY, such as 3:cam1/a.jpg")
        storages.add(int(storage))
        keys.append(key)
    if len(storages) != 1:
        raise InputError("--cloud: all keys of a request must be in one storage")
    return storages.pop(), keys


def lease(
    template: TemplateArgument,
    config: ConfigOption = None,
    server: ServerOption = None,
    timeout: TimeoutOption = None,
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
        )
        jobs = _jobs_now(taken)
    if as_json:
        fields = ("id", "name", "task_id", "task_name", "url", "template", "outcome", "expires_at")
        print_json({**{name: getattr(taken, name) for name in fields}, "jobs": jobs})
    else:
        print(f"lease {taken.id}")
        print(f"task  {taken.task_id}  {taken.url}")
        for job in jobs or ():
            print(f"job   {job.id}  {job.url}")
        print(f"until {taken.expires_at:%Y-%m-%d %H:%M:%S} UTC ({taken.outcome.value})")


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
) -> None:
    """Give an untouched task back to the pool."""
    with closing(open_pool(config, server)) as pool:
        pool.release(lease_id)


RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST", help="The id of a request.")]


def cancel(
    request_id: RequestArgument,
    hide: Annotated[
        bool, typer.Option("--hide", help="Hide its frames where it is too late for that.")
    ] = False,
    config: ConfigOption = None,
    server: ServerOption = None,
) -> None:
    """Cancel a request that is still queued.

    With --hide, one that is on its way or ready has its frames hidden, as by "erase".
    """
    with closing(open_pool(config, server)) as pool:
        request = pool.request(request_id)
        if not request.cancel(hide=hide) and request.state is not RequestState.CANCELLED:
            raise TooLate(f"request {request_id} is {request.record.state.value}")
        _say_what_stays(request)


def erase(
    request_id: RequestArgument, config: ConfigOption = None, server: ServerOption = None
) -> None:
    """Hide the frames of a request in CVAT, and say what stays there.

    One that is queued is cancelled; one that is on its way is hidden as soon as its frames exist.
    """
    with closing(open_pool(config, server)) as pool:
        _say_what_stays(pool.erase(request_id))


def _say_what_stays(request: Request) -> None:
    """Print what became of a request that its caller wants no more."""
    record = request.refresh()
    if record.state is RequestState.CANCELLED:
        print(f"request {record.id} is cancelled")
        return
    hidden = "are hidden" if request.hidden is Hidden.DONE else "will be hidden"
    if record.placed is Placed.SLOT:
        stays = "their files hold the placeholder again once they are"
    else:
        stays = f"their bytes stay in CVAT until task {record.task_id} is deleted"
    print(f"the frames of request {record.id} {hidden}; {stays}")
