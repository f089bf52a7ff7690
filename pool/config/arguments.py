"""Arguments beside the data, checked in one way for the library, the command line and HTTP:
seconds, users, names, keys, ids."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime
from typing import Final

from pool.config.names import check_text, shown
from pool.config.units import format_duration
from pool.errors import InputError, PoolError, UnknownTemplate
from pool.model import Assignee, Priority, RequestState

#: The largest number that CVAT's integer columns hold.
LARGEST: Final = 2**31 - 1
#: Seconds that one call may wait, and that a lease lasts.
LONGEST_WAIT: Final = 30 * 86400.0
SHORTEST_LEASE: Final = 1.0
LONGEST_LEASE: Final = 30 * 86400.0
#: Seconds that prewarming lasts.
SHORTEST_PREWARM: Final = 0.001
LONGEST_PREWARM: Final = 30 * 86400.0
#: Characters of a task's name.
LONGEST_NAME: Final = 256
#: Characters of a stream's name, which its tasks bear with a number behind it.
LONGEST_STREAM: Final = 200
#: Characters of what is searched for.
LONGEST_SEARCH: Final = 200
#: Characters of a user's name.
LONGEST_USER: Final = 150
_NUMBER: Final = re.compile(r"-?[0-9]+")
#: Visible ASCII, which a header can carry.
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
TEMPLATE_NAME: Final = re.compile(r"(?!\.{1,2}$)[0-9A-Za-z._-]{1,64}")
_ID: Final = re.compile(r"[0-9A-Za-z_-]{1,64}")


def check_seconds(
    what: str, value: object, *, least: float = 0.0, most: float = LONGEST_WAIT
) -> float:
    """Return a number of seconds.

    :raises InputError: it is no number, is not finite, or is out of bounds.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{what} is a number of seconds, not {_found(value)}")
    # NaN fails this comparison, too.
    if not least <= value <= most:
        bounds = f"{format_duration(least)} to {format_duration(most)}"
        raise InputError(f"{what} lasts {bounds}, not {_found(value)} s")
    return float(value)


def check_timeout(value: object) -> float | None:
    """Return how long to wait; None leaves it to the callee.

    :raises InputError: as :func:`check_seconds`.
    """
    return None if value is None else check_seconds("timeout", value)


def check_ttl(value: object) -> float | None:
    """Return how long a lease lasts; None leaves it to the template.

    :raises InputError: as :func:`check_seconds`.
    """
    if value is None:
        return None
    return check_seconds("ttl", value, least=SHORTEST_LEASE, most=LONGEST_LEASE)


def check_whole(what: str, value: object, *, least: int = 0, most: int = LARGEST) -> int:
    """Return a whole number.

    :raises InputError: it is no whole number, or is out of bounds.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{what} is a whole number from {least} to {most}, not {_found(value)}")
    return value


def check_prewarm(count: object, duration: object) -> tuple[int, float]:
    """Return how many tasks to keep warm, and for how many seconds.

    :raises InputError: as :func:`check_whole` and :func:`check_seconds`.
    """
    seconds = check_seconds("a prewarm", duration, least=SHORTEST_PREWARM, most=LONGEST_PREWARM)
    return check_whole("the count of a prewarm", count), seconds


def check_assignee(value: object) -> Assignee | None:
    """Return a user of CVAT's, by id or by name. Digits alone are an id, also as text.

    :raises InputError: it can be neither.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if len(value) > LONGEST_USER or not _NUMBER.fullmatch(value):
            return _user_name(value)
        value = int(value)
    return check_whole("the id of an assignee", value, least=1)


def _user_name(value: str) -> str:
    if not (
        0 < len(value) <= LONGEST_USER
        and value.isprintable()
        and value == value.strip()
        and not value.isnumeric()
    ):
        raise InputError(
            f"the name of an assignee has 1 to {LONGEST_USER} characters that can be printed, no "
            f"space around them, and not only digits, unlike {_found(value)}"
        )
    return value


def check_priority(value: object) -> Priority | None:
    """Return the priority of a request; None leaves it to the template.

    :raises InputError: there is no such priority.
    """
    if value is None:
        return None
    try:
        return Priority(str(value))
    except ValueError:
        raise InputError(f"priority is one of {', '.join(Priority)}, not {_found(value)}") from None


def check_states(values: Collection[str]) -> tuple[RequestState, ...]:
    """Return the states of requests, each once.

    :raises InputError: there is no such state.
    """
    try:
        return tuple(dict.fromkeys(RequestState(str(each)) for each in values))
    except ValueError:
        raise InputError(
            f"the states of a request are {', '.join(RequestState)}, not {_found(values)}"
        ) from None


def check_task_name(value: object) -> str | None:
    """Return the name for a task.

    :raises InputError: CVAT would refuse it (recording assignees).
    """
    if value is None:
        return None
    name = check_text(value, "the name of a task")
    if not 0 < len(name.strip()) <= LONGEST_NAME:
        raise InputError(
            f"the name of a task has 1 to {LONGEST_NAME} characters that are not all blank"
        )
    return name


def check_stream(value: object) -> str | None:
    """Return the name of a stream.

    :raises InputError: it cannot be the name of one.
    """
    if value is None:
        return None
    name = check_text(value, "the name of a stream")
    if not (0 < len(name) <= LONGEST_STREAM and name.isprintable() and name == name.strip()):
        raise InputError(
            f"the name of a stream has 1 to {LONGEST_STREAM} characters that can be printed, and "
            f"no space around them, unlike {_found(name)}"
        )
    return name


def check_search(value: object) -> str | None:
    """Return what requests are searched for.

    :raises InputError: no request has such text.
    """
    if value is None:
        return None
    text = check_text(value, "what is searched for")
    if not (0 < len(text) <= LONGEST_SEARCH and text.isprintable()):
        raise InputError(
            f"what is searched for has 1 to {LONGEST_SEARCH} characters that can be printed, "
            f"unlike {_found(text)}"
        )
    return text


def check_since(value: object) -> float | None:
    """Return a moment as seconds since the epoch.

    :raises InputError: it is no datetime, or has no time zone.
    """
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InputError(f"since is a datetime with a time zone, not {_found(value)}")
    return value.timestamp()


def check_key(value: object) -> str | None:
    """Return an idempotency key.

    :raises InputError: a header or the store cannot hold it.
    """
    if value is None or (isinstance(value, str) and _KEY.fullmatch(value)):
        return value
    raise InputError("an idempotency key has 1 to 255 visible ASCII characters")


def check_tenant(value: object) -> str | None:
    """Return the name of a tenant, "" for the operator, or None where none is given.

    :raises InputError: no tenant can have such a name.
    """
    if value is None or value == "" or (isinstance(value, str) and TEMPLATE_NAME.fullmatch(value)):
        return None if value is None else str(value)
    raise InputError(f"no tenant is called {ascii(value)[:100]}: it is the name of a token")


def check_template(value: object) -> str:
    """Return the name of a template.

    :raises UnknownTemplate: no template can have such a name.
    """
    if isinstance(value, str) and TEMPLATE_NAME.fullmatch(value):
        return value
    raise UnknownTemplate(_found(value))


def check_id(value: object, unknown: type[PoolError]) -> str:
    """Return the id of a lease or a request; raise ``unknown`` if it has another form."""
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise unknown(shown(str(value)))


def _found(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number that long"
    return ascii(value)[:60]
