"""``cvat-pool wait``, ``cancel`` and ``erase``, and how requests and their jobs are printed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from pool.cli.lease import lease_document
from pool.cli.many import Many
from pool.cli.options import (
    ConfigOption,
    JsonOption,
    ServerOption,
    TimeoutOption,
    open_pool,
    time_left,
)
from pool.cli.output import Served, done, hint, json_line, print_json
from pool.cli.progress import wait_for_jobs
from pool.errors import PoolError, TooLate, UnknownLease, UnknownRequest, WaitTimeout
from pool.model import Hidden, Placed, RequestState

if TYPE_CHECKING:
    from pool.client import RemotePool
    from pool.handles import Lease, Request
    from pool.model import Job, RequestWarning
    from pool.taskpool import TaskPool

#: Requests that are awaited at the same time.
MOST_AWAITED = 32
#: Seconds to wait for the name and the assignee, which are set after the job ids are known.
SETTLE = 5.0

RequestArgument = Annotated[str, typer.Argument(metavar="REQUEST", help="The id of a request.")]


def wait(
    ids: Annotated[list[str], typer.Argument(metavar="ID", help="Ids of requests, or of leases.")],
    config: ConfigOption = None,
    server: ServerOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait for the jobs of requests or leases, and print them as "get" does.

    Of several, each is printed as soon as it is ready, with --json as a line.
    """
    left = time_left(timeout)
    with closing(open_pool(config, server)) as pool:
        if len(ids) == 1:
            print_jobs(_request_or_lease(pool, ids[0]), left(), pool, as_json=as_json)
            return

        def text(_: int, result: Served) -> Sequence[str]:
            return [json_line(result.document)] if as_json else result.lines

        Many(
            ids,
            lambda number, _: _request_or_lease(pool, ids[number]),
            lambda handle: served(handle, await_jobs(handle, left(), pool), pool, settle=False),
            in_flight=MOST_AWAITED,
            at_once=MOST_AWAITED,
            stage=lambda handle: stage_of(handle, pool),
        ).run(text, as_json=as_json)


