"""Names and assignees after the job ids: what fails is tried again, ends, and is told of."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.happening import serve
from support.pools import serving, write_config
from support.scripted import ScriptedCvat
from support.stepped import CONTENT, Start
from support.waiting import PATIENCE

from pool import RequestWarning, TaskPool
from pool.errors import CvatBusy, CvatError, CvatForbidden, CvatRejected, CvatUnreachable
from pool.maintenance.finalize import (
    FIRST_PAUSE,
    LONGEST,
    MOST_JOBS,
    MOST_REFUSALS,
    MOST_REFUSED,
    MOST_TRIES,
)
from pool.model import Hold, Job
from pool.requests.breaker import SERVER
from pool.simulator import SimulatorServer, SimulatorSettings, Timings, UserSettings
from pool.store import FINAL_GRACE, open_store

FILES = [("a.jpg", CONTENT)]
FORBIDDEN = CvatForbidden("HTTP 403 Forbidden: no", http_status=403)
BROKEN = CvatBusy("HTTP 500 Internal Server Error", http_status=500)
BUSY = CvatBusy("HTTP 503 Service Unavailable", http_status=503)
AWAY = CvatUnreachable("connection refused")
REJECTED = CvatRejected("HTTP 400 Bad Request: name", http_status=400)


class World:
    """A daemon on a scripted CVAT that refuses what the test says."""

    def __init__(self, start: Start, cvat: ScriptedCvat) -> None:
        self.start, self.cvat = start, cvat
        self.refusals: dict[tuple[str, int], CvatError] = {}
        for operation in ("rename_task", "assign_job"):
            setattr(cvat, operation, self._call(operation))
        self.done: list[tuple[str, int, Any]] = []
        self.tried = 0
        self.daemon = start()
        self.store, self.clock = self.daemon.store, self.daemon.clock

    def _call(self, operation: str) -> Callable[[int, Any], None]:
        def call(number: int, value: Any) -> None:
            self.tried += 1
            if (error := self.refusals.get((operation, number))) is not None:
                raise error
            self.done.append((operation, number, value))

        return call

    def restart(self) -> None:
        """The daemon as a new process, that knows what the store knows."""
        self.daemon.stop()
        self.daemon = self.start()

    @property
    def pool(self) -> TaskPool:
        return self.daemon.pool

    def ready(self, *, name: str = "night ride", assignee: int | None = 7, jobs: int = 1) -> str:
        """A request whose jobs another process found, which died before it could do the rest."""
        if not self.pool.status().templates[0].warm:
            self.daemon.fill()
        request = self.pool.submit("scenes", FILES, name=name, assignee=assignee)
        task_id, pooled_id = request.task_id or 0, self.daemon.read(request.id).pooled_id
        made = [
            Job(id=task_id * 1000 + number, url="u", start_frame=number, stop_frame=number)
            for number in range(jobs)
        ]
        assert self.store.complete_import(pooled_id or "", made, now=self.clock.now())
        return request.id

    def round(self, after: float = FINAL_GRACE) -> None:
        """What the daemon does now and then, some seconds later."""
        self.daemon.advance(after)
        self.daemon.run("finalize")

    def task(self, request_id: str) -> int:
        return self.pool.request(request_id).task_id or 0

    def job(self, request_id: str, number: int = 0) -> int:
        return self.task(request_id) * 1000 + number

    def refuse(self, request_id: str, operation: str, error: CvatError, job: int = 0) -> None:
        number = self.task(request_id) if operation == "rename_task" else self.job(request_id, job)
        self.refusals[operation, number] = error

    def codes(self, request_id: str) -> list[str]:
        return [each.code for each in self.pool.request(request_id).warnings]

    def settled(self) -> bool:
        return not self.store.due_steps(now=float("inf"), limit=1)


@pytest.fixture
def world(start: Start, cvat: ScriptedCvat) -> World:
    return World(start, cvat)


def test_the_name_and_the_assignments_come_after_the_job_ids(world: World) -> None:
    request = world.ready(jobs=2)
    world.round(after=0.0)
    assert world.done == [], "the process that served it has its time first"
    world.round()
    done = [
        ("rename_task", world.task(request), "night ride"),
        *(("assign_job", world.job(request, number), 7) for number in range(2)),
    ]
    assert world.done == done
    world.round()
    assert world.done == done


def test_a_refused_name_does_not_keep_a_task_from_being_assigned(world: World) -> None:
    request = world.ready()
    world.refuse(request, "rename_task", REJECTED)
    world.round()
    assert world.done == [("assign_job", world.job(request), 7)]
    (warning,) = world.pool.request(request).warnings
    assert warning == RequestWarning(
        code="not-named",
        text='the task is not named "night ride": CVAT rejected the call: '
        "HTTP 400 Bad Request: name",
    )
    assert world.settled(), "a refused name will not do later"


@pytest.mark.parametrize(
    ("error", "tries"), [(FORBIDDEN, MOST_REFUSALS), (BROKEN, MOST_TRIES), (BUSY, MOST_TRIES)]
)
def test_an_assignment_that_fails_ends_after_some_tries_whatever_is_restarted(
    world: World, error: CvatError, tries: int
) -> None:
    poisoned = world.ready()
    world.refuse(poisoned, "assign_job", error)
    world.round()
    assert world.done == [("rename_task", world.task(poisoned), "night ride")]
    for tried in range(1, tries):
        assert world.codes(poisoned) == []
        world.restart()
        before = world.tried
        world.round(after=FIRST_PAUSE * 4.0 ** (tried - 1) - 1.0)
        assert world.tried == before, "too early"
        world.ready(assignee=None)  # by which CVAT is seen to be there
        world.round(after=FINAL_GRACE)
    assert world.codes(poisoned) == ["not-assigned"]
    assert (
        world.pool.request(poisoned)
        .warnings[0]
        .text.startswith("1 of 1 job(s) not assigned to user 7: ")
    )
    before = world.tried
    world.round(after=LONGEST)
    assert world.tried == before
    assert world.settled()


def test_those_that_fail_starve_nobody(world: World) -> None:
    poisoned = [world.ready() for _ in range(25)]
    for request in poisoned:
        world.refuse(request, "rename_task", BROKEN)
        world.refuse(request, "assign_job", FORBIDDEN)
    for after in (FINAL_GRACE, FIRST_PAUSE, FIRST_PAUSE * 4):
        healthy = world.ready()
        world.clock.advance(FINAL_GRACE)
        world.round(after=after)
        assert world.done == [
            ("rename_task", world.task(healthy), "night ride"),
            ("assign_job", world.job(healthy), 7),
        ]
        world.done.clear()
    assert all(world.codes(request) == ["not-assigned"] for request in poisoned)


def test_a_daemon_assigns_what_it_may_beside_what_it_may_not(tmp_path: Path, image: bytes) -> None:
    """Left by processes that died: an older crowd for somebody else, and one for oneself."""
    users = (UserSettings(username="ordinary"), UserSettings(username="boss", is_superuser=True))
    with SimulatorServer(SimulatorSettings(timings=Timings.zero(), users=users)) as server:
        config = write_config(tmp_path, server)
        ordinary, boss = sorted(server.state.users)
        with serving(config, server) as first, TaskPool(first.settings) as pool:
            requests = [pool.submit("scenes", [("a.jpg", image)]) for _ in range(2)]
            (refused,), (healthy,) = (request.jobs(timeout=PATIENCE) for request in requests)
        task_ids = [request.task_id or 0 for request in requests]
        store = open_store(first.settings.store.url)
        earlier = time.time() - 3600
        for number in range(25):
            serve(
                store,
                f"poisoned{number}",
                task_id=task_ids[0],
                job_id=refused.id,
                assignee=boss,
                now=earlier,
            )
        serve(
            store,
            "healthy",
            task_id=task_ids[1],
            job_id=healthy.id,
            assignee=ordinary,
            now=earlier + 1,
        )
        with serving(config, server):
            server.wait_for(lambda state: state.jobs[healthy.id].assignee is not None)
        assignee = server.state.jobs[healthy.id].assignee
        assert assignee is not None and assignee.id == ordinary
        assert server.state.jobs[refused.id].assignee is None
        store.close()


def test_one_refused_job_does_not_stop_the_others(world: World) -> None:
    request = world.ready(jobs=5)
    world.refuse(request, "assign_job", FORBIDDEN, job=1)
    world.round()
    assigned = [number for operation, number, _ in world.done if operation == "assign_job"]
    assert assigned == [world.job(request, number) for number in (0, 2, 3, 4)]
    del world.refusals["assign_job", world.job(request, 1)]
    world.done.clear()
    world.round(after=FIRST_PAUSE)
    assert world.done == [("assign_job", world.job(request, 1), 7)], "and none is assigned twice"
    assert (world.codes(request), world.settled()) == ([], True)


def test_many_jobs_are_assigned_in_several_rounds(world: World) -> None:
    request = world.ready(jobs=1000)
    refused = (1, 301, 601, 901)
    for number in refused:
        world.refuse(request, "assign_job", FORBIDDEN, job=number)
    for _ in range(1000 // MOST_JOBS):
        assert world.codes(request) == []
        world.round(after=FINAL_GRACE)
    assert len(world.done) == 1 + 1000 - len(refused)
    for _ in range(MOST_REFUSALS):
        world.round(after=FIRST_PAUSE * 16)
    assert world.codes(request) == ["not-assigned"]
    assert "4 of 1000 job(s)" in world.pool.request(request).warnings[0].text


def test_a_task_of_which_all_jobs_are_refused_costs_few_calls(world: World) -> None:
    request = world.ready(jobs=100)
    for number in range(100):
        world.refuse(request, "assign_job", FORBIDDEN, job=number)
    for _ in range(MOST_REFUSALS):
        world.round(after=FIRST_PAUSE * 16)
    assert world.codes(request) == ["not-assigned"]
    assert world.tried == 1 + MOST_REFUSALS * MOST_REFUSED


def test_no_failure_counts_while_the_server_is_held(world: World) -> None:
    request = world.ready()
    world.refuse(request, "rename_task", BROKEN)
    world.refuse(request, "assign_job", BROKEN)
    now = world.clock.now()
    hold = Hold(template=SERVER, code="cvat-busy", reason="500", since=now, retry_at=now + 1)
    world.store.hold(hold)
    for _ in range(2 * MOST_TRIES):
        world.round(after=FIRST_PAUSE * 4.0**MOST_TRIES / 10)
    assert world.codes(request) == []
    world.store.release_hold(SERVER, now=world.clock.now())
    world.refusals.clear()
    world.round(after=FIRST_PAUSE * 4.0)
    assert (len(world.done), world.settled()) == (2, True)


def test_an_administrator_is_not_asked_twice_for_a_user_whom_cvat_does_not_know(
    world: World, cvat: ScriptedCvat
) -> None:
    cvat.unknown_users = {7}
    request = world.ready(jobs=40)
    world.daemon.process.settle(PATIENCE)
    assert world.codes(request) == ["unknown-assignee"], "before its jobs are to be assigned"
    for number in range(40):
        world.refuse(request, "assign_job", BROKEN, job=number)
    world.round()
    assert world.tried == 2
    assert world.codes(request) == ["unknown-assignee", "not-assigned"]
    assert "40 of 40 job(s)" in world.pool.request(request).warnings[1].text
    assert world.settled()


def test_an_outage_ends_no_step(world: World) -> None:
    requests = [world.ready() for _ in range(4)]
    for request in requests:
        world.refuse(request, "rename_task", AWAY)
        world.refuse(request, "assign_job", AWAY)
    for _ in range(100):
        before = world.tried
        world.round()
        assert world.tried - before <= 3, "nor would the others get through"
    assert not any(world.codes(request) for request in requests)
    world.refusals.clear()
    for _ in range(2):
        world.round()
    assert (len(world.done), world.settled()) == (8, True)


def test_a_connection_that_breaks_for_one_task_only_ends_as_well(world: World) -> None:
    poisoned = world.ready()
    world.refuse(poisoned, "assign_job", AWAY)
    for _ in range(MOST_TRIES):
        world.ready()
        world.round(after=FIRST_PAUSE * 4.0**MOST_TRIES)
    assert world.codes(poisoned) == ["not-assigned"]


def test_no_step_outlasts_an_outage_without_an_end(world: World) -> None:
    request = world.ready()
    world.refuse(request, "rename_task", AWAY)
    world.refuse(request, "assign_job", AWAY)
    world.round()
    world.round(after=LONGEST)
    assert world.codes(request) == ["not-named", "not-assigned"]


def test_what_was_given_up_is_forgotten_with_its_request(world: World) -> None:
    request = world.ready()
    world.refuse(request, "rename_task", REJECTED)
    world.round()
    world.clock.advance(1000.0)
    while world.store.prune(before=world.clock.now(), limit=100):
        pass
    assert world.store.request(request) is None
