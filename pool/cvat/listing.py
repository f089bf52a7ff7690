"""All pages of a listing of CVAT's, as one state of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

from pool.cvat.failures import Answer, error_from_answer, not_cvat
from pool.cvat.records import parse_id
from pool.cvat.transport import Transport
from pool.errors import CvatBusy

#: A row, and the time of its answer, as :func:`answered_at` has it.
Row = tuple[Any, float | None]
_PAGE_SIZE: Final = 500
#: How often a listing is read that changes between two pages, before it is given up.
_MAX_LISTINGS: Final = 3


class Unsteady(CvatBusy):
    """A listing changed while it was read."""


def list_all(
    transport: Transport, operation: str, path: str, query: Mapping[str, object]
) -> list[Row]:
    """Return the rows of all pages, in order of id, each once.

    A listing whose count changes between two pages may have skipped something, so it is begun
    again, and never taken for complete.

    :raises Unsteady: it changed each time.
    """
    for _ in range(_MAX_LISTINGS):
        found = _list_once(transport, operation, path, query)
        if found is not None:
            return [found[key] for key in sorted(found)]
    raise Unsteady(f"{path} changed between two pages, {_MAX_LISTINGS} times in a row")


def _list_once(
    transport: Transport, operation: str, path: str, query: Mapping[str, object]
) -> dict[int, Row] | None:
    """Return the rows by id; None when they changed meanwhile.

    The pages are numbered here: ``next`` in the answer is an absolute address, whose host and
    scheme may be wrong behind a proxy.
    """
    found: dict[int, Row] = {}
    query = {**query, "page_size": _PAGE_SIZE, "sort": "id"}
    number, count = 1, None
    while True:
        # The last page is gone when things were deleted since the one before it.
        accept = (404,) if number > 1 else ()
        answer = transport.call(operation, "GET", path, query=query, accept=accept)
        if answer.status == 404:
            if b"Invalid page" not in answer.data:
                raise error_from_answer(answer, method="GET", now=transport.clock.now())
            return None
        page = answer.json()
        if not (isinstance(page, dict) and isinstance(page.get("results"), list)):
            raise not_cvat(answer, "no list")
        before, count = count, page.get("count")
        if before not in (None, count):
            return None
        moment = answered_at(answer)
        for payload in page["results"]:
            found[parse_id(payload)] = payload, moment
        if not page.get("next"):
            return found
        number += 1
        query["page"] = number


def answered_at(answer: Answer) -> float | None:
    """Return the time of an answer by the server's clock, in Unix seconds to the second."""
    try:
        return parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
    except ValueError:
        return None


def json_filter(rule: Any) -> str:
    """Return a rule in the form of the query."""
    return json.dumps(rule, separators=(",", ":"), ensure_ascii=False)
