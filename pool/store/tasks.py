"""Tasks: from the intent to create one to its deletion on the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pool.model import (
    LIVE_TASK_STATES,
    STREAM_FINGERPRINT,
    Levels,
    PooledTask,
    TaskState,
    task_name,
)
from pool.store.connections import Connected, Connection
from pool.store.demand import learn_lead_time
from pool.store.handout import give_to_waiting
from pool.store.records import TASK, CreateLimit, find, record_of, select, text
from pool.store.schema import DOOMED, LIVE


class Tasks(Connected):
    """The rows of CVAT tasks that the pool owns."""

    pool_id: str

    # --- Creating ---------------------------------------------------------------------------------

    def begin_create(
        self,
        pooled_id: str,
        template: str,
        fingerprint: str,
        *,
        origin: str = "",
        slots: int = 0,
        limit: CreateLimit | None,
        owner: str,
        now: float,
    ) -> PooledTask | None:
        """Write down the intent to create a task, as ``CREATING``, before the server hears of it:
        a carrier of so many ``slots``, where it is to have some, which count one by one.

        With a ``limit``, only while fewer than ``limit.capacity`` tasks of the template and
        fingerprint are warm or creating, and fewer than ``limit.concurrency`` of the template
        are creating for the pool (cold ones, that is without a limit, do not count). None when the
        limit is reached: count and insert are one statement.
        """
        with self.connections.writing() as db:
            row = db.one(
                f"""
                INSERT INTO tasks (id, template, fingerprint, origin, slots, state, name, cold,
                                   owner, created_at, changed_at)
                SELECT :id, :template, :fingerprint, :origin, :slots, 'creating', :name, :cold,
                       :owner, :now, :now
                WHERE :cold OR (
                    ({_capacity(db)}) < :capacity
                    AND
                    (SELECT COUNT(*) FROM tasks {db.using("tasks_live")}
                     WHERE {LIVE} AND template = :template AND state = 'creating'
                       AND NOT cold) < :concurrency)
                RETURNING {TASK}
                """,
                id=pooled_id,
                template=template,
                fingerprint=fingerprint,
                origin=origin,
                slots=slots,
                name=task_name(self.pool_id, template, pooled_id, slots=slots),
                cold=limit is None,
                capacity=limit.capacity if limit else 0,
                concurrency=limit.concurrency if limit else 0,
                owner=owner,
                now=now,
            )
        return record_of(PooledTask, row) if row else None

    def record_created(self, pooled_id: str, *, task_id: int, now: float) -> bool:
        """Keep the id that CVAT has answered with; no other is taken afterwards. The task is still
        ``CREATING``."""
        with self.connections.writing() as db:
            return db.met(
                """
                UPDATE tasks SET task_id = :task_id, changed_at = :now
                WHERE id = :id AND state = 'creating'
                  AND (task_id IS NULL OR task_id = :task_id)
                """,
                id=pooled_id,
                task_id=task_id,
                now=now,
            )

    def finish_create(
        self, pooled_id: str, *, prepared: bool, took: float | None = None, now: float
    ) -> bool:
        """Move a task from ``CREATING`` to ``WARM``; needs :meth:`record_created` before.

        From the seconds that it ``took``, where they are known, the template's lead time is
        learned: an average in which each create weighs a fifth of what is left.
        """
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE tasks
                SET state = 'warm', prepared = :prepared, warm_at = :now, changed_at = :now
                WHERE id = :id AND state = 'creating' AND task_id IS NOT NULL
                RETURNING template
                """,
                id=pooled_id,
                prepared=prepared,
                now=now,
            )
            if row is None:
                return False
            give_to_waiting(db, row[0], now=now)
            if took is not None:
                learn_lead_time(db, row[0], took)
        return True

    def fail_create(self, pooled_id: str, *, reason: str, now: float) -> bool:
        """Move a task from ``CREATING`` to ``FAILED``: the server certainly has no such task, or it
        is no use."""
        return self._move(pooled_id, TaskState.FAILED, "state = 'creating'", reason, now)

    def others_created(self, template: str, *, since: float) -> bool:
        """Return whether a task of another template was created since, among the latest few
        hundred."""
        with self.connections.reading() as db:
            # Of all indexes only that of ``seq`` has the rows of every template in order of age.
            return bool(
                db.rows(
                    """
                    SELECT 1
                    FROM (SELECT template, task_id, created_at FROM tasks
                          ORDER BY seq DESC LIMIT 500) AS latest
                    WHERE template <> :template AND task_id IS NOT NULL AND created_at >= :since
                    LIMIT 1
                    """,
                    template=template,
                    since=since,
                )
            )

    # --- Looking ----------------------------------------------------------------------------------

    def levels(self) -> Mapping[str, Levels]:
        """Return live tasks by template and state; a carrier that is being created counts as its
        slots, and warm slots that a stream has for itself do not count. Costs the same however many
        rows are finished."""
        with self.connections.reading() as db:
            found = db.rows(f"""
                SELECT template, state, SUM({_COUNTED}) FROM tasks {db.using("tasks_live")}
                WHERE {LIVE} AND NOT (state = 'warm'
                                      AND fingerprint LIKE '{STREAM_FINGERPRINT}%')
                GROUP BY template, state
            """)
        counts: dict[str, dict[TaskState, int]] = {}
        for template, state, how_many in found:
            counts.setdefault(template, {})[TaskState(state)] = int(how_many)
        return {template: Levels(counts=states) for template, states in counts.items()}

    def warm_of(self, template: str, fingerprint: str) -> int:
        """Return how many warm tasks of the fingerprint there are."""
        with self.connections.reading() as db:
            return db.number(
                f"""
                SELECT COUNT(*) FROM tasks {db.using("tasks_warm")}
                WHERE state = 'warm' AND template = :template AND fingerprint = :fingerprint
                """,
                template=template,
                fingerprint=fingerprint,
            )

    def older_warm_of(self, template: str, fingerprint: str, *, reusable_origin: str) -> int:
        """Return how many warm tasks of other fingerprints and of this origin there are."""
        with self.connections.reading() as db:
            return db.number(
                f"""
                SELECT COUNT(*) FROM tasks {db.using("tasks_warm")}
                WHERE state = 'warm' AND template = :template AND fingerprint <> :fingerprint
                  AND origin = :reusable_origin
                """,
                template=template,
                fingerprint=fingerprint,
                reusable_origin=reusable_origin,
            )

    def capacity_of(self, template: str, fingerprint: str) -> int:
        """Return how many tasks of the fingerprint are warm, or being created for the pool (not
        cold): what ``CreateLimit.capacity`` is compared with."""
        with self.connections.reading() as db:
            return db.number(_capacity(db), template=template, fingerprint=fingerprint)

    def task(self, pooled_id: str) -> PooledTask | None:
        """Return one task by our id."""
        with self.connections.reading() as db:
            return find(db, PooledTask, "id = :id", id=pooled_id)

    def tasks(
        self,
        *,
        template: str | None = None,
        states: Sequence[TaskState] = (),
        warm_before: float | None = None,
    ) -> Sequence[PooledTask]:
        """Return tasks in live states (or in ``states``), oldest first; with ``warm_before``, those
        that have been warm since before then."""
        wanted = set(states) or set(LIVE_TASK_STATES)
        names = ", ".join(f"'{state}'" for state in TaskState if state in wanted)
        with self.connections.reading() as db:
            live = f"{db.using('tasks_live')} WHERE {LIVE} AND"
            return select(
                db,
                PooledTask,
                f"""
                {live if wanted <= set(LIVE_TASK_STATES) else "WHERE"} state IN ({names})
                {"AND template = :template" if template is not None else ""}
                {"AND warm_at < :warm_before" if warm_before is not None else ""}
                ORDER BY seq
                """,
                template=template,
                warm_before=warm_before,
            )

    # --- Retiring and deleting --------------------------------------------------------------------

    def retire(self, pooled_id: str, *, reason: str, now: float) -> bool:
        """Move a task from ``WARM`` to ``RETIRED``."""
        return self._move(pooled_id, TaskState.RETIRED, "state = 'warm'", reason, now)

    def retire_other_fingerprints(
        self,
        template: str,
        fingerprint: str,
        *,
        reusable_origin: str | None = None,
        reason: str,
        now: float,
    ) -> int:
        """Retire the template's warm tasks of any other fingerprint, except those whose origin is
        ``reusable_origin``, where one is named."""
        with self.connections.writing() as db:
            return retire_warm(
                db,
                template,
                """
                AND fingerprint <> :fingerprint
                AND (CAST(:reusable_origin AS TEXT) IS NULL OR origin <> :reusable_origin)
                """,
                fingerprint=fingerprint,
                reusable_origin=reusable_origin,
                reason=reason,
                now=now,
            )

    def retire_older(
        self,
        template: str,
        fingerprint: str,
        *,
        reusable_origin: str,
        keep: int,
        most: int | None = None,
        reason: str,
        now: float,
    ) -> int:
        """Retire the oldest of the template's warm tasks of other fingerprints and of this origin.

        At most ``most``, and only as far as ``keep`` are left of these and of the fingerprint's own
        together.
        """
        with self.connections.writing() as db:
            spare = f"""-:keep + (
                SELECT COUNT(*) FROM tasks {db.using("tasks_warm")}
                WHERE state = 'warm' AND template = :template
                  AND (fingerprint = :fingerprint OR origin = :reusable_origin))"""
            return retire_warm(
                db,
                template,
                f"""
                AND fingerprint <> :fingerprint AND origin = :reusable_origin
                ORDER BY warm_at, seq
                LIMIT {db.least(":most", db.greatest("0", spare))}
                """,
                fingerprint=fingerprint,
                reusable_origin=reusable_origin,
                keep=keep,
                most=_ALL if most is None else most,
                reason=reason,
                now=now,
            )

    def retire_excess(self, template: str, *, keep: int, reason: str, now: float) -> int:
        """Retire the template's oldest warm tasks beyond ``keep``."""
        with self.connections.writing() as db:
            return retire_warm(
                db,
                template,
                "ORDER BY warm_at DESC, seq DESC LIMIT :all OFFSET :keep",
                all=_ALL,
                keep=keep,
                reason=reason,
                now=now,
            )

    def begin_delete(
        self, *, owner: str, limit: int, retry_after: float, now: float
    ) -> Sequence[PooledTask]:
        """Take up to ``limit`` tasks to delete on the server; they are ``DELETING`` then.

        They are ``RETIRED``, ``FAILED``, or ``DELETING`` for more than ``retry_after`` seconds
        without an end; the longest-untried first, so that one that cannot be deleted does not
        starve the others. Of two processes that ask, each gets others.
        """
        with self.connections.writing() as db:
            # A try that lies in the future was made before the clock was set back.
            taken = db.rows(
                f"""
                UPDATE tasks SET state = 'deleting', owner = :owner, changed_at = :now
                WHERE seq IN (SELECT seq FROM tasks {db.using("tasks_doomed")}
                              WHERE {DOOMED} AND carrier_id IS NULL AND (state <> 'deleting'
                                                  OR ABS(:now - changed_at) > :retry_after)
                              ORDER BY changed_at, seq LIMIT :limit)
                RETURNING {TASK}
                """,
                owner=owner,
                limit=max(0, limit),
                retry_after=retry_after,
                now=now,
            )
        tasks = (record_of(PooledTask, row) for row in taken)
        return sorted(tasks, key=lambda task: (task.created_at, task.id))

    def finish_delete(self, pooled_id: str, *, now: float) -> bool:
        """Move a task from ``DELETING`` to ``DELETED``: the server has it no more."""
        return self._move(pooled_id, TaskState.DELETED, "state = 'deleting'", None, now)

    # --- What reconciliation has found ------------------------------------------------------------

    def disown(self, pooled_id: str, *, reason: str, now: float) -> bool:
        """Move a task from ``WARM``, ``RETIRED`` or ``DELETING`` to ``DELETED``, with the reason:
        it stays on the server, since someone has made it their own."""
        with self.connections.writing() as db:
            return db.met(
                """
                UPDATE tasks
                SET state = 'deleted', disowned = :yes, reason = :reason, changed_at = :now
                WHERE id = :id AND state IN ('warm', 'retired', 'deleting')
                """,
                id=pooled_id,
                yes=True,
                reason=text(reason),
                now=now,
            )

    def adopt_task(self, pooled_id: str, *, task_id: int, prepared: bool, now: float) -> bool:
        """Move a row that never had a task from ``DELETED`` to ``WARM``: a create that was given up
        had happened after all. False for any other row: its task may have been handed out."""
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE tasks
                SET state = 'warm', task_id = :task_id, prepared = :prepared, reason = '',
                    warm_at = :now, changed_at = :now
                WHERE id = :id AND state = 'deleted' AND task_id IS NULL AND lease_id IS NULL
                RETURNING template
                """,
                id=pooled_id,
                task_id=task_id,
                prepared=prepared,
                now=now,
            )
            if row is not None:
                give_to_waiting(db, row[0], now=now)
            return row is not None

    def quarantine_warm(self, *, until: float) -> int:
        """Hand out none of the tasks that are warm now, until each is cleared
        (:meth:`clear_quarantine`), or until ``until`` at the latest. Return how many they are."""
        with self.connections.writing() as db:
            return db.changed(
                "UPDATE tasks SET quarantined_until = :until WHERE state = 'warm'", until=until
            )

    def clear_quarantine(self, pooled_ids: Sequence[str], *, now: float) -> int:
        """Hand these out again; return how many were in quarantine."""
        with self.connections.writing() as db:
            cleared = [
                row[0]
                for pooled_id in pooled_ids
                for row in db.rows(
                    """
                    UPDATE tasks SET quarantined_until = NULL
                    WHERE id = :id AND state = 'warm' AND quarantined_until IS NOT NULL
                    RETURNING template
                    """,
                    id=pooled_id,
                )
            ]
            for template in set(cleared):
                give_to_waiting(db, template, now=now)
            return len(cleared)

    def _move(
        self, pooled_id: str, state: TaskState, expected: str, reason: str | None, now: float
    ) -> bool:
        """Move one task to a state from an expected one, for a reason if there is a new one."""
        with self.connections.writing() as db:
            return db.met(
                f"""
                UPDATE tasks
                SET state = :state, reason = COALESCE(:reason, reason), changed_at = :now
                WHERE id = :id AND {expected}
                """,
                id=pooled_id,
                state=state,
                reason=None if reason is None else text(reason),
                now=now,
            )


#: More rows than there are: a limit that is none.
_ALL = 2**62

#: As how many a task counts.
_COUNTED: Final = "CASE WHEN state = 'creating' AND slots > 0 THEN slots ELSE 1 END"


def _capacity(db: Connection) -> str:
    return f"""
        SELECT COALESCE(SUM({_COUNTED}), 0)
        FROM tasks {db.using("tasks_live")}
        WHERE {LIVE} AND template = :template AND state IN ('warm', 'creating')
          AND fingerprint = :fingerprint AND (state = 'warm' OR NOT cold)
    """


def retire_warm(
    db: Connection, template: str, which: str = "", *, reason: str, now: float, **wanted: Any
) -> int:
    """Retire the warm tasks of a template, or those ``which`` the end of a query selects; return
    how many. Those of streams are left out: they end with their stream."""
    return db.changed(
        f"""
        UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
        WHERE state = 'warm' AND seq IN (
            SELECT seq FROM tasks {db.using("tasks_warm")}
            WHERE state = 'warm' AND template = :template
              AND fingerprint NOT LIKE '{STREAM_FINGERPRINT}%' {which})
        """,
        template=template,
        reason=text(reason),
        now=now,
        **wanted,
    )
