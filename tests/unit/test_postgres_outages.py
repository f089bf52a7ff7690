"""What goes wrong around a PostgreSQL server: disks, standbys, poolers. A clear error, or patience,
and never a wrong answer."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from logging.handlers import QueueHandler
from pathlib import Path
from queue import Queue

import psycopg
import pytest
from support.postgres import Pooler, PostgresServer, shared_server

from pool.errors import StoreError
from pool.model import new_id
from pool.store import CreateLimit, NewLease, NewRequest, Opened, Store, open_store
from pool.store.postgresql_failures import is_passing

NOW = 1_700_000_000.0
PATIENT, IMPATIENT = 30.0, 0.3


def wish() -> NewLease:
    return NewLease(id=new_id(), template="a", fingerprint="f", owner="o", ttl=60.0)


def make_warm(store: Store, count: int = 1) -> set[str]:
    limit = CreateLimit(capacity=10**6, concurrency=10**6)
    made: set[str] = set()
    for _ in range(count):
        pooled_id = new_id()
        assert store.begin_create(pooled_id, "a", "f", limit=limit, owner="o", now=NOW)
        assert store.record_created(pooled_id, task_id=len(made) + 1, now=NOW)
        assert store.finish_create(pooled_id, prepared=False, now=NOW)
        made.add(pooled_id)
    return made


def take(store: Store) -> str:
    """Hand a task out; its id."""
    pooled_id = store.open_lease(wish(), now=NOW).lease.pooled_id
    assert pooled_id is not None
    return pooled_id


# --- A full disk ---------------------------------------------------------------------------------


@pytest.fixture
def crowded() -> Iterator[PostgresServer]:
    """A server with the database "crowded" on a small disk, the folder "disk"."""
    server = PostgresServer()
    disk = server.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m,mode=777", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        server.remove()
        if os.environ.get("POOL_REQUIRE_POSTGRES") == "1":
            pytest.fail("this user cannot mount a small disk, and POOL_REQUIRE_POSTGRES=1")
        pytest.skip("this user cannot mount a small disk")
    try:
        (disk / "space").mkdir()
        shutil.chown(disk / "space", server.user)
        server.sql(f"CREATE TABLESPACE small LOCATION '{disk / 'space'}'")
        server.sql("CREATE DATABASE crowded TABLESPACE small")
        yield server
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        server.remove()


def test_a_full_disk(crowded: PostgresServer) -> None:
    """Nothing is there of what was refused, and everything of what was not."""
    disk = crowded.folder / "disk"
    store = open_store(crowded.url("crowded"), busy_timeout=PATIENT)
    make_warm(store)
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (shutil.disk_usage(disk).free - 512 * 1024))
    accepted: list[Opened] = []

    def accept_all() -> None:
        while True:
            request = NewRequest(id=new_id(), files=(os.urandom(2000).hex(),))
            accepted.append(store.open_lease(wish(), request=request, now=NOW))

    with pytest.raises(StoreError, match=r"is out of room .*; free some"):
        accept_all()
    assert len(accepted) > 10
    kept = {request.id for request in store.requests(limit=100_000).requests}
    assert kept == {opened.request.id for opened in accepted if opened.request}
    assert len(store.leases(limit=100_000)) == len(accepted)
    ballast.unlink()
    store.open_lease(wish(), now=NOW)
    assert len(store.leases(limit=100_000)) == len(accepted) + 1
    store.close()


# --- Standbys ------------------------------------------------------------------------------------


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    server = PostgresServer({"synchronous_standby_names": "'*'", "synchronous_commit": "local"})
    yield server
    server.remove()


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    """A copy of the primary that follows it; a commit waits until it has it."""
    server = PostgresServer(follows=primary)
    yield server
    server.remove()


def test_a_standby_is_not_taken_for_the_primary(
    primary: PostgresServer, standby: PostgresServer
) -> None:
    database = primary.new_database()
    store = open_store(primary.url(database), busy_timeout=PATIENT)
    made = make_warm(store)
    standby.catch_up()
    alone = standby.url(database)
    with pytest.raises(StoreError, match=r"is read-only .*name the primary in store.url"):
        open_store(alone, busy_timeout=IMPATIENT)
    looking = open_store(alone + "&target_session_attrs=any", busy_timeout=IMPATIENT)
    for call in (looking.check_writable, lambda: take(looking)):
        with pytest.raises(StoreError, match="read-only"):
            call()
    looking.close()
    # Of two that are named it finds the one that takes changes.
    hosts = f"{standby.folder},{primary.folder}"
    both = open_store(primary.url(database, host=hosts), busy_timeout=IMPATIENT)
    assert {take(both)} == made
    both.close()
    store.close()


def test_a_failover_to_a_synchronous_standby_loses_nothing(
    primary: PostgresServer, standby: PostgresServer
) -> None:
    database = primary.new_database()
    hosts = f"{primary.folder},{standby.folder}"
    store = open_store(primary.url(database, host=hosts), busy_timeout=PATIENT)
    made = make_warm(store, 6)
    taken = [take(store) for _ in range(3)]
    last = store.last_event_id()
    primary.stop("immediate")
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(take, store)
        standby.sql("SELECT pg_promote()")
        taken.append(waiting.result())
    assert store.last_event_id() > last
    taken += [take(store) for _ in range(2)]
    assert sorted(taken) == sorted(made)
    store.close()


# --- A server that is away -----------------------------------------------------------------------


def test_a_server_is_noticed_soon_after_it_is_back() -> None:
    """However often it was tried before: the pauses between two tries do not grow for ever."""
    server = PostgresServer()
    try:
        store = open_store(server.url(server.new_database()), busy_timeout=12.0)
        made = make_warm(store)
        server.stop("immediate")
        queue: Queue[logging.LogRecord] = Queue()
        tries = QueueHandler(queue)
        tries.addFilter(lambda record: "error connecting" in record.msg)
        logging.getLogger("psycopg.pool").addHandler(tries)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(take, store)
            for _ in range(4):
                queue.get(timeout=PATIENT)
            server.start()
            assert {waiting.result()} == made
        logging.getLogger("psycopg.pool").removeHandler(tries)
        store.close()
    finally:
        server.remove()


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("FATAL:  the database system is starting up", True),
        ("FATAL:  the database system is not yet accepting connections", True),
        ("FATAL:  the database system is in recovery mode", True),
        ("FATAL:  sorry, too many clients already", True),
        ("connection to server failed: Connection refused", True),
        ('FATAL:  password authentication failed for user "pool"', False),
        ('FATAL:  database "pool" does not exist', False),
    ],
)
def test_what_may_pass(said: str, passes: bool) -> None:
    """A server that is starting says so in several ways, and with no code."""
    assert is_passing(psycopg.OperationalError(said)) is passes


# --- A pooler of connections ---------------------------------------------------------------------


@pytest.fixture
def pooler() -> Iterator[Pooler]:
    # One connection of the server for all, so that what keeps one keeps all others waiting.
    pooler = Pooler(shared_server(), size=1)
    yield pooler
    pooler.stop()


def test_transactions_through_a_pooler(pooler: Pooler) -> None:
    """All are on one connection, in turns."""
    url = pooler.url(shared_server().new_database())
    stores = [open_store(url, busy_timeout=PATIENT) for _ in range(3)]
    made = make_warm(stores[0], 60)

    def take_some(number: int) -> list[str]:
        taken = []
        for _ in range(10):
            taken.append(take(stores[number % 3]))
            stores[number % 3].levels()
        return taken

    with ThreadPoolExecutor(6) as threads:
        taken = [each for some in threads.map(take_some, range(6)) for each in some]
    assert sorted(taken) == sorted(made)
    for store in stores:
        store.close()


def test_a_pooler_that_is_started_again(pooler: Pooler) -> None:
    server = shared_server()
    url = pooler.url(server.new_database())
    store = open_store(url, busy_timeout=PATIENT)
    made = make_warm(store, 3)
    taken = [take(store)]
    pooler.stop()
    impatient = pytest.raises(StoreError, match="cannot be reached")
    with impatient:
        open_store(url, busy_timeout=IMPATIENT)
    again = Pooler(server, size=1)
    taken += [take(store), take(store)]
    assert sorted(taken) == sorted(made)
    store.close()
    again.stop()


# --- The tests' own ------------------------------------------------------------------------------


def test_a_server_ends_with_the_process_that_has_started_it() -> None:
    """Also when that is killed, so that tests leave nothing behind."""
    shared_server()
    code = (
        "from support.postgres import PostgresServer\n"
        "server = PostgresServer()\n"
        "print(server.pid, server.folder, flush=True)\n"
        "input()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    pid, folder = child.stdout.readline().split()
    command_line = Path(f"/proc/{pid}/cmdline")
    assert command_line.read_bytes()
    child.send_signal(signal.SIGKILL)
    # Its output is open as long as what watches over the server runs.
    child.communicate()
    # A process that has ended and was not waited for has none.
    assert not command_line.exists() or not command_line.read_bytes()
    assert not Path(folder).exists()
