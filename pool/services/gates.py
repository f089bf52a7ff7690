"""What may be tried now, as far as the holds and earlier refusals tell."""

from __future__ import annotations

import threading

from pool.clock import Clock
from pool.errors import CvatForbidden, PoolError
from pool.services.backoff import SERVER, Gate, gate
from pool.services.queue import Queue
from pool.store.base import Store


class Gates:
    """Keeps those who serve requests from a server, or a template, that is in trouble.

    A template's hold alone does not stop uploads: CVAT may refuse to create its tasks and still
    take data for those that are there. So it is known here for which templates uploads were
    refused. That is forgotten with the process, which costs one call.
    """

    def __init__(self, store: Store, queue: Queue, *, clock: Clock) -> None:
        self._store = store
        self._queue = queue
        self._clock = clock
        self._guard = threading.Lock()
        #: Templates whose uploads CVAT refuses to take from us, and whose data it refused last.
        self._refused: dict[str, str] = {}
        #: Requests that were refused, since when others of their template were not.
        self._suspects: set[str] = set()

    # --- What may be tried ------------------------------------------------------------------------

    def server(self) -> Gate:
        """Whether the server as a whole may be called."""
        return self._gate(SERVER)

    def creates(self, template: str) -> Gate:
        """Whether a task of the template may be created."""
        return self._gate(template)

    def uploads(self, template: str) -> Gate:
        """Whether data may be sent for a template."""
        with self._guard:
            if template not in self._refused:
                return Gate.OPEN
            now = self._gate(template)
            if now is Gate.OPEN:
                # Somebody has ended the hold: a person who says that it is mended.
                del self._refused[template]
            return now

    def open_for(self, template: str) -> bool:
        """Whether nothing speaks against sending data for a template, as much as there is."""
        return self.server() is Gate.OPEN and self.uploads(template) is Gate.OPEN

    def refused_last(self, template: str) -> str | None:
        """The request for which CVAT refused a template's data last, if it still does."""
        with self._guard:
            return self._refused.get(template)

    def server_opens_at(self, *, now: float) -> float | None:
        """When the server may be tried again, by the monotonic clock; None when it may now."""
        hold = self._store.holds().get(SERVER)
        seconds = (hold.retry_at or 0.0) - self._clock.now() if hold else 0.0
        return now + seconds if seconds > 0 else None

    def _gate(self, name: str) -> Gate:
        return gate(self._store.holds().get(name), now=self._clock.now())

    # --- What became of trying --------------------------------------------------------------------

    def shut_server(self, error: PoolError) -> None:
        """The server cannot be reached, is too busy, or is not itself."""
        self._queue.hold(SERVER, error)

    def shut_creates(self, template: str, error: PoolError) -> None:
        """CVAT refuses to create tasks of a template."""
        self._queue.hold(template, error)

    def shut_uploads(self, template: str, request_id: str, error: PoolError) -> bool:
        """CVAT refuses to take data of a template from us. False when it is certainly this
        request's data that it does not allow, and no other: nothing is shut then."""
        with self._guard:
            if isinstance(error, CvatForbidden) and request_id in self._suspects:
                self._suspects.discard(request_id)
                return False
            self._refused[template] = request_id
        self._queue.hold(template, error)
        return True

    def server_answers(self) -> None:
        """The server is itself again."""
        if SERVER in self._store.holds():
            self._store.release_hold(SERVER, now=self._clock.now())

    def uploads_work(self, template: str, request_id: str) -> None:
        """CVAT has accepted a request's data."""
        with self._guard:
            refused = self._refused.pop(template, None)
            if refused is not None and refused != request_id:
                self._suspects.add(refused)
            self._suspects.discard(request_id)
        if refused is not None:
            self._store.release_hold(template, now=self._clock.now())

    def forget(self, request_id: str) -> None:
        """The request is at its end."""
        with self._guard:
            self._suspects.discard(request_id)
