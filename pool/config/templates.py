"""The templates in force, which a reload replaces, and what other processes see of them."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from dataclasses import asdict
from typing import Any

from pool.config.settings import PoolSettings, Template
from pool.errors import UnknownTemplate


def outline(template: Template) -> Mapping[str, Any]:
    """Return what a status needs of a template, as JSON: how its pool is sized, and its project."""
    return {"project": template.project, "pool": asdict(template.pool)}


def outlined(name: str, outline: Mapping[str, Any]) -> Template:
    """Return the template of an :func:`outline`: enough for a status, not for creating tasks."""
    return Template(name=name, project=outline["project"], pool=PoolSettings(**outline["pool"]))


class Templates(Mapping[str, Template]):
    """A mapping by name that is replaced as a whole: an iteration sees one configuration."""

    def __init__(self, templates: Mapping[str, Template]) -> None:
        self._current = dict(templates)

    def replace(self, templates: Mapping[str, Template]) -> None:
        """Put these in force, and no others."""
        self._current = dict(templates)

    def named(self, name: str) -> Template:
        """Return the template of that name.

        :raises UnknownTemplate: there is none; the message names the known ones.
        """
        current = self._current
        try:
            return current[name]
        except (KeyError, TypeError):
            known = ", ".join(current) or "none at all"
            raise UnknownTemplate(f"{ascii(name)[:100]}; there is {known}") from None

    def __getitem__(self, name: str) -> Template:
        return self._current[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._current)

    def __len__(self) -> int:
        return len(self._current)

    def values(self) -> ValuesView[Template]:
        return self._current.values()

    def items(self) -> ItemsView[str, Template]:
        return self._current.items()
