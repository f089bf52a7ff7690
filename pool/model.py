"""The pool's records, their states and the transitions that are legal. No I/O.

Times are seconds since the Unix epoch, UTC; sizes are bytes; durations are seconds.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, get_args

from pool.clock import rfc3339

#: A request whose data is in the spool gets this many tasks at most, in any process: more than
#: one whose caller waits, since a server that comes and goes should not cost it.
MOST_TASKS_SPOOLED: Final = 5
#: Seconds after which a spool that no process has said it reads counts as away: claims of
#: processes last as long (:data:`pool.maintenance.heartbeat.TERM`).
SPOOL_AWAY: Final = 10.0
#: A user of CVAT's, by id or by name.
Assignee = int | str


class TaskState(StrEnum):
    """Where a pooled task stands. ``WARM`` can be handed out; ``READY`` means its jobs exist."""

    CREATING = "creating"
    WARM = "warm"
    LEASED = "leased"
    IMPORTING = "importing"
    READY = "ready"
    FAILED = "failed"
    RETIRED = "retired"
    DELETING = "deleting"
    DELETED = "deleted"


TASK_TRANSITIONS: Final[Mapping[TaskState, frozenset[TaskState]]] = {
    # A cold task goes straight to the caller that it was created for, so that no other can take
    # it in between.
    # A carrier is ready as soon as its placeholders are imported, and its slots are warm then.
    TaskState.CREATING: frozenset(
        {TaskState.WARM, TaskState.LEASED, TaskState.READY, TaskState.FAILED}
    ),
    # Straight to deleted when a person has made the task their own: it stays on the server.
    TaskState.WARM: frozenset({TaskState.LEASED, TaskState.RETIRED, TaskState.DELETED}),
    # Back to warm when the caller gave it back untouched. Straight to ready when the caller
    # uploaded by itself and the jobs were there before the import was noticed.
    TaskState.LEASED: frozenset(
        {
            TaskState.WARM,
            TaskState.IMPORTING,
            TaskState.READY,
            TaskState.FAILED,
            TaskState.RETIRED,
        }
    ),
    TaskState.IMPORTING: frozenset({TaskState.READY, TaskState.FAILED}),
    # Only a carrier none of whose slots was filled.
    TaskState.READY: frozenset({TaskState.RETIRED}),
    # A slot's job stays where others of its carrier are filled.
    TaskState.FAILED: frozenset({TaskState.DELETING, TaskState.DELETED}),
    TaskState.RETIRED: frozenset({TaskState.DELETING, TaskState.DELETED}),
    TaskState.DELETING: frozenset({TaskState.DELETED}),
    # Only a create that was given up, and that had happened after all.
    TaskState.DELETED: frozenset({TaskState.WARM}),
}

#: States in which a task still takes up room on the server because of the pool.
LIVE_TASK_STATES: Final = (
    TaskState.CREATING,
    TaskState.WARM,
    TaskState.LEASED,
    TaskState.IMPORTING,
    TaskState.FAILED,
    TaskState.RETIRED,
    TaskState.DELETING,
)


class SlotState(StrEnum):
    """Where a slot stands, a job that exists before its data."""

    WARM = "warm"
    LEASED = "leased"
    FILLED = "filled"
    RETIRED = "retired"

    @classmethod
    def of(cls, state: TaskState) -> SlotState:
        """Return what the state of a slot's row means."""
        return _SLOT_STATES.get(state, cls.RETIRED)


_SLOT_STATES: Final = {
    TaskState.WARM: SlotState.WARM,
    TaskState.LEASED: SlotState.LEASED,
    TaskState.READY: SlotState.FILLED,
}


class Placed(StrEnum):
    """What the data of a request went into: a job that was there before, a task that requests
    share, or a task of its own."""

    SLOT = "slot"
    GROUP = "group"
    TASK = "task"


