"""Two daemons on one store behind the balancers of the manual, configured as it says."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import urllib3
import yaml
from support.api import in_thread
from support.manual import ROOT, block
from support.pictures import picture
from support.postgres import fresh_url
from support.waiting import poll_until

from pool.config.loader import load
from pool.daemon import Daemon
from pool.simulator import SimulatorServer, SimulatorSettings, Timings

TOKEN: Final = "a-token"
AUTHORIZED: Final = {"Authorization": f"Bearer {TOKEN}"}
ADDRESSES: Final = ("10.0.0.11:8765", "10.0.0.12:8765")
#: What nginx needs around the manual's part, to run in a folder as any user.
NGINX: Final = """
pid nginx.pid; error_log error.log; daemon off; events {{ }}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxied;
  fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  {server}
}}
"""


def haproxy(folder: Path, text: str) -> list[str | Path]:
    file = folder / "haproxy.cfg"
    file.write_text(text)
    return ["haproxy", "-db", "-f", file]


def nginx(folder: Path, text: str) -> list[str | Path]:
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(server=text))
    return ["nginx", "-p", folder, "-c", file]


BALANCERS: Final[dict[str, Callable[[Path, str], list[str | Path]]]] = {
    "haproxy": haproxy,
    "nginx": nginx,
}


@dataclass(frozen=True)
class Site:
    """Two daemons, and a balancer before them."""

    url: str
    daemons: tuple[Daemon, Daemon]

    def __call__(self, method: str, path: str, **options: Any) -> urllib3.BaseHTTPResponse:
        headers = AUTHORIZED | options.pop("headers", {})
        return urllib3.request(
            method, self.url + path, headers=headers, retries=False, timeout=30.0, **options
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=BALANCERS)
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    program = request.param
    # Debian has both where a user's PATH does not lead.
    path = f"{os.environ['PATH']}:/usr/sbin"
    monkeypatch.setenv("PATH", path)
    if shutil.which(program) is None:
        if os.environ.get("POOL_REQUIRE_BALANCERS") == "1":
            pytest.fail(f"there is no {program}, and POOL_REQUIRE_BALANCERS=1 says there must be")
        pytest.skip(f"{program} is not installed")
    store = fresh_url()
    with ExitStack() as stack:
        simulator = stack.enter_context(SimulatorServer(SimulatorSettings(timings=Timings.zero())))
        monkeypatch.setenv("CVAT_ACCESS_TOKEN", simulator.access_token)
        (tmp_path / "config.toml").write_text(
            f'[cvat]\nurl = "{simulator.url}"\n[daemon]\nport = 0\n'
            f'[store]\nurl = "{store}"\nspool = "spool"\n'
            '[templates.cars]\nlabels = [{ name = "car" }]\n'
            'pool = { min_size = 3, max_wait = "20s" }\n'
        )
        settings = load(tmp_path / "config.toml")
        one, two = (
            stack.enter_context(in_thread(Daemon(settings, api_token=TOKEN))) for _ in range(2)
        )
        port = free_port()
        text = block(program).text
        for word in ("bind :", "listen "):
            text = text.replace(f"{word}8080", f"{word.rstrip(':')}127.0.0.1:{port}")
        for daemon, address in zip((one, two), ADDRESSES, strict=True):
            text = text.replace(address, daemon.url.removeprefix("http://"))
        balancer = subprocess.Popen(BALANCERS[program](tmp_path, text), cwd=tmp_path)
        stack.callback(balancer.wait)
        stack.callback(balancer.terminate)
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            assert balancer.poll() is None
            try:
                return urllib3.request("GET", f"{url}/readyz", retries=False).status == 200
            except urllib3.exceptions.HTTPError:
                return False

        poll_until(answers)
        yield Site(url, (one, two))


def test_what_one_daemon_has_accepted_any_answers(site: Site) -> None:
    body = {"template": "cars"}
    key = {"Idempotency-Key": "one"}
    leases = [site("POST", "/v1/leases", json=body, headers=key) for _ in range(4)]
    assert [each.status for each in leases] == [201] * 4
    assert len({each.json()["id"] for each in leases}) == 1
    upload = site(
        "POST",
        "/v1/requests",
        fields={"template": "cars", "files": ("a.png", picture("a"), "image/png")},
        headers={"Prefer": "wait=20"},
    )
    assert upload.status == 201
    path = f"/v1/requests/{upload.json()['id']}"
    assert {site("GET", path).json()["state"] for _ in range(4)} == {"ready"}


def test_events_are_not_held_back(site: Site) -> None:
    with urllib3.PoolManager() as pool:
        stream = pool.request(
            "GET", f"{site.url}/v1/events", headers=AUTHORIZED, preload_content=False, timeout=20.0
        )
        site("POST", "/v1/leases", json={"template": "cars"})
        text = b""
        while b"event: lease.handed_out" not in text:
            text += stream.read1()
        stream.close()


def test_a_daemon_that_is_gone_is_not_missed(site: Site) -> None:
    def asked() -> set[int]:
        leases = [
            site("POST", "/v1/leases", json={"template": "cars"}, headers={"Idempotency-Key": key})
            for key in ("a", "b", "c", "d", "e", "f")
        ]
        return {each.status for each in leases}

    assert asked() == {201}
    place = urlsplit(site.daemons[0].url)
    site.daemons[0].stop()

    def is_gone() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((place.hostname or "", place.port or 0)) != 0

    poll_until(is_gone)
    assert asked() == {201}


def test_the_containers_are_those_of_the_balancer() -> None:
    text = block("yaml", "compose").text
    services = yaml.safe_load(text)["services"]
    servers = [
        line.split()[1]
        for line in block("haproxy").text.splitlines()
        if line.startswith("    server ")
    ]
    assert [name for name in services if name.startswith("pool")] == servers
    assert services["balancer"]["ports"] == ["8080:8080"]
    inline = services["pool-1"]["build"]["dockerfile_inline"]
    assert "CMD " in inline
    extras = inline.partition("source[")[2].partition("]")[0].split(",")
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) <= set(known)
