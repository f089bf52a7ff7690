"""What a store must do for those who maintain it: a part of :class:`pool.store.base.Store`,
whose rules hold here too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from pool.model import ConfigRecord, Hold, PooledTask, Prewarm


class UpkeepRows(Protocol):
    """Who maintains the store, what is held, what people want, what leaves the pool, what
    reconciliation has found, and what is forgotten."""

    # --- Who maintains ------------------------------------------------------------------------

    def acquire_maintenance(self, owner: str, *, until: float, now: float) -> bool:
        """Become, or stay, the one process that maintains the store, up to ``until``.

        False while another owner's term lasts, and it lasts no longer than twice the term that is
        asked for: the clock was set back since then.
        """

    def release_maintenance(self, owner: str) -> bool:
        """End one's own term now; False when it was not one's own."""

    def maintainer(self, *, now: float) -> str | None:
        """Who maintains the store now, if anybody does."""

    def broken_off_maintenance(self, *, now: float) -> str | None:
        """Who maintained the store last, when its term has passed and was not released: it was
        killed, or the machine was. None after an orderly end, and while a term lasts."""

    def keep_configuration(self, record: ConfigRecord) -> None:
        """Keep the configuration of the daemon that maintains the store, in place of the one
        before."""

    def configuration(self) -> ConfigRecord | None:
        """The configuration that was kept last, if one was."""

    # --- What is not to be created for now ----------------------------------------------------

    def hold(self, hold: Hold) -> None:
        """Keep a template's hold, in place of the one before."""

    def release_hold(self, template: str, *, now: float) -> bool:
        """End a template's hold; False when there was none. What waited for CVAT in between
        counts as CVAT's part of a request's time
        (:attr:`pool.model.Event.server_seconds`)."""

    def holds(self) -> Mapping[str, Hold]:
        """All holds by template."""

    def others_created(self, template: str, *, since: float) -> bool:
        """Whether a task of another template was created since, among the latest few hundred."""

    def others_uploaded(self, request_id: str, *, since: float) -> bool:
        """Whether CVAT has accepted another request's data since, among the latest few hundred."""

    # --- What people want ---------------------------------------------------------------------

    def pause(self, template: str, *, now: float) -> None:
        """Stop creating tasks of a template until :meth:`resume`."""

    def drain(self, template: str, *, reason: str, now: float) -> int:
        """As :meth:`pause`, and all warm tasks of the template are ``RETIRED``; answers how many.
        Those that become warm afterwards are for :mod:`pool.maintenance.recycle` to retire."""

    def resume(self, template: str) -> bool:
        """End a pause, drained or not; False when there was none."""

    def paused(self) -> Mapping[str, float]:
        """Paused templates, drained ones among them, and since when."""

    def drained(self) -> Collection[str]:
        """The paused templates that are drained."""

    def prewarm(self, prewarm: Prewarm) -> None:
        """Keep a template's prewarm, in place of the one before."""

    def end_prewarm(self, template: str) -> bool:
        """Forget a template's prewarm; False when there was none."""

    def prewarms(self) -> Mapping[str, Prewarm]:
        """All prewarms by template, those whose time is over among them."""

    # --- Retiring and deleting --------------------------------------------------------------

    def retire(self, pooled_id: str, *, reason: str, now: float) -> bool:
        """``WARM`` to ``RETIRED``."""

    def retire_other_fingerprints(
        self,
        template: str,
        fingerprint: str,
        *,
        older_from: str | None = None,
        reason: str,
        now: float,
    ) -> int:
        """Retire the template's warm tasks of any other fingerprint, except those whose origin is
        ``older_from``, where one is named."""

    def retire_older(
        self,
        template: str,
        fingerprint: str,
        *,
        older_from: str,
        keep: int,
        most: int | None = None,
        reason: str,
        now: float,
    ) -> int:
        """Retire the oldest of the template's warm tasks of other fingerprints and of the origin
        ``older_from``: at most ``most``, and only as far as ``keep`` are left of these and of the
        fingerprint's own together."""

    def retire_excess(self, template: str, *, keep: int, reason: str, now: float) -> int:
        """Retire the template's oldest warm tasks beyond ``keep``."""

    def begin_delete(
        self, *, owner: str, limit: int, retry_after: float, now: float
    ) -> Sequence[PooledTask]:
        """Take up to ``limit`` tasks to delete on the server, and call them ``DELETING``.

        They are ``RETIRED``, ``FAILED``, or ``DELETING`` since more than ``retry_after``
        seconds without an end; the longest-untried first, so that one that cannot be deleted
        does not starve the others. Of two processes that ask, each gets others.
        """

    def finish_delete(self, pooled_id: str, *, now: float) -> bool:
        """``DELETING`` to ``DELETED``: the server has the task no more."""

    # --- What reconciliation has found --------------------------------------------------------

    def disown(self, pooled_id: str, *, reason: str, now: float) -> bool:
        """``WARM``, ``RETIRED`` or ``DELETING`` to ``DELETED``, with the reason: the task on the
        server is left as it is, since somebody has made it their own."""

    def adopt_task(self, pooled_id: str, *, task_id: int, prepared: bool, now: float) -> bool:
        """``DELETED`` to ``WARM``, of a row that never had a task: a create that was given up
        had happened after all. False for any other row: whoever had a task may have handed it
        out."""

    def doubt_warm(self, *, until: float) -> int:
        """Hand out none of the tasks that are warm now, until each is trusted
        (:meth:`trust_warm`), or until ``until`` at the latest. Answers how many they are."""

    def trust_warm(self, pooled_ids: Sequence[str]) -> int:
        """End the doubts about these; answers about how many there were some."""

    # --- When the clock was set ---------------------------------------------------------------

    def move_times(self, by: float, *, since: float, term: float, now: float) -> int:
        """The wall clock was set by ``by`` seconds, forward or back: what is still to come stays
        as far from ``now`` as it was. Answers how many rows were changed.

        That is the ends of leases, the deadlines of imports, and prewarms, except those that were
        written by the new clock already, from ``since`` on. Processes count as alive for another
        ``term`` seconds; nothing is held or in doubt for longer than before: holds are due now,
        and doubts end within ``term``.
        """

    # --- What is forgotten --------------------------------------------------------------------

    def prune(self, *, before: float, limit: int) -> int:
        """Delete finished rows that have not changed since before ``before``, at most ``limit``
        of each kind; answers how many.

        These are requests that ended, leases that ended and whose time is up, tasks that are
        ``DELETED``, or ``READY`` with their final name, with their jobs; buckets of demand;
        owners that are gone; prewarms that are over; and when holds were. A row that another one
        still refers to is kept. An idempotency key goes with its row.
        """
