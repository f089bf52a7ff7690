"""Stores under test, each as the factory of :mod:`store_factories` makes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.store_factories import FACTORIES
from conformance.store_scene import Scene
from pool.store import Store, open_store


@pytest.fixture(params=FACTORIES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return FACTORIES[request.param](tmp_path)


@pytest.fixture
def open_another(store_url: str) -> Iterator[Callable[[], Store]]:
    """Opens the same store once more, as another process would."""
    stores: list[Store] = []

    def open_it() -> Store:
        stores.append(open_store(store_url))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


@pytest.fixture
def store(open_another: Callable[[], Store]) -> Store:
    return open_another()


@pytest.fixture
def scene(store: Store, open_another: Callable[[], Store]) -> Iterator[Scene]:
    yield Scene(store)
    # Whatever a test has done, those that wait are counted.
    store = open_another()
    with store.connections.reading() as db:
        waiting = db.rows("SELECT template, spooled FROM requests WHERE state = 'queued'")
    assert store.queued() == Counter(template for template, _ in waiting)
    assert store.queue_length() == sum(spooled for _, spooled in waiting)
