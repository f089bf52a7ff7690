"""The statements that change rows. What is only looked up is in :mod:`pool.store.lookups`, and
what only :mod:`pool.store.retiring` and :mod:`pool.store.pruning` do stands there.

Each names the state that it expects; a row in another state is left alone, and the number of
rows that were met decides. Those that end in RETURNING answer the row as it is afterwards.
"""

from __future__ import annotations

from typing import Final

from pool.store.migrations import LIVE, OPEN, SPOOLED
from pool.store.rows import LEASE_COLUMNS, REQUEST_COLUMNS, TASK_COLUMNS, listed

_TASK: Final = listed(TASK_COLUMNS)
_LEASE: Final = listed(LEASE_COLUMNS)
_REQUEST: Final = listed(REQUEST_COLUMNS)

#: A lease waits, without a request, and not for ``:owner``; and its owner is gone.
_DESERTED: Final = """
    state = 'waiting' AND request_id IS NULL AND owner <> :owner
      AND NOT EXISTS (SELECT 1 FROM owners
                      WHERE owners.owner = leases.owner AND owners.until >= :now)
"""
#: Whether that is so of one lease.
IS_DESERTED: Final = f"SELECT 1 FROM leases WHERE id = :id AND {_DESERTED}"

# --- Creating -------------------------------------------------------------------------------------

#: Write down the intent to create a task, while its template is below its limits.
BEGIN_CREATE: Final = f"""
    INSERT INTO tasks
        (id, template, fingerprint, origin, state, name, cold, owner, created_at, changed_at)
    SELECT :id, :template, :fingerprint, :origin, 'creating', :name, :cold, :owner, :now, :now
    WHERE :cold OR (
        (SELECT COUNT(*) FROM tasks INDEXED BY tasks_live
         WHERE {LIVE} AND template = :template AND state IN ('warm', 'creating')
           AND fingerprint = :fingerprint AND (state = 'warm' OR NOT cold)) < :capacity
        AND
        (SELECT COUNT(*) FROM tasks INDEXED BY tasks_live
         WHERE {LIVE} AND template = :template AND state = 'creating'
           AND NOT cold) < :concurrency)
    RETURNING {_TASK}
"""

#: Keep the server's id of a task that is being created; another id is not taken afterwards.
RECORD_CREATED: Final = """
    UPDATE tasks SET task_id = :task_id, changed_at = :now
    WHERE id = :id AND state = 'creating' AND (task_id IS NULL OR task_id = :task_id)
"""

#: A created task goes into the pool.
FINISH_CREATE: Final = """
    UPDATE tasks SET state = 'warm', prepared = :prepared, warm_at = :now, changed_at = :now
    WHERE id = :id AND state = 'creating' AND task_id IS NOT NULL
    RETURNING template
"""

#: Learn how long a create took: an average in which each one weighs a fifth of what is left.
LEARN_LEAD_TIME: Final = """
    INSERT INTO lead_times (template, seconds) VALUES (:template, :seconds)
    ON CONFLICT (template) DO UPDATE SET seconds = 0.8 * seconds + 0.2 * excluded.seconds
"""

#: A created task goes straight to the lease that waits for it.
FINISH_COLD: Final = f"""
    UPDATE tasks
    SET state = 'leased', lease_id = :lease_id, prepared = :prepared, changed_at = :now
    WHERE id = :id AND state = 'creating' AND task_id IS NOT NULL
      AND EXISTS (SELECT 1 FROM leases WHERE leases.id = :lease_id AND state = 'waiting')
    RETURNING {_TASK}
"""

#: A create came to nothing.
FAIL_CREATE: Final = """
    UPDATE tasks SET state = 'failed', reason = :reason, changed_at = :now
    WHERE id = :id AND state = 'creating'
"""

# --- Handing out ----------------------------------------------------------------------------------


def _claim(which: str, order: str) -> str:
    return f"""
        UPDATE tasks SET state = 'leased', lease_id = :lease_id, changed_at = :now
        WHERE seq = (SELECT seq FROM tasks INDEXED BY tasks_warm
                     WHERE state = 'warm' AND template = :template AND {which}
                       AND (doubted_until IS NULL OR doubted_until <= :now)
                     ORDER BY {order} LIMIT 1)
          AND state = 'warm'
        RETURNING {_TASK}
    """


