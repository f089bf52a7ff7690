"""A daemon whose services run when a test says so, on a scripted server and a clock moved by hand.

The product wires it, and its callers come by HTTP or by ``TaskPool``. Only the scheduler is
replaced, and the threads by which a process says that it lives and looks after its imports.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, cast
from unittest import mock

from pool.config.settings import PoolSettings, Settings, Template
from pool.daemon import Daemon
from pool.errors import CvatError, CvatUnreachable
from pool.maintenance.heartbeat import PERIOD, TERM
from pool.maintenance.refill import Refill
from pool.maintenance.scheduler import ServiceRecord
from pool.model import RequestRecord, RequestState, TaskState
from pool.process import Process
from pool.requests.dispatcher import Dispatcher
from pool.store import Store
from pool.taskpool import TaskPool
from pool.upkeep import Maintenance
from support.api import Answer, Api, fill
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.waiting import PATIENCE

#: A GIF of one pixel.
CONTENT = bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")
FAILED, CANCELLED = RequestState.FAILED, RequestState.CANCELLED
IMPORTING, QUEUED, READY = RequestState.IMPORTING, RequestState.QUEUED, RequestState.READY
#: A template beside the one of all tests.
OTHER = Template(name="other", labels=({"name": "tram"},), pool=PoolSettings(min_size=2))


class ByHand:
    """What stands for the scheduler: the services by their names, to be run by the test."""

    def __init__(self, *, before: Callable[[], object] = lambda: None, **_: Any) -> None:
        self.services: dict[str, Callable[[], object]] = {}
        #: How services do, of which only a scheduler writes down anything.
        self.records: dict[str, ServiceRecord] = {}
        self.running = False
        self._before = before

    def add(self, name: str, run_once: Callable[[], object], **_: Any) -> None:
        def run() -> object:
            self._before()
            return run_once()

        self.services[name] = run

    def wake(self, name: str) -> None:
        assert name in self.services

    def start(self) -> None:
        """The test runs them."""
        self.running = True

    def stop(self, _timeout: float | None = None) -> bool:
        self.services.clear()
        return True


@contextmanager
def threadless(process: Process) -> Iterator[None]:
    """Have a process start none of its threads: they would wait on the test's clock."""
    heartbeat, tracker = process.heartbeat, process.tracker
    with (
        mock.patch.object(heartbeat, "start", heartbeat.run_once),
        mock.patch.object(tracker, "start"),
    ):
        yield


@contextmanager
def caller(
    settings: Settings, store: Store, cvat: ScriptedCvat, clock: ManualClock
) -> Iterator[TaskPool]:
    """A process that only calls; waiting passes the time."""
    pool = TaskPool(settings, store=store, cvat=cast(Any, cvat), clock=clock)
    with threadless(pool.process):
        yield pool
        pool.close()


@contextmanager
def beside(pool: TaskPool) -> Iterator[Stepped]:
    """A daemon on the store of another process, which is gone at the end."""
    daemon = Stepped(pool.settings, pool.store, pool.process.cvat(), pool.clock)
    try:
        yield daemon
    finally:
        daemon.stop()


def fill_for(pool: TaskPool) -> None:
    """Have a daemon fill a pool, and go."""
    with beside(pool) as daemon:
        assert daemon.fill()


class Way:
    """The way of one process to a server that others reach all the same. While it is ``blocked``,
    no call gets through."""

    def __init__(self, cvat: ScriptedCvat) -> None:
        self._cvat = cvat
        self.blocked = False

    def __getattr__(self, name: str) -> Any:
        if self.blocked and not name.endswith("_url"):
            raise CvatUnreachable("no route to host")
        return getattr(self._cvat, name)


class Start(Protocol):
    """Starts a daemon on a test's store, with its template unless there are others; ``way`` is its
    own to the server."""

    def __call__(
        self, *templates: Template, workers: int = 1, way: Way | None = None, **daemon: Any
    ) -> Stepped: ...


