"""Reading headers and bodies, bounded in bytes and in time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect, Request

from pool.config.arguments import check_key
from pool.errors import InputError, TooLarge, TooSlow, WrongMediaType
from pool.http.schemas import AnyBody, parse

#: Bytes of the longest JSON body, and of the longest that lists file names.
LONGEST_JSON: Final = 2**16
LONGEST_LIST: Final = 8 * 2**20
#: Bytes of an upload that are gathered before they are written: its share of memory, beside the
#: buffers of the connection.
BLOCK: Final = 2**18
#: Bytes that must arrive within the time-out, so that a body sent byte by byte times out, too.
LEAST: Final = 2**12

JSON: Final = "application/json"
MULTIPART: Final = "multipart/form-data"

PREFER: Final = "Prefer"
PREFERENCE_APPLIED: Final = "Preference-Applied"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
RETRY_AFTER: Final = "Retry-After"

#: Seconds of the longest wait for an answer.
LONGEST_WAIT: Final = 60

#: ``Prefer: wait=10`` among other preferences (RFC 7240, sections 2 and 4.3).
_WAIT: Final = re.compile(
    r"""\s*wait\s*=\s*(?P<quote>"?)(?P<seconds>\d{1,9})(?P=quote)\s*(;.*)?""", re.I
)


def wait_of(request: Request) -> int | None:
    """Return the seconds that the answer may wait, at most :data:`LONGEST_WAIT`, or None if the
    caller does not ask for that. Unknown preferences are ignored (RFC 7240, section 2)."""
    for line in request.headers.getlist(PREFER):
        for preference in line.split(","):
            if match := _WAIT.fullmatch(preference):
                return min(int(match["seconds"]), LONGEST_WAIT)
    return None


def key_of(request: Request) -> str | None:
    """Return the caller's idempotency key, or None.

    :raises InputError: the key is invalid, or is given twice.
    """
    keys = request.headers.getlist(IDEMPOTENCY_KEY)
    if len(keys) > 1:
        raise InputError(f"{IDEMPOTENCY_KEY} is given twice")
    return check_key(keys[0]) if keys else None


def applied(wait: int | None) -> dict[str, str]:
    """Return the header by which a wait is acknowledged (RFC 7240, section 3)."""
    return {} if wait is None else {PREFERENCE_APPLIED: f"wait={wait}"}


def media_type(request: Request) -> str:
    """Return the media type of the body, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(
    request: Request, kind: type[AnyBody], *, timeout: float, most: int = LONGEST_JSON
) -> AnyBody:
    """Return the JSON body as a model of this kind. Raises the errors of :func:`blocks`, and:

    :raises WrongMediaType: its media type is not JSON.
    :raises InputError: it is not valid.
    """
    if media_type(request) != JSON:
        raise WrongMediaType(f"send {JSON}")
    return parse(kind, await read(request, most=most, timeout=timeout))


async def read(request: Request, *, most: int, timeout: float) -> bytes:
    """Return the whole body. Raises the errors of :func:`blocks`."""
    parts = [block async for block, _ in blocks(request, most=most, timeout=timeout)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def blocks(
    request: Request, *, most: int, timeout: float
) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the body, :data:`BLOCK` bytes or a little more at a time, and whether it is the last.

    :raises TooLarge: it has more than ``most`` bytes, by its Content-Length or as received.
    :raises TooSlow: the next :data:`LEAST` bytes did not arrive within ``timeout`` seconds.
    :raises starlette.requests.ClientDisconnect: the caller has gone.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise TooLarge(f"at most {most} bytes")
    waiting: list[bytes] = []
    gathered = received = 0
    more = True
    while more:
        piece, more = await _piece(request, timeout, more=LEAST)
        received += len(piece)
        gathered += len(piece)
        if received > most:
            raise TooLarge(f"at most {most} bytes")
        waiting.append(piece)
        if gathered >= BLOCK or not more:
            yield (waiting[0] if len(waiting) == 1 else b"".join(waiting)), not more
            waiting.clear()
            gathered = 0


async def _piece(request: Request, timeout: float, *, more: int) -> tuple[bytes, bool]:
    """Return the next ``more`` bytes at least, or the rest; and whether any are left."""
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if not message.get("more_body", False):
                    return b"".join(pieces), False
                if size >= more:
                    return b"".join(pieces), True
    except TimeoutError:
        raise TooSlow(f"at least {LEAST} bytes must arrive every {timeout:g} s") from None
