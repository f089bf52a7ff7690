"""A command with a terminal to talk to, for what only people get to see."""

from __future__ import annotations

import os
import pty
import re
import tempfile
import termios
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from support.commands import FORKS, INHERITED, environment
from support.forked import Command
from support.waiting import PATIENCE

#: What moves the cursor, erases and colours (ECMA-48).
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The command's standard error is a terminal, and its input; its output is only if wanted."""

    def __init__(self, process: Command, screen: int, output: IO[bytes]) -> None:
        self.process = process
        self._output = output
        self._screen = screen
        self._seen = ""

    def wait_for(self, text: str) -> None:
        """Read until a text has been shown; AssertionError when the command ends before."""
        while text not in self.shown:
            assert self._read(), f"no {text!r} in {self.shown!r}"

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._screen, f"{text}\n".encode())

    def finish(self) -> str:
        """Let the command end; returns its output, the one that was not to the terminal."""
        while self._read():
            pass
        self.process.wait(PATIENCE)
        self._output.seek(0)
        return self._output.read().decode()

    @property
    def shown(self) -> str:
        """All that has been on the screen, without what controls it."""
        return _CONTROL.sub("", self._seen)

    @property
    def controls(self) -> list[str]:
        """All that has controlled the screen."""
        return _CONTROL.findall(self._seen)

    def _read(self) -> bool:
        try:
            data = os.read(self._screen, 2**16)
        except OSError:  # Linux: no process has the other end open any more
            return False
        self._seen += data.decode("utf-8", "replace")
        return bool(data)


@contextmanager
def in_a_terminal(
    *arguments: str | Path, cwd: Path, output: bool = False, **extra: str
) -> Iterator[Terminal]:
    """Run a command whose standard error and input are a terminal; with ``output``, what it prints
    goes there, too."""
    screen, line = pty.openpty()
    extra = {"TERM": "xterm", "COLUMNS": "80", "LC_ALL": "C.UTF-8", **extra}
    termios.tcsetwinsize(line, (24, int(extra["COLUMNS"])))
    with os.fdopen(screen, "rb"), tempfile.TemporaryFile() as file:
        try:
            process = FORKS.start(
                [*map(str, arguments)],
                cwd=cwd,
                env=environment(extra),
                umask=INHERITED,
                output=line if output else file.fileno(),
                errors=line,
                input=line,
            )
        finally:
            os.close(line)
        with closing(process):
            yield Terminal(process, screen, file)
