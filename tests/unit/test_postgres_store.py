"""What PostgreSQL does, and SQLite does not: connections that are lost, servers that refuse."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import psycopg
import pytest
from support.hosts import Host
from support.postgres import PostgresServer, fresh_url, shared_server

from pool.config.urls import shown_store_url
from pool.errors import ConfigError, PoolClosed, StoreError
from pool.model import TaskState, new_id
from pool.store import CreateLimit, NewLease, Store, open_store
from pool.store.postgresql import PostgresConnection

NOW = 1_700_000_000.0


@pytest.fixture
def database() -> str:
    return shared_server().new_database()


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    store = open_store(shared_server().url(database), busy_timeout=5.0)
    yield store
    store.close()


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """One that the test may stop."""
    server = PostgresServer({"max_connections": "5", "superuser_reserved_connections": "0"})
    yield server
    server.remove()


def wish() -> NewLease:
    return NewLease(id=new_id(), template="a", fingerprint="f", owner="o", ttl=60.0)


def make_warm(store: Store) -> str:
    pooled_id = new_id()
    limit = CreateLimit(capacity=10**6, concurrency=10**6)
    assert store.begin_create(pooled_id, "a", "f", limit=limit, owner="o", now=NOW)
    assert store.record_created(pooled_id, task_id=1, now=NOW)
    assert store.finish_create(pooled_id, prepared=False, now=NOW)
    return pooled_id


# --- Order and values -----------------------------------------------------------------------------


def test_names_are_ordered_by_their_bytes() -> None:
    """Whatever the language of the database is."""
    server = shared_server()
    server.sql("CREATE DATABASE english TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
    assert server.sql("SELECT 'a' < 'B'", database="english") == "t", "as people sort them"
    store = open_store(server.url("english"))
    store.open_sinks(["b", "B", "a", "Z", "ä"])
    assert list(store.sinks()) == ["B", "Z", "a", "b", "ä"]
    store.close()


def test_a_key_with_a_nul(store: Store) -> None:
    """No key that a caller may choose has one; nothing else is found in its place."""
    with pytest.raises(StoreError, match="NUL"):
        store.request_by_key("a\0b")
    assert store.request_by_key("a") is None


def test_claims_where_transactions_are_serializable_by_default(database: str) -> None:
    """They do not fail for being so: a transaction that writes says what it is itself."""
    server = shared_server()
    server.sql(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    stores = [open_store(server.url(database)) for _ in range(4)]
    warm = {make_warm(stores[0]) for _ in range(40)}

    def claim(store: Store) -> list[str | None]:
        store.levels()
        return [store.open_lease(wish(), now=NOW).lease.pooled_id for _ in range(10)]

    with ThreadPoolExecutor(4) as threads:
        taken = [each for found in threads.map(claim, stores) for each in found]
    assert len(taken) == len(warm) and set(taken) == warm
    for store in stores:
        store.close()


# --- Connections ---------------------------------------------------------------------------------


def end_connections(database: str) -> None:
    """End them, and return when they have ended."""
    ending = "pg_terminate_backend(pid, 10000)"
    shared_server().sql(f"SELECT {ending} FROM pg_stat_activity WHERE datname = '{database}'")


def test_connections_that_the_server_closed_while_they_were_idle(
    store: Store, database: str
) -> None:
    pooled_id = make_warm(store)
    end_connections(database)
    assert store.warm_of("a", "f") == 1
    end_connections(database)
    assert store.open_lease(wish(), now=NOW).lease.pooled_id == pooled_id


def test_a_connection_that_is_lost_in_a_transaction(store: Store, database: str) -> None:
    """Nothing of it happened, and the error says so; the next call has another connection."""

    def pause_two() -> None:
        with store.connections.writing() as db:
            db.changed("INSERT INTO pauses (template, since) VALUES ('a', 1)")
            end_connections(database)
            db.changed("INSERT INTO pauses (template, since) VALUES ('b', 1)")

    with pytest.raises(StoreError, match="connection was lost"):
        pause_two()
    assert store.paused() == {}
    store.pause("a", now=NOW)
    assert set(store.paused()) == {"a"}


def test_a_server_that_is_started_again(own_server: PostgresServer) -> None:
    """A kill loses nothing that was promised, and calls wait for the server to be back."""
    url = own_server.url(own_server.new_database())
    store = open_store(url, busy_timeout=30.0)
    warm = {make_warm(store) for _ in range(4)}
    taken = {store.open_lease(wish(), now=NOW).lease.pooled_id}
    own_server.stop("immediate")
    with ThreadPoolExecutor(2) as threads:
        reading = threads.submit(store.warm_of, "a", "f")
        writing = threads.submit(store.open_lease, wish(), now=NOW)
        own_server.start()
        assert reading.result() >= 2
        taken.add(writing.result().lease.pooled_id)
    own_server.stop()
    own_server.start()
    taken |= {store.open_lease(wish(), now=NOW).lease.pooled_id for _ in range(2)}
    assert taken == warm
    store.close()


def test_a_server_that_stays_away(own_server: PostgresServer) -> None:
    url = own_server.url(own_server.new_database(), password="s3cret")
    store = open_store(url, busy_timeout=0.3)
    own_server.stop()
    for call in (
        store.levels,
        lambda: store.pause("a", now=NOW),
        lambda: open_store(url, busy_timeout=0.3),
    ):
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            call()
        assert "s3cret" not in str(caught.value)
    store.close()


def test_more_connections_than_the_server_allows(own_server: PostgresServer) -> None:
    url = own_server.url(own_server.new_database())
    open_store(url).close()
    others: list[psycopg.Connection] = []
    with suppress(psycopg.OperationalError):
        while True:
            others.append(psycopg.connect(url))
    with pytest.raises(StoreError, match="max_connections"):
        open_store(url, busy_timeout=0.3)
    with ThreadPoolExecutor(1) as thread:
        patient = thread.submit(open_store, url, busy_timeout=30.0)
        for other in others:
            other.close()
        store = patient.result()
    assert store.levels() == {}
    store.close()


def test_a_closed_store(store: Store) -> None:
    store.close()
    with pytest.raises(PoolClosed):
        store.levels()
    with pytest.raises(PoolClosed):
        store.pause("a", now=NOW)


def test_a_forked_process_has_connections_of_its_own(store: Store) -> None:
    taken = {make_warm(store), make_warm(store), make_warm(store)}
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        pooled_id = store.open_lease(wish(), now=NOW).lease.pooled_id
        os.write(writing, str(pooled_id).encode())
        os._exit(0)
    os.waitpid(child, 0)
    by_child = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    mine = {store.open_lease(wish(), now=NOW).lease.pooled_id for _ in range(2)}
    assert mine | {by_child} == taken


# --- Refusals ------------------------------------------------------------------------------------


def test_a_transaction_that_does_not_end(store: Store, database: str) -> None:
    impatient = open_store(shared_server().url(database), busy_timeout=0.1)
    with store.connections.writing() as db:
        db.rows("SELECT 1")
        with pytest.raises(StoreError, match=r"stayed locked by another process for 0\.1 s"):
            impatient.pause("a", now=NOW)
        assert impatient.paused() == {}, "reading does not wait"
    impatient.pause("a", now=NOW)
    impatient.close()


def test_a_transaction_that_does_nothing_is_ended(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is stopped, or its machine gone, and others wait for it."""
    monkeypatch.setattr("pool.store.postgresql._MAX_PAUSE", 0.1)
    stopped, other = (open_store(shared_server().url(database)) for _ in range(2))

    def stop() -> None:
        with stopped.connections.writing() as db:
            db.changed("INSERT INTO pauses (template, since) VALUES ('left', 1)")
            other.pause("a", now=NOW)

    with pytest.raises(StoreError, match="lost"):
        stop()
    assert set(other.paused()) == {"a"}
    stopped.pause("b", now=NOW)
    for store in (stopped, other):
        store.close()


