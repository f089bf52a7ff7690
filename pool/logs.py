"""Structured logs, one line an event, through the standard library's logging.

As a library the pool is silent unless its host asks for the ``pool`` logger's records; the
host's own structlog configuration is neither used nor changed. :func:`configure` is what the
command line does.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_as_json = False


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger that takes an event and key-value pairs."""
    processors: list[Processor] = [
        structlog.stdlib.filter_by_level,
        # The HTTP call that a line belongs to, if any (pool.http.middleware).
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        _render,
    ]
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=processors,
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
    )
    return cast(structlog.stdlib.BoundLogger, logger)


def configure(*, level: str = "info", as_json: bool = False) -> None:
    """Log to standard error, for people or as JSON. ``level`` is debug, info, warning or error."""
    global _as_json
    _as_json = as_json
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s" if as_json else _FOR_PEOPLE))
    logger = logging.getLogger("pool")
    logger.handlers[:] = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    # What APScheduler warns of is counted and logged by pool.maintenance.scheduler.
    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)


_FOR_PEOPLE = "%(asctime)s %(levelname)-7s %(message)s"
_stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
_json = structlog.processors.JSONRenderer(default=str)
#: What stands for itself in a line, without quotes.
_PLAIN = re.compile(r"[^\s\"'=,]+")


def _render(logger: WrappedLogger, method: str, event: EventDict) -> str:
    if _as_json:
        return str(_json(logger, method, _stamp(logger, method, event)))
    what: Any = event.pop("event")
    trace: Any = event.pop("exception", None)
    event.pop("level", None)
    pairs = [f"{key}={_shown(value)}" for key, value in event.items() if value is not None]
    # CVAT's own words may stand in it, which a terminal must not follow.
    what = "".join(each if each.isprintable() else repr(each)[1:-1] for each in str(what))
    line = f"{what}: {' '.join(pairs)}" if pairs else what
    return f"{line}\n{trace}" if trace else line


def _shown(value: object) -> str:
    """Return a value as people read it, in one line: several of them with commas, and in quotes
    what has spaces or what a terminal cannot show."""
    if isinstance(value, list | tuple | set | frozenset):
        value = ", ".join(map(str, value))
    if not isinstance(value, str):
        return str(value)
    return value if _PLAIN.fullmatch(value) and value.isprintable() else repr(value)
