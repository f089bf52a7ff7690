"""The other processes of a demo or a bench: a simulator and a daemon, stopped in order.

    python -m pool.bench.processes

serves a simulator and prints how to reach it, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pool.bench.measure import wait_for
from pool.config.settings import CvatSettings, Settings, Template
from pool.errors import PoolError

#: Seconds after which a part that has not stopped is killed.
PATIENCE = 30.0
#: The file of a bench's own store.
STORE = "pool.db"


@contextmanager
def simulator(folder: Path, *, speed: float, seed: int = 0) -> Iterator[dict[str, str]]:
    """A simulator process; gives the environment with its address and credentials.

    :raises PoolError: it did not start.
    """
    arguments = ["pool.bench.processes", "--speed", str(speed), "--seed", str(seed)]
    with _child("simulator", arguments, os.environ, folder) as process:
        line = process.read_line()
        if not line:
            process.check()
            raise PoolError("the simulator did not say how to reach it")
        yield {**os.environ, **json.loads(line)}


def serve_simulator() -> None:
    """Serve until SIGTERM.

    The simulator is made up for one run and worth nothing elsewhere: its password may be shown to
    the parent process.
    """
    from pool.simulator import SimulatorServer, SimulatorSettings, Timings
    from pool.simulator.server import stop_signal

    parser = argparse.ArgumentParser()
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    settings = SimulatorSettings(timings=Timings().scaled(given.speed), seed=given.seed)
    stop = stop_signal()
    with SimulatorServer(settings) as server:
        reached_by = {
            "CVAT_URL": server.url,
            "CVAT_ACCESS_TOKEN": server.access_token,
            "CVAT_USERNAME": server.username,
            "CVAT_PASSWORD": server.password,
        }
        print(json.dumps(reached_by), flush=True)
        stop.wait()


def write_configuration(
    folder: Path,
    settings: Settings,
    server: CvatSettings,
    templates: Mapping[str, tuple[Template, int]],
) -> Path:
    """Write a ``config.toml`` with a new store in ``folder``.

    Its templates are ``templates`` by their new names, each with a pool of exactly so many tasks,
    whose callers never wait long. All else is as the file of ``settings`` has it; labels and
    project are the template's own. The daemon listens at any free port.
    """
    given: dict[str, Any] = {}
    if settings.path is not None:
        given = tomllib.loads(settings.path.read_text(encoding="utf-8"))
    cvat = given.get("cvat", {}) if server is settings.cvat else {}
    if server.access_token_file is not None:
        # Found from the folder of the other file.
        cvat = {**cvat, "access_token_file": str(server.access_token_file)}
    written = {
        "cvat": {**cvat, "url": server.url},
        "store": {"url": f"sqlite:///{folder}/{STORE}"},
        "daemon": {"port": 0},
        "defaults": given.get("defaults", {}),
        "templates": {
            name: _template(given.get("templates", {}).get(template.name, {}), template, tasks)
            for name, (template, tasks) in templates.items()
        },
    }
    path = folder / "config.toml"
    lines = [f"{_toml(key)} = {_toml(value)}" for key, value in written.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _template(given: Mapping[str, Any], template: Template, tasks: int) -> dict[str, Any]:
    source: dict[str, Any] = {"labels": [dict(label) for label in template.labels]}
    if template.project is not None:
        source = {"project": template.project}
    sizes = {"min_size": tasks, "max_size": max(tasks, 1), "on_empty": "create"}
    return {
        **{key: given[key] for key in ("task", "data", "import") if key in given},
        **source,
        "pool": {**given.get("pool", {}), **sizes},
    }


def _toml(value: Any) -> str:
    """Spell a value in TOML: as JSON, whose tables alone are written in another way."""
    if isinstance(value, Mapping):
        pairs = (f"{_toml(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def daemon(config: Path, environment: Mapping[str, str]) -> Iterator[Process]:
    """``cvat-pool run`` as a process of its own, whose log beside the configuration has its calls
    to the server."""
    arguments = ["pool.cli", "--log-level", "debug", "--log-json", "run", "--config", str(config)]
    with _child("daemon", arguments, environment, config.parent) as process:
        yield process


@contextmanager
def _child(
    name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Iterator[Process]:
    """A module of the product as a process, stopped in an orderly way at the end."""
    log = folder / f"{name}.log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            # Ctrl-C goes to the parent alone, which stops the others in order.
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Process(name, process, log)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


class Process:
    """A part that runs as a process of its own."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self._name = name
        self._process = process
        self.pid = process.pid
        self.log = log

    def read_line(self) -> str:
        """The next line that it prints; "" when it has ended."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def check(self) -> None:
        """
        :raises PoolError: it has ended, with what it said last.
        """
        if self._process.poll() is not None:
            lines = self.log.read_text().strip().splitlines()
            raise PoolError(f"the {self._name} ended: {lines[-1] if lines else 'it said nothing'}")

    def listening_at(self) -> str:
        """The address at which a daemon listens.

        :raises PoolError: it does not listen.
        """

        def look() -> str:
            self.check()
            lines = self.log.read_text().splitlines()
            return next((line for line in lines if '"listening"' in line), "")

        return str(json.loads(wait_for(look, "the daemon to listen"))["url"])


if __name__ == "__main__":
    serve_simulator()