#: The hand-out: the oldest warm task goes to one lease. One statement, so that no two get it.
CLAIM: Final = _claim("fingerprint = :fingerprint", "warm_at, seq")
#: As CLAIM, of an older template: the newest, which is most like what the template is now.
CLAIM_OLDER: Final = _claim(
    "fingerprint <> :fingerprint AND origin = :older_from", "warm_at DESC, seq DESC"
)

#: Accept a wish for a task, with the task if there was one.
INSERT_LEASE: Final = f"""
    INSERT INTO leases
        (id, template, state, owner, request_id, pooled_id, task_id, task_name, outcome, ttl,
         idempotency_key, payload, created_at, handed_out_at, expires_at, served)
    VALUES
        (:id, :template, :state, :owner, :request_id, :pooled_id, :task_id, :task_name, :outcome,
         :ttl, :idempotency_key, :payload, :now, :handed_out_at, :handed_out_at + :ttl, :served)
    RETURNING {_LEASE}
"""

#: A waiting lease gets its task.
ACTIVATE_LEASE: Final = f"""
    UPDATE leases
    SET state = 'active', pooled_id = :pooled_id, task_id = :task_id, task_name = :task_name,
        outcome = :outcome, handed_out_at = :now, expires_at = :now + ttl,
        served = (request_id IS NULL)
    WHERE id = :id AND state = 'waiting'
    RETURNING {_LEASE}
"""

#: The request of a lease that got its task goes on its way.
START_REQUEST: Final = f"""
    UPDATE requests
    SET state = 'uploading', pooled_id = :pooled_id, task_id = :task_id, outcome = :outcome,
        handed_out_at = :now
    WHERE id = (SELECT request_id FROM leases WHERE id = :lease_id) AND state = 'queued'
    RETURNING {_REQUEST}
"""

#: A lease waits no longer; the key that it was asked for with is free again.
ABANDON_LEASE: Final = """
    UPDATE leases SET state = 'abandoned', idempotency_key = NULL
    WHERE id = :id AND state = 'waiting'
    RETURNING request_id
"""

#: The untouched task of an active lease without a request is warm again.
UNLEASE_TASK: Final = """
    UPDATE tasks
    SET state = 'warm', lease_id = NULL, warm_at = COALESCE(warm_at, :now), changed_at = :now
    WHERE lease_id = :lease_id AND state = 'leased'
      AND EXISTS (SELECT 1 FROM leases
                  WHERE id = :lease_id AND state = 'active' AND request_id IS NULL)
"""

#: The task of an active lease without a request is no use any more.
RETIRE_LEASED_TASK: Final = """
    UPDATE tasks SET state = 'retired', reason = :reason, changed_at = :now
    WHERE lease_id = :lease_id AND state = 'leased'
      AND EXISTS (SELECT 1 FROM leases
                  WHERE id = :lease_id AND state = 'active' AND request_id IS NULL)
"""

#: A lease ends, in one of the ways in which it can.
END_LEASE: Final = """
    UPDATE leases SET state = :state WHERE id = :id AND state IN ('waiting', 'active')
"""

# --- Data on its way ------------------------------------------------------------------------------

#: Accept a caller's data, with the task that it goes into if there was one.
INSERT_REQUEST: Final = f"""
    INSERT INTO requests
        (id, template, state, owner, lease_id, pooled_id, task_id, outcome, name, assignee, files,
         size, payload, idempotency_key, created_at, handed_out_at, spooled, served)
    VALUES
        (:id, :template, :state, :owner, :lease_id, :pooled_id, :task_id, :outcome, :name,
         :assignee, :files, :size, :payload, :idempotency_key, :now, :handed_out_at, :spooled,
         :served)
    RETURNING {_REQUEST}
"""

#: An active lease without a request gets one.
ATTACH_REQUEST: Final = f"""
    UPDATE leases SET request_id = :request_id
    WHERE id = :id AND state = 'active' AND request_id IS NULL
    RETURNING {_LEASE}
"""

#: Whoever asks has not been taken for dead meanwhile.
_STILL_UNDER: Final = "(:under IS NULL OR requests.lease_id = :under)"

#: The leases of requests that CVAT has the data of for the first time: their callers are served.
_SERVE: Final = """
    UPDATE leases SET served = 1
    WHERE id IN (SELECT lease_id FROM requests WHERE NOT served AND {which})
    RETURNING template, outcome
"""
#: As one is about to be imported, and as those of a task are about to be ready.
SERVE_REQUEST: Final = _SERVE.format(which=f"id = :id AND state = 'uploading' AND {_STILL_UNDER}")
SERVE_REQUESTS: Final = _SERVE.format(
    which=f"pooled_id = :id AND {OPEN} AND state IN ('uploading', 'importing')"
)

