"""The other processes of a demo or a bench: a simulator and a daemon, stopped in order.

    python -m pool.bench.processes

serves a simulator and prints how to reach it, a name and a value a line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pool.config.settings import CvatSettings, Settings, Template
from pool.errors import PoolError

#: Seconds after which a part that has not come up, or has not stopped, has failed.
PATIENCE = 30.0
#: The file of a bench's own store.
STORE = "pool.db"
#: What a simulator says when it is ready.
_SAID = ("CVAT_URL", "CVAT_ACCESS_TOKEN", "CVAT_USERNAME", "CVAT_PASSWORD")


@contextmanager
def simulator(folder: Path, *, speed: float, seed: int = 0) -> Iterator[dict[str, str]]:
    """A simulator process; gives the environment with its address and credentials.

    :raises PoolError: it did not start.
    """
    arguments = ["pool.bench.processes", "--speed", str(speed), "--seed", str(seed)]
    with child("simulator", arguments, os.environ, folder) as process:
        yield {**os.environ, **_reached_by(process)}


def _reached_by(process: Process) -> dict[str, str]:
    said = {}
    for name in _SAID:
        found, equals, value = process.read_line().partition("=")
        if found != name or not equals:
            process.check()
            raise PoolError(f"the simulator said {found!r} instead of its {name}")
        said[name] = value
    return said


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
        reached_by = (server.url, server.access_token, server.username, server.password)
        for name, value in zip(_SAID, reached_by, strict=True):
            print(f"{name}={value}", flush=True)
        stop.wait()


def write_configuration(
    folder: Path,
    settings: Settings,
    server: CvatSettings,
    template: Template,
    sizes: Mapping[str, int],
) -> Path:
    """Write a ``config.toml`` with a new store in ``folder``.

    Its templates are ``template`` under each name of ``sizes``, with a pool of exactly so many
    tasks, whose callers never wait long. All else is as the file of ``settings`` has it; labels
    and project are the template's own. The daemon listens at any free port.
    """
    given: dict[str, Any] = {}
    if settings.path is not None:
        given = tomllib.loads(settings.path.read_text(encoding="utf-8"))
    cvat = given.get("cvat", {}) if server is settings.cvat else {}
    if server.access_token_file is not None:
        # Found from the folder of the other file.
        cvat = {**cvat, "access_token_file": str(server.access_token_file)}
    tables = given.get("templates", {}).get(template.name, {})
    source: dict[str, Any] = {"labels": [dict(label) for label in template.labels]}
    if template.project is not None:
        source = {"project": template.project}
    written = {
        "cvat": {**cvat, "url": server.url},
        "store": {"url": f"sqlite:///{folder}/{STORE}"},
        "daemon": {"port": 0},
        "defaults": given.get("defaults", {}),
        "templates": {
            name: {
                **{key: tables[key] for key in ("task", "data", "import") if key in tables},
                **source,
                "pool": {
                    **tables.get("pool", {}),
                    "min_size": tasks,
                    "max_size": max(tasks, 1),
                    "on_empty": "create",
                },
            }
            for name, tasks in sizes.items()
        },
    }
    path = folder / "config.toml"
    lines = [f"{_toml(key)} = {_toml(value)}" for key, value in written.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    """Spell a value in TOML: as JSON, whose tables alone are written in another way."""
    if isinstance(value, Mapping):
        pairs = (f"{_toml(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def daemon(
    config: Path,
    environment: Mapping[str, str],
    folder: Path,
    *,
    log_options: Sequence[str] = (),
) -> Iterator[Process]:
    """``cvat-pool run`` as a process of its own; its log is ``daemon.log`` in ``folder``."""
    arguments = ["pool.cli", *log_options, "run", "--config", str(config)]
    with child("daemon", arguments, environment, folder) as process:
        yield process


@contextmanager
def child(
    name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path
) -> Iterator[Process]:
    """A module of the product as a process, stopped in an orderly way at the end."""
    log = folder / f"{name}.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            # Ctrl-C goes to the parent alone, which stops the others in order.
            start_new_session=True,
        )
        try:
            yield Process(name, process, log)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


class Process:
    """A part that runs as a process of its own."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self._name = name
        self._process = process
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

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
        """The address at which a daemon listens whose log is in JSON.

        :raises PoolError: it does not listen.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in self.log.read_text().splitlines():
                if '"listening"' in line:
                    return str(json.loads(line)["url"])
            self.check()
            time.sleep(0.02)
        raise PoolError("the daemon does not listen")


def command(*arguments: str | Path, environment: Mapping[str, str]) -> tuple[str, str]:
    """Run a command of this product to its end; gives what it printed, and its last complaint."""
    done = subprocess.run(
        [sys.executable, "-m", "pool.cli", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    serve_simulator()
