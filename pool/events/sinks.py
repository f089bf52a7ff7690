"""The sinks of the configuration, a thread each: one that does not answer delays nobody else.

No address is ever called but those that the configuration names.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from urllib.parse import urlsplit

from pool.clock import Clock
from pool.config.settings import EventSettings, SinkSettings
from pool.errors import PoolError, StoreError
from pool.events.feed import Feed
from pool.events.notifier import Signal
from pool.events.posting import Posting
from pool.events.sink import Describe, Post, Sink, SinkState
from pool.logs import get_logger
from pool.model import Event
from pool.store import Store

log = get_logger(__name__)

#: Seconds until the next look after one that failed for a reason of ours.
LOOK_AGAIN = 5.0
#: Seconds after which a sink looks for events by itself.
LOOK = 60.0


def sink_names(sinks: Sequence[SinkSettings]) -> tuple[str, ...]:
    """A name for each sink, which stays the same as long as its address does. It shows the host,
    but nothing else of the address: that may be a secret."""
    names, seen = [], Counter[str]()
    for sink in sinks:
        host = urlsplit(sink.url).netloc.lower()
        name = f"{host}-{sha256(sink.url.encode()).hexdigest()[:8]}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(names)


class Sinks:
    """Tells all sinks of what happens, from :meth:`start` to :meth:`stop`, and again."""

    def __init__(
        self,
        settings: EventSettings,
        store: Store,
        feed: Feed,
        describe: Describe,
        *,
        clock: Clock,
        post: Callable[[SinkSettings], Post] | None = None,
    ) -> None:
        self._settings = settings.sinks
        self._store = store
        self._feed = feed
        self._describe = describe
        self._clock = clock
        self._post = post or (lambda sink: Posting(sink, clock=clock))
        self._news = Signal(clock)
        self._sinks: tuple[Sink, ...] = ()
        self._posts: list[Post] = []
        self._threads: list[threading.Thread] = []
        self._unwatch: Callable[[], None] = lambda: None
        #: Announced whenever a sink was told of something, or could not be.
        self.ran = Signal(clock)

    def start(self) -> None:
        """Go on where each sink was; a new one begins now. Starting twice does nothing.

        :raises StoreError: the store cannot be used; nothing was started.
        """
        if self._sinks:
            return
        names = sink_names(self._settings)
        records = self._store.open_sinks(names)
        if not names:
            return
        posts = [self._post(settings) for settings in self._settings]
        sinks = tuple(
            Sink(self._store, settings, records[name], self._describe, post, clock=self._clock)
            for settings, name, post in zip(self._settings, names, posts, strict=True)
        )
        # Last, since it can fail: starting is tried again.
        self._unwatch = self._feed.on(self._notice)
        self._posts, self._sinks = posts, sinks
        for sink in self._sinks:
            thread = threading.Thread(target=self._run, args=(sink,), name="sink", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End. What is being sent may be sent once more by whoever starts next."""
        self._unwatch()
        for sink in self._sinks:
            sink.stopped = True
        self._news.announce()
        deadline = None if timeout is None else self._clock.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - self._clock.monotonic()))
        for post in self._posts:
            post.close()
        self._threads.clear()
        self._posts, self._sinks = [], ()

    def states(self) -> Sequence[SinkState]:
        """How each is doing."""
        if not self._sinks:
            return ()
        newest = self._store.last_event_id()
        return [sink.state(newest=newest) for sink in self._sinks]

    def _notice(self, events: Sequence[Event]) -> None:
        if events:
            self._news.announce()

    def _run(self, sink: Sink) -> None:
        while not sink.stopped:
            seen = self._news.count
            try:
                wait = sink.run_once().wait
            except StoreError as error:
                wait = LOOK_AGAIN
                log.info("events not delivered", sink=sink.name, why=str(error))
            except PoolError:
                return  # the store is closed
            except Exception:
                wait = LOOK_AGAIN
                log.exception("sink failed", sink=sink.name)
            self.ran.announce()
            self._pause(sink, seen, wait)

    def _pause(self, sink: Sink, seen: int, wait: float | None) -> None:
        """Until there is something new, or, where a try has failed, until the next one is due:
        what is new meanwhile waits behind that."""
        if wait is None:
            self._news.wait(seen, LOOK)
            return
        due = self._clock.monotonic() + wait
        while (remaining := due - self._clock.monotonic()) > 0:
            seen = self._news.count
            if sink.stopped:
                return
            self._news.wait(seen, remaining)
