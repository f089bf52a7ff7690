"""Moving a pool to another store, by the command, and what stays true when it is killed."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count, product
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
from conformance.store_factories import EMPTY
from conformance.store_scene import JOBS, NOW, Scene, everything, wish
from support.commands import cvat_pool, running
from support.postgres import PostgresServer, fresh_url, shared_server
from support.terminal import in_a_terminal

from pool.clock import SystemClock
from pool.errors import StoreError
from pool.model import ConfigRecord, Hold, LevelSample
from pool.store import connections_of, copying, open_store
from pool.store.copying import StoreCopy
from pool.store.schema import TABLES, triggers

PAIRS = list(product(EMPTY, EMPTY))


IDS = [f"{one} to {other}" for one, other in PAIRS]


@pytest.fixture(params=PAIRS, ids=IDS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The URLs of two stores that are not there yet."""
    one, other = (tmp_path / name for name in ("one", "other"))
    one.mkdir()
    other.mkdir()
    return EMPTY[request.param[0]](one), EMPTY[request.param[1]](other)


@pytest.fixture(params=EMPTY)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store with rows."""
    url = EMPTY[request.param](tmp_path)
    fill(url)
    return url


@pytest.fixture
def other(tmp_path: Path) -> str:
    """The URL of a store that is not there yet."""
    return f"sqlite:///{tmp_path / 'other.db'}"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    url = EMPTY["sqlite"](tmp_path)
    fill(url)
    return url


def fill(url: str) -> None:
    """Have rows of each kind, and in each state that something comes after."""
    with closing(open_store(url)) as store:
        scene = Scene(store)
        done = scene.importing()
        assert done.lease.pooled_id is not None
        assert store.complete_import(done.lease.pooled_id, JOBS, now=NOW + 5)
        for make in (
            scene.importing, scene.uploading, scene.leased, scene.retired, scene.creating,
        ):  # fmt: skip
            make()
        scene.queued(key="grün")
        for _ in range(15):
            scene.warm()
        store.pause("other", now=NOW)
        store.keep_levels({"ä": LevelSample(warm=3, creating=1, target=5)}, now=NOW)
        store.hold(Hold(template="other", code="x", reason="ä", since=NOW + 0.1, retry_at=None))
        store.open_sinks(["a", "B"])
        store.renew_owner("gone", until=NOW)
        store.keep_configuration(ConfigRecord(loaded_at=NOW, templates={"a": {}}))
        assert store.begin_term("gone", seconds=9.0, clock=lambda: NOW - 9)


def rows_of(url: str) -> dict[str, list[Any]]:
    """All rows, as the database has them."""
    with closing(connections_of(url)) as connections, connections.reading() as db:
        return {
            table: sorted(repr(_plain(row)) for row in db.rows(f"SELECT * FROM {table}"))
            for table in TABLES
        }


def _plain(row: Any) -> list[Any]:
    return [int(value) if isinstance(value, bool) else value for value in row]


def is_usable(url: str) -> bool:
    if not exists(url):
        return False
    try:
        open_store(url).close()
    except StoreError:
        return False
    return True


def exists(url: str) -> bool:
    with closing(connections_of(url)) as connections:
        return connections.exists()


def copy(source: str, target: str) -> copying.CopyReport | None:
    with closing(connections_of(source)) as ours, closing(connections_of(target)) as theirs:
        return StoreCopy(ours, theirs, now=SystemClock().now()).run()


# --- What is copied ------------------------------------------------------------------------------


def test_all_rows_are_copied_and_the_old_store_is_left(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    source, target = pair
    fill(source)
    before = rows_of(source)
    assert all(before[table] for table in ("jobs", "import_members", "holds", "held", "events"))
    long_open = open_store(source)
    known = everything(long_open)
    done = cvat_pool("store", "copy", source, target, "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["rows"] == {table: len(rows) for table, rows in before.items()}
    assert rows_of(target) == before
    for use in (
        lambda: open_store(source),
        long_open.levels,
        long_open.check_writable,
        lambda: long_open.open_lease(wish(), now=NOW),
    ):
        with pytest.raises(StoreError, match="was copied to") as caught:
            use()
        assert report["to"] in str(caught.value)
    long_open.close()
    refused = cvat_pool("store", "check", source, cwd=tmp_path)
    assert refused.returncode == 1 and report["to"] in refused.stderr
    assert cvat_pool("store", "check", target, cwd=tmp_path).returncode == 0
    with closing(open_store(target)) as store:
        assert everything(store) == known
        # Numbers go on, and changes are events again.
        last = store.last_event_id()
        Scene(store).leased(now=NOW + 9)
        assert [event.id for event in store.events_after(last, limit=9)] == [last + 1, last + 2]
    again = cvat_pool("store", "copy", source, target, cwd=tmp_path)
    assert again.returncode == 0 and "before; nothing was done" in again.stdout


def test_a_store_is_copied_back(sqlite_url: str, tmp_path: Path) -> None:
    """To a new file; the old one stays left."""
    database, back = fresh_url(), f"sqlite:///{tmp_path / 'back.db'}"
    before = rows_of(sqlite_url)
    copy(sqlite_url, database)
    with pytest.raises(StoreError, match="holds a pool already"):
        copy(database, sqlite_url)
    assert is_usable(database)
    copy(database, back)
    assert rows_of(back) == before
    assert not is_usable(database) and not is_usable(sqlite_url) and is_usable(back)


# --- Kills ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """As SIGKILL: what was committed is there, and nothing else."""


@contextmanager
def killed_at(number: int) -> Iterator[list[int]]:
    """Die before the commit of transaction ``number``, counted from 0, or after it; every even
    number is before."""
    passed = [0]

    def dying(writing: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @contextmanager
        def write(connections: Any) -> Iterator[Any]:
            with writing(connections) as db:
                yield db
                _die_at(number, passed)
            _die_at(number, passed)

        return write

    from pool.store.postgresql import PostgresConnections
    from pool.store.sqlite import SqliteConnections

    with (
        mock.patch.object(SqliteConnections, "writing", dying(SqliteConnections.writing)),
        mock.patch.object(PostgresConnections, "writing", dying(PostgresConnections.writing)),
        mock.patch.object(copying, "BATCH", 20),
    ):
        yield passed


def _die_at(number: int, passed: list[int]) -> None:
    passed[0] += 1
    if passed[0] == number:
        raise Killed


@pytest.mark.parametrize("given_up", [False, True], ids=["resumed", "given up"])
@pytest.mark.parametrize("pair", PAIRS[1:3], ids=IDS[1:3], indirect=True)
def test_a_copy_that_is_killed_between_two_transactions(
    pair: tuple[str, str], given_up: bool
) -> None:
    """One of the two stores at most can be used, at any moment, and the copy can be finished, or
    given up and begun again."""
    source, target = pair
    fill(source)
    before = rows_of(source)
    with closing(connections_of(source)) as ours, closing(connections_of(target)) as theirs:
        for number in count(1, 7 if given_up else 2):
            with killed_at(number), suppress(Killed):
                StoreCopy(ours, theirs, now=NOW + 3600).run()
                break
            usable = [url for url in pair if is_usable(url)]
            assert len(usable) <= 1
            if given_up and usable != [target]:
                # It may be too early for that, or too late.
                with suppress(StoreError):
                    StoreCopy(ours, theirs, now=NOW + 3600).give_up()
                    assert is_usable(source) and not is_usable(target)
                    assert rows_of(source) == before
    assert number > 15
    assert not is_usable(source) and is_usable(target)
    assert rows_of(target) == before


def begin_copy(source: str, target: str) -> None:
    """Copy some rows, and be killed."""
    with killed_at(8), pytest.raises(Killed):
        copy(source, target)


def test_the_command_is_killed_in_a_transaction(sqlite_url: str, tmp_path: Path) -> None:
    target = fresh_url()
    before = rows_of(sqlite_url)
    begin_copy(sqlite_url, target)
    database = target.partition(":///")[2].partition("?")[0]
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
    with psycopg.connect(target) as other, other.transaction():
        # It comes as far as the events, and no further.
        other.execute("LOCK TABLE events IN SHARE MODE")
        with running("store", "copy", sqlite_url, target, cwd=tmp_path) as command:
            while shared_server().sql(waiting, database=database) == "0":
                assert command.process.returncode is None
            command.process.kill()
            command.process.wait()
    assert not is_usable(sqlite_url) and not is_usable(target)
    done = cvat_pool("store", "copy", sqlite_url, target, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resumed"] is True
    assert rows_of(target) == before


def test_a_copy_is_given_up(url: str, other: str, tmp_path: Path) -> None:
    before = rows_of(url)
    begin_copy(url, other)
    for refused in (url, other):
        answer = cvat_pool("store", "check", refused, cwd=tmp_path)
        assert answer.returncode == 1 and "--abort" in answer.stderr
    done = cvat_pool("store", "copy", url, other, "--abort", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows_of(url) == before
    assert cvat_pool("store", "check", url, cwd=tmp_path).returncode == 0
    with closing(open_store(url)) as store:
        last = store.last_event_id()
        Scene(store).leased(now=NOW + 9)
        assert len(store.events_after(last, limit=9)) == 2, "its triggers are in force again"
    again = cvat_pool("store", "copy", url, other, "--abort", cwd=tmp_path)
    assert again.returncode == 1 and "is not being copied" in again.stderr
    # What is left of it is no obstacle to the next one.
    after = rows_of(url)
    copy(url, other)
    assert rows_of(other) == after
    too_late = cvat_pool("store", "copy", url, other, "--abort", cwd=tmp_path)
    assert too_late.returncode == 1 and "copy that one" in too_late.stderr


def test_two_that_copy_at_the_same_time(url: str, other: str, tmp_path: Path) -> None:
    """The one that comes too late leaves the new store alone, which may be in use."""
    begin_copy(url, other)

    class Late(StoreCopy):
        def _make_target(self, copy_id: str) -> None:
            copy(url, other)
            super()._make_target(copy_id)

    with (
        closing(connections_of(url)) as ours,
        closing(connections_of(other)) as theirs,
        pytest.raises(StoreError),
    ):
        Late(ours, theirs, now=NOW + 3600).run()
    assert cvat_pool("store", "check", other, cwd=tmp_path).returncode == 0
    assert not is_usable(url)


def test_a_target_that_another_pool_takes_meanwhile(url: str, other: str) -> None:
    class Slow(StoreCopy):
        def _make_target(self, copy_id: str) -> None:
            open_store(other).close()
            super()._make_target(copy_id)

    with (
        closing(connections_of(url)) as ours,
        closing(connections_of(other)) as theirs,
        pytest.raises(StoreError, match="another pool's"),
    ):
        Slow(ours, theirs, now=NOW + 3600).run()
    assert is_usable(url) and is_usable(other)
    assert pool_id_of(url) != pool_id_of(other)


def pool_id_of(url: str) -> str:
    with closing(open_store(url)) as store:
        return store.pool_id


def test_a_row_that_was_changed_is_noticed(url: str, other: str, tmp_path: Path) -> None:
    begin_copy(url, other)
    with closing(connections_of(other)) as connections, connections.writing() as db:
        ((task_id, name),) = db.rows("SELECT seq, name FROM tasks ORDER BY seq LIMIT 1")
        db.changed("UPDATE tasks SET name = :name WHERE seq = :seq", seq=task_id, name=name + "!")
    refused = cvat_pool("store", "copy", url, other, cwd=tmp_path)
    assert refused.returncode == 1
    assert f"tasks differs at {task_id}" in refused.stderr and "--abort" in refused.stderr
    assert not is_usable(other) and not is_usable(url)
    with closing(connections_of(other)) as connections, connections.writing() as db:
        db.changed("UPDATE tasks SET name = :name WHERE seq = :seq", seq=task_id, name=name)
        db.changed("DELETE FROM pauses")
    copy(url, other)
    assert is_usable(other)


# --- What is refused -----------------------------------------------------------------------------


def refused(*arguments: str, cwd: Path, code: int = 1) -> str:
    """The one line that a command complains with."""
    done = cvat_pool("store", *arguments, cwd=cwd)
    assert (done.returncode, done.stdout) == (code, ""), done
    (line,) = done.stderr.splitlines()
    return line


def test_a_store_that_is_in_use(url: str, other: str, tmp_path: Path) -> None:
    """A daemon maintains it, or a process uses it; nothing has changed then."""
    clock = SystemClock()
    with closing(open_store(url)) as store:
        begun = store.begin_term("d1", seconds=3600.0, clock=clock.now)
        assert begun is not None
        assert "the daemon d1 uses" in refused("copy", url, other, cwd=tmp_path)
        assert store.end_term(begun.term, "d1", now=clock.now())
        store.renew_owner("p1", until=clock.now() + 3600)
        assert "the process p1 uses" in refused("copy", url, other, cwd=tmp_path)
        assert store.open_lease(wish(), now=NOW).task is not None
        assert not exists(other)
        store.forget_owner("p1")
    assert cvat_pool("store", "copy", url, other, cwd=tmp_path).returncode == 0


def test_a_target_that_holds_something(url: str, other: str, tmp_path: Path) -> None:
    with closing(open_store(other)) as store:
        pool_id = store.pool_id
    assert "holds a pool already" in refused("copy", url, other, cwd=tmp_path)
    assert "holds a pool already" in refused("copy", url, url, cwd=tmp_path)
    (tmp_path / "music.db").touch()
    with closing(sqlite3.connect(tmp_path / "music.db")) as db:
        db.execute("CREATE TABLE tunes (name TEXT)")
    assert "something else" in refused("copy", url, "sqlite:///music.db", cwd=tmp_path)
    assert "does not exist" in refused("copy", url, "sqlite:///no/where.db", cwd=tmp_path)
    database = fresh_url()
    shared_server().sql(
        "CREATE TABLE leases (id int)", database=database.partition(":///")[2].partition("?")[0]
    )
    assert "use a database of its own" in refused("copy", url, database, cwd=tmp_path)
    with closing(open_store(other)) as store:
        assert store.pool_id == pool_id
    assert is_usable(url), "nothing has begun"


def test_a_rest_of_another_pool_is_not_overwritten(url: str, other: str, tmp_path: Path) -> None:
    begin_copy(url, other)
    second = f"sqlite:///{tmp_path / 'second.db'}"
    fill(second)
    assert "part of another pool" in refused("copy", second, other, cwd=tmp_path)
    third = f"sqlite:///{tmp_path / 'third.db'}"
    assert f"is left for {other}" in refused("copy", url, third, cwd=tmp_path)
    assert "is being copied" in refused("copy", other, third, cwd=tmp_path)
    copy(url, other)
    assert "was copied to" in refused("copy", url, third, cwd=tmp_path)


@pytest.mark.parametrize("command", [("check",), ("copy", "sqlite:///to.db")])
def test_a_store_that_is_not_there(command: tuple[str, ...], tmp_path: Path) -> None:
    """It is not made by being looked for."""
    name, *rest = command
    line = refused(name, "sqlite:///from.db", *rest, cwd=tmp_path)
    assert "there is no store at" in line and "from.db" in line
    assert list(tmp_path.glob("*.db*")) == []


@pytest.mark.parametrize(
    "secret", ["postgresql://me:s3cret@h/d", "postgresql://h/d?user=me&password=s3cret"]
)
def test_a_password_in_an_argument(secret: str, tmp_path: Path) -> None:
    for arguments in (("check", secret), ("copy", secret, "sqlite:///a.db")):
        line = refused(*arguments, cwd=tmp_path, code=2)
        assert "s3cret" not in line and "PGPASSWORD" in line
    assert "no store is kept" in refused("check", "mysql://h/d", cwd=tmp_path, code=2)


# --- Where a password comes from -----------------------------------------------------------------


@pytest.mark.parametrize("way", ["configuration", "PGPASSWORD", "service file"])
def test_a_store_that_needs_a_password(
    way: str,
    sqlite_url: str,
    tmp_path: Path,
    guarded: GuardedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is shown nowhere, and not in the list of processes."""
    database = guarded.new_database()
    plain = guarded.url(database, user="keeper")
    line = refused("copy", sqlite_url, plain, cwd=tmp_path)
    assert "password" in line and "s3cret" not in line
    config, service = tmp_path / "new.toml", tmp_path / "services"
    match way:
        case "configuration":
            target = "new.toml"
            config.write_text(
                f'[store]\nurl = "{plain}&password=s3cret"\nspool = "spool"\n'
                "[templates.a]\nlabels = []\n"
            )
        case "PGPASSWORD":
            target = plain
            monkeypatch.setenv("PGPASSWORD", "s3cret")
        case _:
            target = "postgresql://?service=pool"
            monkeypatch.setenv("PGSERVICEFILE", str(service))
            service.write_text(
                f"[pool]\nhost={guarded.folder}\ndbname={database}\nuser=keeper\npassword=s3cret\n"
            )
    done = cvat_pool("store", "copy", sqlite_url, target, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    checked = cvat_pool("store", "check", target, cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "s3cret" not in done.stdout + done.stderr + checked.stdout


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedServer]:
    server = GuardedServer()
    yield server
    server.remove()


class GuardedServer(PostgresServer):
    """One that asks a user for a password."""

    def __init__(self, user: str = "keeper") -> None:
        super().__init__()
        if user == "keeper":
            self.sql("CREATE USER keeper PASSWORD 's3cret'")
        hba = self.data / "pg_hba.conf"
        hba.write_text(f"local all pool trust\nlocal all {user} scram-sha-256\n")
        self.sql("SELECT pg_reload_conf()")

    def new_database(self, *, like: str = "template1") -> str:
        name = super().new_database(like=like)
        self.sql(f"ALTER DATABASE {name} OWNER TO keeper")
        return name


def test_the_manual(tmp_path: Path) -> None:
    """What its page says to do is done here, in its order."""
    page = (Path(copying.__file__).parents[1] / "docs" / "postgresql.md").read_text()
    blocks = {
        kind: re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("sql", "toml", "sh")
    }
    make, schema, standby = blocks["sql"]
    (store,) = blocks["toml"]
    _, move, give_up = blocks["sh"]
    rest = "[templates.a]\nlabels = []\n"
    server = GuardedServer(user="cvat_pool")
    try:
        for statement in make.strip().split(";\n"):
            server.sql(statement)
        host = f"///cvat_pool?host={server.folder}&user=cvat_pool"
        told = store.replace("//cvat_pool@db.example/cvat_pool", host)
        assert host in told
        (tmp_path / "new.toml").write_text(
            told.replace("/var/lib/cvat-pool/spool", str(tmp_path / "pool.db.spool")) + rest
        )
        (tmp_path / "old.toml").write_text('[store]\nurl = "sqlite:///pool.db"\n' + rest)
        (tmp_path / "pass").write_text("*:*:*:cvat_pool:a long one\n")
        (tmp_path / "pass").chmod(0o600)
        source = f"sqlite:///{tmp_path / 'pool.db'}"
        fill(source)
        before = rows_of(source)
        target = server.url("cvat_pool", user="cvat_pool", password="a long one")
        begin_copy(source, target)
        for line in (give_up + move).strip().splitlines():
            program, *arguments = line.split()
            assert program == "cvat-pool"
            done = cvat_pool(*arguments, cwd=tmp_path, PGPASSFILE=str(tmp_path / "pass"))
            assert done.returncode == 0, done.stderr
        assert rows_of(target) == before
        # A schema of its own, in a database of others.
        database = PostgresServer.new_database(server)
        for statement in schema.strip().split(";\n"):
            server.sql(statement, database=database)
        other = server.url(database, user="cvat_pool", password="a long one")
        open_store(other).close()
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'cvat_pool'"
        assert int(server.sql(tables, database=database)) > len(TABLES)
        server.sql(standby)
    finally:
        server.remove()


# --- What a person sees --------------------------------------------------------------------------


def test_a_long_copy_has_a_progress_bar(sqlite_url: str, other: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "pool.db")) as db, db:
        db.execute(
            """
            WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 6000)
            INSERT INTO demand (template, start) SELECT 'a', n FROM numbers
            """
        )
    spool = tmp_path / "pool.db.spool"
    spool.mkdir()
    with in_a_terminal("store", "copy", sqlite_url, other, cwd=tmp_path) as terminal:
        terminal.finish()
    assert terminal.process.returncode == 0
    assert "comparing" in terminal.shown and "100%" in terminal.shown
    assert f'set store.url = "{other}"' in terminal.shown
    assert f'set store.spool = "{spool}"' in terminal.shown