class LeaseState(StrEnum):
    """Where a lease stands: it waits for a task, holds one, or has ended in one of four ways."""

    WAITING = "waiting"
    ACTIVE = "active"
    USED = "used"
    RELEASED = "released"
    EXPIRED = "expired"
    ABANDONED = "abandoned"


LEASE_TRANSITIONS: Final[Mapping[LeaseState, frozenset[LeaseState]]] = {
    LeaseState.WAITING: frozenset({LeaseState.ACTIVE, LeaseState.ABANDONED}),
    LeaseState.ACTIVE: frozenset({LeaseState.USED, LeaseState.RELEASED, LeaseState.EXPIRED}),
    LeaseState.USED: frozenset(),
    LeaseState.RELEASED: frozenset(),
    LeaseState.EXPIRED: frozenset(),
    LeaseState.ABANDONED: frozenset(),
}


class Priority(StrEnum):
    """Which of the requests that wait go first."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"

    @property
    def level(self) -> int:
        """Return its number: the lower ones go first."""
        return _LEVELS[self]


_LEVELS: Final = {priority: level for level, priority in enumerate(Priority)}


class RequestState(StrEnum):
    """Where data that a caller gave to the pool stands on its way to job ids."""

    QUEUED = "queued"
    UPLOADING = "uploading"
    IMPORTING = "importing"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Return whether nothing more will happen to the request."""
        return self in (RequestState.READY, RequestState.FAILED, RequestState.CANCELLED)


REQUEST_TRANSITIONS: Final[Mapping[RequestState, frozenset[RequestState]]] = {
    RequestState.QUEUED: frozenset(
        {RequestState.UPLOADING, RequestState.FAILED, RequestState.CANCELLED}
    ),
    # Back to queued when its task turned out to be unusable and it needs another one, or when CVAT
    # cannot be reached and the data waits in the spool. Straight to ready when the jobs were seen
    # before the upload's answer.
    RequestState.UPLOADING: frozenset(
        {
            RequestState.IMPORTING,
            RequestState.READY,
            RequestState.QUEUED,
            RequestState.FAILED,
        }
    ),
    RequestState.IMPORTING: frozenset(
        {RequestState.READY, RequestState.QUEUED, RequestState.FAILED}
    ),
    RequestState.READY: frozenset(),
    RequestState.FAILED: frozenset(),
    RequestState.CANCELLED: frozenset(),
}


class ImportState(StrEnum):
    """Where one upload into one task stands; ``RETURNED`` means that it had not touched the task,
    which is warm again."""

    UPLOADING = "uploading"
    IMPORTING = "importing"
    READY = "ready"
    FAILED = "failed"
    RETURNED = "returned"


IMPORT_TRANSITIONS: Final[Mapping[ImportState, frozenset[ImportState]]] = {
    # Straight to ready when the jobs were seen before the upload's answer.
    ImportState.UPLOADING: frozenset(
        {ImportState.IMPORTING, ImportState.READY, ImportState.FAILED, ImportState.RETURNED}
    ),
    ImportState.IMPORTING: frozenset({ImportState.READY, ImportState.FAILED}),
    ImportState.READY: frozenset(),
    ImportState.FAILED: frozenset(),
    ImportState.RETURNED: frozenset(),
}


