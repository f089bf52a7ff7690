"""``cvat-pool get``: files, folders and patterns on their way to job ids."""

from __future__ import annotations

import secrets
import sys
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from pool.cli.many import Many
from pool.cli.options import (
    ConfigOption,
    JsonOption,
    KeyOption,
    ServerOption,
    TemplateArgument,
    TimeoutOption,
    open_pool,
    time_left,
)
from pool.cli.output import Served, failure, hint, json_line, print_json
from pool.cli.progress import upload_progress
from pool.cli.request import await_jobs, document_of, print_jobs, served, stage_of
from pool.cli.table import printable
from pool.errors import InputError, PoolError
from pool.model import RequestRecord, RequestState

if TYPE_CHECKING:
    from pool.cli.files import File
    from pool.client import RemotePool
    from pool.config.source import Files, Progress
    from pool.handles import Lease, Request
    from pool.taskpool import TaskPool

#: Requests of --each under way at the same time, and those of them that are being sent.
IN_FLIGHT: Final = 32
AT_ONCE: Final = 4
#: Tasks of --job-size that are uploaded or imported at the same time: CVAT has two workers for
#: imports.
TASKS_IN_FLIGHT: Final = 2
#: Seconds for which one of several waits for a warm task where none may be created for it: the
#: others have taken those that there were.
PATIENCE: Final = 60.0
#: The newest requests of a template, among which those of this process are looked for.
NEWEST: Final = 500
#: Tries of one request that has failed in an earlier run.
MOST_TRIES: Final = 20


def get(
    template: TemplateArgument,
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, an archive or a video; folders, for all images in them; patterns such as "
            "'drive/**/*.jpg'; - for names on standard input.",
            show_default=False,
        ),
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
    each: Annotated[
        bool, typer.Option("--each", help="Make a request, and so a task, of each file.")
    ] = False,
    job_size: Annotated[
        int | None, typer.Option(help="Images of each job, in the order given.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="The name of the task; of several the file's name, or the task's number, follows."
        ),
    ] = None,
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
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait", help="Print the request's id once its data is sent, and not its jobs."
        ),
    ] = False,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put data into a task of the pool and print its job ids.

    All files go into one task. With --each, each goes into a task of its own. With --job-size, the
    images of folders and patterns go into as many tasks as it takes. Of both the same command, run
    again, goes on where it was.

    The time-out covers the upload and the import. An import that has begun continues after it.

    With --no-wait the data is at CVAT, or with the daemon, when the command ends, and "wait" prints
    the jobs. Without a daemon no process watches the import until then, or sets a name or an
    assignee.
    """
    from pool.cli.files import STANDARD_INPUT, divided, files_of, is_pattern

    given = list(files or ())
    divides = job_size is not None and any(
        argument == STANDARD_INPUT or is_pattern(argument) or Path(argument).is_dir()
        for argument in given
    )
    if each and job_size is not None:
        raise InputError("give one of --each and --job-size")
    if each and not given:
        raise InputError("--each is for files, folders and patterns, and none is given")
    if key is not None and (each or divides):
        raise InputError(
            "--key is for one request: those of --each and of a folder with --job-size have keys "
            "made from their files"
        )
    found = files_of(given, sys.stdin.buffer)
    wanted = Wanted(
        template=template,
        share=share or None,
        urls=url or None,
        cloud=_cloud_keys(cloud) if cloud else None,
        job_size=job_size,
        assignee=assignee,
        stream=stream,
        priority=priority,
        left=time_left(timeout),
    )
    if each or divides:
        parts = [[file] for file in found] if each else divided(found, job_size or 0)
        wanted.check(parts)
    with closing(open_pool(config, server)) as pool:
        if each or divides:
            _get_many(pool, wanted, parts, name, no_wait=no_wait, as_json=as_json)
        else:
            _get_one(pool, wanted, found or None, name, key, no_wait=no_wait, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What all requests of the command have in common."""

    template: str
    share: Sequence[str] | None
    urls: Sequence[str] | None
    cloud: tuple[int, Sequence[str]] | None
    job_size: int | None
    assignee: str | None
    stream: str | None
    priority: str | None
    #: Seconds left for all.
    left: Callable[[], float | None]

    def check(self, parts: Sequence[Files]) -> None:
        """Check the data of each request before anything is sent.

        :raises InputError: some cannot be used.
        """
        from pool.config.source import build_upload

        for part in parts:
            build_upload(
                part, share=self.share, urls=self.urls, cloud=self.cloud, job_size=self.job_size
            )

    def submit(
        self,
        pool: TaskPool | RemotePool,
        files: Files | None,
        *,
        name: str | None,
        key: str | None,
        progress: Progress | None,
        patience: float | None = None,
    ) -> Request:
        """Send the data of one request; wait ``patience`` seconds for a task if the time-out does
        not say how long."""
        left = self.left()
        return pool.submit(
            self.template,
            files,
            share=self.share,
            urls=self.urls,
            cloud=self.cloud,
            job_size=self.job_size,
            name=name,
            assignee=self.assignee,
            stream=self.stream,
            priority=self.priority,
            idempotency_key=key,
            timeout=patience if left is None else left,
            progress=progress,
        )


# --- One request ----------------------------------------------------------------------------------


