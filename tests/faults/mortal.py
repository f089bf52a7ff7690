"""One process of the pool, run by hand: its threads are work that a test does when it likes.

Everything is wired by the product itself: a caller is a ``TaskPool``, a daemon a ``Daemon``. Only
what would start threads or wait for them is replaced, see :func:`in_one_thread`.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar
from unittest import mock

from support.stepped import ByHand

from faults.frail import Frail, Killed, Moment
from faults.stepped_clock import SteppedClock
from pool.config.loader import load
from pool.daemon import Daemon
from pool.events.feed import Feed
from pool.maintenance import heartbeat, term
from pool.maintenance.heartbeat import Heartbeat
from pool.requests.local_dispatcher import LocalDispatcher
from pool.requests.spool import Spool
from pool.taskpool import TaskPool
from pool.tracking.tracker import Tracker
from pool.upkeep import Maintenance

T = TypeVar("T")


class Interrupted(BaseException):
    """Control-C in the middle of a call: the process lives, and its handlers do their work."""


class Repeated(random.Random):
    """Chances that are the same in every run, where nobody says which."""

    def __init__(self, seed: Any = 1) -> None:
        super().__init__(seed)


class Later(Executor):
    """Work for other threads, which is done when the test says so."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        self.waiting.append((future, lambda: fn(*args, **kwargs)))
        return future

    def do_one(self) -> None:
        future, work = self.waiting.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except Killed:
            raise
        except BaseException as error:
            future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        while self.waiting:
            if cancel_futures:
                self.waiting.popleft()[0].cancel()
            else:
                self.do_one()


class Incident(Protocol):
    """Something that happens, here in the middle of what a process does."""

    def strike(self, world: Any, victim: Mortal | None = None) -> None: ...


@dataclass(frozen=True)
class Plan:
    """What happens to a process, counted in boundaries from the beginning of what it does."""

    at: int
    incident: Incident


class Mortal:
    """A process. ``dead`` once it was killed; ``frozen`` while it gets no time to run."""

    def __init__(self, world: Any, config: Path, store: Any, *, role: str) -> None:
        self.role, self.world = role, world
        self.clock: SteppedClock = world.clock
        self.dead = self.frozen = False
        self._plan: Plan | None = None
        self._passed = 0
        self._beating = False
        self._beat_at = self.clock.monotonic()
        self.threads: list[Later] = []
        self._dispatching: Later | None = None
        self.daemon: Daemon | None = None
        settings = load(config)
        parts: dict[str, Any] = {
            "store": Frail(store, self.boundary),
            "cvat": Frail(world.client, self.boundary),
            "clock": self.clock,
        }
        with self.running():
            if role == "daemon":
                self.daemon = Daemon(settings, **parts)
                self.pool = TaskPool.over(self.daemon.process)
            else:
                self.pool = TaskPool(settings, **parts)
                # As TaskPool.from_config has it.
                self.pool.process.follow_file()
            self.process = self.pool.process
            self.process.start()
            if self.daemon is not None:
                self.daemon.serve()
        self.clock.alarms.append(self)
        self.ring()

    @property
    def maintains(self) -> bool:
        return self.daemon is not None and self.daemon.maintenance is not None

    @property
    def services(self) -> dict[str, Callable[[], object]]:
        """What its schedulers would run; empty for what is no daemon."""
        if self.daemon is None:
            return {}
        schedulers: list[Any] = [self.daemon.scheduler]
        if self.daemon.maintenance is not None:
            schedulers.append(self.daemon.maintenance.scheduler)
        return {name: run for each in schedulers for name, run in each.services.items()}

    # --- Life -----------------------------------------------------------------------------------

    @contextmanager
    def running(self) -> Iterator[None]:
        """While it runs, the threads that it starts are its own."""
        _now_running.append(self)
        try:
            yield
        finally:
            _now_running.pop()

    def do(self, work: Callable[[], T], plan: Plan | None = None) -> T | None:
        """Have it do something, with whatever the plan says in between; None if it died of it."""
        before, self._plan, self._passed = self._plan, plan, 0
        try:
            with self.running():
                return work()
        except Killed:
            assert self.dead
            return None
        finally:
            self._plan = before

    def do_threads(self) -> None:
        """One piece of work of each of its other threads."""
        for thread in list(self.threads):
            if thread.waiting:
                thread.do_one()

    def kill(self) -> None:
        """As SIGKILL: nothing is written, nobody is told."""
        self.dead = True
        self.clock.alarms.remove(self)
        for thread in self.threads:
            thread.waiting.clear()

    def stop(self) -> None:
        """In an orderly way; a daemon first does what it has begun."""
        for thread in list(self.threads):
            while thread.waiting and not self.dead:
                thread.do_one()
        (self.daemon or self.process).close()
        self.kill()

    def boundary(self, name: str, moment: Moment) -> None:
        if self.dead:
            raise Killed
        if self._beating or self._plan is None:
            return
        self._passed += 1
        if self._passed == self._plan.at:
            plan, self._plan = self._plan, None
            plan.incident.strike(self.world, self)
            if self.dead:
                raise Killed

    # --- Signs of life --------------------------------------------------------------------------

    def due(self) -> float | None:
        return None if self.frozen or self._beating else self._beat_at

    def ring(self) -> None:
        """What its heartbeat does, and a daemon's own loop."""
        self._beat_at = self.clock.monotonic() + min(heartbeat.PERIOD, term.RENEWAL)
        self._beating = True
        try:
            with self.running():
                self.process.heartbeat.run_once()
                if self.daemon is not None:
                    self.daemon.renew()
        finally:
            self._beating = False

    # --- Threads --------------------------------------------------------------------------------

    def serve_queue(self, local: LocalDispatcher) -> None:
        """Have a thread serve what this process has queued, once, where no daemon does."""

        def serve() -> None:
            if local._ends_at is not None or local._breaker.has_daemon():
                return
            if local._dispatcher is None:
                local._dispatcher = local._make()
            local._dispatcher.run_once()

        if self._dispatching is None:
            self._dispatching = self.new_thread()
        if not self._dispatching.waiting:
            self._dispatching.submit(serve)

    def new_thread(self, *_: Any, **__: Any) -> Later:
        self.threads.append(Later())
        return self.threads[-1]


