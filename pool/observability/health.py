"""Whether a daemon is ready, and which check fails if it is not.

The answer needs no token, so it contains no secret, no address and no path; the log and
``cvat-pool status`` have the reasons.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from pool.clock import Clock
from pool.errors import CvatAmbiguous, CvatRefusedCredentials, CvatUnreachable, PoolError
from pool.maintenance.scheduler import Scheduler, ServiceRecord
from pool.model import ConfigRecord, Hold
from pool.requests.breaker import SERVER, Circuit, circuit
from pool.store import Store

#: A service is stale when its last success is older than so many intervals and so many seconds.
STALE_INTERVALS: Final = 5
STALE_LEAST: Final = 60.0
#: Seconds after which the last answer of CVAT is too old: it is called at least once an hour.
SILENT_FOR: Final = 3 * 3600.0
#: Results of calls that CVAT did not answer.
UNANSWERED: Final = frozenset({CvatUnreachable.code, CvatAmbiguous.code, "error"})
#: Seconds for which a report is reused, so that frequent checks do not keep the disk busy.
ANSWER_FOR: Final = 1.0
#: Seconds for which the store is waited for.
PATIENCE: Final = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreCheck:
    """Whether a durable write is possible."""

    ok: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCheck:
    """Whether CVAT answers and is not held. ``answered_seconds_ago`` is None before the first
    answer. While it is ``held``, for ``held_seconds`` already and because of the error ``code``, no
    task is created and no data is sent, for any template."""

    ok: bool
    answered_seconds_ago: float | None = None
    held: bool = False
    held_seconds: float | None = None
    code: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerCheck:
    """Whether the services run. ``stale`` are those that have not succeeded for long."""

    ok: bool
    stale: tuple[str, ...] = ()
    last_success_seconds_ago: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaintainerCheck:
    """Whether a daemon maintains the store, and whether it is the one ``here``. This one is ready
    all the same."""

    ok: bool
    here: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigurationCheck:
    """Whether the configuration file is in force. If it was rejected, ``rejected_seconds`` ago, or
    has keys that need a ``restart``, an older one is in force; the daemon is ready all the same.
    """

    ok: bool
    rejected_seconds: float | None = None
    restart: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """All checks."""

    store: StoreCheck
    server: ServerCheck
    scheduler: SchedulerCheck
    maintainer: MaintainerCheck
    configuration: ConfigurationCheck


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthReport:
    """The checks, and whether the daemon can serve: the store can be written, its services run, and
    CVAT answers it, or is held for all."""

    ready: bool
    checks: Checks


class ServerContact:
    """The results of this process's calls to CVAT. Thread-safe.

    ``lost``: the last call got no answer. ``refused``: its credentials were refused.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._answered_at: float | None = None
        self.lost = False
        self.refused = False

    def call(self, result: str) -> None:
        """Note the result of a call, "ok" or the code of its error."""
        self.lost = result in UNANSWERED
        self.refused = result == CvatRefusedCredentials.code
        if not self.lost:
            self._answered_at = self._clock.monotonic()

    @property
    def answered_ago(self) -> float | None:
        """Seconds since the last answer; None before the first."""
        answered_at = self._answered_at
        return None if answered_at is None else self._clock.monotonic() - answered_at


def hold_of_all(
    holds: Mapping[str, Hold], templates: Collection[str], *, now: float
) -> Hold | None:
    """Return the hold of the server, or, if every template is held, the youngest of their holds.

    None if a template may be tried: while its pool is full, only a request tries it.
    """
    if SERVER in holds:
        return holds[SERVER]
    mine = (holds.get(name) for name in templates)
    open_ = [hold for hold in mine if hold and circuit(hold, now=now) is Circuit.OPEN]
    if not templates or len(open_) < len(templates):
        return None
    return max(open_, key=lambda hold: hold.since)


def judge_server(contact: ServerContact, hold: Hold | None, now: float) -> ServerCheck:
    """Check whether CVAT answers; ``hold`` holds all templates."""
    ago = contact.answered_ago
    silent = ago is not None and ago > SILENT_FOR
    code = CvatRefusedCredentials.code if contact.refused else ""
    return ServerCheck(
        ok=hold is None and not contact.lost and not contact.refused and not silent,
        answered_seconds_ago=None if ago is None else round(ago, 1),
        held=hold is not None,
        held_seconds=round(max(0.0, now - hold.since), 1) if hold is not None else None,
        code=hold.code if hold is not None else code,
    )


