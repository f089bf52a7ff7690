"""Copy a store into a fresh one, of either kind, and leave the old one for good.

Two stores with the same rows would hand out the same tasks twice. So at every moment at most one of
the two can be used, and each says itself whether it is the one, in its table ``copies``:

1. The source is left, before its first row is read, in one transaction that finds no process that
   uses it. Its tables get other names: also a process that had opened it long ago cannot commit to
   it any more, nor read what is out of date.
2. The target is made, with a row that says that it is incomplete.
3. The rows are copied, in the order of their keys, a batch a transaction. A copy that was killed
   goes on after the last row that is there. Nothing is written to the source.
4. All rows of both are read and compared.
5. The source is marked as copied: from here on there is no way back.
6. The target is given what its rows are counted on with and its triggers, and may be used.

Up to 5. the copy can be given up (:meth:`StoreCopy.give_up`): the source has its names again, and
what is in the target is overwritten by the next copy of the same pool.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from pool.errors import StoreError
from pool.model import new_id
from pool.store.connections import Column, Connection, Connections, Row
from pool.store.migrations import refuse_newer
from pool.store.schema import TABLES, triggers

#: Rows of a transaction. A request with thousands of files has a row of some hundred kilobytes.
BATCH: Final = 500
#: What precedes the names of the tables of a store that was left.
_LEFT: Final = "left_"

#: Called with how many rows were copied or compared, and how many there are to be.
CopyProgress = Callable[[int, int], None]


def refuse_unusable(db: Connection, place: str) -> None:
    """Raise when a store has been left for another one, or is not completely copied yet.

    :raises StoreError: with the place of the other one and what to do.
    """
    found = db.one("SELECT role, place, complete FROM copies WHERE role = 'source' OR NOT complete")
    if found is None:
        return
    role, other, complete = found
    if complete:
        raise StoreError(f"{place} was copied to {other} and is not used any more; use that one")
    source, target = (place, other) if role == "source" else (other, place)
    raise StoreError(
        f"{source} is being copied to {target}; finish that with 'cvat-pool store copy', or give "
        "it up with the same command and --abort"
    )


def usable_pool_id(db: Connection, place: str) -> str:
    """Return the pool's id; see :func:`refuse_unusable`."""
    refuse_unusable(db, place)
    found = db.one("SELECT value FROM meta WHERE key = 'pool_id'")
    if found is None:
        raise StoreError(f"{place} has lost the pool's id; restore it from a backup")
    return str(found[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyReport:
    """What was copied: rows by table, and the SHA-256 of all of them, the same in both stores.
    ``resumed``: an earlier run had begun it."""

    rows: dict[str, int]
    digest: str
    resumed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """What a store says of a copy: the newest one, as its source or its target."""

    pool_id: str
    copy_id: str = ""
    place: str = ""
    is_target: bool = False
    complete: bool = True

    @classmethod
    def of_row(cls, copy_id: str, role: str, place: str, complete: object) -> _State:
        return cls(
            pool_id=copy_id.partition("-")[0],
            copy_id=copy_id,
            place=place,
            is_target=role == "target",
            complete=bool(complete),
        )


class StoreCopy:
    """The copy of one store into another. ``now`` is in seconds since the epoch.

    :raises StoreError: from any method; no row is lost then.
    """

    def __init__(self, source: Connections, target: Connections, *, now: float) -> None:
        self._source = source
        self._target = target
        self._now = now

    def run(self, progress: CopyProgress = lambda *_: None) -> CopyReport | None:
        """Copy all rows; return None when that was done before."""
        source = self._source_state()
        target = self._target_state()
        resumed = source.copy_id != ""
        if target is None and resumed and source.complete:
            raise StoreError(f"{self._source.place} was copied to {source.place}; copy that one")
        if target is None and resumed and source.place != self._target.place:
            raise StoreError(
                f"{self._source.place} is left for {source.place}; name that one, or give the "
                "copy up with --abort"
            )
        if target is not None and target.complete:
            if resumed and source.complete and target.copy_id == source.copy_id:
                return None
            raise StoreError(
                f"{self._target.place} holds a pool already; copy to a file or a database that is "
                "not there yet, or is empty"
            )
        if target is not None and not (target.is_target and target.pool_id == source.pool_id):
            raise StoreError(f"{self._target.place} holds a part of another pool; choose another")
        copy_id = source.copy_id or self._leave(source.pool_id)
        try:
            self._make_target(copy_id)
        except StoreError:
            if not resumed:
                self._take_back(copy_id)
            raise
        report = self._fill(copy_id, progress, resumed=resumed)
        if not (resumed and source.complete):
            self._complete_source(copy_id)
        self._open_target(copy_id)
        return report

    def give_up(self) -> None:
        """Have the source used again."""
        source = self._source_state()
        if not source.copy_id:
            raise StoreError(f"{self._source.place} is not being copied")
        if source.complete:
            raise StoreError(
                f"{self._source.place} was copied completely, and {source.place} may have handed "
                "out tasks since; to go back, copy that one"
            )
        self._take_back(source.copy_id)

    # --- The source -----------------------------------------------------------------------------

    def _source_state(self) -> _State:
        if not self._source.exists():
            raise StoreError(f"there is no store at {self._source.place}; correct the address")
        self._source.make_tables()
        with self._source.reading() as db:
            refuse_newer(db, self._source.place)
            found = db.one("SELECT id, role, place, complete FROM copies WHERE role = 'source'")
            if found is not None:
                return _State.of_row(*found)
            return _State(pool_id=usable_pool_id(db, self._source.place))

    def _leave(self, pool_id: str) -> str:
        """Leave the source, which nothing uses; return the copy's id."""
        store_time = self._source.time()
        now = self._now if store_time is None else store_time
        copy_id = f"{pool_id}-{new_id(self._now)}"
        with self._source.writing() as db:
            for table, what in (("terms", "the daemon"), ("owners", "the process")):
                found = db.one(
                    f"SELECT owner FROM {table} WHERE until > :now ORDER BY owner", now=now
                )
                if found is not None:
                    raise StoreError(
                        f"{what} {found[0]} uses {self._source.place}; stop it, and try again "
                        "some seconds later"
                    )
            for table in TABLES:
                db.changed(f"ALTER TABLE {table} RENAME TO {_LEFT}{table}")
            row = {"role": "source", "place": self._target.place, "began_at": self._now}
            db.upsert("copies", {"id": copy_id, **row}, key="id")
        return copy_id

    def _take_back(self, copy_id: str) -> None:
        """Have the source used again."""
        with self._source.writing() as db:
            if not db.met("DELETE FROM copies WHERE id = :id AND NOT complete", id=copy_id):
                raise StoreError("another process has finished the copy, or has given it up")
            for table in TABLES:
                db.changed(f"ALTER TABLE {_LEFT}{table} RENAME TO {table}")

    def _complete_source(self, copy_id: str) -> None:
        with self._source.writing() as db:
            if not _complete(db, copy_id):
                raise StoreError("another process has given the copy up")

    # --- The target -----------------------------------------------------------------------------

    def _target_state(self) -> _State | None:
        """The copy that the target was made for; None where there is no store."""
        if not self._target.exists():
            return None
        with self._target.reading() as db:
            # A store that was left has another one with the same rows, whatever it was before.
            found = db.one(
                """
                SELECT id, role, place, complete FROM copies
                ORDER BY role = 'source' DESC, began_at DESC
                """
            )
        return _State.of_row(*found) if found else _State(pool_id="")

    def _make_target(self, copy_id: str) -> None:
        pool_id = copy_id.partition("-")[0]
        row = {"role": "target", "place": self._source.place, "began_at": self._now}
        self._target.make_tables({"id": f"{pool_id}-", **row})
        with self._target.writing() as db:
            refuse_newer(db, self._target.place)
            found = db.one("SELECT id FROM copies WHERE role = 'target' AND NOT complete")
            if found is None or not found[0].startswith(f"{pool_id}-"):
                raise StoreError(f"{self._target.place} is another pool's since a moment ago")
            # The events are copied, so no trigger writes any.
            for trigger in triggers(type(db)):
                db.changed(db.drop_trigger(trigger))
            # It is fresh, or has the rest of a copy that was given up.
            if found[0] != copy_id:
                db.changed("UPDATE copies SET id = :id WHERE id = :old", id=copy_id, old=found[0])
                for table in reversed(TABLES):
                    db.changed(f"DELETE FROM {table}")

    def _open_target(self, copy_id: str) -> None:
        with self._filling(copy_id) as db:
            db.advance_counters()
            for trigger in triggers(type(db)):
                for statement in db.make_trigger(trigger):
                    db.changed(statement)
            _complete(db, copy_id)

    @contextmanager
    def _filling(self, copy_id: str) -> Iterator[Connection]:
        """A transaction on the target, as long as it is this copy's."""
        with self._target.writing() as db:
            if not db.met("UPDATE copies SET id = id WHERE id = :id AND NOT complete", id=copy_id):
                raise StoreError("another process has finished the copy, or has given it up")
            yield db

    # --- The rows -------------------------------------------------------------------------------

    def _fill(self, copy_id: str, progress: CopyProgress, *, resumed: bool) -> CopyReport:
        with self._source.reading() as db:
            counts = {table: db.number(f"SELECT COUNT(*) FROM {_LEFT}{table}") for table in TABLES}
        with self._target.reading() as db:
            done = sum(db.number(f"SELECT COUNT(*) FROM {table}") for table in TABLES)
            columns = {table: db.columns(table) for table in TABLES}
        total = 2 * sum(counts.values())
        for table in filter(counts.get, TABLES):
            while copied := self._copy_batch(copy_id, table, columns[table]):
                done += copied
                progress(done, total)
        digest = hashlib.sha256()
        for table in TABLES:
            for line in self._compared(table, columns[table]):
                digest.update(line)
                done += 1
                if done % BATCH == 0:
                    progress(done, total)
        progress(total, total)
        return CopyReport(rows=counts, digest=digest.hexdigest(), resumed=resumed)

    def _copy_batch(self, copy_id: str, table: str, columns: Sequence[Column]) -> int:
        """Copy the rows after the last one that is in the target; return how many."""
        keys = _keys(columns)
        with self._filling(copy_id) as target, self._source.reading() as source:
            last = target.one(
                f"""
                SELECT {", ".join(keys)} FROM {table}
                ORDER BY {", ".join(f"{key} DESC" for key in keys)} LIMIT 1
                """
            )
            rows = _rows_after(source, _LEFT + table, columns, last)
            converted = [
                [
                    bool(value) if column.is_boolean and value is not None else value
                    for column, value in zip(columns, row, strict=True)
                ]
                for row in rows
            ]
            if rows:
                target.insert(table, [column.name for column in columns], converted)
        return len(rows)

    def _compared(self, table: str, columns: Sequence[Column]) -> Iterator[bytes]:
        """Yield each row, which is the same in both stores, as one line.

        :raises StoreError: a row differs.
        """
        theirs = _lines(self._source, _LEFT + table, columns)
        ours = _lines(self._target, table, columns)
        for one, other in zip_longest(theirs, ours):
            if one != other:
                key = (one or other or ((), b""))[0]
                raise StoreError(
                    f"{table} differs at {', '.join(map(str, key))}; give the copy up with "
                    "--abort, and begin again"
                )
            yield one[1]


def _complete(db: Connection, copy_id: str) -> bool:
    return db.met("UPDATE copies SET complete = :yes WHERE id = :id", id=copy_id, yes=True)


def _keys(columns: Sequence[Column]) -> list[str]:
    """The names of the columns of the primary key, in its order."""
    found = [column for column in columns if column.in_key]
    return [column.name for column in sorted(found, key=lambda column: column.in_key)]


def _rows_after(
    db: Connection, table: str, columns: Sequence[Column], last: Row | None
) -> list[Row]:
    """The first rows after the one with the key ``last``, in the order of keys."""
    keys = _keys(columns)
    parameters = {f"key{number}": value for number, value in enumerate(last or ())}
    after = f"WHERE ({', '.join(keys)}) > ({', '.join(f':{name}' for name in parameters)})"
    return db.rows(
        f"""
        SELECT {", ".join(column.name for column in columns)} FROM {table}
        {after if parameters else ""} ORDER BY {", ".join(keys)} LIMIT {BATCH}
        """,
        **parameters,
    )


def _lines(
    connections: Connections, table: str, columns: Sequence[Column]
) -> Iterator[tuple[Row, bytes]]:
    """Yield all rows in the order of their keys: the key, and the row as the same bytes wherever
    it is."""
    names = [column.name for column in columns]
    places = [names.index(key) for key in _keys(columns)]
    last: Row | None = None
    while True:
        with connections.reading() as db:
            rows = _rows_after(db, table, columns, last)
        for row in rows:
            values = [int(value) if isinstance(value, bool) else value for value in row]
            last = [row[place] for place in places]
            yield last, json.dumps(values).encode() + b"\n"
        if len(rows) < BATCH:
            return
