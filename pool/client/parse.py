"""From the JSON documents of a daemon to the records and errors of the Python API."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pool.clock import parse_time
from pool.errors import PoolError, UnknownLease, kind_of_error
from pool.handles import LeaseHandle
from pool.model import Event, Job, LeaseState, Outcome, RequestRecord, RequestWarning
from pool.status import DaemonStatus, SpoolStatus, Status, StreamStatus, TemplateStatus

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteLease:
    """A lease as the daemon describes it.

    ``jobs`` is None while there are none; ``error`` is why there will be none. The fields of the
    task are None while it has no task.
    """

    id: str
    template: str
    tenant: str = ""
    state: LeaseState
    name: str | None = None
    task_id: int | None = None
    task_name: str | None = None
    url: str | None = None
    outcome: Outcome | None = None
    owner: str
    created_at: datetime
    expires_at: datetime | None = None
    jobs: tuple[Job, ...] | None = None
    error: PoolError | None = None

    def handle(self) -> dict[str, Any]:
        """Return the fields of its handle.

        :raises UnknownLease: it has no task.
        """
        if self.task_id is None:
            raise UnknownLease(f"{self.id} has no task")
        names = (each.name for each in fields(LeaseHandle))
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteRequest(RequestRecord):
    """A request as the daemon describes it, with the address of its task; ``jobs`` is None until
    it is ready.

    Fields that only the store has, such as the owner, are empty.
    """

    owner: str = ""
    url: str | None = None
    jobs: tuple[Job, ...] | None = None


def parse_lease(document: Mapping[str, Any]) -> RemoteLease:
    """Return the lease in a document."""
    with understood():
        error = document.get("error")
        parsed = {"jobs": _jobs(document), "error": error and _error(error)}
        return _record(RemoteLease, {**document, **parsed})


def parse_leases(document: Mapping[str, Any]) -> tuple[list[RemoteLease], str | None]:
    """Return the leases of a page, and the cursor of the next one."""
    with understood():
        return [parse_lease(each) for each in document["items"]], document["next_cursor"]


def parse_requests(document: Mapping[str, Any]) -> tuple[list[RemoteRequest], str | None]:
    """Return the requests of a page, and the cursor of the next one."""
    with understood():
        return [parse_request(each) for each in document["items"]], document["next_cursor"]


def parse_request(document: Mapping[str, Any]) -> RemoteRequest:
    """Return the request in a document."""
    with understood():
        warnings = tuple(_record(RequestWarning, each) for each in document.get("warnings") or ())
        frames = document.get("frames")
        given = [each["file"] for each in frames] if frames else document.get("files") or ()
        numbers = [each["number"] for each in frames] if frames else None
        parsed = {
            **document,
            "given": given,
            "frame_numbers": numbers,
            "no_slot": document.get("no_slot") or "",
            "data_away": document.get("data_away") or "",
            "jobs": _jobs(document),
            "warnings": warnings,
        }
        if (error := parsed.pop("error", None)) is not None:
            parsed |= {"error": _error(error).detail, "error_code": str(error.get("code") or "")}
        return _record(RemoteRequest, parsed)


def parse_status(document: Mapping[str, Any]) -> Status:
    """Return the status of the pool in a document."""
    with understood():
        rows = tuple(_record(TemplateStatus, each) for each in document["templates"])
        daemons = tuple(_record(DaemonStatus, each) for each in document["daemons"])
        spools = tuple(_record(SpoolStatus, each) for each in document["spools"])
        return _record(
            Status, {**document, "templates": rows, "daemons": daemons, "spools": spools}
        )


def parse_streams(document: Mapping[str, Any]) -> list[StreamStatus]:
    """Return the streams in a document."""
    with understood():
        return [_record(StreamStatus, each) for each in document["items"]]


def parse_retired(document: Mapping[str, Any]) -> int:
    """Return how many tasks a drain has retired."""
    with understood():
        return int(document["retired"])


def parse_events(document: Mapping[str, Any]) -> list[Event]:
    """Return the events in a document."""
    with understood():
        return [_record(Event, each) for each in document["items"]]


def parse_event(data: str) -> Event:
    """Return the event in a message of the stream."""
    with understood():
        return _record(Event, json.loads(data))


def named_error(code: str, title: str, detail: str) -> PoolError:
    """Return an error of the class with ``code``, else one with the title and the detail."""
    kind = kind_of_error(code)
    if kind is not None and kind is not PoolError:
        return kind(detail)
    return PoolError(": ".join(words for words in (title.rstrip("."), detail) if words))


@contextmanager
def understood() -> Iterator[None]:
    """Turn errors in the block, which parses a document, into one PoolError."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PoolError(f"the daemon's answer is not understood here ({error!r})") from None


# --- From JSON to records -------------------------------------------------------------------------


def _error(document: Mapping[str, Any]) -> PoolError:
    return named_error(*(str(document.get(name) or "") for name in ("code", "title", "detail")))


def _jobs(document: Mapping[str, Any]) -> tuple[Job, ...] | None:
    jobs = document.get("jobs")
    return None if jobs is None else tuple(_record(Job, each) for each in jobs)


def _record(kind: type[T], document: Any) -> T:
    """Return a record of the members of a document that it knows; a newer daemon may send more."""
    return kind(
        **{
            name: _value(document[name], types)
            for name, types in _types(cast(Any, kind)).items()
            if name in document
        }
    )


@cache
def _types(kind: Any) -> dict[str, tuple[Any, ...]]:
    """Return the fields of a record, each with its possible types."""
    hints = get_type_hints(kind)
    return {
        each.name: get_args(hints[each.name]) or (hints[each.name],)
        for each in fields(kind)
        if not each.name.startswith("_")
    }


def _value(value: Any, types: tuple[Any, ...]) -> Any:
    """Convert a value of JSON to the first of the types that JSON has no form of."""
    if value is None:
        return None
    for kind in types:
        if kind is datetime:
            return parse_time(value)
        if kind is float and isinstance(value, str):
            return parse_time(value).timestamp()
        if isinstance(kind, type) and issubclass(kind, Enum):
            return kind(value)
    return tuple(value) if isinstance(value, list) else value
