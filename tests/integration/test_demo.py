"""The demo, in no time: everything that it does but the waiting."""

from __future__ import annotations

import json
import re
from pathlib import Path

from support.commands import cvat_pool, running


def test_the_demo_shows_levels_ids_and_times(tmp_path: Path) -> None:
    result = cvat_pool("demo", "--speed", "0", cwd=tmp_path, COLUMNS="60")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Job ids of the first requests" in result.stdout
    row = re.search(r"^ SDK, polling every 500 ms +\d+ +\d+ +\d+ +[\d.]+ *$", result.stdout, re.M)
    assert row is not None, result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 60
    assert "…" not in result.stdout
    assert "the server's own time" in result.stdout
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_the_figures_as_json(tmp_path: Path) -> None:
    result = cvat_pool(
        "demo", "--speed", "0", "--json", "--labels", "3", "--images", "2", cwd=tmp_path
    )
    figures = json.loads(result.stdout)
    assert (figures["labels"], figures["images"]) == (3, 2)
    assert figures["flows"]["pool"]["requests"] == 30
    assert figures["server_own_median_ms"] > 0
    (template,) = figures["status"]["templates"]
    assert template["hits"] + template["waits"] + template["colds"] == 30


def test_the_simulator_keeps_a_token_that_it_is_given(tmp_path: Path) -> None:
    options = ("--port", "0", "--speed", "0", "--token", "dev-token")
    with running("simulator", *options, cwd=tmp_path) as simulator:
        url = simulator.wait_for("CVAT_URL").removeprefix("export CVAT_URL=")
        assert simulator.wait_for("TOKEN") == "export CVAT_ACCESS_TOKEN=dev-token"
        init = cvat_pool(
            "init", "--url", url, "--labels", "car", cwd=tmp_path, CVAT_ACCESS_TOKEN="dev-token"
        )
        assert init.returncode == 0, init.stderr


def test_the_simulator_says_how_in_json(tmp_path: Path) -> None:
    options = ("--port", "0", "--speed", "0", "--token", "dev-token", "--json")
    with running("simulator", *options, cwd=tmp_path) as simulator:
        document = json.loads(simulator.wait_for("{"))
    assert document["access_token"] == "dev-token"
    assert document["url"].startswith("http://127.0.0.1:")


def test_the_simulator_says_how_to_reach_it(tmp_path: Path) -> None:
    with running("simulator", "--port", "0", "--speed", "0", cwd=tmp_path) as simulator:
        url = simulator.wait_for("CVAT_URL").removeprefix("export CVAT_URL=")
        token = simulator.wait_for("TOKEN").removeprefix("export CVAT_ACCESS_TOKEN=")
        (tmp_path / "config.toml").write_text(
            f'[cvat]\nurl = "{url}"\n[daemon]\nport = 0\n[templates.t]\nlabels = []\n'
        )
        check = cvat_pool("check", cwd=tmp_path, CVAT_ACCESS_TOKEN=token)
        assert check.returncode == 0, check.stdout
        assert re.fullmatch(r"\d+ checks passed", check.stdout.splitlines()[-1])
        assert simulator.stop() == 0
