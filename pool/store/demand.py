"""Demand: how tasks were handed out, and how long creates take. What the sizing goes by."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from pool.model import Demand, Outcome
from pool.store.connections import Connected, Connection
from pool.store.records import Asked

#: Seconds in one bucket of the demand history.
DEMAND_BUCKET: Final = 10.0


class DemandHistory(Connected):
    """The counts of hand-outs, and what was learned of creates."""

    def demand(self, template: str, *, since: float) -> Sequence[Demand]:
        """Return hand-outs by bucket of :data:`DEMAND_BUCKET` seconds, oldest first, empty ones
        left out."""
        with self.connections.reading() as db:
            found = db.rows(
                """
                SELECT start, hits, waits, colds FROM demand
                WHERE template = :template AND start >= :since ORDER BY start
                """,
                template=template,
                since=since,
            )
        return [
            Demand(template=template, start=start, hits=hits, waits=waits, colds=colds)
            for start, hits, waits, colds in found
        ]

    def hand_outs(self) -> Mapping[str, Mapping[Outcome, int]]:
        """Return how many hand-outs there ever were, by template and outcome."""
        totals: dict[str, dict[Outcome, int]] = {}
        with self.connections.reading() as db:
            for template, outcome, total in db.rows(
                "SELECT template, outcome, total FROM hand_outs"
            ):
                totals.setdefault(template, {})[Outcome(outcome)] = total
        return totals

    def asked(self, template: str, *, since: float, until: float, limit: int) -> Asked:
        """Return when tasks of a template were asked for, from ``since`` to ``until``, the newest
        ``limit`` times.

        A request counts once, when it was made, however many leases it has used up, with the
        outcome of the last; requests that share a task count once, when the first was made. What
        still waits does not count. Takes eight bytes of memory for each.
        """
        times = array("d")
        outcomes: Counter[Outcome | None] = Counter()
        with self.connections.reading() as db:
            asked_at = db.least(
                "leases.created_at", "COALESCE(MIN(requests.created_at), leases.created_at)"
            )
            for at, outcome in db.rows(
                f"""
                SELECT {asked_at} AS asked_at, leases.outcome
                FROM leases LEFT JOIN requests ON requests.lease_id = leases.id
                WHERE leases.template = :template AND leases.state <> 'waiting'
                  AND leases.created_at BETWEEN :since AND :until
                  AND (leases.request_id IS NULL OR requests.id IS NOT NULL)
                GROUP BY leases.id, leases.created_at, leases.outcome
                ORDER BY asked_at DESC LIMIT :limit
                """,
                template=template,
                since=since,
                until=until,
                limit=max(0, limit),
            ):
                times.append(at)
                outcomes[outcome and Outcome(outcome)] += 1
        times.reverse()
        return Asked(times=times, outcomes=outcomes)

    def lead_times(self) -> Mapping[str, float]:
        """Return how many seconds a create takes, by template, as :meth:`finish_create` learned."""
        with self.connections.reading() as db:
            return dict(db.rows("SELECT template, seconds FROM lead_times"))

    def create_times(self, template: str, *, since: float) -> Sequence[float]:
        """Return how many seconds the creates for a template's pool took that began after
        ``since``, in ascending order; those of carriers, how many for each slot."""
        with self.connections.reading() as db:
            found = db.rows(
                """
                SELECT (warm_at - created_at) / CASE WHEN slots > 0 THEN slots ELSE 1 END AS took
                FROM tasks
                WHERE template = :template AND created_at >= :since AND warm_at IS NOT NULL
                  AND NOT cold AND carrier_id IS NULL
                ORDER BY took
                """,
                template=template,
                since=since,
            )
        return array("d", (took for (took,) in found))


def count_hand_out(
    db: Connection,
    template: str,
    outcome: Outcome,
    *,
    lease_id: str | None = None,
    of_task: bool = True,
    now: float,
) -> None:
    """Count one hand-out that has served its caller, among all, and in its bucket of time; with a
    ``lease_id`` only if that lease is active. The demand is for tasks: without ``of_task``, for a
    further request that shares one, it is no larger."""
    # Not as a condition on two columns: of the two indexes, that of the state may be taken.
    active = "(SELECT state FROM leases WHERE id = :lease_id) = 'active'"
    condition = "TRUE" if lease_id is None else active
    only = {} if lease_id is None else {"lease_id": lease_id}
    if of_task:
        _count_demand(db, template, outcome, condition, only, now=now)
    db.later(
        f"""
        INSERT INTO hand_outs (template, outcome, total) SELECT :template, :outcome, 1
        WHERE {condition}
        ON CONFLICT (template, outcome) DO UPDATE SET total = hand_outs.total + 1
        """,
        template=template,
        outcome=outcome,
        **only,
    )


def _count_demand(
    db: Connection,
    template: str,
    outcome: Outcome,
    condition: str,
    only: Mapping[str, str],
    *,
    now: float,
) -> None:
    db.later(
        f"""
        INSERT INTO demand (template, start, hits, waits, colds)
        SELECT :template, :start, :hits, :waits, :colds WHERE {condition}
        ON CONFLICT (template, start) DO UPDATE
        SET hits = demand.hits + excluded.hits, waits = demand.waits + excluded.waits,
            colds = demand.colds + excluded.colds
        """,
        template=template,
        start=now // DEMAND_BUCKET * DEMAND_BUCKET,
        hits=int(outcome is Outcome.HIT),
        waits=int(outcome is Outcome.WAIT),
        colds=int(outcome is Outcome.COLD),
        **only,
    )


def learn_lead_time(db: Connection, template: str, seconds: float) -> None:
    """Learn how long a create takes: an average in which each weighs a fifth of what is left."""
    db.changed(
        """
        INSERT INTO lead_times (template, seconds) VALUES (:template, :seconds)
        ON CONFLICT (template) DO UPDATE
        SET seconds = 0.8 * lead_times.seconds + 0.2 * excluded.seconds
        """,
        template=template,
        seconds=seconds,
    )
