"""Where the configuration is found, and the files that it names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pool.config.loader import InvalidConfig, find_config, load, loads
from pool.errors import ConfigError


def test_paths_start_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "labels.json").write_text('[{"name": "car"}]')
    path = tmp_path / "conf" / "config.toml"
    path.write_text(
        '[cvat]\naccess_token_file = "${SECRETS}/token"\n'
        '[templates.a]\nlabels_file = "labels.json"\n'
    )
    monkeypatch.chdir(tmp_path)
    read = load("conf/config.toml", environ={"SECRETS": "secrets"})
    assert read.cvat.access_token_file == Path("conf/secrets/token")
    assert read.templates["a"].labels[0]["name"] == "car"
    assert read.store.url == f"sqlite:///{tmp_path}/conf/pool.db"
    assert read.path == Path("conf/config.toml")


def test_a_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[cvat]\naccess_token_file = "${SECRETS}/token"\n')
    with pytest.raises(InvalidConfig, match=r":2: .*: the environment has no SECRETS"):
        load(path, environ={})


def test_a_home_folder_that_is_not_there_is_reported() -> None:
    with pytest.raises(InvalidConfig, match="a home folder that exists"):
        loads('[cvat]\naccess_token_file = "~no-such-user/token"')


def test_a_file_in_another_encoding_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes("# one\n# zwölf\n".encode("latin-1"))
    with pytest.raises(InvalidConfig, match=r"config.toml:2: not valid UTF-8"):
        load(path)


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[cvat]\r\n\r\ntimeout = 5\r\n")
    with pytest.raises(InvalidConfig, match=r"config.toml:3: cvat.timeout"):
        load(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.toml: No such file"):
        load(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path)


def test_the_configuration_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"there is no config.toml in .*POOL_CONFIG"):
        find_config({})
    Path("config.toml").touch()
    assert find_config({}) == find_config({"POOL_CONFIG": ""}) == Path("config.toml")
    with pytest.raises(ConfigError, match=r"POOL_CONFIG names other\.toml"):
        find_config({"POOL_CONFIG": "other.toml"})
    Path("other.toml").touch()
    assert find_config({"POOL_CONFIG": "other.toml"}) == Path("other.toml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"name": "car"},\n {"name": }]', r"labels.json:2:11: not valid JSON: expecting value"),
        ("{}", r"labels.json: expected an array of labels, found a table"),
        ('[{"name": []}]', r"labels.json: \[0\].name: expected text in quotes, found an array"),
        ('[{"name": "a"}, {"name": "b", "x": 1}]', r'json: label "b": \[1\].x: unknown key'),
        ("\udcff", r"labels.json: not valid JSON"),
        (None, r"cannot read .*labels.json: No such file"),
    ],
)
def test_a_file_of_labels_is_checked(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "labels.json").write_bytes(content.encode(errors="surrogateescape"))
    text = '[templates.a]\n\nlabels_file = "labels.json"'
    with pytest.raises(InvalidConfig) as caught:
        loads(text, path=tmp_path / "config.toml")
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (3, "templates.a.labels_file")
    assert re.search(message, problem.message)


@pytest.mark.parametrize(
    "code",
    ["import pool", "from pool.cli.app import app; app(['--help'], standalone_mode=False)"],
)
def test_importing_the_package_and_asking_for_help_is_quick(code: str) -> None:
    """What needs no configuration does not wait for what reads one."""
    heavy = ["pydantic", "tomllib", "cvat_sdk", "fastapi", "httpx", "pool.config.loader"]
    code += f"; import sys; print('loaded:', *(set({heavy}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.rpartition("\n")[0].endswith("loaded:"), result.stdout + result.stderr