# --- Checking ------------------------------------------------------------------------------------


def test_a_store_in_order(url: str, tmp_path: Path) -> None:
    done = cvat_pool("store", "check", url, "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert (done.returncode, report["problems"]) == (0, [])
    assert report["rows"] == {table: len(rows) for table, rows in rows_of(url).items()}
    assert "no problems" in cvat_pool("store", "check", url, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("UPDATE leases SET state = 'active' WHERE state = 'used'", "is not handed out to it"),
        (
            "UPDATE tasks SET lease_id = 'x' WHERE seq = (SELECT MAX(seq) FROM tasks "
            "WHERE state = 'leased')",
            "holds another task, or none",
        ),
        (
            "UPDATE leases SET pooled_id = (SELECT MIN(pooled_id) FROM leases) "
            "WHERE state = 'active'",
            "two leases hold the task",
        ),
        ("UPDATE tasks SET task_id = 1 WHERE state = 'warm'", "several rows stand for the task"),
        ("UPDATE imports SET state = 'importing' WHERE state = 'uploading'", "not in the same"),
        ("UPDATE sinks SET cursor = 100000", "ahead of the events: B, a"),
        ("UPDATE queues SET queued = queued + 1", "are counted wrongly, of the template: "),
    ],
)
def test_rows_that_contradict_each_other(
    url: str, damage: str, problem: str, tmp_path: Path
) -> None:
    with closing(connections_of(url)) as connections, connections.writing() as db:
        db.changed(damage)
    done = cvat_pool("store", "check", url, "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert any(problem in each for each in json.loads(done.stdout)["problems"]), done.stdout


def test_a_store_without_the_pools_id(url: str, tmp_path: Path) -> None:
    with closing(connections_of(url)) as connections, connections.writing() as db:
        db.changed("DELETE FROM meta WHERE key = 'pool_id'")
    assert "has lost the pool's id" in refused("check", url, cwd=tmp_path)


def test_a_trigger_that_is_missing(url: str, tmp_path: Path) -> None:
    with closing(connections_of(url)) as connections, connections.writing() as db:
        (first, *_) = triggers(type(db))
        db.changed(db.drop_trigger(first))
    done = cvat_pool("store", "check", url, cwd=tmp_path)
    assert done.returncode == 1 and f"trigger {first.name} is missing" in done.stdout


def test_a_file_that_is_damaged(sqlite_url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "pool.db")) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        db.execute("DELETE FROM tasks WHERE state = 'importing'")
        db.commit()
    done = cvat_pool("store", "check", sqlite_url, cwd=tmp_path)
    assert done.returncode == 1 and "refers to a row of tasks that is not there" in done.stdout
    size = (tmp_path / "pool.db").stat().st_size
    with (tmp_path / "pool.db").open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size - size // 2))
    assert "is damaged" in refused("check", sqlite_url, cwd=tmp_path)


def test_a_database_whose_counter_is_behind(tmp_path: Path) -> None:
    url = fresh_url()
    fill(url)
    name = url.partition(":///")[2].partition("?")[0]
    shared_server().sql("SELECT setval('events_id_seq', 1)", database=name)
    shared_server().sql(
        "SET session_replication_role = replica; DELETE FROM tasks WHERE state = 'importing'",
        database=name,
    )
    done = cvat_pool("store", "check", url, cwd=tmp_path)
    assert done.returncode == 1
    assert "events: its counter is behind its rows" in done.stdout
    assert "refer to a row of tasks that is not there" in done.stdout
