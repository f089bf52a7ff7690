"""The webhooks that are installed on CVAT, and their secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pool.model import WebhookRecord
from pool.store.connections import Connected, Connection
from pool.store.records import select

#: Seconds for which a delivery of a webhook is not written down again.
HEARD_FOR: Final = 5.0

_SECRET: Final = "webhook_secret"
#: A webhook of which it is not known that it delivers.
_NOT_HEARD: Final = """
    hook_id = :hook_id AND (missed > 0 OR heard_at IS NULL OR heard_at <= :heard_before)
"""


class Webhooks(Connected):
    """The rows of installed webhooks."""

    def webhook_secret(self) -> str | None:
        """Return what CVAT signs its deliveries with; None before :meth:`keep_webhook_secret`."""
        with self.connections.reading() as db:
            return _secret(db)

    def keep_webhook_secret(self, secret: str) -> str:
        """Keep the secret, unless there is one, and return the one that is kept: of several
        processes that bring one, all get the same."""
        with self.connections.writing() as db:
            db.changed(
                """
                INSERT INTO meta (key, value) VALUES (:key, :secret)
                ON CONFLICT (key) DO NOTHING
                """,
                key=_SECRET,
                secret=secret,
            )
            return _secret(db) or secret

    def webhooks(self) -> Mapping[str, WebhookRecord]:
        """Return the installed webhooks by scope."""
        with self.connections.reading() as db:
            return _webhooks(db)

    def keep_webhook(self, scope: str, *, hook_id: int, target_url: str, now: float) -> bool:
        """Keep an installed webhook, in place of the scope's one before. False when it is the same
        as that: then what is known of its deliveries stays."""
        with self.connections.writing() as db:
            known = _webhooks(db).get(scope)
            if known is not None and (known.hook_id, known.target_url) == (hook_id, target_url):
                return False
            row = {
                "scope": scope,
                "hook_id": hook_id,
                "target_url": target_url,
                "installed_at": now,
                "heard_at": None,
                "missed": 0,
            }
            db.upsert("webhooks", row, key="scope")
            return True

    def forget_webhook(self, scope: str) -> bool:
        """Forget a webhook that was removed; False when there was none."""
        with self.connections.writing() as db:
            return db.met("DELETE FROM webhooks WHERE scope = :scope", scope=scope)

    def hear_webhook(self, hook_id: int, *, now: float) -> bool:
        """Note a delivery: ``heard_at`` is now and ``missed`` is 0. False, and nothing is
        written, when that stands there already, give or take :data:`HEARD_FOR`."""
        heard = {"hook_id": hook_id, "heard_before": now - HEARD_FOR}
        with self.connections.reading() as db:
            # Deliveries come many a second, and only the first of them is worth a write.
            if not db.rows(f"SELECT 1 FROM webhooks WHERE {_NOT_HEARD}", **heard):
                return False
        with self.connections.writing() as db:
            return db.met(
                f"UPDATE webhooks SET heard_at = :now, missed = 0 WHERE {_NOT_HEARD}",
                now=now,
                **heard,
            )

    def miss_webhook(self, scope: str) -> bool:
        """Count an import that was left to the scope's webhook and found first by polling."""
        with self.connections.writing() as db:
            return db.met(
                "UPDATE webhooks SET missed = missed + 1 WHERE scope = :scope", scope=scope
            )


def _secret(db: Connection) -> str | None:
    row = db.one("SELECT value FROM meta WHERE key = :key", key=_SECRET)
    return str(row[0]) if row else None


def _webhooks(db: Connection) -> dict[str, WebhookRecord]:
    return {record.scope: record for record in select(db, WebhookRecord)}
