"""A TOML text: its values, as ``tomllib`` reads them, and the line of each key, which ``tomllib``
does not report.

What finds the lines is no parser: the text has passed ``tomllib`` before, so nothing is checked
there, and the only thing to get right is where keys and values begin and end.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pool.config.problems import Problem

#: The way to a value: keys of tables and, inside arrays, positions.
Key = tuple[str | int, ...]

#: Comments; strings, of which one of several lines may end in up to two quotes of its own before
#: the three that close it; dates, which may have a space inside; punctuation; and all other words.
_TOKEN: Final = re.compile(
    r"#[^\n]*"
    r'|"""(?:[^"\\]|\\.|"(?!""))*"{3,5}'
    r"|'''(?:[^']|'(?!''))*'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'"
    r"|\d{4}-\d\d-\d\d \d\d:[^\s,\]}#]+"
    r"|[\[\]{}=,]"
    r"|[^\s\[\]{}=,\"'#]+",
    re.DOTALL,
)


def parse(text: str) -> dict[str, Any] | Problem:
    """Return the values of a text, or why it is no TOML."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        return Problem(0, "", "not valid TOML: nested too deeply")
    except ValueError as error:
        return _syntax_problem(str(error), text)


def _syntax_problem(message: str, text: str) -> Problem:
    """tomllib's message in our form; it names the place as "(at line 3, column 5)"."""
    what, _, place = message.partition(" (at ")
    if what == "Cannot overwrite a value":
        what = "a key or a table that has a value already is given again"
    numbers = re.match(r"line (\d+), column (\d+)", place)
    line = int(numbers[1]) if numbers else len(text.splitlines())
    column = f", column {numbers[2]}" if numbers else ""
    return Problem(line, "", f"not valid TOML{column}: {what[:1].lower()}{what[1:]}")


def key_lines(text: str) -> Mapping[Key, int]:
    """Return the line, from 1, of every key and every array element in a valid TOML text."""
    return _Scanner(text).scan()


def show_key(key: Key) -> str:
    """Return a key as people write it: ``templates.cars.labels[0].name``."""
    shown = ""
    for part in key:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            shown += ("." if shown else "") + (
                part if bare else json.dumps(part, ensure_ascii=False)
            )
    return shown


class _Scanner:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, int]] = []
        line, counted = 1, 0
        for match in _TOKEN.finditer(text):
            line += text.count("\n", counted, match.start())
            counted = match.start()
            if not match[0].startswith("#"):
                self._tokens.append((match[0], line))
        self._at = 0
        self._lines: dict[Key, int] = {}
        self._elements: dict[Key, int] = {}  # how many [[headers]] each array of tables has had

    def scan(self) -> dict[Key, int]:
        table: Key = ()
        while self._at < len(self._tokens):
            table = self._header() if self._token == "[" else self._pair(table)
        return self._lines

    @property
    def _token(self) -> str:
        return self._tokens[self._at][0]

    @property
    def _line(self) -> int:
        return self._tokens[self._at][1]

    def _header(self) -> Key:
        """Read the header of a table, and return the key of the table."""
        line = self._line
        brackets = 2 if self._tokens[self._at + 1][0] == "[" else 1
        self._at += brackets
        table: Key = ()
        for part in self._key("]"):
            table = (*self._last_element(table), part)
            self._lines.setdefault(table, line)
        self._at += brackets
        if brackets == 2:
            self._elements[table] = self._elements.get(table, 0) + 1
        table = self._last_element(table)
        self._lines.setdefault(table, line)
        return table

    def _last_element(self, key: Key) -> Key:
        """Return what a header means that goes through an array of tables: its latest element."""
        count = self._elements.get(key)
        return key if count is None else (*key, count - 1)

    def _pair(self, table: Key) -> Key:
        """Read a key and its value, and return the table that they stand in."""
        key, line = table, self._line
        for part in self._key("="):
            key = (*key, part)
            self._lines.setdefault(key, line)
        self._at += 1
        self._value(key)
        return table

    def _value(self, key: Key) -> None:
        opening = self._token
        self._at += 1
        if opening == "[":
            for position in self._members("]"):
                self._lines[(*key, position)] = self._line
                self._value((*key, position))
        elif opening == "{":
            for _ in self._members("}"):
                self._pair(key)

    def _members(self, closing: str) -> Iterator[int]:
        """Stop at each member of an array or inline table; the caller moves past it."""
        position = 0
        while self._token != closing:
            yield position
            position += 1
            if self._token == ",":
                self._at += 1
        self._at += 1

    def _key(self, end: str) -> list[str]:
        """Read the parts of a key up to the token ``end``, at which it stops."""
        parts: list[str] = []
        while self._token != end:
            token = self._token
            quoted = token[0] in "\"'"
            parts += [_unquote(token)] if quoted else filter(None, token.split("."))
            self._at += 1
        return parts


def _unquote(part: str) -> str:
    if "\\" in part and part.startswith('"'):
        return str(tomllib.loads(f"key = {part}")["key"])
    return part[1:-1]
