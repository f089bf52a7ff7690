"""The circuit breakers: what a failed call holds, for how long, and what may be tried meanwhile.

A hold is an open circuit breaker (Nygard, "Release It!", 2007): while it lasts nothing is tried;
then one call tries, of all processes on the store, and its success closes the circuit.

A failure is first taken for one of its template: CVAT may answer 500 to each create of one
template, or to each upload of one request, and serve all others. So it holds that template alone,
and the server is asked for something that belongs to no template. Only when that fails too is the
server as a whole held, and with it all templates. An answer proves little (a server whose disk is
full answers, too), so each template is then tried on its own.

A process that alone cannot reach the server does not hold it for the others: see
:attr:`Breaker.cut_off`.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.settings import Template
from pool.config.units import format_duration
from pool.cvat import CvatClient, cut_off
from pool.cvat.failures import LONGEST_BACK_OFF
from pool.errors import (
    CvatBusy,
    CvatError,
    CvatRefusedCredentials,
    CvatRejected,
    ImportFailed,
    ImportTimedOut,
    PoolError,
    SlotStorageUnavailable,
    StoreError,
)
from pool.logs import get_logger
from pool.model import Hold
from pool.requests.lifecycle import OWN_FAILURES, REFUSALS, Fault, is_own_fault, is_passing
from pool.store import Store

log = get_logger(__name__)

#: A passing failure is tried again within this many seconds at first, and doubles up to the cap.
#: What the server asks for (``Retry-After``) is believed up to the cap as well.
TRANSIENT_BASE = 1.0
TRANSIENT_CAP = LONGEST_BACK_OFF

#: A refusal wants a person; asking again this rarely only notices that the person came.
REFUSED_BASE = 60.0
REFUSED_CAP = 900.0

#: Seconds until a request is tried again that fails while others do not: after two such pauses the
#: third failure decides.
OWN_PAUSE: Final = (15.0, 20.0)
#: Failed creates of one template that are remembered.
MOST_REMEMBERED: Final = 20
#: Seconds after which a caller who met a full queue may try again: at least, and at most. In
#: between it is when CVAT is tried again.
LEAST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0

#: Seconds for which a process whose try of the server has failed lets others try it first.
ASIDE: Final = 3.0

#: The name under which the server as a whole is held: no template can be called so.
SERVER = ""


class Circuit(Enum):
    """What a hold leaves to try now."""

    #: Anything: there is no hold.
    CLOSED = auto()
    #: One call, to see whether the trouble is over.
    HALF_OPEN = auto()
    #: Nothing.
    OPEN = auto()


def circuit(hold: Hold | None, *, now: float) -> Circuit:
    """Return what may be tried now. A hold without a time for the next try waits for a person."""
    if hold is None:
        return Circuit.CLOSED
    waits = hold.retry_at is None or too_early(hold, now=now)
    return Circuit.OPEN if waits else Circuit.HALF_OPEN


def server_is_open(store: Store, *, now: float) -> bool:
    """Whether the circuit of the server as a whole is open, so that nothing may be tried."""
    return circuit(store.holds().get(SERVER), now=now) is Circuit.OPEN


def too_early(hold: Hold, *, now: float) -> bool:
    """Whether the time for the next try is yet to come. A hold that begins in times to come began
    before the clock was set back, so that its times mean nothing."""
    return hold.retry_at is not None and hold.since <= now < hold.retry_at


def hold_after(
    template: str,
    error: PoolError,
    previous: Hold | None,
    *,
    uploads: bool = False,
    now: float,
    rng: random.Random,
) -> Hold:
    """Return the hold that follows a failure.

    Passing failures (429, 5xx, lost connections) back off and honour ``Retry-After`` up to the
    longest back-off; refusals (400, 401, 403) are tried again after minutes. ``uploads`` says that
    data is not taken either.
    """
    refused = isinstance(error, REFUSALS)
    if previous is not None and was_refused(previous) != refused:
        # Another kind of trouble, with pauses of its own.
        previous = None
    attempts = 1
    if previous is not None:
        # Calls that ran at the same time fail together; that is one failure, not several.
        together = previous.retry_at is not None and now < previous.retry_at
        attempts = previous.attempts + (not together)
    if refused:
        delay = backoff(attempts, base=REFUSED_BASE, cap=REFUSED_CAP, least=1.0)
    else:
        delay = backoff(attempts, base=TRANSIENT_BASE, cap=TRANSIENT_CAP, rng=rng)
        if isinstance(error, CvatBusy) and error.retry_after is not None:
            delay = max(delay, min(error.retry_after, TRANSIENT_CAP))
    return Hold(
        template=template,
        code=error.code,
        reason=str(error),
        since=min(previous.since, now) if previous is not None else now,
        retry_at=now + delay,
        attempts=attempts,
        uploads=uploads or (previous is not None and previous.uploads),
    )


def was_refused(hold: Hold) -> bool:
    """Whether a hold is for a refusal, which wants a person, and not for a passing failure."""
    return hold.code in {kind.code for kind in REFUSALS}


def of_slots(hold: Hold) -> bool:
    """Whether a hold is for what only tasks over placeholders need: their storage, and an import.
    Other tasks of the template can be created meanwhile."""
    return hold.code in {
        kind.code for kind in (SlotStorageUnavailable, ImportFailed, ImportTimedOut)
    }


@dataclass(kw_only=True, slots=True)
class Failures:
    """When creates of a template have failed since one succeeded, and with which error."""

    at: list[float] = field(default_factory=list)
    error: PoolError | None = None


def with_advice(
    error: PoolError, doubtful: str, *, because: str = "the same works for others"
) -> PoolError:
    """Return a copy of an error that one of many had alone, with what to look at."""
    advised = copy(error)
    detail = f"{error.detail.rstrip('.')}; {because}, so look at {doubtful}"
    advised.detail = detail
    advised.args = (detail,)
    return advised


class Breaker:
    """The circuit breakers of the server and of each template, for one process. Thread-safe.

    The holds stand in the store, for all processes, and so do the failures of a request's uploads;
    those of a template's creates are counted here, and anew after a restart.
    """

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        *,
        owner: str,
        clock: Clock,
        spool: Callable[[], str] = lambda: "",
        rng: random.Random | None = None,
    ) -> None:
        """``spool`` returns the id of the spool that holds this process's data."""
        self._store = store
        self._spool = spool
        self._cvat = cvat
        self._owner = owner
        self._clock = clock
        self._rng = rng or random.Random()
        self._guard = threading.Lock()
        self._asking = threading.Lock()
        #: So that of calls that fail together, one makes the hold and the others prolong it.
        self._holding = threading.Lock()
        #: The holds that have been logged, and have not ended.
        self._noted: dict[str, Hold] = {}
        self._creates: dict[str, Failures] = {}
        #: Why the server has not answered this process, since it has last.
        self._own: Hold | None = None
        #: What this process tries.
        self._trials: set[str] = set()

    # --- What may be tried ------------------------------------------------------------------------

    def server(self) -> Circuit:
        """Whether the server as a whole may be called."""
        now, hold = self._clock.now(), self._holds().get(SERVER)
        found = circuit(hold, now=now)
        if found is Circuit.HALF_OPEN and hold is not None and self._steps_aside(hold, now):
            return Circuit.OPEN
        return found

    @property
    def cut_off(self) -> bool:
        """Whether this process alone cannot reach the server: another daemon has had an answer
        since this one's call failed, and it has failed again. It leaves the work to that one, until
        it has an answer itself."""
        own = self._own
        return own is not None and own.attempts > 1 and self._is_alone(own)

    def _is_alone(self, own: Hold) -> bool:
        """Whether another daemon has had an answer of the server since this process had none."""
        now = self._clock.now()
        return self._store.others_reach_server(self._owner, since=own.since, now=now)

    def _holds(self) -> Mapping[str, Hold]:
        """Return the holds in the store, and that of the server for this process alone."""
        own, holds = self._own, self._store.holds()
        if own is None or SERVER in holds or not self._is_alone(own):
            return holds
        return {SERVER: own, **holds}

    def _steps_aside(self, hold: Hold, now: float) -> bool:
        """Whether this process, whose last try of the server failed, lets others try it first."""
        if self._own is None or SERVER not in self._store.holds():
            return False
        return now < (hold.retry_at or now) + ASIDE and len(self._store.daemons(now=now)) > 1

    def creates(self, template: str, *, slots: bool = False) -> Circuit:
        """Whether a task of the template may be created, or with ``slots`` one over
        placeholders."""
        hold = self._store.holds().get(template)
        if hold is not None and of_slots(hold) and not slots:
            hold = None
        return circuit(hold, now=self._clock.now())

    def uploads(self, template: str) -> Circuit:
        """Whether data may be sent for a template, and that not while the server is held. CVAT may
        refuse to create its tasks and still take data for those that are there."""
        holds = self._holds()
        if SERVER in holds:
            return Circuit.OPEN
        hold = holds.get(template)
        return circuit(hold if hold is not None and hold.uploads else None, now=self._clock.now())

    def creates_alone(self, template: str) -> bool:
        """Whether creates of a template are held and its uploads are not, so that a create that
        works ends the hold."""
        hold = self._store.holds().get(template)
        return hold is not None and not hold.uploads

    def begin_trial(self, name: str) -> bool:
        """Whether this call is the one that tries what is held now, a template or the server;
        then :meth:`end_trial` has to follow. One that ended well or badly has ended or prolonged
        the hold before. Where the process dies instead, others may try once it counts as gone."""
        with self._guard:
            if name in self._trials:
                return False
            self._trials.add(name)
        mine = False
        try:
            # What is held for this process alone, no other tries.
            alone = name == SERVER and name not in self._store.holds()
            mine = alone or self._store.begin_trial(name, owner=self._owner, now=self._clock.now())
        finally:
            if not mine:
                self._trials.discard(name)
        return mine

    def end_trial(self, name: str) -> None:
        """Let another call try what is still held. Where the store does not take that, this process
        may, and others once it is gone."""
        try:
            self._store.end_trial(name, owner=self._owner)
        except StoreError as error:
            log.info("trial not ended", template=name, why=str(error))
        finally:
            self._trials.discard(name)

    def has_daemon(self) -> bool:
        """Whether a daemon is at work that reads this process's spool: it tries what is held, and
        serves what is queued."""
        spool = self._spool()
        return any(each.spool in ("", spool) for each in self._store.daemons(now=self._clock.now()))

    def passing_hold(self, template: str) -> Hold | None:
        """Return the hold of the server, or of a template, unless a person has to end it."""
        holds = self._store.holds()
        hold = holds.get(SERVER) or holds.get(template)
        if hold is None or (hold.template and was_refused(hold)) or of_slots(hold):
            return None
        return hold

    def waits_for_cvat(self, template: str) -> bool:
        """Whether what a template's requests wait for is CVAT, or a person who mends the
        credentials, rather than a task."""
        holds = self._holds()
        hold = holds.get(SERVER) or holds.get(template)
        return hold is not None and hold.code != CvatRejected.code and not of_slots(hold)

    def tries_at(self, names: Collection[str], *, now: float) -> float | None:
        """Return when the first of some templates, or of the server, may be tried again, by the
        monotonic clock; None when none is held, or one may be tried now."""
        holds = self._holds()
        ends = [holds[name].retry_at or 0.0 for name in names if name in holds]
        seconds = min(ends, default=0.0) - self._clock.now()
        return now + seconds if seconds > 0 else None

    def retry_after(self) -> float:
        """Return the seconds after which a caller who met a full queue may try again."""
        now = self._clock.monotonic()
        wait = (self.tries_at([SERVER], now=now) or now) - now
        return min(LONGEST_PAUSE, max(LEAST_PAUSE, wait))

    # --- Outcomes ---------------------------------------------------------------------------------

    def create_failed(self, template: Template, error: PoolError) -> None:
        """Note that a task of a template could not be created."""
        name = template.name
        if is_passing(error) and self._server_fails():
            return
        before = self._store.holds().get(name)
        if before is None:
            # A create has worked since, here or in another process.
            with self._guard:
                self._creates.pop(name, None)
        if not is_passing(error):
            self.hold(name, error)
            return
        since = self._clock.now() if before is None else before.since
        others = self._store.others_created(name, since=since)
        reason = with_advice(error, template.doubtful) if others else error
        after = self.hold(name, reason)
        if before is None or after.attempts != before.attempts:
            self._remember(name, error)

    def create_worked(self, template: str, *, slots: bool = False) -> None:
        """Note that a task of a template was created, or with ``slots`` one over placeholders."""
        with self._guard:
            self._creates.pop(template, None)
        holds = self._store.holds()
        self._reached(holds)
        hold = holds.get(template)
        if hold is not None and not hold.uploads and (slots or not of_slots(hold)):
            self._release(hold)

    def upload_failed(self, template: str, request_id: str, error: PoolError) -> Fault:
        """Note that CVAT did not take a request's data, for a reason that need not be the data;
        return the fault domain."""
        server = is_passing(error) and self._server_fails()
        # The data of no request is the cause.
        refused = isinstance(error, CvatRefusedCredentials)
        counts, now = not (server or refused), self._clock.now()
        failed_at = self._store.upload_failed(request_id, counts=counts, now=now)
        if server:
            return Fault.SHARED
        if refused:
            self.hold(template, error, uploads=True)
            return Fault.SHARED
        others = self._store.others_uploaded(request_id, since=failed_at[0])
        if is_own_fault(failed_at, others_succeeded=others):
            return Fault.OWN
        if others or (cut_off(error) and len(failed_at) == 1):
            # A proxy may cut this upload, and no other.
            return Fault.SUSPECT
        self.hold(template, error, uploads=True)
        return Fault.SHARED

    def upload_worked(self, template: str) -> None:
        """Note that CVAT has accepted data for a template."""
        self._reached({})
        hold = self._store.holds().get(template)
        if hold is not None and hold.uploads:
            self._release(hold)

    def fault_of_create(self, template: Template, *, since: float) -> PoolError | None:
        """Return why the creates of a template fail, when they alone do and have failed often
        enough since ``since``, in seconds since the epoch; None otherwise."""
        with self._guard:
            failures = self._creates.get(template.name)
            failed_at = [at for at in failures.at if at >= since] if failures else []
        if failures is None or failures.error is None or len(failed_at) < OWN_FAILURES:
            return None
        others = self._store.others_created(template.name, since=failed_at[0])
        if not is_own_fault(failed_at, others_succeeded=others):
            return None
        return with_advice(failures.error, template.doubtful)

    def pause(self) -> float:
        """Return the seconds until a suspect is tried again."""
        return self._rng.uniform(*OWN_PAUSE)

    # --- The server as a whole ------------------------------------------------------------------

    def ask(self) -> bool:
        """Ask the server for something that belongs to no template. Hold it when that fails, and
        release it when it answers. While it is held, one process asks at a time: for the others it
        stays held."""
        with self._asking:
            held = SERVER in self._store.holds()
            if held and not self.begin_trial(SERVER):
                return SERVER not in self._store.holds()
            return self.ask_in_trial() if held else self._answers()

    def ask_in_trial(self) -> bool:
        """:meth:`ask` in a trial of the server that was begun, and end that."""
        try:
            return self._answers()
        finally:
            self.end_trial(SERVER)

    def _answers(self) -> bool:
        try:
            # Not ``about``, which answers without a database, too.
            self._cvat().tasks([0])
        except CvatError as error:
            if is_passing(error):
                self._not_reached(error)
                return False
        self._reached(self._store.holds())
        return True

    def _reached(self, holds: Mapping[str, Hold]) -> None:
        """Note that the server has answered this process."""
        own, self._own = self._own, None
        if own is not None and own.attempts > 1:
            log.info("CVAT answers this process again")
        if SERVER in holds:
            self._store.reach_server(self._owner, now=self._clock.now())
            self._release(holds[SERVER])

    def _not_reached(self, error: CvatError) -> None:
        """Hold the server for all, unless another daemon has had an answer since it was held for
        this one."""
        now, before = self._clock.now(), self._own
        if before is None or not self._is_alone(before):
            self._own = hold_after(SERVER, error, None, now=now, rng=self._rng)
            self.hold(SERVER, error)
            return
        self._own = hold_after(SERVER, error, before, now=now, rng=self._rng)
        if before.attempts == 1 < self._own.attempts:
            log.warning(f"CVAT answers another daemon, and not this process: {error}")

    def _server_fails(self) -> bool:
        # Others that failed at the same time may just have found out.
        return self.server() is Circuit.OPEN or not self.ask()

    # --- Holds ----------------------------------------------------------------------------------

    def hold(self, name: str, error: PoolError, *, uploads: bool = False) -> Hold:
        """Hold a template, or the server as a whole, for all processes."""
        with self._holding:
            now = self._clock.now()
            previous = self._store.holds().get(name)
            hold = hold_after(name, error, previous, uploads=uploads, now=now, rng=self._rng)
            self._store.hold(hold)
            self._note(hold, now)
        return hold

    def _release(self, hold: Hold) -> None:
        """End a hold, since what it holds has worked."""
        with self._holding:
            now = self._clock.now()
            if self._store.release_hold(hold.template, now=now):
                self._noted.pop(hold.template, None)
                self._say_ended(hold, "works again after", now)

    def note_holds(self) -> None:
        """Log the holds that other processes have begun or ended since."""
        with self._holding:
            now, holds = self._clock.now(), self._store.holds()
            for hold in holds.values():
                self._note(hold, now)
            for name in self._noted.keys() - holds.keys():
                self._say_ended(self._noted.pop(name), "is no longer held, after", now)

    def _note(self, hold: Hold, now: float) -> None:
        """Log a hold once: the tries that fail after it are the same one."""
        noted = self._noted.get(hold.template)
        self._noted[hold.template] = hold
        if noted == hold:
            return
        new = noted is None or (noted.code, noted.uploads, noted.since) != (
            hold.code,
            hold.uploads,
            hold.since,
        )
        whose = f"{hold.template}: " if hold.template else ""
        pause = max(0.0, (hold.retry_at or now) - now)
        say = log.warning if new else log.debug
        say(f"{whose}{hold.reason.rstrip('.')}; next try in {pause:.1f} s")

    @staticmethod
    def _say_ended(hold: Hold, what: str, now: float) -> None:
        whose = f"{hold.template}:" if hold.template else "CVAT"
        lasted = format_duration(max(0, round(now - hold.since)))
        log.info(f"{whose} {what} {lasted}")

    def try_now(self) -> None:
        """Let everything that is held be tried at once: the cause may be mended."""
        now, own = self._clock.now(), self._own
        if own is not None:
            self._own = replace(own, retry_at=now)
        for hold in self._store.holds().values():
            if hold.retry_at is None or hold.retry_at > now:
                self._store.hold(replace(hold, retry_at=now))

    def _remember(self, name: str, error: PoolError) -> None:
        now = self._clock.now()
        with self._guard:
            failures = self._creates.setdefault(name, Failures())
            if failures.at and failures.at[-1] > now:
                failures.at.clear()  # before the clock was set back
            failures.error = error
            failures.at = [*failures.at[-MOST_REMEMBERED + 1 :], now]