def cancel(
    request_id: RequestArgument,
    hide: Annotated[
        bool, typer.Option("--hide", help="Hide its frames where it is too late for that.")
    ] = False,
    config: ConfigOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a request that is still queued.

    With --hide, one that is on its way or ready has its frames hidden, as by "erase".
    """
    with closing(open_pool(config, server)) as pool:
        request = _request(pool, request_id)
        if not request.cancel(hide=hide) and request.state is not RequestState.CANCELLED:
            state = request.record.state
            hint = "" if state is RequestState.FAILED else "; 'cvat-pool erase' hides its frames"
            raise TooLate(f"request {request_id} is {state.value}{hint}")
        _print_what_stays(request, as_json=as_json)


def erase(
    request_id: RequestArgument,
    config: ConfigOption = None,
    server: ServerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hide the frames of a request in CVAT, and say what stays there.

    One that is queued is cancelled; one that is on its way is hidden as soon as its frames exist.
    """
    with closing(open_pool(config, server)) as pool:
        _request(pool, request_id)
        _print_what_stays(pool.erase(request_id), as_json=as_json)


def _print_what_stays(request: Request, *, as_json: bool) -> None:
    """Print what became of a request that its caller wants no more."""
    record = request.refresh()
    cancelled = record.state is RequestState.CANCELLED
    hidden = None if cancelled else request.hidden
    if cancelled:
        words = f"cancelled {record.id}"
    else:
        hides = "hid" if hidden is Hidden.DONE else "will hide"
        if record.placed is Placed.SLOT:
            stays = "the files hold the placeholder again then"
        else:
            stays = f"their bytes stay in CVAT until task {record.task_id} is deleted"
        words = f"{hides} the frames of {record.id}; {stays}"
    document = {
        "request_id": record.id,
        "state": record.state,
        "hidden": hidden,
        "task_id": record.task_id,
        "url": request.url,
    }
    done(words, document, as_json=as_json)


def _request(pool: TaskPool | RemotePool, request_id: str) -> Request:
    try:
        return pool.request(request_id)
    except UnknownRequest:
        raise UnknownRequest(f"{request_id}; 'cvat-pool requests' lists them") from None


def _request_or_lease(pool: TaskPool | RemotePool, given: str) -> Request | Lease:
    try:
        return pool.request(given)
    except UnknownRequest:
        pass
    try:
        return pool.lease(given)
    except UnknownLease:
        known = "nor is it a lease; 'cvat-pool requests' and 'cvat-pool leases' list them"
        raise UnknownRequest(f"{given}, {known}") from None


# --- The jobs of a request ------------------------------------------------------------------------


def print_jobs(
    handle: Request | Lease, timeout: float | None, pool: TaskPool | RemotePool, *, as_json: bool
) -> None:
    """Wait for the jobs of one request or lease, and print them; a person sees what it waits for.

    :raises PoolError: as :func:`await_jobs`.
    """
    try:
        jobs = await_jobs(handle, timeout, pool, shown=True)
    except KeyboardInterrupt:
        # What is known of it: to ask now may take long.
        state = getattr(getattr(handle, "record", None), "state", None)
        is_in = f", which is {state.value}" if state is not None else ""
        hint(
            f"cvat-pool: interrupted: {_called(handle)}{is_in}; 'cvat-pool wait {handle.id}' goes "
            "on"
        )
        raise
    if not as_json:
        # At once: the name and the assignee may take seconds.
        for line in _lines(jobs):
            print(line, flush=True)
    result = served(handle, jobs, pool, settle=True)
    if as_json:
        print_json(result.document)
    for note in result.notes:
        hint(note)


def await_jobs(
    handle: Request | Lease,
    timeout: float | None,
    pool: TaskPool | RemotePool,
    *,
    shown: bool = False,
) -> Sequence[Job]:
    """Wait for the jobs of a request or a lease, ``timeout`` seconds at most. Where it is ``shown``
    a person sees what it waits for.

    :raises WaitTimeout: there are none in time; the message says what it waits for.
    :raises PoolError: as :meth:`pool.Request.jobs`.
    """
    try:
        return wait_for_jobs(handle, timeout, lambda: stage_of(handle, pool), shown=shown)
    except WaitTimeout:
        raise WaitTimeout(
            f"{_called(handle)} is {stage_of(handle, pool)}; 'cvat-pool wait {handle.id}' goes on"
        ) from None


def served(
    handle: Request | Lease, jobs: Sequence[Job], pool: TaskPool | RemotePool, *, settle: bool
) -> Served:
    """Return a request or a lease, whose jobs exist, as it is printed; to ``settle`` is to wait for
    its name and its assignee."""
    from pool.handles import Lease

    if isinstance(handle, Lease):
        return Served(lines=_lines(jobs), document=lease_document(handle, jobs))
    warnings = _warnings_of(handle, pool, settle=settle)
    notes = [f"Note: it is in no slot: {handle.no_slot}"] if handle.no_slot else []
    notes += [f"Warning: {warning.text} ({warning.code})" for warning in warnings]
    return Served(lines=_lines(jobs), document=document_of(handle, jobs, warnings), notes=notes)


def _lines(jobs: Sequence[Job]) -> list[str]:
    return [f"{job.id}\t{job.url}\tframes {job.start_frame}-{job.stop_frame}" for job in jobs]


def _called(handle: Request | Lease) -> str:
    from pool.handles import Lease

    return f"{'lease' if isinstance(handle, Lease) else 'request'} {handle.id}"


def document_of(
    request: Request, jobs: Sequence[Job] | None = None, warnings: Sequence[RequestWarning] = ()
) -> dict[str, object]:
    """Return a request for ``--json``; without ``jobs`` they are not known yet."""
    return {
        "request_id": request.id,
        "state": request.record.state,
        "task_id": request.task_id,
        "url": request.url,
        "template": request.template,
        "outcome": request.outcome,
        "placed": request.placed,
        "no_slot": request.no_slot or None,
        "stream": request.stream,
        "jobs": jobs,
        "frames": request.record.frames,
        "warnings": warnings,
    }


def stage_of(handle: Request | Lease, pool: TaskPool | RemotePool) -> str:
    """Return what a request or a lease waits for, in words that follow "is"."""
    from pool.handles import Lease
    from pool.observability.status import waiting_words

    if isinstance(handle, Lease):
        return "waiting for its data to be imported"
    try:
        state = handle.state
        if state is RequestState.QUEUED and handle.record.data_away:
            return f"waiting: {handle.record.data_away}"
        if state is RequestState.QUEUED:
            return waiting_words(pool.status(), handle.template)
    except PoolError:
        # Best effort: the wait itself reports the failure.
        state = handle.record.state
    return state.value


def _warnings_of(
    request: Request, pool: TaskPool | RemotePool, *, settle: bool
) -> tuple[RequestWarning, ...]:
    """Return the warnings of a request whose jobs exist; where it is to ``settle`` and this process
    has served it, wait for its name and assignee first, :data:`SETTLE` seconds at most."""
    if settle and (process := getattr(pool, "process", None)) is not None:
        process.settle(SETTLE)
    try:
        return request.warnings
    except PoolError:
        # The job ids are known: the command has succeeded.
        return ()