class Outcome(StrEnum):
    """How a hand-out was served: from the pool, after waiting, or created on the spot."""

    HIT = "hit"
    WAIT = "wait"
    COLD = "cold"


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledTask:
    """A CVAT task owned by the pool.

    ``id`` is ours, chosen before the task exists, and stands in ``name``; ``task_id`` is
    CVAT's, None until the server has answered. ``prepared``: ``Upload-Start`` was
    sent, so that CVAT has made the data row and folders already. ``origin`` stands for the server
    and organization that the task was made on
    (:attr:`pool.config.settings.Template.origin`), "" when
    that is not known.

    A **carrier** is a task over placeholders: it has ``slots`` jobs, each of which is handed out by
    itself. A **slot** has a row of its own, so that it is handed out like a task; ``carrier_id`` is
    the row of its carrier, whose ``task_id`` and ``name`` it has. :meth:`SlotState.of` says what
    its states mean.
    """

    id: str
    template: str
    fingerprint: str
    origin: str = ""
    state: TaskState
    name: str
    task_id: int | None = None
    slots: int = 0
    carrier_id: str | None = None
    prepared: bool = False
    lease_id: str | None = None
    reason: str = ""
    created_at: float
    warm_at: float | None = None
    changed_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseRecord:
    """One hand-out of one task to one caller, as the store has it.

    ``name`` is what its caller calls it; ``task_name`` is that of the task when it was handed out.
    ``pooled_id`` and ``task_id`` are None while the lease waits for a task. ``outcome`` is
    None until then as well. ``request_id`` is the request that it serves; None while its caller
    uploads, or has not begun to. ``tenant`` is whose it is: the name of a token, "" for the
    operator.
    """

    id: str
    template: str
    tenant: str = ""
    state: LeaseState
    name: str | None = None
    owner: str
    request_id: str | None = None
    pooled_id: str | None = None
    task_id: int | None = None
    task_name: str = ""
    outcome: Outcome | None = None
    idempotency_key: str | None = None
    created_at: float
    handed_out_at: float | None = None
    expires_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestWarning:
    """What a request that was served has to do without: a stable ``code``, and ``text`` that says
    what and why, on one line.

    Codes are ``unknown-assignee``, ``not-named``, ``not-assigned``, ``not-hidden`` and
    ``not-shown``.
    """

    code: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A file of a request in its task: what the caller calls it, its name in CVAT, which exported
    annotations have, and the number of its frame.

    ``number`` is None where CVAT alone decides on the frames: of a video or an archive, or sorted
    "natural" or "random".
    """

    file: str
    name: str
    number: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportMember:
    """A request's part in an import: its ``files`` as they were given, in the caller's order, and
    the ``names`` that CVAT sees in their place."""

    request_id: str
    files: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportRecord:
    """One upload into one task and what CVAT makes of it, for one request or for several.

    ``owner`` is the process that uploads and tracks it. ``members`` are in the order of their
    frames; they are written down with the hand-out, before the upload begins, and never change.
    ``size`` is that of all of them, in bytes. ``grouped``: requests may share it. ``spooled``: the
    data of all members is in the spool, so that they can be sent again; ``imports_used`` is the
    most that any of them has used up before.
    """

    id: str
    template: str
    state: ImportState
    owner: str
    lease_id: str
    pooled_id: str
    task_id: int
    outcome: Outcome | None = None
    size: int = 0
    grouped: bool = False
    handed_out_at: float
    uploaded_at: float | None = None
    deadline_at: float | None = None
    finished_at: float | None = None
    frames: tuple[str, ...] | None = None
    members: tuple[ImportMember, ...] = ()
    spooled: bool = False
    imports_used: int = 0

    @property
    def doubtful(self) -> bool:
        """Return whether CVAT has not said that it has the data: jobs may come from another's."""
        return self.state is ImportState.UPLOADING or self.frames is not None

    @property
    def repeatable(self) -> bool:
        """Return whether its data can be sent again, should CVAT lose it."""
        return self.spooled and self.imports_used + 1 < MOST_TASKS_SPOOLED

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Return the ids of the requests that it is for, in order."""
        return tuple(member.request_id for member in self.members)


class Hidden(StrEnum):
    """How far the frames of a request are hidden."""

    PENDING = "pending"
    DONE = "done"


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """Data that a caller gave to the pool, as the store has it.

    ``files`` are the names of the files in CVAT, in the caller's order, and ``given`` what the
    caller calls them. ``frame_numbers`` count from the task's frame ``first_frame``: None where
    CVAT alone decides on the order, as in an archive, or leaves a file out. ``payload`` is a digest
    of all that was asked for, which an idempotency key is bound to. ``tenant`` is on whose behalf
    it was made: the name of a token, "" for the operator. ``spooled``: the data is in the
    spool with the id ``spool``, so that any process that reads that one can serve it.

    ``import_id`` is its latest import, None while it is queued; ``pooled_id``, ``task_id``,
    ``outcome``, ``handed_out_at``, ``uploaded_at`` and ``deadline_at`` are those of the import.
    ``task_deleted``: the pool has deleted that task, or has found it deleted.
    ``owner`` is the process that works on the request: that of its import, once it has one.
    ``imports_used`` counts the imports, and so the tasks, that were used up in its service.
    ``group_key``: requests of a template with the same one may share an import; None goes alone.

    ``hidden`` says that its caller wants its frames hidden: ``pending`` until they are marked as
    deleted in CVAT, then ``done``. Their bytes stay there until the task is deleted; those in a
    slot are gone by then.

    ``placed`` says what its data went into, once it has an import. Where its template has slots
    and it is not to go into one, ``no_slot`` says why. ``stream`` is the name of the stream that it
    belongs to. ``shown_at`` is when an annotator can open what is in its slot.

    ``error_code`` is the ``code`` of a class in :mod:`pool.errors`. ``warnings`` also come after
    the end. ``data_away`` says why its data cannot be read now, where it waits for that, in words;
    the store leaves it empty.
    """

    id: str
    template: str
    tenant: str = ""
    state: RequestState
    owner: str
    lease_id: str
    import_id: str | None = None
    pooled_id: str | None = None
    task_id: int | None = None
    task_deleted: bool = False
    outcome: Outcome | None = None
    name: str | None = None
    assignee: Assignee | None = None
    files: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    frame_numbers: tuple[int | None, ...] | None = None
    first_frame: int = 0
    size: int = 0
    payload: str = ""
    idempotency_key: str | None = None
    created_at: float
    handed_out_at: float | None = None
    uploaded_at: float | None = None
    deadline_at: float | None = None
    finished_at: float | None = None
    spooled: bool = False
    spool: str = ""
    group_key: str | None = None
    priority: Priority = Priority.NORMAL
    hidden: Hidden | None = None
    placed: Placed | None = None
    no_slot: str = ""
    stream: str | None = None
    shown_at: float | None = None
    imports_used: int = 0
    error_code: str = ""
    error: str = ""
    warnings: tuple[RequestWarning, ...] = ()
    data_away: str = ""

    @property
    def frames(self) -> tuple[Frame, ...]:
        """Return what became of each file, in the caller's order."""
        numbers = self.frame_numbers or (None,) * len(self.files)
        return tuple(
            Frame(
                file=given, name=name, number=None if number is None else self.first_frame + number
            )
            for given, name, number in zip(self.given, self.files, numbers, strict=True)
        )


