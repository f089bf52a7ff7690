"""Look after carriers, the tasks whose jobs are slots, and delete their files once they are gone.

A slot that will never be filled, since its template has changed, it is too old, or its file could
not be written, goes with its carrier where no other of its slots is in use. Else its job is put out
of the annotators' way, and the carrier stays for what the others hold.

Files are deleted by the rows alone, never by what a storage lists, and only when CVAT has answered
twice, :data:`FILE_GRACE` seconds apart, that the task is gone: asked by its id, on the server and
in the organization where it was made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Final

from pool.clock import Clock
from pool.config.settings import CvatSettings, SlotSettings, Template, origin_of
from pool.cvat import CvatClient
from pool.errors import CvatError, CvatNotFound, CvatUnreachable, PoolError, TermLost
from pool.logs import get_logger
from pool.maintenance.deletion import look_closer
from pool.maintenance.placeholders import carrier_keys
from pool.maintenance.reconcile_rules import Action, Finding, Sight, judge_carrier, of_row
from pool.maintenance.term import Term
from pool.model import Carrier, Slot, TaskState
from pool.requests.breaker import server_is_open
from pool.requests.slot_storage import SlotStorage, SlotStorages
from pool.store import Store

log = get_logger(__name__)

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
class Look:
    """A carrier, its slots, what CVAT shows of its task, and what is wrong, if anything is.
    ``known``: CVAT's word that the task is gone counts, since it was made there."""

    carrier: Carrier
    slots: Sequence[Slot]
    sight: Sight
    finding: Finding | None
    known: bool

    @property
    def warm(self) -> list[str]:
        """Return the slots that can be handed out."""
        return [slot.id for slot in self.slots if slot.state is TaskState.WARM]

    @property
    def retired(self) -> list[Slot]:
        """Return the slots that will never be filled."""
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
        term: Term | None,
        *,
        verify_every: float,
        clock: Clock,
    ) -> None:
        """``settings`` are those of the server; carriers with warm slots are looked at every
        ``verify_every`` seconds, and all others every hour. Files are deleted in a ``term``
        only."""
        self._store = store
        self._cvat = cvat
        self._storages = storages
        self._settings = settings
        self._templates = templates
        self._term = term
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
            looks = self.look(carriers)
        except CvatError as error:
            log.warning("carriers not looked at", why=str(error))
            return CarriersReport()
        return self.apply(looks)

    def apply(self, looks: Sequence[Look]) -> CarriersReport:
        """Do what follows from looks at carriers.

        :raises TermLost: the rest is left to the process that maintains the store now.
        """
        total = CarriersReport()
        left = BATCH_BUSY if self._store.in_flight() else BATCH
        for look in looks:
            try:
                done = self._settle(look, left)
            except TermLost:
                raise
            except PoolError as error:
                # One that fails every time must not keep the others.
                self._postpone(look.carrier, error)
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
        unseen = store.carriers(looked_before=wall - LOOK_EVERY, limit=LOOKS)
        due = {carrier.id: carrier for carrier in unseen}
        slots = list(store.retired_slots(limit=LOOKS))
        if now >= self._warm_at:
            self._warm_at = now + self._verify_every
            slots += store.tasks(states=(TaskState.WARM,))
        for carrier_id in dict.fromkeys(slot.carrier_id for slot in slots):
            carrier = store.carrier(carrier_id) if carrier_id and carrier_id not in due else None
            if carrier is not None:
                due[carrier.id] = carrier
        return [each for each in due.values() if each.id not in self._retry_at]

    def look(self, carriers: Sequence[Carrier] | None = None) -> list[Look]:
        """Look at carriers, by default at all of them, and change nothing.

        :raises pool.errors.CvatError: the server could not be asked.
        """
        if carriers is None:
            carriers = self._store.carriers(limit=MOST_CARRIERS)
        listed = self._cvat.tasks([carrier.task_id for carrier in carriers])
        looks = []
        closer = 0
        away: set[SlotStorage] = set()
        for carrier in carriers:
            closer += carrier.task_id not in listed
            task = self._store.task(carrier.id)
            if task is None or closer > MOST_CLOSER_LOOKS:
                continue
            try:
                sight = look_closer(self._cvat, carrier.task_id, listed)
            except CvatUnreachable:
                raise
            except CvatError as error:
                self._postpone(carrier, error)
                continue
            origin = origin_of(self._settings, SlotSettings(**carrier.settings))
            template = self._templates.get(carrier.template)
            finding = judge_carrier(carrier, task, sight, template, origin=origin)
            slots = self._store.slots_of(carrier.id)
            if finding is None and not self._has_files(carrier, slots, away):
                finding = of_row(task, Action.RETIRE, "its files are gone")
            looks.append(
                Look(
                    carrier=carrier,
                    slots=slots,
                    sight=sight,
                    finding=finding,
                    known=origin == task.origin,
                )
            )
        return looks

    def _has_files(self, carrier: Carrier, slots: Sequence[Slot], away: set[SlotStorage]) -> bool:
        """Whether the placeholder of the first warm slot is there, if there is a warm one. What a
        storage says that is ``away`` proves nothing; it is asked once in a round."""
        warm = next((slot for slot in slots if slot.state is TaskState.WARM), None)
        storage = self._storages.of(carrier.settings)
        if warm is None or storage in away:
            return True
        try:
            storage.read(storage.key(carrier.id, warm.start_frame))
        except FileNotFoundError:
            return False
        except PoolError as error:
            away.add(storage)
            log.warning("files of slots not looked at", why=str(error))
        return True

    def _postpone(self, carrier: Carrier, error: PoolError) -> None:
        log.warning("carrier not settled", task_id=carrier.task_id, why=str(error))
        self._retry_at[carrier.id] = self._clock.monotonic() + RETRY_AFTER

    # --- Acting -------------------------------------------------------------------------------

    def _settle(self, look: Look, most: int) -> CarriersReport:
        """Do what follows from one look; end ``most`` slots at the most."""
        store, carrier, finding, now = self._store, look.carrier, look.finding, self._clock.now()
        is_gone = look.sight.info is None and not look.sight.hidden
        if is_gone and look.known:
            seen = store.saw_carrier(carrier.id, gone=True, now=now)
            since = seen.gone_since if seen is not None else None
            if self._term is None or since is None or now - since < FILE_GRACE:
                return CarriersReport(looked=1, gone=1)
            return CarriersReport(looked=1, gone=1, forgotten=self._forget(carrier, self._term))
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

    def _forget(self, carrier: Carrier, term: Term) -> bool:
        """Delete the files of a carrier that is gone, and forget it.

        :raises pool.errors.SlotStorageUnavailable: they could not be deleted.
        """
        storage = self._storages.of(carrier.settings)
        term.check()
        storage.delete(carrier_keys(storage, carrier.id, SlotSettings(**carrier.settings)))
        log.info("files of slots deleted", task_id=carrier.task_id, template=carrier.template)
        return self._store.forget_carrier(carrier.id, now=self._clock.now())

    def _end(self, look: Look, most: int) -> int:
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
        # In a task that people have made their own, no job is touched.
        is_ours = look.finding is None or look.finding.action is not Action.DISOWN
        for slot in retired[: max(0, most)]:
            if is_ours and look.sight.info is not None:
                with suppress(CvatNotFound):
                    self._cvat.close_job(slot.job_id)
            store.end_slot(slot.id, now=now)
        return min(len(retired), max(0, most))


_COUNTED: Final = tuple(field.name for field in fields(CarriersReport))
