"""Versions that share a store while machines are upgraded one by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.store_factories import EMPTY
from conformance.store_scene import NOW, Scene, everything, wish
from pool.errors import StoreError, StoreOutdated
from pool.model import RequestState
from pool.store import Store, connections_of, migrations, open_store, schema
from pool.store.checking import check_store
from pool.store.connections import Trigger
from pool.store.copying import StoreCopy
from pool.store.migrations import MIGRATIONS, Migration, known

NEXT = known() + 1
ADDITIVE = Migration(
    number=NEXT,
    name="notes",
    needs=NEXT - 1,
    statements=(
        "ALTER TABLE requests ADD COLUMN noted INTEGER NOT NULL DEFAULT 0 CHECK (noted IN (0, 1))",
        "CREATE INDEX requests_noted ON requests (noted) WHERE noted",
        "CREATE TABLE notes (seq INTEGER PRIMARY KEY, about TEXT NOT NULL, at REAL) STRICT",
    ),
)
NOTED = Trigger(
    name="notes_of_new_requests",
    table="requests",
    event="INSERT",
    body="INSERT INTO notes (about) VALUES (NEW.id);",
)
BREAKING = Migration(
    number=NEXT,
    name="pauses_by_day",
    needs=NEXT,
    statements=("ALTER TABLE pauses RENAME COLUMN since TO since_day",),
)


@contextmanager
def version(name: str, *more: Migration, trigger: Trigger | None = None) -> Iterator[None]:
    """Be a version with more migrations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "VERSION", name)
        patch.setattr(migrations, "MIGRATIONS", [*MIGRATIONS, *more])
        if trigger is not None:
            ours = schema.triggers
            patch.setattr(migrations, "triggers", lambda db: [*ours(db), trigger])
        yield


def upgrade(store_url: str, *more: Migration, trigger: Trigger | None = None) -> None:
    """Start the next version, and stop it."""
    with version("9.1", *more, trigger=trigger):
        open_store(store_url).close()


def count(store: Store, table: str) -> int:
    with store.connections.reading() as db:
        return db.number(f"SELECT COUNT(*) FROM {table}")


# --- What the version before can go on with -------------------------------------------------------


def test_a_process_goes_on_with_a_store_that_has_more(
    scene: Scene, store_url: str, open_another: Callable[[], Store]
) -> None:
    queued = scene.queued()
    assert scene.store.newer_version() is None
    # What was prepared before is used on.
    for _ in range(9):
        scene.store.requests()
    upgrade(store_url, ADDITIVE, trigger=NOTED)
    assert scene.store.newer_version() == "9.1"
    for store in (scene.store, open_another()):
        old = Scene(store, scene.task_ids)
        imported = old.importing()
        assert old.request(imported.request).state is RequestState.IMPORTING
        assert len(store.requests(limit=99).requests) == count(store, "requests")
        assert store.request_by_key("none") is None and store.expired_leases(now=NOW) == []
        store.prune(before=NOW + 1, limit=9)
    assert count(scene.store, "notes") == count(scene.store, "requests") - 1
    assert scene.request(queued.request).state is RequestState.QUEUED


def test_an_upgrade_is_made_once(store: Store, store_url: str) -> None:
    for _ in range(2):
        upgrade(store_url, ADDITIVE, trigger=NOTED)
    assert count(store, "pool_migrations") == NEXT


def test_an_upgrade_that_fails_leaves_nothing(scene: Scene, store_url: str) -> None:
    scene.importing()
    before = everything(scene.store)
    with pytest.raises(StoreError):
        upgrade(
            store_url, replace(ADDITIVE, statements=(*ADDITIVE.statements, "DROP TABLE absent"))
        )
    assert everything(scene.store) == before and scene.store.newer_version() is None
    scene.importing()


def test_an_upgrade_of_a_store_that_is_in_use(scene: Scene, store_url: str) -> None:
    """It waits for those who write and read, holds none of them up for long, and fails none."""
    store, ended = scene.store, threading.Event()
    failed: list[BaseException] = []

    def use() -> None:
        with closing(open_store(store_url)) as other:
            while not ended.is_set():
                try:
                    other.open_lease(wish(), now=NOW)
                    other.requests()
                except StoreError as error:
                    failed.append(error)

    users = [threading.Thread(target=use) for _ in range(2)]
    for user in users:
        user.start()
    upgrading = threading.Thread(target=upgrade, args=(store_url, ADDITIVE))
    try:
        with store.connections.reading() as db:
            db.rows("BEGIN")
            db.rows("SELECT COUNT(*) FROM requests")
            upgrading.start()
            time.sleep(0.2)
            db.rows("COMMIT")
        upgrading.join()
    finally:
        ended.set()
        for user in users:
            user.join()
    assert not failed and store.newer_version() == "9.1"