_now_running: list[Mortal] = []


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Replace what starts threads, what waits for them, and what draws other numbers each time."""
    ids = random.Random(1)
    secrets = SimpleNamespace(randbits=ids.getrandbits)

    def pool_of_threads(*_: Any, **__: Any) -> Later:
        return _now_running[-1].new_thread()

    def wait(futures: Iterable[Future[Any]], _timeout: float | None = None) -> Any:
        return SimpleNamespace(not_done={each for each in futures if not each.done()})

    def spool(*arguments: Any, **options: Any) -> Any:
        return Frail(Spool(*arguments, **options), _now_running[-1].boundary)

    with ExitStack() as replaced:
        for name, value in (
            ("pool.daemon.Scheduler", ByHand),
            ("pool.upkeep.Scheduler", ByHand),
            ("pool.maintenance.refill.ThreadPoolExecutor", pool_of_threads),
            ("pool.maintenance.refill.wait", wait),
            ("pool.requests.worker_pool.ThreadPoolExecutor", pool_of_threads),
            ("pool.process.ThreadPoolExecutor", pool_of_threads),
            ("pool.process.wait", wait),
            ("pool.process.Spool", spool),
            ("pool.model.secrets", secrets),
            ("random.Random", Repeated),
        ):
            replaced.enter_context(mock.patch(name, value))
        for owner, name, value in (
            (Heartbeat, "start", lambda each: each.run_once()),
            (Tracker, "start", lambda each: each._paces.load()),
            (Feed, "_start", lambda _: None),
            (LocalDispatcher, "wake", lambda each: _now_running[-1].serve_queue(each)),
            (LocalDispatcher, "place_freed", lambda each: _now_running[-1].serve_queue(each)),
            (Daemon, "listen", lambda _: None),
            (Maintenance, "_observe", lambda _: None),
        ):
            replaced.enter_context(mock.patch.object(owner, name, value))
        yield


@contextmanager
def signs_of_life_every(seconds: float) -> Iterator[None]:
    """Have processes say less often that they live, so that long times pass quickly."""
    with ExitStack() as replaced:
        for module, terms in (
            # What was renewed for the usual term looks as if none had for long.
            (heartbeat, {"PERIOD": seconds, "TERM": 3 * seconds, "lull": lambda: math.inf}),
            (term, {"RENEWAL": seconds, "TERM": 3 * seconds}),
        ):
            for name, value in terms.items():
                replaced.enter_context(mock.patch.object(module, name, value))
        yield
