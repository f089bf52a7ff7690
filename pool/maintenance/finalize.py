"""Do what comes after the job ids: the task's final name, and the assignments.

The two are steps of their own, each with its own tries and pauses, which the store keeps. What
fails goes behind what has waited longer, and ends after a bounded number of tries as a warning on
its request. A failure counts as a try when CVAT itself answers, and as an outage when nothing gets
through; but no step lasts for longer than :data:`LONGEST`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pool.clock import Clock
from pool.cvat import CvatClient
from pool.errors import (
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatRejected,
    CvatUnreachable,
)
from pool.logs import get_logger
from pool.model import FinalKind, FinalStep, Job, PooledTask, RequestRecord, RequestWarning
from pool.requests.breaker import SERVER, server_is_open
from pool.store import Store

log = get_logger(__name__)

#: Steps of one round, and jobs that are assigned in one try.
BATCH = 100
MOST_JOBS = 250
#: Steps in a row that do not get through before a round ends: nor would the others.
MOST_AWAY = 3
#: Jobs in a row that are refused, and none was assigned, before a try ends.
MOST_REFUSED = 3
#: Tries of a step that CVAT fails at, and of one that it refuses.
MOST_TRIES = 6
MOST_REFUSALS = 3
#: Seconds after the first failure; each further pause is longer by the factor.
FIRST_PAUSE = 15.0
FACTOR = 4.0
#: Seconds until a step that did not get through is tried again.
AWAY_PAUSE = 30.0
#: Seconds after which a step is given up, whatever its failures were.
LONGEST = 3 * 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One try of a step.

    ``left`` are the jobs that are still to be assigned. ``error`` is None when nothing failed.
    ``counted`` is False when the try has not come to the end of the jobs; ``hopeless``: another
    try would fail as well; ``answered``: some call succeeded.
    """

    left: tuple[int, ...] | None = None
    error: CvatError | None = None
    counted: bool = True
    hopeless: bool = False
    answered: bool = False


def final_name(step: FinalStep) -> str:
    """Return the name of a task with data: the caller's, or one that says what is in it. A task
    that several requests share is called after the first, and says how many others there are."""
    name = _name_of(step.task, step.request)
    others = f" and {step.others} other request{'s' * (step.others > 1)}" if step.others else ""
    return f"{name[: 256 - len(others)]}{others}"


def _name_of(task: PooledTask, request: RequestRecord | None) -> str:
    if request is None:
        return f"{task.template} {task.id}"
    if request.name:
        return request.name[:256]
    if not request.files:
        return f"{task.template} {request.id}"
    more = f" and {len(request.files) - 1} more" if len(request.files) > 1 else ""
    return f"{task.template}: {request.files[0][-200:]}{more}"[:256]


def of_server(error: CvatError) -> bool:
    """Return whether a failure is probably the server's as a whole rather than this call's."""
    if isinstance(error, CvatBusy):
        return error.http_status in (429, 503)
    return isinstance(error, CvatUnreachable | CvatRefusedCredentials)


def tries_for(kind: FinalKind, error: CvatError) -> int:
    """Return after how many tries a step is given up that fails by this error."""
    if kind is FinalKind.NAME and isinstance(error, CvatRejected | CvatNotFound):
        return 1
    refused = isinstance(error, CvatForbidden | CvatRejected | CvatNotFound)
    return MOST_REFUSALS if refused else MOST_TRIES


def pause_after(tries: int) -> float:
    """Return the seconds until a step is tried again that has failed so often."""
    return FIRST_PAUSE * FACTOR ** (tries - 1)


