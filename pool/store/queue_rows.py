"""What a store must do for requests whose data is in the spool: a part of
:class:`pool.store.base.Store`, whose rules hold here too.

Such a request is not bound to the process that its caller ran in: whoever can read the spool can
serve it. While it is ``QUEUED`` nobody owns it; while somebody works on it, its owner is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pool.model import Handout, RequestRecord, RequestState

#: The owner of what nobody works on.
NOBODY: Final = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unserved:
    """A spooled request that nobody works on, ``QUEUED`` or ``UPLOADING``: what is needed to
    choose among many."""

    id: str
    template: str
    state: RequestState
    lease_id: str
    created_at: float


class QueueRows(Protocol):
    """The requests that wait in the spool, and who works on them."""

    def queue_request(
        self, request_id: str, *, under: str, lease_id: str, most: int | None, now: float
    ) -> RequestRecord | None:
        """A request whose data is in the spool waits until it can be served: it is ``QUEUED``
        and nobody's.

        From ``UPLOADING``, when nothing has touched its task: that is ``WARM`` again and the
        lease ``RELEASED``, and the request waits with the fresh lease ``lease_id``. From
        ``QUEUED`` it keeps the lease that it waits with. None when its lease is not ``under``
        (any more), or its state another one.

        :raises pool.errors.QueueFull: ``most`` spooled requests are ``QUEUED`` already; nothing
            has changed.
        """

    def unserved(self, *, owner: str, now: float, each: int) -> Sequence[Unserved]:
        """Spooled requests that are ``QUEUED`` or ``UPLOADING`` and whose owner is nobody, gone,
        or ``owner`` itself, the oldest first, at most ``each`` of each template: they are there
        to be taken."""

    def take_spooled(self, request_id: str, *, owner: str, now: float) -> RequestRecord | None:
        """Own one of the :meth:`unserved`; None when it is none (any more). Of two processes
        that try, one gets it."""

    def claim_queued(
        self,
        request_id: str,
        fingerprint: str,
        *,
        older_from: str | None = None,
        owner: str,
        now: float,
    ) -> Handout | None:
        """As :meth:`take_spooled` for a ``QUEUED`` one and
        :meth:`~pool.store.base.Store.claim_warm` at once: either both happen or nothing does."""

    def queued(self) -> Mapping[str, int]:
        """How many requests are ``QUEUED``, spooled or not, by template."""

    def request_by_key(self, idempotency_key: str) -> RequestRecord | None:
        """The request that was made under a key."""

    def queue_length(self) -> int:
        """How many spooled requests are ``QUEUED``."""
