from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import hypothesis
import pytest
from support.clock import ManualClock
from support.postgres import databases_dropped
from support.scripted import ScriptedCvat
from support.sqlite import made_store

from pool.bench.pictures import sample_image
from pool.config.settings import ImportSettings, PoolSettings, Settings, StoreSettings, Template
from pool.process import Process
from pool.simulator import OrganizationSettings, SimulatorServer, SimulatorSettings, Timings
from pool.store import Store, open_store
from pool.taskpool import TaskPool

# The same examples each time, however long one takes on a busy machine.
hypothesis.settings.load_profile("ci")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Tests say themselves what they log in with; the developer's own does not leak in."""
    if "real_cvat" in request.keywords:
        return
    for name in ("CVAT_ACCESS_TOKEN", "CVAT_USERNAME", "CVAT_PASSWORD", "POOL_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_databases() -> Iterator[None]:
    """Those of a test go with it; those of a module were made before."""
    with databases_dropped():
        yield


@pytest.fixture(autouse=True)
def same_logs() -> Iterator[None]:
    """A command that runs in this process leaves the logs as they are for other tests."""
    logger = logging.getLogger("pool")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def cvat() -> ScriptedCvat:
    return ScriptedCvat()


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    return made_store(tmp_path)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = open_store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def template() -> Template:
    return Template(
        name="scenes",
        labels=({"name": "car"},),
        pool=PoolSettings(min_size=3, max_size=10, max_wait=1.0),
        importing=ImportSettings(timeout=60.0),
    )


@pytest.fixture
def settings(template: Template, store_url: str) -> Settings:
    return Settings(store=StoreSettings(url=store_url), templates={template.name: template})


@pytest.fixture
def engine(
    settings: Settings, store: Store, cvat: ScriptedCvat, clock: ManualClock
) -> Iterator[Process]:
    """The parts of a process, not started: the test runs each step itself."""
    engine = Process(settings, store=store, cvat=cast(Any, cvat), clock=clock, rng=random.Random(1))
    yield engine
    engine.close()


# --- Against the simulator ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorServer]:
    """A simulated CVAT that takes no time; one for the whole run, so tests tell their own tasks
    by their names and ids."""
    share = tmp_path_factory.mktemp("share")
    (share / "cam1").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (share / "cam1" / name).write_bytes(sample_image(7, size=5_000))
    settings = SimulatorSettings(
        timings=Timings.zero(),
        share=share,
        organizations=(OrganizationSettings(slug="lab", owner="bot"),),
    )
    with SimulatorServer(settings) as server:
        yield server


@pytest.fixture(scope="session")
def image() -> bytes:
    return sample_image(1, size=5_000)


@pytest.fixture
def image_path(tmp_path: Path, image: bytes) -> Path:
    path = tmp_path / "frame.jpg"
    path.write_bytes(image)
    return path


@pytest.fixture
def config_path(tmp_path: Path, simulator: SimulatorServer) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(
        f'''[cvat]
url = "{simulator.url}"
timeout = "10s"

[daemon]
port = 0

[templates.scenes]
labels = [{{ name = "car" }}, {{ name = "person" }}]
pool = {{ min_size = 2, max_wait = "5s" }}
import = {{ timeout = "20s" }}
'''
    )
    return path


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch, simulator: SimulatorServer) -> None:
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", simulator.access_token)


@pytest.fixture
def pool(config_path: Path, log_in: None) -> Iterator[TaskPool]:
    # Not entered, so that no connection is opened ahead, and every call is one of the test's.
    opened = TaskPool.from_config(config_path)
    yield opened
    opened.close()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a long content by its parameter: an archive has its date inside, and all workers of a
    run have to give a test the same name."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None
