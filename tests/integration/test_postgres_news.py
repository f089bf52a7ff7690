"""What other processes commit to a PostgreSQL store is heard of at once, or is found by looking."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import pytest
from support.happening import make_warm
from support.postgres import shared_server
from support.waiting import poll_until

from pool.clock import SystemClock
from pool.events import feed as feed_module
from pool.events.feed import Feed
from pool.model import Event
from pool.store import Listener, Store, open_store, postgresql_news
from pool.store.postgresql import PostgresConnections

PATIENCE = 20.0
#: Seconds that no test lasts.
NEVER = 3600.0


class Attentive:
    """A store, its feed, and what these two have heard."""

    def __init__(self, url: str) -> None:
        self.store = open_store(url)
        self.events: queue.Queue[Event] = queue.Queue()
        self.hears: queue.Queue[bool] = queue.Queue()
        listen = self.store.listen

        def overhear(heard: Callable[[], None]) -> Listener:
            # It may be heard from before it is here.
            made = Future[Listener]()

            def tell() -> None:
                self.hears.put(made.result(PATIENCE).hears)
                heard()

            made.set_result(listen(tell))
            return made.result()

        self.store.listen = overhear  # type: ignore[method-assign]
        self.feed = Feed(self.store, clock=SystemClock())
        self.feed.on(self._keep)

    def _keep(self, events: Sequence[Event]) -> None:
        for event in events:
            self.events.put(event)

    def until(self, *, hears: bool) -> None:
        while self.hears.get(timeout=PATIENCE) is not hears:
            pass

    def task(self) -> int | None:
        return self.events.get(timeout=PATIENCE).task_id

    def close(self) -> None:
        self.feed.close()
        self.store.close()


@pytest.fixture
def database() -> str:
    return shared_server().new_database()


@pytest.fixture
def other(database: str) -> Iterator[Store]:
    store = open_store(shared_server().url(database))
    yield store
    store.close()


@pytest.fixture
def attentive(database: str, other: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attentive]:
    monkeypatch.setattr(postgresql_news, "RETRY", 0.01)
    here = Attentive(shared_server().url(database))
    yield here
    here.close()


@pytest.fixture
def never_look(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("LOOK", "CALM_LOOK", "HEARING_LOOK", "RECHECK"):
        monkeypatch.setattr(feed_module, pause, NEVER)


def listeners(database: str) -> str:
    return shared_server().sql(
        f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' "
        "AND query LIKE 'LISTEN%'"
    )


@pytest.mark.usefixtures("never_look")
def test_news_of_another_process_come_without_a_look(attentive: Attentive, other: Store) -> None:
    attentive.until(hears=True)
    make_warm(other, 1)
    assert attentive.task() == 1
    make_warm(other, 2)
    assert attentive.task() == 2


@pytest.mark.usefixtures("never_look")
def test_what_was_committed_before_it_listened_is_found(attentive: Attentive, other: Store) -> None:
    make_warm(other, 1)
    assert attentive.task() == 1


def test_an_idle_process_looks_seldom(
    database: str, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: queue.Queue[float] = queue.Queue()
    wait = Feed._wait

    def pause(feed: Feed, seconds: float) -> bool:
        pauses.put(seconds)
        return wait(feed, seconds)

    monkeypatch.setattr(Feed, "_wait", pause)
    here = Attentive(shared_server().url(database))
    here.until(hears=True)
    while pauses.get(timeout=PATIENCE) != feed_module.HEARING_LOOK:
        pass
    here.close()


def test_news_come_where_notifications_do_not(
    database: str, other: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process's own does not come back, so it looks as often as with SQLite."""
    monkeypatch.setattr(postgresql_news, "PROOF", 0.0)
    monkeypatch.setattr(feed_module, "HEARING_LOOK", NEVER)
    sent: queue.Queue[str] = queue.Queue()
    monkeypatch.setattr(PostgresConnections, "_notify", lambda _, payload: sent.put(payload))
    here = Attentive(shared_server().url(database))
    assert sent.get(timeout=PATIENCE)
    make_warm(other, 1)
    assert here.task() == 1
    here.close()


@pytest.mark.usefixtures("never_look")
def test_a_connection_that_is_lost_is_made_again(
    attentive: Attentive, other: Store, database: str
) -> None:
    attentive.until(hears=True)
    shared_server().sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    )
    attentive.until(hears=False)
    attentive.until(hears=True)
    make_warm(other, 1)
    assert attentive.task() == 1


def test_nothing_listens_for_a_feed_that_is_closed(attentive: Attentive, database: str) -> None:
    attentive.until(hears=True)
    assert listeners(database) == "1"
    attentive.close()
    poll_until(lambda: listeners(database) == "0")
