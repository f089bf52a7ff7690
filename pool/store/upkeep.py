"""Owners, holds, pauses and maintenance. Each function is one transaction of the SQLite store."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict

from sqlite_utils import Database

from pool.model import ConfigRecord, Hold, LearnedPace, Prewarm
from pool.store import lookups, queries
from pool.store.event_schema import FOREVER
from pool.store.rows import changed, one, text


def renew_owner(db: Database, owner: str, *, until: float) -> None:
    db.table("owners").upsert({"owner": owner, "until": until}, pk="owner")


def forget_owner(db: Database, owner: str) -> None:
    db.table("owners").delete_where("owner = ?", [owner])


def learned_paces(db: Database) -> Mapping[str, LearnedPace]:
    return {
        row["name"]: LearnedPace(
            first=row["first"], imports=row["imports"], seen=tuple(json.loads(row["seen"]))
        )
        for row in db.table("paces").rows
    }


def learn_paces(db: Database, paces: Mapping[str, LearnedPace]) -> None:
    db.table("paces").upsert_all(
        (
            {
                "name": text(name),
                "first": pace.first,
                "imports": pace.imports,
                "seen": json.dumps(pace.seen),
            }
            for name, pace in paces.items()
        ),
        pk="name",
    )


def keep_configuration(db: Database, record: ConfigRecord) -> None:
    told = {"loaded_at": record.loaded_at, "rejected_at": record.rejected_at}
    lists = {
        name: text(json.dumps(getattr(record, name), ensure_ascii=False))
        for name in ("problems", "restart", "templates")
    }
    db.table("configuration").upsert({"id": 1, **told, **lists}, pk="id")


def configuration(db: Database) -> ConfigRecord | None:
    for row in db.table("configuration").rows:
        return ConfigRecord(
            loaded_at=row["loaded_at"],
            rejected_at=row["rejected_at"],
            problems=tuple(json.loads(row["problems"])),
            restart=tuple(json.loads(row["restart"])),
            templates=json.loads(row["templates"]),
        )
    return None


def hold(db: Database, hold: Hold) -> None:
    db.table("holds").upsert(asdict(hold) | {"reason": text(hold.reason)}, pk="template")
    began = {"template": hold.template, "since": hold.since, "forever": FOREVER}
    changed(db, queries.BEGIN_HELD, began)


def release_hold(db: Database, template: str, *, now: float) -> bool:
    changed(db, queries.END_HELD, {"template": template, "now": now, "forever": FOREVER})
    return bool(changed(db, "DELETE FROM holds WHERE template = :template", {"template": template}))


def others_created(db: Database, template: str, *, since: float) -> bool:
    return one(db, lookups.OTHERS_CREATED, {"template": template, "since": since}) is not None


def others_uploaded(db: Database, request_id: str, *, since: float) -> bool:
    return one(db, lookups.OTHERS_UPLOADED, {"id": request_id, "since": since}) is not None


def holds(db: Database) -> Mapping[str, Hold]:
    return {
        row["template"]: Hold(**row | {"uploads": bool(row["uploads"])})
        for row in db.table("holds").rows
    }


def pause(db: Database, template: str, *, now: float) -> None:
    # A second pause changes nothing: the template has been paused since the first.
    db.table("pauses").insert({"template": template, "since": now}, pk="template", ignore=True)


def resume(db: Database, template: str) -> bool:
    return bool(
        changed(db, "DELETE FROM pauses WHERE template = :template", {"template": template})
    )


def paused(db: Database) -> Mapping[str, float]:
    return {row["template"]: row["since"] for row in db.table("pauses").rows}


def drained(db: Database) -> Collection[str]:
    return {row["template"] for row in db.table("pauses").rows_where("drained")}


def prewarm(db: Database, prewarm: Prewarm) -> None:
    db.table("prewarms").upsert(asdict(prewarm), pk="template")


def end_prewarm(db: Database, template: str) -> bool:
    return bool(
        changed(db, "DELETE FROM prewarms WHERE template = :template", {"template": template})
    )


def prewarms(db: Database) -> Mapping[str, Prewarm]:
    return {row["template"]: Prewarm(**row) for row in db.table("prewarms").rows}


def acquire_maintenance(db: Database, owner: str, *, until: float, now: float) -> bool:
    return bool(
        changed(db, queries.ACQUIRE_MAINTENANCE, {"owner": owner, "until": until, "now": now})
    )


def release_maintenance(db: Database, owner: str) -> bool:
    return bool(changed(db, "DELETE FROM maintenance WHERE owner = :owner", {"owner": owner}))


def maintainer(db: Database, *, now: float) -> str | None:
    row = db.execute("SELECT owner FROM maintenance WHERE until > ?", [now]).fetchone()
    return str(row[0]) if row else None


def broken_off_maintenance(db: Database, *, now: float) -> str | None:
    row = db.execute("SELECT owner FROM maintenance WHERE until <= ?", [now]).fetchone()
    return str(row[0]) if row else None


def check_writable(db: Database) -> None:
    changed(db, queries.CHECK_WRITABLE, {})
