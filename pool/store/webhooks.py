"""Installed webhooks and their secret. Each function is one transaction of the SQLite store."""

from __future__ import annotations

from collections.abc import Mapping

from sqlite_utils import Database

from pool.model import WebhookRecord
from pool.store import queries
from pool.store.rows import changed, one
from pool.store.webhook_rows import HEARD_FOR

SECRET = "webhook_secret"


def webhook_secret(db: Database) -> str | None:
    row = one(db, "SELECT value FROM meta WHERE key = :key", {"key": SECRET})
    return str(row[0]) if row else None


def keep_webhook_secret(db: Database, secret: str) -> str:
    db.table("meta").insert({"key": SECRET, "value": secret}, pk="key", ignore=True)
    return webhook_secret(db) or secret


def webhooks(db: Database) -> Mapping[str, WebhookRecord]:
    return {row["scope"]: WebhookRecord(**row) for row in db.table("webhooks").rows}


def keep_webhook(db: Database, scope: str, *, hook_id: int, target_url: str, now: float) -> bool:
    known = webhooks(db).get(scope)
    if known is not None and (known.hook_id, known.target_url) == (hook_id, target_url):
        return False
    row = {"scope": scope, "hook_id": hook_id, "target_url": target_url, "installed_at": now}
    db.table("webhooks").insert({**row, "heard_at": None, "missed": 0}, pk="scope", replace=True)
    return True


def forget_webhook(db: Database, scope: str) -> bool:
    return bool(changed(db, "DELETE FROM webhooks WHERE scope = :scope", {"scope": scope}))


def has_to_hear(db: Database, hook_id: int, *, now: float) -> bool:
    """Whether a delivery is worth a write."""
    heard = {"hook_id": hook_id, "heard_before": now - HEARD_FOR}
    return one(db, f"SELECT 1 FROM webhooks WHERE {queries.NOT_HEARD}", heard) is not None


def hear_webhook(db: Database, hook_id: int, *, now: float) -> bool:
    heard = {"hook_id": hook_id, "heard_before": now - HEARD_FOR, "now": now}
    return bool(changed(db, queries.HEAR_WEBHOOK, heard))


def miss_webhook(db: Database, scope: str) -> bool:
    return bool(changed(db, queries.MISS_WEBHOOK, {"scope": scope}))
