"""Slots: jobs over placeholders, their carriers, and the streams that have carriers for themselves.

A slot has a row of its own in ``tasks``, so that everything that hands out tasks hands out slots:
the oldest first, to one caller each. What a slot is beside that stands here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from pool.model import (
    STREAM_FINGERPRINT,
    Carrier,
    Job,
    PooledTask,
    Slot,
    SlotLevels,
    Stream,
    TaskState,
    new_id,
)
from pool.store.connections import Connected, Connection
from pool.store.demand import learn_lead_time
from pool.store.handout import as_json, give_to_waiting
from pool.store.imports import FINAL_GRACE, complete_slot
from pool.store.records import OpenStream, columns_of, record_of, select, text
from pool.store.schema import DOOMED, LIVE

#: Seconds after a slot was shown, at which its carrier is looked at again: people's pages write old
#: lists of hidden frames back.
LOOKS: Final = (60.0, 3600.0)
#: Seconds to within which it is known when a stream was last used.
USED_WITHIN: Final = 1.0

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
    """The rows of carriers, slots and streams."""

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

    # --- Streams ----------------------------------------------------------------------------------

    def use_stream(
        self, template: str, name: str, fingerprint: str, *, request_id: str = "", now: float
    ) -> Stream | None:
        """Return the open stream of that name, opened now where there is none, with a carrier that
        has a warm slot: the oldest of the template none of whose slots was handed out yet becomes
        the stream's own when it has none, its last slot is used, or the template has changed since.
        None where there is no such carrier, or where an older request of the stream than this one
        waits for a slot: none overtakes another.

        A cheap read comes first, so that a stream in use costs no commit: when it was used is known
        to within :data:`USED_WITHIN` seconds."""
        with self.connections.reading() as db:
            if _waits_before(db, template, name, request_id):
                return None
            stream = _open_stream(db, template, name)
            if stream is not None and _has_warm(db, stream):
                recent = abs(now - stream.last_at) < USED_WITHIN
                if recent and _made_by(db, stream) == fingerprint:
                    return stream
            elif not _whole_carriers(db, template, fingerprint, now=now):
                return None
        with self.connections.writing() as db:
            if _waits_before(db, template, name, request_id):
                return None
            stream = _open_stream(db, template, name)
            if stream is not None and _has_warm(db, stream):
                if _made_by(db, stream) == fingerprint:
                    db.changed(
                        "UPDATE streams SET last_at = :now WHERE id = :id", id=stream.id, now=now
                    )
                    return stream
                _retire_warm(db, stream, reason="the template has changed", now=now)
            whole = _whole_carriers(db, template, fingerprint, now=now)
            if not whole:
                return None
            if stream is None:
                stream = Stream(
                    id=new_id(now), template=template, name=name, opened_at=now, last_at=now
                )
                db.changed(
                    """
                    INSERT INTO streams (id, template, name, opened_at, last_at)
                    VALUES (:id, :template, :name, :now, :now)
                    """,
                    id=stream.id,
                    template=template,
                    name=text(name),
                    now=now,
                )
            # An origin that is not known is that of no older template, whose tasks would do.
            db.changed(
                f"""
                UPDATE tasks {db.using("tasks_of_carrier")}
                SET fingerprint = :fingerprint, origin = ''
                WHERE carrier_id = :carrier_id AND state = 'warm'
                """,
                fingerprint=stream.fingerprint,
                carrier_id=whole[0],
            )
            db.changed(
                """
                UPDATE streams SET carrier_id = :carrier_id, carriers = carriers + 1, last_at = :now
                WHERE id = :id
                """,
                id=stream.id,
                carrier_id=whole[0],
                now=now,
            )
            stream = _streams(db, "WHERE id = :id", id=stream.id)[0]
            db.changed(
                "UPDATE carriers SET stream_id = :stream_id WHERE id = :id",
                id=whole[0],
                stream_id=stream.id,
            )
            _title(db, whole[0], stream.title, now=now)
            return stream

    def carriers_missing(self, template: str, fingerprint: str, *, now: float) -> int:
        """Return how many more carriers of a template have to be made for the streams whose
        requests wait: each needs one none of whose slots was handed out yet."""
        with self.connections.reading() as db:
            waiting = db.number(
                f"""
                SELECT COUNT(DISTINCT stream) FROM requests {db.using("requests_of_stream")}
                WHERE state = 'queued' AND template = :template AND stream IS NOT NULL
                  AND no_slot = ''
                  AND NOT EXISTS (
                    SELECT 1 FROM streams {db.using("streams_open")}
                    JOIN tasks {db.using("tasks_warm")}
                      ON tasks.state = 'warm' AND tasks.template = streams.template
                     AND tasks.fingerprint = '{STREAM_FINGERPRINT}' || streams.id
                    WHERE streams.template = requests.template AND streams.name = requests.stream
                      AND streams.closed_at IS NULL)
                """,
                template=template,
            )
            if not waiting:
                return 0
            creating = db.number(
                f"""
                SELECT COUNT(*) FROM tasks {db.using("tasks_live")}
                WHERE {LIVE} AND state = 'creating' AND template = :template
                  AND fingerprint = :fingerprint AND slots > 0
                """,
                template=template,
                fingerprint=fingerprint,
            )
            there = len(_whole_carriers(db, template, fingerprint, now=now)) + creating
            return max(0, waiting - there)

    def streams(self, *, template: str | None = None) -> Sequence[OpenStream]:
        """Return the streams that are open, of one template or of all, by template and name."""
        with self.connections.reading() as db:
            found = db.rows(
                f"""
                SELECT {columns_of(Stream, "streams")}, carriers.task_id,
                       COALESCE(carriers.slots, 0),
                       (SELECT COUNT(*) FROM tasks {db.using("tasks_of_carrier")}
                        WHERE carrier_id = streams.carrier_id AND state = 'ready')
                FROM streams {db.using("streams_open")}
                LEFT JOIN tasks AS carriers ON carriers.id = streams.carrier_id
                WHERE closed_at IS NULL
                  {"" if template is None else "AND streams.template = :template"}
                ORDER BY streams.template, streams.name
                """,
                template=template,
            )
        return [
            OpenStream(
                stream=record_of(Stream, row[:-3]), task_id=row[-3], slots=row[-2], filled=row[-1]
            )
            for row in found
        ]

    def stream(self, template: str, name: str) -> Stream | None:
        """Return the open stream of that name."""
        with self.connections.reading() as db:
            return _open_stream(db, template, name)

    def close_stream(self, stream_id: str, *, reason: str, now: float) -> bool:
        """Close a stream: its slots that are warm still are ``RETIRED``. False when it is closed
        already."""
        with self.connections.writing() as db:
            if not db.changed(
                "UPDATE streams SET closed_at = :now WHERE id = :id AND closed_at IS NULL",
                id=stream_id,
                now=now,
            ):
                return False
            _retire_warm(
                db, _streams(db, "WHERE id = :id", id=stream_id)[0], reason=reason, now=now
            )
            return True

    def retire_of_closed_streams(self, *, reason: str, now: float) -> int:
        """Retire warm slots whose stream is closed: they were given back since. Return how many."""
        with self.connections.writing() as db:
            return db.changed(
                f"""
                UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
                WHERE state = 'warm' AND seq IN (
                    SELECT seq FROM tasks {db.using("tasks_warm")}
                    WHERE state = 'warm' AND fingerprint LIKE '{STREAM_FINGERPRINT}%'
                      AND NOT EXISTS (
                        SELECT 1 FROM streams
                        WHERE streams.id = SUBSTR(tasks.fingerprint, {len(STREAM_FINGERPRINT) + 1})
                          AND streams.closed_at IS NULL))
                """,
                reason=text(reason),
                now=now,
            )


# --- Parts of these and other transactions --------------------------------------------------------


def _title(db: Connection, carrier_id: str, title: str, *, now: float) -> None:
    """Leave it to the final steps to rename the task of a carrier."""
    db.changed(
        "UPDATE carriers SET title = :title WHERE id = :id", id=carrier_id, title=text(title)
    )
    db.changed(
        """
        INSERT INTO final_steps (pooled_id, kind, request_id, since, due_at)
        VALUES (:id, 'name', '', :now, :due_at)
        ON CONFLICT (pooled_id, kind, request_id) DO UPDATE SET tries = 0, since = :now
        """,
        id=carrier_id,
        due_at=now + FINAL_GRACE,
        now=now,
    )


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


def _has_warm(db: Connection, stream: Stream) -> bool:
    return bool(
        db.rows(
            f"""
            SELECT 1 FROM tasks {db.using("tasks_warm")}
            WHERE state = 'warm' AND template = :template AND fingerprint = :fingerprint LIMIT 1
            """,
            template=stream.template,
            fingerprint=stream.fingerprint,
        )
    )


def _made_by(db: Connection, stream: Stream) -> str | None:
    """Return the fingerprint of the template that a stream's carrier was made by."""
    row = db.one("SELECT fingerprint FROM tasks WHERE id = :id", id=stream.carrier_id)
    return None if row is None else row[0]


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


