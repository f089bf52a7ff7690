"""Slots: jobs over placeholders, and their carriers.

A slot has a row of its own in ``tasks``, so that everything that hands out tasks hands out slots:
the oldest first, to one caller each. What a slot is beside that stands here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pool.model import (
    Carrier,
    Job,
    PooledTask,
    Slot,
    SlotLevels,
    TaskState,
    new_id,
)
from pool.store.connections import Connected, Connection
from pool.store.demand import learn_lead_time
from pool.store.handout import as_json, give_to_waiting
from pool.store.imports import FINAL_GRACE, complete_slot
from pool.store.records import select, text
from pool.store.schema import DOOMED, LIVE

#: Seconds after a slot was shown, at which its carrier is looked at again: people's pages write old
#: lists of hidden frames back.
LOOKS: Final = (60.0, 3600.0)

_SLOT: Final = """
    slots.id, slots.carrier_id, slots.position, tasks.state, slots.job_id, slots.start_frame,
    slots.stop_frame, slots.request_id, slots.filled, slots.filled_at, slots.shown_at, slots.erased,
    slots.looks, slots.look_at,
    EXISTS (SELECT 1 FROM final_steps
            WHERE final_steps.pooled_id = slots.id AND final_steps.kind = 'hide')
"""
_SLOTS: Final = "slots JOIN tasks ON tasks.id = slots.id"
#: A slot, a row of ``tasks``, holds data, is about to, or may be filled still.
_IN_USE: Final = "state IN ('warm', 'leased', 'importing', 'ready')"


class Slots(Connected):
    """The rows of carriers and of slots."""

    # --- Carriers ---------------------------------------------------------------------------------

    def begin_carrier(self, pooled_id: str, settings: Mapping[str, Any], *, now: float) -> bool:
        """Write down where the files of a carrier will stand, before the first is written, as JSON
        has it; needs :meth:`~pool.store.Store.record_created` before. False when it is not
        ``CREATING`` (any more)."""
        with self.connections.writing() as db:
            return db.met(
                """
                INSERT INTO carriers (id, template, task_id, settings, looked_at)
                SELECT id, template, task_id, :settings, :now FROM tasks
                WHERE id = :id AND state = 'creating' AND task_id IS NOT NULL AND slots > 0
                """,
                id=pooled_id,
                settings=json.dumps(dict(settings)),
                now=now,
            )

    def finish_carrier(
        self, pooled_id: str, jobs: Sequence[Job], *, took: float | None = None, now: float
    ) -> bool:
        """Move a carrier from ``CREATING`` to ``READY``, with a warm slot for each of its jobs, in
        order: its placeholders are imported, and all of its frames hidden. Needs
        :meth:`begin_carrier` before. ``took`` as for :meth:`~pool.store.Store.finish_create`."""
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE tasks SET state = 'ready', warm_at = :now, changed_at = :now
                WHERE id = :id AND state = 'creating'
                  AND EXISTS (SELECT 1 FROM carriers WHERE carriers.id = tasks.id)
                RETURNING template, fingerprint, origin, name, task_id, owner
                """,
                id=pooled_id,
                now=now,
            )
            if row is None:
                return False
            template, fingerprint, origin, name, task_id, owner = row
            for position, job in enumerate(jobs):
                slot_id = new_id(now)
                db.later(
                    """
                    INSERT INTO tasks (id, template, fingerprint, origin, state, name, task_id,
                                       carrier_id, prepared, cold, owner, created_at, warm_at,
                                       changed_at)
                    VALUES (:id, :template, :fingerprint, :origin, 'warm', :name, :task_id,
                            :carrier_id, :prepared, :cold, :owner, :now, :now, :now)
                    """,
                    id=slot_id,
                    template=template,
                    fingerprint=fingerprint,
                    origin=origin,
                    name=name,
                    task_id=task_id,
                    carrier_id=pooled_id,
                    prepared=True,
                    cold=False,
                    owner=owner,
                    now=now,
                )
                db.later(
                    """
                    INSERT INTO slots (id, carrier_id, position, job_id, start_frame, stop_frame)
                    VALUES (:id, :carrier_id, :position, :job_id, :start_frame, :stop_frame)
                    """,
                    id=slot_id,
                    carrier_id=pooled_id,
                    position=position,
                    job_id=job.id,
                    start_frame=job.start_frame,
                    stop_frame=job.stop_frame,
                )
                db.later(
                    """
                    INSERT INTO jobs (pooled_id, id, url, start_frame, stop_frame)
                    VALUES (:id, :job_id, :url, :start_frame, :stop_frame)
                    """,
                    id=slot_id,
                    job_id=job.id,
                    url=job.url,
                    start_frame=job.start_frame,
                    stop_frame=job.stop_frame,
                )
            if took is not None:
                learn_lead_time(db, template, took)
            give_to_waiting(db, template, now=now)
        return True

    def carrier(self, carrier_id: str) -> Carrier | None:
        """Return one carrier."""
        with self.connections.reading() as db:
            return next(iter(_carriers(db, "WHERE id = :id", id=carrier_id)), None)

    def carriers(self, *, looked_before: float | None = None, limit: int) -> Sequence[Carrier]:
        """Return carriers whose tasks were last seen on the server before a moment, or all of them;
        the longest unseen first."""
        with self.connections.reading() as db:
            return _carriers(
                db,
                f"""
                {"WHERE looked_at < :before" if looked_before is not None else ""}
                ORDER BY looked_at, id LIMIT :limit
                """,
                before=looked_before,
                limit=max(0, limit),
            )

    def saw_carrier(self, carrier_id: str, *, gone: bool, now: float) -> Carrier | None:
        """Note whether CVAT has the task of a carrier, and return the carrier. Where it is gone,
        its slots that hold nothing are ``DELETED``, and their leases end."""
        with self.connections.writing() as db:
            since = "COALESCE(gone_since, :now)" if gone else "NULL"
            db.changed(
                f"UPDATE carriers SET looked_at = :now, gone_since = {since} WHERE id = :id",
                id=carrier_id,
                now=now,
            )
            if gone:
                _end_unfilled(db, carrier_id, reason="its task is gone", now=now)
            return next(iter(_carriers(db, "WHERE id = :id", id=carrier_id)), None)

    def forget_carrier(self, carrier_id: str, *, now: float) -> bool:
        """Forget a carrier and its slots, whose task and whose files are gone: from now on their
        tasks' rows are like any others, and are pruned."""
        with self.connections.writing() as db:
            db.changed("DELETE FROM slots WHERE carrier_id = :id", id=carrier_id)
            _end_unfilled(db, carrier_id, reason="its task is gone", now=now)
            return db.met("DELETE FROM carriers WHERE id = :id", id=carrier_id)

    def retire_carrier(self, carrier_id: str, *, reason: str, now: float) -> bool:
        """Move a carrier from ``READY`` to ``RETIRED``, and its slots to ``DELETED``, if none of
        them holds data, is leased or can be handed out: all have failed or are retired."""
        with self.connections.writing() as db:
            if not db.changed(
                f"""
                UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
                WHERE id = :id AND state = 'ready' AND slots > 0
                  AND NOT EXISTS (SELECT 1 FROM tasks AS held {db.using("tasks_of_carrier")}
                                  WHERE held.carrier_id = :id AND held.{_IN_USE})
                """,
                id=carrier_id,
                reason=text(reason),
                now=now,
            ):
                return False
            _end_unfilled(db, carrier_id, reason=reason, now=now)
            return True

    def retired_slots(self, *, limit: int) -> Sequence[PooledTask]:
        """Return slots that are ``RETIRED`` or ``FAILED``: their jobs are to be put out of the way
        (:meth:`end_slot`), or their carrier is to go (:meth:`retire_carrier`)."""
        with self.connections.reading() as db:
            return select(
                db,
                PooledTask,
                f"""
                {db.using("tasks_doomed")}
                WHERE {DOOMED} AND state <> 'deleting' AND carrier_id IS NOT NULL
                ORDER BY changed_at, seq LIMIT :limit
                """,
                limit=max(0, limit),
            )

    def end_slot(self, slot_id: str, *, now: float) -> bool:
        """Move a slot from ``RETIRED`` or ``FAILED`` to ``DELETED``: its job is out of the way."""
        with self.connections.writing() as db:
            return db.met(
                """
                UPDATE tasks SET state = 'deleted', changed_at = :now
                WHERE id = :id AND state IN ('retired', 'failed') AND carrier_id IS NOT NULL
                """,
                id=slot_id,
                now=now,
            )

    # --- Filling ----------------------------------------------------------------------------------

    def fill_slot(self, slot_id: str, names: Sequence[str], *, now: float) -> bool:
        """Note that the data of a request is durably in its slot, a frame for each of the ``names``
        that CVAT calls the files: slot, import and request are ``READY``, the lease ``USED``; its
        carrier is to be looked at at once. False, and nothing has changed, when the slot is not
        ``LEASED`` (any more)."""
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE tasks SET state = 'ready', changed_at = :now
                WHERE id = :id AND state = 'leased' AND carrier_id IS NOT NULL
                RETURNING lease_id
                """,
                id=slot_id,
                now=now,
            )
            if row is None:
                return False
            request_id = complete_slot(db, slot_id, row[0], now=now)
            db.later(
                """
                UPDATE slots
                SET request_id = :request_id, filled = :frames, filled_at = :now, look_at = :now
                WHERE id = :id
                """,
                id=slot_id,
                request_id=request_id,
                frames=len(names),
                now=now,
            )
            db.later(
                """
                UPDATE requests
                SET files_in_group = :names, frame_numbers = :numbers,
                    first_frame = (SELECT start_frame FROM slots WHERE slots.id = :slot_id)
                WHERE id = :id
                """,
                id=request_id,
                slot_id=slot_id,
                names=as_json(names),
                numbers=json.dumps(list(range(len(names)))),
            )
            return True

    def leave_slots(
        self,
        request_id: str,
        *,
        why: str,
        fingerprint: str,
        group_key: str | None,
    ) -> bool:
        """Have a ``QUEUED`` request go into no slot, and say why: a task of ``fingerprint`` will do
        for it from now on, which it may share with others that have its ``group_key``. Its stream
        has no part in it. False when it is not queued (any more)."""
        with self.connections.writing() as db:
            row = db.one(
                """
                UPDATE requests SET no_slot = :why, group_key = :group_key
                WHERE id = :id AND state = 'queued'
                RETURNING lease_id
                """,
                id=request_id,
                why=text(why),
                group_key=group_key,
            )
            if row is None:
                return False
            db.changed(
                """
                UPDATE leases SET fingerprint = :fingerprint, reusable_origin = NULL
                WHERE id = :id AND state = 'waiting'
                """,
                id=row[0],
                fingerprint=fingerprint,
            )
            return True

    def slot(self, slot_id: str) -> Slot | None:
        """Return one slot."""
        with self.connections.reading() as db:
            return next(iter(_slots(db, "WHERE slots.id = :id", id=slot_id)), None)

    def slots_of(self, carrier_id: str) -> Sequence[Slot]:
        """Return the slots of a carrier, in order."""
        with self.connections.reading() as db:
            return _slots(db, "WHERE slots.carrier_id = :id ORDER BY slots.position", id=carrier_id)

    def slot_levels(self) -> Mapping[str, SlotLevels]:
        """Return how full the carriers are that have warm or leased slots, by template. Costs the
        same however many others there were."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT template, COUNT(DISTINCT carrier_id),
                       SUM(CASE WHEN state = 'ready' THEN 1 ELSE 0 END),
                       SUM(CASE WHEN state IN ('failed', 'retired', 'deleted') THEN 1 ELSE 0 END)
                FROM tasks {db.using("tasks_of_carrier")}
                WHERE carrier_id IN (SELECT carrier_id FROM tasks {db.using("tasks_live")}
                                     WHERE {LIVE} AND state IN ('warm', 'leased')
                                       AND carrier_id IS NOT NULL)
                GROUP BY template
                """
            )
        return {
            template: SlotLevels(carriers=carriers, filled=int(filled), retired=int(retired))
            for template, carriers, filled, retired in found
        }

    # --- Showing ----------------------------------------------------------------------------------

    def carriers_due(self, *, limit: int, now: float) -> Sequence[str]:
        """Return carriers that are to be looked at for one of their slots, the longest due
        first, and that no process looks at now."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT slots.carrier_id, MIN(slots.look_at) AS due
                FROM slots {db.using("slots_due")}
                JOIN carriers ON carriers.id = slots.carrier_id
                WHERE slots.look_at IS NOT NULL AND slots.look_at <= :now
                  AND (carriers.writer = '' OR carriers.writer_until <= :now)
                GROUP BY slots.carrier_id ORDER BY due LIMIT :limit
                """,
                limit=max(0, limit),
                now=now,
            )
        return [carrier_id for carrier_id, _ in found]

    def next_look(self) -> float | None:
        """Return when a carrier is due next; None when none is."""
        with self.connections.reading() as db:
            row = db.one(
                f"SELECT MIN(look_at) FROM slots {db.using('slots_due')} WHERE look_at IS NOT NULL"
            )
        return None if row is None else row[0]

    def write_carrier(self, carrier_id: str, *, owner: str, until: float, now: float) -> bool:
        """Become the one process that writes which frames of a carrier are hidden, up to ``until``;
        False while another one is."""
        with self.connections.writing() as db:
            return db.met(
                """
                UPDATE carriers SET writer = :owner, writer_until = :until
                WHERE id = :id AND (writer IN ('', :owner) OR writer_until <= :now
                                    OR writer_until > :until + (:until - :now))
                """,
                id=carrier_id,
                owner=owner,
                until=until,
                now=now,
            )

    def wrote_carrier(
        self,
        carrier_id: str,
        *,
        owner: str,
        shown: Collection[str] = (),
        looked: Collection[str] = (),
        postponed: Mapping[str, float] | None = None,
        erased: Collection[str] = (),
        divided: bool = False,
        now: float,
    ) -> bool:
        """End one's writing of a carrier's hidden frames. Slots that are ``shown`` since are looked
        at again after :data:`LOOKS` seconds, their requests are shown, and their jobs due to be
        assigned (``divided`` as for :meth:`~pool.store.Store.complete_import`); those that were
        ``looked`` at again are due for their next look, if there is one; ``postponed`` are due when
        these moments have come. ``erased`` are those of all these that were erased before: one that
        was erased meanwhile stays due. False where another process writes it by now: nothing is
        noted then."""
        with self.connections.writing() as db:
            if not db.changed(
                """
                UPDATE carriers SET writer = '', writer_until = 0.0
                WHERE id = :id AND writer = :owner
                """,
                id=carrier_id,
                owner=owner,
            ):
                return False
            for slot_id in shown:
                _note_shown(db, slot_id, divided=divided, now=now)
            for slot_id in looked:
                db.changed(
                    f"""
                    UPDATE slots
                    SET look_at = CASE {_next_looks()} END, looks = looks + 1
                    WHERE id = :id AND erased = :erased
                    """,
                    id=slot_id,
                    erased=slot_id in erased,
                    now=now,
                )
            for slot_id, look_at in (postponed or {}).items():
                db.changed(
                    "UPDATE slots SET look_at = :look_at WHERE id = :id AND erased = :erased",
                    id=slot_id,
                    erased=slot_id in erased,
                    look_at=look_at,
                )
            return True

    def show_again(self, slot_id: str, *, now: float) -> bool:
        """Have a slot shown again that a race of writers has hidden; once only. It is looked at as
        often afterwards as any that is shown."""
        with self.connections.writing() as db:
            return db.met(
                """
                UPDATE slots SET shown_at = NULL, look_at = :now, looks = :looks
                WHERE id = :id AND shown_at IS NOT NULL AND looks < :looks
                """,
                id=slot_id,
                looks=len(LOOKS),
                now=now,
            )

    def erase_slot(self, slot_id: str, *, now: float) -> bool:
        """Have the frames of a filled slot hidden again, whose files hold the placeholder by
        now."""
        with self.connections.writing() as db:
            return db.met(
                "UPDATE slots SET erased = :erased, look_at = :now WHERE id = :id AND filled > 0",
                id=slot_id,
                erased=True,
                now=now,
            )


# --- Parts of these and other transactions --------------------------------------------------------


def _note_shown(db: Connection, slot_id: str, *, divided: bool, now: float) -> None:
    row = db.one(
        """
        UPDATE slots SET shown_at = COALESCE(shown_at, :now), look_at = :look_at
        WHERE id = :id AND erased = :erased
        RETURNING request_id
        """,
        id=slot_id,
        look_at=now + LOOKS[0],
        erased=False,
        now=now,
    )
    if row is None or row[0] is None:
        return
    # A slot that is shown again was assigned the first time.
    if db.changed(
        "UPDATE requests SET shown_at = :now WHERE id = :id AND shown_at IS NULL",
        id=row[0],
        now=now,
    ):
        db.changed(
            """
            INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
            SELECT :slot_id, 'assign', id, :now, :due_at FROM requests
            WHERE id = :request_id AND hidden IS NULL AND (:divided OR assignee IS NOT NULL)
            """,
            slot_id=slot_id,
            request_id=row[0],
            divided=divided,
            due_at=now + FINAL_GRACE,
            now=now,
        )
        # With one slot a task it is the request's own, and is called after it as any other.
        db.changed(
            """
            INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
            SELECT slots.id, 'name', slots.request_id, :now, :due_at
            FROM slots JOIN tasks ON tasks.id = slots.carrier_id
            WHERE slots.id = :slot_id AND tasks.slots = 1
            """,
            slot_id=slot_id,
            due_at=now + FINAL_GRACE,
            now=now,
        )


def _next_looks() -> str:
    """Return the cases of when a slot is looked at next, by how often it was: as often again once
    it was shown again."""
    return " ".join(
        f"WHEN looks IN ({number}, {number + len(LOOKS)}) THEN shown_at + {seconds}"
        for number, seconds in enumerate(LOOKS[1:])
    )


def _end_unfilled(db: Connection, carrier_id: str, *, reason: str, now: float) -> None:
    """End the slots of a carrier that hold nothing, and leases of them without a request."""
    db.changed(
        f"""
        UPDATE leases SET state = 'expired'
        WHERE state = 'active' AND request_id IS NULL
          AND pooled_id IN (SELECT id FROM tasks {db.using("tasks_of_carrier")}
                            WHERE carrier_id = :id AND state = 'leased')
        """,
        id=carrier_id,
    )
    db.changed(
        f"""
        UPDATE tasks {db.using("tasks_of_carrier")}
        SET state = 'deleted', reason = :reason, changed_at = :now
        WHERE carrier_id = :id AND state IN ('warm', 'retired', 'failed')
           OR carrier_id = :id AND state = 'leased'
              AND EXISTS (SELECT 1 FROM leases
                          WHERE leases.id = tasks.lease_id AND leases.state = 'expired')
        """,
        id=carrier_id,
        reason=text(reason),
        now=now,
    )


def _carriers(db: Connection, which: str, **wanted: Any) -> list[Carrier]:
    found = db.rows(
        f"""
        SELECT id, template, task_id, settings, stream_id, title, gone_since
        FROM carriers {which}
        """,
        **wanted,
    )
    return [
        Carrier(
            id=id,
            template=template,
            task_id=task_id,
            settings=json.loads(settings),
            stream_id=stream_id,
            title=title,
            gone_since=gone_since,
        )
        for id, template, task_id, settings, stream_id, title, gone_since in found
    ]


def _slots(db: Connection, which: str, **wanted: Any) -> list[Slot]:
    return [_slot(*row) for row in db.rows(f"SELECT {_SLOT} FROM {_SLOTS} {which}", **wanted)]


def _slot(*row: Any) -> Slot:
    id, carrier_id, position, state, job_id, start, stop, request_id, filled, *rest = row
    filled_at, shown_at, erased, looks, look_at, unwanted = rest
    return Slot(
        id=id,
        carrier_id=carrier_id,
        position=position,
        state=TaskState(state),
        job_id=job_id,
        start_frame=start,
        stop_frame=stop,
        request_id=request_id,
        filled=filled,
        filled_at=filled_at,
        shown_at=shown_at,
        erased=bool(erased),
        unwanted=bool(unwanted),
        looks=looks,
        look_at=look_at,
    )
