"""The other processes of a demo or a bench: a simulator and a daemon, stopped in order.

    python -m pool.bench.processes SPEED SEED SHARE BUCKET

serves a simulator and prints how to reach it, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pool.bench.measure import wait_for
from pool.config.settings import CvatSettings, Template
from pool.errors import PoolError

#: Seconds after which a process that has not stopped is killed.
PATIENCE = 30.0
#: More requests than any bench has waiting.
MOST_QUEUED = 1_000_000
#: The file of a bench's own store.
STORE = "pool.db"


@dataclass(frozen=True)
class Process:
    """A module of the product that runs as a process of its own, and its log."""

    name: str
    process: subprocess.Popen[str]
    log: Path

    def check(self) -> None:
        """
        :raises PoolError: it has ended; the message has its last words.
        """
        if self.process.poll() is not None:
            lines = self.log.read_text().strip().splitlines()
            raise PoolError(f"the {self.name} ended: {lines[-1] if lines else 'no message'}")

    def listening_at(self) -> str:
        """Return the address at which a daemon listens.

        :raises PoolError: it does not listen.
        """
        return str(json.loads(self.await_line('"listening"'))["url"])

    def await_line(self, words: str) -> str:
        """Return the first line of the log that has these words.

        :raises PoolError: there is none.
        """

        def look() -> str:
            self.check()
            lines = self.log.read_text().splitlines()
            return next((line for line in lines if words in line), "")

        return wait_for(look, f"the {self.name} to listen")


@contextmanager
def simulator(
    folder: Path, *, speed: float, seed: int = 0, share: Path | None = None, bucket: str = ""
) -> Iterator[dict[str, str]]:
    """Run a simulator; yield the environment with its address and credentials.

    Its cloud storage 1 is an empty one. With a ``bucket``, ``s3://…``, there is storage 2, reached
    as the environment says.

    :raises PoolError: it did not start.
    """
    command = ("pool.bench.processes", str(speed), str(seed), str(share or ""), bucket)
    with _child("simulator", folder, os.environ, *command) as process:
        assert process.process.stdout is not None
        line = process.process.stdout.readline()
        if not line:
            process.process.wait(PATIENCE)
            process.check()
        yield {**os.environ, **json.loads(line)}


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """Run a server of buckets, which takes any credentials (moto); yield its address.

    :raises PoolError: it did not start.
    """
    with _child("moto", folder, os.environ, "moto.server", "--port", "0") as process:
        yield process.await_line("Running on").rpartition(" ")[2]


@contextmanager
def daemon(config: Path, environment: Mapping[str, str]) -> Iterator[Process]:
    """Run ``cvat-pool run``; its log, beside the configuration, has its calls to the server."""
    options = ("--log-level", "debug", "--log-json", "run", "--config", str(config))
    with _child("daemon", config.parent, environment, "pool.cli", *options) as process:
        yield process


@contextmanager
def _child(
    name: str, folder: Path, environment: Mapping[str, str], *command: str
) -> Iterator[Process]:
    log = folder / f"{name}.log"
    with (
        log.open("w") as stream,
        subprocess.Popen(
            # Not from the folder that this was started in, which may have a queue.py.
            [sys.executable, "-P", "-m", *command],
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


# --- The configuration of the daemon --------------------------------------------------------------


def write_configuration(
    folder: Path,
    server: CvatSettings,
    templates: Mapping[str, tuple[Template, int]],
    *,
    on_empty: str = "create",
) -> Path:
    """Write a ``config.toml`` with a new store in ``folder``, and return its path.

    Its templates are ``templates`` by their new names, each with a pool of exactly so many tasks,
    or of as many slots as a task has if that is more, and ``on_empty``; callers are never turned
    away because too many wait. The daemon listens at any free port.
    """
    cvat = _as_written(server)
    if server.access_token_file is not None:
        # A relative path would start from the new file's folder.
        cvat["access_token_file"] = str(server.access_token_file.absolute())
    document = {
        "cvat": cvat,
        "store": {"url": f"sqlite:///{folder}/{STORE}"},
        "daemon": {"port": 0, "max_queued": MOST_QUEUED},
        "templates": {name: _template(*each, on_empty) for name, each in templates.items()},
    }
    path = folder / "config.toml"
    lines = [f"{_toml(key)} = {_toml(value)}\n" for key, value in document.items()]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _template(template: Template, tasks: int, on_empty: str) -> dict[str, Any]:
    labels = {"labels": [dict(label) for label in template.labels]}
    least = template.slots.per_task if template.slots else 1
    sizes = {"min_size": tasks, "max_size": max(tasks, least), "on_empty": on_empty}
    slots = {} if template.slots is None else {"slots": _as_written(template.slots)}
    return {
        **(labels if template.project is None else {"project": template.project}),
        **slots,
        "task": _as_written(template.task),
        "data": _as_written(template.data),
        "pool": {**_as_written(template.pool), **sizes},
        "import": _as_written(template.importing),
    }


def _as_written(table: Any) -> dict[str, Any]:
    written = TypeAdapter(type(table)).dump_python(table, mode="json", exclude_none=True)
    return dict(written)


def _toml(value: Any) -> str:
    """Return a value in TOML, which differs from JSON in its tables alone."""
    if isinstance(value, Mapping):
        pairs = (f"{_toml(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


# --- The simulator's process ----------------------------------------------------------------------


def _serve_simulator(speed: float, seed: int, share: str, bucket: str) -> None:
    """Serve until SIGTERM. The simulator is made up for one run and worth nothing elsewhere, so the
    parent process may be shown its password."""
    from pool.simulator import (
        CloudStorageSettings,
        SimulatorServer,
        SimulatorSettings,
        Timings,
    )
    from pool.simulator.buckets import bucket_at
    from pool.simulator.server import stop_signal

    stop = stop_signal()
    storages = [CloudStorageSettings(display_name="empty")]
    if bucket:
        found = bucket_at(bucket, os.environ)
        storages.append(CloudStorageSettings(display_name=bucket, bucket=found))
    settings = SimulatorSettings(
        timings=Timings().scaled(speed),
        seed=seed,
        share=Path(share) if share else None,
        cloud_storages=tuple(storages),
    )
    with SimulatorServer(settings) as server:
        reached_by = {
            "CVAT_URL": server.url,
            "CVAT_ACCESS_TOKEN": server.access_token,
            "CVAT_USERNAME": server.username,
            "CVAT_PASSWORD": server.password,
        }
        print(json.dumps(reached_by), flush=True)
        stop.wait()


if __name__ == "__main__":
    _serve_simulator(float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5])