def test_a_statement_that_takes_too_long(store: Store, database: str) -> None:
    url = shared_server().url(database, options="-c statement_timeout=50")
    impatient = open_store(url, busy_timeout=30.0)
    with store.connections.writing() as db:
        db.rows("SELECT 1")
        with pytest.raises(StoreError, match="statement_timeout"):
            impatient.pause("a", now=NOW)
    impatient.pause("a", now=NOW)
    impatient.close()


def test_a_database_that_is_read_only(store: Store, database: str) -> None:
    server = shared_server()
    server.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    with pytest.raises(StoreError, match="is read-only"):
        open_store(server.url(database), busy_timeout=0.2)
    looking = open_store(server.url(database, target_session_attrs="any"), busy_timeout=0.2)
    assert looking.levels() == {}
    with pytest.raises(StoreError, match="is read-only"):
        looking.check_writable()
    looking.close()


def test_a_database_that_is_not_there() -> None:
    with pytest.raises(StoreError, match='database "nowhere" does not exist'):
        open_store(shared_server().url("nowhere"), busy_timeout=0.2)


def test_a_database_that_holds_something_else(database: str) -> None:
    shared_server().sql("CREATE TABLE leases (id int)", database=database)
    with pytest.raises(StoreError, match="use a database of its own"):
        open_store(shared_server().url(database))
    assert (
        shared_server().sql(
            "SELECT count(*) FROM pg_tables WHERE tablename = 'tasks'", database=database
        )
        == "0"
    ), "nothing is left of the try"


