"""``cvat-pool docs``: the manual in a terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.commands import cvat_pool
from support.manual import PAGES, rows
from support.terminal import in_a_terminal

from pool.docs import TOPICS, page


def test_all_topics_are_named(tmp_path: Path) -> None:
    result = cvat_pool("docs", cwd=tmp_path)
    assert result.returncode == 0
    assert re.findall(r"^  ([a-z-]+) +\S", result.stdout, re.MULTILINE) == list(TOPICS)
    assert set(TOPICS) == set(PAGES), "each page has its place"
    assert "cvat-pool docs TOPIC" in result.stderr


def test_a_topic_that_there_is_not(tmp_path: Path) -> None:
    result = cvat_pool("docs", "metric", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "no topic 'metric'" in line and "metrics" in line


def test_a_pipe_gets_markdown(tmp_path: Path) -> None:
    assert cvat_pool("docs", "slots", cwd=tmp_path).stdout == PAGES["slots"]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_gets_a_page_that_fits(tmp_path: Path, columns: int) -> None:
    with in_a_terminal("docs", "metrics", cwd=tmp_path, output=True, COLUMNS=str(columns)) as shown:
        shown.finish()
        lines = shown.shown.splitlines()
    assert max(map(len, lines)) <= min(columns, 100)
    # Rich before 14 draws a box around it.
    assert page("metrics").title in "".join(lines[:2])
    # Whole, also where they are longer than their column.
    first = "".join(re.sub(r"^ {1,2}(\S*).*", r"\1", line) for line in lines)
    for row in rows("metrics", "metric"):
        assert row[0].strip("`") in first, row


def test_a_terminal_gets_topics_in_place_of_links(tmp_path: Path) -> None:
    with in_a_terminal("docs", "remote", cwd=tmp_path, output=True) as shown:
        shown.finish()
        text = " ".join(shown.shown.split())
    assert "RemotePool has the methods of TaskPool (docs python)" in text
    assert ".md" not in text
