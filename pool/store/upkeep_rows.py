"""What a store must do for those who maintain it: a part of :class:`pool.store.base.Store`,
whose rules hold here too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class UpkeepRows(Protocol):
    """Who maintains the store, what reconciliation has found, and what is forgotten."""

    # --- Who maintains ------------------------------------------------------------------------

    def acquire_maintenance(self, owner: str, *, until: float, now: float) -> bool:
        """Become, or stay, the one process that maintains the store, up to ``until``.

        False while another owner's term lasts.
        """

    def release_maintenance(self, owner: str) -> bool:
        """End one's own term now; False when it was not one's own."""

    def maintainer(self, *, now: float) -> str | None:
        """Who maintains the store now, if anybody does."""

    def broken_off_maintenance(self, *, now: float) -> str | None:
        """Who maintained the store last, when its term has passed and was not released: it was
        killed, or the machine was. None after an orderly end, and while a term lasts."""

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

    # --- What is forgotten --------------------------------------------------------------------

    def prune(self, *, before: float, limit: int) -> int:
        """Delete finished rows that have not changed since before ``before``, at most ``limit``
        of each kind; answers how many.

        These are requests that ended, leases that ended and whose time is up, tasks that are
        ``DELETED``, or ``READY`` with their final name, with their jobs; buckets of demand; and
        owners that are gone. A row that another one still refers to is kept. An idempotency key
        goes with its row.
        """
