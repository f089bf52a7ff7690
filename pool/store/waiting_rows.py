"""What a store must do for many who wait at once: a part of :class:`pool.store.base.Store`, whose
rules hold here too."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class WaitingRows(Protocol):
    """Which of many waits are over, in one look, however many there are."""

    def requests_at_end(self, request_ids: Collection[str]) -> frozenset[str]:
        """Those of the requests to which nothing more will happen."""

    def leases_at_end(self, lease_ids: Collection[str]) -> frozenset[str]:
        """Those of the leases of which no (more) jobs are to be expected: they have ended without
        data, or the task that they used has its jobs, or will have none."""
