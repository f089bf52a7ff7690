"""The benchmark of the store fills it with rows that the store takes for its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bench.bench_store import claim, filled
from conformance.store_factories import FACTORIES


@pytest.mark.parametrize("url_of", FACTORIES.values(), ids=FACTORIES)
def test_the_rows_to_start_with(tmp_path: Path, url_of: Callable[[Path], str]) -> None:
    with filled(url_of(tmp_path), warm=2, finished=8) as store:
        assert store.in_flight() == 0
        assert len(store.requests(limit=20).requests) == 8
        tasks = {claim(store), claim(store, data=True)}
        assert tasks == {1_000_001, 1_000_002}
        assert claim(store) is None
