"""Runs a request: inline, while its caller waits until CVAT or the spool has the data; or, accepted
before, on a worker of the daemon."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.config.source import Progress, Upload
from pool.errors import (
    CvatError,
    CvatUnreachable,
    DataGone,
    OwnerGone,
    PoolEmpty,
    PoolError,
    QueueFull,
    StoreError,
)
from pool.logs import get_logger
from pool.model import MOST_TASKS_SPOOLED, Handout, Priority, RequestRecord, RequestState
from pool.requests.breaker import SERVER, Breaker, Circuit
from pool.requests.concurrency import places_of
from pool.requests.grouping import bulk_places, checked_key
from pool.requests.lifecycle import Step, is_away, is_passing, may_be_shared
from pool.requests.placement import Placement
from pool.requests.recovery import Recovery
from pool.requests.sending import Sender
from pool.requests.slots import NONE_FOR_STREAM, NONE_WARM, Filler, Way, way_of
from pool.requests.spool import Spool
from pool.store import NewMember, NewRequest, Store, Unserved
from pool.tracking.tracker import Tracker

log = get_logger(__name__)


#: Seconds until a request is tried again whose data could not be read, the disk failing, say.
RETRY_AFTER_INTERNAL_ERROR: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """The requests that share a task, and what is uploaded for them; the first is that for which
    the task was created. No members where it has the task for itself."""

    members: Sequence[NewMember] = ()
    upload: Upload | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkItem:
    """One accepted request to serve, or a group: ``others`` are the ids of those that share the
    task with it. Without a ``handout`` its task is created for it, and for those that ``join``
    returns then. ``trial`` says that this is to find out whether CVAT takes the template's data
    again, or makes its tasks."""

    template: Template
    request: RequestRecord
    others: tuple[str, ...] = ()
    handout: Handout | None = None
    upload: Upload | None = None
    join: Callable[[], Joined] = Joined
    trial: bool = False


class Runner:
    """Runs requests on the thread that calls. Thread-safe."""

    def __init__(
        self,
        store: Store,
        placement: Placement,
        sender: Sender,
        recovery: Recovery,
        tracker: Tracker,
        spool: Spool,
        filler: Filler,
        breaker: Breaker,
        *,
        max_queued: int,
        clock: Clock,
    ) -> None:
        self._store = store
        self._placement = placement
        self._sender = sender
        self._recovery = recovery
        self._tracker = tracker
        self._spool = spool
        self._filler = filler
        self._breaker = breaker
        self._max_queued = max_queued
        self._guard = threading.Lock()
        #: Requests that others may share an import with, and whose callers wait for a task.
        self.obtaining = 0
        self._on_queued: Callable[[], None] = lambda: None
        self._clock = clock

    # --- Inline: the caller waits -----------------------------------------------------------------

    def submit(
        self,
        template: Template,
        new: NewRequest,
        upload: Upload,
        *,
        idempotency_key: str | None,
        payload: str,
        timeout: float | None,
        progress: Progress | None,
    ) -> RequestRecord:
        """Bring data into a task of the pool: the request is ``IMPORTING`` afterwards; or
        ``QUEUED``, where CVAT is busy with imports that others may share, or there is a daemon and
        CVAT is away. With a known ``idempotency_key`` it is the request of the first call.

        :raises InputError: the data cannot be read. It costs no task.
        :raises PoolEmpty: no task in time, and the template says not to create one.
        :raises CvatError: CVAT did not take the data.
        :raises QueueFull: it would have to wait, and too much does already.
        :raises IdempotencyConflict: the key was used with other content.
        """
        way = way_of(template, new, upload)
        if way.by_slot:
            return self._submit_by_slot(way, upload, idempotency_key, payload, timeout, progress)
        template, new = way.template, way.new
        with self._recovery.guarding(request=new.id):
            away, settings = self._away(template), template.importing
            places = places_of(self._store, settings)
            if new.priority is Priority.BULK:
                places = bulk_places(places)
            key = checked_key(template, upload, self._clock)
            has_daemon = key is not None and self._breaker.has_daemon()
            # Without a daemon no task becomes warm that is not made on the spot.
            grouped = key is not None and (has_daemon or template.pool.on_empty == "create")
            # Others wait for a place already, or are to come.
            gathers = grouped and (settings.group_delay > 0 or self._store.queue_length() > 0)
            opened = self._placement.open(
                template,
                request=replace(new, group_key=key),
                idempotency_key=idempotency_key,
                payload=payload,
                claim=away is None and not gathers,
                places=places if grouped else None,
            )
            assert opened.request is not None
            if opened.replayed:
                return self._recovery.await_request(opened.request)
            if away is not None:
                return self._queue_or_fail(new.id, upload, away)
            if opened.task is not None:
                handout = Handout(lease=opened.lease, task=opened.task, request=opened.request)
                return self.run(template, handout, upload, progress)
            with self._obtaining(wanted=grouped and not gathers, places=places) as alone:
                if not grouped or alone:
                    try:
                        handout = self._placement.obtain(template, opened.lease.id, timeout)
                    except BaseException as error:
                        return self._queue_or_fail(new.id, upload, error)
            if grouped and not alone:
                queued = self._queue_or_fail(new.id, upload, None)
                if not has_daemon:
                    self._on_queued()
                return queued
            return self.run(template, handout, upload, progress)

    def _submit_by_slot(
        self,
        way: Way,
        upload: Upload,
        idempotency_key: str | None,
        payload: str,
        timeout: float | None,
        progress: Progress | None,
    ) -> RequestRecord:
        """Bring data into a slot; where there is none, into a task that is made for it."""
        template, new = way.template, way.new
        with self._recovery.guarding(request=new.id):
            opened = self._placement.open(
                template, request=new, idempotency_key=idempotency_key, payload=payload
            )
            assert opened.request is not None
            if opened.replayed:
                return self._recovery.await_request(opened.request)
            handout: Handout | None = None
            if opened.task is not None:
                handout = Handout(lease=opened.lease, task=opened.task, request=opened.request)
            try:
                if handout is None:
                    handout = self._placement.obtain_slot(
                        template, opened.lease.id, timeout, request=new
                    )
                if handout is None:
                    why = NONE_WARM if new.stream is None else NONE_FOR_STREAM
                    self._filler.leave_slots(template, new.id, upload, why, shares=False)
                    template = template.ordinary
                    handout = self._placement.obtain(template, opened.lease.id, timeout)
            except BaseException as error:
                return self._queue_or_fail(new.id, upload, error)
            return self.run(template, handout, upload, progress)

    @contextmanager
    def _obtaining(self, *, wanted: bool, places: int) -> Iterator[bool]:
        """Have a place while a task is found for a request, if it is ``wanted`` and one of so many
        is free; return whether it has."""
        with self._guard:
            free = wanted and self._store.grouped_imports() + self.obtaining < places
            self.obtaining += free
        try:
            yield free
        finally:
            with self._guard:
                self.obtaining -= free

    def on_queued(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called when a request was queued that no daemon serves."""
        self._on_queued = listener

    def upload_into(
        self,
        template: Template,
        lease_id: str,
        new: NewRequest,
        upload: Upload,
        *,
        progress: Progress | None,
    ) -> RequestRecord:
        """Bring data into the task of a lease; otherwise as :meth:`submit`.

        :raises LeaseEnded: the lease is not active, or has a request already.
        """
        self._filler.check_lease(lease_id, upload)
        with self._recovery.guarding(request=new.id):
            opened = self._placement.attach(lease_id, new)
            assert opened.task is not None
            handout = Handout(lease=opened.lease, task=opened.task, request=opened.request)
            self._tracker.forget(handout.task.id)
            return self.run(template, handout, upload, progress)

    def _away(self, template: Template) -> PoolError | None:
        """Return why a request would fail now, in a way that passes, so that trying again is best
        left to the daemon; None where it would not, or there is no daemon."""
        hold = self._breaker.passing_hold(template.name)
        if hold is None or not self._breaker.has_daemon():
            return None
        warm = self._placement.has_warm(template)
        # An empty pool that fails at once says so even now.
        fails = template.pool.on_empty == "fail" and not warm
        # Where only creates are held, a warm task can be used.
        usable = warm and hold.template != SERVER and not hold.uploads
        return None if fails or usable else CvatUnreachable(hold.reason)

    def run(
        self,
        template: Template,
        handout: Handout,
        upload: Upload,
        progress: Progress | None = None,
    ) -> RequestRecord:
        """Send the data of a request that has its task; the rest of :meth:`submit`."""
        while True:
            sent = self._sender.send(template, handout, upload, accepted=False, progress=progress)
            assert handout.request is not None
            if sent.error is not None and sent.step is Step.FAIL:
                raise sent.error
            request = self._now(handout.request.id)
            if sent.error is None:
                return request
            if sent.step is Step.WAIT:
                return self._queue_or_fail(request.id, upload, sent.error)
            # Its fresh lease may have been given a task as soon as it waited.
            given = request.lease_id != handout.lease.id and request.owner == handout.lease.owner
            if request.state is not RequestState.QUEUED and not (
                given and request.state is RequestState.UPLOADING
            ):
                # Another process has ended the import meanwhile.
                return request
            if request.no_slot:
                template = template.ordinary
            self._clock.sleep(sent.pause)
            try:
                handout = self._placement.obtain(template, request.lease_id, None)
            except PoolError as error:
                return self._queue_or_fail(request.id, upload, error)

    def _queue_or_fail(
        self, request_id: str, upload: Upload, error: BaseException | None
    ) -> RequestRecord:
        """Have a request wait in the spool for the daemon, if CVAT is away and there is one, or
        without an ``error``; its task, which is untouched, is warm again. Otherwise raise
        ``error``; the request has failed.

        :raises QueueFull: there is no room for it; the request has failed.
        """
        request = self._store.request(request_id)
        if request is None:
            raise error or PoolError(f"request {request_id} is gone from the store")
        try:
            if error is None or (is_away(error) and self._breaker.has_daemon()):
                return self._queue(request, upload)
        except PoolError as problem:
            self._sender.fail(request, problem, untouched=True)
            raise problem from error
        failure = error if isinstance(error, PoolError) else PoolError("interrupted")
        self._sender.fail(request, failure, untouched=True)
        raise error

    def _queue(self, request: RequestRecord, upload: Upload) -> RequestRecord:
        """Keep the data of a request, which is ``QUEUED`` afterwards. It is on the disk when this
        returns. A request that another process ended or took over meanwhile is answered as it is.

        :raises QueueFull: there is no room for it; the request is as it was.
        :raises InputError: its data cannot be read again; likewise.
        :raises StoreError: the disk does not do its part; likewise.
        """
        try:
            # The count that decides comes last, but a full queue should not cost a copy.
            self._check_room()
            self._spool.keep(request.id, upload)
            queued = self._store.queue_request(
                request.id,
                expected_lease_id=request.lease_id,
                most=self._max_queued,
                spool=self._spool.id,
                now=self._clock.now(),
            )
        except QueueFull as error:
            self._spool.drop(request.id)
            error.retry_after = self._breaker.retry_after()
            raise
        if queued is None:
            self._spool.drop(request.id)
            log.info("request not queued: another process has it", request_id=request.id)
            return self._now(request.id)
        log.info(
            "request queued", request_id=request.id, template=request.template, bytes=request.size
        )
        return queued

    def _check_room(self) -> None:
        most = self._max_queued
        if self._store.queue_length() >= most:
            raise QueueFull(f"{most} requests wait, as many as daemon.max_queued allows")

    def _now(self, request_id: str) -> RequestRecord:
        current = self._store.request(request_id)
        if current is None:
            raise PoolError(f"request {request_id} is gone from the store")
        return current

    # --- Accepted before: the data is in the spool ------------------------------------------------

    def serve(self, item: WorkItem) -> float:
        """Bring an accepted request as far as possible now. Return the seconds after which this
        process may try it again, should it still wait; its row has those for all processes."""
        circuit = self._breaker.uploads(item.template.name)
        if item.handout is not None and item.handout.task.carrier_id is not None:
            # A slot is filled without CVAT.
            circuit = Circuit.CLOSED
        if circuit is not Circuit.CLOSED and not (item.trial and circuit is Circuit.HALF_OPEN):
            # The circuit opened after this was dispatched.
            self.put_back(item)
            return 0.0
        try:
            upload = item.upload or self._spool.load(item.request.id)
        except StoreError as error:
            log.error("data not readable", request_id=item.request.id, why=str(error))
            self.put_back(item)
            return RETRY_AFTER_INTERNAL_ERROR
        if upload is None:
            gone = DataGone(f"{self._spool.place} has none")
            self._sender.fail(item.request, gone, untouched=True)
            return 0.0
        # A small question first: an upload into the void would cost the task.
        if item.trial and not self._breaker.ask():
            self.put_back(item)
            return 0.0
        handout, joined = item.handout, Joined()
        if handout is None:

            def join() -> Sequence[NewMember]:
                nonlocal joined
                joined = item.join()
                return joined.members

            handout = self._create_for(item, join)
        if handout is None:
            return 0.0
        others: Sequence[RequestRecord] = ()
        if item.others or joined.members:
            assert handout.request is not None
            others = self._store.members_of(handout.request.import_id or "")[1:]
        if others and joined.upload is not None:
            upload = joined.upload
        sent = self._sender.send(item.template, handout, upload, accepted=True, others=others)
        if sent.step is Step.WAIT and sent.untouched:
            self.put_back(item)
        return 0.0

    def put_back(self, item: WorkItem) -> None:
        """Let a request wait again for which nothing was done; its task is warm again."""
        self._store.queue_request(
            item.request.id,
            expected_lease_id=item.request.lease_id,
            most=None,
            now=self._clock.now(),
        )

    def take_over(self, each: Unserved, *, owner: str) -> None:
        """Give another task to a request whose upload a process left in the middle: how much of
        the data the old one has is unknown. Fail one that has used up enough of them."""
        request = self._store.take_spooled(each.id, owner=owner, now=self._clock.now())
        if request is None or request.state is not RequestState.UPLOADING:
            return
        log.info("request taken over", request_id=request.id, state=request.state.value)
        if request.imports_used + 1 >= MOST_TASKS_SPOOLED:
            gone = OwnerGone("this has happened several times")
            if not self._sender.split(request, gone, untouched=False):
                self._sender.fail(request, gone, untouched=False)
        else:
            self._sender.throw_away(request, OwnerGone())

    def _create_for(
        self, item: WorkItem, join: Callable[[], Sequence[NewMember]]
    ) -> Handout | None:
        """Create the task; None when there is none, and the request waits again or has ended."""
        try:
            return self._placement.create(
                item.template, item.request.lease_id, waited=0.0, joined=join
            )
        except PoolEmpty:
            # The request was cancelled meanwhile.
            current = self._store.request(item.request.id)
            if current is None or current.state is RequestState.CANCELLED:
                self._spool.drop(item.request.id)
        except CvatError as error:
            if not is_passing(error):
                # A passing failure was noted where the create was made.
                self._breaker.create_failed(item.template, error)
            if may_be_shared(error, accepted=True):
                self.put_back(item)
            else:
                # Those of the same template that wait would be refused in the same words.
                self._sender.fail(item.request, error, untouched=True)
        return None