class Finalize:
    """Names and assigns tasks whose jobs exist."""

    def __init__(self, store: Store, cvat: Callable[[], CvatClient], *, clock: Clock) -> None:
        self._store = store
        self._cvat = cvat
        self._clock = clock
        self._known_users: set[int] = set()

    def run_once(self) -> None:
        """Do what the processes that served the requests have left undone, the longest due
        first."""
        now = self._clock.now()
        if server_is_open(self._store, now=now):
            return
        self._work(self._store.due_steps(now=now, limit=BATCH))

    def finalize(self, pooled_id: str) -> None:
        """Do what is left for one task, due or not."""
        self._work(self._store.steps_of(pooled_id))

    def look_up(self, request: RequestRecord) -> None:
        """Warn beforehand when CVAT does not show the assignee of a request."""
        user_id = request.assignee
        if user_id is None or user_id in self._known_users:
            return
        try:
            known = self._cvat().user_exists(user_id)
        except CvatError as error:
            log.info("assignee not looked up", request_id=request.id, why=str(error))
            return
        if known:
            self._known_users.add(user_id)
            return
        warning = RequestWarning(
            code="unknown-assignee",
            text=f"CVAT shows no user {user_id} to these credentials, so the jobs may stay "
            "unassigned",
        )
        if self._store.warn(request.id, warning, now=self._clock.now()):
            log.warning("unknown assignee", request_id=request.id, assignee=user_id)

    # --- A round ----------------------------------------------------------------------------------

    def _work(self, steps: Sequence[FinalStep]) -> None:
        failed: list[tuple[FinalStep, Tried]] = []
        answered, away = False, 0
        for step in steps:
            if away >= MOST_AWAY:
                break
            attempt = self._try(step)
            answered |= attempt.answered
            away = 0 if attempt.error is None or not of_server(attempt.error) else away + 1
            if attempt.error is None and not attempt.left:
                self._end(step)
            else:
                failed.append((step, attempt))
        # Judged at the end, when it is known whether anything got through.
        for step, attempt in failed:
            self._postpone(step, attempt, answered=answered)

    def _postpone(self, step: FinalStep, attempt: Tried, *, answered: bool) -> None:
        """Have a step tried again later, or give it up."""
        now, error, tries = self._clock.now(), attempt.error, step.tries
        if error is None or not attempt.counted:
            pause = 0.0
        elif (of_server(error) and not answered) or self._store.holds().get(SERVER) is not None:
            pause = AWAY_PAUSE
        else:
            tries += 1
            pause = pause_after(tries)
        if error is not None and (
            attempt.hopeless or tries >= tries_for(step.kind, error) or now - step.since > LONGEST
        ):
            self._give_up(step, attempt, error)
            return
        log.info(
            "task to be finalized later",
            step=step.kind.value,
            task_id=step.task.task_id,
            tries=tries,
            why=str(error or "more jobs"),
        )
        self._store.postpone_step(step, tries=tries, left=attempt.left, due_at=now + pause)

    def _end(self, step: FinalStep) -> None:
        name = final_name(step) if step.kind is FinalKind.NAME else None
        self._store.end_step(step, name=name, now=self._clock.now())

    def _give_up(self, step: FinalStep, attempt: Tried, error: CvatError) -> None:
        if step.kind is FinalKind.NAME:
            name = final_name(step)
            warning = RequestWarning(
                code="not-named", text=f'the task is not named "{name}": {error}'
            )
        else:
            jobs, user = len(self._jobs_of(step)), _assignee(step)
            left = jobs if attempt.left is None else len(attempt.left)
            why = f"CVAT knows no such user ({error})" if attempt.hopeless else str(error)
            warning = RequestWarning(
                code="not-assigned",
                text=f"{left} of {jobs} job(s) not assigned to user {user}: {why}",
            )
        log.warning(
            "task not finalized", step=step.kind.value, task_id=step.task.task_id, why=warning.text
        )
        self._store.end_step(step, warning=warning, now=self._clock.now())

    # --- A try ------------------------------------------------------------------------------------

    def _try(self, step: FinalStep) -> Tried:
        if step.kind is FinalKind.ASSIGN:
            return self._assign(step)
        name = final_name(step)
        try:
            if step.task.task_id is not None and name != step.task.name:
                self._cvat().rename_task(step.task.task_id, name)
        except CvatError as error:
            return Tried(error=error)
        return Tried(answered=True)

    def _assign(self, step: FinalStep) -> Tried:
        """Assign the jobs that are left; one that is refused does not keep the others."""
        left, user_id = step.left, _assignee(step)
        if left is None:
            left = tuple(job.id for job in self._jobs_of(step))
        if user_id is None:
            return Tried(left=())
        refused: list[int] = []
        failure: CvatError | None = None
        tried = 0
        for job_id in left[:MOST_JOBS]:
            try:
                self._cvat().assign_job(job_id, user_id)
            except CvatError as error:
                failure = error
                if of_server(error):
                    break
                refused.append(job_id)
                if len(refused) == 1 and error.http_status == 500 and self._unknown(user_id):
                    # CVAT answers 500 to an administrator who assigns to an unknown user.
                    return Tried(left=(*left[tried + 1 :], *refused), error=error, hopeless=True)
            tried += 1
            if len(refused) == tried == MOST_REFUSED:
                break
        untried = left[tried:]
        return Tried(
            left=(*untried, *refused),
            error=failure,
            # With more than one try can take, all are tried before one counts.
            counted=tried < MOST_JOBS or not untried,
            answered=tried > len(refused),
        )

    def _jobs_of(self, step: FinalStep) -> Sequence[Job]:
        request_id = step.request.id if step.request else None
        return self._store.jobs_of(step.task.id, request_id=request_id)

    def _unknown(self, user_id: int) -> bool:
        try:
            return not self._cvat().user_exists(user_id)
        except CvatError:
            return False


def _assignee(step: FinalStep) -> int | None:
    return step.request.assignee if step.request is not None else None
