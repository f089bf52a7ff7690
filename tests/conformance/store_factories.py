"""Every store is tested by the same tests; another implementation is another line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.postgres import made_url
from support.sqlite import made_store

#: The URL of a store of its own without a row, by the store's name. The folder is the test's own.
FACTORIES: dict[str, Callable[[Path], str]] = {
    "sqlite": made_store,
    "postgresql": lambda folder: made_url(),
}
