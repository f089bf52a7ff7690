"""What callers say in headers: how long to wait, and under which key they may ask again."""

from __future__ import annotations

import re
from typing import Final

from starlette.requests import Request

from pool.config.arguments import check_key
from pool.errors import InputError

PREFER: Final = "Prefer"
PREFERENCE_APPLIED: Final = "Preference-Applied"
IDEMPOTENCY_KEY: Final = "Idempotency-Key"
RETRY_AFTER: Final = "Retry-After"

#: Seconds for which one answer waits at most.
LONGEST_WAIT: Final = 60

#: ``Prefer: wait=10`` among other preferences (RFC 7240, sections 2 and 4.3).
_WAIT: Final = re.compile(
    r"""\s*wait\s*=\s*(?P<quote>"?)(?P<seconds>\d{1,9})(?P=quote)\s*(;.*)?""", re.I
)


def wait_of(request: Request) -> int | None:
    """The seconds that the caller wants its answer to wait, at most :data:`LONGEST_WAIT`; None
    when it does not say. A preference that cannot be read is none (RFC 7240, section 2)."""
    for line in request.headers.getlist(PREFER):
        for preference in line.split(","):
            if match := _WAIT.fullmatch(preference):
                return min(int(match["seconds"]), LONGEST_WAIT)
    return None


def applied(wait: int | None) -> dict[str, str]:
    """The header that tells that a wait was honoured."""
    return {} if wait is None else {PREFERENCE_APPLIED: f"wait={wait}"}


def key_of(request: Request) -> str | None:
    """The caller's idempotency key, if it gave one.

    :raises InputError: it is no key.
    """
    keys = request.headers.getlist(IDEMPOTENCY_KEY)
    if not keys:
        return None
    if len(keys) > 1:
        raise InputError(f"{IDEMPOTENCY_KEY} is given twice")
    return check_key(keys[0])