#: CVAT has accepted a request's data.
BEGIN_IMPORT: Final = f"""
    UPDATE requests SET state = 'importing', served = 1, uploaded_at = :now, deadline_at = :deadline
    WHERE id = :id AND state = 'uploading' AND {_STILL_UNDER}
    RETURNING lease_id
"""

#: The task of a lease is being imported into.
IMPORT_INTO_TASK: Final = """
    UPDATE tasks SET state = 'importing', changed_at = :now
    WHERE lease_id = :lease_id AND state = 'leased'
"""

#: As IMPORT_INTO_TASK, for a caller who uploads by itself.
IMPORT_INTO_FOREIGN_TASK: Final = (
    IMPORT_INTO_TASK
    + """
      AND EXISTS (SELECT 1 FROM leases
                  WHERE id = :lease_id AND state = 'active' AND request_id IS NULL)
"""
)

#: A task's jobs exist.
COMPLETE_TASK: Final = """
    UPDATE tasks SET state = 'ready', changed_at = :now
    WHERE id = :id AND state IN ('leased', 'importing')
    RETURNING lease_id
"""

#: The requests of a task whose jobs exist. Being imported is what lies between uploading and
#: ready, even when nobody had the time to write it down.
COMPLETE_REQUESTS: Final = f"""
    UPDATE requests
    SET state = 'ready', served = 1, uploaded_at = COALESCE(uploaded_at, :now), finished_at = :now
    WHERE pooled_id = :id AND {OPEN} AND state IN ('uploading', 'importing')
"""

#: Keep one job of a ready task.
INSERT_JOB: Final = """
    INSERT INTO jobs (pooled_id, id, url, start_frame, stop_frame, assignee)
    VALUES (:pooled_id, :id, :url, :start_frame, :stop_frame, :assignee)
"""

#: A task that data has touched, or may have, is no use any more.
BURN_TASK: Final = """
    UPDATE tasks SET state = 'failed', reason = :reason, changed_at = :now
    WHERE id = :id AND state IN ('leased', 'importing')
    RETURNING lease_id
"""

#: The requests of a burnt task.
FAIL_REQUESTS: Final = f"""
    UPDATE requests
    SET state = 'failed', error_code = :code, error = :message, finished_at = :now
    WHERE pooled_id = :id AND {OPEN} AND state IN ('uploading', 'importing')
"""

#: A request fails before CVAT has accepted its data. When nothing was done for it, its key may be
#: used for another try; but not when its caller was told that it is accepted.
FAIL_REQUEST: Final = f"""
    UPDATE requests
    SET state = 'failed', error_code = :code, error = :message, finished_at = :now,
        idempotency_key =
            CASE WHEN NOT spooled AND (state = 'queued' OR :untouched) THEN NULL
                 ELSE idempotency_key END
    WHERE id = :id AND state IN ('queued', 'uploading') AND {_STILL_UNDER}
    RETURNING lease_id, pooled_id
"""

#: The untouched task of a request that failed is warm again.
RETURN_TASK: Final = """
    UPDATE tasks
    SET state = 'warm', lease_id = NULL, warm_at = COALESCE(warm_at, :now), changed_at = :now
    WHERE id = :id AND state = 'leased'
"""

#: Seconds of a request's that an upload or import took that came to nothing, but for those in
#: which the server is held, which :func:`pool.store.event_schema.server_seconds` counts.
LOST: Final = """
    MAX(0.0, COALESCE(MIN(:now, COALESCE((SELECT since FROM holds WHERE template = ''), :now))
                      - handed_out_at, 0.0))
"""

#: A request waits for another task: with a fresh lease, and nothing of the old task.
REQUEUE_REQUEST: Final = f"""
    UPDATE requests
    SET state = 'queued', lease_id = :new_lease_id, pooled_id = NULL, task_id = NULL,
        outcome = NULL, handed_out_at = NULL, uploaded_at = NULL, deadline_at = NULL,
        owner = CASE WHEN spooled THEN :nobody ELSE owner END, tasks_spent = tasks_spent + 1,
        lost_seconds = lost_seconds + {LOST}
    WHERE id = :id AND state IN ('uploading', 'importing')
"""