def test_commits_are_durable_where_the_server_is_careless(database: str) -> None:
    server = shared_server()
    server.sql(f"ALTER DATABASE {database} SET synchronous_commit = off")
    store = open_store(server.url(database))
    with store.connections.writing() as db:
        assert db.rows("SELECT current_setting('synchronous_commit')") == [("on",)]
    store.close()


def test_states_are_the_models(store: Store) -> None:
    with pytest.raises(StoreError, match="contradicts"), store.connections.writing() as db:
        db.changed("UPDATE tasks SET state = 'lost' WHERE TRUE") or db.changed(
            """
            INSERT INTO tasks (id, template, fingerprint, state, name, cold, owner, created_at,
                               changed_at)
            VALUES ('x', 'a', 'f', 'lost', '', :cold, 'o', 1, 1)
            """,
            cold=False,
        )
    assert store.tasks(states=list(TaskState)) == []


# --- Addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:s3cret@db.example:6432/pool", "postgresql://db.example:6432/pool"),
        ("postgresql://db/pool?password=s3cret&user=me", "postgresql://db/pool"),
        ("postgresql:///pool?host=/run/pg&passfile=s3cret", "postgresql:///pool?host=/run/pg"),
        ("postgresql://?service=pool", "postgresql://?service=pool"),
    ],
)
def test_credentials_are_not_shown(url: str, shown: str) -> None:
    assert shown_store_url(url) == shown


def test_an_address_that_cannot_be_read() -> None:
    with pytest.raises(StoreError, match="cannot be read") as caught:
        open_store("postgresql://me:s3cret@db/pool?nonsense=1")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError) as refused:
        open_store("mysql://me:s3cret@db/pool")
    assert "s3cret" not in str(refused.value)


def test_the_oldest_of_many_warm_tasks_is_found_without_a_sort(store: Store) -> None:
    """Those of a carrier become warm in one moment: to sort them by what is not in the index took
    milliseconds for each hand-out."""
    with store.connections.reading() as db:
        db.rows("SELECT set_config('enable_seqscan', 'off', true)")
        plan = db.rows(
            """
            EXPLAIN SELECT seq FROM tasks
            WHERE state = 'warm' AND template = 'a' AND fingerprint = 'f'
            ORDER BY warm_at, seq LIMIT 1
            """
        )
    words = " ".join(line for (line,) in plan)
    assert "tasks_warm" in words and "Sort" not in words, words


def test_stores_of_two_urls_are_two(store: Store) -> None:
    other = open_store(fresh_url())
    make_warm(store)
    assert other.levels() == {} and other.pool_id != store.pool_id
    other.close()


def test_a_commit_whose_answer_is_lost_is_in_doubt(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = PostgresConnection.commit

    def lost(db: PostgresConnection) -> None:
        commit(db)
        db.conn.close()
        raise psycopg.OperationalError("the connection was lost")

    with monkeypatch.context() as patched:
        patched.setattr(PostgresConnection, "commit", lost)
        with pytest.raises(StoreError) as raised:
            store.renew_owner("o", until=9.0, daemon=True)
    assert raised.value.in_doubt
    assert [daemon.owner for daemon in store.daemons(now=1.0)] == ["o"]


def test_a_server_notices_soon_that_a_machine_is_cut_off() -> None:
    host = Host("database")
    server = PostgresServer(address="127.0.0.1", within=host.within)
    try:
        with host.entered():
            url = server.url(server.new_database(), host="127.0.0.1")
            with closing(open_store(url)) as store, store.connections.reading() as db:
                names = ("keepalives_idle", "keepalives_interval", "keepalives_count")
                found = [db.rows(f"SHOW tcp_{name}")[0][0] for name in (*names, "user_timeout")]
    finally:
        server.remove()
        host.remove()
    assert found == ["2", "1", "3", "5000"]
