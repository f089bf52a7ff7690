"""What is asked often must cost the same however many rows are finished.

Not measured, but read from SQLite's plans: every query that these calls make goes by a row's
id, or by an index that has no finished rows in it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pool.model import (
    FinalKind,
    FinalStep,
    Job,
    LeaseState,
    PooledTask,
    Priority,
    RequestState,
    RequestWarning,
    Scope,
    TaskState,
    new_id,
)
from pool.store import CreateLimit, NewLease, NewMember, NewRequest, Store
from pool.store.sqlite import SqliteConnection, SqliteConnections

#: Indexes by an id or key that one row has, whose cost is that of one row.
UNIQUE = {
    "sqlite_autoindex_tasks_1",
    "sqlite_autoindex_leases_1",
    "sqlite_autoindex_requests_1",
    "sqlite_autoindex_imports_1",
    "sqlite_autoindex_imports_2",
    "tasks_lease",
    "tasks_on_server",
    "leases_key",
    "requests_key",
}
#: Indexes by a row that has few others, by what refers to it.
FEW = {
    "sqlite_autoindex_final_steps_1",
    "sqlite_autoindex_import_members_1",
    "leases_of_task",
    "imports_of_task",
    "requests_of_import",
    "requests_of_lease",
    "tasks_of_carrier",
    "tasks_of_term",
}
#: Indexes of finished rows that are read from the oldest on, as far as they are pruned.
BY_AGE = {"tasks_finished", "leases_ended", "imports_ended", "requests_finished"}
#: Indexes that hold rows in some states only.
PARTIAL = {
    "tasks_warm",
    "tasks_live",
    "tasks_doomed",
    "leases_waiting",
    "leases_in_line",
    "leases_expiring",
    "requests_open",
    "imports_under_way",
    "requests_spooled",
    "requests_taken",
    "requests_of_stream",
    "final_steps_due",
}
LOOK = re.compile(
    r"(?:SCAN|SEARCH) (tasks|leases|imports|import_members|requests|final_steps)\b(?: USING (.*))?"
)

STEP = FinalStep(
    kind=FinalKind.NAME,
    task=PooledTask(
        id="x", template="a", fingerprint="f", state=TaskState.READY, name="n", created_at=1.0,
        changed_at=1.0,
    ),
    request=None, tries=0, since=1.0, due_at=1.0,
)  # fmt: skip
MEMBER = NewMember(request_id="x")
LIMIT = CreateLimit(capacity=9, concurrency=9)
CALLS: dict[str, Callable[[Store], object]] = {
    "levels": lambda store: store.levels(),
    "warm_of": lambda store: store.warm_of("a", "f"),
    "older_warm_of": lambda store: store.older_warm_of("a", "f", reusable_origin="o"),
    "capacity_of": lambda store: store.capacity_of("a", "f"),
    "in_flight": lambda store: store.in_flight(),
    "waiting": lambda store: store.waiting("a"),
    "unfinished": lambda store: store.unfinished(["r"]),
    "requests_at_end": lambda store: store.requests_at_end(["r"]),
    "leases_at_end": lambda store: store.leases_at_end(["l"]),
    "tasks": lambda store: store.tasks(),
    "tasks_creating": lambda store: store.tasks(states=[TaskState.CREATING]),
    "expired_leases": lambda store: store.expired_leases(now=1.0),
    "watched_leases": lambda store: store.watched_leases(),
    "import_record": lambda store: store.import_record("x"),
    "begin_import": lambda store: store.begin_import("x", deadline=1.0, now=1.0),
    "expect_frames": lambda store: store.expect_frames("x", ("a.jpg",)),
    "requeue_import": lambda store: store.requeue_import("x", reason="", now=1.0),
    "fail_request": lambda store: store.fail_request("x", code="c", message="m", now=1.0),
    "due_steps": lambda store: store.due_steps(now=1.0, limit=9),
    "steps_of": lambda store: store.steps_of("x"),
    "end_step": lambda store: store.end_step(STEP, name="n", now=1.0),
    "postpone_step": lambda store: store.postpone_step(STEP, tries=1, left=None, due_at=1.0),
    "warn": lambda store: store.warn("x", RequestWarning(code="c", text="t"), now=1.0),
    "adopt_requests": lambda store: store.adopt_requests("o", now=1.0),
    "unserved": lambda store: store.unserved(spools=[""], owner="o", now=1.0, each=9),
    "grouped_imports": lambda store: store.grouped_imports(),
    "members_of": lambda store: store.members_of("x"),
    "split_import": lambda store: store.split_import("x", [["a"], ["b"]], reason="", now=1.0),
    "made_by_others": lambda store: store.made_by_others(owner="o", now=1.0),
    "wait_for_more": lambda store: store.wait_for_more("a"),
    "take_to_make": lambda store: store.take_spooled("x", owner="o", made_by_others=0, now=1.0),
    "take_spooled": lambda store: store.take_spooled("x", owner="o", now=1.0),
    "claim_queued": lambda store: store.claim_queued(
        [NewMember(request_id="x")], "f", owner="o", now=1.0
    ),
    "queue_request": lambda store: store.queue_request("x", expected_lease_id="y", most=9, now=1.0),
    "queued": lambda store: store.queued(),
    "queued_by_priority": lambda store: store.queued_by_priority(),
    "divide_jobs": lambda store: store.divide_jobs("x", ["ann", "bob"], by_load=True),
    "divided_jobs": lambda store: store.divided_jobs(STEP),
    "queue_length": lambda store: store.queue_length(),
    "renew_owner": lambda store: store.renew_owner("o", until=9.0, spools={"s": "t"}, now=1.0),
    "begin_create": lambda store: store.begin_create(
        new_id(), "a", "f", limit=LIMIT, owner="o", now=1.0
    ),
    "begin_delete": lambda store: store.begin_delete(owner="o", limit=3, retry_after=1, now=1.0),
    "retire_others": lambda store: store.retire_other_fingerprints("a", "f", reason="", now=1.0),
    "inherit_lease": lambda store: store.inherit_lease("x", owner="o", now=1.0),
    "move_times": lambda store: (
        store.begin_term("o", seconds=8.0, clock=lambda: 1.0),
        store.move_times(1.0, since=1.0, grace=1.0, term=1, owner="o", now=1.0),
    ),
    "others_renewed": lambda store: store.others_renewed("o", after=1.0),
    "retire_older": lambda store: store.retire_older(
        "a", "f", reusable_origin="o", keep=1, reason="", now=1.0
    ),
    "drain": lambda store: store.drain("a", reason="", now=1.0),
    "retire_excess": lambda store: store.retire_excess("a", keep=9, reason="", now=1.0),
    "hand_outs": lambda store: store.hand_outs(),
    "disown": lambda store: store.disown("x", reason="", now=1.0),
    "adopt_task": lambda store: store.adopt_task("x", task_id=1, prepared=True, now=1.0),
    "quarantine_warm": lambda store: store.quarantine_warm(until=1.0),
    "clear_quarantine": lambda store: store.clear_quarantine(["x"], now=1.0),
    "prune": lambda store: store.prune(before=1.0, limit=9),
    "task_on_server": lambda store: store.task_on_server(1),
    "streams": lambda store: store.streams(),
    "carriers_missing": lambda store: store.carriers_missing("a", "f", now=1.0),
    "stream": lambda store: store.stream("a", "n"),
    "retire_of_closed_streams": lambda store: store.retire_of_closed_streams(reason="", now=1.0),
    "ended_requests": lambda store: store.ended_requests(since=1.0, limit=9),
    "oldest_waiting": lambda store: store.oldest_waiting(),
    "open_leases": lambda store: store.open_leases(template="a", cursor="7"),
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(SqliteConnections(tmp_path / "pool.db", busy_timeout=5.0))
    yield store
    store.close()


def plans(store: Store, call: Callable[[Store], object]) -> dict[str, list[str]]:
    """The plan of every query that a call makes."""
    asked: list[tuple[str, Any]] = []
    with store.connections.reading() as db:
        assert isinstance(db, SqliteConnection)
        connection = db
        # Plans also show how broken references would be looked for; none are ever broken here.
    with connection.tracer(lambda sql, parameters: asked.append((sql, parameters))):
        call(store)
    connection.execute("PRAGMA foreign_keys = OFF")
    return {
        sql: [row[3] for row in connection.conn.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
        for sql, parameters in asked
        if parameters is not None
    }


def check(store: Store, call: Callable[[Store], object]) -> None:
    seen = plans(store, call)
    assert seen or call is CALLS["hand_outs"]
    for sql, plan in seen.items():
        for step in plan:
            if (met := LOOK.search(step)) is None:
                continue
            how = met[2] or "nothing"
            index = re.search(r"INDEX (\w+)", how)
            cheap = (
                index is not None and index[1] in PARTIAL
                if step.startswith("SCAN")
                else "INTEGER PRIMARY KEY" in how
                or (index is not None and index[1] in PARTIAL | UNIQUE | FEW | BY_AGE)
            )
            assert cheap, f"{step!r} in\n{sql}"


@pytest.mark.parametrize("name", CALLS)
def test_no_call_reads_finished_rows(store: Store, name: str) -> None:
    check(store, CALLS[name])


def test_the_way_of_a_request_reads_no_finished_rows(store: Store) -> None:
    def serve(store: Store, *, key: str, with_request: bool) -> None:
        wanted = NewLease(
            id=new_id(),
            template="a",
            fingerprint="f",
            owner="o",
            ttl=9.0,
            reusable_origin="o",
            idempotency_key=key,
        )
        request = NewRequest(id=new_id()) if with_request else None
        store.open_lease(wanted, request=request, now=1.0)
        store.open_lease(wanted, request=request, now=1.0)
        pooled_id = new_id()
        store.begin_create(pooled_id, "a", "f", limit=LIMIT, owner="o", now=1.0)
        store.record_created(pooled_id, task_id=1, now=1.0)
        store.finish_create(pooled_id, prepared=True, now=1.0)
        handout = store.claim_warm(wanted.id, "f", reusable_origin="o", now=1.0)
        assert handout
        if handout.request:
            assert store.begin_import(handout.request.import_id or "", deadline=9.0, now=1.0)
        job = Job(id=1, url="u", start_frame=0, stop_frame=0)
        assert store.complete_import(pooled_id, [job], now=1.0)
        for step in store.steps_of(pooled_id):
            assert store.end_step(step, name="n", now=1.0)

    check(store, lambda store: serve(store, key="k", with_request=True))
    check(store, lambda store: serve(store, key="k", with_request=False))


def test_the_way_of_a_spooled_request_reads_no_finished_rows(store: Store) -> None:
    def serve(store: Store) -> None:
        wanted = NewLease(id=new_id(), template="a", fingerprint="f", owner="o", ttl=9.0)
        request = NewRequest(id=new_id(), spooled=True)
        store.open_lease(wanted, request=request, places=1, most_queued=9, now=1.0)
        pooled_id = new_id()
        store.begin_create(pooled_id, "a", "f", limit=LIMIT, owner="o", now=1.0)
        store.record_created(pooled_id, task_id=1, now=1.0)
        store.finish_create(pooled_id, prepared=True, now=1.0)
        members = [NewMember(request_id=request.id)]
        assert store.claim_queued(members, "f", places=1, owner="o", now=1.0)
        assert store.queue_request(request.id, expected_lease_id=wanted.id, most=9, now=1.0)
        taken = store.take_spooled(request.id, owner="o", now=1.0)
        assert taken
        handout = store.claim_warm(taken.lease_id, "f", now=1.0)
        assert handout and handout.request
        assert store.take_spooled(request.id, owner="o", now=1.0)
        assert store.requeue_import(handout.request.import_id or "", reason="", now=1.0)
        assert len(store.unserved(spools=[""], owner="o", now=1.0, each=9)) == 1
        assert store.cancel_request(request.id, now=1.0)

    check(store, serve)


def test_the_way_of_a_stream_reads_no_finished_rows(store: Store) -> None:
    def use(store: Store) -> None:
        store.begin_create("c", "a", "f", slots=2, limit=LIMIT, owner="o", now=1.0)
        store.record_created("c", task_id=1, now=1.0)
        store.begin_carrier("c", {}, now=1.0)
        jobs = [Job(id=number, url="u", start_frame=number, stop_frame=number) for number in (0, 1)]
        store.finish_carrier("c", jobs, now=1.0)
        stream = store.use_stream("a", "n", "f", now=1.0)
        assert stream and store.use_stream("a", "n", "f", now=1.0)
        assert len(store.streams()) == 1
        assert store.use_stream("a", "n", "changed", now=1.0) is None
        assert store.close_stream(stream.id, reason="", now=1.0)

    check(store, use)


def test_a_queue_is_read_from_its_head(store: Store) -> None:
    """However many wait: nothing is counted, and no more is sorted than is answered."""
    for level, tenant in itertools.product(Priority, ("", "robot")):
        wanted = NewLease(id=new_id(), template="a", fingerprint="f", owner="o", ttl=9.0)
        request = NewRequest(id=new_id(), spooled=True, priority=level, tenant=tenant)
        store.open_lease(wanted, request=request, claim=False, most_queued=9, now=1.0)
    seen = plans(store, CALLS["unserved"])
    (steps,) = (plan for sql, plan in seen.items() if "AS queue0" in sql)
    index = "INDEX requests_spooled (template=? AND priority=? AND tenant=? AND spool=?)"
    heads = [step for step in steps if index in step]
    assert len(heads) == 2 * len(Priority)
    assert not any("TEMP B-TREE" in step for step in steps), steps
    for call in ("queued", "queue_length", "queue_request"):
        for sql, plan in plans(store, CALLS[call]).items():
            assert not any("requests_spooled" in step for step in plan), sql


def test_the_hand_out_takes_the_oldest_without_sorting(store: Store) -> None:
    wanted = NewLease(id=new_id(), template="a", fingerprint="f", owner="o", ttl=9.0)
    steps = [
        step
        for sql, plan in plans(store, lambda store: store.open_lease(wanted, now=1.0)).items()
        if "ORDER BY warm_at" in sql
        for step in plan
    ]
    assert any("INDEX tasks_warm (template=? AND fingerprint=?)" in step for step in steps)
    assert not any("TEMP B-TREE" in step for step in steps)


def test_the_hand_out_asks_once_and_for_an_older_task_only_where_one_will_do(
    store: Store,
) -> None:
    def claims(wanted: NewLease) -> list[str]:
        seen = plans(store, lambda store: store.open_lease(wanted, now=1.0))
        return [sql for sql in seen if "ORDER BY warm_at" in sql]

    def warm() -> None:
        pooled_id = new_id()
        store.begin_create(pooled_id, "a", "f", limit=LIMIT, owner="o", now=1.0)
        store.record_created(pooled_id, task_id=1, now=1.0)
        store.finish_create(pooled_id, prepared=True, now=1.0)

    strict = NewLease(id=new_id(), template="a", fingerprint="f", owner="o", ttl=9.0)
    lenient = replace(strict, id=new_id(), reusable_origin="o")
    assert len(claims(strict)) == 1
    assert len(claims(lenient)) == 2
    warm()
    assert len(claims(replace(lenient, id=new_id()))) == 1


def test_no_reference_is_deferred(store: Store) -> None:
    """A deferred one is settled by reading all rows of the other table, plan or no plan."""
    with store.connections.reading() as db:
        assert isinstance(db, SqliteConnection)
        assert "DEFER" not in db.schema.upper()


def test_events_are_read_from_their_place_on(store: Store) -> None:
    for call in (
        lambda store: store.events_after(5, limit=9),
        lambda store: store.events_after(5, limit=9, kinds=["task.warm"]),
        lambda store: store.event_at(5),
        lambda store: store.request_events("x"),
        lambda store: store.last_event_id(),
    ):
        for steps in plans(store, call).values():
            assert any("SEARCH events" in step for step in steps), steps
            assert not any("SCAN events" in step or "TEMP B-TREE" in step for step in steps), steps


def test_the_latest_imports_are_read_from_their_end(store: Store) -> None:
    """However many have ended before."""
    for steps in plans(store, lambda store: store.group_sizes(since=1.0, limit=9)).values():
        assert any("imports_ended" in step for step in steps)
        assert not any("TEMP B-TREE" in step for step in steps)


def test_a_page_of_leases_is_not_sorted(store: Store) -> None:
    for steps in plans(store, lambda store: store.leases([LeaseState.USED])).values():
        assert steps == ["SEARCH leases USING INDEX leases_by_state (state=?)"]


@pytest.mark.parametrize("cursor", [None, "7"])
@pytest.mark.parametrize("template", [None, "a"])
@pytest.mark.parametrize("state", [None, RequestState.READY])
def test_a_page_of_requests_is_not_sorted(
    store: Store, state: RequestState | None, template: str | None, cursor: str | None
) -> None:
    (steps,) = plans(
        store,
        lambda store: store.requests([state] if state else [], template=template, cursor=cursor),
    ).values()
    assert not any("TEMP B-TREE" in step for step in steps), steps
    assert "SEARCH requests USING INTEGER PRIMARY KEY (rowid=?)" in steps
    (step,) = (step for step in steps if "requests USING" in step and "(rowid=?)" not in step)
    if state or template:
        assert re.match(r"SEARCH requests USING COVERING INDEX requests_by_\w+ \(", step)
        # All that is asked for is found in the index, and no row is read in vain.
        assert [name for name in ("state=?", "template=?", "seq") if name in step] == [
            *(["state=?"] if state else []),
            *(["template=?"] if template else []),
            "seq",
        ]
    else:
        assert "INTEGER PRIMARY KEY (rowid" in step
    if cursor:
        assert re.search(r"(seq|rowid)<\?", step)


@pytest.mark.parametrize("state", [None, RequestState.READY])
def test_a_page_of_what_a_caller_sees_is_not_sorted(
    store: Store, state: RequestState | None
) -> None:
    states = [state] if state else []
    for scope in (Scope(tenant="a"), Scope(tenant="a", templates=frozenset("bc"))):
        (steps,) = plans(store, lambda store: store.requests(states, scope=scope)).values()  # noqa: B023
        assert not any("TEMP B-TREE" in step for step in steps), steps
        index = "requests_by_tenant_and_state" if state else "requests_by_tenant"
        assert any(f"INDEX {index} (tenant=?" in step for step in steps), steps
    bound = Scope(templates=frozenset("bc"))
    (steps,) = plans(store, lambda store: store.requests(states, scope=bound)).values()
    assert not any("TEMP B-TREE" in step for step in steps), steps
    index = "requests_by_both" if state else "requests_by_template"
    assert sum(f"COVERING INDEX {index} (" in step for step in steps) == 2, steps


@pytest.mark.parametrize("states", [[], [RequestState.READY, RequestState.FAILED]])
def test_a_search_sorts_nothing_and_reads_no_more_rows_than_a_page_of_it(
    store: Store, states: list[RequestState]
) -> None:
    last, page = plans(store, lambda store: store.requests(states, text="x")).values()
    for steps in (last, page):
        assert not any("TEMP B-TREE" in step for step in steps), steps
    if states:
        assert sum("COVERING INDEX requests_by_state (state=?" in step for step in last) == 2, last


def test_a_page_since_then_begins_in_the_index_of_times(store: Store) -> None:
    first, page = plans(store, lambda store: store.requests(since=5.0)).values()
    assert any("COVERING INDEX requests_by_time (created_at>?)" in step for step in first), first
    assert any("INTEGER PRIMARY KEY (rowid>?)" in step for step in page), page