class FinalKind(StrEnum):
    """What is left to do once the jobs of a task exist."""

    NAME = "name"
    ASSIGN = "assign"
    HIDE = "hide"


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalStep:
    """One thing that is left to do for a ready task; the steps of a task do not wait for each
    other.

    ``request`` is the one that gives the task its name, or whose jobs are to be assigned or hidden.
    ``tries`` counts the failures, ``since`` is when the jobs existed, ``due_at`` when it is tried
    next. ``left`` are the jobs that are still to be done; None: all of them. ``others`` counts
    the requests that share the task with that one. ``title`` is what a carrier is to be called, or
    a task that its lease's caller has filled.
    """

    kind: FinalKind
    task: PooledTask
    request: RequestRecord | None
    tries: int
    since: float
    due_at: float
    left: tuple[int, ...] | None = None
    others: int = 0
    title: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One annotation job. Frames are numbered inside the task; ``stop_frame`` is included."""

    id: int
    url: str
    start_frame: int
    stop_frame: int
    assignee: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Carrier:
    """What is kept of a carrier beside its task: where its files stand, and how it is shown.

    ``settings`` are the slots of its template as it was made by, as JSON has them
    (:class:`pool.config.settings.SlotSettings`): its files stand in the folder ``id`` of that
    storage, one for each frame. ``stream_id`` is the stream that has it for itself, and ``title``
    what it is to be called. ``gone_since`` is when CVAT first answered that its task is gone.
    """

    id: str
    template: str
    task_id: int
    settings: Mapping[str, Any]
    stream_id: str | None = None
    title: str = ""
    gone_since: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A job over placeholders. Its frames are those of its carrier's task from ``start_frame`` to
    ``stop_frame``, the latter included, of which the first ``filled`` have pictures.

    ``look_at`` is when its carrier is to be looked at for it: at once where it is filled and not
    shown, or to be erased; ``looks`` counts the looks since it was shown. ``unwanted``:
    its caller wants it hidden, which is not done yet.
    """

    id: str
    carrier_id: str
    position: int
    state: TaskState
    job_id: int
    start_frame: int
    stop_frame: int
    request_id: str | None = None
    filled: int = 0
    filled_at: float | None = None
    shown_at: float | None = None
    erased: bool = False
    unwanted: bool = False
    looks: int = 0
    look_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotLevels:
    """How full the carriers of a template are that have warm or leased slots: how many these are,
    and how many of their slots are filled, and retired."""

    carriers: int = 0
    filled: int = 0
    retired: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """Requests of one ``tenant`` whose jobs follow each other in the same CVAT tasks, for as long
    as it is open.

    ``carriers`` counts the tasks that it has had; ``carrier_id`` is the latest.
    """

    id: str
    template: str
    tenant: str = ""
    name: str
    opened_at: float
    last_at: float
    closed_at: float | None = None
    carriers: int = 0
    carrier_id: str | None = None

    @property
    def fingerprint(self) -> str:
        """What its slots have in place of their template's, so that no other request takes them."""
        return f"{STREAM_FINGERPRINT}{self.id}"

    @property
    def title(self) -> str:
        """What its latest task is called."""
        return self.name if self.carriers < 2 else f"{self.name} ({self.carriers})"


