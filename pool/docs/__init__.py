"""The manual: a page a topic, in Markdown, for ``cvat-pool docs`` and the daemon's ``/docs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

FOLDER: Final = Path(__file__).parent
#: The topics of each subject, in the order in which they are read.
SUBJECTS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "Use it": ("python", "remote", "http-api", "commands", "events", "brokers", "errors"),
        "Data": ("uploads", "groups", "slots"),
        "Run it": (
            *("configuration", "operations", "dashboard", "metrics", "sizing"),
            *("webhooks", "postgresql", "machines"),
        ),
        "Understand it": ("outages", "guarantees", "bench", "simulator", "development"),
    }
)
TOPICS: Final = tuple(topic for topics in SUBJECTS.values() for topic in topics)


@dataclass(frozen=True)
class Page:
    """A page of the manual, in Markdown."""

    topic: str
    text: str

    @property
    def title(self) -> str:
        """Its first line."""
        return self.text.partition("\n")[0].removeprefix("# ")


@cache
def page(topic: str) -> Page:
    """Return a page.

    :raises KeyError: there is no such topic.
    """
    if topic not in TOPICS:
        raise KeyError(topic)
    return Page(topic, (FOLDER / f"{topic}.md").read_text(encoding="utf-8"))


def pages() -> list[Page]:
    """Return all pages in their order."""
    return [page(topic) for topic in TOPICS]
