"""The access token stops working while a pool is in use, and works again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from support.clock import ManualClock
from support.simulated import IMAGE, client_of
from support.stepped import IMPORTING, READY, Stepped

from pool import Outcome, Request
from pool.config.settings import Settings
from pool.errors import CvatRefusedCredentials
from pool.model import LeaseState, TaskState
from pool.requests.breaker import REFUSED_BASE, REFUSED_CAP
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.status import TemplateStatus
from pool.store import Store


@pytest.fixture
def server() -> Iterator[SimulatorServer]:
    """A server of its own, since its tokens are everybody's."""
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        yield server


@pytest.fixture
def daemon(
    settings: Settings, server: SimulatorServer, store: Store, clock: ManualClock
) -> Iterator[Stepped]:
    """With a full pool of three."""
    cvat = replace(settings.cvat, url=server.url)
    here = {name: replace(each, server=cvat) for name, each in settings.templates.items()}
    with client_of(server) as client:
        daemon = Stepped(replace(settings, cvat=cvat, templates=here), store, client, clock)
        assert daemon.fill() == 3
        yield daemon
        daemon.stop()


def look(daemon: Stepped) -> TemplateStatus:
    return daemon.pool.status().templates[0]


def send(daemon: Stepped) -> Request:
    return daemon.pool.submit("scenes", [("a.jpg", IMAGE)])


@pytest.mark.parametrize("how", ["revoke_tokens", "restrict_tokens"])
def test_the_template_holds_with_the_reason_and_recovers_by_itself(
    daemon: Stepped, server: SimulatorServer, how: str
) -> None:
    getattr(server.actions, how)()
    assert daemon.pool.acquire("scenes").outcome is Outcome.HIT, "what is warm is handed out"
    daemon.fill()
    status = look(daemon)
    assert status.held_since is not None and status.held_until is not None
    said = {"revoke_tokens": "refused the credentials", "restrict_tokens": "does not allow this"}
    assert said[how] in status.hold_reason
    assert server.access_token not in status.hold_reason
    assert daemon.pool.status().hold_reason == "", "CVAT as a whole is well"
    server.stats.reset()
    for _ in range(50):
        daemon.fill()
        daemon.clock.advance(1.0)
    assert not server.stats.calls, "nothing hammers"
    server.actions.restore_tokens()
    daemon.advance(REFUSED_BASE + 1.0)
    daemon.fill()
    status = look(daemon)
    assert (status.warm, status.hold_reason, status.held_since) == (3, "", None)


def test_it_is_tried_again_at_least_every_quarter_of_an_hour(
    daemon: Stepped, server: SimulatorServer
) -> None:
    daemon.pool.acquire("scenes")
    server.actions.revoke_tokens()
    for _ in range(24 * 4):
        daemon.fill()
        daemon.clock.advance(REFUSED_CAP)
    server.actions.restore_tokens()
    daemon.clock.advance(REFUSED_CAP)
    daemon.fill()
    assert look(daemon).warm == 3


def test_somebody_who_has_put_it_right_need_not_wait(
    daemon: Stepped, server: SimulatorServer
) -> None:
    daemon.pool.acquire("scenes")
    server.actions.revoke_tokens()
    daemon.fill()
    server.actions.restore_tokens()
    assert daemon.fill() == 0
    daemon.pool.resume("scenes")
    assert daemon.fill() == 1


def test_an_upload_is_refused_and_costs_no_task(daemon: Stepped, server: SimulatorServer) -> None:
    server.actions.revoke_tokens()
    with pytest.raises(CvatRefusedCredentials):
        send(daemon)
    (failed,) = daemon.store.requests().requests
    assert failed.state.value == "failed"
    assert look(daemon).warm == 3
    server.actions.restore_tokens()
    assert send(daemon).state is IMPORTING


def test_an_import_under_way_is_followed_once_the_token_works_again(
    daemon: Stepped, server: SimulatorServer
) -> None:
    request = send(daemon)
    server.wait_idle()
    server.actions.revoke_tokens()
    polls = iter(range(6))
    daemon.track(until=lambda: next(polls, None) is None)
    assert request.state is IMPORTING
    server.actions.restore_tokens()
    daemon.track()
    assert daemon.states(request.id) == {READY}


def test_nothing_is_concluded_from_a_refusal(daemon: Stepped, server: SimulatorServer) -> None:
    """Tasks that cannot be seen are not gone, and a lease is not ended unseen."""
    lease = daemon.pool.acquire("scenes", ttl=10.0)
    retired = daemon.store.tasks(states=[TaskState.WARM])[0]
    daemon.store.retire(retired.id, reason="for the test", now=daemon.clock.now())
    daemon.advance(4000.0)
    server.actions.revoke_tokens()
    daemon.run("reconcile")
    assert daemon.run("lease_expiry") == 0
    assert daemon.run("delete").deleted == 0
    states = {task.state for task in daemon.store.tasks()}
    assert states == {TaskState.WARM, TaskState.LEASED, TaskState.DELETING}
    server.actions.restore_tokens()
    daemon.advance(100.0)
    daemon.run("reconcile")
    assert daemon.run("lease_expiry") == 1
    assert daemon.run("delete").deleted == 1
    assert look(daemon).warm == 2
    ended = daemon.store.lease(lease.id)
    assert ended is not None and ended.state is LeaseState.EXPIRED