def judge_services(
    records: Mapping[str, ServiceRecord], *, running: bool, now: float
) -> SchedulerCheck:
    """Check whether all services run and have succeeded recently; ``now`` is monotonic."""
    ago: dict[str, float | None] = {}
    stale = []
    for name, record in records.items():
        since = record.added_at if record.succeeded_at is None else record.succeeded_at
        if now - since > max(STALE_LEAST, STALE_INTERVALS * record.every):
            stale.append(name)
        ago[name] = None if record.succeeded_at is None else round(now - since, 1)
    return SchedulerCheck(
        ok=running and not stale, stale=tuple(stale), last_success_seconds_ago=ago
    )


def judge_configuration(record: ConfigRecord | None, now: float) -> ConfigurationCheck:
    """Check whether the configuration file is in force."""
    if record is None:
        return ConfigurationCheck(ok=True)
    at = record.rejected_at
    return ConfigurationCheck(
        ok=at is None and not record.restart,
        rejected_seconds=round(max(0.0, now - at), 1) if at is not None else None,
        restart=record.restart,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """What the store says."""

    holds: Mapping[str, Hold]
    maintainer: str | None


class Health:
    """Checks whether one daemon is ready. Thread-safe."""

    def __init__(
        self,
        store: Store,
        contact: ServerContact,
        schedulers: Callable[[], Sequence[Scheduler]],
        templates: Collection[str],
        configuration: Callable[[], ConfigRecord | None],
        *,
        owner: str,
        clock: Clock,
    ) -> None:
        self._store = store
        self._contact = contact
        self._schedulers = schedulers
        self._templates = templates
        self._configuration = configuration
        self._owner = owner
        self._clock = clock
        self._guard = threading.Lock()
        self._looked_at: float | None = None
        self._report: HealthReport | None = None
        #: The look at the store that is under way.
        self._looking: Future[_Rows] | None = None

    def run_once(self) -> HealthReport:
        """Return the report, at most :data:`ANSWER_FOR` seconds old, within :data:`PATIENCE`
        seconds: a store that hangs is not ok."""
        with self._guard:
            now = self._clock.monotonic()
            fresh = self._looked_at is not None and now - self._looked_at < ANSWER_FOR
            if self._report is None or not fresh:
                self._report = self._look()
                self._looked_at = now
            return self._report

    def _look(self) -> HealthReport:
        now = self._clock.now()
        rows = self._ask_store()
        schedulers = self._schedulers()
        checks = Checks(
            store=StoreCheck(ok=rows is not None),
            server=judge_server(
                self._contact,
                hold_of_all(rows.holds, self._templates, now=now) if rows else None,
                now,
            ),
            scheduler=judge_services(
                {name: each for one in schedulers for name, each in one.records.items()},
                running=bool(schedulers) and all(each.running for each in schedulers),
                now=self._clock.monotonic(),
            ),
            maintainer=MaintainerCheck(
                ok=rows is not None and rows.maintainer is not None,
                here=rows is not None and rows.maintainer == self._owner,
            ),
            configuration=judge_configuration(self._configuration(), now),
        )
        server = checks.server.ok or checks.server.held
        return HealthReport(ready=checks.store.ok and checks.scheduler.ok and server, checks=checks)

    def _ask_store(self) -> _Rows | None:
        """Return what the store answers; None when it does not, or not in time."""
        looking = self._looking
        if looking is None or looking.done():
            # A thread of its own: the threads that serve callers may hang at the store.
            looking = self._looking = Future()
            threading.Thread(target=self._ask, args=(looking,), name="health", daemon=True).start()
        try:
            return looking.result(PATIENCE)
        except (PoolError, TimeoutError):
            return None

    def _ask(self, looking: Future[_Rows]) -> None:
        try:
            self._store.check_writable()
            maintainer = self._store.maintainer(now=self._clock.now())
            looking.set_result(_Rows(holds=self._store.holds(), maintainer=maintainer))
        except BaseException as error:
            looking.set_exception(error)
