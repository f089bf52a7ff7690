"""Tables of text that fit a terminal: long values are cut in the middle, and columns that matter
least are left out where there is no room for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

_GAP: Final = "  "
#: Columns where there is no terminal, and COLUMNS is not set: a program wants all of each value.
_UNLIMITED: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class Column:
    """A heading and one value for each row.

    ``least`` characters are shown of each value at least; None: all. Of the columns with a ``rank``
    the one with the highest is left out first; an ``idle`` one before anything is cut. Values are
    cut in the middle, or at their ``tail``.
    """

    heading: str
    values: Sequence[str]
    least: int | None = None
    rank: int = 0
    right: bool = False
    idle: bool = False
    tail: bool = False

    def __post_init__(self) -> None:
        # Values are callers' and CVAT's: a terminal would follow what they hold of controls.
        object.__setattr__(self, "values", [printable(value) for value in self.values])

    @cached_property
    def width(self) -> int:
        from rich.cells import cell_len

        return max(map(cell_len, (self.heading, *self.values)))

    def shown(self, value: str, most: int) -> str:
        """Return a value in so many columns of the screen."""
        from rich.cells import cell_len

        value = cut_end(value, most) if self.tail else cut(value, most)
        room = " " * (most - cell_len(value))
        return f"{room}{value}" if self.right else f"{value}{room}"

    @property
    def narrowest(self) -> int:
        return self.width if self.least is None else min(self.least, self.width)


def terminal_width() -> int:
    """Return the columns of the terminal, or of COLUMNS."""
    return shutil.get_terminal_size((_UNLIMITED, 24)).columns


def table(columns: Sequence[Column], *, width: int) -> list[str]:
    """Return the lines of a table, the headings first. Columns without any value are left out."""
    shown = [each for each in columns if any(each.values)]
    if _sum(each.width for each in shown) > width:
        shown = [each for each in shown if not each.idle]
    while _sum(each.narrowest for each in shown) > width:
        worst = max(shown, key=lambda each: each.rank)
        if not worst.rank:
            break
        shown.remove(worst)
    widths = [each.width for each in shown]
    while _sum(widths) > width:
        # The widest first, so that what is short stays whole.
        spare = [now - each.narrowest for each, now in zip(shown, widths, strict=True)]
        widest = max(range(len(shown)), key=lambda at: (spare[at] > 0, widths[at]))
        if not spare[widest]:
            break
        widths[widest] -= 1
    lines = [
        _GAP.join(
            each.shown(value, most) for each, value, most in zip(shown, row, widths, strict=True)
        ).rstrip()
        for row in zip(*((each.heading, *each.values) for each in shown), strict=True)
    ]
    # On a screen that is too narrow for any of it.
    return [cut_end(line, width) for line in lines]


def _sum(widths: Sequence[int] | Iterator[int]) -> int:
    each = list(widths)
    return sum(each) + len(_GAP) * (len(each) - 1)


def printable(text: str) -> str:
    """Return text with a question mark for each character that cannot be printed."""
    return "".join(each if each.isprintable() else "?" for each in text)


def cut(name: str, most: int) -> str:
    """Return a name shortened in the middle to ``most`` columns of the screen."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{set_cell_size(name, most - 1 - tail)}…{set_cell_size(name[::-1], tail)[::-1]}"


def cut_end(text: str, most: int) -> str:
    """Return text shortened at its end to ``most`` columns of the screen."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= most else f"{set_cell_size(text, most - 1)}…"
