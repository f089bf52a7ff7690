"""What is promised whatever happens, as checks of a :class:`world.World`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from faults.world import OWN, World
from pool.model import (
    IMPORT_TRANSITIONS,
    LEASE_TRANSITIONS,
    REQUEST_TRANSITIONS,
    TASK_TRANSITIONS,
    Hidden,
    ImportState,
    LeaseState,
    PooledTask,
    RequestState,
    TaskState,
    pool_mark,
)
from pool.store.checking import check_store

U, L, R, T = ImportState, LeaseState, RequestState, TaskState

#: Creates that the templates allow at once.
CONCURRENCY = 2

#: Which incidents explain that a request failed, by the code that its caller is told. Any of
#: them explains a call that was not answered; the others are as exact as their codes.
OF_CALLS = {
    "cut", "error", "hang", "latency", "down", "restart", "revoke", "restrict", "quota",
}  # fmt: skip
OF_PROCESSES = {"kill", "interrupt", "store", "stop", "freeze", "our clock"}
OF_IMPORTS = {
    "failed-import", "dead-worker", "hung-import", "slow-import", "lose queues", "restart",
}  # fmt: skip
OF_PEOPLE = {"delete", "fill", "rename", "move", "own upload"}
EXPLAINED_BY = {
    "import-failed": OF_IMPORTS | OF_CALLS | OF_PROCESSES | {"forget"},
    "import-timed-out": OF_IMPORTS | OF_CALLS | OF_PROCESSES | {"forget"},
    "task-gone": {"delete"},
    "owner-gone": OF_PROCESSES,
    "pool-empty": OF_CALLS | OF_PROCESSES | {"configure", "pause", "drain"},
    "cvat-not-found": {"delete", "error"},
    "cvat-rejected": OF_PEOPLE,
    "failed": OF_PROCESSES,
    "unknown-template": {"configure"},
}
#: Where nothing tells any more that a caller has uploaded something by itself.
FORGOTTEN = {"lose queues", "restart", "forget", "forgotten-request", "dead-worker"}
OF_ANY_CALL = OF_CALLS | OF_PROCESSES


class Promises:
    """Keeps what was seen before, since some promises are about what changes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._audited = 0
        self._holders: defaultdict[str, list[str]] = defaultdict(list)
        self._seen: set[int] = set()
        self._vanished: set[int] = set()

    # --- After every step -----------------------------------------------------------------------

    def check(self) -> None:
        """What holds always."""
        world = self._world
        rows = {task.id: task for task in world.ours.store.tasks(states=tuple(T))}
        self._note_own_uploads()
        self._every_move_was_legal()
        self._nothing_was_handed_out_twice()
        self._tasks_are_there(rows)
        self._what_is_gone_was_ours_to_delete(rows)
        self._warm_tasks_are_untouched(rows)
        self._requests_have_their_data(rows)
        self._only_what_is_not_wanted_is_hidden()
        self._a_key_has_one_answer()
        self._nobody_else_is_touched()

    def _note_own_uploads(self) -> None:
        """Data that a caller uploaded by itself, maybe long after that was sent: after its lease
        it is what people do."""
        world = self._world
        for task in world.server.simulator.state.tasks.values():
            names = task.data.client_files if task.data and task.is_initialized else ()
            if task.id not in world.own and any(name.startswith(OWN) for name in names):
                world.changed.setdefault(task.id, world.step)

    def _every_move_was_legal(self) -> None:
        columns = "seq, kind, id, was, becomes, lease, capacity, creating, waiting"
        found = self._world.rows(
            f"SELECT {columns} FROM audit WHERE seq > :seen ORDER BY seq", seen=self._audited
        )
        for seq, kind, row, was, becomes, lease, capacity, creating, waiting in found:
            self._audited = seq
            match kind:
                case "task":
                    assert T(becomes) in TASK_TRANSITIONS[T(was)], f"{row}: {was} to {becomes}"
                    if becomes == T.LEASED:
                        self._holders[row].append(lease)
                case "lease":
                    assert L(becomes) in LEASE_TRANSITIONS[L(was)], f"{row}: {was} to {becomes}"
                case "request":
                    assert R(becomes) in REQUEST_TRANSITIONS[R(was)], f"{row}: {was} to {becomes}"
                case "import":
                    assert U(becomes) in IMPORT_TRANSITIONS[U(was)], f"{row}: {was} to {becomes}"
                case "create":
                    most = max(variant.max_size for variant in self._world.variants)
                    assert capacity <= most + waiting, f"{capacity} tasks of at most {most}"
                    assert creating <= CONCURRENCY, f"{creating} creates at once"

    def _nothing_was_handed_out_twice(self) -> None:
        for pooled_id, leases in self._holders.items():
            for lease_id in leases[:-1]:
                record = self._world.ours.store.lease(lease_id)
                if record is not None:
                    assert record.state in (L.RELEASED, L.EXPIRED), (
                        f"{pooled_id} was handed out twice: {leases}, {record}"
                    )
            self._holders[pooled_id] = leases[-1:]

    def _tasks_are_there(self, rows: dict[str, PooledTask]) -> None:
        """Tasks that are warm or somebody's exist, unless people deleted them."""
        tasks = self._world.server.simulator.state.tasks
        known: dict[int, str] = {}
        for row in rows.values():
            if row.task_id is None or row.state in (T.FAILED, T.RETIRED, T.DELETING, T.DELETED):
                continue
            assert row.task_id not in known, f"{row.task_id} has two rows"
            known[row.task_id] = row.id
            there = row.task_id in tasks or row.task_id in self._world.deleted
            assert there, f"{row} is not on the server"

    def _what_is_gone_was_ours_to_delete(self, rows: dict[str, PooledTask]) -> None:
        world = self._world
        there = set(world.server.simulator.state.tasks)
        by_task = {row.task_id: row for row in rows.values()}
        for task_id in self._seen - there - world.deleted - self._vanished:
            row = by_task.get(task_id)
            served = row is not None and self._had_a_request(row.lease_id)
            # In the same step they may have come between our look and the deletion.
            early = world.changed.get(task_id, world.step) < world.step
            assert served or not early, f"{task_id} was somebody's and was deleted: {row}"
        self._vanished |= self._seen - there
        self._seen |= there

    def _had_a_request(self, lease_id: str | None) -> bool:
        query = "SELECT 1 FROM leases WHERE id = :id AND request_id IS NOT NULL"
        return bool(self._world.rows(query, id=lease_id))

    def _warm_tasks_are_untouched(self, rows: dict[str, PooledTask]) -> None:
        for row in rows.values():
            task = self._world.server.simulator.state.tasks.get(row.task_id or 0)
            if row.state is not T.WARM or task is None or task.data is None:
                continue
            ours = [name for name in task.data.client_files if name[0].isdigit()]
            assert not ours, f"{row} is warm and has {ours}"
            if not self._world.incidents.keys() & FORGOTTEN:
                theirs = task.is_initialized and task.id in self._world.in_time
                assert not theirs, f"{row} is warm and has its caller's data"

    def _requests_have_their_data(self, rows: dict[str, PooledTask]) -> None:
        world = self._world
        state = world.server.simulator.state
        given: defaultdict[int, list[int]] = defaultdict(list)
        for request in world.requests():
            if request.state is R.FAILED:
                causes = EXPLAINED_BY.get(request.error_code, OF_ANY_CALL)
                assert causes & set(world.incidents), f"{request} failed without a cause"
            task = state.tasks.get(request.task_id or 0)
            if request.state is not R.READY or task is None:
                continue
            jobs = world.ours.store.jobs_of(request.pooled_id, request_id=request.id)
            given[task.id] += [job.id for job in jobs]
            frames = [frame.name for frame in task.data.frames] if task.data else []
            names = [name for job in jobs for name in frames[job.start_frame : job.stop_frame + 1]]
            if task.id not in world.changed.keys() | world.own:
                assert names == list(request.files), f"{request} has the data of {names}"
        for task_id, ids in given.items():
            there = state.tasks[task_id].job_ids
            assert sorted(ids) == there, f"of the jobs {there} of {task_id}, {ids} are given"

    def _only_what_is_not_wanted_is_hidden(self) -> None:
        world = self._world
        for request in world.requests():
            task = world.server.simulator.state.tasks.get(request.task_id or 0)
            if request.state is not R.READY or task is None or task.data is None:
                continue
            jobs = world.ours.store.jobs_of(request.pooled_id, request_id=request.id)
            own = {n for job in jobs for n in range(job.start_frame, job.stop_frame + 1)}
            deleted = own & set(task.data.deleted_frames)
            if request.hidden is Hidden.DONE:
                assert deleted == own, f"{request} is shown"
            elif request.hidden is None and not request.warnings:
                assert not deleted, f"{request} is hidden"

    def _a_key_has_one_answer(self) -> None:
        world = self._world
        answers: defaultdict[str, set[str]] = defaultdict(set)
        for said in world.submitted:
            if said.key is not None and said.request is not None:
                answers[said.key].add(said.request.id)
        for held in world.held:
            if held.key is not None:
                answers[f"lease {held.key}"].add(held.lease.id)
        for key, ids in answers.items():
            assert len(ids) == 1, f"{key} was answered with {ids}"
        served: defaultdict[str, list[str]] = defaultdict(list)
        for request in world.requests():
            if request.state not in (R.FAILED, R.CANCELLED):
                served[request.given[0]].append(request.id)
        for file, requests in served.items():
            assert len(requests) == 1, f"{file} is served by {requests}"

    def _nobody_else_is_touched(self) -> None:
        world = self._world
        for task_id, before in world.looks.items():
            assert world.look_of(task_id) == before, f"{world.others[task_id]} was touched"
        tasks = world.server.simulator.state.tasks
        for row in world.theirs.store.tasks(states=(T.WARM,)):
            task = tasks.get(row.task_id or 0)
            assert task is not None and task.name == row.name, f"{row} of another pool was touched"

    # --- When all is calm -----------------------------------------------------------------------

    def unrest(self) -> str:
        """What has not come to its end yet, in one line; "" when everything has."""
        store = self._world.ours.store
        for request in self._world.requests():
            if not request.state.finished or request.hidden is Hidden.PENDING:
                return f"request {request}"
        for task in store.tasks(states=tuple(T)):
            if task.state not in (T.WARM, T.READY, T.DELETED):
                return f"task {task}"
        for lease in store.leases((L.WAITING, L.ACTIVE), limit=10_000):
            return f"lease {lease}"
        daemon = self._world.maintainer
        assert daemon is not None and daemon.daemon is not None
        levels = {row.name: row for row in daemon.daemon.observation.status().templates}
        for template in daemon.process.templates.values():
            wanted = levels[template.name].target
            warm = store.warm_of(template.name, template.fingerprint)
            if warm < min(wanted, template.pool.min_size):
                return f"{template.name} has {warm} of {wanted}; {store.holds()}"
        return ""

    def check_at_rest(self) -> None:
        """What holds once nothing is broken any more and all had their time."""
        world = self._world
        self.check()
        assert (unrest := self.unrest()) == "", unrest
        assert check_store(world.ours.store.connections).problems == ()
        rows = {task.task_id: task for task in world.ours.store.tasks(states=tuple(T))}
        for task in world.server.simulator.state.tasks.values():
            if pool_mark(world.ours.store.pool_id) not in task.name:
                continue
            if task.id in world.changed.keys() | world.moved | world.own:
                continue
            row: Any = rows.get(task.id)
            orphan = row is None or row.state is T.DELETED
            assert not orphan, f"task {task.id} {task.name!r} is left behind: {row}"
        for said in world.submitted:
            if said.request is not None:
                record = world.ours.store.request(said.request.id)
                assert record is not None and record.state.finished, f"lost: {said}"
        for row in rows.values():
            if row.state is T.WARM:
                assert row.task_id in world.server.simulator.state.tasks, f"{row} has no task"
        left = world.spooled()
        assert not left, f"{left} are left in the spool"
