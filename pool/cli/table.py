"""Tables of text that fit a terminal: long values are cut in the middle, and columns that matter
least are left out where there is no room for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

    @property
    def width(self) -> int:
        return max(map(len, (self.heading, *self.values)))

    def shown(self, value: str, most: int) -> str:
        """Return a value in so many characters."""
        if self.tail and len(value) > most:
            return f"{value[: most - 1]}…"
        return cut(value, most).rjust(most) if self.right else cut(value, most).ljust(most)

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
    return [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]


def _sum(widths: Sequence[int] | Iterator[int]) -> int:
    each = list(widths)
    return sum(each) + len(_GAP) * (len(each) - 1)


def cut(name: str, most: int) -> str:
    """Return a name shortened in the middle to ``most`` characters."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"