STREAM_FINGERPRINT: Final = "stream "


@dataclass(frozen=True, kw_only=True, slots=True)
class Handout:
    """What a claim came to: the lease, its task, and the request it serves, if any."""

    lease: LeaseRecord
    task: PooledTask
    request: RequestRecord | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """How many tasks of a template are in each live state."""

    counts: Mapping[TaskState, int] = field(default_factory=dict)

    def __getitem__(self, state: TaskState) -> int:
        return self.counts.get(state, 0)

    @property
    def capacity(self) -> int:
        """Return how many are warm or will be: what refilling compares with the target."""
        return self[TaskState.WARM] + self[TaskState.CREATING]


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSample:
    """The levels of a template at a moment, for their history."""

    warm: int
    creating: int
    target: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelRecord:
    """The levels of a template in a step of their history, which began ``at``: the means of
    ``warm`` and ``creating``, the lowest that was warm, and the last target."""

    at: float
    template: str
    warm: float
    least: float
    creating: float
    target: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Hand-outs of one template in one bucket of time that begins at ``start``."""

    template: str
    start: float
    hits: int = 0
    waits: int = 0
    colds: int = 0

    @property
    def total(self) -> int:
        return self.hits + self.waits + self.colds


@dataclass(frozen=True, kw_only=True, slots=True)
class Hold:
    """Why no task of a template is being created, since when, and when it is tried again.

    ``uploads``: no data is sent for it either.
    """

    template: str
    code: str
    reason: str
    since: float
    retry_at: float | None
    attempts: int = 1
    uploads: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Prewarm:
    """A wish to keep at least ``size`` tasks of a template warm from ``since`` to ``until``."""

    template: str
    size: int
    since: float
    until: float

    def active(self, now: float) -> bool:
        """Return whether it counts now. A clock that was set back ends it: it is not known then for
        how long it was meant."""
        return self.since <= now < self.until


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedPace:
    """What was learned of the imports of one size class; see :mod:`pool.tracking.poll_schedule`.

    ``first`` is when the first poll looks, ``seen`` the latest times; both in seconds.
    """

    first: float
    imports: int
    seen: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WebhookRecord:
    """A webhook of CVAT's that the pool has installed, and what came of it.

    ``scope`` is what it speaks for: ``project:12`` or ``organization``. ``hook_id`` is CVAT's.
    ``heard_at`` is when a delivery last came, to within a few seconds; ``missed`` counts the
    imports in a row that polling found first, although it had left them to the webhook.
    """

    scope: str
    hook_id: int
    target_url: str
    installed_at: float
    heard_at: float | None = None
    missed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigRecord:
    """The configuration that a daemon has in force since ``loaded_at``.

    Since ``rejected_at`` its file has ``problems``, so that it is not followed; None while it is.
    ``restart`` are the keys that it gives another value, and that need a restart. ``templates``
    are those in force, as :attr:`pool.config.settings.Template.outline` describes them.
    """

    loaded_at: float
    rejected_at: float | None = None
    problems: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    templates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TermRecord:
    """A term in which one process, its ``owner``, maintains the store. ``broken_off`` is the owner
    of the term before, if that has not ended in order, and ``broken_off_at`` when it ended."""

    term: int
    owner: str
    since: float
    until: float
    broken_off: str | None = None
    broken_off_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DaemonRecord:
    """A daemon that is at work since ``since``, and counts as alive up to ``until``. It listens at
    ``url``, and reads the data in the spool ``spool``. ``cut_off``: it cannot reach the server,
    which answers another daemon."""

    owner: str
    url: str
    version: str
    since: float
    until: float
    spool: str = ""
    cut_off: bool = False


# --- Callers --------------------------------------------------------------------------------------

#: What a token is for: ``read`` sees everything, ``submit`` gives data to the pool and sees what is
#: its own, ``operate`` may do everything.
Role = Literal["submit", "operate", "read"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """What a caller sees: rows of one ``tenant``, or of all of them (None); and of some
    ``templates``, or of all of them (none named).

    A tenant is the name of a token. "" is the operator: the command line and the library on the
    store, and callers with a token of ``POOL_API_TOKEN``, or without any.
    """

    tenant: str | None = None
    templates: frozenset[str] = frozenset()

    def covers(self, row: LeaseRecord | RequestRecord | Event | Stream) -> bool:
        """Whether a row is seen."""
        return self.tenant in (None, row.tenant) and self.covers_template(row.template)

    def covers_template(self, template: str) -> bool:
        """Whether a template is seen."""
        return not self.templates or template in self.templates


EVERYTHING: Final = Scope()

# --- Identifiers -------------------------------------------------------------------------------

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, in lower case


def new_id(now: float | None = None) -> str:
    """Return a fresh identifier: 26 characters that sort by time, as https://github.com/ulid/spec."""
    milliseconds = int((time.time() if now is None else now) * 1000)
    value = (milliseconds << 80) | secrets.randbits(80)
    characters = []
    for _ in range(26):
        value, digit = divmod(value, 32)
        characters.append(_ALPHABET[digit])
    return "".join(reversed(characters))


