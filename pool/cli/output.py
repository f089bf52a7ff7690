"""Printing: what was done on standard output, hints on standard error, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypeVar

import typer

from pool.errors import PoolError


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A request, or a lease, as it is printed once its jobs exist."""

    #: One for each job, its id first, so that ``cut -f1`` has the ids.
    lines: Sequence[str]
    #: For ``--json``.
    document: dict[str, object]
    #: What its caller should know besides; for standard error.
    notes: Sequence[str] = ()


class Result(Protocol):
    """The result of one of several steps; ``error`` is None if it succeeded."""

    @property
    def error(self) -> PoolError | None: ...


R = TypeVar("R", bound=Result)


def print_results(
    results: Iterable[R],
    text: Callable[[R], str],
    document: Callable[[R], dict[str, Any]],
    *,
    as_json: bool,
) -> list[R]:
    """Print each result as it comes, or all of them as JSON at the end, and return them.

    :raises typer.Exit: a step failed; with the exit code of the first error.
    """
    done = []
    for result in results:
        done.append(result)
        if not as_json:
            print(wrapped(text(result)), flush=True)
    if as_json:
        print_json([document(result) for result in done])
    for result in done:
        if result.error is not None:
            raise typer.Exit(result.error.exit_code)
    return done


def done(words: str, document: dict[str, Any], *, as_json: bool) -> None:
    """Print what a command did, in one line, or as JSON."""
    if as_json:
        print_json(document)
    else:
        print(words)


def wrapped(text: str) -> str:
    """Return lines broken between words at the width of the terminal; as they are where standard
    output is none."""
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(
        textwrap.fill(
            line, width, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False
        )
        for line in text.splitlines()
    )


def counted(count: int, what: str) -> str:
    """Return a number of things in words: "no tasks", "1 task", "2 tasks"."""
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def hint(words: str) -> None:
    """Print a line for people on standard error, where it is no part of the result."""
    print(words, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Print records as JSON on standard output: times as ISO 8601, states as their values, no
    private fields."""
    print(json.dumps(value, default=_plain, indent=2, ensure_ascii=False))


def json_line(value: Any) -> str:
    """Return a record as one line of JSON: one of several that come over time."""
    return json.dumps(value, default=_plain, ensure_ascii=False)


def error_document(error: PoolError) -> dict[str, str]:
    """Return an error for ``--json``, as the HTTP API describes that of a request."""
    return {"code": error.code, "title": error.title, "detail": error.detail}


def failure(error: PoolError) -> dict[str, Any]:
    """Return the error that a command ends with for ``--json``; of a wrong configuration with all
    mistakes, each with its line."""
    document = {**error_document(error), "exit_code": error.exit_code}
    problems = getattr(error, "problems", ())
    return {**document, "problems": problems} if problems else document


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return value.isoformat()
        case Enum():
            return value.value
        case Path():
            return str(value)
    fields = (field.name for field in dataclasses.fields(value))
    return {name: getattr(value, name) for name in fields if not name.startswith("_")}
