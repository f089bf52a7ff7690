"""Make carriers: import tasks over placeholders, each job of which is a slot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Final, TypeVar

from pool.clock import Clock
from pool.config.data_params import DataParams
from pool.config.settings import SlotSettings, Template
from pool.config.source import Upload
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus
from pool.errors import CvatError, ImportFailed, ImportLost, ImportTimedOut, PoolError
from pool.model import Job, PooledTask
from pool.requests.lifecycle import is_passing, outcome_unknown
from pool.requests.placement import create_on_server
from pool.requests.slot_pictures import placeholder
from pool.requests.slot_storage import SlotStorage, SlotStorages
from pool.store import Store

T = TypeVar("T")

#: Seconds between two looks at an import, and the share of the time waited so far that the pause
#: is, so that a long import costs the server few of them.
SHORTEST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
GROWTH: Final = 0.25
#: The first look comes after this share of what creates of the template have taken lately.
FIRST_LOOK: Final = 0.4
#: Seconds until a call that has failed is made again.
RETRY_PAUSE: Final = 1.0
#: Seconds for which CVAT may neither have jobs nor know of the import.
UNKNOWN_FOR: Final = 10.0
#: What happens to a create that lasts too long, or whose process seems to be gone.
GIVEN_UP: Final = "the create was given up meanwhile"


def make_carrier(
    store: Store,
    cvat: CvatClient,
    storages: SlotStorages,
    template: Template,
    pooled: PooledTask,
    *,
    clock: Clock,
) -> Sequence[Job]:
    """Make the carrier of a ``CREATING`` row: its task, imported over placeholders, with all frames
    hidden. Return its jobs, a slot each, in order; the row is still ``CREATING`` afterwards.

    Where that fails the row is ``FAILED``, unless it is not known whether there is a task: then it
    stays, to be settled by its name later.

    :raises pool.errors.SlotStorageUnavailable: the placeholders cannot be written.
    :raises pool.errors.ImportFailed: CVAT could not import them.
    :raises pool.errors.ImportTimedOut: nor within the template's time-out.
    :raises pool.errors.CvatError: CVAT refused a call, or could not be reached.
    """
    slots = template.slots
    assert slots is not None
    storage = storages.of(slots)
    try:
        # First, so that a share that is away costs no task.
        storage.require()
    except PoolError as error:
        store.fail_create(pooled.id, reason=str(error), now=clock.now())
        raise
    create_on_server(store, cvat, template, pooled, clock=clock)
    created = store.task(pooled.id)
    if created is None or created.task_id is None:
        raise PoolError(f"the row of carrier {pooled.id} has no task")
    task_id = created.task_id

    def is_wanted() -> bool:
        # Also says that this goes on: a create without a change for long is taken for stuck.
        return store.record_created(pooled.id, task_id=task_id, now=clock.now())

    if not store.begin_carrier(pooled.id, asdict(slots), now=clock.now()):
        raise PoolError(GIVEN_UP)
    try:
        return import_placeholders(
            cvat,
            template,
            storage,
            task_id,
            pooled.id,
            is_wanted=is_wanted,
            first_look=FIRST_LOOK * store.lead_times().get(template.name, 0.0),
            clock=clock,
        )
    except PoolError as error:
        store.fail_create(pooled.id, reason=str(error), now=clock.now())
        raise


def import_placeholders(
    cvat: CvatClient,
    template: Template,
    storage: SlotStorage,
    task_id: int,
    folder: str,
    *,
    is_wanted: Callable[[], bool] = lambda: True,
    first_look: float = 0.0,
    clock: Clock,
) -> Sequence[Job]:
    """Import an empty task over placeholders in a folder of the storage, one for each frame, and
    hide all of them. Return its jobs, in order. ``is_wanted`` is asked now and then. CVAT is not
    asked before ``first_look`` seconds, which an import takes.

    :raises pool.errors.PoolError: as :func:`make_carrier`.
    """
    slots = template.slots
    assert slots is not None
    keys = carrier_keys(storage, folder, slots)
    storage.write_all(keys, placeholder(slots))
    patience = _Patience(template.importing.timeout, is_wanted, clock)
    doubt: CvatError | None = None
    try:
        cvat.upload(
            task_id,
            _placeholders(slots, [storage.on_server(key) for key in keys]),
            _data_params(template.data),
            single_request_limit=template.importing.single_request_limit,
            prepared=True,
        )
    except CvatError as error:
        if not outcome_unknown(error):
            raise
        doubt = error
    patience.pause(first_look)
    jobs = sorted(_await_jobs(cvat, task_id, patience, doubt), key=lambda job: job.start_frame)
    _check_jobs(jobs, slots)
    everything = frozenset(range(len(keys)))
    # Without a drop: no one has looked yet, and what the import has read is dropped with the first
    # slot that is shown.
    patience.call(lambda: cvat.show_frames(task_id, everything, cloud_storage_id=None))
    hidden = patience.call(lambda: cvat.hidden_frames(task_id))
    if hidden != everything:
        raise ImportFailed(f"CVAT hid {len(hidden)} of the {len(keys)} frames of task {task_id}")
    return jobs


def carrier_keys(storage: SlotStorage, folder: str, slots: SlotSettings) -> list[str]:
    """Return the keys of all files of a carrier, in the order of its frames."""
    return [storage.key(folder, number) for number in range(slots.per_task * slots.frames)]


def _placeholders(slots: SlotSettings, paths: Sequence[str]) -> Upload:
    names, sizes = tuple(paths), (slots.frames,) * slots.per_task
    if slots.cloud_id is None:
        return Upload(share=names, job_sizes=sizes)
    return Upload(cloud=(slots.cloud_id, names), job_sizes=sizes)


def _data_params(params: DataParams) -> DataParams:
    """Return the parameters by which CVAT reads each frame's file when a person looks at it."""
    taken = {"use_cache": True, "copy_data": False, "chunk_size": 1, "storage_method": None}
    return params.model_copy(update=taken)


