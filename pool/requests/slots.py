"""Fills slots: what a request sends becomes files in the place of placeholders, and the job, which
is there already, is the request's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

from pool.clock import Clock
from pool.config.settings import SlotSettings, Template
from pool.config.source import Upload
from pool.errors import InputError, SlotStorageUnavailable
from pool.logs import get_logger
from pool.model import Handout
from pool.requests.grouping import checked_key
from pool.requests.slot_pictures import contents, why_not
from pool.requests.slot_storage import SlotStorages
from pool.store import NewRequest, Store

log = get_logger(__name__)

#: Why a request went the ordinary way that would have fitted.
NONE_WARM = "no slot was warm"
NONE_FOR_STREAM = "no task with all of its slots free was warm, which a stream needs"
#: Carriers of which it is remembered where their files stand.
REMEMBERED = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How a request goes: by a ``template``, which is the one without slots where it goes into
    none, and as ``new``, which then says why."""

    template: Template
    new: NewRequest

    @property
    def by_slot(self) -> bool:
        """Whether it goes into a slot, if there is one."""
        return self.template.slots is not None


def way_of(template: Template, new: NewRequest, upload: Upload) -> Way:
    """Return how a request goes.

    :raises InputError: it is of a stream, and its template has no tasks that can grow.
    """
    if new.stream is not None and (template.slots is None or template.slots.per_task == 1):
        raise InputError(
            f"template {template.name!r} has no tasks that can grow: a stream needs slots with "
            "per_task above 1"
        )
    if template.slots is None:
        return Way(template=template, new=new)
    if why := why_not(template.slots, upload):
        return Way(template=template.ordinary, new=replace(new, no_slot=why))
    return Way(template=template, new=new)


class Filler:
    """Fills slots. Thread-safe.

    ``filled`` is called with the carrier of a slot that was filled, to have it shown; it must not
    block.
    """

    def __init__(
        self,
        store: Store,
        storages: SlotStorages,
        *,
        filled: Callable[[str], None],
        clock: Clock,
    ) -> None:
        self._store = store
        self._storages = storages
        self._filled = filled
        self._clock = clock
        # What is kept of a carrier never changes.
        self._settings = lru_cache(maxsize=REMEMBERED)(self._read_settings)

    def check_lease(self, lease_id: str, upload: Upload) -> None:
        """Raise InputError where a lease is of a slot that the files of an upload do not fit into,
        before anything is done."""
        lease = self._store.lease(lease_id)
        task = self._store.task(lease.pooled_id) if lease and lease.pooled_id else None
        if task is None or task.carrier_id is None:
            return
        if why := why_not(self.settings_of(task.carrier_id), upload):
            raise InputError(f"{why}; submit it without the lease")

    def leave_slots(
        self, template: Template, request_id: str, upload: Upload, why: str, *, shares: bool
    ) -> bool:
        """Have a queued request go the ordinary way; one that ``shares`` may do so with others.
        False when it is not queued any more."""
        ordinary = template.ordinary
        log.info("no slot", request_id=request_id, template=template.name, why=why)
        return self._store.leave_slots(
            request_id,
            why=why,
            fingerprint=ordinary.fingerprint,
            group_key=checked_key(ordinary, upload, self._clock) if shares else None,
        )

    def settings_of(self, carrier_id: str) -> SlotSettings:
        """Return the slots that a carrier was made by.

        :raises SlotStorageUnavailable: the carrier is gone.
        """
        return self._settings(carrier_id)

    def fill(self, handout: Handout, upload: Upload) -> str:
        """Write the data of a request durably into the slot that it was given, and make it ready.
        Return why that was not done, where it does not fit: the template has changed since it was
        accepted. Where the slot is not its own any more, another process has ended the request.

        :raises InputError: the data cannot be read.
        :raises SlotStorageUnavailable: it cannot be written; the slot is no use any more.
        """
        task = handout.task
        assert task.carrier_id is not None
        settings = self.settings_of(task.carrier_id)
        if why := why_not(settings, upload):
            return why
        slot = self._store.slot(task.id)
        if slot is None:
            raise SlotStorageUnavailable("the slot is gone")
        storage = self._storages.of(settings)
        keys = [
            storage.key(task.carrier_id, slot.start_frame + number)
            for number in range(len(upload.files))
        ]
        for key, data in zip(keys, contents(upload), strict=True):
            storage.write(key, data)
        names = [storage.on_server(key) for key in keys]
        if self._store.fill_slot(task.id, names, now=self._clock.now()):
            self._filled(task.carrier_id)
        else:
            log.warning("slot written for a request that had ended", task_id=task.task_id)
        return ""

    def _read_settings(self, carrier_id: str) -> SlotSettings:
        carrier = self._store.carrier(carrier_id)
        if carrier is None:
            raise SlotStorageUnavailable("the task of the slot is gone")
        return SlotSettings(**carrier.settings)
