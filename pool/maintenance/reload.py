"""Put a changed configuration in force without a restart: sizes at once, templates as they come.

A changed fingerprint, a new template and one that was taken out need nothing special here: the
refill makes tasks by what is in force, and the others are retired.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path

from pool.clock import Clock
from pool.config.fields import Stamp, stamp
from pool.config.loader import InvalidConfig, load, require_templates
from pool.config.settings import Settings, Template, Templates, TokenSettings
from pool.config.tokens import Tokens
from pool.errors import ConfigError
from pool.logs import get_logger
from pool.model import ConfigRecord

log = get_logger(__name__)

#: Tables that are read at the start only.
FIXED = ("cvat", "store", "daemon", "events")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReloadReport:
    """The result of a look: whether the file was read and is in force, templates that have changed,
    keys that need a restart, what is wrong, and whether the file with the access token changed."""

    read: bool = False
    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    credentials: bool = False


class Reload:
    """Puts the templates and the callers' tokens in force of a configuration that has changed.

    The configuration is its file and all files that it names: labels, tokens and secrets. A process
    that serves no callers has no ``tokens``.
    """

    def __init__(
        self,
        settings: Settings,
        templates: Templates,
        tokens: Tokens | None = None,
        *,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._templates = templates
        self._tokens = tokens
        self._clock = clock
        self._forced = False
        # As they were before they were read, so that no change since then goes unnoticed.
        self._seen: Mapping[Path, Stamp] = settings.files
        self._loaded_at = clock.now()
        self._rejected_at: float | None = None
        self._report = ReloadReport()

    def force(self) -> None:
        """Read the file with the next run even if it looks the same; safe in a signal handler."""
        self._forced = True

    @property
    def record(self) -> ConfigRecord:
        """The configuration in force, and the problems of the latest file."""
        return ConfigRecord(
            loaded_at=self._loaded_at,
            rejected_at=self._rejected_at,
            problems=self._report.problems,
            restart=self._report.restart,
            templates={name: each.outline for name, each in self._templates.items()},
        )

    def run_once(self) -> ReloadReport:
        """Read the file if it, or one that it names, has changed. A wrong one changes nothing."""
        path = self._settings.path
        seen = {each: stamp(each) for each in self._seen}
        changed = {each for each in seen if seen[each] != self._seen[each]}
        if path is None or not (changed or self._forced):
            return ReloadReport()
        self._forced = False
        credentials = self._settings.cvat.access_token_file in changed
        try:
            fresh = load(path)
            require_templates(fresh)
            self._follow_tokens(fresh.tokens)
        except ConfigError as error:
            wrong = error if isinstance(error, InvalidConfig) else None
            # Those in force are still watched, since what they hold is still used.
            self._seen = {**seen, **(wrong.files if wrong else {})}
            with suppress(ConfigError):
                self._follow_tokens()
            problems = wrong.lines() if wrong else (str(error),)
            log.error("configuration not reloaded; the old one stays in force", why=problems)
            if self._rejected_at is None:
                self._rejected_at = self._clock.now()
            self._report = replace(self._report, problems=problems)
            return ReloadReport(problems=problems, credentials=credentials)
        self._seen = fresh.files
        self._loaded_at, self._rejected_at = self._clock.now(), None
        self._report = replace(self._apply(fresh), credentials=credentials)
        return self._report

    def _follow_tokens(self, settings: Mapping[str, TokenSettings] | None = None) -> None:
        changed = self._tokens.follow(settings) if self._tokens is not None else ()
        if changed:
            log.info("tokens reloaded", tokens=changed)

    def _apply(self, fresh: Settings) -> ReloadReport:
        restart = tuple(
            f"{table}.{key.name}"
            for table in FIXED
            for key in fields(getattr(fresh, table))
            if getattr(getattr(fresh, table), key.name)
            != getattr(getattr(self._settings, table), key.name)
        )
        if restart:
            log.warning("a restart is needed to follow these keys", keys=restart)
        # A template includes the address of its server, which stays.
        templates: dict[str, Template] = {
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
            log.warning(f"probable mistake in the configuration: {warning}")
        if changed:
            log.info("configuration reloaded", templates=changed)
        return ReloadReport(read=True, changed=changed, restart=restart)
