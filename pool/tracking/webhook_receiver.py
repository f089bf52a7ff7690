"""Act on CVAT's webhook deliveries, on a thread of its own.

A delivery has no id and no time, so a replay looks like the original. That does no harm: a
delivery about a task that the pool is not importing changes nothing, a second one about the same
import comes too late to, and the signatures of the last
:data:`REMEMBERED` deliveries are known, so that those are dropped unread.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum, auto

from pool.clock import Clock
from pool.config.settings import Template
from pool.cvat.records import ImportStatus
from pool.cvat.webhooks import PING, Event, is_signed, parse_event
from pool.errors import PoolError, StoreError
from pool.logs import get_logger
from pool.model import ImportRecord, PooledTask
from pool.store import Store
from pool.tracking.tracker import UNDER_WAY, Tracker
from pool.tracking.webhook_health import whole_task

log = get_logger(__name__)

#: How many signatures are remembered, to drop what is sent again.
REMEMBERED = 4096
#: Deliveries that may wait to be handled; more are refused, and polling finds their imports.
WAITING = 1000
#: Seconds for which the secret is used before it is read again, and how soon it is read again
#: when a signature does not fit: it may have been made a moment ago.
SECRET_FOR = 5.0
SECRET_AGAIN = 0.2
#: A delivery that comes so many seconds after the jobs were found, or this share of the time that
#: the import took, does not prove that the webhook can be relied on.
TOO_LATE = 0.5
TOO_LATE_SHARE = 0.25


class Effect(Enum):
    """What a delivery did."""

    IGNORED = auto()
    #: Jobs were taken from it, without a poll.
    DELIVERED = auto()
    #: The jobs are asked for at once.
    EXPEDITED = auto()
    #: An import has failed.
    FAILED = auto()


class WebhookReceiver:
    """Takes deliveries from the HTTP server, and ends the imports that they announce."""

    def __init__(
        self,
        store: Store,
        tracker: Tracker,
        templates: Mapping[str, Template],
        job_url: Callable[[int, int], str],
        *,
        clock: Clock,
    ) -> None:
        self._store = store
        self._tracker = tracker
        self._templates = templates
        self._job_url = job_url
        self._clock = clock
        #: Bounded where deliveries are put, so that the end of it never has to wait for room.
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        #: Whether what still waits is not handled any more.
        self._dropping = False
        self._guard = threading.Lock()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._secret: str | None = None
        self._secret_read = -SECRET_FOR

    # --- On the HTTP server's side --------------------------------------------------------------

    def authentic(self, body: bytes, signature: str) -> bool:
        """Whether CVAT has sent this body to this pool. Reads the store now and then."""
        if not signature:
            return False
        with self._guard:
            age = self._clock.monotonic() - self._secret_read
            if age >= SECRET_FOR or (age >= SECRET_AGAIN and not self._fits(body, signature)):
                self._read_secret()
            return self._fits(body, signature)

    def put(self, body: bytes, signature: str) -> bool:
        """Hand over an authentic delivery; returns at once. False when too many wait."""
        with self._guard:
            if signature in self._seen:
                self._seen.move_to_end(signature)
                return True
            if self._queue.qsize() >= WAITING:
                return False
            self._queue.put(body)
            self._seen[signature] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return True

    def _fits(self, body: bytes, signature: str) -> bool:
        return self._secret is not None and is_signed(body, signature, self._secret)

    def _read_secret(self) -> None:
        self._secret_read = self._clock.monotonic()
        try:
            self._secret = self._store.webhook_secret()
        except StoreError as error:
            log.warning("webhook secret not readable", why=str(error))

    # --- On a thread of its own -----------------------------------------------------------------

    def start(self) -> None:
        """Handle what comes until :meth:`stop`."""
        self._thread = threading.Thread(target=self._run, name="deliveries", daemon=True)
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Handle what has come, and end. What is left after ``timeout`` seconds is dropped: polling
        finds those imports."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(timeout)
            self._dropping = True

    def _run(self) -> None:
        while (body := self._queue.get()) is not None and not self._dropping:
            try:
                self.handle(body)
            except Exception as error:
                # One odd delivery must not silence all others; polling finds its import.
                kind = log.warning if isinstance(error, PoolError) else log.exception
                kind("delivery not handled", why=str(error))

    def handle(self, body: bytes) -> Effect:
        """Act on one authentic delivery."""
        event = parse_event(body, self._job_url)
        if event is None:
            log.info("delivery not understood", bytes=len(body))
            return Effect.IGNORED
        effect, in_time = self._effect(event)
        if event.webhook_id is not None and in_time:
            self._store.hear_webhook(event.webhook_id, now=self._clock.now())
        log.debug(
            "delivery", webhook_event=event.name, task_id=event.task_id, effect=effect.name.lower()
        )
        return effect

    def _effect(self, event: Event) -> tuple[Effect, bool]:
        """What the delivery did, and whether it shows that the webhook can be relied on."""
        if event.task_id is None:
            return Effect.IGNORED, event.name == PING
        found = self._store.task_on_server(event.task_id)
        if found is None:
            return Effect.IGNORED, False
        task, importing = found
        if task.state not in UNDER_WAY:
            return Effect.IGNORED, self._in_time(task, importing)
        if event.outcome is not None and event.outcome.status is ImportStatus.FAILED:
            self._tracker.fail(task, importing, event.outcome.message)
            return Effect.FAILED, True
        template = self._templates.get(task.template)
        if importing and event.job and whole_task(template, importing, event.job):
            self._tracker.deliver(task, importing, (event.job,))
            return Effect.DELIVERED, True
        if event.job is None and event.outcome is None:
            return Effect.IGNORED, True  # a job for ground truth comes with others
        self._tracker.expedite(task, importing)
        return Effect.EXPEDITED, True

    def _in_time(self, task: PooledTask, importing: ImportRecord | None) -> bool:
        """Whether a delivery about an import that was found before comes soon after that, as one
        does when polling happens to be quicker."""
        took, found_at = 0.0, task.changed_at
        if importing is not None and importing.uploaded_at is not None:
            # Not when the task's row changed last, which its final name does, too.
            found_at = importing.finished_at or task.changed_at
            took = found_at - importing.uploaded_at
        allowed = max(TOO_LATE, TOO_LATE_SHARE * took)
        return self._clock.now() - found_at <= allowed
