"""The line of each key of a TOML text, which ``tomllib`` does not report.

This is not a parser: the text has passed ``tomllib`` before, so nothing is checked here, and the
only thing to get right is where keys and values begin and end.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Final

#: The way to a value: keys of tables and, inside arrays, positions.
Key = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_BASIC: Final = r'"(?:[^"\\\n]|\\.)*"'
_LITERAL: Final = r"'[^'\n]*'"
# A multi-line string may end in up to two quotes of its own before the three that close it.
_STRING: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}' r"|'''(?:[^']|'(?!''))*'{3,5}" rf"|{_BASIC}|{_LITERAL}",
    re.DOTALL,
)
_KEY_PART: Final = re.compile(rf"[ \t]*({_BASIC}|{_LITERAL}|[^\s.=\"'\[\]#]+)[ \t]*(\.?)")
# Numbers, booleans and dates; a date may have a space inside.
_SCALAR: Final = re.compile(r"[^,\]}#\n]+")


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
        self._text = text
        self._at = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[Key, int] = {}
        self._elements: dict[Key, int] = {}  # how many [[headers]] each array of tables has had

    def scan(self) -> dict[Key, int]:
        table: Key = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)
        return self._lines

    def _header(self) -> Key:
        line = self._line()
        of_array = self._text.startswith("[[", self._at)
        self._at += 2 if of_array else 1
        table: Key = ()
        for part in self._key():
            table = (*self._last_element(table), part)
            self._lines.setdefault(table, line)
        self._at = self._text.index("]", self._at) + (2 if of_array else 1)
        if of_array:
            self._elements[table] = self._elements.get(table, 0) + 1
        table = self._last_element(table)
        self._lines.setdefault(table, line)
        return table

    def _last_element(self, key: Key) -> Key:
        """Return what a header means that goes through an array of tables: its latest element."""
        count = self._elements.get(key)
        return key if count is None else (*key, count - 1)

    def _pair(self, table: Key) -> None:
        line = self._line()
        for part in self._key():
            table = (*table, part)
            self._lines.setdefault(table, line)
        self._at = self._text.index("=", self._at) + 1
        self._skip(_BLANK)
        self._value(table)

    def _value(self, key: Key) -> None:
        opening = self._text[self._at]
        if opening == "[":
            for position in self._members("]"):
                self._lines[(*key, position)] = self._line()
                self._value((*key, position))
        elif opening == "{":
            for _ in self._members("}"):
                self._pair(key)
        else:
            self._skip(_STRING if opening in "\"'" else _SCALAR)

    def _members(self, closing: str) -> Iterator[int]:
        """Stop at each member of an array or inline table; the caller moves past it."""
        position = 0
        self._at += 1
        self._skip(_BLANK)
        while self._text[self._at] != closing:
            yield position
            position += 1
            self._skip(_BLANK)
            if self._text[self._at] == ",":
                self._at += 1
                self._skip(_BLANK)
        self._at += 1

    def _key(self) -> list[str]:
        parts = []
        more = True
        while more:
            match = _KEY_PART.match(self._text, self._at)
            if match is None:
                raise ValueError(f"no key on line {self._line()}")
            parts.append(_unquote(match[1]))
            self._at = match.end()
            more = bool(match[2])
        return parts

    def _skip(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"no value on line {self._line()}")
        self._at = match.end()

    def _line(self) -> int:
        return bisect_right(self._newlines, self._at) + 1


def _unquote(part: str) -> str:
    if part.startswith("'"):
        return part[1:-1]
    if not part.startswith('"'):
        return part
    if "\\" not in part:
        return part[1:-1]
    import tomllib  # only quoted keys with escapes come this far

    value = tomllib.loads(f"key = {part}")["key"]
    return str(value)
