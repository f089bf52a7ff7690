"""Serves one request that was accepted before, on a worker of the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.config.source import Upload
from pool.errors import CvatError, DataGone, OwnerGone, PoolEmpty, PoolError, StoreError
from pool.logs import get_logger
from pool.model import MOST_TASKS_SPOOLED, Handout, RequestRecord, RequestState
from pool.requests.breaker import Breaker, Circuit
from pool.requests.lifecycle import Step, is_passing, may_be_shared
from pool.requests.placement import Placement
from pool.requests.sending import Sender
from pool.requests.spool import Spool
from pool.store import Store, Unserved

log = get_logger(__name__)

#: Seconds until a request is tried again whose data could not be read, the disk failing, say.
RETRY_AFTER_INTERNAL_ERROR: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkItem:
    """One accepted request to serve. Without a ``handout`` its task is created for it. ``trial``
    says that this is to find out whether CVAT takes the template's data again."""

    template: Template
    request: RequestRecord
    handout: Handout | None = None
    upload: Upload | None = None
    trial: bool = False


class Worker:
    """Serves accepted requests, whose data is in the spool, on the thread that calls.
    Thread-safe."""

    def __init__(
        self,
        store: Store,
        placement: Placement,
        sender: Sender,
        spool: Spool,
        breaker: Breaker,
        *,
        clock: Clock,
    ) -> None:
        self._store = store
        self._placement = placement
        self._sender = sender
        self._spool = spool
        self._breaker = breaker
        self._clock = clock

    def serve(self, item: WorkItem) -> float:
        """Bring an accepted request as far as possible now. Return the seconds after which it may
        be tried again, should it still wait."""
        circuit = self._breaker.uploads(item.template.name)
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
            gone = DataGone(f"{self._spool.folder} has none")
            self._sender.fail(item.request, gone, untouched=True)
            return 0.0
        # A small question first: an upload into the void would cost the task.
        if item.trial and not self._breaker.ask():
            self.put_back(item)
            return 0.0
        handout = item.handout or self._create(item)
        if handout is None:
            return 0.0
        sent = self._sender.send(item.template, handout, upload, accepted=True)
        if sent.step is Step.WAIT and sent.untouched:
            self.put_back(item)
        return sent.pause

    def put_back(self, item: WorkItem) -> None:
        """Let a request wait again for which nothing was done; its task is warm again."""
        self._store.queue_request(
            item.request.id,
            expected_lease_id=item.request.lease_id,
            most=None,
            now=self._clock.now(),
        )

    def take_over(self, each: Unserved, *, owner: str) -> bool:
        """Give another task to a request whose upload a process left in the middle: how much of
        the data the old one has is unknown. Return whether it has failed instead, having used up
        enough of them."""
        request = self._store.take_spooled(each.id, owner=owner, now=self._clock.now())
        if request is None or request.state is not RequestState.UPLOADING:
            return False
        log.info("request taken over", request_id=request.id, state=request.state.value)
        if request.imports_used + 1 >= MOST_TASKS_SPOOLED:
            return self.fail_waiting(each, OwnerGone("this has happened several times"))
        self._sender.throw_away(request, OwnerGone())
        return False

    def fail_waiting(self, each: Unserved, error: PoolError) -> bool:
        """Fail a request that no thread works on; False when another process was quicker."""
        failed = self._store.fail_request(
            each.id,
            expected_lease_id=each.lease_id,
            code=error.code,
            message=error.detail,
            now=self._clock.now(),
        )
        if failed:
            log.warning("request failed", request_id=each.id, why=str(error))
            self._spool.drop(each.id)
            self._breaker.forget(each.id)
        return failed

    def _create(self, item: WorkItem) -> Handout | None:
        """Create the task; None when there is none, and the request waits again or has ended."""
        try:
            return self._placement.create(
                item.template, item.request.lease_id, waited=0.0, request_id=item.request.id
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
