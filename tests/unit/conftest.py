"""Fixtures of several unit tests: a stub of CVAT, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.clock import ManualClock

from pool.config.settings import CvatSettings
from pool.cvat import AccessTokenCredentials, CvatClient
from unit.cvat_data_stub import DataEndpoint
from unit.cvat_stub import StubServer

TOKEN = AccessTokenCredentials("s3cr3t")


@pytest.fixture
def server() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


@pytest.fixture
def endpoint(server: StubServer) -> DataEndpoint:
    return DataEndpoint(server)


@pytest.fixture
def client(server: StubServer, clock: ManualClock) -> Iterator[CvatClient]:
    with CvatClient(CvatSettings(url=server.url, timeout=5.0), TOKEN, clock=clock) as client:
        yield client
