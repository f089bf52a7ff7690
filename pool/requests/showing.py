"""Have CVAT show what slots were filled with, and hide all others; drop what it has read of them
before, and look whether it shows the right pictures.

CVAT keeps one list of hidden frames for a task and rewrites it without a lock. So one process at a
time writes that of a carrier, all that was filled meanwhile goes with the next call, and since the
pages of annotators write old lists back, it is looked at again later
(:data:`pool.store.LOOKS`). What fails stays due in the store, behind a growing pause.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.settings import CvatSettings, SlotSettings, Templates, origin_of
from pool.cvat import CvatClient
from pool.cvat.failures import of_server
from pool.errors import CvatBusy, CvatError, CvatNotFound, PoolError, SlotStorageUnavailable
from pool.logs import get_logger
from pool.model import Carrier, RequestWarning, Slot, TaskState
from pool.requests.breaker import server_is_open
from pool.requests.slot_pictures import placeholder, same_picture
from pool.requests.slot_storage import SlotStorage, SlotStorages
from pool.store import Store

if TYPE_CHECKING:
    pass

log = get_logger(__name__)

#: Carriers that are shown at the same time, and that one round of the service takes.
THREADS: Final = 8
BATCH: Final = 32
#: Seconds that such a round takes at most.
ROUND: Final = 5.0
#: Seconds for which a process alone writes the list of a carrier, without renewing that.
TERM: Final = 45.0
#: Slots shown at once whose pictures are all looked at; of more, one is.
FEW: Final = 3
#: Times that CVAT is to drop a wrong picture before its request has a warning.
MOST_DROPS: Final = 3
#: Failures in a row before the requests that wait have a warning.
MOST_FAILURES: Final = 3
#: Seconds of the first pause after a failure, and of the longest: of the server, of one carrier.
FIRST_PAUSE: Final = 1.0
LONGEST_AWAY: Final = 30.0
LONGEST_PAUSE: Final = 600.0
#: Seconds until wrong pictures are looked at again; and a carrier whose task is gone.
WRONG_PAUSE: Final = 600.0
GONE_PAUSE: Final = 3600.0

_QUALITIES: Final[tuple[Literal["compressed", "original"], ...]] = ("compressed", "original")
#: The key of the pause in which no carrier is shown.
_SERVER: Final = ""


def frames_of(slot: Slot) -> range:
    """Return the numbers of a slot's frames in the task."""
    return range(slot.start_frame, slot.stop_frame + 1)


def filled_frames(slot: Slot) -> range:
    """Return the numbers of those frames of a slot that have pictures."""
    return range(slot.start_frame, slot.start_frame + slot.filled)


def is_seen(slot: Slot) -> bool:
    """Return whether the pictures of a slot are to be seen."""
    return slot.state is TaskState.READY and not slot.erased and not slot.unwanted


def is_new(slot: Slot) -> bool:
    """Return whether a slot is filled and not shown yet."""
    return is_seen(slot) and slot.shown_at is None


def frames_to_hide(slots: Sequence[Slot], hidden: Collection[int]) -> frozenset[int]:
    """Return which frames of a carrier are to be hidden, where those of ``hidden`` are.

    What was filled since is shown. Of what is shown already, the pictures stay as people have left
    them. All else is hidden: slots that hold nothing, or are to be erased, and the frames behind
    the last picture of those that do.
    """
    wanted = set[int]()
    for slot in slots:
        shown: set[int] = set()
        if is_seen(slot):
            shown = set(filled_frames(slot))
            if slot.shown_at is not None:
                shown -= set(hidden)
        wanted.update(number for number in frames_of(slot) if number not in shown)
    return frozenset(wanted)


# --- Carriers -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Run:
    """One run for a carrier. ``until`` is when its term as the writer ends."""

    carrier: Carrier
    storage: SlotStorage
    drops_with: int
    until: float = 0.0

    @property
    def place(self) -> tuple[object, ...]:
        """What decides whether pictures come out right: where files are written, where CVAT reads
        them, and what has it drop them."""
        settings = self.carrier.settings
        return settings.get("storage"), settings.get("server"), self.drops_with


@dataclass(slots=True)
class _Pause:
    """Nothing is tried before ``until``, after so many ``failures`` in a row, the last by
    ``error``."""

    until: float
    failures: int
    error: PoolError


