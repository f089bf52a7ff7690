"""Where credentials are found, in which order, and that they never show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pool.config.settings import CvatSettings
from pool.cvat.credentials import (
    AccessTokenCredentials,
    PasswordCredentials,
    find_credentials,
)
from pool.errors import ConfigError

SECRET = "s3cr3t-token"


@pytest.fixture(autouse=True)
def config_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's saved profiles but those of the test."""
    home = tmp_path / "config"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    return home


def save_profiles(home: Path, *, default: str | None = None, **servers: str) -> None:
    folder = home / "cvat-sdk"
    folder.mkdir(parents=True, mode=0o700)
    store = folder / "auth.json"
    profiles = {
        name: {"server": server, "token": f"token-of-{name}", "created_date": ""}
        for name, server in servers.items()
    }
    content = {"version": 1, "profiles": profiles, "default_profile": default}
    store.write_text(json.dumps(content))
    store.chmod(0o600)


def token_file(tmp_path: Path, content: str, mode: int = 0o600) -> CvatSettings:
    path = tmp_path / "token"
    path.write_text(content)
    path.chmod(mode)
    return CvatSettings(access_token_file=path)


def test_the_access_token_comes_before_all_else(tmp_path: Path) -> None:
    settings = token_file(tmp_path, "from-file")
    environ = {"CVAT_ACCESS_TOKEN": f" {SECRET}\n", "CVAT_USERNAME": "u", "CVAT_PASSWORD": "p"}
    assert find_credentials(settings, environ) == AccessTokenCredentials(SECRET)


def test_a_password_comes_before_a_file(tmp_path: Path) -> None:
    settings = token_file(tmp_path, "from-file")
    environ = {"CVAT_ACCESS_TOKEN": "", "CVAT_USERNAME": "u", "CVAT_PASSWORD": "p"}
    assert find_credentials(settings, environ) == PasswordCredentials("u", "p")


@pytest.mark.parametrize("environ", [{"CVAT_USERNAME": "u"}, {"CVAT_PASSWORD": "p"}])
def test_half_a_pair_is_an_error(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"CVAT_(USERNAME|PASSWORD) is not set"):
        find_credentials(CvatSettings(), environ)


def test_a_file_is_stripped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = find_credentials(token_file(tmp_path, f"{SECRET}\r\n"), {})
    assert found == AccessTokenCredentials(SECRET)
    assert caplog.records == []


def test_a_file_that_others_can_read_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = find_credentials(token_file(tmp_path, SECRET, 0o644), {})
    assert found == AccessTokenCredentials(SECRET)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "chmod 600" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [(" \n", "is empty"), (f"{SECRET}\nmore", "odd characters"), (f"{SECRET} é", "odd characters")],
)
def test_a_file_without_a_token_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        find_credentials(token_file(tmp_path, content), {})
    assert SECRET not in str(raised.value)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    settings = CvatSettings(access_token_file=tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        find_credentials(settings, {})


def test_a_token_with_a_line_break_in_it_is_an_error() -> None:
    with pytest.raises(ConfigError, match="CVAT_ACCESS_TOKEN") as raised:
        find_credentials(CvatSettings(), {"CVAT_ACCESS_TOKEN": f"{SECRET}\r\nX-Evil: 1"})
    assert SECRET not in str(raised.value)


def test_the_default_profile_of_the_same_server_is_used(config_home: Path) -> None:
    save_profiles(config_home, default="work", work="https://cvat.test:443")
    found = find_credentials(CvatSettings(url="https://cvat.test/"), {})
    assert found == AccessTokenCredentials("token-of-work")


def test_the_default_profile_of_another_server_is_not_used(config_home: Path) -> None:
    save_profiles(config_home, default="work", work="https://elsewhere.test")
    with pytest.raises(ConfigError, match="no credentials for CVAT were found: set CVAT_ACCESS"):
        find_credentials(CvatSettings(url="https://cvat.test"), {})


def test_a_named_profile_is_used(config_home: Path) -> None:
    save_profiles(config_home, default="a", a="http://a.test", b="http://b.test")
    found = find_credentials(CvatSettings(url="http://b.test", profile="b"), {})
    assert found == AccessTokenCredentials("token-of-b")


def test_a_named_profile_of_another_server_is_an_error(config_home: Path) -> None:
    save_profiles(config_home, a="http://a.test")
    with pytest.raises(ConfigError, match=r"is for http://a\.test, not for http://b\.test"):
        find_credentials(CvatSettings(url="http://b.test", profile="a"), {})


def test_an_unknown_profile_is_an_error(config_home: Path) -> None:
    save_profiles(config_home, a="http://a.test")
    with pytest.raises(ConfigError, match=r"no saved profile 'x' \(saved: a\)"):
        find_credentials(CvatSettings(profile="x"), {})


def test_profiles_that_cannot_be_read_are_an_error(config_home: Path) -> None:
    save_profiles(config_home, a="http://a.test")
    (config_home / "cvat-sdk" / "auth.json").chmod(0o644)
    with pytest.raises(ConfigError, match="Refusing to use"):
        find_credentials(CvatSettings(profile="a"), {})


def test_nothing_found_names_all_ways() -> None:
    with pytest.raises(ConfigError) as raised:
        find_credentials(CvatSettings(), {})
    for way in ("CVAT_ACCESS_TOKEN", "CVAT_USERNAME", "access_token_file", "profile"):
        assert way in str(raised.value)


def test_secrets_do_not_show() -> None:
    assert SECRET not in repr(AccessTokenCredentials(SECRET))
    assert SECRET not in str(PasswordCredentials("u", SECRET))


def test_the_sdk_is_imported_with_the_first_client() -> None:
    code = (
        "import sys; from pool.config.settings import CvatSettings; from pool.cvat import connect; "
        "assert 'cvat_sdk' not in sys.modules; "
        "connect(CvatSettings(url='http://cvat.test'), {'CVAT_ACCESS_TOKEN': 'x'}); "
        "assert 'cvat_sdk' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
