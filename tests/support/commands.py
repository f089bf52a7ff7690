"""Runs ``cvat-pool`` as a process of its own, as a user does."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TextIO

from support.forked import Command, Forks
from support.waiting import PATIENCE

FORKS = Forks()
#: What a process of the tests has to begin with, and so its commands.
INHERITED = os.umask(0o022)
os.umask(INHERITED)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment without credentials, and with a width that does not depend on the
    terminal."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("CVAT_", "POOL_"))
    }
    return {**kept, "COLUMNS": "100", "PYTHONUNBUFFERED": "1", **extra}


def cvat_pool(
    *arguments: str | Path, cwd: Path, umask: int = -1, input: str | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; ``input`` is what stands on its standard input."""
    return FORKS.run(
        [*map(str, arguments)],
        cwd=cwd,
        env=environment(extra),
        umask=INHERITED if umask < 0 else umask,
        timeout=PATIENCE,
        input=input,
    )


class Running:
    """A command that runs until it is stopped; its output can be waited for."""

    def __init__(self, process: Command, output: TextIO) -> None:
        self.process = process
        self._output = output
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._output:
            with self._news:
                self.lines.append(line.rstrip())
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, text: str, *, times: int = 1) -> str:
        """The first line with ``text`` in it, or the one that is so many."""

        def found() -> str | None:
            lines = [line for line in self.lines if text in line]
            return lines[times - 1] if len(lines) >= times else None

        with self._news:
            if not self._news.wait_for(
                lambda: found() or not self._reader.is_alive(), timeout=PATIENCE
            ):
                raise AssertionError(f"no {text!r} in {self.lines}")
            line = found()
        assert line is not None, f"ended without {text!r}: {self.lines}"
        return line

    @property
    def url(self) -> str:
        """Where a daemon listens, as soon as it does."""
        line = self.wait_for("listening")
        return line.partition("url=")[2].split()[0].strip("'\"")

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


@contextmanager
def running(
    *arguments: str | Path,
    cwd: Path,
    umask: int = -1,
    constants: Mapping[str, Any] | None = None,
    **extra: str,
) -> Iterator[Running]:
    """A command in the background, killed at the end if it still runs; ``constants`` are the
    product's that are others in it."""
    reading, writing = os.pipe()
    try:
        process = FORKS.start(
            [*map(str, arguments)],
            cwd=cwd,
            env=environment(extra),
            umask=INHERITED if umask < 0 else umask,
            output=writing,
            errors=writing,
            constants=constants,
        )
    finally:
        os.close(writing)
    with os.fdopen(reading) as output, closing(process):
        command = Running(process, output)
        try:
            yield command
        except BaseException:
            print("\n".join(["what the command printed:", *command.lines]))
            raise
        finally:
            process.kill()
            process.wait()
            command._reader.join(PATIENCE)
