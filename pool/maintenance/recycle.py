"""Takes out of the pool what should not be handed out: of an older template, too many; and ends
leases whose time is up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus, TaskInfo
from pool.errors import CvatError, CvatUnreachable, ImportFailed
from pool.logs import get_logger
from pool.model import Handout, TaskState
from pool.requests.breaker import SERVER, Circuit, circuit
from pool.store import Store

log = get_logger(__name__)

#: Why warm tasks are retired when their template is not what it was, and when people want them
#: to go.
CHANGED: Final = "the template has changed"
DRAINED: Final = "the template is drained"
#: Expired leases that are looked at in one run; failures to reach CVAT in a row that end it; and
#: seconds until one that failed is looked at again.
BATCH = 100
MOST_AWAY = 3
RETRY_AFTER = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecycleReport:
    """How many warm tasks were retired, and what became of expired leases."""

    retired: int = 0
    given_back: int = 0
    followed: int = 0
    ended: int = 0


class Recycle:
    """Retires warm tasks and ends expired leases."""

    def __init__(
        self, store: Store, cvat: CvatClient, templates: Mapping[str, Template], *, clock: Clock
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._templates = templates
        self._clock = clock
        #: When a lease is looked at again of which CVAT could not tell, by the clock that does
        #: not jump.
        self._later: dict[str, float] = {}

    def run_once(self) -> RecycleReport:
        """Retire what is due, then look after expired leases."""
        retired = sum(self._retire(template) for template in self._templates.values())
        retired += self._retire_unwanted()
        leases = self._end_leases()
        return RecycleReport(
            retired=retired,
            given_back=leases.given_back,
            followed=leases.followed,
            ended=leases.ended,
        )

    def _retire(self, template: Template) -> int:
        now = self._clock.now()
        changed = self._store.retire_other_fingerprints(
            template.name,
            template.fingerprint,
            older_from=template.older_from,
            reason=CHANGED,
            now=now,
        )
        if template.older_from is not None:
            # Before any of the template as it is now goes as one too many.
            changed += self._store.retire_older(
                template.name,
                template.fingerprint,
                older_from=template.older_from,
                keep=template.pool.max_size,
                reason=CHANGED,
                now=now,
            )
        excess = self._store.retire_excess(
            template.name, keep=template.pool.max_size, reason="more than max_size", now=now
        )
        if changed or excess:
            log.info("tasks retired", template=template.name, changed=changed, excess=excess)
        return changed + excess

    def _retire_unwanted(self) -> int:
        """All warm tasks of templates that were taken out or are drained: those that were being
        created meanwhile, and those that were given back."""
        drained = self._store.drained()
        retired = 0
        for name, levels in self._store.levels().items():
            unknown = name not in self._templates
            if levels[TaskState.WARM] and (unknown or name in drained):
                retired += self._store.retire_other_fingerprints(
                    name,
                    "",
                    reason="the template was taken out" if unknown else DRAINED,
                    now=self._clock.now(),
                )
        return retired

    def _end_leases(self) -> RecycleReport:
        expired = self._expired()
        if not expired or self._server_is_held():
            return RecycleReport()
        ids = [handout.task.task_id for handout in expired if handout.task.task_id is not None]
        try:
            on_server = self._cvat.tasks(ids)
        except CvatError as error:
            # Nothing is known, so nothing is decided; the leases stay as they are.
            log.warning("expired leases not looked at", why=str(error))
            return RecycleReport()
        done: Counter[str] = Counter()
        away = 0
        for handout in expired:
            try:
                done[self._end_lease(handout, on_server.get(handout.task.task_id or 0))] += 1
            except CvatError as error:
                # One that fails every time must not keep the others.
                log.warning(
                    "expired lease not looked at", lease_id=handout.lease.id, why=str(error)
                )
                self._later[handout.lease.id] = self._clock.monotonic() + RETRY_AFTER
                away = away + 1 if isinstance(error, CvatUnreachable) else 0
                if away == MOST_AWAY:
                    break
            else:
                away = 0
        return RecycleReport(
            given_back=done["given back"], followed=done["followed"], ended=done["ended"]
        )

    def _expired(self) -> list[Handout]:
        """The expired leases to look at now."""
        now = self._clock.monotonic()
        self._later = {lease_id: at for lease_id, at in self._later.items() if at > now}
        expired = self._store.expired_leases(now=self._clock.now(), limit=BATCH + len(self._later))
        return [each for each in expired if each.lease.id not in self._later]

    def _server_is_held(self) -> bool:
        return circuit(self._store.holds().get(SERVER), now=self._clock.now()) is Circuit.OPEN

    def _end_lease(self, handout: Handout, info: TaskInfo | None) -> str:
        now = self._clock.now()
        lease, task = handout.lease, handout.task
        if info is None or task.task_id is None:
            self._store.end_lease(lease.id, reason="deleted on the server", now=now)
            return "ended"
        jobs = self._cvat.jobs([task.task_id]).get(task.task_id)
        if jobs:
            self._store.complete_import(task.id, jobs, now=now)
            return "followed"
        state = self._cvat.import_state(task.task_id)
        if state.status is ImportStatus.FAILED:
            self._store.fail_import(task.id, code=ImportFailed.code, message=state.message, now=now)
            return "ended"
        if state.status in (ImportStatus.QUEUED, ImportStatus.STARTED, ImportStatus.FINISHED):
            self._store.begin_foreign_import(lease.id, now=now)
            return "followed"
        if not info.empty or info.name != task.name:
            self._store.end_lease(lease.id, reason="used or renamed by its caller", now=now)
            return "ended"
        self._store.give_back(lease.id, now=now, expired=True)
        return "given back"
