"""The circuit breakers: what a failed call holds, and what may be tried meanwhile.

A call that fails says something about what it was about, and nothing about the rest: CVAT answers
500 to each create of one template, or to each upload of one request, and serves all others. So a
failure holds its template alone, and then the server is asked for something that is about no
template. Only when that fails too is the server as a whole held, and with it all templates. An
answer proves little (it comes with a full disk, too): then each template goes on by itself, and
finds out for itself.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient, cut_off
from pool.errors import CvatError, CvatRefusedCredentials, CvatRejected, PoolError
from pool.logs import get_logger
from pool.model import Hold
from pool.requests.backoff import (
    SERVER,
    Circuit,
    circuit,
    hold_after,
    is_passing,
    was_refused,
)
from pool.store import Store

log = get_logger(__name__)

#: An operation that fails so often, over so many seconds at least, while it succeeds for others,
#: fails for a reason of its own.
OWN_FAILURES: Final = 3
OWN_SECONDS: Final = 30.0
#: Seconds until a request is tried again that fails while others do not: after two such pauses the
#: third failure decides.
OWN_PAUSE: Final = (15.0, 20.0)
#: Failures of one operation that are remembered.
MOST_REMEMBERED: Final = 20


class Blame(Enum):
    """What a failure was found to be about."""

    #: The server as a whole, or all that is about a template: it passes, or a person ends it.
    OTHERS = auto()
    #: Probably what failed alone, since the same works for others; to be seen.
    SUSPECT = auto()
    #: What failed alone.
    OWN = auto()


@dataclass(kw_only=True, slots=True)
class Failures:
    """When one operation has failed since it last succeeded, and how the last time."""

    at: list[float] = field(default_factory=list)
    error: PoolError | None = None


def is_own_fault(failed_at: Sequence[float], *, others_succeeded: bool) -> bool:
    """Whether an operation that failed at these times, while it succeeded for others or not, has
    a fault of its own. Where nothing succeeds it is an outage, however long that lasts."""
    return (
        others_succeeded
        and len(failed_at) >= OWN_FAILURES
        and failed_at[-1] - failed_at[0] >= OWN_SECONDS
    )


def with_advice(
    error: PoolError, doubtful: str, *, because: str = "the same works for others"
) -> PoolError:
    """Return a copy of an error that only one of many had, with what to look at."""
    advised = copy(error)
    detail = f"{error.detail.rstrip('.')}; {because}, so look at {doubtful}"
    advised.detail = detail
    advised.args = (detail,)
    return advised


class Breaker:
    """The circuit breakers of the server and of each template, for one process. Thread-safe.

    The holds stand in the store, for all processes; who failed how often is remembered here, and
    counted anew after a restart.
    """

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        *,
        clock: Clock,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._clock = clock
        self._rng = rng or random.Random()
        self._guard = threading.Lock()
        self._asking = threading.Lock()
        self._creates: dict[str, Failures] = {}
        self._uploads: dict[str, Failures] = {}
        #: When each request's upload failed last, for whatever reason.
        self._failed_at: dict[str, float] = {}

    # --- What may be tried ------------------------------------------------------------------------

    def server(self) -> Circuit:
        """Whether the server as a whole may be called."""
        return self._circuit(self._store.holds().get(SERVER))

    def creates(self, template: str) -> Circuit:
        """Whether a task of the template may be created."""
        return self._circuit(self._store.holds().get(template))

    def uploads(self, template: str) -> Circuit:
        """Whether data may be sent for a template: CVAT may refuse to create its tasks and still
        take data for those that are there."""
        hold = self._store.holds().get(template)
        return self._circuit(hold if hold is not None and hold.uploads else None)

    def takes_uploads(self, template: str) -> bool:
        """Whether nothing speaks against sending data for a template, as much as there is."""
        closed = Circuit.CLOSED
        return self.server() is closed and self.uploads(template) is closed

    def is_away(self, template: str, has_warm: Callable[[], bool]) -> bool:
        """Whether a request of a template would fail now in a way that passes by itself;
        ``has_warm`` tells whether it needs no new task."""
        holds = self._store.holds()
        if SERVER in holds:
            return True
        hold = holds.get(template)
        return hold is not None and not was_refused(hold) and (hold.uploads or not has_warm())

    def waits_for_cvat(self, template: str) -> bool:
        """Whether what a template's requests wait for is CVAT, or a person who mends the
        credentials, rather than a task."""
        holds = self._store.holds()
        hold = holds.get(SERVER) or holds.get(template)
        return hold is not None and hold.code != CvatRejected.code

    def tries_at(self, names: Collection[str], *, now: float) -> float | None:
        """When the first of some templates, or of the server, may be tried again, by the monotonic
        clock; None when none is held, or one may be tried now."""
        holds = self._store.holds()
        ends = [holds[name].retry_at or 0.0 for name in names if name in holds]
        seconds = min(ends, default=0.0) - self._clock.now()
        return now + seconds if seconds > 0 else None

    # --- What became of trying --------------------------------------------------------------------

    def create_failed(self, template: Template, error: PoolError) -> None:
        """A task of a template could not be created."""
        name = template.name
        if is_passing(error) and self._is_about_the_server():
            return
        before = self._store.holds().get(name)
        if before is None:
            # It has worked since, here or in another process.
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
            self._remember(self._creates, name, error)

    def create_worked(self, template: str) -> None:
        """A task of a template was created."""
        with self._guard:
            self._creates.pop(template, None)
        holds = self._store.holds()
        if SERVER in holds:
            self._store.release_hold(SERVER, now=self._clock.now())
        if template in holds and not holds[template].uploads:
            self._store.release_hold(template, now=self._clock.now())

    def upload_failed(self, template: str, request_id: str, error: PoolError) -> Blame:
        """CVAT did not take a request's data, without a word about the data itself."""
        with self._guard:
            self._failed_at[request_id] = self._clock.monotonic()
        if is_passing(error) and self._is_about_the_server():
            return Blame.OTHERS
        if isinstance(error, CvatRefusedCredentials):
            # The data of no request is the cause.
            self.hold(template, error, uploads=True)
            return Blame.OTHERS
        failed_at = self._remember(self._uploads, request_id, error)
        others = self._store.others_uploaded(request_id, since=failed_at[0])
        if is_own_fault(failed_at, others_succeeded=others):
            return Blame.OWN
        if others or (cut_off(error) and len(failed_at) == 1):
            # A proxy may cut this upload, and no other.
            return Blame.SUSPECT
        self.hold(template, error, uploads=True)
        return Blame.OTHERS

    def upload_worked(self, template: str, request_id: str) -> None:
        """CVAT has accepted a request's data."""
        self.forget(request_id)
        hold = self._store.holds().get(template)
        if hold is not None and hold.uploads:
            self._store.release_hold(template, now=self._clock.now())

    def fault_of_create(self, template: Template, *, since: float) -> PoolError | None:
        """Why the creates of a template fail, when they alone do and have failed often enough
        since ``since``, in seconds since the epoch; None otherwise."""
        with self._guard:
            failures = self._creates.get(template.name)
            failed_at = [at for at in failures.at if at >= since] if failures else []
        if failures is None or failures.error is None or len(failed_at) < OWN_FAILURES:
            return None
        others = self._store.others_created(template.name, since=failed_at[0])
        if not is_own_fault(failed_at, others_succeeded=others):
            return None
        return with_advice(failures.error, template.doubtful)

    def failed_at(self, request_id: str) -> float:
        """When a request's upload failed last, by the monotonic clock; before all times when it
        did not."""
        with self._guard:
            return self._failed_at.get(request_id, -math.inf)

    def failing(self) -> list[str]:
        """The requests whose failures are remembered."""
        with self._guard:
            return list(self._failed_at)

    def pause(self) -> float:
        """Seconds until a suspect is tried again."""
        return self._rng.uniform(*OWN_PAUSE)

    def forget(self, request_id: str) -> None:
        """The request is at its end."""
        with self._guard:
            self._uploads.pop(request_id, None)
            self._failed_at.pop(request_id, None)

    # --- The server as a whole ------------------------------------------------------------------

    def ask(self) -> bool:
        """Ask the server for something that is about no template: it is held when that fails, and
        no longer when it answers."""
        with self._asking:
            try:
                # Not ``about``, which answers without a database, too.
                self._cvat().tasks([0])
            except CvatError as error:
                if is_passing(error):
                    self.hold(SERVER, error)
                    return False
            if SERVER in self._store.holds():
                self._store.release_hold(SERVER, now=self._clock.now())
            return True

    def _is_about_the_server(self) -> bool:
        # Others that failed at the same time may just have found out.
        return self.server() is Circuit.OPEN or not self.ask()

    # --- Holds ----------------------------------------------------------------------------------

    def hold(self, name: str, error: PoolError, *, uploads: bool = False) -> Hold:
        """Hold a template, or the server as a whole, for all processes."""
        now = self._clock.now()
        previous = self._store.holds().get(name)
        hold = hold_after(name, error, previous, uploads=uploads, now=now, rng=self._rng)
        self._store.hold(hold)
        log.warning(
            "template held" if name else "server held",
            template=name or None,
            why=hold.reason,
            retry_in=round((hold.retry_at or now) - now, 1),
        )
        return hold

    def try_now(self) -> None:
        """Try all that is held with the next occasion: what it was held for may be mended."""
        now = self._clock.now()
        for hold in self._store.holds().values():
            if hold.retry_at is None or hold.retry_at > now:
                self._store.hold(replace(hold, retry_at=now))

    def _circuit(self, hold: Hold | None) -> Circuit:
        return circuit(hold, now=self._clock.now())

    def _remember(self, kind: dict[str, Failures], name: str, error: PoolError) -> list[float]:
        now = self._clock.now()
        with self._guard:
            failures = kind.setdefault(name, Failures())
            if failures.at and failures.at[-1] > now:
                failures.at.clear()  # before the clock was set back
            failures.error = error
            failures.at = [*failures.at[-MOST_REMEMBERED + 1 :], now]
            return failures.at