def _check_jobs(jobs: Sequence[Job], slots: SlotSettings) -> None:
    wanted = [
        (first, first + slots.frames - 1)
        for first in range(0, slots.per_task * slots.frames, slots.frames)
    ]
    if [(job.start_frame, job.stop_frame) for job in jobs] != wanted:
        raise ImportFailed(f"CVAT made {len(jobs)} other jobs than the {len(wanted)} of the slots")


class _Patience:
    """The time that an import may take, and the pauses in it."""

    def __init__(self, timeout: float, is_wanted: Callable[[], bool], clock: Clock) -> None:
        self._timeout = timeout
        self._is_wanted = is_wanted
        self._clock = clock
        self._began = clock.monotonic()

    @property
    def waited(self) -> float:
        """The seconds that have passed."""
        return self._clock.monotonic() - self._began

    def pause(self, least: float = 0.0, *, error: CvatError | None = None) -> None:
        """Wait a little.

        :raises ImportTimedOut: the time is up; ``error`` in its place, if there was one.
        :raises PoolError: the task is not wanted any more.
        """
        if self.waited >= self._timeout:
            raise error or ImportTimedOut(f"it had no jobs after {self._timeout:.0f} s")
        share = min(LONGEST_PAUSE, max(SHORTEST_PAUSE, GROWTH * self.waited))
        self._clock.sleep(max(least, share))
        if not self._is_wanted():
            raise PoolError(GIVEN_UP)

    def call(self, make: Callable[[], T]) -> T:
        """Make a call that may be repeated, again where it fails for a reason that may pass."""
        while True:
            try:
                return make()
            except CvatError as error:
                if not is_passing(error):
                    raise
                self.pause(RETRY_PAUSE, error=error)


def _await_jobs(
    cvat: CvatClient, task_id: int, patience: _Patience, doubt: CvatError | None
) -> Sequence[Job]:
    """Return the jobs of an import once they are there. ``doubt`` is why it is not known whether
    CVAT has begun it."""
    unknown_since = math.inf
    while True:
        state = patience.call(lambda: cvat.import_state(task_id))
        if state.status is ImportStatus.FAILED:
            raise ImportFailed(state.message)
        if state.status is ImportStatus.TASK_GONE:
            raise ImportLost(f"task {task_id} was deleted while it was imported")
        if state.status in (ImportStatus.QUEUED, ImportStatus.STARTED):
            unknown_since = math.inf
            patience.pause()
            continue
        if jobs := patience.call(lambda: cvat.jobs([task_id])).get(task_id):
            return jobs
        unknown_since = min(unknown_since, patience.waited)
        if patience.waited - unknown_since >= UNKNOWN_FOR:
            raise doubt or ImportLost("CVAT has no record of the import and made no jobs")
        patience.pause()
