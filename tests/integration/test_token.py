"""The access token stops working while a pool is in use, and works again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.services import fill, open_lease, refill_of
from support.simulated import IMAGE, client_of

from pool import TaskPool
from pool.config.settings import Settings
from pool.config.source import build_upload
from pool.cvat import CvatClient
from pool.errors import CvatRefusedCredentials
from pool.maintenance.deletion import Deletion
from pool.maintenance.lease_expiry import LeaseExpiry
from pool.maintenance.reconcile import Reconcile
from pool.maintenance.refill import Refill
from pool.model import Handout, Outcome, RequestRecord, RequestState, TaskState
from pool.requests.breaker import REFUSED_BASE, REFUSED_CAP
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.status import TemplateStatus
from pool.store import NewRequest, Store


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    """A server of its own, since its tokens are everybody's."""
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        yield server


@pytest.fixture
def client(server: SimulatorServer) -> Iterator[CvatClient]:
    with client_of(server) as client:
        yield client


@pytest.fixture
def caller(
    settings: Settings,
    server: SimulatorServer,
    client: CvatClient,
    store: Store,
    clock: ManualClock,
) -> Iterator[TaskPool]:
    cvat = replace(settings.cvat, url=server.url)
    here = {name: replace(each, server=cvat) for name, each in settings.templates.items()}
    # Not entered: the test runs each step itself.
    opened = TaskPool(
        replace(settings, cvat=cvat, templates=here),
        store=store,
        cvat=client,
        clock=clock,
        rng=random.Random(1),
    )
    yield opened
    opened.close()


@pytest.fixture
def refill(caller: TaskPool) -> Refill:
    refill = refill_of(caller.process)
    assert fill(refill) == 3
    return refill


def look(caller: TaskPool) -> TemplateStatus:
    return caller.status().templates[0]


def send(caller: TaskPool, name: str = "r") -> RequestRecord:
    engine = caller.process
    template = engine.templates["scenes"]
    upload = build_upload([("a.jpg", IMAGE)])
    wish = NewRequest(id=name, files=("a.jpg",), size=upload.size)
    opened = open_lease(engine, template, request=wish)
    assert opened.task is not None and opened.request is not None
    handout = Handout(lease=opened.lease, task=opened.task, request=opened.request)
    return engine.runner.run(template, handout, upload)


def state_of(caller: TaskPool, name: str = "r") -> RequestState:
    return caller.read_request(name).state


@pytest.mark.parametrize("how", ["revoke_tokens", "restrict_tokens"])
def test_the_template_holds_with_the_reason_and_recovers_by_itself(
    caller: TaskPool, refill: Refill, server: SimulatorServer, clock: ManualClock, how: str
) -> None:
    getattr(server.actions, how)()
    assert open_lease(caller.process, caller.process.templates["scenes"]).lease.outcome is (
        Outcome.HIT
    ), "what is warm is handed out"
    fill(refill)
    status = look(caller)
    assert status.held_since is not None and status.held_until is not None
    said = {"revoke_tokens": "refused the credentials", "restrict_tokens": "does not allow this"}
    assert said[how] in status.hold_reason
    assert server.access_token not in status.hold_reason
    assert caller.status().hold_reason == "", "CVAT as a whole is well"
    server.stats.reset()
    for _ in range(50):
        fill(refill)
        clock.advance(1.0)
    assert not server.stats.calls, "nothing hammers"
    server.actions.restore_tokens()
    clock.advance(REFUSED_BASE + 1.0)
    fill(refill)
    status = look(caller)
    assert (status.warm, status.hold_reason, status.held_since) == (3, "", None)


def test_it_is_tried_again_at_least_every_quarter_of_an_hour(
    caller: TaskPool, refill: Refill, server: SimulatorServer, clock: ManualClock
) -> None:
    open_lease(caller.process, caller.process.templates["scenes"])
    server.actions.revoke_tokens()
    for _ in range(24 * 60):
        fill(refill)
        clock.advance(60.0)
    server.actions.restore_tokens()
    clock.advance(REFUSED_CAP)
    fill(refill)
    assert look(caller).warm == 3


def test_somebody_who_has_put_it_right_need_not_wait(
    caller: TaskPool, refill: Refill, server: SimulatorServer
) -> None:
    open_lease(caller.process, caller.process.templates["scenes"])
    server.actions.revoke_tokens()
    fill(refill)
    server.actions.restore_tokens()
    assert fill(refill) == 0
    caller.resume("scenes")
    assert fill(refill) == 1


def test_an_upload_is_refused_and_costs_no_task(
    caller: TaskPool, refill: Refill, server: SimulatorServer
) -> None:
    server.actions.revoke_tokens()
    with pytest.raises(CvatRefusedCredentials):
        send(caller)
    assert state_of(caller) is RequestState.FAILED
    assert look(caller).warm == 3
    server.actions.restore_tokens()
    assert send(caller, "again").state is RequestState.IMPORTING


def test_an_import_under_way_is_followed_once_the_token_works_again(
    caller: TaskPool, refill: Refill, server: SimulatorServer, clock: ManualClock
) -> None:
    tracker = caller.process.tracker
    send(caller)
    server.wait_idle()
    server.actions.revoke_tokens()
    for _ in range(6):
        clock.advance(tracker.seconds_until_due() or 0.0)
        tracker.run_once()
    assert state_of(caller) is RequestState.IMPORTING
    server.actions.restore_tokens()
    while (wait := tracker.seconds_until_due()) is not None:
        clock.advance(wait)
        tracker.run_once()
    assert state_of(caller) is RequestState.READY


def test_nothing_is_concluded_from_a_refusal(
    caller: TaskPool, refill: Refill, server: SimulatorServer, clock: ManualClock
) -> None:
    """Tasks that cannot be seen are not gone, and a lease is not ended unseen."""
    engine = caller.process
    lease = open_lease(engine, engine.templates["scenes"], ttl=10.0).lease
    retired = engine.store.tasks(states=[TaskState.WARM])[0]
    engine.store.retire(retired.id, reason="for the test", now=clock.now())
    clock.advance(4000.0)
    server.actions.revoke_tokens()
    reconcile = Reconcile(
        engine.store,
        engine.cvat(),
        engine.templates,
        http_timeout=10.0,
        verify_every=600.0,
        clock=clock,
    )
    expiry = LeaseExpiry(engine.store, engine.cvat(), clock=clock)
    deletion = Deletion(engine.store, engine.cvat(), owner=engine.owner, clock=clock)
    assert reconcile.run_once().error
    assert expiry.run_once() == 0
    assert deletion.run_once().deleted == 0
    states = {task.state for task in engine.store.tasks()}
    assert states == {TaskState.WARM, TaskState.LEASED, TaskState.DELETING}
    server.actions.restore_tokens()
    clock.advance(100.0)
    assert reconcile.run_once().verified == 1
    assert expiry.run_once() == 1
    assert deletion.run_once().deleted == 1
    ended = engine.store.lease(lease.id)
    assert ended is not None and ended.state.value == "expired"