def pool_mark(pool_id: str) -> str:
    """Return the text by which the tasks of one pool, and of no other, are known on the server."""
    return f"[cvat-pool {pool_id}]"


def task_name(pool_id: str, template: str, pooled_id: str, *, slots: int = 0) -> str:
    """Return the unique name that a pooled task bears on the server until its data is in.

    Empty tasks stand at the top of everybody's list, so the name says what they are. CVAT
    allows 256 characters.
    """
    what = "reserved" if slots else "empty"
    return f"{pool_mark(pool_id)} {template[:160]}: {what}, waiting for data {pooled_id}"


def check_name(pool_id: str, template: str, unique: str) -> str:
    """Return the name of a task that is made to try out a template, and deleted at once."""
    return f"{pool_mark(pool_id)} check of {template[:160]} {unique}"


def named_in(pool_id: str, name: str) -> str | None:
    """Return the id at the end of a name that :func:`task_name` or :func:`check_name` has made.

    None for any other name: a person has renamed the task, even if they left the mark.
    """
    rest = name.removeprefix(f"{pool_mark(pool_id)} ")
    if rest == name:
        return None
    match = _OWN_NAME.fullmatch(rest)
    return match["id"] if match else None


_OWN_NAME: Final = re.compile(
    r"(?:\S.{0,159}: (?:empty|reserved), waiting for data|check of \S.{0,159}) (?P<id>\S+)"
)


