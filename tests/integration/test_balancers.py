"""The manual's containers and its balancers fit each other."""

from __future__ import annotations

import tomllib

import yaml
from support.manual import ROOT, block


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
