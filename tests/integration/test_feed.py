"""Who listens hears of what happens, in whichever process, however others behave."""

from __future__ import annotations

import asyncio
import multiprocessing
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conformance.store_factories import FACTORIES
from support.happening import make_warm, serve

from pool.clock import SystemClock
from pool.errors import InputError, PoolClosed
from pool.events import feed as module
from pool.events.feed import Feed
from pool.model import Event
from pool.store import Store, open_store
from pool.taskpool import TaskPool

PATIENCE = 20.0


@pytest.fixture(params=FACTORIES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of each store: what they have in common is how a feed waits, not how it hears."""
    return FACTORIES[request.param](tmp_path)


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

    def dividing(_: object) -> None:
        raise ZeroDivisionError

    feed.subscribe(slow)
    feed.subscribe(raising)
    feed.on(dividing)
    feed.subscribe(good)
    make_warm(store, 1, 2)
    assert good.tasks(2) == [1, 2]
    assert entered.wait(PATIENCE)
    stuck.set()
    make_warm(store, 3)
    assert good.tasks(1) == [3]
    assert [raised.get(timeout=PATIENCE) for _ in range(3)] == [1, 2, 3]


def test_callers_that_come_one_after_the_other_share_a_thread(feed: Feed, store: Store) -> None:
    threads: set[threading.Thread] = set()

    def seen() -> None:
        threads.update(each for each in threading.enumerate() if each.name == "feed")

    for task_id in range(1, 4):
        assert feed.wait_for(lambda: None, 0.05, request="r1") is None
        # Nothing waits now; the thread lingers, and what is committed meanwhile does not end it.
        seen()
        make_warm(store, task_id)
        feed.wait_for(seen, 0.05, request="r1")
    assert len(threads) == 1


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


def test_changes_that_are_no_events_are_noticed_too(feed: Feed, there: Store) -> None:
    noticed: queue.Queue[int] = queue.Queue()
    feed.on(lambda events: noticed.put(len(events)))
    assert noticed.get(timeout=PATIENCE) == 0, "the first look"
    there.pause("scenes", now=1.0)
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


# --- Waiting --------------------------------------------------------------------------------------


@pytest.fixture(params=["here", "elsewhere"])
def there(request: pytest.FixtureRequest, store: Store, store_url: str) -> Iterator[Store]:
    """Where it happens: in this process, or in another one as far as the feed can see."""
    if request.param == "here":
        yield store
    else:
        other = open_store(store_url)
        yield other
        other.close()


class Checked:
    """Checks whether a request has ended; ``once`` is set when it had not."""

    def __init__(self, store: Store, request_id: str) -> None:
        self.store = store
        self.request_id = request_id
        self.count = 0
        self.once = threading.Event()

    def __call__(self) -> str | None:
        self.count += 1
        record = self.store.request(self.request_id)
        if record is not None and record.state.finished:
            return record.state.value
        self.once.set()
        return None

    async def on_loop(self) -> str | None:
        return self()


Wait = Callable[[Feed, Checked], str | None]


def on_a_thread(feed: Feed, checked: Checked) -> str | None:
    return feed.wait_for(checked, PATIENCE, request=checked.request_id)


def on_a_loop(feed: Feed, checked: Checked) -> str | None:
    return asyncio.run(feed.wait_for_async(checked.on_loop, PATIENCE, request=checked.request_id))


@pytest.mark.parametrize("wait", [on_a_thread, on_a_loop])
def test_a_waiter_is_woken_by_what_it_waits_for(
    feed: Feed, store: Store, there: Store, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECHECK", PATIENCE)
    checked = Checked(store, "mine")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait, feed, checked)
        assert checked.once.wait(PATIENCE)
        serve(there, "other", task_id=1)
        serve(there, "mine", task_id=2)
        assert waiting.result(PATIENCE) == "ready"
    # At first, when the feed began, and at some of the events of its own request.
    assert checked.count <= 6
    assert not feed.running


@pytest.mark.parametrize("wait", [on_a_thread, on_a_loop])
def test_a_waiter_checks_by_itself_should_no_event_come(
    feed: Feed, store: Store, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECHECK", 0.05)
    monkeypatch.setattr(store, "events_after", lambda *_, **__: ())
    checked = Checked(store, "mine")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wait, feed, checked)
        assert checked.once.wait(PATIENCE)
        serve(store, "mine", task_id=2)
        # Long before its time is over, at which it would check, too.
        assert waiting.result(PATIENCE / 2) == "ready"


@pytest.mark.parametrize("timeout", [0.0, 0.05])
def test_a_wait_is_over_after_its_time(feed: Feed, timeout: float) -> None:
    assert feed.wait_for(lambda: None, timeout) is None

    async def never() -> None:
        return None

    assert asyncio.run(feed.wait_for_async(never, timeout)) is None
    assert not feed.running


def test_a_wait_on_a_loop_can_be_stopped(feed: Feed) -> None:
    async def main() -> None:
        stop = asyncio.get_running_loop().create_future()

        async def never() -> None:
            stop.get_loop().call_soon(stop.set_result, None)

        answer: str | None = await feed.wait_for_async(never, None, request="mine", stop=stop)
        assert answer is None

    asyncio.run(main())


def test_the_end_of_the_feed_ends_all_waits(feed: Feed, store: Store) -> None:
    first, second = Checked(store, "mine"), Checked(store, "mine")
    with ThreadPoolExecutor(2) as threads:
        waits = [
            threads.submit(on_a_thread, feed, first),
            threads.submit(on_a_loop, feed, second),
        ]
        assert first.once.wait(PATIENCE)
        assert second.once.wait(PATIENCE)
        feed.close()
        for wait in waits:
            with pytest.raises(PoolClosed):
                wait.result(PATIENCE)


def test_a_service_hears_of_its_kinds_alone(feed: Feed, store: Store) -> None:
    retired: queue.Queue[list[str]] = queue.Queue()
    feed.on(lambda events: retired.put([event.kind for event in events]), "task.retired")
    make_warm(store, 1)
    store.pause("scenes", now=1.0)
    store.retire_excess("scenes", keep=0, reason="", now=2.0)
    assert retired.get(timeout=PATIENCE) == ["task.retired"]
    assert retired.empty()


def test_a_child_of_a_fork_has_a_watcher_of_its_own(
    feed: Feed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RECHECK", 10 * PATIENCE)
    feed.on(lambda _: None)
    here, there = multiprocessing.Pipe()

    def wait() -> None:
        checked = Checked(store, "mine")

        def check() -> str | None:
            answer = checked()
            there.send(answer)
            return answer

        feed.wait_for(check, 10 * PATIENCE, request="mine")

    child = multiprocessing.get_context("fork").Process(target=wait)
    child.start()
    try:
        assert here.poll(PATIENCE)
        assert here.recv() is None
        serve(store, "mine", task_id=2)
        answer = None
        while answer is None:
            assert here.poll(PATIENCE), "it hears of nothing"
            answer = here.recv()
        assert answer == "ready"
    finally:
        child.kill()
        child.join()


FORKS = """
import os, sys, threading, warnings
warnings.simplefilter("ignore")  # Python 3.12 warns of a fork beside threads
from pool.clock import SystemClock
from pool.events.feed import Feed
from pool.store import open_store

store = open_store(sys.argv[1])
feeds = [Feed(store, clock=SystemClock()) for _ in range(20)]
sys.setswitchinterval(1e-6)

def fork():
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os._exit(0 if feeds[0].wait_for(store.last_event_id, 0) == 0 else 1)
        assert os.waitpid(child, 0)[1] == 0

threads = [threading.Thread(target=fork, daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(float(sys.argv[2]))
os._exit(any(thread.is_alive() for thread in threads))
"""


def test_threads_that_fork_at_once(store_url: str) -> None:
    script = [sys.executable, "-c", FORKS, store_url, str(PATIENCE)]
    ended = subprocess.run(script, capture_output=True, text=True, timeout=3 * PATIENCE)
    assert (ended.returncode, ended.stderr) == (0, "")
