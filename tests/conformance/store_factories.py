"""Every store is tested by the same tests; another implementation is another line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.postgres import fresh_url, made_url
from support.sqlite import made_store

#: The URL of a store of its own without a row, by the store's name. The folder is the test's own.
FACTORIES: dict[str, Callable[[Path], str]] = {
    "sqlite": made_store,
    "postgresql": lambda folder: made_url(),
}

#: The same of what is empty, so that the store is made when it is opened.
EMPTY: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder / 'pool.db'}",
    "postgresql": lambda folder: fresh_url(),
}
