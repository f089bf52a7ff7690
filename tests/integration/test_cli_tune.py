"""``cvat-pool tune``: a recommendation from what the store knows."""

from __future__ import annotations

import json
import sqlite3
import time
import tracemalloc
from contextlib import closing
from pathlib import Path

from support.commands import cvat_pool
from support.stepped import fill_for
from typer.testing import CliRunner

from pool import TaskPool
from pool.cli.app import app


def test_what_was_asked_for_is_what_is_recommended(pool: TaskPool, config_path: Path) -> None:
    fill_for(pool)
    for _ in range(4):
        pool.acquire("scenes")
    result = cvat_pool("tune", "scenes", cwd=config_path.parent)
    assert (result.returncode, result.stderr) == (0, "")
    assert "4 hand-outs, 2 hits, 0 waits, 2 colds" in result.stdout
    assert "served at once: 50.0%; hit_rate wants 99.0%" in result.stdout
    assert "is recommended: " in result.stdout
    document = json.loads(cvat_pool("tune", "scenes", "--json", cwd=config_path.parent).stdout)
    assert document["demanded"]["hits"] == 2
    assert document["current"] == 2
    assert 1 <= document["min_size"] <= 4
    assert document["creates"]["count"] == 2
    assert document["expected"] >= 0.99


def test_a_pool_that_is_too_small_by_its_settings(pool: TaskPool, config_path: Path) -> None:
    for _ in range(3):
        pool.acquire("scenes")
    text = config_path.read_text().replace("min_size = 2", "min_size = 0, max_size = 1")
    config_path.write_text(text)
    result = cvat_pool("tune", "scenes", cwd=config_path.parent)
    assert "not measured yet, 1.00 s is assumed" in result.stdout
    assert "this needs a larger max_size than 1" in result.stdout


def test_a_template_without_demand(config_path: Path) -> None:
    result = cvat_pool("tune", "scenes", cwd=config_path.parent)
    assert result.returncode == 0
    assert "no recommendation" in result.stdout
    document = json.loads(cvat_pool("tune", "scenes", "--json", cwd=config_path.parent).stdout)
    assert document["min_size"] is None


def test_an_unknown_template(config_path: Path) -> None:
    result = cvat_pool("tune", "scences", cwd=config_path.parent)
    assert result.returncode == 2
    assert "there is scenes" in result.stderr


def test_the_hand_outs_of_other_templates_take_no_memory(pool: TaskPool, config_path: Path) -> None:
    pool.acquire("scenes")
    with closing(sqlite3.connect(config_path.parent / "pool.db")) as db, db:
        db.execute(
            """
            WITH RECURSIVE many (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 20000)
            INSERT INTO leases (id, template, fingerprint, state, owner, ttl, payload, created_at)
            SELECT 'other' || n, 'other', '', 'abandoned', '', 1.0, '', ? FROM many
            """,
            [time.time()],
        )
    arguments = ["tune", "scenes", "--json", "--config", str(config_path)]
    CliRunner().invoke(app, arguments)  # imports what it needs
    tracemalloc.start()
    try:
        result = CliRunner().invoke(app, arguments)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert json.loads(result.output)["demanded"]["colds"] == 1
    assert peak < 4 * 2**20
