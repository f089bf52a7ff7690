"""Groups on their way into a task: the places that are free for them, and what is sealed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pool.clock import Clock
from pool.config.settings import Template
from pool.config.source import Upload, combined, frame_numbers, group_names
from pool.errors import DataGone, StoreError
from pool.logs import get_logger
from pool.model import Priority
from pool.requests.concurrency import places_of
from pool.requests.grouping import (
    Places,
    bulk_places,
    group_key,
    groups_of,
    pace_of,
    seconds_to_wait,
)
from pool.requests.in_flight import InFlight
from pool.requests.runner import RETRY_AFTER_INTERNAL_ERROR, Runner
from pool.requests.sending import Sender
from pool.requests.spool import FETCHES, Spool
from pool.store import MadeFor, NewMember, Store, Unserved
from pool.tracking.tracker import Tracker

log = get_logger(__name__)


class Groups:
    """Decides when a group is sent, and seals it. Thread-safe.

    ``again`` is called when a request was left out that can be served by itself.
    """

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        runner: Runner,
        sender: Sender,
        spool: Spool,
        in_flight: InFlight,
        *,
        again: Callable[[], None],
        clock: Clock,
    ) -> None:
        self._store = store
        self._tracker = tracker
        self._runner = runner
        self._sender = sender
        self._spool = spool
        self._in_flight = in_flight
        self._again = again
        self._clock = clock

    def free_places(self, template: Template, others: Sequence[MadeFor]) -> tuple[int, int]:
        """Return how many more imports that requests may share can be begun now, and how many of
        bulk; tasks that are being made for such requests count, here and by ``others``."""
        most = places_of(self._store, template.importing)
        made_for = [key[1] for key in self._in_flight.creating() if key is not None]
        made_for += [priority for _, key, priority, _ in others if key is not None]
        bulk = self._store.grouped_imports(Priority.BULK) + made_for.count(Priority.BULK)
        busy = self._store.grouped_imports() + len(made_for) + self._runner.obtaining
        return most - busy, bulk_places(most) - bulk

    def divide(self, template: Template, requests: Sequence[Unserved]) -> list[list[Unserved]]:
        """Return requests, in the order in which they are served, as the groups in which they are
        sent; those of bulk by how fast the server was seen to be."""
        pace = pace_of(self._tracker.import_times(template.name))
        return groups_of(requests, template.importing, pace=pace)

    def seconds_to_wait(self, template: Template, group: Sequence[Unserved], *, free: int) -> float:
        """Return the seconds for which a group waits: for others, or for a place, of which so many
        are ``free``; infinite while only the end of an import can tell."""
        settings, now = template.importing, self._clock.now()
        # A library caller's is in the queue at once; those that come by here may be on their way.
        since_last = now - group[-1].created_at
        places = Places(
            free=free,
            busy=places_of(self._store, settings) - free,
            next_free=self._tracker.next_end(),
            upload=self._tracker.upload_time(
                template.name,
                files=sum(len(each.files) for each in group),
                size=sum(each.size for each in group),
            ),
            quiet=max(0.0, min(since_last, self._in_flight.quiet_for())),
        )
        return seconds_to_wait(group, settings, places, now=now)

    def seal(
        self, template: Template, group: Sequence[Unserved]
    ) -> tuple[list[NewMember], Upload | None]:
        """Return the members of a group with their names in CVAT, and what is uploaded for them.
        Left out are requests whose data cannot be read; one that has none has failed. Left out,
        and sent alone next, are also those that a reload has made unfit for a group."""
        uploads: dict[str, Upload] = {}
        for each in group:
            upload = self.load(each)
            if upload is None:
                continue
            if _is_fit(template, each, upload):
                uploads[each.id] = upload
            else:
                self._store.send_alone(each.id)
                self._again()
        if len(uploads) < 2:
            return [NewMember(request_id=request_id) for request_id in uploads], None
        names = group_names([upload.given for upload in uploads.values()])
        members = [
            NewMember(request_id=request_id, names=own)
            for request_id, own in zip(uploads, names, strict=True)
        ]
        return members, combined(list(uploads.values()))

    def fetch(self, requests: Sequence[Unserved]) -> list[Unserved]:
        """Fetch the data of requests that is not on this machine, as :meth:`load` does, of several
        at the same time; return those whose data is here then."""
        away = self._spool.elsewhere(each.id for each in requests)
        if away:
            missing = [each for each in requests if each.id in away]
            with ThreadPoolExecutor(
                min(FETCHES, len(missing)), thread_name_prefix="fetch"
            ) as threads:
                [*threads.map(self.load, missing)]
            away = self._spool.elsewhere(away)
        return [each for each in requests if each.id not in away]

    def load(self, each: Unserved) -> Upload | None:
        """Return the data of a request; None when it cannot be read now, so that the request is
        left alone for a while, or when there is none, so that it has failed."""
        try:
            upload = self._spool.load(each.id)
        except StoreError as error:
            log.error("data not readable", request_id=each.id, why=str(error))
            until = self._clock.monotonic() + RETRY_AFTER_INTERNAL_ERROR
            self._in_flight.let_go(each.id, paused_until=until)
            return None
        if upload is None:
            gone = DataGone(f"{self._spool.place} has none")
            self._sender.fail(each, gone, untouched=True)
        return upload


def _is_fit(template: Template, each: Unserved, upload: Upload) -> bool:
    """Whether a request may share a task by the template as it is now: with other data parameters
    its frames may have other numbers than those that it was accepted with."""
    if group_key(template, upload) is None:
        return False
    return each.frame_numbers == frame_numbers(upload, template.data)
