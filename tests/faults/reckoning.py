"""What must hold when a storm is over, and what was found wrong."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.pictures import colour, colour_of

from faults.actors import CORRUPT
from faults.bystander import SOON
from faults.weather import Weather
from pool.clock import SystemClock
from pool.config.settings import Settings
from pool.cvat import CvatClient
from pool.maintenance.deletion import Deletion, delete_all
from pool.maintenance.reconcile import Reconcile
from pool.maintenance.term import Term
from pool.model import (
    Frame,
    LeaseState,
    Placed,
    RequestRecord,
    RequestState,
    TaskState,
    pool_mark,
)
from pool.simulator import SimulatorServer
from pool.store import Store
from pool.store.checking import check_store

#: Seconds by which the server's clock is set forward for the one reconciliation, so that it takes
#: no task for too young.
LATER = 7200.0
#: What CVAT says of a picture whose pixels are not all there, alone in its task.
TRUNCATED = "image file is truncated"
#: By how much compression changes each value of a colour at the most.
COMPRESSION = 8


@dataclass
class Outcome:
    """What the storm did, and what was found wrong afterwards."""

    kills: Counter[str] = field(default_factory=Counter)
    weather: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    queued: int = 0
    unheard: int = 0
    #: Ready requests that share their tasks with others; imports of several, and those of them
    #: that failed and went on in parts.
    shared: int = 0
    groups: int = 0
    split: int = 0
    #: Requests whose frames were compared, by their colour; those in slots, and how many of them
    #: are hidden in the end, since old lists were written over and over.
    seen: int = 0
    slots: int = 0
    hidden: int = 0
    seconds: float = 0.0
    handed_out_twice: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    mixed_up: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    empty_rows: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    not_served: list[str] = field(default_factory=list)
    #: What was written where a share was not mounted.
    written: list[str] = field(default_factory=list)
    #: How many terms of maintenance there were, and calls to CVAT to delete a task; the seconds
    #: until another daemon maintained, after each failure of the one that did.
    terms: int = 0
    deletions: int = 0
    takeovers: list[float] = field(default_factory=list)
    #: Where two daemons maintained the store at the same time, or one without a term.
    maintained_by_two: list[str] = field(default_factory=list)

    def take(self, weather: Weather) -> None:
        """Note down what the bystander saw."""
        self.others = weather.others
        self.not_served = [
            *weather.not_served,
            *(f"after {took:.1f} s" for took in weather.others if took > SOON),
        ]

    @property
    def wrong(self) -> list[str]:
        """Everything that must be empty, in one list."""
        return [
            f"{kind}: {what}"
            for kind, found in (
                ("handed out twice", self.handed_out_twice),
                ("lost", self.lost),
                ("mixed up", self.mixed_up),
                ("orphan", self.orphans),
                ("row without a task", self.empty_rows),
                ("touched", self.touched),
                ("crashed", self.crashed),
                ("held up by another template", self.not_served),
                ("written into a mount point", self.written),
                ("maintained by two", self.maintained_by_two),
            )
            for what in found
        ]

    def summary(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "kills": {**self.kills, "all": self.kills.total()},
            "weather": dict(self.weather),
            "events": dict(self.events),
            "accepted requests": self.requests.total(),
            "how they ended": dict(self.requests),
            "accepted while CVAT was away": self.queued,
            "requests that nobody heard of, and ended too": self.unheard,
            "requests that share a task": self.shared,
            "imports of several requests": self.groups,
            "of these failed": self.split,
            "requests whose pictures were compared": self.seen,
            "requests in slots": self.slots,
            "of these hidden in the end": self.hidden,
            "files in a mount point": len(self.written),
            "errors told to callers": dict(self.errors),
            "tasks handed out twice": len(self.handed_out_twice),
            "accepted requests lost or without an end": len(self.lost),
            "requests with somebody else's data": len(self.mixed_up),
            "pool tasks on the server without a row": len(self.orphans),
            "warm rows without a task on the server": len(self.empty_rows),
            "tasks of others touched": len(self.touched),
            "processes that ended by themselves": len(self.crashed),
            "requests beside a poisoned template": len(self.others),
            "the longest of them, in seconds": round(max(self.others, default=0.0), 2),
            "held up by another template": len(self.not_served),
            "terms of maintenance": self.terms,
            "calls to delete a task": self.deletions,
            "seconds until another daemon maintained": [round(each, 1) for each in self.takeovers],
            "maintained by two": len(self.maintained_by_two),
        }


def is_corrupt(request: RequestRecord) -> bool:
    """Whether CVAT cannot import the file of a request."""
    return request.given[0].startswith(CORRUPT)


class Reckoning:
    """Compares what callers were told with the rows, and the rows with the server."""

    def __init__(
        self,
        outcome: Outcome,
        settings: Settings,
        store: Store,
        client: CvatClient,
        server: SimulatorServer,
        weather: Weather | None,
    ) -> None:
        self._outcome, self._settings = outcome, settings
        self._store, self._client = store, client
        self._server, self._weather = server, weather
        #: Jobs, and the requests that they were given to.
        self._given: defaultdict[int, list[str]] = defaultdict(list)

    def look(self, folder: Path, others: dict[int, Any]) -> None:
        """Look at everything, and note down what is wrong. ``others`` are somebody's tasks, as
        they were before."""
        diaries = [
            json.loads(line)
            for path in sorted(folder.glob("caller-*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        self._outcome.events.update(event["event"] for event in diaries)
        self._outcome.errors.update(event["code"] for event in diaries if event["event"] == "error")
        self._outcome.lost += check_store(self._store.connections).problems
        self._look_for_doubles(diaries)
        self._look_for_lost_requests(diaries)
        self._count_groups()
        self._reconcile_once()
        self._look_at_the_server()
        self._look_at_others(others)

    # --- What callers were told -------------------------------------------------------------------

    def _look_for_doubles(self, diaries: list[dict[str, Any]]) -> None:
        """Of the leases that callers heard of, no two have one task, unless it was given back.
        And so it is with all that there are in the store."""
        holders: dict[str, set[str]] = defaultdict(set)
        for event in diaries:
            if event["event"] == "leased":
                record = self._store.lease(event["lease"])
                assert record is not None
                if record.task_id != event["task"]:
                    self._outcome.mixed_up.append(f"lease {record} was of task {event['task']}")
                if record.state not in (LeaseState.RELEASED, LeaseState.EXPIRED):
                    holders[record.pooled_id or ""].add(event["lease"])
        for record in self._store.leases((LeaseState.ACTIVE, LeaseState.USED), limit=10**6):
            if record.pooled_id is not None:
                holders[record.pooled_id].add(record.id)
        for pooled_id, leases in holders.items():
            if len(leases) > 1:
                self._outcome.handed_out_twice.append(f"task {pooled_id}: {sorted(leases)}")

    def _look_for_lost_requests(self, diaries: list[dict[str, Any]]) -> None:
        """Every accepted request has come to an end; a ready one has the caller's own data, and
        one that failed had a reason to. A key has one answer, and its data is in one task."""
        outcome = self._outcome
        files = {event["key"]: event["file"] for event in diaries if event["event"] == "submit"}
        answers: dict[str, set[str]] = defaultdict(set)
        heard: set[str] = set()
        for event in diaries:
            if event["event"] == "ready":
                self._look_at_jobs(event["request"], event["jobs"])
            if event["event"] in ("accepted", "again") and event["key"] is not None:
                answers[event["key"]].add(event["request"])
            if event["event"] != "accepted":
                continue
            outcome.queued += event["queued"]
            heard.add(event["request"])
            request = self._store.request(event["request"])
            if request is None or not request.state.finished:
                outcome.lost.append(f"request {event['request']}: {request}")
                continue
            self._count_end(request)
            if request.state is RequestState.READY:
                self._look_at_data(request, files.get(event["key"]))
        for key, requests in answers.items():
            if len(requests) > 1:
                outcome.lost.append(f"{key} has {len(requests)} requests")
        self._look_at_all_requests(heard)

    def _count_end(self, request: RequestRecord) -> None:
        end = f"{request.state.value} {request.error_code}".strip()
        self._outcome.requests[end] += 1
        if request.state is RequestState.READY:
            return
        # CVAT names it where it is not the first of several.
        if is_corrupt(request) and any(
            words in request.error for words in (TRUNCATED, *request.files)
        ):
            return
        explained = self._weather is not None and self._weather.explains(request)
        if request.state is not RequestState.FAILED or not explained:
            self._outcome.lost.append(f"request {request.id} ended for no reason: {request}")

    def _look_at_all_requests(self, heard: set[str]) -> None:
        """Those too that no caller heard of, since it was killed before."""
        served: dict[tuple[str, ...], list[str]] = defaultdict(list)
        cursor: str | None = None
        while True:
            page = self._store.requests(limit=500, cursor=cursor)
            for request in page.requests:
                if not request.state.finished:
                    self._outcome.lost.append(f"request without an end: {request}")
                elif request.id not in heard:
                    self._outcome.unheard += 1
                if request.state is RequestState.READY:
                    served[request.files].append(request.id)
                    self._look_at_pictures(request)
            cursor = page.next_cursor
            if cursor is None:
                break
        for files, ids in served.items():
            if len(ids) > 1:
                self._outcome.mixed_up.append(f"{files} was imported for each of {ids}")

    def _look_at_jobs(self, request_id: str, told: list[int]) -> None:
        """The job that a caller was told of is still the request's, and there is no other."""
        request = self._store.request(request_id)
        assert request is not None
        jobs = [
            job.id for job in self._store.jobs_of(request.pooled_id or "", request_id=request_id)
        ]
        if jobs != told or len(told) != 1:
            self._outcome.mixed_up.append(f"request {request_id} was told {told}, and has {jobs}")

    def _look_at_data(self, request: RequestRecord, file: str | None) -> None:
        task = self._server.state.tasks.get(request.task_id or 0)
        if task is None or task.data is None:
            self._outcome.lost.append(f"request {request.id} is ready, and its task is gone")
            return
        frames = [frame.name for frame in task.data.frames]
        jobs = self._store.jobs_of(request.pooled_id or "", request_id=request.id)
        own = [name for job in jobs for name in frames[job.start_frame : job.stop_frame + 1]]
        is_slot = request.placed is Placed.SLOT
        given = list(request.given) if is_slot else own
        if own != list(request.files) or (file is not None and given != [file]):
            self._outcome.mixed_up.append(f"request {request.id} of {file}: {own}")
        for job in jobs:
            self._given[job.id].append(request.id)
            if len(self._given[job.id]) > 1:
                self._outcome.mixed_up.append(f"job {job.id} is given to {self._given[job.id]}")
        importing = self._store.import_record(request.import_id or "")
        if importing is not None and len(importing.members) > 1:
            self._outcome.shared += 1

    def _look_at_pictures(self, request: RequestRecord) -> None:
        """The frames of a ready request are its own, by their colour."""
        task_id = request.task_id or 0
        if task_id not in self._server.state.tasks:
            return
        self._outcome.seen += 1
        if request.placed is Placed.SLOT:
            self._look_at_slot(request)
        for frame in request.frames:
            if is_corrupt(request) or colour_of(self._frame(task_id, frame)) != colour(frame.file):
                self._outcome.mixed_up.append(f"{frame} of {request.id} shows another picture")

    def _frame(self, task_id: int, frame: Frame) -> bytes:
        assert frame.number is not None
        return self._client.frame(task_id, frame.number, "original")

    def _look_at_slot(self, request: RequestRecord) -> None:
        """A slot is shown, also as annotators see it."""
        self._outcome.slots += 1
        task_id, (frame,) = request.task_id or 0, request.frames
        assert frame.number is not None
        if request.shown_at is None:
            self._outcome.lost.append(f"request {request.id} was never shown: {request}")
        self._outcome.hidden += frame.number in self._client.hidden_frames(task_id)
        seen = colour_of(self._client.frame(task_id, frame.number, "compressed"))
        wanted = colour(frame.file)
        if max(abs(a - b) for a, b in zip(seen, wanted, strict=True)) > COMPRESSION:
            self._outcome.mixed_up.append(f"{frame} of {request.id} is compressed from another")

    def _count_groups(self) -> None:
        with self._store.connections.reading() as db:
            states = db.rows("""
                SELECT state FROM imports
                WHERE (SELECT COUNT(*) FROM import_members WHERE import_id = imports.id) > 1
            """)
        self._outcome.groups = len(states)
        self._outcome.split = sum(state == "failed" for (state,) in states)

    # --- Who maintained --------------------------------------------------------------------------

    def look_at_terms(self, deletions: Sequence[tuple[float, str, int]]) -> None:
        """No two terms have a moment in common, and who asked CVAT to delete a task had a term at
        that moment: that of the row, when it was asked last. ``deletions`` are these moments, the
        hosts that asked, and the ids of the tasks."""
        wrong = self._outcome.maintained_by_two
        with self._store.connections.reading() as db:
            terms = db.rows("SELECT term, owner, since, until FROM terms ORDER BY term")
            rows = dict(db.rows("SELECT task_id, term FROM tasks WHERE task_id IS NOT NULL"))
        self._outcome.terms, self._outcome.deletions = len(terms), len(deletions)
        for before, after in pairwise(terms):
            if after[2] < before[3]:
                wrong.append(f"term {after} began before {before} had ended")
        last: dict[int, int | None] = {}
        for at, host, task_id in deletions:
            last[task_id] = next(
                (
                    term
                    for term, owner, since, until in terms
                    if since <= at <= until and str(owner).partition(":")[0] == host
                ),
                None,
            )
            if last[task_id] is None:
                wrong.append(f"{host} deleted task {task_id} at {at} without a term")
        for task_id, term in last.items():
            if rows.get(task_id) != term:
                wrong.append(f"task {task_id} was deleted in {term}, by its row in {rows[task_id]}")

    # --- Rows and server ------------------------------------------------------------------------

    def _reconcile_once(self) -> None:
        """One reconciliation, at a time when nothing is too young to be judged."""
        clock = SystemClock()
        self._server.actions.jump_clock(LATER)
        term = Term.begin(self._store, "the reckoning", clock=clock)
        assert term is not None, "no daemon is left"
        reconcile = Reconcile(
            self._store,
            self._client,
            self._settings.templates,
            term,
            http_timeout=self._settings.cvat.timeout,
            verify_every=self._settings.daemon.verify_every,
            clock=clock,
        )
        reconcile.apply(reconcile.plan())
        delete_all(Deletion(self._store, self._client, term, owner="the reckoning", clock=clock))

    def _look_at_the_server(self) -> None:
        tasks = self._store.tasks(states=tuple(TaskState))
        # A slot is in the task of its carrier.
        rows = {task.task_id: task for task in tasks if task.carrier_id is None}
        theirs = self._weather.taken if self._weather else set()
        marked = {
            task.id: task for task in self._client.marked_tasks(pool_mark(self._store.pool_id))
        }
        for task in marked.values():
            row = rows.get(task.id)
            if (row is None or row.state is TaskState.DELETED) and task.id not in theirs:
                self._outcome.orphans.append(f"task {task.id}: {task.name}, {row}")
        for row in rows.values():
            if row.state is TaskState.WARM and row.task_id not in marked:
                self._outcome.empty_rows.append(str(row))

    def _look_at_others(self, others: dict[int, Any]) -> None:
        found = self._client.tasks(list(others))
        for task_id, info in found.items():
            if info != others[task_id]:
                self._outcome.touched.append(f"{others[task_id]} is now {info}")
        if missing := set(others) - set(found):
            self._outcome.touched.append(f"deleted: {missing}")
        # Nor is anything deleted that people had made their own.
        if self._weather is not None:
            gone = self._weather.taken - set(self._server.state.tasks) - self._weather.deleted
            self._outcome.touched += [f"task {task_id} was somebody's" for task_id in gone]