#: The fresh lease, as the old one was.
INSERT_FRESH_LEASE: Final = f"""
    INSERT INTO leases (id, template, state, owner, request_id, ttl, payload, created_at)
    SELECT :new_lease_id, leases.template, 'waiting',
           CASE WHEN requests.spooled THEN :nobody ELSE requests.owner END, requests.id,
           leases.ttl, leases.payload, :now
    FROM requests JOIN leases ON leases.id = requests.lease_id
    WHERE requests.id = :id AND requests.state IN ('uploading', 'importing') AND {_STILL_UNDER}
"""

#: A request that still waits for a task is called off.
CANCEL_REQUEST: Final = """
    UPDATE requests SET state = 'cancelled', finished_at = :now
    WHERE id = :id AND state = 'queued'
    RETURNING lease_id
"""

#: As CANCEL_REQUEST, and the key that it was asked for with is free again.
ABANDON_REQUEST: Final = """
    UPDATE requests SET state = 'cancelled', finished_at = :now, idempotency_key = NULL
    WHERE id = :id AND state = 'queued'
"""

#: Take over the requests whose owner is gone.
ADOPT_REQUESTS: Final = f"""
    UPDATE requests INDEXED BY requests_open SET owner = :owner
    WHERE {OPEN} AND owner <> :owner AND NOT ({SPOOLED})
      AND NOT EXISTS (SELECT 1 FROM owners
                      WHERE owners.owner = requests.owner AND owners.until >= :now)
    RETURNING {_REQUEST}
"""

#: A lease goes to the process that has taken over its request.
ADOPT_LEASE: Final = "UPDATE leases SET owner = :owner WHERE id = :id"

#: Whoever waited with a lease is gone, and somebody else does in its place.
INHERIT_LEASE: Final = f"""
    UPDATE leases SET owner = :owner WHERE id = :id AND {_DESERTED}
"""

#: Nobody waits any more with the leases whose owner is gone.
ABANDON_ORPHANED_LEASES: Final = f"""
    UPDATE leases INDEXED BY leases_waiting SET state = 'abandoned', idempotency_key = NULL
    WHERE {_DESERTED}
"""

#: The time of a hold begins, unless it has.
BEGIN_HELD: Final = """
    INSERT INTO held (template, since, until)
    SELECT :template, :since, :forever
    WHERE NOT EXISTS (SELECT 1 FROM held WHERE until = :forever AND template = :template)
"""

#: The time of a hold is over.
END_HELD: Final = """
    UPDATE held SET until = :now WHERE until = :forever AND template = :template
"""

# --- Demand, maintenance --------------------------------------------------------------------------

#: Count one hand-out in its bucket of time.
COUNT_DEMAND: Final = """
    INSERT INTO demand (template, start, hits, waits, colds)
    VALUES (:template, :start, :outcome = 'hit', :outcome = 'wait', :outcome = 'cold')
    ON CONFLICT (template, start) DO UPDATE
    SET hits = hits + excluded.hits, waits = waits + excluded.waits,
        colds = colds + excluded.colds
"""

#: Count one hand-out among all that there ever were.
COUNT_HAND_OUT: Final = """
    INSERT INTO hand_outs (template, outcome, total) VALUES (:template, :outcome, 1)
    ON CONFLICT (template, outcome) DO UPDATE SET total = total + 1
"""

#: Become, or stay, the one that maintains the store. A term that ends later than terms do is of a
#: clock that was set back since.
ACQUIRE_MAINTENANCE: Final = """
    INSERT INTO maintenance (id, owner, until) VALUES (1, :owner, :until)
    ON CONFLICT (id) DO UPDATE SET owner = excluded.owner, until = excluded.until
    WHERE maintenance.owner = excluded.owner OR maintenance.until <= :now
       OR maintenance.until > :until + (:until - :now)
"""

#: Write something, to see whether that works.
CHECK_WRITABLE: Final = """
    UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'writes_checked'
"""

# --- Webhooks -------------------------------------------------------------------------------------

#: A webhook of which it is not known that it delivers.
NOT_HEARD: Final = """
    hook_id = :hook_id AND (missed > 0 OR heard_at IS NULL OR heard_at <= :heard_before)
"""

#: A webhook delivers.
HEAR_WEBHOOK: Final = f"UPDATE webhooks SET heard_at = :now, missed = 0 WHERE {NOT_HEARD}"

#: A webhook did not deliver in time.
MISS_WEBHOOK: Final = "UPDATE webhooks SET missed = missed + 1 WHERE scope = :scope"
