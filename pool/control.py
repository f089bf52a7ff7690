"""Operating a pool while it runs: pause, drain, resume, prewarm, status, events."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from pool.clock import Clock
from pool.config.arguments import check_prewarm
from pool.config.settings import Settings, Template
from pool.errors import InputError
from pool.maintenance.reload import Reload
from pool.maintenance.retirement import DRAINED
from pool.model import Event, Prewarm, Status
from pool.observability.status import read_status
from pool.process import Process
from pool.requests.breaker import SERVER
from pool.store import Store

#: Seconds between two looks whether the configuration file has changed.
LOOK_EVERY: Final = 1.0


class Control:
    """The operations of :class:`~pool.taskpool.TaskPool` that hand nothing out.

    Their effect stands in the store, so it holds for all processes on it, and after they have
    ended.
    """

    process: Process
    settings: Settings
    store: Store
    clock: Clock

    #: Follows the file that the pool was made from. None where there is no such file, and in the
    #: daemon, which follows it by itself.
    _reload: Reload | None = None
    _next_look: float = -math.inf

    def pause(self, template: str) -> None:
        """Create no more tasks of a template for the pool, in any process, until :meth:`resume`.

        :raises UnknownTemplate: the configuration has no such template.
        """
        self.store.pause(self._template(template).name, now=self.clock.now())

    def drain(self, template: str) -> int:
        """Take all warm tasks of a template out of the pool, and create no more for it, until
        :meth:`resume`; return how many were taken out.

        They are retired now, and the daemon deletes them on the server. Tasks that callers have
        are left to them; one that is given back is retired, too. A caller that asks meanwhile is
        served as by any empty pool, as ``on_empty`` says.

        :raises UnknownTemplate: the configuration has no such template.
        """
        chosen = self._template(template)
        return self.store.drain(chosen.name, reason=DRAINED, now=self.clock.now())

    def resume(self, template: str | None = None) -> None:
        """Create tasks of a template again, after :meth:`pause` or :meth:`drain`, and try at once
        what is held, the server included; of all templates when none is named.

        :raises UnknownTemplate: the configuration has no such template.
        """
        self._follow_configuration()
        templates = self.process.templates
        names = set(templates) if template is None else {templates.named(template).name}
        for name in names & self.store.paused().keys():
            self.store.resume(name)
        for name in (names | {SERVER}) & self.store.holds().keys():
            self.store.release_hold(name, now=self.clock.now())

    def prewarm(self, template: str, count: int, *, duration: float = 900.0) -> None:
        """Keep at least ``count`` tasks of a template warm for the next ``duration`` seconds.

        Takes the place of an earlier prewarm of the template; a ``count`` of 0 ends it. Afterwards
        the size is what it would be without: no more are created, and those that are warm stay
        until they are handed out or too old. Nothing is created while the template is paused.

        :raises InputError: ``count`` is not from 0 to the template's ``max_size``, or ``duration``
            is not from 1 ms to 30 days.
        :raises UnknownTemplate: the configuration has no such template.
        """
        chosen = self._template(template)
        count, duration = check_prewarm(count, duration)
        most = chosen.pool.max_size
        if count > most:
            raise InputError(f"a prewarm of {count}: {chosen.name!r} has at most {most}, max_size")
        if not count:
            self.store.end_prewarm(chosen.name)
            return
        now = self.clock.now()
        self.store.prewarm(
            Prewarm(template=chosen.name, size=count, since=now, until=now + duration)
        )

    def status(self) -> Status:
        """Levels, demand and troubles of all templates; reads the store only."""
        self._follow_configuration()
        in_force = replace(self.settings, templates=dict(self.process.templates))
        return read_status(self.store, in_force, now=self.clock.now())

    def subscribe(
        self,
        callback: Callable[[Event], None],
        kinds: Collection[str] | None = None,
        *,
        template: str | None = None,
    ) -> Callable[[], None]:
        """Have ``callback`` called with each event from now on, whichever process it is of, in
        order and on a thread of its own; return what ends that.

        ``kinds`` are some of :data:`pool.model.KINDS`, all by default. What the
        callback raises is logged.

        :raises InputError: there is no such kind.
        """
        return self.process.feed.subscribe(callback, kinds=kinds, template=template)

    def _template(self, name: str) -> Template:
        self._follow_configuration()
        return self.process.templates.named(name)

    def _follow_configuration(self) -> None:
        """Follow a changed file as the daemon does: a process with outdated templates would ask for
        tasks that are no longer kept warm."""
        now = self.clock.monotonic()
        if self._reload is None or now < self._next_look:
            return
        self._next_look = now + LOOK_EVERY
        if self._reload.run_once().credentials:
            self.process.renew_credentials()
