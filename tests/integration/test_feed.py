"""Who listens hears of what happens, in whichever process, however others behave."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest
from support.happening import make_warm

from pool.clock import SystemClock
from pool.errors import InputError, PoolClosed
from pool.events import feed as module
from pool.events.feed import Feed
from pool.model import Event
from pool.store import open_store
from pool.store.base import Store
from pool.taskpool import TaskPool

PATIENCE = 20.0


@pytest.fixture
def feed(store: Store) -> Iterator[Feed]:
    feed = Feed(store, clock=SystemClock())
    yield feed
    feed.close()


class Listener:
    """A callback that keeps what it gets."""

    def __init__(self) -> None:
        self.heard: queue.Queue[Event] = queue.Queue()

    def __call__(self, event: Event) -> None:
        self.heard.put(event)

    def next(self) -> Event:
        return self.heard.get(timeout=PATIENCE)

    def tasks(self, count: int) -> list[int | None]:
        return [self.next().task_id for _ in range(count)]


def test_what_comes_is_told_in_order_and_what_was_is_not(feed: Feed, store: Store) -> None:
    make_warm(store, 1)
    listener = Listener()
    feed.subscribe(listener)
    make_warm(store, 2, 3)
    assert listener.tasks(2) == [2, 3]


def test_other_processes_are_heard(feed: Feed, store_url: str) -> None:
    listener, other = Listener(), open_store(store_url)
    feed.subscribe(listener)
    make_warm(other, 5)
    assert listener.next().kind == "task.warm"
    other.close()


def test_only_what_was_asked_for_is_told(feed: Feed, store: Store) -> None:
    by_kind, by_template = Listener(), Listener()
    feed.subscribe(by_kind, kinds=["task.retired"])
    feed.subscribe(by_template, template="others")
    make_warm(store, 1)
    make_warm(store, 2, template="others")
    store.retire_excess("others", keep=0, reason="", now=2.0)
    assert by_kind.tasks(1) == [2]
    assert by_template.tasks(2) == [2, 2]
    assert by_kind.heard.empty() and by_template.heard.empty()


def test_a_kind_that_there_is_not(feed: Feed) -> None:
    with pytest.raises(InputError, match=r"'request.done'; there is request\.queued"):
        feed.subscribe(Listener(), kinds=["request.done"])
    assert not feed.running


def test_more_than_is_read_at_once(
    feed: Feed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 4)
    first, go = Listener(), threading.Event()

    def slow(event: Event) -> None:
        assert go.wait(PATIENCE)
        first(event)

    feed.subscribe(slow, kinds=["task.retired"])
    make_warm(store, *range(10))
    store.retire_excess("scenes", keep=0, reason="", now=2.0)
    go.set()
    assert set(first.tasks(10)) == set(range(10))


def test_a_slow_and_a_raising_callback_hurt_nobody(feed: Feed, store: Store) -> None:
    stuck, entered, good = threading.Event(), threading.Event(), Listener()
    raised: queue.Queue[int | None] = queue.Queue()

    def slow(_: Event) -> None:
        entered.set()
        assert stuck.wait(PATIENCE)

    def raising(event: Event) -> None:
        raised.put(event.task_id)
        raise RuntimeError("mine")

    feed.subscribe(slow)
    feed.subscribe(raising)
    feed.watch(lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    feed.subscribe(good)
    make_warm(store, 1, 2)
    assert good.tasks(2) == [1, 2]
    assert entered.wait(PATIENCE)
    stuck.set()
    make_warm(store, 3)
    assert good.tasks(1) == [3]
    assert [raised.get(timeout=PATIENCE) for _ in range(3)] == [1, 2, 3]


def test_there_is_a_thread_only_while_somebody_listens(feed: Feed, store: Store) -> None:
    assert not feed.running
    listener = Listener()
    for task_id in (1, 2):
        unsubscribe = feed.subscribe(listener)
        make_warm(store, task_id)
        assert listener.tasks(1) == [task_id]
        (thread,) = (each for each in threading.enumerate() if each.name == "feed")
        unsubscribe()
        unsubscribe()
        thread.join(PATIENCE)
        assert not feed.running
        make_warm(store, 9)
    assert listener.heard.empty()


def test_changes_that_are_no_events_are_noticed_too(feed: Feed, store: Store) -> None:
    noticed: queue.Queue[int] = queue.Queue()
    feed.watch(lambda events: noticed.put(len(events)))
    assert noticed.get(timeout=PATIENCE) == 0, "the first look"
    store.pause("scenes", now=1.0)
    assert noticed.get(timeout=PATIENCE) == 0


def test_a_closed_feed_tells_nobody(feed: Feed, store: Store) -> None:
    listener, another = Listener(), Listener()
    feed.subscribe(listener)
    feed.close()
    open_feed = Feed(store, clock=SystemClock())
    open_feed.subscribe(another)
    make_warm(store, 1)
    assert another.tasks(1) == [1]
    open_feed.close()
    assert listener.heard.empty()
    with pytest.raises(PoolClosed):
        feed.subscribe(listener)


def test_a_request_is_told_of_through_the_pool(pool: TaskPool, image: bytes) -> None:
    listener = Listener()
    unsubscribe = pool.subscribe(listener, ["request.importing", "request.ready"])
    request = pool.submit("scenes", [("a.jpg", image)])
    request.jobs(timeout=PATIENCE)
    events = [listener.next() for _ in range(2)]
    assert [event.kind for event in events] == ["request.importing", "request.ready"]
    assert {event.request_id for event in events} == {request.id}
    unsubscribe()