class Showing:
    """Shows filled slots. Thread-safe.

    ``afterwards`` is called with the ids of slots that are shown since, or are not to be, and of
    their carrier: what is left can be done for these. It must not block.
    """

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        storages: SlotStorages,
        settings: CvatSettings,
        templates: Templates,
        *,
        owner: str,
        afterwards: Callable[[Sequence[str]], None],
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._storages = storages
        self._settings = settings
        self._templates = templates
        self._owner = owner
        self._afterwards = afterwards
        self._clock = clock
        self._rng = rng or random.Random()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="show")
        self._guard = threading.Condition()
        #: Carriers that a thread is at, and that there is news of since it has read their slots, or
        #: that no thread is at yet.
        self._running: set[str] = set()
        self._asked: set[str] = set()
        self._begun: set[Future[None]] = set()
        self._pauses: dict[str, _Pause] = {}
        #: Where pictures were seen to be right (:attr:`_Run.place`).
        self._proven: set[tuple[object, ...]] = set()

    def soon(self, carrier_id: str) -> None:
        """Show on another thread what was filled in a carrier."""
        with self._guard:
            known = carrier_id in self._asked or carrier_id in self._running
            self._asked.add(carrier_id)
        if not known:
            self._begin(self._show_or_log, carrier_id)

    def run_once(self) -> int:
        """Show, and look at, all carriers that are due, the longest due first, and return how many
        these were."""
        now = self._clock.now()
        if server_is_open(self._store, now=now) or self._paused(_SERVER) is not None:
            return 0
        due = self._store.carriers_due(limit=BATCH, now=now)
        begun = (self._begin(self._show_or_log, carrier_id) for carrier_id in due)
        # One that hangs keeps others for no longer.
        wait([each for each in begun if each is not None], ROUND)
        return len(due)

    def settle(self, timeout: float) -> None:
        """Wait, ``timeout`` seconds at most, for what was begun, and for what follows from that."""
        end = self._clock.monotonic() + timeout
        while begun := set(self._begun):
            if wait(begun, max(0.0, end - self._clock.monotonic())).not_done:
                return

    def close(self) -> None:
        """Begin nothing more: another process finds what is left."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def show(self, carrier_id: str) -> bool:
        """Have CVAT show all that is filled in a carrier, hide all else, and forget what it has
        read of it before; again, while more is filled meanwhile. False while another process does,
        or the carrier is gone.

        A slot counts as shown once CVAT has answered with the list. Its picture is compared before,
        until this process has seen one that is right in the same storage, and afterwards from then
        on.

        :raises PoolError: CVAT or the storage fails, or did a moment ago; what is due is tried
            again later.
        """
        with self._alone(carrier_id):
            carrier = self._store.carrier(carrier_id)
            if carrier is None:
                return False
            for key in (_SERVER, carrier_id):
                if (pause := self._paused(key)) is not None:
                    raise pause.error.with_traceback(None)
            run = self._run(carrier)
            while True:
                self._hear(carrier_id)
                slots = self._store.slots_of(carrier_id)
                now = self._clock.now()
                due = [slot for slot in slots if slot.look_at is not None and slot.look_at <= now]
                if not due:
                    return True
                if not self._take(run):
                    return False
                self._look_after(run, due)

    def erase(self, slot: Slot) -> bool:
        """Put the placeholder in the place of a slot's pictures, and have CVAT forget them and hide
        its frames. False where these are not hidden yet: another process is at it, or has failed.

        :raises PoolError: CVAT or the storage fails.
        """
        carrier = self._store.carrier(slot.carrier_id)
        if carrier is None or carrier.gone_since is not None:
            # With the task, its frames are gone; its files go with it.
            return True
        run = self._run(carrier)
        if not slot.erased:
            keys = [run.storage.key(carrier.id, number) for number in filled_frames(slot)]
            run.storage.write_all(keys, placeholder(SlotSettings(**carrier.settings)))
            self._store.erase_slot(slot.id, now=self._clock.now())
        self._require_origin(carrier)
        if not self.show(carrier.id):
            return False
        hidden = self._cvat().hidden_frames(carrier.task_id)
        return hidden.issuperset(filled_frames(slot))

    # --- One at a time ----------------------------------------------------------------------------

    def _begin(self, what: Callable[..., None], *subjects: object) -> Future[None] | None:
        try:
            begun = self._threads.submit(what, *subjects)
        except RuntimeError:
            # It closes.
            return None
        self._begun.add(begun)
        begun.add_done_callback(self._begun.discard)
        return begun

    def _show_or_log(self, carrier_id: str) -> None:
        try:
            self.show(carrier_id)
        except PoolError as error:
            log.info("slots to be shown later", carrier=carrier_id, why=str(error))

    @contextmanager
    def _alone(self, carrier_id: str) -> Iterator[None]:
        """Let no other thread of this process be at a carrier."""
        with self._guard:
            self._guard.wait_for(lambda: carrier_id not in self._running)
            self._running.add(carrier_id)
        try:
            self._hear(carrier_id)
            yield
        finally:
            with self._guard:
                self._running.discard(carrier_id)
                news = carrier_id in self._asked
                self._guard.notify_all()
            if news:
                self._begin(self._show_or_log, carrier_id)

    def _hear(self, carrier_id: str) -> None:
        """Note that the slots of a carrier are read after all that there is news of by now."""
        with self._guard:
            self._asked.discard(carrier_id)

    def _take(self, run: _Run) -> bool:
        """Be the one process that writes the list of a carrier, for another term where the present
        one ends soon."""
        now = self._clock.now()
        if now < run.until - TERM / 2:
            return True
        taken = self._store.write_carrier(
            run.carrier.id, owner=self._owner, until=now + TERM, now=now
        )
        run.until = now + TERM if taken else 0.0
        return taken

    def _let_go(
        self,
        run: _Run,
        *,
        shown: Collection[str] = (),
        looked: Collection[str] = (),
        postponed: Mapping[str, float] | None = None,
        due: Sequence[Slot] = (),
    ) -> bool:
        """End the term as the writer, with what came of it for the slots that were due."""
        if not run.until:
            return False
        run.until = 0.0
        template = self._templates.get(run.carrier.template)
        return self._store.wrote_carrier(
            run.carrier.id,
            owner=self._owner,
            shown=shown,
            looked=looked,
            postponed=postponed,
            erased={slot.id for slot in due if slot.erased},
            divided=template is not None and template.divided,
            now=self._clock.now(),
        )

    def _run(self, carrier: Carrier) -> _Run:
        template = self._templates.get(carrier.template)
        slots = template.slots if template is not None else None
        drops_with = (slots or SlotSettings(**carrier.settings)).drops_with
        return _Run(carrier, self._storages.of(carrier.settings), drops_with)

    # --- The list of hidden frames ----------------------------------------------------------------

    def _look_after(self, run: _Run, due: Sequence[Slot]) -> None:
        """Write the list of a carrier as it is to be, and note what came of it."""
        try:
            self._require_origin(run.carrier)
            self._write(run, due)
        except CvatNotFound as error:
            if not self._is_gone(run, due):
                self._postpone(run, due, error)
                raise
        except (CvatError, SlotStorageUnavailable) as error:
            self._postpone(run, due, error)
            raise
        except BaseException:
            # A moment later it may work, for another process too.
            with suppress(PoolError):
                self._let_go(run)
            raise

    def _require_origin(self, carrier: Carrier) -> None:
        """Raise CvatError where a task was made elsewhere: here its id is another's, if any's."""
        task = self._store.task(carrier.id)
        here = origin_of(self._settings, SlotSettings(**carrier.settings))
        if task is None or task.origin != here:
            raise CvatError(
                f"task {carrier.task_id} is on another server, or in another organization, than "
                "those of the configuration"
            )

    def _write(self, run: _Run, due: Sequence[Slot]) -> None:
        task_id = run.carrier.task_id
        slots = self._store.slots_of(run.carrier.id)
        due_ids = {slot.id for slot in due}
        looked = [slot for slot in slots if slot.id in due_ids and not is_new(slot)]
        hidden: frozenset[int] | None = None
        if looked or any(slot.shown_at is not None for slot in slots):
            hidden = self._cvat().hidden_frames(task_id)
            slots = [self._mended(slot, hidden, slot in looked) for slot in slots]
        new = [slot for slot in slots if is_new(slot)]
        # One that is hidden by now was dropped with that.
        erased = [
            slot
            for slot in slots
            if slot.erased
            and (slot.id in due_ids or not (hidden or frozenset()).issuperset(filled_frames(slot)))
        ]
        # Of so many not all pictures were compared. What was read while they were filled has ended
        # by now, and is dropped.
        first = [slot for slot in looked if slot.shown_at is not None and slot.looks == 0]
        self._send(run, slots, hidden, drop=bool(new or erased or len(first) > FEW))
        sample = self._sample(new)
        wrong: Mapping[str, str] = {}
        proven = run.place in self._proven
        if new and not proven:
            wrong = self._verify(run, sample)
            if not wrong:
                self._proven.add(run.place)
            elif len(sample) < len(new):
                # Others are probably wrong as well.
                wrong = {slot.id: next(iter(wrong.values())) for slot in new}
        shown = [slot.id for slot in new if slot.id not in wrong]
        again_at = self._clock.now() + WRONG_PAUSE
        if not self._let_go(
            run,
            shown=shown,
            looked=due_ids.difference(slot.id for slot in new),
            postponed=dict.fromkeys(wrong, again_at),
            due=due,
        ):
            return
        self._worked(run)
        self._warn(new, wrong)
        if shown:
            log.info("slots shown", task_id=task_id, slots=len(shown))
        unwanted = [slot.id for slot in looked if slot.unwanted]
        if shown or unwanted:
            self._afterwards([run.carrier.id, *shown, *unwanted])
        seen = [slot for slot in looked if slot.id not in shown and slot.shown_at and is_seen(slot)]
        if to_compare := [*(sample if proven else ()), *self._sample(seen)]:
            # Apart, so that what is filled meanwhile does not wait for it.
            self._begin(self._compare, run.carrier, to_compare)

    def _mended(self, slot: Slot, hidden: frozenset[int], looked: bool) -> Slot:
        """Return a slot as it is after what people, and their pages, have done to it."""
        now = self._clock.now()
        if slot.state is TaskState.WARM and not hidden.issuperset(frames_of(slot)):
            if self._cvat().annotated(slot.job_id):
                why = "it was annotated before it had a picture"
                log.warning("slot retired", job_id=slot.job_id, why=why)
                self._store.retire(slot.id, reason=why, now=now)
        elif (
            looked
            and is_seen(slot)
            and slot.shown_at is not None
            and hidden.issuperset(filled_frames(slot))
            and self._is_untouched(slot)
            and self._store.show_again(slot.id, now=now)
        ):
            log.warning("slot hidden by an old list, and shown again", job_id=slot.job_id)
            return replace(slot, shown_at=None)
        return slot

    def _is_untouched(self, slot: Slot) -> bool:
        """Whether no annotator has begun with a slot: else it is they who have hidden it."""
        cvat = self._cvat()
        return cvat.job_state(slot.job_id) == "new" and not cvat.annotated(slot.job_id)

    def _send(
        self, run: _Run, slots: Sequence[Slot], hidden: frozenset[int] | None, *, drop: bool
    ) -> None:
        """Have CVAT hide the right frames of a carrier, and drop what it has cached of it."""
        storage = run.drops_with if drop else None
        for _ in range(2):
            wanted = frames_to_hide(slots, hidden or ())
            if not drop and wanted == hidden:
                return
            if not self._take(run):
                raise PoolError("another process writes the list of hidden frames by now")
            hidden = self._cvat().show_frames(run.carrier.task_id, wanted, cloud_storage_id=storage)
            if hidden == wanted:
                return
        raise CvatBusy("the list of hidden frames is another than the one that was just sent")

    # --- Pictures ---------------------------------------------------------------------------------

    def _sample(self, slots: Sequence[Slot]) -> list[Slot]:
        """Return the slots whose pictures are looked at."""
        return list(slots) if len(slots) <= FEW else [self._rng.choice(slots)]

    def _compare(self, carrier: Carrier, slots: Sequence[Slot]) -> None:
        """Look at the pictures of slots that are shown, and have those dropped that are wrong."""
        run = self._run(carrier)
        try:
            if not self._all_wrong(run, slots):
                return
            with self._alone(carrier.id):
                try:
                    wrong = self._verify(run, slots)
                finally:
                    self._let_go(run)
        except PoolError as error:
            # The next look at the carrier compares them again.
            log.info("pictures not compared", task_id=carrier.task_id, why=str(error))
            return
        if wrong:
            self._proven.discard(run.place)
            self._warn(slots, wrong)

    def _all_wrong(self, run: _Run, slots: Sequence[Slot]) -> Mapping[str, str]:
        return {slot.id: why for slot in slots if (why := self._why_wrong(run, slot))}

    def _verify(self, run: _Run, slots: Sequence[Slot]) -> Mapping[str, str]:
        """Have CVAT drop pictures that are not those that were written, and return why some still
        are not, by the ids of their slots.

        One that is read while its file is replaced may be kept after the drop.
        """
        for drops in range(MOST_DROPS + 1):
            wrong = self._all_wrong(run, slots)
            if not wrong or drops == MOST_DROPS:
                break
            slots = [slot for slot in slots if slot.id in wrong]
            for slot in slots:
                log.warning("stale picture dropped", job_id=slot.job_id, why=wrong[slot.id])
            hidden = self._cvat().hidden_frames(run.carrier.task_id)
            self._send(run, self._store.slots_of(run.carrier.id), hidden, drop=True)
        return wrong

    def _why_wrong(self, run: _Run, slot: Slot) -> str:
        """Return why CVAT does not show what was written to the first frame of a slot, or ""."""
        number = slot.start_frame

        def frame(quality: Literal["compressed", "original"]) -> bytes:
            return self._cvat().frame(run.carrier.task_id, number, quality)

        try:
            written = run.storage.read(run.storage.key(run.carrier.id, number))
            with ThreadPoolExecutor(len(_QUALITIES), thread_name_prefix="frame") as threads:
                shown = list(threads.map(frame, _QUALITIES))
        except FileNotFoundError:
            return "its file is gone"
        except CvatBusy as error:
            if of_server(error):
                raise
            return str(error)
        if all(same_picture(each, written) for each in shown):
            return ""
        return f"frame {number} is another picture than the one that was written"

    def _warn(self, slots: Sequence[Slot], wrong: Mapping[str, str]) -> None:
        now = self._clock.now()
        for slot in slots:
            if slot.id in wrong and slot.request_id is not None:
                warning = RequestWarning(
                    code="not-shown", text=f"annotators may not see its picture: {wrong[slot.id]}"
                )
                if self._store.warn(slot.request_id, warning, now=now):
                    log.warning("slot not shown", job_id=slot.job_id, why=wrong[slot.id])

    # --- Failures ---------------------------------------------------------------------------------

    def _paused(self, key: str) -> _Pause | None:
        with self._guard:
            pause = self._pauses.get(key)
        return pause if pause is not None and self._clock.monotonic() < pause.until else None

    def _postpone(self, run: _Run, due: Sequence[Slot], error: PoolError) -> None:
        """Have slots be due later, and nothing of the carrier, or of the server as a whole, be
        tried until then."""
        away = isinstance(error, CvatError) and of_server(error)
        key = _SERVER if away else run.carrier.id
        with self._guard:
            failures = 1 + (self._pauses[key].failures if key in self._pauses else 0)
            longest = LONGEST_AWAY if away else LONGEST_PAUSE
            pause = backoff(failures, base=FIRST_PAUSE, cap=longest, rng=self._rng)
            pause = max(pause, getattr(error, "retry_after", None) or 0.0)
            self._pauses[key] = _Pause(self._clock.monotonic() + pause, failures, error)
        again_at = self._clock.now() + pause
        self._let_go(run, postponed={slot.id: again_at for slot in due}, due=due)
        if not away and failures >= MOST_FAILURES:
            new = [slot for slot in due if is_new(slot)]
            self._warn(new, {slot.id: str(error) for slot in new})

    def _worked(self, run: _Run) -> None:
        with self._guard:
            for key in (_SERVER, run.carrier.id):
                self._pauses.pop(key, None)

    def _is_gone(self, run: _Run, due: Sequence[Slot]) -> bool:
        """Whether the task of a carrier is gone; then that is noted.

        :raises CvatError: that cannot be said.
        """
        try:
            if self._cvat().task(run.carrier.task_id) is not None:
                return False
        except CvatError as error:
            self._postpone(run, due, error)
            raise
        now = self._clock.now()
        log.warning("task of slots is gone", task_id=run.carrier.task_id)
        self._let_go(run, postponed={slot.id: now + GONE_PAUSE for slot in due}, due=due)
        self._worked(run)
        self._store.saw_carrier(run.carrier.id, gone=True, now=now)
        new = [slot for slot in due if is_new(slot)]
        self._warn(new, {slot.id: "its task is gone from CVAT" for slot in new})
        return True
