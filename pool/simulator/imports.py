"""The import workers: a queue, and what makes jobs out of uploaded files."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

from .call import Call
from .data_params import DataParams
from .media import ImportFailed, validation_error
from .records import Data, ImportRequest, Job, Task
from .requests_api import request_id
from .segments import Segments, check_count, check_mapping, divide
from .sources import Media, read_media
from .state import now

if TYPE_CHECKING:
    from .simulator import Simulator

logger = logging.getLogger(__name__)

#: A failed request is kept for a year.
FAILED_RESULT_TTL = timedelta(days=365)
#: Up to so many files are read on the loop: handing them to a thread would take longer.
FEW_FILES = 4
PIXELS_PER_MEGAPIXEL = 1_000_000


class Gate:
    """A place where imports can be held up, so that a test sees what is between two states."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def pass_through(self) -> None:
        await self._open.wait()


class Imports:
    """The queue of imports and the workers on it."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        settings = simulator.settings
        self._timings = settings.timings
        self._rng = random.Random(settings.seed)
        self._queue: deque[ImportRequest] = deque()
        self._something = asyncio.Event()
        #: Before a worker takes a request (``queued``), and once it is ``started``.
        self.gates = {"queued": Gate(), "started": Gate()}

    @property
    def waiting(self) -> int:
        """Imports that no worker has taken yet."""
        return len(self._queue)

    def put(self, call: Call, task: Task, params: DataParams) -> ImportRequest:
        """Queue the import of a task's data."""
        request = ImportRequest(
            id=request_id(task.id),
            task_id=task.id,
            owner=call.user,
            project_id=task.project.id if task.project else None,
            organization=task.organization,
            created=now(),
            params=params,
            base_url=call.base_url,
        )
        self._simulator.state.requests[request.id] = request
        times = self._simulator.stats.times(task.id)
        times.received_at = call.received_at
        self._queue.append(request)
        self._simulator.busy(1)
        self._something.set()
        return request

    def cancel(self, request: ImportRequest) -> None:
        """Take a request that is still queued out of the queue and forget it."""
        self._queue.remove(request)
        del self._simulator.state.requests[request.id]
        self._simulator.busy(-1)

    async def work(self) -> None:
        """Be one worker, for ever."""
        while True:
            await self.gates["queued"].pass_through()
            if not self._queue:
                self._something.clear()
                await self._something.wait()
                continue
            request = self._queue.popleft()
            try:
                await self._run(request)
            finally:
                self._simulator.busy(-1)

    async def _run(self, request: ImportRequest) -> None:
        request.status = "started"
        request.started = now()
        times = self._simulator.stats.times(request.task_id)
        times.started_at = self._simulator.clock()
        if self._timings.import_fork_wait > 0:
            await asyncio.sleep(self._timings.import_fork_wait / 1000.0)
        try:
            task = self._task_of(request)
            async with task.lock:
                task = self._task_of(request)
                await self.gates["started"].pass_through()
                try:
                    await self._import(request, task)
                except ImportFailed:
                    await self._simulator.processor.use(self._timings.import_failure)
                    raise
        except ImportFailed as failure:
            self._fail(request, str(failure))
        except Exception as error:
            # Whatever else a file can do to Pillow: a failed import, not the end of the worker.
            logger.info("the import of task %d failed", request.task_id, exc_info=True)
            kind = type(error)
            self._fail(request, f"{kind.__module__}.{kind.__qualname__}: {error}\n")
        else:
            await self._finish(request)

    def _task_of(self, request: ImportRequest) -> Task:
        task = self._simulator.state.tasks.get(request.task_id)
        if task is None:
            raise ImportFailed(
                "cvat.apps.engine.models.Task.DoesNotExist: Task matching query does not exist.\n"
            )
        return task

    async def _import(self, request: ImportRequest, task: Task) -> None:
        data = task.data
        if data is None:
            raise validation_error("Task has no source media info")
        params: DataParams = request.params
        check_mapping(task, params)
        media = await self._read(data, params)
        segments = divide(
            media.size,
            task.segment_size,
            task.overlap,
            mode=media.mode,
            mapping=params.job_file_mapping,
        )
        jobs = len(segments.ranges) * (task.consensus_replicas + 1)
        check_count(jobs, self._simulator.settings.max_jobs_per_task)
        cost = self._cost(media, segments, jobs) * self._luck()
        await self._simulator.processor.use(cost)
        self._commit(request, task, data, media, segments)

    async def _read(self, data: Data, params: DataParams) -> Media:
        settings = self._simulator.settings
        arguments = (data, params, self._simulator.share, settings.remote_timeout, self._rng)
        if not data.remote_files and not data.server_files and _is_little(data):
            return read_media(*arguments)
        return await asyncio.to_thread(read_media, *arguments)

    def _cost(self, media: Media, segments: Segments, jobs: int) -> float:
        """Milliseconds of processor: the preview encodes the first chunk of the first job."""
        start, stop = segments.ranges[0]
        chunk = min(media.chunk_size, stop - start + 1)
        if media.mode == "annotation":
            pixels = sum(frame.width * frame.height for frame in media.frames[:chunk])
        else:
            pixels = chunk * media.frames[0].width * media.frames[0].height
        timings = self._timings
        return (
            timings.import_base
            + timings.import_per_frame * media.read
            + timings.import_per_job * jobs
            + timings.import_per_chunk_megapixel * pixels / PIXELS_PER_MEGAPIXEL
        )

    def _luck(self) -> float:
        settings = self._simulator.settings
        factor = self._rng.lognormvariate(0.0, settings.import_jitter)
        return factor * 2.0 if self._rng.random() < settings.slow_import_rate else factor

    def _commit(
        self, request: ImportRequest, task: Task, data: Data, media: Media, segments: Segments
    ) -> None:
        """Make the jobs visible, all at once, and tell the webhooks."""
        state, events, moment = self._simulator.state, self._simulator.events, now()
        before = events.snapshot(task)
        data.size, data.frames, data.chunk_size = media.size, media.frames, media.chunk_size
        data.chunks_updated = moment
        if media.storage == "local":
            data.storage = "local"
        last = data.start_frame + (media.size - 1) * request.params.frame_step
        data.stop_frame = min(data.stop_frame, last) if data.stop_frame else last
        if media.mode == "interpolation":
            data.original_chunk_type = "video"
            data.compressed_chunk_type = "imageset" if request.params.use_zip_chunks else "video"
        task.mode, task.dimension, task.media_type = media.mode, "2d", "image"
        task.segment_size, task.overlap = segments.segment_size, segments.overlap
        for start, stop in segments.ranges:
            parent = self._add_job(task, start, stop)
            parent.replicas_count = task.consensus_replicas
            for _ in range(task.consensus_replicas):
                replica = self._add_job(task, start, stop)
                replica.type, replica.parent_job_id = "consensus_replica", parent.id
        self._simulator.stats.times(task.id).committed_at = self._simulator.clock()
        for job in state.jobs_of(task):
            events.job_created(job, request.owner)
        # Two saves of the task's row: one for what the import found, one that only touches it.
        task.updated = moment
        events.task_imported(task, before, request.owner)
        before = events.snapshot(task)
        task.updated = now()
        events.task_imported(task, before, request.owner)

    def _add_job(self, task: Task, start: int, stop: int) -> Job:
        moment = now()
        job = Job(
            id=next(self._simulator.state.ids.job),
            task=task,
            start_frame=start,
            stop_frame=stop,
            created=moment,
            updated=moment,
        )
        self._simulator.state.jobs[job.id] = job
        task.job_ids.append(job.id)
        return job

    async def _finish(self, request: ImportRequest) -> None:
        """What the worker does after the commit: the request is ``finished`` only then."""
        processor = self._simulator.processor
        await processor.use(self._timings.import_completed_event)
        request.finished = now()
        ttl = timedelta(seconds=self._simulator.settings.request_result_ttl)
        request.expires = request.finished + ttl
        self._simulator.events.request_completed(request, status="finished")
        await processor.use(self._timings.import_finish)
        request.status = "finished"
        self._simulator.stats.times(request.task_id).finished_at = self._simulator.clock()

    def _fail(self, request: ImportRequest, message: str) -> None:
        request.status = "failed"
        request.message = message
        request.finished = now()
        request.expires = request.finished + FAILED_RESULT_TTL
        times = self._simulator.stats.times(request.task_id)
        times.finished_at, times.failed = self._simulator.clock(), True
        self._simulator.events.request_completed(request, status="failed")


def _is_little(data: Data) -> bool:
    names = list(data.client_files)
    return len(names) <= FEW_FILES and not any(
        name.lower().endswith((".zip", ".tar", ".gz", ".tgz")) for name in names
    )
