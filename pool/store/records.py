"""What a caller gives to the store, what it answers beyond :mod:`pool.model`, and rows as records.

The columns of a table are the fields of its record, by the same names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from pool.errors import InputError
from pool.model import (
    Assignee,
    EndedRequest,
    Event,
    Handout,
    Hidden,
    Hold,
    LeaseRecord,
    LeaseState,
    LevelRecord,
    Outcome,
    Placed,
    PooledTask,
    Prewarm,
    Priority,
    RequestRecord,
    RequestState,
    RequestWarning,
    Scope,
    SinkRecord,
    SpoolRecord,
    Stream,
    TaskState,
    WebhookRecord,
)
from pool.store.connections import Connection, Row, listed
from pool.store.schema import OF_TENANT

R = TypeVar("R")

#: The owner of a request that waits in the spool, and of the lease that it waits with.
UNOWNED: Final = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRequest:
    """The part of a request that its caller decides; see :class:`pool.model.RequestRecord`.

    ``files`` are the names in CVAT in a task of its own; with ``given`` None the caller calls the
    files the same. ``tenant`` is on whose behalf it is made: the name of a token, "" for the
    operator. ``spool`` is the id of the spool in which the data of a ``spooled`` one is.
    """

    id: str
    tenant: str = ""
    name: str | None = None
    assignee: Assignee | None = None
    files: tuple[str, ...] = ()
    given: tuple[str, ...] | None = None
    frame_numbers: tuple[int | None, ...] | None = None
    size: int = 0
    spooled: bool = False
    spool: str = ""
    group_key: str | None = None
    priority: Priority = Priority.NORMAL
    no_slot: str = ""
    stream: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewMember:
    """A queued request that is to be a member of an import. ``names`` are what CVAT is to see in
    place of the request's files; None: what it sees in a task of the request's own."""

    request_id: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewLease:
    """A caller's wish for a task.

    Only a task of ``fingerprint`` will do, so that no task made by an older template is handed
    out; unless ``reusable_origin`` names the origin of those that will do where none of the
    fingerprint is warm. ``ttl`` is how long the hand-out lasts, in seconds. ``name`` is what its
    caller calls it. ``payload`` is a digest of what is asked for; an ``idempotency_key``, of which
    each ``tenant`` has its own, is bound to it.
    """

    id: str
    template: str
    fingerprint: str
    owner: str
    ttl: float
    name: str | None = None
    reusable_origin: str | None = None
    tenant: str = ""
    idempotency_key: str | None = None
    payload: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What :meth:`~pool.store.Store.open_lease` did.

    ``replayed``: the idempotency key was known, so that ``lease`` and ``request``
    are those of the first call, in whatever state they are now. ``task`` is None while the
    lease waits for one.
    """

    lease: LeaseRecord
    task: PooledTask | None
    request: RequestRecord | None
    replayed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Unserved:
    """A spooled request without a worker, ``QUEUED`` or ``UPLOADING``: what is needed to choose
    among many. ``files`` are known of those that have a ``group_key`` only. ``patient``: it waits
    for a warm task alone, since ``created_at``. It is left alone up to ``paused_until``; its upload
    failed last at ``failed_at``."""

    id: str
    template: str
    tenant: str = ""
    state: RequestState
    lease_id: str
    created_at: float
    group_key: str | None = None
    priority: Priority = Priority.NORMAL
    size: int = 0
    files: tuple[str, ...] = ()
    frame_numbers: tuple[int | None, ...] | None = None
    no_slot: bool = False
    stream: str | None = None
    patient: bool = False
    paused_until: float | None = None
    failed_at: float | None = None


