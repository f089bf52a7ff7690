"""What is said about a configuration that is wrong, and the first thing that can be: its TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pool.config.fields import Stamp
from pool.config.settings import Settings
from pool.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: on which line (from 1; 0 is the file as a whole), at which key."""

    line: int
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message

    def in_file(self, path: Path | None) -> str:
        """The problem with its place, ``file:line: key: what is wrong``."""
        if path is None:
            place = f"line {self.line}" if self.line else "configuration"
        else:
            place = f"{path}:{self.line}" if self.line else str(path)
        return f"{place}: {self}"


class InvalidConfig(ConfigError):
    """The configuration is wrong."""

    def __init__(self, problems: tuple[Problem, ...], path: Path | None = None) -> None:
        self.problems = problems
        self.path = path
        #: As :attr:`Settings.files`, as far as the file could be understood.
        self.files: Mapping[Path, Stamp] = {}
        #: What the tables beside the templates say, where nothing is wrong with them.
        self.rest: Settings | None = None
        first, *others = self.lines()
        more = f" (and {len(others)} more: 'cvat-pool check' shows all)" if others else ""
        super().__init__(first + more)

    def lines(self) -> tuple[str, ...]:
        """Every problem on a line of its own, ``file:line: key: what is wrong``."""
        return tuple(problem.in_file(self.path) for problem in self.problems)


def parse(text: str, path: Path | None) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InvalidConfig((Problem(0, "", "not valid TOML: nested too deeply"),), path) from None
    except ValueError as error:
        raise InvalidConfig((_syntax_problem(str(error), text),), path) from None


def _syntax_problem(message: str, text: str) -> Problem:
    """tomllib's message in our form; it names the place as "(at line 3, column 5)"."""
    what, _, place = message.partition(" (at ")
    if what == "Cannot overwrite a value":
        what = "a key or a table that has a value already is given again"
    numbers = re.match(r"line (\d+), column (\d+)", place)
    line = int(numbers[1]) if numbers else len(text.splitlines())
    column = f", column {numbers[2]}" if numbers else ""
    return Problem(line, "", f"not valid TOML{column}: {what[:1].lower()}{what[1:]}")
