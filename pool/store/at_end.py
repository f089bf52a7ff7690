"""Waits that are over. Each function is one query of the SQLite store."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Final

from sqlite_utils import Database

from pool.store.rows import rows

#: Requests at their end, among those named.
REQUESTS_AT_END: Final = """
    SELECT requests.id FROM json_each(:ids) AS wanted
    CROSS JOIN requests ON requests.id = wanted.value
    WHERE requests.state IN ('ready', 'failed', 'cancelled')
"""

#: Leases at their end, among those named.
LEASES_AT_END: Final = """
    SELECT leases.id FROM json_each(:ids) AS wanted
    CROSS JOIN leases ON leases.id = wanted.value
    LEFT JOIN tasks ON tasks.id = leases.pooled_id AND tasks.lease_id = leases.id
    WHERE leases.state IN ('released', 'expired', 'abandoned')
       OR (leases.state = 'used' AND (tasks.id IS NULL OR tasks.state != 'importing'))
"""


def requests_at_end(db: Database, request_ids: Collection[str]) -> frozenset[str]:
    return _among(db, REQUESTS_AT_END, request_ids)


def leases_at_end(db: Database, lease_ids: Collection[str]) -> frozenset[str]:
    return _among(db, LEASES_AT_END, lease_ids)


def _among(db: Database, sql: str, ids: Collection[str]) -> frozenset[str]:
    if not ids:
        return frozenset()
    return frozenset(row[0] for row in rows(db, sql, {"ids": json.dumps(list(ids))}))
