"""How the tables of a store change from one version to the next, while several versions use it:
machines are upgraded one by one.

A migration says which processes can go on with the store afterwards, and the store keeps that. Most
are such that the version before can: columns with a default, tables, indexes, other triggers. One
that no older process can go on with waits until none is alive, and a process that is older all the
same (one that slept, say) may write nothing more. ``docs/development.md`` has the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pool.errors import StoreError, StoreOutdated
from pool.store.connections import Connection, Dialect
from pool.store.schema import first_meta, tables, triggers
from pool.version import VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """A change of the tables: ``statements`` in SQLite's words. Its triggers are those of
    :mod:`pool.store.schema`, which replace all that were there.

    ``needs`` is the number of the oldest migration that a process must have to go on with the
    store: its own where no older version can, the one before where the version before can.
    """

    number: int
    name: str
    needs: int
    statements: Iterable[str] = ()


#: All that this version has, in order.
MIGRATIONS: Final = [Migration(number=1, name="tables", needs=1, statements=tuple(tables()))]

#: What the store keeps of the migrations that were applied; ``version`` is that of the product.
_TABLE: Final = """
    CREATE TABLE pool_migrations (
        number INTEGER NOT NULL PRIMARY KEY,
        name TEXT NOT NULL,
        needs INTEGER NOT NULL,
        version TEXT NOT NULL,
        applied_at REAL NOT NULL
    ) STRICT
"""


class Maker(Protocol):
    """A connection in a transaction that makes the tables, or changes them."""

    place: str

    @property
    def dialect(self) -> type[Dialect]:
        """The database's words."""

    def rows(self, sql: str, /, **parameters: Any) -> list[Any]:
        """Return all rows."""

    def has_migrations(self) -> bool:
        """Whether there is a store."""

    def define(self, statement: str) -> None:
        """Run a statement of the schema, which is in SQLite's words."""

    def make_functions(self) -> None:
        """Make what the database's own words need in a store."""


def known() -> int:
    """The number of the newest migration that this version has."""
    return MIGRATIONS[-1].number


def is_current(db: Maker) -> bool:
    """Whether nothing is to be done to the store.

    :raises StoreOutdated: this version cannot use it.
    """
    return not _missing(db)[1]


def migrate(db: Maker, *, now: float, copy: Mapping[str, Any] | None = None) -> None:
    """Apply the migrations that are missing, with the row ``copy`` in ``copies`` where there was
    no store.

    :raises StoreError: older processes use the store, which could not go on with it.
    :raises StoreOutdated: this version cannot use the store.
    """
    version, missing = _missing(db)
    if not missing or (version and _is_left(db, version)):
        return
    if version:
        _spare_older(db, missing, now=now)
    else:
        db.define(_TABLE)
        db.make_functions()
    for migration in missing:
        for statement in migration.statements:
            db.define(statement)
        row = {"number": migration.number, "name": migration.name, "needs": migration.needs}
        _insert(db, "pool_migrations", row | {"version": VERSION, "applied_at": now})
    for trigger in triggers(db.dialect):
        if version:
            db.rows(db.dialect.drop_trigger(trigger))
        for statement in db.dialect.make_trigger(trigger):
            db.rows(statement)
    if not version:
        for key, value in first_meta().items():
            _insert(db, "meta", {"key": key, "value": value})
        if copy is not None:
            _insert(db, "copies", copy)


def newer_version(db: Connection) -> str | None:
    """Return the version that has changed the store since this one, which can go on with it."""
    found = db.one(
        "SELECT version FROM pool_migrations WHERE number > :known ORDER BY number DESC",
        known=known(),
    )
    return str(found[0]) if found else None


def refuse_newer(db: Connection, place: str) -> None:
    """Raise where this version does not know all that is in the store.

    :raises StoreError: with what to do.
    """
    version = newer_version(db)
    if version is not None:
        raise StoreError(f"{place} was upgraded by cvat-task-pool {version}; do this with that one")


def outdated(place: str, version: str) -> StoreOutdated:
    """The error of a process that is too old for the store."""
    return StoreOutdated(
        f"{place} was upgraded by cvat-task-pool {version}, and version {VERSION} cannot use it "
        "any more; upgrade"
    )


def _missing(db: Maker) -> tuple[str, list[Migration]]:
    """The version that has changed the store last, "" where there is no store, and the migrations
    that are to be applied."""
    if not db.has_migrations():
        return "", MIGRATIONS
    applied = db.rows("SELECT number, needs, version FROM pool_migrations ORDER BY number")
    for _, needs, version in reversed(applied):
        if needs > known():
            raise outdated(db.place, version)
    newest, _, version = applied[-1]
    return str(version), [each for each in MIGRATIONS if each.number > newest]


def _is_left(db: Maker, version: str) -> bool:
    """Whether the store was copied to another one, and is not used any more.

    :raises StoreError: it is being copied, which the version that has begun that can finish.
    """
    copies = db.rows("SELECT role, complete FROM copies")
    if any(not complete for _, complete in copies):
        raise StoreError(
            f"{db.place} is being copied by cvat-task-pool {version}; finish that with that one"
        )
    return any(role == "source" for role, _ in copies)


def _spare_older(db: Maker, missing: Sequence[Migration], *, now: float) -> None:
    """Leave the store as it is for a process that is alive and could not go on with it. No such
    process has any of the migrations that are missing."""
    if max(each.needs for each in missing) < missing[0].number:
        return
    found = db.rows("SELECT owner FROM owners WHERE until > :now ORDER BY owner", now=now)
    if found:
        raise StoreError(
            f"the process {found[0][0]} is of a version before, which could not go on with "
            f"{db.place} after the upgrade; stop it, and try again some seconds later"
        )


def _insert(db: Maker, table: str, row: Mapping[str, Any]) -> None:
    values = ", ".join(f":{name}" for name in row)
    db.rows(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({values})", **row)
