"""Every store is tested by the same tests; another implementation is another line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.postgres import fresh_url

#: The URL of a fresh, empty store, by the store's name. The folder is the test's own.
FACTORIES: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder / 'pool.db'}",
    "postgresql": lambda folder: fresh_url(),
}