#: For which requests a task is made: their template, and the group key, the priority and the tenant
#: by which others may share it.
MadeFor = tuple[str, str | None, Priority, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class CreateLimit:
    """How many tasks of a template may be warm or on their way, and how many on their way."""

    capacity: int
    concurrency: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """When tasks were asked for, in ascending order, and how many times with which outcome;
    None is without a task."""

    times: Sequence[float]
    outcomes: Mapping[Outcome | None, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One page of requests, newest first, and the cursor of the next one, if there is one."""

    requests: tuple[RequestRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeasePage:
    """One page of leases, newest first, and the cursor of the next one, if there is one."""

    leases: tuple[LeaseRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenStream:
    """A stream that is open, with CVAT's id of its latest task, how many slots that has, and how
    many of these are filled."""

    stream: Stream
    task_id: int | None
    slots: int
    filled: int


# --- Rows as records ------------------------------------------------------------------------------


def names_of(record: type) -> tuple[str, ...]:
    """Return the names of a record's fields, which are those of its columns."""
    return tuple(field.name for field in fields(record))


def columns_of(record: type, table: str = "") -> str:
    """Return a record's columns as they stand in a query, of one table where it joins several."""
    prefix = f"{table}." if table else ""
    return ", ".join(prefix + name for name in names_of(record))


def _request_column(name: str) -> str:
    if name == "owner":
        return "COALESCE(imports.owner, requests.owner)"
    if name == "files":
        return "COALESCE(requests.files_in_group, requests.files)"
    if name == "given":
        return "COALESCE(requests.given, requests.files)"
    if name == "data_away":
        return "''"
    if name == "placed":
        return """
            CASE WHEN imports.slot THEN 'slot' WHEN requests.files_in_group IS NOT NULL THEN 'group'
                 WHEN requests.import_id IS NOT NULL THEN 'task' END"""
    if name == "task_deleted":
        # A slot goes with the task that it is in.
        return """
            EXISTS (SELECT 1 FROM tasks AS own JOIN tasks AS whole
                    ON whole.id = COALESCE(own.carrier_id, own.id)
                    WHERE own.id = imports.pooled_id
                      AND whole.state = 'deleted' AND NOT whole.disowned)"""
    of_import = {"pooled_id", "task_id", "outcome", "handed_out_at", "uploaded_at", "deadline_at"}
    return f"imports.{name}" if name in of_import else f"requests.{name}"


TASK: Final = columns_of(PooledTask)
LEASE: Final = columns_of(LeaseRecord)
#: A request's columns, in a query of :data:`REQUESTS`.
REQUEST: Final = ", ".join(map(_request_column, names_of(RequestRecord)))
#: Requests with their imports, where they have one. What precedes ``WHERE``.
WITH_IMPORT: Final = "LEFT JOIN imports ON imports.id = requests.import_id"
REQUESTS: Final = f"requests {WITH_IMPORT}"

#: Where the rows of a record are.
_TABLES: Final[Mapping[type, str]] = {
    Event: "events",
    Hold: "holds",
    LeaseRecord: "leases",
    LevelRecord: "levels",
    PooledTask: "tasks",
    Prewarm: "prewarms",
    RequestRecord: REQUESTS,
    SinkRecord: "sinks",
    SpoolRecord: "spools",
    Stream: "streams",
    WebhookRecord: "webhooks",
}
#: The names of a record's fields, and the query for all of its rows.
_NAMES: Final = {record: names_of(record) for record in (*_TABLES, EndedRequest)}
_SELECT: Final = {
    record: f"SELECT {REQUEST if record is RequestRecord else columns_of(record)} FROM {table}"
    for record, table in _TABLES.items()
}
_OUTCOMES: Final[Mapping[str | None, Outcome | None]] = {
    None: None,
    **{each: each for each in Outcome},
}
#: The values that SQL has no type for, by record and field.
_CONVERTERS: Final[Mapping[type, Mapping[str, Callable[[Any], object]]]] = {
    Hold: {"uploads": bool},
    LeaseRecord: {"state": LeaseState, "outcome": _OUTCOMES.__getitem__},
    SpoolRecord: {"shared": bool},
    PooledTask: {"state": TaskState, "prepared": bool},
    RequestRecord: {
        "state": RequestState,
        "task_deleted": bool,
        "outcome": _OUTCOMES.__getitem__,
        "assignee": lambda value: None if value is None else assignee_of(value),
        "files": lambda value: tuple(json.loads(value)),
        "given": lambda value: tuple(json.loads(value)),
        "frame_numbers": lambda value: None if value is None else tuple(json.loads(value)),
        "spooled": bool,
        "hidden": lambda value: None if value is None else Hidden(value),
        "placed": lambda value: None if value is None else Placed(value),
        "priority": tuple(Priority).__getitem__,
        "warnings": lambda value: tuple(RequestWarning(**each) for each in json.loads(value)),
    },
}


def assignee_of(value: str) -> Assignee:
    """Return a user from a column, where digits alone are an id."""
    return int(value) if value.isdecimal() else value


def record_of(record: type[R], row: Row) -> R:
    """Return a row as a record, from the values of all its columns."""
    values: dict[str, Any] = dict(zip(_NAMES[record], row, strict=True))
    for name, convert in _CONVERTERS.get(record, {}).items():
        values[name] = convert(values[name])
    return record(**values)


def select(db: Connection, record: type[R], rest: str = "", /, **wanted: Any) -> list[R]:
    """Return rows as records; ``rest`` is what follows the table in the query."""
    found = db.rows(f"{_SELECT[record]} {rest}", **wanted)
    return [record_of(record, row) for row in found]


def find(db: Connection, record: type[R], condition: str, /, **wanted: Any) -> R | None:
    """Return the row that meets a condition, if there is one."""
    return next(iter(select(db, record, f"WHERE {condition}", **wanted)), None)


def handout_of(row: Row) -> Handout:
    """Return a hand-out from the values of a lease and its task."""
    width = len(names_of(LeaseRecord))
    return Handout(
        lease=record_of(LeaseRecord, row[:width]), task=record_of(PooledTask, row[width:])
    )


def within(scope: Scope) -> tuple[str, dict[str, Any]]:
    """Return the conditions that a row is one that a caller sees, each after AND, and their
    parameters."""
    conditions, wanted = [], {}
    if scope.tenant is not None:
        conditions.append("tenant = :tenant")
        # As an index of the rows of tenants has it.
        conditions += [OF_TENANT] if scope.tenant else []
        wanted["tenant"] = scope.tenant
    if scope.templates:
        marks, of_templates = listed(scope.templates)
        conditions.append(f"template IN ({marks})")
        wanted |= of_templates
    return "".join(f" AND {each}" for each in conditions), wanted


def cursor_of(cursor: str) -> int:
    """Return the number that the cursor of a page stands for.

    :raises InputError: no page gave it.
    """
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise InputError(f"{cursor[:40]!r} is not a cursor that an earlier page gave")
    return int(cursor)


def check_limit(limit: int) -> int:
    """Return how many rows a page has.

    :raises InputError: it is below 1.
    """
    if limit < 1:
        raise InputError("the limit of a page must be at least 1")
    return limit


def text(value: str) -> str:
    """Return text that any store takes: what is no Unicode (from a file's name, say) becomes
    "?", and so does NUL, which PostgreSQL has no place for."""
    return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
