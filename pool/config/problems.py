"""The messages about a configuration: the place, what was expected, what was found, and the nearest
key or option. The errors of pydantic are reworded so."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic_core import ErrorDetails

#: What is expected, by the types of errors that :mod:`pool.config.fields` does not word.
_EXPECTED: Final = {
    "string_type": "text in quotes",
    "string_too_long": "one line of at most {max_length} characters",
    "tuple_type": "an array",
    "too_long": "an array of at most {max_length}",
    "dataclass_type": "a table",
    "model_type": "a table",
}


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


def explain(error: ErrorDetails) -> str:
    """Return what is wrong with a value."""
    kind, message, context = error["type"], error["msg"], error.get("ctx", {})
    if kind == "missing":
        return f"the {error['loc'][-1]} is missing"
    if kind == "refused":
        return message
    if kind in _EXPECTED:
        what, hint = _EXPECTED[kind].format(**context), ""
    elif kind == "expected":
        what, hint = context["what"], context["hint"]
    else:
        return f"{message[:1].lower()}{message[1:]}, found {shown(error['input'])}"
    return mismatch(what, error["input"]) + hint


def mismatch(what: str, value: object) -> str:
    """Return the message for a value in whose place ``what`` is expected."""
    return f"expected {what}, found {shown(value)}"


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Return the message for a key that is none of the ``known``."""
    known = tuple(known)
    near = nearest(name, known)
    return (
        f"unknown key; did you mean {near}?" if near else f"unknown key; known: {', '.join(known)}"
    )


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that was probably meant, if any is near."""
    by_lower_case = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.6)
    return by_lower_case[near[0]] if near else None


def shown(value: object) -> str:
    """Return a value as it stands in the file, cut to a length that fits into a message."""
    match value:
        case dict():
            return "a table"
        case list():
            return "an array"
        case bool() | str() | None:
            text = json.dumps(value, ensure_ascii=False)
            return text if len(text) <= 60 else f"{text[:57]}…{text[-1]}"
        case _:
            return str(value)[:60]