def _get_one(
    pool: TaskPool | RemotePool,
    wanted: Wanted,
    files: Files | None,
    name: str | None,
    key: str | None,
    *,
    no_wait: bool,
    as_json: bool,
) -> None:
    # A daemon tells a repeated call by a key, and so this one's successor.
    own_key = key or (None if hasattr(pool, "process") else secrets.token_hex(8))
    try:
        with upload_progress() as progress:
            request = wanted.submit(pool, files, name=name, key=own_key, progress=progress)
    except KeyboardInterrupt:
        hint(f"cvat-pool: interrupted {_what_became(pool, wanted.template, own_key)}")
        raise
    if not no_wait:
        print_jobs(request, wanted.left(), pool, as_json=as_json)
        return
    if as_json:
        print_json(document_of(request))
    else:
        print(_line(request), flush=True)
    hint(f"'cvat-pool wait {request.id}' waits for its jobs")


def _line(request: Request) -> str:
    """Return the line of a request whose jobs are not awaited, its id first."""
    return f"{request.id}\t{request.url or request.record.state.value}"


def _what_became(pool: TaskPool | RemotePool, template: str, key: str | None) -> str:
    """Return what became of a request whose data was being sent, and what to do."""
    if not hasattr(pool, "process"):
        return (
            "while it was being sent: the daemon has all of it or nothing; the same command with "
            f"'--key {key}' goes on, and makes no second one"
        )
    record = next(iter(_of_this_process(pool, template)), None)
    if record is None:
        return "before anything was sent"
    if record.state in (RequestState.FAILED, RequestState.CANCELLED):
        return f"while request {record.id} was being sent: it has failed, so send it again"
    return (
        f"request {record.id}, which is {record.state.value}; 'cvat-pool wait {record.id}' goes on"
    )


def _of_this_process(
    pool: TaskPool | RemotePool, template: str, states: Collection[RequestState] = ()
) -> Iterator[RequestRecord]:
    """Iterate over the requests that this process serves itself, the newest first."""
    process = getattr(pool, "process", None)
    if process is not None:
        for request in islice(pool.requests(states=states, template=template), NEWEST):
            if request.record.owner == process.owner:
                yield request.record


# --- Many requests --------------------------------------------------------------------------------


def _get_many(
    pool: TaskPool | RemotePool,
    wanted: Wanted,
    parts: Sequence[Sequence[File]],
    name: str | None,
    *,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Make a request of each part of the files."""
    from pool.cli.files import key_of, path_of, size_of
    from pool.config.source import build_upload

    each = wanted.job_size is None
    labels = [str(path_of(part[0])) for part in parts]
    # What makes another request of the same files.
    command = (wanted.template, wanted.job_size, name, wanted.assignee, wanted.stream)
    documents: dict[int, object] = {}
    guard, copies = threading.Lock(), Counter[str]()

    def begin(number: int, progress: Progress | None) -> Request:
        part, called = parts[number], name
        if name is not None:
            # Not by how many there are, which may be more in the next run.
            called = f"{name} {build_upload(part).given[0] if each else number + 1}"
        key = key_of(command, part)
        with guard:
            copies[key] += 1
            copy = copies[key]
        return _submitted(
            lambda key: wanted.submit(
                pool, part, name=called, key=key, progress=progress, patience=PATIENCE
            ),
            # Files of the same name and bytes have a request each all the same.
            key if copy == 1 else f"{key}+{copy}",
        )

    def finish(handle: Request | Lease) -> Served:
        request = cast("Request", handle)
        if no_wait:
            return Served(lines=[_line(request)], document=document_of(request))
        jobs = await_jobs(request, wanted.left(), pool)
        return served(request, jobs, pool, settle=not each)

    def text(number: int, result: Served) -> Sequence[str]:
        if not as_json:
            name = printable(labels[number])
            return [f"{line}\t{name}" if each else line for line in result.lines]
        if each:
            return [json_line({"file": labels[number], **result.document})]
        documents[number] = result.document
        return []

    many = Many(
        labels,
        begin,
        finish,
        in_flight=IN_FLIGHT if each else TASKS_IN_FLIGHT,
        at_once=AT_ONCE if each and wanted.stream is None else 1,
        stage=lambda request: stage_of(request, pool),
        being_sent=lambda: [*_of_this_process(pool, wanted.template, [RequestState.UPLOADING])],
        sizes=[sum(map(size_of, part)) for part in parts],
        resumable=True,
    )
    failed: PoolError | None = None
    try:
        many.run(text, as_json=as_json and each)
    except PoolError as error:
        if not as_json:
            raise
        failed = error
    if as_json and not each:
        result: dict[str, object] = {
            "requests": [documents[number] for number in sorted(documents)]
        }
        print_json({**result, **({"error": failure(failed)} if failed else {})})
    if failed is not None:
        if each:
            print(json_line({"error": failure(failed)}))
        hint(f"cvat-pool: {failed}")
        raise typer.Exit(failed.exit_code)
    if no_wait:
        hint("'cvat-pool wait ID...' waits for their jobs")


def _submitted(submit: Callable[[str], Request], key: str) -> Request:
    """Submit a request under its key; under further ones where it has failed in an earlier run."""
    for tries in range(1, MOST_TRIES + 1):
        request = submit(key if tries == 1 else f"{key}-{tries}")
        if request.record.state not in (RequestState.FAILED, RequestState.CANCELLED):
            break
    return request


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
