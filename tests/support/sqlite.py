"""SQLite stores for tests that need not make their tables."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from pool.store import open_store
from pool.store.schema import first_meta


@functools.cache
def _made() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.db"
        open_store(f"sqlite:///{path}").close()
        return path.read_bytes()


def made_store(folder: Path) -> str:
    """Return the URL of a store in a folder, without a row: to make its tables takes far longer
    than to copy them."""
    path = folder / "pool.db"
    path.touch(0o600)
    path.write_bytes(_made())
    with closing(sqlite3.connect(path)) as db, db:
        db.executemany(
            "UPDATE meta SET value = ? WHERE key = ?",
            [(value, key) for key, value in first_meta().items()],
        )
    return f"sqlite:///{path}"
