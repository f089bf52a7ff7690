"""Compare the rows with the server and make both agree, as :mod:`pool.maintenance.reconcile_rules`
decides.

Slots are not looked at here, but with their carriers (:mod:`pool.maintenance.carriers`).

A hand-out makes no call, so it does not look at its task. That is done at other times: all warm
tasks at the start of maintenance and every hour, by one listing that also shows orphans; and each
of them every so often in between, a batch in one call. After an unclean stop the warm tasks are
quarantined until they were looked at, which is one call after maintenance has begun, or until
:data:`DOUBT` seconds have passed: with CVAT out of reach, a task that is probably good is better
than none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pool.backoff import backoff
from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat import CvatClient
from pool.cvat.records import ImportStatus, TaskInfo
from pool.errors import CvatError, CvatUnreachable
from pool.logs import get_logger
from pool.maintenance.deletion import look_closer
from pool.maintenance.reconcile_rules import (
    Action,
    Finding,
    Orphan,
    judge_orphan,
    judge_stuck,
    judge_warm,
    longest_unseen,
    of_row,
    orphan_after,
    stuck_after,
)
from pool.maintenance.term import Term
from pool.model import PooledTask, TaskState, named_in, pool_mark
from pool.requests.breaker import SERVER, too_early
from pool.store import Store

log = get_logger(__name__)

#: Warm tasks that are looked at in one call of the rotation. Each costs the server 0.4 ms.
BATCH = 100
#: Seconds between two looks at everything; only orphans wait for it.
LOOK_EVERY = 3600.0
#: Tasks that a listing lacks and that are looked for one by one, in one run.
MOST_CLOSER_LOOKS = 100
#: Seconds for which unverified tasks are held back after an unclean stop.
DOUBT = 5.0
#: Seconds until the next try after a failed one, doubled for each further one up to the cap.
RETRY_BASE = 10.0
RETRY_CAP = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Findings, and the ids of the warm tasks that are in order."""

    findings: tuple[Finding, ...] = ()
    verified: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReconcileReport:
    """How many warm tasks were in order, and how often each action was taken. ``error`` is why not
    everything could be done; ``skipped``: nothing was due."""

    verified: int = 0
    done: Mapping[Action, int] = field(default_factory=dict)
    error: str = ""
    skipped: bool = False