class Stepped:
    """See the module. With one worker, which is the default, requests are served one by one."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        cvat: Any,
        clock: Any,
        *,
        workers: int = 1,
    ) -> None:
        self.store, self.cvat, self.clock = store, cvat, clock
        settings = replace(settings, daemon=replace(settings.daemon, port=0))
        # Chances are the same in every run.
        with (
            mock.patch("pool.daemon.Process", partial(Process, rng=random.Random(1))),
            mock.patch("pool.daemon.Scheduler", ByHand),
            mock.patch("pool.process.Dispatcher", partial(Dispatcher, workers=workers)),
        ):
            self._daemon = Daemon(settings, store=store, cvat=cvat, clock=clock)
        self.process = self._daemon.process
        self.pool = TaskPool.over(self.process)
        self._replaced = ExitStack()
        # It listens once a caller comes: most tests have none.
        self._replaced.enter_context(mock.patch.object(self._daemon, "listen"))
        self._replaced.enter_context(threadless(self.process))
        self.process.start()
        self._daemon.serve()
        self.renew()

    def stop(self) -> None:
        """In an orderly way; stopping twice does nothing."""
        self._daemon.close()
        self._replaced.close()

    # --- Time -------------------------------------------------------------------------------------

    def renew(self) -> bool:
        """Say that it lives, and begin or renew its term; False while another daemon has one."""
        self.process.heartbeat.run_once()
        # For this call alone: daemons that are there together end in any order.
        with mock.patch("pool.upkeep.Scheduler", ByHand):
            self._daemon.renew()
        return self._daemon.maintenance is not None

    def advance(self, seconds: float) -> None:
        """Let time pass, in which it lives."""
        end = self.clock.monotonic() + seconds
        # Of a long time the last part is enough for all to be late that do not live.
        self.clock.advance(max(0.0, seconds - 2 * TERM))
        while (left := end - self.clock.monotonic()) > PERIOD:
            self.clock.advance(PERIOD)
            self.renew()
        self.clock.advance(left)
        self.renew()

    # --- Services ---------------------------------------------------------------------------------

    @property
    def maintenance(self) -> Maintenance:
        assert self._daemon.maintenance is not None, "another daemon maintains the store"
        return self._daemon.maintenance

    @property
    def dispatcher(self) -> Dispatcher:
        return self._daemon.dispatcher

    @property
    def refill(self) -> Refill:
        return self.maintenance.refill

    def run(self, *services: str) -> Any:
        """Run services once, in this order; return what the last one answered."""
        services_of_all = cast(ByHand, self._daemon.scheduler).services
        answers = []
        for name in services:
            if name in services_of_all:
                answers.append(services_of_all[name]())
                continue
            if not self.maintenance.term.lasts:
                # It lives, however far the test has moved the clock.
                self.renew()
            scheduler = cast(ByHand, self.maintenance.scheduler)
            answers.append(scheduler.services[name]())
        return answers[-1]

    def fill(self) -> int:
        """Refill until there is nothing more to do; answers how many creates that took."""
        return fill(self.refill)

    def one_round(self) -> int:
        """One round of refilling, and the end of its creates; answers how many it started. They
        end after it only: one that ended at once would make room for the next in the same round."""
        go, hook = threading.Event(), self.cvat.before

        def hold(operation: str) -> None:
            assert operation != "create_task" or go.wait(PATIENCE)
            hook(operation)

        self.cvat.before = hold
        started = self.refill.run_once()
        go.set()
        assert self.refill.drain(PATIENCE)
        if self.cvat.before is hold:
            self.cvat.before = hook
        return started

    def serve(self) -> int:
        """Rounds until nothing more is begun; answers how many requests were."""
        started = 0
        assert self.dispatcher.drain(PATIENCE)
        while (report := self.dispatcher.run_once()).started or report.asked:
            started += report.started
            assert self.dispatcher.drain(PATIENCE)
        return started

    def drain(self) -> None:
        """Wait for the requests that are being served."""
        assert self.dispatcher.drain(PATIENCE)

    def track(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until no import is to be asked for any more, or ``until`` is true."""
        tracker = self.process.tracker
        while not until() and (wait := tracker.seconds_until_due()) is not None:
            self.advance(wait)
            tracker.run_once()

    def import_all(self) -> None:
        """CVAT makes the jobs of all that is being imported, and the tracker finds them."""
        for task in self.store.tasks(states=(TaskState.IMPORTING,)):
            self.cvat.make_ready(task.task_id or 0)
        self.track()

    # --- Callers ----------------------------------------------------------------------------------

    @property
    def api(self) -> Api:
        Daemon.listen(self._daemon)
        return Api(self._daemon.url)

    def post(
        self, template: str = "scenes", *, name: str = "a.jpg", key: str | None = None, **more: Any
    ) -> Answer:
        """Give it one file over HTTP."""
        with self.api as api:
            return api.submit([(name, CONTENT)], template=template, key=key, **more)

    def accept(self, template: str = "scenes", **more: Any) -> str:
        """The id of a request that was accepted over HTTP."""
        answer = self.post(template, **more)
        assert answer.status in (201, 202), answer
        return str(answer.json["id"])

    # --- What has become of it --------------------------------------------------------------------

    def read(self, request_id: str) -> RequestRecord:
        return self.pool.read_request(request_id)

    def states(self, *requests: str) -> set[RequestState]:
        return {self.read(each).state for each in requests}

    def spooled(self) -> list[str]:
        return entries(self.process)

    def levels(self, template: str = "scenes") -> dict[str, int]:
        return levels(self.store, template)


def grouped(template: Template, **importing: Any) -> Template:
    """A template whose requests share tasks, one import at a time, with a pool for many."""
    settings = {"grouping": "auto", "concurrency": 1, **importing}
    return replace(
        template,
        pool=replace(template.pool, min_size=8),
        importing=replace(template.importing, **settings),
    )


# --- What tests look at, and what they do to the server ------------------------------------------


def entries(process: Process) -> list[str]:
    """Whose data is in the spool."""
    folder = process.spool.folder
    return sorted(each.name for each in folder.iterdir()) if folder.exists() else []


def levels(store: Store, template: str = "scenes") -> dict[str, int]:
    """Live tasks by state."""
    counts = store.levels()[template].counts
    return {state.value: count for state, count in counts.items() if count}


def go_down(cvat: ScriptedCvat, error: CvatError | None = None) -> None:
    """From now on no call gets through."""

    def refuse(_operation: str) -> None:
        raise error or CvatUnreachable("connection refused")

    cvat.before = refuse


def come_back(cvat: ScriptedCvat) -> None:
    cvat.before = lambda _operation: None


def uploads(cvat: ScriptedCvat) -> Sequence[Any]:
    """The tasks that data was sent to, in order."""
    return [call[1] for call in cvat.calls if call[0] == "upload"]
