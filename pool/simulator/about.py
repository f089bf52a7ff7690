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
    found = [_entry(path) for path in folder.iterdir() if path.name.startswith(pattern)]
    return Reply(sorted(found, key=lambda entry: (entry["type"], entry["name"])))


def _entry(path: Path) -> Json:
    if path.is_dir():
        return {"name": path.name, "type": "DIR", "mime_type": "DIR"}
    kind = kind_of(path.name)
    mime_type = "archive" if kind == "zip" else kind
    return {"name": path.name, "type": "REG", "mime_type": mime_type}


def inside(root: Path, name: str) -> Path | None:
    """A path below ``root``; ``None`` for one that leads out of it."""
    path = (root / name.lstrip("/")).resolve()
    return path if path.is_relative_to(root.resolve()) else None
