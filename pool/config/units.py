"""Durations and sizes as people write them: ``"1h30m"``, ``"500ms"``, ``"64MiB"``; and what
servers write into ``Retry-After``.

Durations become seconds, sizes become bytes. What is written is read exactly: the text that
:func:`format_duration` and :func:`format_size` make reads back as the same number.
"""

from __future__ import annotations

import re
from datetime import UTC
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Final

#: The longest duration that is accepted, in seconds: ten years. A thread cannot wait much
#: longer than some hundred years.
LONGEST: Final = 3650 * 86400.0

#: The most seconds that a server may ask to wait.
LONGEST_RETRY_AFTER: Final = 3600.0

_SECONDS: Final = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_NUMBER: Final = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_PLAIN_NUMBER: Final = re.compile(rf"\s*[+-]?{_NUMBER}\s*")
# Largest unit first and each at most once, so that "30m1h" and "1h1h" are seen as slips.
_DURATION: Final = re.compile(
    r"\s*"
    + r"\s*".join(
        rf"(?:(?P<{unit}>{_NUMBER})\s*{unit}{'(?!s)' if unit == 'm' else ''})?" for unit in _SECONDS
    )
    + r"\s*"
)

#: More digits than any delay has are nonsense.
_DELAY: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")

_BYTES: Final = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_UNITS_BY_LOWER_CASE: Final = {unit.lower(): unit for unit in _BYTES}
_SIZE: Final = re.compile(rf"\s*(?P<number>{_NUMBER})\s*(?P<unit>[A-Za-z]*)\s*")


def parse_duration(value: object) -> float:
    """Return the seconds that ``value`` stands for: ``"1h30m"`` is 5400.0.

    Units are ms, s, m, h and d. A number without a unit is refused, except 0: 30 might mean seconds
    or minutes.

    :raises ValueError: it is no duration; the message is fit for a user.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value == 0:
            return 0.0
        raise ValueError(_without_unit(str(value)))
    if not isinstance(value, str):
        raise ValueError('expected a duration such as "30s" or "1h30m"')  # noqa: TRY004
    if _PLAIN_NUMBER.fullmatch(value):
        if Decimal(value.strip()) == 0:
            return 0.0
        raise ValueError(_without_unit(value.strip()))
    match = _DURATION.fullmatch(value)
    parts = {unit: text for unit, text in match.groupdict().items() if text} if match else {}
    if not parts:
        raise ValueError(
            'expected a duration such as "500ms", "30s", "1h30m" or "7d" (units: d, h, m, s, ms)'
        )
    seconds = float(sum((Decimal(text) * _SECONDS[unit] for unit, text in parts.items())))
    if seconds > LONGEST:
        raise ValueError(f"expected a duration of at most {format_duration(LONGEST)}")
    return seconds


def format_duration(seconds: float) -> str:
    """Return the shortest text for a duration, to the millisecond: 5400.0 is ``"1h30m"``."""
    rest = round(seconds * 1000)
    text = ""
    for unit, factor in _SECONDS.items():
        count, rest = divmod(rest, int(factor * 1000))
        if count:
            text += f"{count}{unit}"
    return text or "0s"


def retry_after(
    value: str | None, *, now: float, most: float = LONGEST_RETRY_AFTER
) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks to wait, ``most`` at the most.

    It is a number of seconds or a date (RFC 9110, section 10.2.3); ``now`` is in seconds since the
    epoch. None when it is neither: nonsense is ignored.
    """
    text = (value or "").strip()
    if _DELAY.fullmatch(text):
        return min(float(text), most)
    try:
        date = parsedate_to_datetime(text)
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(0.0, seconds), most)


def parse_size(value: object) -> int:
    """Return the bytes that ``value`` stands for: ``"64MiB"`` is 67108864, an integer is bytes.

    KiB, MiB, GiB and TiB are powers of 1024; KB, MB, GB and TB are powers of 1000.

    :raises ValueError: it is no size; the message is fit for a user.
    """
    expected = 'expected a size such as "64MiB" or "100MB", or a number of bytes'
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError(expected)
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(expected)
    unit = _UNITS_BY_LOWER_CASE.get(match["unit"].lower() or "b")
    if unit is None:
        raise ValueError(f"{expected} (units: {', '.join(_BYTES)})")
    size = Decimal(match["number"]) * _BYTES[unit]
    if size != int(size):
        raise ValueError("expected a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """Return the shortest exact text for a number of bytes: 67108864 is ``"64MiB"``."""
    candidates = [f"{size // factor}{unit}" for unit, factor in _BYTES.items() if not size % factor]
    return min(candidates, key=len) if size else "0B"


def _without_unit(number: str) -> str:
    digits = number.lstrip("+-")
    return f'expected a duration with a unit: "{digits}s" for seconds, "{digits}m" for minutes'
