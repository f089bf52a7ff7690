"""``cvat-pool`` as its next version: ``python -m support.next_version ARGUMENT…``.

It has a migration more, a trigger that fills the new table, and code that uses the new column.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

from pool.store import migrations, schema
from pool.store.connections import Dialect, Trigger
from pool.store.migrations import Migration
from pool.store.terms import Terms

VERSION: Final = "9.1"
MIGRATION: Final = Migration(
    number=migrations.known() + 1,
    name="beats",
    needs=migrations.known(),
    statements=(
        "ALTER TABLE owners ADD COLUMN beats INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE requests ADD COLUMN seen_by_next INTEGER NOT NULL DEFAULT 0 "
        "CHECK (seen_by_next IN (0, 1))",
        "CREATE TABLE ends (seq INTEGER PRIMARY KEY, request_id TEXT NOT NULL) STRICT",
        "CREATE INDEX requests_unseen ON requests (id) WHERE NOT seen_by_next",
    ),
)


def _triggers(db: type[Dialect]) -> Iterator[Trigger]:
    yield from schema.triggers(db)
    yield Trigger(
        name="ends_of_requests",
        table="requests",
        event="UPDATE OF state",
        when="NEW.state <> OLD.state AND NEW.state IN ('ready', 'failed', 'cancelled')",
        body="INSERT INTO ends (request_id) VALUES (NEW.id);",
    )


def become() -> None:
    """Be the next version in this process."""
    for name, module in list(sys.modules.items()):
        if name.startswith("pool.") and hasattr(module, "VERSION"):
            module.__dict__["VERSION"] = VERSION
    migrations.MIGRATIONS.append(MIGRATION)
    migrations.__dict__["triggers"] = _triggers
    renew_owner = Terms.renew_owner

    def renew(self: Terms, owner: str, **values: Any) -> None:
        renew_owner(self, owner, **values)
        with self.connections.writing() as db:
            db.changed("UPDATE owners SET beats = beats + 1 WHERE owner = :owner", owner=owner)

    Terms.renew_owner = renew  # type: ignore[method-assign]


if __name__ == "__main__":
    become()
    from pool.cli.app import main

    main()
