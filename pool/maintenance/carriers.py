"""Carriers: tasks over placeholders, each job of which is a slot. Make them, look after them, and
delete their files once they are gone.

A slot that will never be filled, since its template has changed, it is too old, or its file could
not be written, goes with its carrier where no other of its slots is in use. Else its job is put out
of the annotators' way, and the carrier stays for what the others hold.

Files are deleted by the rows alone, never by what a storage lists, and only when CVAT has answered
twice, :data:`FILE_GRACE` seconds apart, that the task is gone: asked by its id, on the server and
in the organization where it was made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Final, TypeVar

from pool.clock import Clock
from pool.config.data_params import DataParams
from pool.config.settings import CvatSettings, SlotSettings, Template, origin_of
from pool.config.source import Upload
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus
from pool.errors import (
    CvatError,
    CvatNotFound,
    ImportFailed,
    ImportLost,
    ImportTimedOut,
    PoolError,
)
from pool.logs import get_logger
from pool.maintenance.deletion import look_closer
from pool.maintenance.reconcile_rules import Action, Finding, Sight, judge_carrier, of_row
from pool.model import Carrier, Job, PooledTask, Slot, TaskState
from pool.requests.breaker import server_is_open
from pool.requests.lifecycle import is_passing, outcome_unknown
from pool.requests.placement import create_on_server
from pool.requests.slot_storage import SlotStorage, SlotStorages, placeholder
from pool.store import Store

log = get_logger(__name__)

T = TypeVar("T")

#: Seconds between two looks at an import, and the share of the time waited so far that the pause
#: is, so that a long import costs the server few of them.
SHORTEST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 2.0
GROWTH: Final = 0.25
#: Seconds until a call that has failed is made again.
RETRY_PAUSE: Final = 1.0
#: Seconds for which CVAT may neither have jobs nor know of the import.
UNKNOWN_FOR: Final = 10.0
#: Seconds between two looks at a carrier without warm slots, and carriers in one call.
LOOK_EVERY: Final = 3600.0
LOOKS: Final = 500
#: Carriers that a listing lacks and that are looked for one by one, in one run.
MOST_CLOSER_LOOKS: Final = 100
#: Seconds for which the files stay of a task that is gone.
FILE_GRACE: Final = 86400.0
#: Retired slots whose jobs are put out of the way in one run, and while requests are being served.
BATCH: Final = 50
BATCH_BUSY: Final = 2
#: Seconds until a carrier that could not be settled is tried again.
RETRY_AFTER: Final = 60.0
#: Carriers that the command looks at.
MOST_CARRIERS: Final = 100_000
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
            cvat, template, storage, task_id, pooled.id, is_wanted=is_wanted, clock=clock
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
    clock: Clock,
) -> Sequence[Job]:
    """Import an empty task over placeholders in a folder of the storage, one for each frame, and
    hide all of them. Return its jobs, in order. ``is_wanted`` is asked now and then.

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
    jobs = sorted(_await_jobs(cvat, task_id, patience, doubt), key=lambda job: job.start_frame)
    _check_jobs(jobs, slots)
    everything = frozenset(range(len(keys)))
    # Without a drop: nobody has looked yet, and what the import has read is dropped with the first
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
    """Return the parameters by which CVAT reads each frame's file when somebody looks at it."""
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
        patience.pause()
        state = patience.call(lambda: cvat.import_state(task_id))
        if state.status is ImportStatus.FAILED:
            raise ImportFailed(state.message)
        if state.status is ImportStatus.TASK_GONE:
            raise ImportLost(f"task {task_id} was deleted while it was imported")
        if state.status in (ImportStatus.QUEUED, ImportStatus.STARTED):
            unknown_since = math.inf
            continue
        if jobs := patience.call(lambda: cvat.jobs([task_id])).get(task_id):
            return jobs
        unknown_since = min(unknown_since, patience.waited)
        if patience.waited - unknown_since >= UNKNOWN_FOR:
            raise doubt or ImportLost("CVAT has no record of the import and made no jobs")


