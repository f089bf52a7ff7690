"""What SQLite's errors mean to a person, in one line, with what to do about it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from pool.errors import PoolClosed, PoolError, StoreError

#: Free bytes below which an input or output error is put down to the disk being full: SQLite
#: reports a full disk as such only where it writes, not where it maps its shared memory.
ALMOST_FULL = 256 * 1024


def check_place(path: Path) -> None:
    """Raise when no store can be at ``path``. Folders are not made: a typing error in a path
    would otherwise give an empty pool."""
    folder = path.parent
    if not folder.is_dir():
        raise StoreError(f"the folder {folder} does not exist; create it or correct the path")
    if path.is_dir():
        raise StoreError(f"{path} is a folder; name a file in it")


def explain(error: sqlite3.Error, path: Path, *, busy_timeout: float) -> PoolError:
    """The pool's error for one of SQLite's."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            return PoolClosed("the store is closed")
        return StoreError(f"{path}: {error}")
    return StoreError(_explain_code(code, error, path, busy_timeout))


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another process was in the way, so that trying again helps."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def spoils_connection(error: sqlite3.Error) -> bool:
    """Whether the connection is of no more use: another one may see a mended file."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
    )


def _explain_code(code: int, error: sqlite3.Error, path: Path, busy_timeout: float) -> str:
    name = getattr(error, "sqlite_errorname", str(code))
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return f"the disk that holds {path} is full; free some space"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return (
                f"{path} stayed locked by another process for {busy_timeout:g} s; "
                "find out which one keeps a transaction open"
            )
        case sqlite3.SQLITE_NOTADB:
            return f"{path} is not a SQLite database; choose another path"
        case sqlite3.SQLITE_CORRUPT:
            return f"{path} is damaged ({error}); restore it from a backup"
        case sqlite3.SQLITE_IOERR:
            if _almost_full(path):
                return f"the disk that holds {path} is full; free some space"
            return f"{path} cannot be read or written ({name}); check the disk"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return _explain_access(error, path)
        case sqlite3.SQLITE_CONSTRAINT:
            return f"{path} refused a row that contradicts the others ({error})"
        case _:
            return f"{path}: {error} ({name})"


def _explain_access(error: sqlite3.Error, path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"the folder {folder} does not exist; create it or correct the path"
    if not path.exists():
        if not os.access(folder, os.W_OK):
            return f"{path} cannot be made, since the folder {folder} is read-only; allow writing"
        if _almost_full(path):
            return f"the disk that holds {path} is full; free some space"
        return f"{path} was deleted or moved away; put it back or start anew"
    if not os.access(folder, os.W_OK):
        return f"the folder {folder} is read-only, and SQLite writes files into it; allow writing"
    if not os.access(path, os.W_OK):
        return f"{path} is read-only; allow writing"
    if _almost_full(path):
        return f"the disk that holds {path} is full; free some space"
    return f"{path} cannot be opened for writing ({error}); was it moved away or replaced?"


def _almost_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < ALMOST_FULL
    except OSError:
        return False
