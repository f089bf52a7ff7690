"""Takes over a changed ``config.toml`` without a restart: sizes at once, templates as they come.

A changed fingerprint, a new template and one that was taken out need nothing special here: the
refill makes tasks by what is in force, and recycling retires the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pool.errors import ConfigError
from pool.logs import get_logger
from pool.settings import Settings
from pool.templates import Templates

log = get_logger(__name__)

#: Tables that are read at the start only.
FIXED = ("cvat", "store", "daemon", "events")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReloadReport:
    """What a look at the file came to: templates that changed, tables that want a restart, and
    what is wrong with the file, if anything is."""

    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    problem: str = ""


class Reload:
    """Looks whether the configuration has changed, and puts its templates in force."""

    def __init__(
        self, settings: Settings, templates: Templates, read: Callable[[Path], Settings]
    ) -> None:
        self._settings = settings
        self._templates = templates
        self._read = read
        self._forced = False
        self._seen = self._stamp()

    def force(self) -> None:
        """Read the file with the next run even if it looks the same; safe in a signal handler."""
        self._forced = True

    def run_once(self) -> ReloadReport:
        """Read the file if it has changed. A wrong file changes nothing."""
        path = self._settings.path
        stamp = self._stamp()
        if path is None or (stamp == self._seen and not self._forced):
            return ReloadReport()
        self._seen, self._forced = stamp, False
        try:
            fresh = self._read(path)
        except ConfigError as error:
            log.error("configuration not reloaded; the old one stays in force", why=str(error))
            return ReloadReport(problem=str(error))
        return self._apply(fresh)

    def _apply(self, fresh: Settings) -> ReloadReport:
        restart = tuple(
            name for name in FIXED if getattr(fresh, name) != getattr(self._settings, name)
        )
        if restart:
            log.warning("these tables change with the next start only", tables=restart)
        # What a template tells the server includes where the server is, which stays.
        templates = {
            name: replace(template, server=self._settings.cvat)
            for name, template in fresh.templates.items()
        }
        changed = tuple(
            sorted(
                name
                for name in templates.keys() | set(self._templates)
                if templates.get(name) != self._templates.get(name)
            )
        )
        self._templates.replace(templates)
        for warning in fresh.warnings:
            log.warning("doubtful configuration", what=warning)
        if changed:
            log.info("configuration reloaded", templates=changed)
        return ReloadReport(changed=changed, restart=restart)

    def _stamp(self) -> tuple[int, int, int] | None:
        """What tells one state of the file from another, written anew or in place."""
        if self._settings.path is None:
            return None
        try:
            status = self._settings.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size