class Reconcile:
    """Brings rows and server together. Orphans are deleted in a ``term`` only."""

    def __init__(
        self,
        store: Store,
        cvat: CvatClient,
        templates: Mapping[str, Template],
        term: Term | None,
        *,
        http_timeout: float,
        verify_every: float,
        clock: Clock,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._templates = templates
        self._term = term
        self._http_timeout = http_timeout
        self._verify_every = verify_every
        self._clock = clock
        #: When each warm task was last seen in order, by the clock that does not jump.
        self._verified: dict[str, float] = {}
        #: Until when none of them is due, so that their rows need not be read.
        self._verify_at = 0.0
        self._looked_at: float | None = None
        self._failures = 0
        self._not_before = 0.0

    # --- When ---------------------------------------------------------------------------------

    def run_once(self) -> ReconcileReport:
        """Look at what is due: everything at first, then every hour and when a create has been
        under way for too long; else the warm tasks that were not seen for longest. Make no call
        when nothing is due, and wait while requests are being served, within bounds."""
        if self._clock.monotonic() < self._not_before or self._server_is_held():
            return ReconcileReport(skipped=True)
        try:
            report = self._look_at_what_is_due()
        except CvatError as error:
            return self._failed(error)
        if not report.skipped:
            self._failures = 0
        return report

    def _look_at_what_is_due(self) -> ReconcileReport:
        if self._looked_at is None or self._is_due(self._looked_at, LOOK_EVERY) or self._stuck():
            report = self.apply(self.plan())
            self._looked_at = self._clock.monotonic()
            return report
        now, wall = self._clock.monotonic(), self._clock.now()
        if now < self._verify_at:
            return ReconcileReport(skipped=True)
        warm = self._warm()
        # A new one was in order when it became warm.
        self._verified = {
            task.id: self._verified.get(task.id, now - max(0.0, wall - (task.warm_at or wall)))
            for task in warm
        }
        chosen = longest_unseen(warm, self._verified, batch=BATCH)
        longest = self._verified[chosen[0].id] if chosen else now
        if not chosen or not self._is_due(longest, self._verify_every):
            self._verify_at = longest + self._verify_every
            return ReconcileReport(skipped=True)
        return self.apply(self._judge_warm(chosen, {}))

    def _is_due(self, since: float, every: float) -> bool:
        elapsed = self._clock.monotonic() - since
        return elapsed >= every and (elapsed >= 2 * every or not self._store.in_flight())

    def _server_is_held(self) -> bool:
        hold = self._store.holds().get(SERVER)
        return hold is not None and too_early(hold, now=self._clock.now())

    def _failed(self, error: CvatError) -> ReconcileReport:
        self._failures += 1
        pause = backoff(self._failures, base=RETRY_BASE, cap=RETRY_CAP, least=1.0)
        self._not_before = self._clock.monotonic() + pause
        log.warning(f"not reconciled, next try in {pause:.0f} s", why=str(error))
        return ReconcileReport(error=str(error))

    # --- Looking ------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Return what is not as it should be and what to do about it; change nothing.

        :raises pool.errors.CvatError: the server could not be asked.
        """
        warm = self._warm()
        stuck = self._stuck()
        # The server first, then the rows: a row is written before its task, so a task of this
        # listing that has none afterwards never had one.
        marked = {info.id: info for info in self._cvat.marked_tasks(pool_mark(self._store.pool_id))}
        judged = self._judge_warm(warm, marked)
        findings = [
            *judged.findings,
            *self._judge_stuck(stuck, marked.values()),
            *self._judge_orphans(marked.values()),
        ]
        return Plan(findings=tuple(findings), verified=judged.verified)

    def doomed(self) -> tuple[Finding, ...]:
        """Return what :mod:`pool.maintenance.deletion` is about to delete."""
        ways_out = (TaskState.RETIRED, TaskState.FAILED, TaskState.DELETING)
        return tuple(
            of_row(task, Action.DELETE, f"{task.state.value}: {task.reason}")
            for task in self._store.tasks(states=ways_out)
            # The job of a slot stays.
            if task.carrier_id is None
        )

    def _warm(self) -> list[PooledTask]:
        warm = self._store.tasks(states=(TaskState.WARM,))
        return [task for task in warm if task.carrier_id is None]

    def _stuck(self) -> list[PooledTask]:
        now, grace = self._clock.now(), stuck_after(self._http_timeout)
        creating = self._store.tasks(states=(TaskState.CREATING,))
        # One that is yet to begin was begun before the clock was set back.
        return [task for task in creating if abs(now - task.changed_at) > grace]

    def _judge_warm(self, warm: Sequence[PooledTask], seen: Mapping[int, TaskInfo]) -> Plan:
        listed = self._listed([task.task_id for task in warm if task.task_id is not None], seen)
        findings, verified = [], []
        looks = 0
        for task in warm:
            if task.task_id is None:
                continue
            looks += task.task_id not in listed
            if looks > MOST_CLOSER_LOOKS:
                break
            sight = look_closer(self._cvat, task.task_id, listed)
            finding = judge_warm(task, sight, self._templates.get(task.template))
            if finding is None:
                verified.append(task.id)
            else:
                findings.append(finding)
        return Plan(findings=tuple(findings), verified=tuple(verified))

    def _listed(self, task_ids: Sequence[int], seen: Mapping[int, TaskInfo]) -> dict[int, TaskInfo]:
        others = [task_id for task_id in task_ids if task_id not in seen]
        return {**seen, **(self._cvat.tasks(others) if others else {})}

    def _judge_stuck(
        self, stuck: Sequence[PooledTask], marked: Iterable[TaskInfo]
    ) -> Iterable[Finding]:
        by_name: dict[str, list[TaskInfo]] = {}
        for info in marked:
            by_name.setdefault(info.name, []).append(info)
        known = self._listed([task.task_id for task in stuck if task.task_id is not None], {})
        for task in stuck:
            matches = by_name.get(task.name, [])
            if not matches and task.task_id in known:
                matches = [known[task.task_id]]
            yield judge_stuck(task, sorted(matches, key=lambda info: info.id))

    def _judge_orphans(self, marked: Iterable[TaskInfo]) -> Iterable[Finding]:
        held = {task.task_id for task in self._store.tasks()}
        for info in marked:
            if info.id in held:
                continue
            try:
                orphan = self._orphan(info)
            except CvatUnreachable:
                raise
            except CvatError as error:
                log.warning("not looked at", task_id=info.id, why=str(error))
                continue
            if orphan is None:
                continue
            finding = judge_orphan(
                orphan, self._templates, old_after=orphan_after(self._http_timeout)
            )
            if finding is not None:
                yield finding

    def _orphan(self, info: TaskInfo) -> Orphan | None:
        """Return what is known of a marked task; None when a row holds it after all."""
        owner = self._store.task_on_server(info.id)
        if owner is not None and owner[0].state is not TaskState.DELETED:
            return None
        named = named_in(self._store.pool_id, info.name)
        row = owner[0] if owner else self._store.task(named) if named else None
        importing = ImportStatus.UNKNOWN
        if info.has_data and info.empty:
            # Either prepared for an upload that never came, or one is under way.
            importing = self._cvat.import_state(info.id).status
        return Orphan(info=info, named=named, row=row, importing=importing)

    # --- Acting -------------------------------------------------------------------------------

    def apply(self, plan: Plan) -> ReconcileReport:
        """Act on a plan, as far as the rows are still in the states that it found. What CVAT
        refuses is tried again the next time.

        :raises pool.errors.CvatUnreachable: the server could not be asked to delete an orphan.
        :raises TermLost: the rest is left to the process that maintains the store now.
        """
        now = self._clock.monotonic()
        if plan.verified:
            self._store.clear_quarantine(plan.verified, now=self._clock.now())
        self._verified.update(dict.fromkeys(plan.verified, now))
        done: Counter[Action] = Counter()
        refused = ""
        for finding in plan.findings:
            try:
                acted = finding.action is not Action.LEAVE and self._act(finding)
            except CvatUnreachable:
                raise
            except CvatError as error:
                # One orphan that cannot be deleted must not keep the others.
                log.warning("not reconciled", task_id=finding.task_id, why=str(error))
                refused = refused or str(error)
                continue
            if acted:
                done[finding.action] += 1
                log.info(
                    "reconciled",
                    action=finding.action.value,
                    why=finding.reason,
                    task_id=finding.task_id,
                    template=finding.template,
                    name=finding.name,
                )
        return ReconcileReport(verified=len(plan.verified), done=dict(done), error=refused)

    def _act(self, finding: Finding) -> bool:
        store, now = self._store, self._clock.now()
        pooled_id, task_id = finding.pooled_id or "", finding.task_id or 0
        match finding.action:
            case Action.RETIRE:
                return store.retire(pooled_id, reason=finding.reason, now=now)
            case Action.DISOWN:
                return store.disown(pooled_id, reason=finding.reason, now=now)
            case Action.FINISH_CREATE:
                store.record_created(pooled_id, task_id=task_id, now=now)
                return store.finish_create(pooled_id, prepared=finding.prepared, now=now)
            case Action.FAIL_CREATE:
                if finding.task_id is not None:
                    store.record_created(pooled_id, task_id=task_id, now=now)
                return store.fail_create(pooled_id, reason=finding.reason, now=now)
            case Action.ADOPT:
                return store.adopt_task(
                    pooled_id, task_id=task_id, prepared=finding.prepared, now=now
                )
            case Action.DELETE:
                # Without a term it is the daemon's to delete.
                if self._term is None:
                    return False
                self._term.check(deleting=finding.pooled_id)
                return self._cvat.delete_task(task_id)
            case _:
                return False
