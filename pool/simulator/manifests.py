"""The list of images that CVAT takes with them: a line of JSON each, after two that say so.

Read more: https://docs.cvat.ai/docs/manual/advanced/dataset_manifest/
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .media import validation_error

VERSIONS = ("1.0", "1.1")


@dataclass(frozen=True, slots=True)
class Entry:
    """An image as a manifest has it. Its size is believed."""

    name: str
    width: int
    height: int


def described(name: str) -> str:
    """How CVAT writes the name of a file into a manifest of its own."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")).replace("\\", "/") + path.suffix


def read_manifest(path: Path) -> list[Entry]:
    """The images of a manifest. Raises :class:`ImportFailed` for a file that is none."""
    try:
        version, kind, *images = map(json.loads, filter(str.strip, path.read_text().splitlines()))
        is_list_of_images = version["version"] in VERSIONS and kind["type"] == "images"
        entries = [_entry(image) for image in images]
    except (ValueError, LookupError, TypeError):
        is_list_of_images = False
    if not is_list_of_images:
        raise validation_error("Invalid manifest was uploaded")
    return entries


def _entry(line: dict[str, Any]) -> Entry:
    return Entry(line["name"] + line["extension"], int(line["width"]), int(line["height"]))
