from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from support.clock import ManualClock

from pool.config.loader import load
from pool.config.settings import Settings, Templates
from pool.maintenance.reload import FIXED, Reload

BEFORE = """
[templates.a]
labels = [{ name = "car" }]
pool = { min_size = 3 }

[templates.b]
labels = []
"""


class World:
    """A configuration file, what is in force, and the service between them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.toml"
        self.path.write_text(BEFORE)
        settings = load(self.path)
        self.templates = Templates(settings.templates)
        self.reload = Reload(settings, self.templates, clock=ManualClock())

    def write(self, text: str) -> None:
        """Write it as an editor does: beside it, and then in its place."""
        beside = self.path.with_suffix(".new")
        beside.write_text(text)
        beside.replace(self.path)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_unchanged_file_is_not_read(world: World) -> None:
    assert world.reload.run_once().changed == ()


def test_sizes_change_at_once_and_keep_the_warm_tasks(world: World) -> None:
    before = world.templates["a"].fingerprint
    world.write(BEFORE.replace("min_size = 3", "min_size = 9"))
    assert world.reload.run_once().changed == ("a",)
    assert world.templates["a"].pool.min_size == 9
    assert world.templates["a"].fingerprint == before


def test_templates_come_and_go(world: World) -> None:
    world.write("[templates.c]\nlabels = []\n[templates.b]\nlabels = []\n")
    assert world.reload.run_once().changed == ("a", "c")
    assert sorted(world.templates) == ["b", "c"]


@pytest.mark.parametrize("text", ["[templates.a", "[templates.a]\nlabls = []\n", "\xff"])
def test_a_broken_file_changes_nothing_and_is_reported_once(world: World, text: str) -> None:
    world.path.write_text(text, encoding="latin-1")
    assert "config.toml" in world.reload.run_once().problems[0]
    assert sorted(world.templates) == ["a", "b"]
    assert world.templates["a"].pool.min_size == 3
    assert world.reload.run_once().problems == ()
    assert "config.toml" in world.reload.record.problems[0], "for those who ask later"
    world.write(BEFORE.replace("min_size = 3", "min_size = 4"))
    assert world.reload.run_once().changed == ("a",)


def test_a_file_that_is_gone_changes_nothing(world: World) -> None:
    world.path.unlink()
    assert "config.toml" in world.reload.run_once().problems[0]
    assert sorted(world.templates) == ["a", "b"]


def test_what_is_read_at_the_start_only_is_said(world: World) -> None:
    world.write('[cvat]\nurl = "http://elsewhere:8080"\n' + BEFORE)
    before = world.templates["a"].fingerprint
    report = world.reload.run_once()
    assert report.restart == ("cvat.url",)
    assert world.templates["a"].fingerprint == before, "its tasks are still where they were made"


def test_a_forced_look_reads_the_same_file_again(world: World) -> None:
    world.path.write_text(BEFORE)
    world.reload.run_once()
    world.reload.force()
    assert world.reload.run_once().changed == ()


def test_every_table_is_either_reloaded_or_said_to_need_a_restart() -> None:
    names = {field.name for field in fields(Settings)}
    assert names == {*FIXED, "tokens", "templates", "path", "warnings", "files"}