# --- Events ---------------------------------------------------------------------------------------

#: The kinds of events, in the order in which a request goes through its own.
EventKind = Literal[
    "request.queued",
    "request.uploading",
    "request.importing",
    "request.ready",
    "request.failed",
    "request.cancelled",
    "request.shown",
    "request.warned",
    "lease.handed_out",
    "lease.used",
    "lease.released",
    "lease.expired",
    "task.warm",
    "task.failed",
    "task.retired",
    "task.deleted",
]
KINDS: Final[tuple[EventKind, ...]] = get_args(EventKind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One change of the state of a request, a lease or a task.

    ``id`` grows from each event to the next that can be seen. ``tenant`` is whose request or lease
    it is of, or whose lease has the task; "" for the operator, and for a task that no lease has.
    ``task_id`` is CVAT's. ``state`` is the new one, of what ``kind`` names; ``code`` is why a
    request failed, the ``code`` of a class in :mod:`pool.errors`, or that of a
    :class:`RequestWarning`, and else empty.

    ``seconds`` is what a hand-out took from asking to having, and a request from its creation to
    its end. Of that, ``held_seconds`` passed while CVAT or the template was held, as in an outage,
    and ``server_seconds`` is CVAT's part: what else came after it had accepted the data, and tries
    that failed before. The rest is the pool's own. All are None for all other kinds, and these two
    also when no data was accepted.
    """

    id: int
    kind: str
    at: float
    template: str
    tenant: str = ""
    task_id: int | None = None
    lease_id: str | None = None
    request_id: str | None = None
    state: str
    outcome: str | None = None
    code: str = ""
    seconds: float | None = None
    server_seconds: float | None = None
    held_seconds: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedRequest:
    """How a request ended, and how long it took; the fields are those of :class:`Event`."""

    request_id: str
    template: str
    tenant: str = ""
    outcome: str | None
    at: float
    seconds: float
    server_seconds: float | None
    held_seconds: float | None
    state: str
    code: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkRecord:
    """How far deliveries to one sink have come: all events up to ``cursor`` are done with.

    ``failing_since`` is when the first delivery failed of all that have failed since the last
    one that was accepted; None while none has.
    """

    name: str
    cursor: int
    failing_since: float | None = None
    delivered: int = 0
    given_up: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpoolRecord:
    """A place where the data of requests waits: a folder on one machine, or one that all can reach
    (``shared``), such as a bucket.

    ``place`` and ``host`` are for people: its address or path, and the machine whose path that is.
    ``seen_at`` is when a process that reads it was last heard of, ``since`` when that began after
    none was for :data:`SPOOL_AWAY` seconds. ``trouble`` is why it could not be used, ``trouble_at``
    when that was last so.
    """

    id: str
    place: str
    host: str
    shared: bool = False
    since: float = 0.0
    seen_at: float = 0.0
    trouble: str = ""
    trouble_at: float | None = None

    def is_away(self, now: float) -> bool:
        """Whether no process reads it."""
        return self.seen_at < now - SPOOL_AWAY

    def trouble_now(self, now: float) -> str:
        """Return why it cannot be used by those that should; empty: it can."""
        recent = self.trouble_at is not None and self.trouble_at >= now - SPOOL_AWAY
        return self.trouble if recent else ""


def event_document(event: Event) -> dict[str, Any]:
    """Return an event as JSON shows it: its fields, the time as RFC 3339."""
    return {**asdict(event), "at": rfc3339(event.at)}
