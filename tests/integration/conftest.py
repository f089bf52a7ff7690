"""Fixtures of several integration tests: a project with a webhook, and a daemon that hears it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import urllib3
from support.api import Api, Serving, in_thread, serving, settings_for
from support.clock import ManualClock
from support.daemons import maintains
from support.hooked import HOOK, SCOPE, Counted, Imports, install, new_project, state
from support.scripted import ScriptedCvat
from support.simulated import client_of
from support.stepped import Start, Stepped, Way
from support.waiting import wait_until

from pool import TaskPool
from pool.config.loader import load
from pool.config.settings import ImportSettings, PoolSettings, Settings, Template
from pool.cvat import CvatClient, connect
from pool.daemon import Daemon
from pool.process import Process
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.status import WebhookState
from pool.store import Store
from pool.tracking.webhook_receiver import WebhookReceiver
from pool.tracking.webhook_setup import WebhookReport, WebhookSetup

# --- With the simulator -------------------------------------------------------------------------


@pytest.fixture
def project(simulator: SimulatorServer) -> int:
    return new_project(simulator)


@pytest.fixture
def hooked_config(config_path: Path, project: int) -> Path:
    """One template with a project, and one that no webhook can tell of."""
    text = config_path.read_text()
    config_path.write_text(
        text + f"\n[templates.hooked]\nproject = {project}\n"
        'pool = { min_size = 2, max_wait = "5s" }\nimport = { timeout = "20s" }\n'
    )
    return config_path


@pytest.fixture
def caller(hooked_config: Path, log_in: None) -> Iterator[Counted]:
    calls: Counter[str] = Counter()
    settings = load(hooked_config)
    cvat = connect(settings.cvat, on_call=lambda operation, *_: calls.update([operation]))
    with TaskPool(settings, cvat=cvat) as pool:
        yield Counted(pool, calls)
    cvat.close()


@pytest.fixture
def hooked_daemon(hooked_config: Path, log_in: None) -> Iterator[Daemon]:
    with in_thread(Daemon(load(hooked_config))) as daemon:
        yield daemon


@pytest.fixture
def setup(caller: Counted) -> WebhookSetup:
    pool = caller.pool
    return WebhookSetup(pool.store, pool.process.cvat(), pool.settings, clock=pool.clock)


@pytest.fixture
def hooks(
    setup: WebhookSetup, hooked_daemon: Daemon, caller: Counted, simulator: SimulatorServer
) -> Iterator[WebhookReport]:
    report = install(setup, hooked_daemon)
    assert (report.delivery, report.reachable) == ("delivered", True)
    wait_until(hooked_daemon.process.store, lambda: state(caller) is WebhookState.ALIVE)
    yield report
    list(setup.remove())


# --- With a simulator of a module's own -----------------------------------------------------------


@pytest.fixture(scope="module")
def module_server() -> Iterator[SimulatorServer]:
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
        yield server


@pytest.fixture
def server(module_server: SimulatorServer) -> Iterator[SimulatorServer]:
    """One that may be given faults, which it has no more after the test."""
    module_server.stats.reset()
    yield module_server
    module_server.faults.clear()
    module_server.release_imports()
    module_server.wait_idle()


@pytest.fixture
def client(server: SimulatorServer) -> Iterator[CvatClient]:
    with client_of(server) as client:
        yield client


@pytest.fixture
def http(server: SimulatorServer) -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(
        headers={"Authorization": f"Bearer {server.access_token}"}, retries=False
    ) as pool:
        yield pool


# --- With a scripted server ---------------------------------------------------------------------


@pytest.fixture
def deliveries(engine: Process, template: Template) -> WebhookReceiver:
    engine.store.keep_webhook(SCOPE, hook_id=HOOK, target_url="u", now=engine.clock.now())
    return WebhookReceiver(
        engine.store,
        engine.tracker,
        engine.settings.templates,
        lambda task_id, job_id: f"/tasks/{task_id}/jobs/{job_id}",
        clock=engine.clock,
    )


@pytest.fixture
def imports(engine: Process, template: Template) -> Imports:
    return Imports(engine, template)


@pytest.fixture
def hearing(store: Store, clock: ManualClock) -> None:
    """Somebody is there to hear."""
    maintains(store, until=clock.now() + 10_000, now=clock.now())


# --- Over HTTP ----------------------------------------------------------------------------------

#: Each tells in its own way what an empty pool comes to.
SCENES = Template(
    name="scenes",
    labels=({"name": "car"},),
    pool=PoolSettings(min_size=2, max_size=10, max_wait=0.05, on_empty="create"),
    importing=ImportSettings(timeout=20.0),
)
PATIENT = Template(
    name="patient",
    pool=PoolSettings(min_size=1, max_size=10, max_wait=20.0, on_empty="wait"),
)
STRICT = Template(name="strict", pool=PoolSettings(min_size=1, max_size=2, on_empty="fail"))


@pytest.fixture
def served(simulator: SimulatorServer, store_url: str) -> Iterator[Serving]:
    """The API with nothing warm yet, and nothing that fills but the test."""
    settings = settings_for(
        simulator.url, store_url, SCENES, PATIENT, STRICT, receive_timeout=5.0, max_files=5
    )
    with serving(settings, simulator.access_token) as served:
        yield served


@pytest.fixture
def api(served: Serving) -> Api:
    return served.api


@pytest.fixture(scope="module")
def refusing(
    simulator: SimulatorServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """A daemon for calls that come to nothing, so that all tests of a module can share it. Not all
    of a run: its threads would be there while other tests look at threads, or at chances."""
    store_url = f"sqlite:///{tmp_path_factory.mktemp('refusing') / 'pool.db'}"
    settings = settings_for(
        simulator.url, store_url, SCENES, STRICT, receive_timeout=5.0, max_files=5
    )
    with serving(settings, simulator.access_token) as served:
        yield served
        assert served.process.store.leases() == []
        assert served.spooled() == []


# --- A daemon whose services run when the test says so -------------------------------------------


@pytest.fixture
def start(
    settings: Settings, store: Store, cvat: ScriptedCvat, clock: ManualClock
) -> Iterator[Start]:
    started: list[Stepped] = []

    def begin(
        *templates: Template, workers: int = 1, way: Way | None = None, **daemon: Any
    ) -> Stepped:
        chosen = replace(settings, daemon=replace(settings.daemon, **daemon))
        if templates:
            chosen = replace(chosen, templates={each.name: each for each in templates})
        started.append(Stepped(chosen, store, way or cvat, clock, workers=workers))
        return started[-1]

    yield begin
    for daemon in started:
        daemon.stop()


@pytest.fixture
def empty(start: Start) -> Stepped:
    """A daemon that serves requests one by one, with nothing warm yet."""
    return start()


@pytest.fixture
def daemon(empty: Stepped, cvat: ScriptedCvat) -> Stepped:
    """With a full pool."""
    empty.fill()
    cvat.calls.clear()
    return empty
