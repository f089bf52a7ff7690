"""What PostgreSQL's errors mean to a person, in one line, without credentials, and what to do."""

from __future__ import annotations

import psycopg
from psycopg import errors

from pool.errors import StoreError
from pool.store.migrations import outdated

#: What ``refuse_older`` fails with, and the newer version as its message.
OUTDATED = "CVATP"
#: The server ends the connection, or does not take it now.
_ENDS = ("57P01", "57P02", "57P03", "57P05", "25P03")


def is_lost(error: psycopg.OperationalError, conn: psycopg.Connection) -> bool:
    """Whether the connection is of no more use."""
    return conn.closed or error.sqlstate in _ENDS


def is_passing(error: psycopg.OperationalError) -> bool:
    """Whether a server that refuses a connection may take it later: it is starting, there are as
    many connections as it allows, or nothing listens at its address."""
    # libpq gives no code for what happens before it is logged in.
    said = str(error)
    return (
        error.sqlstate in (*_ENDS, "53300")
        or any(each in said for each in ("starting up", "shutting down", "recovery mode"))
        or any(each in said for each in ("not yet accepting", "not accepting"))
        or any(each in said for each in ("too many clients", "remaining connection slots"))
        or any(each in said for each in ("Connection refused", "No such file", "closed the conn"))
    )


def explain(error: psycopg.Error, place: str, *, busy_timeout: float) -> StoreError:
    """The pool's error for one of PostgreSQL's."""
    if error.diag.sqlstate == OUTDATED:
        return outdated(place, error.diag.message_primary or "")
    return StoreError(_explain(error, place, busy_timeout))


def _explain(error: psycopg.Error, place: str, busy_timeout: float) -> str:
    said = error.diag.message_primary or str(error).strip().partition("\n")[0]
    match error:
        case errors.LockNotAvailable():
            return (
                f"{place} stayed locked by another process for {busy_timeout:g} s; "
                "find out which one keeps a transaction open"
            )
        case errors.QueryCanceled():
            return f"{place} cancelled a statement ({said}); raise its statement_timeout"
        case errors.DiskFull() | errors.OutOfMemory():
            return f"the server of {place} is out of room ({said}); free some"
        case errors.ReadOnlySqlTransaction():
            return f"{place} is read-only (a standby?); name the primary in store.url"
        case errors.InsufficientPrivilege():
            return f"{place} does not allow it ({said}); grant it to the user"
        case errors.DuplicateTable() | errors.DuplicateFunction() | errors.DuplicateObject():
            return f"{place} holds something else already ({said}); use a database of its own"
        case errors.IntegrityError():
            return f"{place} refused a row that contradicts the others ({said})"
        case errors.DataError():
            return f"{place} refused a value ({said})"
        case _ if "read-only" in said and "session" in said:
            return f"{place} is read-only (a standby?); name the primary in store.url"
        case _ if "too many clients" in said or "connection slots" in said:
            return f"{place} has as many connections as it allows; raise max_connections"
        case psycopg.OperationalError():
            return f"{place} cannot be reached, or the connection was lost ({said})"
        case _:
            return f"{place}: {said}"
