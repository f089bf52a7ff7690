"""The rows of a pool, and where they are kept."""

from __future__ import annotations

from pathlib import Path

from pool.errors import ConfigError
from pool.store.base import Store
from pool.store.sqlite import SqliteStore

_SQLITE = "sqlite:///"


def open_store(url: str, *, busy_timeout: float = 30.0) -> Store:
    """Open the store at ``url``; a file that is not there is made, its folder is not.

    ``sqlite:///pool.db`` is relative to the current folder, ``sqlite:////var/lib/pool.db`` is
    absolute. ``busy_timeout`` is how long, in seconds, a call waits for other processes that
    write.

    :raises ConfigError: no store is kept at such a URL.
    :raises StoreError: the file cannot be used; the message says why.
    """
    path = url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or not path or path == ":memory:":
        raise ConfigError(
            f"the store {url!r} is not supported; write sqlite:///relative.db or "
            "sqlite:////absolute.db"
        )
    return SqliteStore(Path(path).absolute(), busy_timeout=busy_timeout)
