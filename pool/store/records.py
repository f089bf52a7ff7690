"""What a caller gives to the store, what it answers beyond :mod:`pool.model`, and rows as records.

The columns of a table are the fields of its record, by the same names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from pool.model import (
    LeaseRecord,
    LeaseState,
    Outcome,
    PooledTask,
    RequestRecord,
    RequestState,
    RequestWarning,
    TaskState,
)
from pool.store.connections import Row

#: The owner of a request that waits in the spool, and of the lease that it waits with.
UNOWNED: Final = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRequest:
    """The part of a request that its caller decides; see :class:`pool.model.RequestRecord`."""

    id: str
    name: str | None = None
    assignee: int | None = None
    files: tuple[str, ...] = ()
    size: int = 0
    spooled: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NewMember:
    """A queued request that is to be a member of an import. ``names`` are what CVAT is to see in
    place of the request's files; None: the files as they were given."""

    request_id: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewLease:
    """A caller's wish for a task.

    Only a task of ``fingerprint`` will do, so that no task made by an older template is handed
    out; unless ``reusable_origin`` names the origin of those that will do where none of the
    fingerprint is warm. ``ttl`` is how long the hand-out lasts, in seconds. ``payload`` is a
    digest of what is asked for; an ``idempotency_key`` is bound to it.
    """

    id: str
    template: str
    fingerprint: str
    owner: str
    ttl: float
    reusable_origin: str | None = None
    idempotency_key: str | None = None
    payload: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """What :meth:`~pool.store.Store.open_lease` did.

    ``replayed`` tells that the idempotency key was known, so that ``lease`` and ``request``
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
    among many."""

    id: str
    template: str
    state: RequestState
    lease_id: str
    created_at: float


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


# --- Rows as records ------------------------------------------------------------------------------


def columns_of(record: type, table: str = "") -> str:
    """Return a record's columns as they stand in a query, of one table where it joins several."""
    prefix = f"{table}." if table else ""
    return ", ".join(prefix + field.name for field in fields(record))


#: Columns of a request that are those of its import.
_OF_IMPORT: Final = frozenset(
    {"pooled_id", "task_id", "outcome", "handed_out_at", "uploaded_at", "deadline_at"}
)


def _request_column(name: str) -> str:
    if name == "owner":
        return "COALESCE(imports.owner, requests.owner)"
    return f"imports.{name}" if name in _OF_IMPORT else f"requests.{name}"


_TASK_FIELDS: Final = tuple(field.name for field in fields(PooledTask))
_LEASE_FIELDS: Final = tuple(field.name for field in fields(LeaseRecord))
_REQUEST_FIELDS: Final = tuple(field.name for field in fields(RequestRecord))
TASK: Final = columns_of(PooledTask)
LEASE: Final = columns_of(LeaseRecord)
#: A request's columns, in a query of :data:`REQUESTS`.
REQUEST: Final = ", ".join(map(_request_column, _REQUEST_FIELDS))
#: Requests with their imports, where they have one. What precedes ``WHERE``.
WITH_IMPORT: Final = "LEFT JOIN imports ON imports.id = requests.import_id"
REQUESTS: Final = f"requests {WITH_IMPORT}"
#: How many values of a row that joins tables are the task's, and the lease's.
TASK_WIDTH: Final = len(_TASK_FIELDS)
LEASE_WIDTH: Final = len(_LEASE_FIELDS)


def task_of(row: Row) -> PooledTask:
    """Return a task from the values of :data:`TASK`."""
    values: dict[str, Any] = dict(zip(_TASK_FIELDS, row, strict=True))
    values["state"] = TaskState(values["state"])
    values["prepared"] = bool(values["prepared"])
    return PooledTask(**values)


def lease_of(row: Row) -> LeaseRecord:
    """Return a lease from the values of :data:`LEASE`."""
    values: dict[str, Any] = dict(zip(_LEASE_FIELDS, row, strict=True))
    values["state"] = LeaseState(values["state"])
    values["outcome"] = _outcome(values["outcome"])
    return LeaseRecord(**values)


def request_of(row: Row) -> RequestRecord:
    """Return a request from the values of :data:`REQUEST`."""
    values: dict[str, Any] = dict(zip(_REQUEST_FIELDS, row, strict=True))
    values["state"] = RequestState(values["state"])
    values["outcome"] = _outcome(values["outcome"])
    values["files"] = tuple(json.loads(values["files"]))
    values["spooled"] = bool(values["spooled"])
    values["warnings"] = tuple(RequestWarning(**each) for each in json.loads(values["warnings"]))
    return RequestRecord(**values)


def request_or_none(row: Row) -> RequestRecord | None:
    """Return the request of a row that joins one where there is one."""
    return None if row[0] is None else request_of(row)


def _outcome(value: str | None) -> Outcome | None:
    return None if value is None else Outcome(value)


def text(value: str) -> str:
    """Return text that any store takes: what is no Unicode (from a file's name, say) becomes
    "?"."""
    return value.encode("utf-8", "replace").decode("utf-8")