# --- Looking after them ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class CarriersReport:
    """How many carriers were looked at, were found to be gone, and were forgotten with their files;
    how many warm slots were retired, and how many retired ones ended."""

    looked: int = 0
    gone: int = 0
    forgotten: int = 0
    retired: int = 0
    ended: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Look:
    """A carrier, its task's row, its slots, what CVAT shows of it, and what is wrong, if anything
    is. ``known``: CVAT's word that the task is gone counts, since it was made there."""

    carrier: Carrier
    task: PooledTask
    slots: Sequence[Slot]
    sight: Sight
    finding: Finding | None
    known: bool

    @property
    def warm(self) -> list[str]:
        return [slot.id for slot in self.slots if slot.state is TaskState.WARM]

    @property
    def retired(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.state in (TaskState.RETIRED, TaskState.FAILED)]


class Carriers:
    """Looks after carriers."""

    def __init__(
        self,
        store: Store,
        cvat: CvatClient,
        storages: SlotStorages,
        settings: CvatSettings,
        templates: Mapping[str, Template],
        *,
        verify_every: float,
        clock: Clock,
    ) -> None:
        """``settings`` are those of the server; carriers with warm slots are looked at every
        ``verify_every`` seconds, and all others every hour."""
        self._store = store
        self._cvat = cvat
        self._storages = storages
        self._settings = settings
        self._templates = templates
        self._verify_every = verify_every
        self._clock = clock
        #: When carriers with warm slots are looked at next, and those whose slots could not be
        #: ended, by the monotonic clock. All of the former at the start: a daemon may have stopped
        #: in the middle of something.
        self._warm_at = -math.inf
        self._retry_at: dict[str, float] = {}

    def run_once(self) -> CarriersReport:
        """Look at the carriers that are due, and do what follows."""
        if server_is_open(self._store, now=self._clock.now()):
            return CarriersReport()
        carriers = self._due()
        if not carriers:
            return CarriersReport()
        try:
            looks = self._look(carriers)
        except CvatError as error:
            log.warning("carriers not looked at", why=str(error))
            return CarriersReport()
        return self.apply(looks)

    def plan(self) -> Sequence[_Look]:
        """Look at all carriers, and change nothing.

        :raises pool.errors.CvatError: the server could not be asked.
        """
        return self._look(self._store.carriers(limit=MOST_CARRIERS))

    def apply(self, looks: Sequence[_Look]) -> CarriersReport:
        """Do what follows from looks at carriers."""
        total = CarriersReport()
        left = BATCH_BUSY if self._store.in_flight() else BATCH
        for look in looks:
            try:
                done = self._settle(look, left)
            except PoolError as error:
                # One that fails every time must not keep the others.
                log.warning("carrier not settled", task_id=look.carrier.task_id, why=str(error))
                self._retry_at[look.carrier.id] = self._clock.monotonic() + RETRY_AFTER
                continue
            left -= done.ended
            total = CarriersReport(
                **{name: getattr(total, name) + getattr(done, name) for name in _COUNTED}
            )
        return total

    # --- Looking ------------------------------------------------------------------------------

    def _due(self) -> list[Carrier]:
        now, wall = self._clock.monotonic(), self._clock.now()
        self._retry_at = {each: at for each, at in self._retry_at.items() if at > now}
        store = self._store
        due = {
            each.id: each for each in store.carriers(looked_before=wall - LOOK_EVERY, limit=LOOKS)
        }
        slots = list(store.retired_slots(limit=LOOKS))
        if now >= self._warm_at:
            self._warm_at = now + self._verify_every
            slots += store.tasks(states=(TaskState.WARM,))
        for carrier_id in dict.fromkeys(slot.carrier_id for slot in slots):
            carrier = store.carrier(carrier_id) if carrier_id and carrier_id not in due else None
            if carrier is not None:
                due[carrier.id] = carrier
        return [each for each in due.values() if each.id not in self._retry_at]

    def _look(self, carriers: Sequence[Carrier]) -> list[_Look]:
        listed = self._cvat.tasks([carrier.task_id for carrier in carriers])
        looks = []
        closer = 0
        for carrier in carriers:
            closer += carrier.task_id not in listed
            task = self._store.task(carrier.id)
            if task is None or closer > MOST_CLOSER_LOOKS:
                continue
            sight = look_closer(self._cvat, carrier.task_id, listed)
            slots = SlotSettings(**carrier.settings)
            origin = origin_of(self._settings, slots)
            template = self._templates.get(carrier.template)
            finding = judge_carrier(carrier, task, sight, template, origin=origin)
            rows = self._store.slots_of(carrier.id)
            if finding is None and not self._has_files(carrier, rows):
                finding = of_row(task, Action.RETIRE, "its files are gone")
            looks.append(
                _Look(
                    carrier=carrier,
                    task=task,
                    slots=rows,
                    sight=sight,
                    finding=finding,
                    known=origin == task.origin,
                )
            )
        return looks

    def _has_files(self, carrier: Carrier, slots: Sequence[Slot]) -> bool:
        """Whether the placeholder of the first warm slot is there, if there is a warm one."""
        warm = next((slot for slot in slots if slot.state is TaskState.WARM), None)
        if warm is None:
            return True
        storage = self._storages.of(carrier.settings)
        try:
            storage.read(storage.key(carrier.id, warm.start_frame))
        except FileNotFoundError:
            return False
        except PoolError as error:
            log.warning("files of slots not looked at", task_id=carrier.task_id, why=str(error))
        return True

    # --- Acting -------------------------------------------------------------------------------

    def _settle(self, look: _Look, most: int) -> CarriersReport:
        """Do what follows from one look; end ``most`` slots at the most."""
        store, carrier, finding, now = self._store, look.carrier, look.finding, self._clock.now()
        is_gone = look.sight.info is None and not look.sight.hidden
        if is_gone and look.known:
            seen = store.saw_carrier(carrier.id, gone=True, now=now)
            since = seen.gone_since if seen is not None else None
            if since is None or now - since < FILE_GRACE:
                return CarriersReport(looked=1, gone=1)
            return CarriersReport(looked=1, gone=1, forgotten=self._forget(carrier))
        store.saw_carrier(carrier.id, gone=False, now=now)
        if finding is None:
            store.clear_quarantine(look.warm, now=now)
            return CarriersReport(looked=1, ended=self._end(look, most))
        retired = sum(
            store.retire(slot_id, reason=finding.reason, now=now) for slot_id in look.warm
        )
        if retired:
            log.warning(
                "warm slots retired", task_id=carrier.task_id, slots=retired, why=finding.reason
            )
        return CarriersReport(looked=1, retired=retired, ended=self._end(look, most))

    def _forget(self, carrier: Carrier) -> bool:
        """Delete the files of a carrier that is gone, and forget it.

        :raises pool.errors.SlotStorageUnavailable: they could not be deleted.
        """
        storage = self._storages.of(carrier.settings)
        storage.delete(carrier_keys(storage, carrier.id, SlotSettings(**carrier.settings)))
        log.info("files of slots deleted", task_id=carrier.task_id, template=carrier.template)
        return self._store.forget_carrier(carrier.id, now=self._clock.now())

    def _end(self, look: _Look, most: int) -> int:
        """End the retired slots of a carrier, or the carrier; return how many slots that were."""
        retired = look.retired
        if not retired:
            return 0
        store, now = self._store, self._clock.now()
        row = store.task(retired[0].id)
        reason = row.reason if row is not None else ""
        if store.retire_carrier(look.carrier.id, reason=reason, now=now):
            log.info("carrier retired", task_id=look.carrier.task_id, why=reason)
            return len(retired)
        for slot in retired[: max(0, most)]:
            # In a task that people have made their own, no job is touched.
            if look.finding is None:
                with suppress(CvatNotFound):
                    self._cvat.close_job(slot.job_id)
            store.end_slot(slot.id, now=now)
        return min(len(retired), max(0, most))


_COUNTED: Final = tuple(field.name for field in fields(CarriersReport))
