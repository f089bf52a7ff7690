"""Lists in pages: ``page``, ``page_size``, the links to the pages around."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

from .call import Call
from .records import Json
from .replies import detail

T = TypeVar("T")

DEFAULT_PAGE_SIZE = 10


def page(call: Call, rows: Sequence[T], render: Callable[[T], Json]) -> tuple[Json, int]:
    """One page of the rows as JSON, and how many rows it has.

    ``page_size`` is a number or ``all``; 0 and what is no number mean the default of 10.
    Raises 404 for a page beyond the end.
    """
    query = call.query
    size = _page_size(query.get("page_size", ""), len(rows))
    pages = max(1, -(-len(rows) // size))
    number = _page_number(query.get("page", "1"), pages)
    start = (number - 1) * size
    chosen = rows[start : start + size]
    body = {
        "count": len(rows),
        "next": _link(call, number + 1) if number < pages else None,
        "previous": _link(call, number - 1) if number > 1 else None,
        "results": [render(row) for row in chosen],
    }
    return body, len(chosen)


def _page_size(given: str, count: int) -> int:
    if given == "all":
        return max(count, 1)
    try:
        size = int(given)
    except ValueError:
        size = 0
    return size if size > 0 else DEFAULT_PAGE_SIZE


def _page_number(given: str, pages: int) -> int:
    if given == "last":
        return pages
    try:
        number = int(given)
    except ValueError:
        number = 0
    if not 1 <= number <= pages:
        raise detail(404, "Invalid page.")
    return number


def _link(call: Call, number: int) -> str:
    """The URL of another page: the same query, sorted; the first page has no number."""
    query = dict(parse_qsl(call.request.url.query, keep_blank_values=True))
    query.pop("page", None)
    if number > 1:
        query["page"] = str(number)
    url = f"{call.base_url}{call.request.url.path}"
    return f"{url}?{urlencode(sorted(query.items()))}" if query else url
