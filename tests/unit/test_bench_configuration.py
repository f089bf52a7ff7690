"""The configuration that a bench writes for its daemon has the templates of the user's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pool.bench.processes import write_configuration
from pool.config.loader import load
from pool.config.settings import CvatSettings, Settings, Template

GIVEN = """
[cvat]
url = "https://cvat.example.com"
organization = "lab"
timeout = "12.5s"
verify_tls = false
access_token_file = "a token"
[defaults]
import = { timeout = "90s" }
[templates."odd.name"]
labels = [{ name = "car", type = "rectangle" }, { name = "p\u00e9ople\\\\" }]
task = { subset = 'the "first"', segment_size = 10, overlap = 2 }
data = { image_quality = 95, chunk_size = "auto", use_cache = true, frame_filter = "step=2" }
pool = { min_size = 3, hit_rate = 0.95, max_wait = "250ms", create_concurrency = 4 }
import = { single_request_limit = "1 KB" }
[templates.hooked]
project = 12
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "a token").write_text("secret")
    (tmp_path / "a token").chmod(0o600)
    (tmp_path / "config.toml").write_text(GIVEN)
    return load(tmp_path / "config.toml")


def written(folder: Path, settings: Settings, template: Template, **sizes: int) -> Settings:
    folder = folder / "bench"
    folder.mkdir()
    templates = {name: (template, size) for name, size in sizes.items()}
    return load(write_configuration(folder, settings.cvat, templates))


@pytest.mark.parametrize("name", ["odd.name", "hooked"])
def test_all_but_the_size_of_the_pool_is_the_user_s(
    tmp_path: Path, settings: Settings, name: str
) -> None:
    template = settings.templates[name]
    there = written(tmp_path, settings, template, **{"bench": 7, "bench-it.2": 0})
    assert there.cvat == settings.cvat
    assert there.store.url == f"sqlite:///{tmp_path}/bench/pool.db"
    assert there.daemon.port == 0
    assert list(there.templates) == ["bench", "bench-it.2"]
    for size, each in zip((7, 0), there.templates.values(), strict=True):
        pool = replace(template.pool, min_size=size, max_size=max(size, 1), on_empty="create")
        assert each == replace(template, name=each.name, pool=pool)
        assert each.fingerprint == template.fingerprint


def test_labels_of_the_bench_s_own(tmp_path: Path, settings: Settings) -> None:
    template = replace(settings.templates["hooked"], labels=({"name": "car"},), project=None)
    (there,) = written(tmp_path, settings, template, bench=1).templates.values()
    assert (there.labels[0]["name"], there.project) == ("car", None)


def test_no_file_at_all(tmp_path: Path) -> None:
    server = CvatSettings(url="http://cvat.test")
    template = Template(name="bench", labels=({"name": "car"},))
    path = write_configuration(tmp_path, server, {"bench": (template, 5)})
    (there,) = load(path).templates.values()
    assert (there.labels[0]["name"], there.pool.min_size) == ("car", 5)


def test_a_token_file_beside_a_relative_configuration(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = load("config.toml").cvat
    (tmp_path / "bench").mkdir()
    path = write_configuration(
        tmp_path / "bench", server, {"bench": (settings.templates["hooked"], 1)}
    )
    assert load(path).cvat.access_token_file == tmp_path / "a token"