# --- What it cannot go on with --------------------------------------------------------------------


def test_an_older_process_is_refused(store: Store, store_url: str) -> None:
    upgrade(store_url, BREAKING)
    for use in (
        lambda: open_store(store_url),
        lambda: store.pause("a", now=NOW),
        lambda: store.renew_owner("older", until=NOW),
        lambda: store.open_lease(wish(), now=NOW),
    ):
        with pytest.raises(StoreOutdated, match=r"upgraded by cvat-task-pool 9\.1, and version"):
            use()
    with version("9.1", BREAKING), closing(open_store(store_url)) as newer:
        newer.open_lease(wish(), now=NOW)


def test_a_store_that_the_version_before_the_last_cannot_use(store: Store, store_url: str) -> None:
    """Each of the two was such that the version before could go on."""
    then = Migration(number=NEXT + 1, name="then", needs=NEXT, statements=("DROP TABLE notes",))
    upgrade(store_url, ADDITIVE)
    store.pause("a", now=NOW)
    with version("9.1", ADDITIVE):
        middle = open_store(store_url)
        upgrade(store_url, ADDITIVE, then)
        middle.pause("b", now=NOW)
        middle.close()
    with pytest.raises(StoreOutdated):
        store.pause("c", now=NOW)
    assert set(store.paused()) == {"a", "b"}


def test_an_upgrade_waits_for_older_processes_that_could_not_go_on(
    store: Store, store_url: str
) -> None:
    now = store.time() or time.time()
    store.renew_owner("older", until=now + 60.0)
    with pytest.raises(StoreError, match="the process older is of a version before") as refused:
        upgrade(store_url, BREAKING)
    assert "\n" not in str(refused.value)
    store.pause("a", now=NOW)
    upgrade(store_url, ADDITIVE)
    store.forget_owner("older")
    upgrade(store_url, ADDITIVE, replace(BREAKING, number=NEXT + 1, needs=NEXT + 1))
    with pytest.raises(StoreOutdated):
        store.pause("b", now=NOW)


# --- What only the newer one can do ---------------------------------------------------------------


def test_a_store_is_copied_and_checked_by_a_version_that_knows_all_of_it(
    store: Store, store_url: str, tmp_path: Path
) -> None:
    Scene(store).importing()
    store.close()
    upgrade(store_url, ADDITIVE, trigger=NOTED)
    folder = tmp_path / "copy"
    folder.mkdir()
    target = EMPTY["sqlite"](folder)
    with closing(connections_of(store_url)) as ours, closing(connections_of(target)) as theirs:
        for use in (StoreCopy(ours, theirs, now=NOW).run, lambda: check_store(ours)):
            with pytest.raises(StoreError, match=r"by cvat-task-pool 9\.1; do this with that one"):
                use()
        with version("9.1", ADDITIVE, trigger=NOTED):
            assert check_store(ours).problems == ()
            assert StoreCopy(ours, theirs, now=NOW).run() is not None
            with closing(open_store(target)) as moved:
                assert count(moved, "requests") == 1


def test_a_copy_that_has_begun_is_finished_by_the_version_that_began_it(
    store: Store, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Scene(store).importing()
    store.close()
    folder = tmp_path / "copy"
    folder.mkdir()
    target = EMPTY["sqlite"](folder)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with closing(connections_of(store_url)) as ours, closing(connections_of(target)) as theirs:
        copy = StoreCopy(ours, theirs, now=NOW)
        monkeypatch.setattr(copy, "_open_target", die)
        with pytest.raises(KeyboardInterrupt):
            copy.run()
        with version("9.1", ADDITIVE), pytest.raises(StoreError, match="finish that with that one"):
            open_store(target)
        assert StoreCopy(ours, theirs, now=NOW).run() is not None
    upgrade(target, ADDITIVE)
