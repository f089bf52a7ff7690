"""The import workers: a queue, and what makes jobs out of uploaded files."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from datetime import timedelta

from .data_params import DataParams
from .events import Events
from .fault_table import Active, Faults
from .faults import DeadWorker, FailedImport, HungImport, ImportFault, SlowImport
from .machine import Machine
from .media import ImportFailed, kind_of, validation_error
from .pictures import Pictures
from .records import Data, ImportRequest, Job, Layout, Task, request_id
from .segments import Segments, check_count, check_params, lay_out
from .sources import Media, read_media
from .state import Caller

logger = logging.getLogger(__name__)

#: A failed request is kept for a year.
FAILED_RESULT_TTL = timedelta(days=365)
#: What rq says of a job whose worker has not been heard of for too long.
ABANDONED = "Moved to FailedJobRegistry, due to AbandonedJobError, at {}"
#: Up to so many files are read on the loop: handing them to a thread would take longer.
FEW_FILES = 4
PIXELS_PER_MEGAPIXEL = 1_000_000


class WorkerDied(Exception):
    """The worker's process is gone, and with it the import: a fault."""

    def __init__(self, fault: DeadWorker) -> None:
        super().__init__(fault.message)
        self.fault = fault


class Imports:
    """The queue of imports and the workers on it."""

    def __init__(self, machine: Machine, events: Events, faults: Faults) -> None:
        self._machine = machine
        self._events = events
        self._faults = faults
        settings = machine.settings
        self._timings = settings.timings
        self._rng = random.Random(settings.seed)
        self._queue: deque[ImportRequest] = deque()
        self._something = asyncio.Event()
        #: Those that workers have now, and those that a fault keeps from them.
        self._started: list[ImportRequest] = []
        self._held: dict[str, ImportRequest] = {}
        self._interrupted: list[ImportRequest] = []
        #: Before a worker takes a request (``queued``), and once it is ``started``: cleared by
        #: tests that look at what is between two states.
        self.may_be = {"queued": asyncio.Event(), "started": asyncio.Event()}
        for allowed in self.may_be.values():
            allowed.set()

    @property
    def waiting(self) -> int:
        """Imports that no worker has taken yet."""
        return len(self._queue) + len(self._held)

    def put(
        self, caller: Caller, task: Task, params: DataParams, received_at: float
    ) -> ImportRequest:
        """Queue the import of a task's data."""
        request = self._new_request(caller, task, params)
        times = self._machine.stats.times(task.id)
        times.received_at = received_at
        self._queue.append(request)
        self._machine.busy(1)
        self._something.set()
        return request

    def _new_request(self, caller: Caller, task: Task, params: DataParams) -> ImportRequest:
        request = ImportRequest(
            id=request_id(task.id),
            task_id=task.id,
            owner=caller.user,
            project_id=task.project.id if task.project else None,
            organization=task.organization,
            created=self._machine.state.now(),
            params=params,
            base_url=caller.base_url,
        )
        self._machine.state.requests[request.id] = request
        return request

    def cancel(self, request: ImportRequest) -> None:
        """Take a request that is still queued out of the queue and forget it."""
        if self._held.pop(request.id, None) is None:
            self._queue.remove(request)
        del self._machine.state.requests[request.id]
        self._machine.busy(-1)

    async def work(self) -> None:
        """Be one worker, for ever."""
        while True:
            await self.may_be["queued"].wait()
            if not self._queue:
                self._something.clear()
                await self._something.wait()
                continue
            request = self._queue.popleft()
            faults = self._faults_of(request)
            if self._hold(request, faults):
                continue
            self._started.append(request)
            try:
                await self._run(request, faults)
            finally:
                self._started.remove(request)
                self._machine.busy(-1)

    def _faults_of(self, request: ImportRequest) -> list[Active[ImportFault]]:
        task = self._machine.state.tasks.get(request.task_id)
        return self._faults.firing(ImportFault, task.name) if task else []

    def _hold(self, request: ImportRequest, faults: list[Active[ImportFault]]) -> bool:
        """Keep a request queued if a fault says so, until that fault is removed."""
        for active in faults:
            if isinstance(active.fault, HungImport) and active.fault.at == "queued":
                self._held[request.id] = request
                active.when_released(lambda: self._let_go(request))
                return True
        return False

    def _let_go(self, request: ImportRequest) -> None:
        if self._held.get(request.id) is request:
            del self._held[request.id]
            self._queue.append(request)
            self._something.set()

    async def _run(self, request: ImportRequest, faults: list[Active[ImportFault]]) -> None:
        request.status = "started"
        request.started = self._machine.state.now()
        times = self._machine.stats.times(request.task_id)
        times.started_at = self._machine.clock()
        if self._timings.import_fork_wait > 0:
            await asyncio.sleep(self._timings.import_fork_wait / 1000.0)
        try:
            slower = await self._disturb(faults)
            task = self._task_of(request)
            async with task.lock:
                task = self._task_of(request)
                await self.may_be["started"].wait()
                try:
                    _fail_early(faults)
                    await self._import(request, task, slower)
                except ImportFailed:
                    await self._machine.processor.use(self._timings.import_failure)
                    raise
            _die(faults, "after")
        except WorkerDied as death:
            self._lose(request, death.fault)
        except ImportFailed as failure:
            self._fail(request, str(failure))
        except Exception as error:
            # Whatever else a file can do to Pillow: a failed import, not the end of the worker.
            logger.info("the import of task %d failed", request.task_id, exc_info=True)
            kind = type(error)
            self._fail(request, f"{kind.__module__}.{kind.__qualname__}: {error}\n")
        else:
            await self._finish(request)

    async def _disturb(self, faults: list[Active[ImportFault]]) -> float:
        """Hold a started import up as its faults say, before it locks its task's row.

        Returns how many times longer the rest is to take.
        """
        slower = 1.0
        for active in faults:
            match active.fault:
                case HungImport():
                    await active.released.wait()
                case SlowImport(factor=factor, seconds=seconds, to=to):
                    slower *= factor
                    await self._faults.pause(active.seconds(seconds, to))
        return slower

    def _lose(self, request: ImportRequest, death: DeadWorker) -> None:
        """Leave of a request what a dead worker leaves of it."""
        if death.request == "failed":
            self._fail(request, death.message)
        elif self._machine.state.requests.get(request.id) is request:
            del self._machine.state.requests[request.id]

    def _task_of(self, request: ImportRequest) -> Task:
        task = self._machine.state.tasks.get(request.task_id)
        if task is None or request.is_early:
            raise ImportFailed(
                "cvat.apps.engine.models.Task.DoesNotExist: Task matching query does not exist.\n"
            )
        return task

    async def _import(self, request: ImportRequest, task: Task, slower: float) -> None:
        data = task.data
        if data is None:
            raise validation_error("Task has no source media info")
        params: DataParams = request.params
        check_params(task, params)
        media = await self._read(data, params)
        media, segments, layout = lay_out(task, media, params, self._rng)
        jobs = len(segments.ranges) * (task.consensus_replicas + 1)
        check_count(jobs, self._machine.settings.max_jobs_per_task)
        cost = self._cost(media, segments, jobs) * self._luck() * slower
        await self._machine.processor.use(cost)
        data.frames = media.frames
        if media.storage != "local":
            # Of files that cannot change, it can as well be made when it is asked for.
            pictures = Pictures(data, self._machine.state.now())
            await asyncio.to_thread(pictures.preview, segments.ranges[0][0])
        self._commit(request, task, data, media, segments, layout)

    async def _read(self, data: Data, params: DataParams) -> Media:
        settings = self._machine.settings
        arguments = (data, params, self._machine.share, settings, self._rng)
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
        return self._timings.import_work(
            frames=media.read,
            jobs=jobs,
            chunk_megapixels=pixels / PIXELS_PER_MEGAPIXEL,
            server_files=0 if media.storage == "local" else media.read,
        )

    def _luck(self) -> float:
        settings = self._machine.settings
        factor = self._rng.lognormvariate(0.0, settings.import_jitter)
        return factor * 2.0 if self._rng.random() < settings.slow_import_rate else factor

    def _commit(
        self,
        request: ImportRequest,
        task: Task,
        data: Data,
        media: Media,
        segments: Segments,
        layout: Layout | None,
    ) -> None:
        """Make the jobs visible, all at once, and tell the webhooks."""
        state, events = self._machine.state, self._events
        moment = state.now()
        before = events.snapshot(task)
        data.size, data.frames, data.chunk_size = media.size, media.frames, media.chunk_size
        data.chunks_updated = moment
        if media.storage == "local":
            data.storage = "local"
        data.validation, data.frame_step = layout, request.params.frame_step
        last = data.start_frame + (media.size - 1) * request.params.frame_step
        data.stop_frame = min(data.stop_frame, last) if data.stop_frame else last
        if media.media_type == "audio":
            data.original_chunk_type = data.compressed_chunk_type = "audio_mp3"
        elif media.mode == "interpolation":
            data.original_chunk_type = "video"
            data.compressed_chunk_type = "imageset" if request.params.use_zip_chunks else "video"
        task.mode, task.dimension, task.media_type = media.mode, media.dimension, media.media_type
        task.segment_size, task.overlap = segments.segment_size, segments.overlap
        for start, stop in segments.ranges:
            parent = self._add_job(task, start, stop)
            parent.replicas_count = task.consensus_replicas
            for _ in range(task.consensus_replicas):
                replica = self._add_job(task, start, stop)
                replica.type, replica.parent_job_id = "consensus_replica", parent.id
        if layout is not None:
            start = 0 if layout.mode == "gt" else layout.frames[0]
            job = self._add_job(task, start, media.size - 1)
            job.type, job.frame_count = "ground_truth", len(layout.frames)
        self._machine.stats.times(task.id).committed_at = self._machine.clock()
        for job in state.jobs_of(task):
            events.job_created(job, request.owner)
        # Two saves of the task's row: one for what the import found, one that only touches it.
        task.updated = moment
        events.task_imported(task, before, request.owner)
        before = events.snapshot(task)
        task.updated = state.now()
        events.task_imported(task, before, request.owner)

    def _add_job(self, task: Task, start: int, stop: int) -> Job:
        moment = self._machine.state.now()
        job = Job(
            id=next(self._machine.state.ids.job),
            task=task,
            start_frame=start,
            stop_frame=stop,
            frame_count=stop - start + 1,
            created=moment,
            updated=moment,
        )
        self._machine.state.jobs[job.id] = job
        task.job_ids.append(job.id)
        return job

    async def _finish(self, request: ImportRequest) -> None:
        """What the worker does after the commit: the request is ``finished`` only then."""
        processor = self._machine.processor
        await processor.use(self._timings.import_completed_event)
        self._complete(request)
        self._events.request_completed(request, status="finished")
        await processor.use(self._timings.import_finish)
        request.status = "finished"
        self._machine.stats.times(request.task_id).finished_at = self._machine.clock()

    def _complete(self, request: ImportRequest) -> None:
        request.finished = self._machine.state.now()
        ttl = timedelta(seconds=self._machine.settings.request_result_ttl)
        request.expires = request.finished + ttl

    def import_at_once(self, caller: Caller, task: Task, data: Data, params: DataParams) -> None:
        """Import what is there, past the queue, the workers and all faults. For few files."""
        request = self._new_request(caller, task, params)
        media = read_media(data, params, self._machine.share, self._machine.settings, self._rng)
        self._commit(request, task, data, *lay_out(task, media, params, self._rng))
        self._complete(request)
        request.status = "finished"

    def interrupt(self) -> None:
        """Note down what the workers have: they are about to be stopped."""
        self._interrupted += self._started

    def find_abandoned(self) -> None:
        """Fail what was under way when the workers were stopped, as the queue does in the end."""
        for request in self._interrupted:
            self._fail(request, ABANDONED.format(f"{self._machine.state.now():%F %T}"))
        self._interrupted.clear()

    def clear(self) -> int:
        """Lose all that is queued or was interrupted; returns how many imports that are."""
        lost = len(self._queue) + len(self._held)
        self._machine.busy(-lost)
        lost += len(self._interrupted)
        for each in (self._queue, self._held, self._interrupted):
            each.clear()
        return lost

    def _fail(self, request: ImportRequest, message: str) -> None:
        request.status = "failed"
        request.message = message
        request.finished = self._machine.state.now()
        request.expires = request.finished + FAILED_RESULT_TTL
        times = self._machine.stats.times(request.task_id)
        times.finished_at, times.failed = self._machine.clock(), True
        self._events.request_completed(request, status="failed")


def _fail_early(faults: list[Active[ImportFault]]) -> None:
    """Raises :class:`ImportFailed` or :class:`WorkerDied` if a fault says so."""
    for active in faults:
        if isinstance(active.fault, FailedImport):
            raise ImportFailed(active.fault.message)
    _die(faults, "before")


def _die(faults: list[Active[ImportFault]], at: str) -> None:
    for active in faults:
        if isinstance(active.fault, DeadWorker) and active.fault.at == at:
            raise WorkerDied(active.fault)


def _is_little(data: Data) -> bool:
    names = list(data.client_files)
    return len(names) <= FEW_FILES and all(kind_of(name) == "image" for name in names)
