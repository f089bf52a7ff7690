"""What a store must do for those who want to hear what happens: a part of
:class:`pool.store.base.Store`, whose rules hold here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pool.model import EndedRequest, Event, SinkRecord


class EventRows(Protocol):
    """The events, and the sinks that are told of them.

    Every change of a state that has a kind in :data:`pool.model.KINDS` is an event,
    written in the transaction of the change itself, whichever process made it: none can be
    missed, and none is there of a change that did not happen. Its time is the ``now`` of that
    change.
    Whoever has seen an event has seen all that there will ever be with a smaller id.
    """

    def events_after(
        self, event_id: int, *, limit: int, kinds: Sequence[str] = ()
    ) -> Sequence[Event]:
        """The oldest events after ``event_id``, at most ``limit`` of them, of ``kinds`` if any
        are given. Those that were forgotten are left out."""

    def last_event_id(self) -> int:
        """The newest event's id; 0 before the first. It never goes back."""

    def event_at(self, event_id: int) -> float | None:
        """When the oldest event after ``event_id`` was; None when there is none."""

    def prune_events(self, *, told_before: float, before: float, keep: int, limit: int) -> int:
        """Forget the oldest events, at most ``limit`` of them; answers how many.

        These are events from before ``told_before`` that no sink has still to be told of; and
        those from before ``before``, and all but the newest ``keep``, told or not. The newest one
        always stays.
        """

    def ended_requests(self, *, since: float, limit: int) -> Sequence[EndedRequest]:
        """The newest ``limit`` requests that became ``READY`` or ``FAILED`` since ``since``, the
        oldest of them first."""

    # --- Sinks --------------------------------------------------------------------------------

    def open_sinks(self, names: Sequence[str]) -> Mapping[str, SinkRecord]:
        """These are the sinks, and no others. One that is new is told of what comes from now
        on; one that is known goes on where it was; all others are forgotten."""

    def sinks(self) -> Mapping[str, SinkRecord]:
        """All sinks by name."""

    def pass_events(self, sink: str, *, up_to: int, delivered: int = 0, given_up: int = 0) -> bool:
        """A sink need not be told any more of the events up to ``up_to``: so many of them were
        ``delivered``, so many ``given_up``, and the others are not for it. False, and nothing is
        counted, when it was there already. What was delivered ends a failure
        (:meth:`fail_sink`)."""

    def fail_sink(self, sink: str, *, now: float) -> bool:
        """A delivery failed. False when the sink has been failing already."""
