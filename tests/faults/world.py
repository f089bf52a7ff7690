"""A world in one thread: a server, a store, the processes of a pool, callers, and people.

Everything that happens in it is a call of a method here, and what callers and people know is
written down, so that :mod:`promises` can compare it with the rows and with the server.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from faults.blank import Blank
from faults.mortal import Mortal, Plan
from faults.stepped_clock import SteppedClock
from faults.stepped_server import TOKEN, SteppedServer
from faults.variant import TIMEOUT, Variant
from pool.config.data_params import DataParams
from pool.config.source import LocalFile, Upload, build_upload, digest
from pool.errors import PoolError, StoreError, TermLost
from pool.handles import Lease, Request
from pool.maintenance.cleanup import SPOOL_GRACE
from pool.model import new_id
from pool.simulator import SimulatorSettings, Timings
from pool.simulator.faults import Fault
from pool.store import NewRequest, open_store

T = TypeVar("T")

#: Where the disk is memory, if there is such a place: nobody pulls the plug here.
QUICK = next((place for place in ("/dev/shm",) if Path(place).is_dir()), None)
#: Names of tasks that are somebody else's, some of them much like ours.
OTHERS = (
    "my own task",
    "[cvat-pool] not really",
    "[cvat-pool 00000000] scenes: empty, waiting for data 01abc",
    "scenes: empty, waiting for data",
)


def _tiny_image() -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(target, "JPEG")
    return target.getvalue()


IMAGE = _tiny_image()
#: How the files are called that a caller uploads by itself.
OWN = "own-"


@dataclass
class Submitted:
    """Data that a caller wanted to give to the pool, and what it was told."""

    key: str | None
    file: str
    template: str
    request: Request | None = None
    error: str = ""


@dataclass
class Held:
    """A lease that a caller was told of."""

    lease: Lease
    key: str | None = None


@dataclass
class Side:
    """One pool: its store, its configuration file, its processes."""

    store: Any
    url: str
    config: Path
    processes: list[Mortal] = field(default_factory=list)


class World:
    """See the module. Times are those of :attr:`clock`."""

    def __init__(self, blank: Blank) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="world-", dir=QUICK)
        folder = Path(self._folder.name)
        self.clock = SteppedClock()
        self.server = SteppedServer(
            self.clock,
            SimulatorSettings(timings=Timings.zero(), access_token=TOKEN, folder=folder),
        )
        self.client = self.server.client(TIMEOUT)
        self.variant = Variant()
        self.variants = [self.variant]
        self.ours = self._new_side(folder / "ours", blank, self.variant)
        self.theirs = self._new_side(folder / "theirs", blank, Variant(min_size=1))
        self.submitted: list[Submitted] = []
        self.held: list[Held] = []
        #: How often each kind of thing went wrong.
        self.incidents: Counter[str] = Counter()
        #: What people did to tasks: deleted or moved them; or made them their own, by data or a
        #: name, and in which step.
        self.deleted: set[int] = set()
        self.moved: set[int] = set()
        self.changed: dict[int, int] = {}
        #: Tasks into which the holders of their leases uploaded by themselves.
        self.own: set[int] = set()
        #: Those of them whose data CVAT had accepted before the lease ended.
        self.in_time: set[int] = set()
        self.step = 0
        self._files = 0
        self.others = {self.client.create_task({"labels": []}, name): name for name in OTHERS}
        self.looks = {task_id: self.look_of(task_id) for task_id in self.others}

    @staticmethod
    def _new_side(folder: Path, blank: Blank, variant: Variant) -> Side:
        folder.mkdir()
        url = blank.fresh(folder.name, folder)
        side = Side(open_store(url), url, folder / "config.toml")
        side.config.write_text(variant.to_toml(url, folder / "spool"))
        return side

    def close(self) -> None:
        for side in (self.ours, self.theirs):
            for process in side.processes:
                if not process.dead:
                    process.kill()
            side.store.close()
        self.client.close()
        self.server.close()
        self._folder.cleanup()

    # --- Processes ------------------------------------------------------------------------------

    @property
    def living(self) -> list[Mortal]:
        return [process for process in self.ours.processes if not process.dead]

    @property
    def callers(self) -> list[Mortal]:
        return [process for process in self.living if process.role == "caller"]

    @property
    def daemons(self) -> list[Mortal]:
        return [process for process in self.living if process.role == "daemon"]

    @property
    def maintainer(self) -> Mortal | None:
        return next((process for process in self.daemons if process.maintains), None)

    def start(self, role: str, side: Side | None = None) -> Mortal | None:
        """Start a process; None when the configuration is broken, so that it does not start."""
        side = side or self.ours
        if side is self.ours and self.variant.broken:
            return None
        process = Mortal(self, side.config, side.store, role=role)
        side.processes.append(process)
        return process

    # --- Callers --------------------------------------------------------------------------------

    def submit(
        self,
        process: Mortal,
        template: str,
        *,
        key: str | None = None,
        again: Submitted | None = None,
        into: Held | None = None,
        plan: Plan | None = None,
    ) -> Submitted:
        """Data from a caller; ``again`` with the key and the data of another time."""
        self._files += 1
        file = again.file if again else f"{self._files}.jpg"
        said = Submitted(again.key if again else key, file, again.template if again else template)
        self.submitted.append(said)

        def give() -> None:
            lease_id = into.lease.id if into is not None else None
            if process.maintains:
                said.request = self._accept(process, said, lease_id)
            elif lease_id is not None:
                said.request = process.pool.lease(lease_id).upload([(file, IMAGE)])
            else:
                said.request = process.pool.submit(
                    said.template, [(file, IMAGE)], idempotency_key=said.key, timeout=5.0
                )

        said.error = self._told(process, give, plan)
        return said

    def _accept(self, process: Mortal, said: Submitted, lease_id: str | None) -> Request | None:
        """What the daemon does with data that comes over HTTP."""
        assert process.daemon is not None
        template = process.pool.process.template(said.template)
        upload = build_upload([(said.file, IMAGE)])
        new = NewRequest(id=new_id(self.clock.now()), files=upload.names, size=upload.size)
        process.process.spool.keep(new.id, upload)
        kept = process.process.spool.load(new.id)
        assert kept is not None
        opened = process.daemon.dispatcher.accept(
            template,
            kept,
            new,
            idempotency_key=said.key,
            payload=digest(upload, template=said.template),
            lease_id=lease_id,
        )
        return Request(process.pool, opened.request) if opened.request is not None else None

    def acquire(
        self, process: Mortal, template: str, *, key: str | None, ttl: float, plan: Plan | None
    ) -> None:
        def take() -> None:
            lease = process.pool.acquire(template, timeout=5.0, idempotency_key=key, ttl=ttl)
            self.held.append(Held(lease, key))

        self._told(process, take, plan)

    def release(self, process: Mortal, held: Held, plan: Plan | None) -> None:
        self._told(process, lambda: process.pool.release(held.lease.id), plan)

    def upload_by_itself(self, held: Held) -> None:
        """The holder of a lease uploads with a tool of its own."""
        self._files += 1
        task_id, name = held.lease.task_id, f"{OWN}{self._files}.jpg"
        record = self.ours.store.lease(held.lease.id)
        if record is not None and record.state == "active":
            self.own.add(task_id)
        data = Upload(files=(LocalFile(name, IMAGE, len(IMAGE)),))
        try:
            self.client.upload(
                task_id, data, DataParams(), single_request_limit=10**6, prepared=False
            )
        except PoolError:
            # Whether it has arrived is the caller's business, and the pool's to find out.
            self.incidents["own upload"] += 1
            return
        self.incidents["own upload"] += 1
        record = self.ours.store.lease(held.lease.id)
        if record is not None and record.state == "active":
            self.in_time.add(task_id)

    def jobs(self, process: Mortal, said: Submitted, plan: Plan | None) -> None:
        request_id = said.request.id if said.request else ""
        self._told(process, lambda: process.pool.request(request_id).jobs(timeout=2.0), plan)

    def cancel(self, process: Mortal, said: Submitted, *, hide: bool) -> None:
        def call_off() -> None:
            assert said.request is not None
            if process.pool.request(said.request.id).cancel(hide=hide):
                self.incidents["hide" if hide else "cancel"] += 1

        self._told(process, call_off, None)

    def tell(self, process: Mortal, template: str, what: str) -> None:
        """Somebody tells the pool to pause, drain, resume or prewarm a template."""
        self.incidents[what] += 1
        pool = process.pool
        if what == "prewarm":
            self._told(process, lambda: pool.prewarm(template, 3), None)
        else:
            self._told(process, lambda: getattr(pool, what)(template), None)

    def _told(self, process: Mortal, work: Callable[[], object], plan: Plan | None) -> str:
        """Do something for a caller; the code of the error that it was told, "" for none."""
        try:
            process.do(work, plan)
        except PoolError as error:
            return error.code
        except BaseException as error:
            if type(error).__name__ != "Interrupted":
                raise
            return "interrupted"
        return "killed" if process.dead else ""

    # --- Services -------------------------------------------------------------------------------

    def run(self, process: Mortal, name: str, plan: Plan | None = None) -> None:
        """Run one service of a daemon, or the rounds of a tracker, or what other threads have."""
        work: Callable[[], object] | None
        if name == "tracker":
            work = process.process.tracker.run_once
        elif name == "threads":
            if not any(thread.waiting for thread in process.threads):
                return
            work = process.do_threads
        else:
            work = process.services.get(name)
        if work is None or process.frozen:
            return
        try:
            process.do(work, plan)
        except BaseException as error:
            # The scheduler and the tracker's thread go on after whatever it was.
            if not (
                isinstance(error, StoreError | TermLost) or type(error).__name__ == "Interrupted"
            ):
                raise

    def live(self, seconds: float, *, pause: float) -> None:
        """Let all processes do what they do, every ``pause`` seconds."""
        end = self.clock.monotonic() + seconds
        while self.clock.monotonic() < end:
            self.clock.sleep(pause)
            self.server.settle()
            for process in self.living:
                self.do_all(process)
        for process in self.theirs.processes:
            self.do_all(process)

    def do_all(self, process: Mortal) -> None:
        for _ in range(10):
            self.run(process, "threads")
        for name in process.services:
            self.run(process, name)
            for _ in range(10):
                self.run(process, "threads")
        for _ in range(5):
            if process.process.tracker.seconds_until_due() != 0.0:
                break
            self.run(process, "tracker")
            self.run(process, "threads")

    # --- What goes wrong ------------------------------------------------------------------------

    def breaks(self, fault: Fault) -> None:
        self.incidents[fault.kind] += 1
        self.server.add(fault)

    def configure(self, variant: Variant) -> None:
        """Somebody writes the configuration file anew."""
        self.variant = variant
        if not variant.broken:
            self.variants.append(variant)
        fresh = self.ours.config.with_suffix(".new")
        fresh.write_text(variant.to_toml(self.ours.url, self.ours.config.parent / "spool"))
        fresh.replace(self.ours.config)

    def behind_our_back(self, what: str, task_id: int) -> None:
        """What people do to a task of the pool's."""
        actions = self.server.actions
        self.incidents[what] += 1
        match what:
            case "delete":
                self.deleted.add(task_id)
                actions.delete_task(task_id)
            case "fill":
                self.changed.setdefault(task_id, self.step)
                actions.fill_task(task_id)
            case "rename":
                self.changed.setdefault(task_id, self.step)
                actions.rename_task(task_id)
            case "move":
                self.moved.add(task_id)
                actions.move_task(task_id)
        self.server.settle()

    # --- Looking --------------------------------------------------------------------------------

    def rows(self, query: str, **parameters: Any) -> list[Any]:
        """What the database has, past the store."""
        with self.ours.store.connections.reading() as db:
            return list(db.rows(query, **parameters))

    def look_of(self, task_id: int) -> Any:
        """All that could have been changed about somebody's task."""
        task = self.server.simulator.state.tasks.get(task_id)
        if task is None:
            return None
        return (task.name, task.project, task.data is None, list(task.job_ids), task.updated)

    def spooled(self) -> list[str]:
        """What is in the spool when all is at its end, and has been swept."""
        process = self.maintainer
        assert process is not None
        for _ in range(2):
            self.run(process, "sweep")
            self.clock.sleep(SPOOL_GRACE)
        return [entry.name for entry in process.process.spool.folder.glob("*")]

    def requests(self) -> tuple[Any, ...]:
        return tuple(self.ours.store.requests(limit=10_000).requests)