def _retire_warm(db: Connection, stream: Stream, *, reason: str, now: float) -> None:
    """Retire what is left of a stream's carrier."""
    db.changed(
        """
        UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
        WHERE state = 'warm' AND template = :template AND fingerprint = :fingerprint
        """,
        template=stream.template,
        fingerprint=stream.fingerprint,
        reason=text(reason),
        now=now,
    )


def _whole_carriers(db: Connection, template: str, fingerprint: str, *, now: float) -> list[str]:
    """Return the carriers of a template none of whose slots was handed out yet, oldest first."""
    found = db.rows(
        f"""
        SELECT carrier_id FROM (
            SELECT carrier_id, COUNT(*) AS warm, MIN(seq) AS oldest
            FROM tasks {db.using("tasks_warm")}
            WHERE state = 'warm' AND template = :template AND fingerprint = :fingerprint
              AND carrier_id IS NOT NULL
              AND (quarantined_until IS NULL OR quarantined_until <= :now)
            GROUP BY carrier_id) AS found
        WHERE warm = (SELECT slots FROM tasks WHERE tasks.id = found.carrier_id)
        ORDER BY oldest
        """,
        template=template,
        fingerprint=fingerprint,
        now=now,
    )
    return [carrier_id for (carrier_id,) in found]


def _waits_before(db: Connection, template: str, name: str, request_id: str) -> bool:
    """Whether a request of a stream is queued that is older than another one, which may not be
    recorded yet."""
    return bool(
        db.rows(
            f"""
            SELECT 1 FROM requests AS others {db.using("requests_of_stream")}
            WHERE others.state = 'queued' AND others.template = :template
              AND others.stream = :name AND others.no_slot = ''
              AND NOT EXISTS (SELECT 1 FROM requests AS this
                              WHERE this.id = :request_id
                                AND (others.created_at, others.id) >= (this.created_at, this.id))
            LIMIT 1
            """,
            template=template,
            name=text(name),
            request_id=request_id,
        )
    )


def _open_stream(db: Connection, template: str, name: str) -> Stream | None:
    found = _streams(
        db,
        "WHERE template = :template AND name = :name AND closed_at IS NULL",
        template=template,
        name=text(name),
    )
    return found[0] if found else None


def _streams(db: Connection, which: str, **wanted: Any) -> list[Stream]:
    return select(db, Stream, which, **wanted)
