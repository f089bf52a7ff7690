"""A process on a machine whose clock is wrong goes by that of the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from conformance.store_factories import FACTORIES
from support.scripted import ScriptedCvat
from support.stepped import threadless

from pool import TaskPool
from pool.clock import SystemClock
from pool.config.settings import Settings, StoreSettings, Template
from pool.store import Store

HOUR = 3600.0


@pytest.fixture(params=FACTORIES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return FACTORIES[request.param](tmp_path)


@pytest.fixture
def settings(template: Template, store_url: str, tmp_path: Path) -> Settings:
    store = StoreSettings(url=store_url, spool=tmp_path)
    return Settings(store=store, templates={template.name: template})


@contextmanager
def process(settings: Settings, store: Store) -> Iterator[TaskPool]:
    pool = TaskPool(settings, store=store, cvat=cast(Any, ScriptedCvat()))
    with threadless(pool.process):
        yield pool
        pool.close()


def test_a_lease_ends_when_others_say_so(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock an hour late, it would have ended before it began. With SQLite no other machine
    has another clock."""
    if store.time() is not None:
        monkeypatch.setattr(SystemClock, "now", lambda _: time.time() - HOUR)
    with process(settings, store) as pool:
        lease = pool.acquire("scenes", ttl=60.0)
        assert lease.expires_at is not None
        assert lease.expires_at.timestamp() == pytest.approx(time.time() + 60.0, abs=30.0)


def test_a_heartbeat_puts_the_clock_right(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    monkeypatch.setattr(store, "time", lambda: time.time() + ahead)
    with process(settings, store) as pool:
        ahead = HOUR
        pool.process.heartbeat.run_once()
        assert pool.clock.now() == pytest.approx(time.time() + HOUR, abs=30.0)
