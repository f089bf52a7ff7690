"""How long things take: the figures, and the processor that everything on the server shares."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import itertools
from dataclasses import dataclass

#: Exponent of the soft minimum in :func:`slowdown`.
SOFTNESS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """What each operation costs, in milliseconds of one processor unless the name says otherwise.

    The defaults are the medians measured on a CVAT 2.73.0 with two cores, and for the import,
    of which only sums were measured, what solves for them:

    * ``import_per_chunk_megapixel``: 36 frames of 1080p took 1588, 678 and 424 ms with a chunk
      of 36, 8 and 2 frames: 33 ms for each 2.07 megapixels of the first chunk, of which the
      caller's polling at the same time (see :func:`slowdown`) is a seventh;
    * ``import_per_frame`` and ``upload_per_megabyte``: the rest of those three, 4 ms for each
      of the 36 frames of half a megabyte, again with a seventh for the polling;
    * ``import_several_jobs`` and ``import_per_job``: imports of 20, 40 and 200 one-image jobs
      took 1.9, 2.1 and 5 times as long as an import of one;
    * ``import_base``: 133 ms from the start of an import until its request is finished;
    * ``import_completed_event``: the webhook of the request comes 55 to 75 ms after the commit,
      and its delivery alone takes half of that.
    """

    about: float = 9.0
    users_self: float = 18.0
    user_list: float = 22.0
    access_token: float = 16.0
    organization: float = 15.0
    basic_auth: float = 200.0
    login: float = 230.0
    refusal: float = 12.0

    task_create: float = 47.0
    task_create_per_label: float = 4.35
    task_get: float = 25.0
    task_list: float = 28.0
    task_list_per_row: float = 0.4
    task_patch: float = 38.0
    task_delete: float = 50.0
    #: Deleting a task takes two to three times as long as its import did.
    task_delete_per_job: float = 7.0
    #: The same where files stay on the share or in a bucket, whose imports take longer.
    task_delete_per_server_file: float = 10.0
    label_list: float = 29.0
    preview: float = 30.0
    frame: float = 40.0
    #: A frame, chunk or preview that is not cached is made by a worker, at whose end the server
    #: looks every 200 ms: time but no processor.
    first_read_wait: float = 200.0
    #: Dropping what is cached of a task: 0.2 to 0.4 s with 3 frames, 0.4 to 0.8 with 100, 1.2 to
    #: 1.5 with 400.
    drop: float = 200.0
    drop_per_frame: float = 2.5

    upload_start: float = 25.0
    upload_multiple: float = 22.0
    upload_tus: float = 18.0
    upload_per_megabyte: float = 4.0
    data_post: float = 55.0
    data_meta: float = 20.0

    job_get: float = 27.0
    job_list: float = 27.0
    job_list_per_row: float = 0.7
    job_patch: float = 42.0
    filter_per_value: float = 0.018
    annotations: float = 35.0
    #: In the background: 0.4 s for a job of 3 frames, 0.65 s for a task of 9.
    export_begin: float = 25.0
    export: float = 300.0
    export_per_frame: float = 35.0

    request_get: float = 20.0
    request_list: float = 80.0
    project_create: float = 45.0
    project_get: float = 25.0
    webhook_write: float = 25.0
    webhook_read: float = 22.0
    share: float = 15.0
    cloud_storage_create: float = 140.0
    cloud_storage_read: float = 25.0
    cloud_storage_delete: float = 40.0

    #: Waiting for the import worker's fork; costs time but no processor.
    import_fork_wait: float = 15.0
    import_base: float = 105.0
    import_per_frame: float = 1.6
    import_per_job: float = 1.2
    import_several_jobs: float = 98.0
    import_per_chunk_megapixel: float = 14.0
    #: A file that stays on the share or in a bucket; with it 50 jobs take 0.7 s and 200 take 1.6.
    import_per_server_file: float = 2.0
    import_failure: float = 20.0
    #: From the commit of the jobs until the request says ``finished``, in two steps.
    import_completed_event: float = 24.0
    import_finish: float = 16.0
    #: What the one sender of webhooks needs before each delivery; 33 were measured, while the
    #: import that causes it still finishes beside it.
    webhook_delivery: float = 28.0

    def import_work(
        self, *, frames: int, jobs: int, chunk_megapixels: float, server_files: int = 0
    ) -> float:
        """Processor time from the fork of an import until its jobs are committed."""
        return (
            self.import_base
            + self.import_per_frame * frames
            + self.import_per_job * jobs
            + (self.import_several_jobs if jobs > 1 else 0.0)
            + self.import_per_chunk_megapixel * chunk_megapixels
            + self.import_per_server_file * server_files
        )

    @classmethod
    def zero(cls) -> Timings:
        """No waiting at all: for tests of behaviour."""
        return cls(**{field.name: 0.0 for field in dataclasses.fields(cls)})

    def scaled(self, factor: float) -> Timings:
        """The same server, ``factor`` times as slow (0.1: ten times as fast)."""
        if factor < 0:
            raise ValueError("a server cannot answer before it is asked: factor must be >= 0")
        return Timings(
            **{field.name: getattr(self, field.name) * factor for field in dataclasses.fields(self)}
        )


def slowdown(demands: int, cores: int) -> float:
    """How many times longer a demand takes while ``demands`` are active on ``cores`` processors.

    Pure processor sharing is ``max(1, demands / cores)``. A server's processes also share
    locks, caches and the database, so the corner is rounded: a third-power mean of the two,
    normalised to 1 for a single demand. With 1, 2, 3 and 5 demands on two cores (an upload
    among 0, 1, 2 and 4 clients that create tasks all the time) that gives 1, 1.21, 1.57 and
    2.45, where 1, 1.19, 1.59 and 2.35 were measured; the sharp corner gives 1, 1, 1.5 and 2.5.
    """
    share = demands / cores
    alone = 1.0 / cores
    return float(((1.0 + share**SOFTNESS) / (1.0 + alone**SOFTNESS)) ** (1.0 / SOFTNESS))


class Processor:
    """``cores`` processors shared evenly by all that is active.

    Every demand advances at the same speed, so one running total of "work done for each demand"
    is enough: a demand ends when the total reaches the value it had on arrival plus the demand.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._done = 0.0
        self._updated = 0.0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def demands(self) -> int:
        """How many demands are active now."""
        return len(self._waiting)

    async def use(self, milliseconds: float) -> None:
        """Return when ``milliseconds`` of processor time have been had."""
        if milliseconds <= 0:
            return
        loop = asyncio.get_running_loop()
        self._advance(loop.time())
        future: asyncio.Future[None] = loop.create_future()
        entry = (self._done + milliseconds, next(self._order), future)
        heapq.heappush(self._waiting, entry)
        self._set_timer(loop)
        try:
            await future
        except asyncio.CancelledError:
            self._forget(entry)
            raise

    def _advance(self, now: float) -> None:
        if self._waiting:
            elapsed = (now - self._updated) * 1000.0
            self._done += elapsed / slowdown(len(self._waiting), self._cores)
        self._updated = now

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            left = max(0.0, self._waiting[0][0] - self._done)
            seconds = left * slowdown(len(self._waiting), self._cores) / 1000.0
            self._timer = loop.call_later(seconds, self._wake, loop)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        self._advance(loop.time())
        # A hair of tolerance: the loop's clock and our sums round differently.
        while self._waiting and self._waiting[0][0] <= self._done + 0.01:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
        self._set_timer(loop)

    def _forget(self, entry: tuple[float, int, asyncio.Future[None]]) -> None:
        if entry in self._waiting:
            loop = asyncio.get_running_loop()
            self._advance(loop.time())
            self._waiting.remove(entry)
            heapq.heapify(self._waiting)
            self._set_timer(loop)
