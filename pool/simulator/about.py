"""What the server says of itself, and the file share that it is connected to."""

from __future__ import annotations

from pathlib import Path

from .call import Call
from .media import kind_of
from .records import Json
from .replies import Reply, invalid
from .versions import read_version


async def get_about(call: Call) -> Reply:
    return Reply(
        {
            "name": "Computer Vision Annotation Tool",
            "description": "A simulated CVAT server: it keeps tasks, jobs and uploads for as long "
            "as it runs, annotates nothing, and takes the time that a real server takes.",
            "version": ".".join(map(str, read_version(call.settings.version))),
            "logo_url": f"{call.base_url}/static/logo.svg",
            "subtitle": "Open Data Annotation Platform",
        }
    )


async def list_share(call: Call) -> Reply:
    """One folder of the share; ``directory`` is a path from its root."""
    asked = call.query.get("directory", "/")
    pattern = call.query.get("search", "")
    folder = inside(call.simulator.share, asked)
    if folder is None or not folder.is_dir():
        raise invalid(f"{asked} is an invalid directory")
    found: list[Json] = []
    for entry in sorted(folder.iterdir()):
        if pattern and not entry.name.startswith(pattern):
            continue
        if entry.is_dir():
            found.append({"name": entry.name, "type": "DIR", "mime_type": "DIR"})
        else:
            found.append({"name": entry.name, "type": "REG", "mime_type": kind_of(entry.name)})
    return Reply(found)


def inside(root: Path, name: str) -> Path | None:
    """A path below ``root``; ``None`` for one that leads out of it."""
    path = (root / name.lstrip("/")).resolve()
    return path if path.is_relative_to(root.resolve()) else None
