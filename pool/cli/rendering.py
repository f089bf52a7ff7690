"""How the command line shows things: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.errors import InputError, PoolError, WaitTimeout
from pool.model import Job, RequestWarning

if TYPE_CHECKING:
    from pool.check import CheckResult
    from pool.client import RemotePool
    from pool.cvat.records import Progress
    from pool.handles import Request
    from pool.taskpool import TaskPool

#: Bytes from which an upload is worth a progress bar.
WORTH_A_BAR = 2**20
#: Seconds after which a wait for jobs is worth a word.
WORTH_A_SPINNER = 0.5
#: Seconds to wait for what is done after the job ids are out.
SETTLE = 5.0


def to_json(value: Any) -> str:
    """JSON of records: times as ISO 8601, states by their values, private fields left out."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if not field.name.startswith("_")
        }
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return value


def print_jobs(jobs: Sequence[Job]) -> None:
    """One line a job: its id first, so that ``cut -f1`` has the ids."""
    for job in jobs:
        print(f"{job.id}\t{job.url}\tframes {job.start_frame}-{job.stop_frame}", flush=True)


def warnings_of(request: Request, pool: TaskPool | RemotePool) -> tuple[RequestWarning, ...]:
    """The warnings of a request whose jobs exist: those known by now, or, where this process has
    served it, once it has named and assigned the task, which it does before it ends anyway."""
    if (engine := getattr(pool, "engine", None)) is not None:
        engine.settle(SETTLE)
    try:
        return request.warnings
    except PoolError:
        # The job ids are out, and that is what counts.
        return ()


def print_warnings(warnings: Sequence[RequestWarning]) -> None:
    """One line a warning, on standard error."""
    for warning in warnings:
        print(f"Warning: {warning.text} ({warning.code})", file=sys.stderr, flush=True)


def print_check(result: CheckResult) -> None:
    """One line for one check, and one for each of its warnings."""
    mark = "ok  " if result.ok else "FAIL"
    print(f"{mark}  {result.name}: {result.words}", flush=True)
    for warning in result.warnings:
        print(f"warn  {warning}", flush=True)


def cloud_keys(texts: Sequence[str]) -> tuple[int, list[str]]:
    """From ``STORAGE_ID:KEY`` to the storage and its keys.

    :raises InputError: not of that form, or of several storages.
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
        raise InputError("--cloud: all keys of a request are in one storage")
    return storages.pop(), keys


@contextmanager
def upload_progress() -> Iterator[Progress | None]:
    """A progress bar on standard error for a long upload, if a person looks on.

    It stays on the screen when the upload is over, with the time that it took.
    """
    if not sys.stderr.isatty():
        yield None
        return
    bar = _UploadBar()
    try:
        yield bar.show
    finally:
        bar.stop()


class _UploadBar:
    """A bar that appears with the first call that is worth one."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._row: Any = None
        self._shown = 0

    def show(self, sent: int, total: int) -> None:
        if total < WORTH_A_BAR:
            return
        if self._bar is None:
            self._bar = self._begin()
            self._row = self._bar.add_task("uploading", total=total)
        if sent < self._shown:
            # The connection was cut, so all of it goes to another task.
            self._bar.reset(self._row, total=total, description="once more")
        self._shown = sent
        self._bar.update(self._row, completed=sent)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _begin(self) -> Any:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=Console(stderr=True),
        )
        bar.start()
        return bar


def wait_for_jobs(request: Request, timeout: float | None) -> Sequence[Job]:
    """The jobs of a request; a person who looks on sees that they are waited for.

    :raises WaitTimeout: as :meth:`pool.Request.jobs`, after ``timeout`` seconds.
    """
    if not sys.stderr.isatty() or (timeout is not None and timeout <= WORTH_A_SPINNER):
        return request.jobs(timeout=timeout)
    try:
        return request.jobs(timeout=WORTH_A_SPINNER)
    except WaitTimeout:
        pass
    from rich.console import Console

    with Console(stderr=True).status("importing…"):
        return request.jobs(timeout=None if timeout is None else timeout - WORTH_A_SPINNER)
