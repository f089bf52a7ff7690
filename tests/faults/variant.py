"""The configuration file of a world, as people change it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from faults.stepped_server import URL

#: Seconds for the answer to one call.
TIMEOUT = 5.0


@dataclass(frozen=True)
class Variant:
    """One state of the configuration file."""

    labels: tuple[str, ...] = ("car",)
    min_size: int = 2
    max_size: int = 4
    on_empty: str = "create"
    on_change: str = "recreate"
    grouping: str = "auto"
    templates: tuple[str, ...] = ("scenes", "roads")
    broken: bool = False

    def to_toml(self, store: str, spool: Path) -> str:
        labels = ", ".join(f'{{ name = "{name}" }}' for name in self.labels)
        pool = (
            f"min_size = {self.min_size}, max_size = {self.max_size}, create_concurrency = 2, "
            f'on_empty = "{self.on_empty}", on_change = "{self.on_change}", max_wait = "2s", '
            'lease_ttl = "60s", max_age = "1h"'
        )
        return (
            f'[cvat]\nurl = "{URL}"\ntimeout = "{TIMEOUT}s"\n'
            f'[store]\nurl = "{store}"\nspool = "{spool}"\n'
            "[daemon]\nport = 0\nmax_queued = 3\n"
            f"[defaults]\npool = {{ {pool} }}\n"
            f'import = {{ timeout = "60s", grouping = "{self.grouping}", concurrency = 1 }}\n'
            + "".join(f"[templates.{name}]\nlabels = [{labels}]\n" for name in self.templates)
            + ("colour = 3\n" if self.broken else "")
        )
