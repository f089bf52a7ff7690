"""Readers: each takes one value of ``config.toml`` and returns what the settings hold.

A reader that cannot use its value raises :class:`Unfit`, whose text says what was expected and
what was found, for people who look at their file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from pool.config.units import format_duration, format_size, parse_duration, parse_size

Reader = Callable[[object], Any]

#: The largest number that CVAT's integer columns hold.
LARGEST: Final = 2**31 - 1


class Unfit(ValueError):
    """A value that will not do."""


def shown(value: object) -> str:
    """A value as it stands in the file, cut to a length that fits into a message."""
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


def expected(what: str, value: object) -> Unfit:
    return Unfit(f"expected {what}, found {shown(value)}")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, if any is near."""
    import difflib

    by_lower_case = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), by_lower_case, n=1, cutoff=0.6)
    return by_lower_case[near[0]] if near else None


def unknown_key(name: str, known: Iterable[str]) -> str:
    """What is said about a key that nobody knows."""
    known = tuple(known)
    near = nearest(name, known)
    return (
        f"unknown key; did you mean {near}?" if near else f"unknown key; known: {', '.join(known)}"
    )


def flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise expected("true or false", value)


def whole(low: int, high: int = LARGEST) -> Reader:
    """Whole numbers from ``low`` to ``high``, both included."""
    what = f"a whole number of at least {low}"
    if high != LARGEST:
        what = f"a whole number from {low} to {high}"

    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise expected(what, value)

    return read


def replicas(value: object) -> int:
    """CVAT's consensus: none, or at least two annotators for each frame."""
    read: int = whole(0)(value)
    if read == 1:
        raise expected("0 (no consensus) or at least 2", value)
    return read


def share(value: object) -> float:
    """A share of a whole, neither nothing nor all of it."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    raise expected("a number between 0 and 1, both excluded", value)


def text(*, most: int = 255, blank: bool = True) -> Reader:
    """Text of at most ``most`` characters, on one line."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise expected("text in quotes", value)
        if not blank and not value.strip():
            raise expected("text that is not blank", value)
        if len(value) > most or not value.isprintable():
            raise expected(f"one line of at most {most} characters", value)
        return value

    return read


def matching(pattern: str, what: str) -> Reader:
    """Text that matches ``pattern`` as a whole."""
    compiled = re.compile(pattern)

    def read(value: object) -> str:
        if isinstance(value, str) and compiled.fullmatch(value):
            return value
        raise expected(what, value)

    return read


def choice(*options: str, note: str = "") -> Reader:
    """One of the ``options``; ``note`` is added to the message for any other value."""
    what = " or ".join(f'"{option}"' for option in options)
    if len(options) > 2:
        what = "one of " + ", ".join(f'"{option}"' for option in options)

    def read(value: object) -> str:
        if isinstance(value, str):
            if value in options:
                return value
            near = nearest(value, options) if len(options) > 1 else None
            if near:
                raise Unfit(f'{expected(what, value)}; did you mean "{near}"?')
        raise Unfit(f"{expected(what, value)}{note}")

    return read


def several(reader: Reader, what: str, *, least: int = 0) -> Reader:
    """An array of at least ``least`` values that ``reader`` takes, called ``what``."""

    def read(value: object) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise expected(f"an array of {what}", value)
        if len(value) < least:
            raise Unfit(f"expected at least {least} of {what}")
        return tuple(reader(one) for one in value)

    return read


def tables(value: object) -> tuple[object, ...]:
    """An array of tables; whether each is one is seen when it is read."""
    if isinstance(value, list):
        return tuple(value)
    raise expected("an array of tables, [[…]]", value)


def duration(*, zero: bool = False) -> Reader:
    """Seconds, written with a unit; 0 only where it means something."""

    def read(value: object) -> float:
        try:
            seconds = parse_duration(value)
        except ValueError as error:
            raise Unfit(f"{error}, found {shown(value)}") from None
        if not seconds and not zero:
            raise expected(f"a duration longer than {format_duration(0)}", value)
        return seconds

    return read


def size(value: object) -> int:
    """Bytes, at least one."""
    try:
        read = parse_size(value)
    except ValueError as error:
        raise Unfit(f"{error}, found {shown(value)}") from None
    if not read:
        raise expected(f"a size of more than {format_size(0)}", value)
    return read


def server_url(value: object) -> str:
    """The address of a CVAT server, without a slash at its end."""
    what = 'an address such as "http://localhost:8080" or "https://app.cvat.ai"'
    if not isinstance(value, str):
        raise expected(what, value)
    try:
        parts = urlsplit(value)
        has_password = parts.username is not None or parts.password is not None
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        # What cannot be split is not shown either, since it may hold a password.
        raise Unfit(f"expected {what}, found something else") from None
    if has_password or "@" in value:
        raise Unfit(
            "credentials do not belong in the address: take out what stands before the @, and "
            "set CVAT_ACCESS_TOKEN, or CVAT_USERNAME and CVAT_PASSWORD, in the environment"
        )
    if not usable or re.search(r"\s", value):
        raise expected(what, value)
    if parts.query or parts.fragment:
        raise expected("an address without ? and #", value)
    if parts.path.rstrip("/").endswith("/api"):
        raise expected("the address without /api", value)
    # Scheme and host mean the same in any case, but not to everybody who reads them.
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")


def sink_url(value: object) -> str:
    """An address that takes a POST, kept as it is."""
    what = 'an address such as "https://example.org/hook"'
    if not isinstance(value, str):
        raise expected(what, value)
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in parts.netloc or parts.fragment or re.search(r"\s", value):
        # Such addresses often hold a secret, so what was found is not shown.
        raise Unfit(f"expected {what}, without a user name, a password, # and spaces")
    return value


def secret_name(value: object) -> str:
    """``${NAME}``: the name of the environment variable that holds a secret."""
    found = (
        re.fullmatch(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value) if isinstance(value, str) else None
    )
    if found is None:
        raise Unfit(
            "a secret never stands here: put it into an environment variable and name that, "
            'secret = "${POOL_SINK_SECRET}", or into a file and use secret_file'
        )
    return found[1]


def store_url(value: object) -> str:
    """``sqlite:///`` and the path of a file."""
    what = '"sqlite:///" and the path of a file, such as "sqlite:///pool.db"'
    if not isinstance(value, str):
        raise expected(what, value)
    scheme, _, path = value.partition(":///")
    if scheme != "sqlite" or not path:
        # The address of a database server may hold a password, so it is not shown.
        raise Unfit(f"expected {what}; other stores are not available in this version")
    if path == ":memory:":
        raise Unfit(f"expected {what}; hand-outs must outlive the process, so memory will not do")
    return value
