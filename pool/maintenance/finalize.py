"""Do what comes after the job ids: the task's final name, the assignments, and the hiding of frames
whose caller wants them no more.

The jobs of a request go to its assignee; those of all others are divided among the assignees of
the template, if it has any, which the store decides. These are steps of their own, each with its
own tries and pauses, which the store keeps. What fails goes behind what has waited longer, and ends
after a bounded number of tries as a warning on its request. A failure counts as a try when CVAT
itself answers, and as an outage when nothing gets through; but no step lasts for longer than
:data:`LONGEST`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pool.clock import Clock
from pool.config.settings import Templates
from pool.cvat import CvatClient
from pool.cvat.failures import of_server
from pool.cvat.records import User
from pool.errors import (
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRejected,
    PoolError,
)
from pool.logs import get_logger
from pool.model import (
    Assignee,
    FinalKind,
    FinalStep,
    Job,
    PooledTask,
    RequestRecord,
    RequestWarning,
)
from pool.requests.breaker import SERVER, server_is_open
from pool.requests.showing import Showing
from pool.store import Store

log = get_logger(__name__)

#: Steps of one round, and jobs that are assigned in one try.
BATCH = 100
MOST_JOBS = 250
#: Steps in a row that do not get through before a round ends: nor would the others.
MOST_AWAY = 3
#: Jobs of one user that are refused, and none was assigned, before a try leaves out the others.
MOST_REFUSED = 3
#: Tries of a step that CVAT fails at, and of one that it refuses.
MOST_TRIES = 6
MOST_REFUSALS = 3
#: Seconds after the first failure; each further pause is longer by the factor.
FIRST_PAUSE = 15.0
FACTOR = 4.0
#: Seconds until a step that did not get through is tried again.
AWAY_PAUSE = 30.0
#: Seconds for which one process alone hides frames of a task: longer than it takes.
HIDING: Final = 300.0
#: Seconds after which a step is given up, whatever its failures were.
LONGEST = 3 * 86400.0
#: Seconds for which the open jobs of a user are not counted again, and for which the id of a name
#: is kept; and how many users are kept.
COUNTED_FOR = 60.0
KNOWN_FOR = 600.0
MOST_KNOWN = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """One try of a step.

    ``left`` are the jobs that it is still to be done for, ``assigned`` the users who have others by
    now. ``error`` is None when nothing failed. ``counted`` is False when the try has not come to
    the end of the jobs; ``hopeless``: another try would fail as well; ``answered``: some call
    succeeded.
    """

    left: tuple[int, ...] | None = None
    assigned: Mapping[int, str] = field(default_factory=dict)
    error: PoolError | None = None
    counted: bool = True
    hopeless: bool = False
    answered: bool = False


def final_name(step: FinalStep) -> str:
    """Return the name of a task with data: the caller's, or one that says what is in it. A task
    that several requests share is called after the first, and says how many others there are; one
    that a stream has for itself is called after the stream."""
    if step.title:
        return step.title[:256]
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


def tries_for(kind: FinalKind, error: PoolError) -> int:
    """Return after how many tries a step is given up that fails by this error."""
    if kind is FinalKind.NAME and isinstance(error, CvatRejected | CvatNotFound):
        return 1
    refused = isinstance(error, CvatForbidden | CvatRejected | CvatNotFound)
    return MOST_REFUSALS if refused else MOST_TRIES


def pause_after(tries: int) -> float:
    """Return the seconds until a step is tried again that has failed so often."""
    return FIRST_PAUSE * FACTOR ** (tries - 1)


class Finalize:
    """Names and assigns tasks whose jobs exist, and hides frames of them."""

    def __init__(
        self,
        store: Store,
        cvat: Callable[[], CvatClient],
        showing: Showing,
        templates: Templates,
        *,
        clock: Clock,
    ) -> None:
        self._store = store
        self._cvat = cvat
        self._showing = showing
        self._templates = templates
        self._clock = clock
        #: The users that CVAT has shown, each with when that was.
        self._known: dict[Assignee, tuple[User, float]] = {}

    def run_once(self) -> None:
        """Do what the processes that served the requests have left undone, the longest due
        first."""
        now = self._clock.now()
        if server_is_open(self._store, now=now):
            return
        self._work(self._store.due_steps(now=now, limit=BATCH))

    def finalize(self, *pooled_ids: str) -> None:
        """Do what is left for these tasks, due or not."""
        self._work(self._store.steps_of(*pooled_ids))

    def look_up(self, request: RequestRecord) -> None:
        """Warn beforehand when CVAT does not show the assignee of a request."""
        if request.assignee is None:
            return
        try:
            known = self._user(request.assignee)
        except CvatError as error:
            log.info("assignee not looked up", request_id=request.id, why=str(error))
            return
        if known is not None:
            return
        warning = RequestWarning(
            code="unknown-assignee",
            text=f"CVAT shows no user {request.assignee} to these credentials, so the jobs may "
            "stay unassigned",
        )
        if self._store.warn(request.id, warning, now=self._clock.now()):
            log.warning("unknown assignee", request_id=request.id, assignee=request.assignee)

    # --- A round ----------------------------------------------------------------------------------

    def _work(self, steps: Sequence[FinalStep]) -> None:
        failed: list[tuple[FinalStep, Tried]] = []
        answered, away = False, 0
        for step in steps:
            if away >= MOST_AWAY:
                break
            attempt = self._try(step)
            if attempt is None:
                continue
            answered |= attempt.answered
            away = 0 if attempt.error is None or not of_server(attempt.error) else away + 1
            if attempt.error is None and not attempt.left:
                self._end(step, attempt)
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
        self._store.postpone_step(
            step, tries=tries, left=attempt.left, assigned=attempt.assigned, due_at=now + pause
        )

    def _end(self, step: FinalStep, attempt: Tried) -> None:
        name = final_name(step) if step.kind is FinalKind.NAME else None
        self._store.end_step(step, name=name, assigned=attempt.assigned, now=self._clock.now())

    def _give_up(self, step: FinalStep, attempt: Tried, error: PoolError) -> None:
        if step.kind is FinalKind.NAME:
            name = final_name(step)
            warning = RequestWarning(
                code="not-named", text=f'the task is not named "{name}": {error}'
            )
        elif step.kind is FinalKind.HIDE:
            warning = RequestWarning(
                code="not-hidden", text=f"frames are not hidden, or not all of them: {error}"
            )
        else:
            users = self._assignees_of(step)
            left = tuple(users) if attempt.left is None else attempt.left
            names = ", ".join(dict.fromkeys(str(users[job_id]) for job_id in left))
            why = f"CVAT knows no such user ({error})" if attempt.hopeless else str(error)
            warning = RequestWarning(
                code="not-assigned",
                text=f"{len(left)} of {len(users)} job(s) not assigned to user {names}: {why}",
            )
        log.warning(
            "task not finalized", step=step.kind.value, task_id=step.task.task_id, why=warning.text
        )
        self._store.end_step(
            step, assigned=attempt.assigned, warning=warning, now=self._clock.now()
        )

    # --- A try ------------------------------------------------------------------------------------

    def _try(self, step: FinalStep) -> Tried | None:
        """Try a step once; None while another process is at it."""
        if step.kind is FinalKind.ASSIGN:
            return self._assign(step)
        if step.kind is FinalKind.HIDE:
            return self._hide(step) if step.task.carrier_id is None else self._erase(step)
        name = final_name(step)
        try:
            if step.task.task_id is not None and name != step.task.name:
                self._cvat().rename_task(step.task.task_id, name)
        except CvatError as error:
            return Tried(error=error)
        return Tried(answered=True)

    def _assign(self, step: FinalStep) -> Tried:
        """Assign the jobs that are left; one that is refused does not keep the others."""
        users = self._assignees_of(step)
        # What is left of a try before, unless the task's rows are being forgotten.
        left = tuple(users if step.left is None else (each for each in step.left if each in users))
        refused: list[int] = []
        assigned: dict[int, str] = {}
        refusals: Counter[Assignee] = Counter()
        unknown: set[Assignee] = set()
        failure: CvatError | None = None
        answered, tried = False, 0
        for job_id in left[:MOST_JOBS]:
            user = users[job_id]
            if user in unknown or refusals[user] == MOST_REFUSED:
                refused.append(job_id)
                tried += 1
                continue
            try:
                user_id = self._id_of(user)
                if user_id is None:
                    unknown.add(user)
                    raise CvatNotFound(f"no user {user} is shown to these credentials")
                name = self._cvat().assign_job(job_id, user_id)
            except CvatError as error:
                failure = error
                if of_server(error):
                    break
                refused.append(job_id)
                refusals[user] += 1
                # CVAT answers 500 to an administrator who assigns to an unknown user.
                if error.http_status == 500 and refusals[user] == 1 and self._is_unknown(user):
                    unknown.add(user)
            else:
                answered = True
                del refusals[user]
                if name is not None:
                    assigned[job_id] = name
            tried += 1
        untried = left[tried:]
        return Tried(
            left=(*untried, *refused),
            assigned=assigned,
            error=failure,
            # With more than one try can take, all are tried before one counts.
            counted=tried < MOST_JOBS or not untried,
            hopeless=bool(refused) and {users[each] for each in (*untried, *refused)} <= unknown,
            answered=answered,
        )

    def _id_of(self, user: Assignee) -> int | None:
        if isinstance(user, int):
            return user
        known = self._user(user)
        return None if known is None else known.id

    def _is_unknown(self, user: Assignee) -> bool:
        try:
            return self._user(user, kept=False) is None
        except CvatError:
            return False

    def _hide(self, step: FinalStep) -> Tried | None:
        """Mark the frames of the jobs that are left as deleted, one job after the other, and look
        whether they are: CVAT rewrites a task's list without a lock, so that what people do to
        other jobs at the same time may undo it. None while another process hides frames of it."""
        jobs = {job.id: job for job in self._jobs_of(step)}
        left = tuple(jobs) if step.left is None else step.left
        task_id, now = step.task.task_id, self._clock.now()
        if task_id is None or not self._store.claim_hiding(step, until=now + HIDING, now=now):
            return None
        answered = False
        try:
            for job_id in left[:MOST_JOBS]:
                self._cvat().hide_frames(job_id, _frames(jobs[job_id]))
                answered = True
            hidden = self._cvat().hidden_frames(task_id)
        except CvatNotFound:
            # With the task, its frames are gone.
            return Tried(answered=True)
        except CvatError as error:
            return Tried(left=left, error=error, answered=answered)
        shown = tuple(job_id for job_id in left if not hidden.issuperset(_frames(jobs[job_id])))
        untried = left[MOST_JOBS:]
        undone = len(shown) > len(untried)
        return Tried(
            left=shown,
            error=CvatBusy("frames are shown again that were just hidden") if undone else None,
            counted=undone,
            answered=True,
        )

    def _erase(self, step: FinalStep) -> Tried:
        """Put the placeholder back into a slot, and have CVAT forget its pictures and hide them."""
        slot = self._store.slot(step.task.id)
        try:
            # Without a row of its own, it is forgotten: its task and its files are gone.
            if slot is None or self._showing.erase(slot):
                return Tried(answered=True)
        except CvatNotFound:
            # With the task, its frames are gone, and its files go.
            return Tried(answered=True)
        except PoolError as error:
            return Tried(error=error)
        return Tried(error=CvatBusy("its frames are not hidden yet"))

    def _jobs_of(self, step: FinalStep) -> Sequence[Job]:
        request_id = step.request.id if step.request else None
        return self._store.jobs_of(step.task.id, request_id=request_id)

    # --- Who gets which job -----------------------------------------------------------------------

    def _assignees_of(self, step: FinalStep) -> Mapping[int, Assignee]:
        """Return the users who are to have the jobs of a step, by the jobs' ids."""
        if step.request is not None and step.request.assignee is not None:
            return {job.id: step.request.assignee for job in self._jobs_of(step)}
        self._divide(step.task)
        return self._store.divided_jobs(step)

    def _divide(self, task: PooledTask) -> None:
        """Divide the jobs of a task among the assignees of its template, if it has any now."""
        template = self._templates.get(task.template)
        if template is None or not template.divided:
            return
        among = template.assignment.assignees
        by_load = template.assignment.assign == "least-loaded"
        if by_load:
            self._count_open_jobs(among)
        self._store.divide_jobs(task.id, among, by_load=by_load)

    def _count_open_jobs(self, users: Sequence[Assignee]) -> None:
        """Count on the server what the store does not know, or not for long enough. Where that
        fails, what was counted before will do."""
        due = self._store.workloads_to_count(users, older_than=COUNTED_FOR, now=self._clock.now())
        for each in due:
            try:
                user = self._user(each)
                jobs = self._cvat().count_open_jobs(user.username) if user is not None else None
            except CvatError as error:
                log.info("open jobs not counted", assignee=each, why=str(error))
                if of_server(error):
                    return
                continue
            if jobs is not None:
                self._store.keep_workload(each, jobs, now=self._clock.now())

    def _user(self, user: Assignee, *, kept: bool = True) -> User | None:
        """Return a user as CVAT shows it, now or a while ago; None where it shows none."""
        now = self._clock.monotonic()
        if kept and user in self._known and now - self._known[user][1] < KNOWN_FOR:
            return self._known[user][0]
        found = self._cvat().find_user(user)
        if found is None:
            self._known.pop(user, None)
        else:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[user] = found, now
        return found


def _frames(job: Job) -> range:
    return range(job.start_frame, job.stop_frame + 1)
