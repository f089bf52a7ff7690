"""The servers that the contract is checked against: the simulator and, if there is one, a CVAT.

A real server is used when ``CVAT_URL`` and ``CVAT_ACCESS_TOKEN`` are set; whatever is made
there bears the mark of the run and is deleted in the end. ``CVAT_READONLY_TOKEN``,
``CVAT_USERNAME`` with ``CVAT_PASSWORD``, and ``CVAT_SHARE`` (where the server's share is mounted
here) with ``CVAT_CLOUD_STORAGE`` (the id of one that it can reach) allow for the tests of what
they are for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pool.config.settings import CvatSettings
from pool.cvat import (
    AccessTokenCredentials,
    Credentials,
    CvatClient,
    ImportState,
    ImportStatus,
    PasswordCredentials,
)
from pool.model import Job, new_id

Found = TypeVar("Found")

USERNAME, PASSWORD = "bot", "a password of the contract tests"


@dataclass(frozen=True)
class Server:
    """A server under test, and what it takes to use it."""

    url: str
    access_token: str = field(repr=False)
    readonly_token: str | None = field(repr=False)
    password: PasswordCredentials | None
    #: What all names of this run begin with.
    mark: str
    #: The folder here that the server has as its share.
    share: Path | None = None
    #: A cloud storage that the server can reach.
    cloud_storage: int | None = None

    def client(self, credentials: Credentials | None = None, **settings: Any) -> CvatClient:
        return CvatClient(
            CvatSettings(url=self.url, **settings),
            credentials or AccessTokenCredentials(self.access_token),
        )


def simulated() -> Iterator[Server]:
    from pool.simulator import SimulatorServer, SimulatorSettings, Timings
    from pool.simulator.settings import CloudStorageSettings, UserSettings

    settings = SimulatorSettings(
        timings=Timings.zero(),
        users=(
            UserSettings(
                username=USERNAME, password=PASSWORD, is_superuser=True, groups=("admin",)
            ),
        ),
        readonly_token="a-read-only-token",
        cloud_storages=(CloudStorageSettings(display_name="any"),),
    )
    with SimulatorServer(settings) as server:
        yield Server(
            server.url,
            server.access_token,
            "a-read-only-token",
            PasswordCredentials(USERNAME, PASSWORD),
            f"contract {new_id()}",
            server.share,
            1,
        )


def real() -> Iterator[Server]:
    environ = os.environ
    if not (environ.get("CVAT_URL") and environ.get("CVAT_ACCESS_TOKEN")):
        pytest.skip("CVAT_URL and CVAT_ACCESS_TOKEN are not set")
    username, password = environ.get("CVAT_USERNAME"), environ.get("CVAT_PASSWORD")
    share, storage = environ.get("CVAT_SHARE"), environ.get("CVAT_CLOUD_STORAGE")
    server = Server(
        environ["CVAT_URL"],
        environ["CVAT_ACCESS_TOKEN"],
        environ.get("CVAT_READONLY_TOKEN"),
        PasswordCredentials(username, password) if username and password else None,
        f"contract {new_id()}",
        Path(share) if share else None,
        int(storage) if storage else None,
    )
    try:
        yield server
    finally:
        with server.client() as client:
            for task in client.marked_tasks(server.mark):
                client.delete_task(task.id)


@pytest.fixture(
    scope="session",
    params=["simulator", pytest.param("real", marks=pytest.mark.real_cvat)],
)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    yield from {"simulator": simulated, "real": real}[request.param]()


@pytest.fixture
def client(server: Server) -> Iterator[CvatClient]:
    with server.client() as client:
        yield client


@pytest.fixture
def connected(server: Server) -> Iterator[Callable[..., CvatClient]]:
    """Makes clients with other credentials or settings."""
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(server.client(*args, **settings))


@dataclass
class Maker:
    """Makes tasks that are deleted after the test."""

    server: Server
    client: CvatClient
    made: list[int]

    def __call__(self, suffix: str = "", **fields: Any) -> int:
        body: Mapping[str, Any] = fields or {"labels": [{"name": "car"}]}
        task_id = self.client.create_task(body, self.name(suffix))
        self.made.append(task_id)
        return task_id

    def name(self, suffix: str = "") -> str:
        return f"{self.server.mark} {suffix}".strip()


@pytest.fixture
def make_task(server: Server, client: CvatClient) -> Iterator[Maker]:
    maker = Maker(server, client, [])
    try:
        yield maker
    finally:
        for task_id in maker.made:
            client.delete_task(task_id)


@pytest.fixture
def wait_for_jobs(client: CvatClient) -> Callable[[int], tuple[Job, ...]]:
    """The jobs of a task as soon as they are there; every look takes a call, so none sleeps."""

    def wait(task_id: int) -> tuple[Job, ...]:
        def look() -> tuple[Job, ...] | None:
            found = client.jobs([task_id]).get(task_id)
            if found is None:
                state = client.import_state(task_id)
                assert state.status is not ImportStatus.FAILED, state.message
            return found

        return _until(look)

    return wait


@pytest.fixture
def wait_for_failure(client: CvatClient) -> Callable[[int], ImportState]:
    """The state of an import once it has failed."""

    def wait(task_id: int) -> ImportState:
        def look() -> ImportState | None:
            state = client.import_state(task_id)
            assert state.status is not ImportStatus.FINISHED
            return state if state.status is ImportStatus.FAILED else None

        return _until(look)

    return wait


def _until(look: Callable[[], Found | None], seconds: float = 30.0) -> Found:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
    raise AssertionError(f"nothing after {seconds} s")
