"""Commands as forks of one process that has imported the product, which is most of what they cost.

Each is a process of its own all the same: with its arguments, environment, folder, umask and
streams, and the interpreter's own way to end. They are forked off a process apart, ``python -m
support.forked``, since one that has threads must not fork.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from io import TextIOWrapper
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Final, cast

import pool
from pool.cli.app import main

_MOST: Final = 2**20
#: What the product imports where it is used, which takes longer than the rest of a command.
_LAZY: Final = ("cvat_sdk", "PIL.Image", "rich.live", "rich.progress", "rich.table")


def forkserver() -> ForkServerContext:
    """Processes that run a function of the tests, forked off one that has imported the product."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pool.taskpool",
            "pool.daemon",
            "pool.client",
            "pool.store.postgresql",
            "pool.cli.app",
            *_LAZY,
        ]
    )
    return context


class Command:
    """A command that was forked; used as a :class:`subprocess.Popen` is."""

    def __init__(self, arguments: Sequence[str], answers: socket.socket) -> None:
        self.arguments = list(arguments)
        self.returncode: int | None = None
        self._answers = answers
        self.pid = int(answers.recv(32))

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, once it has ended.

        :raises subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = int(self._answers.recv(32))
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.arguments, timeout or 0.0) from None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        # It may have ended meanwhile.
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it still runs."""
        self.kill()
        self.wait()
        self._answers.close()


class Forks:
    """The process that is forked, started with the first command."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        umask: int,
        output: int,
        errors: int,
        input: int | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> Command:
        """Start ``cvat-pool``, with its streams to the file descriptors ``output`` and ``errors``,
        and from ``input``, or from nothing.

        ``constants`` are the product's that are others in it, by module and name.
        """
        order = {
            "arguments": arguments,
            "cwd": str(cwd),
            "env": dict(env),
            "umask": umask,
            "constants": dict(constants or {}),
        }
        answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._guard:
            fds = [output, errors, theirs.fileno(), *([] if input is None else [input])]
            socket.send_fds(self._connected(), [json.dumps(order).encode()], fds)
        return Command(arguments, answers)

    def run(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        umask: int,
        timeout: float,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``cvat-pool`` to its end; ``input`` is what stands on its standard input.

        :raises subprocess.TimeoutExpired: it was killed after so many seconds.
        """
        with (
            tempfile.TemporaryFile() as output,
            tempfile.TemporaryFile() as errors,
            tempfile.TemporaryFile() as given,
        ):
            given.write((input or "").encode())
            given.seek(0)
            started = self.start(
                arguments,
                cwd=cwd,
                env=env,
                umask=umask,
                output=output.fileno(),
                errors=errors.fileno(),
                input=None if input is None else given.fileno(),
            )
            with closing(started):
                code = started.wait(timeout)
            output.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess(
                list(arguments), code, output.read().decode(), errors.read().decode()
            )

    def _connected(self) -> socket.socket:
        if self._channel is None:
            self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MOST)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "support.forked"],
                    stdin=theirs.fileno(),
                    cwd=Path(__file__).parents[1],
                )
        return self._channel


def serve(orders: socket.socket) -> None:
    """Fork for each order, until the other end is closed."""
    for module in pkgutil.walk_packages(pool.__path__, "pool."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LAZY:
        importlib.import_module(name)
    gc.freeze()
    # What is forked here is not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        said, fds, _, _ = socket.recv_fds(orders, _MOST, 4)
        if not said:
            return
        if os.fork() == 0:
            orders.close()
            _supervise(json.loads(said), *fds)
            return
        for fd in fds:
            os.close(fd)


def _supervise(
    order: dict[str, Any], output: int, errors: int, answers: int, input: int | None = None
) -> None:
    """Fork once more; tell the command's id, and how it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(answers)
        os.dup2(os.open(os.devnull, os.O_RDONLY) if input is None else input, 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        cast(TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(order["env"])
        os.umask(order["umask"])
        os.chdir(order["cwd"])
        sys.argv[1:] = order["arguments"]
        for constant, value in order["constants"].items():
            module, _, name = constant.rpartition(".")
            assert hasattr(sys.modules[module], name), f"{constant} is gone"
            setattr(sys.modules[module], name, value)
        main()
        return
    with socket.socket(fileno=answers) as channel:
        channel.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        channel.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    serve(socket.socket(fileno=os.dup(0)))
