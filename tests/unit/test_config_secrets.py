"""What looks like a credential in ``config.toml`` is sent where it belongs, and never shown."""

from __future__ import annotations

import pytest
from support.configured import only_problem

from pool.config.loader import InvalidConfig, loads
from pool.config.settings import CvatSettings

SECRETS = ["token", "password", "access_token", "username", "api_key", "API_TOKEN", "secret"]


@pytest.mark.parametrize("name", SECRETS)
def test_a_credential_is_sent_where_it_belongs_and_never_shown(name: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        loads(f'[cvat]\n{name} = "hunter2"')
    for where in ("CVAT_ACCESS_TOKEN", "CVAT_USERNAME", "CVAT_PASSWORD", "access_token_file"):
        assert where in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_token_of_the_daemon_is_sent_to_the_environment() -> None:
    assert "POOL_API_TOKEN" in only_problem("[daemon]\ntoken = 'x'").message


@pytest.mark.parametrize(
    "url",
    [
        "http://bob:hunter2@cvat.example.org",
        "http://hunter2@cvat.example.org",
        "http://bob:hunter2@cvat:port",
        "http://[bob:hunter2",
        "bob:hunter2@cvat.example.org",
    ],
)
def test_credentials_in_the_address_are_refused_and_never_shown(url: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        loads(f"[cvat]\nurl = '{url}'")
    assert "hunter2" not in str(caught.value)


def test_settings_that_are_made_in_python_show_no_credentials_either() -> None:
    with pytest.raises(ValueError, match="credentials do not belong in the address") as caught:
        CvatSettings(url="http://bob:hunter2@cvat.example.org")
    assert "hunter2" not in str(caught.value)


def test_a_password_in_the_address_of_the_store_is_never_shown() -> None:
    problem = only_problem("[store]\nurl = 'postgresql://pool:hunter2@db:0/pool'")
    assert "postgresql://HOST/DATABASE" in problem.message
    assert "hunter2" not in problem.message
