"""Rows to records: the columns of a table are the fields of its record, by the same names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Final

from sqlite_utils import Database

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

Row = Sequence[Any]
Parameters = dict[str, Any]

TASK_COLUMNS: Final = tuple(field.name for field in fields(PooledTask))
LEASE_COLUMNS: Final = tuple(field.name for field in fields(LeaseRecord))
REQUEST_COLUMNS: Final = tuple(field.name for field in fields(RequestRecord))


def listed(columns: Sequence[str], table: str = "") -> str:
    """Columns as they stand in a query, of one table where the query joins several."""
    prefix = f"{table}." if table else ""
    return ", ".join(prefix + column for column in columns)


def task_of(row: Row) -> PooledTask:
    """A task from the values of :data:`TASK_COLUMNS`."""
    values = dict(zip(TASK_COLUMNS, row, strict=True))
    values["state"] = TaskState(values["state"])
    values["prepared"] = bool(values["prepared"])
    return PooledTask(**values)


def lease_of(row: Row) -> LeaseRecord:
    """A lease from the values of :data:`LEASE_COLUMNS`."""
    values = dict(zip(LEASE_COLUMNS, row, strict=True))
    values["state"] = LeaseState(values["state"])
    values["outcome"] = _outcome(values["outcome"])
    return LeaseRecord(**values)


def request_of(row: Row) -> RequestRecord:
    """A request from the values of :data:`REQUEST_COLUMNS`."""
    values = dict(zip(REQUEST_COLUMNS, row, strict=True))
    values["state"] = RequestState(values["state"])
    values["outcome"] = _outcome(values["outcome"])
    values["files"] = tuple(json.loads(values["files"]))
    values["spooled"] = bool(values["spooled"])
    values["warnings"] = tuple(RequestWarning(**each) for each in json.loads(values["warnings"]))
    return RequestRecord(**values)


def file_list(files: Sequence[str]) -> str:
    """File names as the requests table has them; any name does, even one that is no Unicode."""
    return json.dumps(list(files))


def text(value: str) -> str:
    """Text that any store takes: what is no Unicode (from a file's name, say) becomes "?"."""
    return value.encode("utf-8", "replace").decode("utf-8")


def _outcome(value: str | None) -> Outcome | None:
    return None if value is None else Outcome(value)


# --- Running one query ---------------------------------------------------------------------------


def rows(db: Database, sql: str, parameters: Parameters) -> list[Row]:
    """All rows. Reading them to the end is also what completes an ``UPDATE … RETURNING``."""
    return db.execute(sql, parameters).fetchall()


def one(db: Database, sql: str, parameters: Parameters) -> Row | None:
    """The first row, if there is one."""
    found = rows(db, sql, parameters)
    return found[0] if found else None


def number(db: Database, sql: str, parameters: Parameters) -> int:
    """The one number that the query counts."""
    return int(rows(db, sql, parameters)[0][0])


def changed(db: Database, sql: str, parameters: Parameters) -> int:
    """Run a change, and say how many rows it met in the state that it expects."""
    return int(db.execute(sql, parameters).rowcount)
