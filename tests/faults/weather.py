"""What goes wrong around a storm's processes: a server with faults, people, a network that cuts.

The weather changes every few seconds, drawn from a seed, and all of it is written down: so it can
be told afterwards whether a request that failed had a reason to, see :meth:`Weather.explains`.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.proxy import CuttingProxy, Direction

from faults.bystander import Bystander
from pool.cvat import CvatClient, tells_of_other_data
from pool.errors import PoolError
from pool.model import TaskState, pool_mark
from pool.requests.slot_storage import MARKER
from pool.simulator import SimulatorServer
from pool.simulator.actions import ActionFailed
from pool.simulator.fault_control import Handle
from pool.simulator.faults import (
    Cut,
    DeadWorker,
    Error,
    FailedImport,
    Fault,
    ForgottenRequest,
    Hang,
    HungImport,
    Latency,
    SlowImport,
)
from pool.store import Store

#: What CVAT says of imports that the weather makes fail, so that no other failure is taken for one.
WORDS = "OSError: the weather has failed this import\n"
#: What rq says of an import that was under way when the server went down, and what the pool says
#: of one that CVAT knows nothing of.
ABANDONED = "AbandonedJobError"
NO_RECORD = "CVAT has no record of the import"
#: Seconds before and after a spell in which it may be what something failed of: a call that it
#: disturbed was sent before, or gave up after.
NEAR = 6.0


@dataclass
class Spell:
    """One thing that went wrong for a while, in seconds since the epoch."""

    kind: str
    began: float
    ended: float = field(default=float("inf"))

    def meets(self, since: float, until: float) -> bool:
        return self.began - NEAR <= until and self.ended + NEAR >= since


#: Faults of calls and imports, and how strong; each is on for some seconds.
FAULTS: dict[str, Callable[[random.Random], tuple[Fault, ...]]] = {
    "latency": lambda rng: (Latency(seconds=0.1, to=rng.uniform(0.3, 1.5), rate=0.4),),
    "errors": lambda rng: (
        Error(
            status=rng.choice((500, 502, 503, 504)), at=rng.choice(("before", "after")), rate=0.25
        ),
    ),
    "too many": lambda _: (Error(status=429, retry_after=1, rate=0.3),),
    "cuts": lambda rng: (
        Cut(at=rng.choice(("before", "after", "answer")), reset=rng.random() < 0.7, rate=0.2),
    ),
    "hangs": lambda rng: (Hang(at=rng.choice(("before", "after")), times=2),),
    "failed imports": lambda _: (FailedImport(message=WORDS, rate=0.4),),
    "hung imports": lambda rng: (HungImport(at=rng.choice(("queued", "started")), rate=0.3),),
    "slow imports": lambda _: (SlowImport(seconds=0.5, to=2.0, rate=0.6),),
    "dead workers": lambda rng: (
        DeadWorker(
            at=rng.choice(("before", "after")),
            request=rng.choice(("failed", "gone")),
            message=WORDS,
            rate=0.4,
        ),
    ),
    "forgotten requests": lambda _: (ForgottenRequest(rate=0.5),),
}

#: What happens once, or is switched on and off again.
PEOPLE = ("delete", "fill", "rename")
EVENTS = ("down", "restart", "queues lost", "tokens revoked", "proxy down", "proxy cuts",
          "proxy slow", "clock set")  # fmt: skip
MILD = ("latency", "errors", "cuts", "failed imports", "slow imports", *PEOPLE, "proxy cuts",
        "queues lost")  # fmt: skip
#: CVAT fails for one template, and nothing else goes wrong meanwhile: then no other is to wait.
POISON = "one template is poisoned"
ALL = (*FAULTS, *PEOPLE, *EVENTS, POISON)
#: What happens to the share of slots; and to their tasks, by people: one looks at slots that are
#: empty, and a page that was opened some time ago restores a frame and writes its old list back.
SHARE = ("share away", "share not mounted", "share unmarked", "disk full")
PAGES = ("slots looked at", "old list written")
FOR_SLOTS = (*(kind for kind in MILD if kind not in PEOPLE), *SHARE, *PAGES)
#: How many tasks people touch at a time, at the most.
TOUCHED = 3

#: Why the server's answers were missing or wrong.
NO_ANSWER = {"errors", "too many", "cuts", "hangs", "latency", "down", "restart", "tokens revoked",
             "proxy down", "proxy cuts", "proxy slow"}  # fmt: skip
LOST = {"queues lost", "restart", "dead workers", "forgotten requests"}
#: What has to have been in force during a request for it to fail so, by the error's code. A code
#: that is not here is never explained.
CAUSES = {
    "import-timed-out": NO_ANSWER | LOST | {"hung imports", "slow imports"},
    "cvat-busy": {"errors", "too many", POISON},
    "cvat-unreachable": NO_ANSWER,
    "cvat-ambiguous": NO_ANSWER,
    "cvat-unauthorized": {"tokens revoked"},
}


class SlotShare:
    """The folder of a share that the slots' files stand in, and what happens to it."""

    def __init__(self, folder: Path, disk_full: Path) -> None:
        self.folder = folder
        self._away = folder.with_suffix(".away")
        self._marker = folder / MARKER
        self._disk_full = disk_full
        #: What was written while nothing was to be.
        self.written: list[str] = []

    def spoil(self, kind: str) -> None:
        match kind:
            case "disk full":
                self._disk_full.touch()
            case "share unmarked" if self._marker.exists():
                self._marker.rename(self._marker.with_suffix(".gone"))
            case "share away" | "share not mounted" if self.folder.exists():
                self.folder.rename(self._away)
                if kind == "share not mounted":
                    self.folder.mkdir()

    def mend(self) -> None:
        self._disk_full.unlink(missing_ok=True)
        if self._away.exists():
            if self.folder.exists():
                self.written += [str(each) for each in self.folder.rglob("*")]
                self.folder.rmdir()
            self._away.rename(self.folder)
        with suppress(FileNotFoundError):
            self._marker.with_suffix(".gone").rename(self._marker)


class Weather:
    """Changes every few seconds from :meth:`__enter__` to :meth:`__exit__`, on its own thread.

    ``store`` tells which of the pool's tasks are warm: people only touch those. ``proxy`` is what
    the processes reach the server through. The ``bystander`` looks on while a template is
    poisoned. The ``client`` is that of people, and the ``share`` has the files of slots. With a
    ``pace`` of 0.5 all of it lasts half as long.
    """

    def __init__(
        self,
        server: SimulatorServer,
        proxy: CuttingProxy,
        store: Store,
        *,
        bystander: Bystander,
        client: CvatClient,
        share: SlotShare,
        seed: int,
        kinds: tuple[str, ...] = ALL,
        pace: float = 1.0,
    ) -> None:
        self._server, self._proxy, self._store = server, proxy, store
        self._bystander, self._client, self._share = bystander, client, share
        #: Set while a template is poisoned: no daemon is to be killed then.
        self.poisoned = threading.Event()
        #: Held while the store is away, and while a template is poisoned: never both.
        self.store_away = threading.Lock()
        #: How many seconds the requests of others took meanwhile, and what went wrong with them.
        self.others: list[float] = []
        self.not_served: list[str] = []
        self._rng = random.Random(f"{seed} weather")
        self._kinds = kinds
        self._pace = pace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._change, name="weather", daemon=True)
        self._handles: list[Handle] = []
        #: What pages that are open write when they are saved: a task, and its hidden frames.
        self._pages: list[tuple[int, frozenset[int]]] = []
        self.spells: list[Spell] = []
        self.counts: Counter[str] = Counter()
        #: Tasks that people deleted, and those that they made their own.
        self.deleted: set[int] = set()
        self.taken: set[int] = set()
        #: What went wrong with the weather itself.
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self._clear_up()

    # --- Changing -------------------------------------------------------------------------------

    def _change(self) -> None:
        try:
            if POISON in self._kinds:
                # Once at least, however short the storm is.
                self._poison()
            while not self._over.is_set():
                if self._rng.random() < 0.75:
                    chosen = self._rng.sample(self._kinds, self._rng.choice((1, 1, 2)))
                    if POISON in chosen:
                        self._poison()
                        continue
                    for kind in chosen:
                        self._begin(kind)
                    if set(PEOPLE) <= set(self._kinds) and self._rng.random() < 0.4:
                        self._begin(self._rng.choice(PEOPLE))
                self._over.wait(self._pace * self._rng.uniform(0.7, 2.5))
                self._clear_up()
        except BaseException as error:
            self.error = error
            raise

    def _begin(self, kind: str) -> None:
        spell = Spell(kind, time.time())
        try:
            if kind in FAULTS:
                self._handles += [self._server.faults.add(each) for each in FAULTS[kind](self._rng)]
            elif kind in PEOPLE:
                self._touch_warm_tasks(kind)
            elif kind in SHARE:
                self._share.spoil(kind)
            elif kind in PAGES:
                self._open_page(kind)
            else:
                self._happen(kind)
        except ActionFailed:
            return  # there was nothing to do it to
        self.counts[kind] += 1
        self.spells.append(spell)

    def _poison(self) -> None:
        self.poisoned.set()
        try:
            with self.store_away, self._bystander.ready() as pools:
                if pools is None:
                    return  # no daemon came to
                spell = Spell(POISON, time.time())
                self.spells.append(spell)
                self.counts[POISON] += 1
                fault = Error("tasks:create", status=500, task="* poisoned: *")
                self._handles.append(self._server.faults.add(fault))
                self._bystander.poison(pools)
                self._handles[-1].wait()
                self.others += self._bystander.times(pools)
        except (PoolError, TimeoutError) as error:
            self.not_served.append(repr(error))
        finally:
            self.poisoned.clear()
            self._clear_up()

    def _touch_warm_tasks(self, kind: str) -> None:
        mark = pool_mark(self._store.pool_id)
        warm = [task for task in self._store.tasks(states=(TaskState.WARM,)) if mark in task.name]
        if not warm:
            raise ActionFailed("none is warm")
        actions = self._server.actions
        for task in self._rng.sample(warm, min(TOUCHED, len(warm))):
            task_id = task.task_id or 0
            if kind == "delete":
                self.deleted.add(task_id)
                actions.delete_task(task_id)
            else:
                self.taken.add(task_id)
                (actions.fill_task if kind == "fill" else actions.rename_task)(task_id)

    def _open_page(self, kind: str) -> None:
        """Somebody opens a task with slots, some of which are empty."""
        warm = [each for each in self._store.tasks(states=(TaskState.WARM,)) if each.carrier_id]
        if not warm:
            raise ActionFailed("none is warm")
        chosen = self._rng.choice(warm)
        slot, task_id = self._store.slot(chosen.id), chosen.task_id
        if slot is None or task_id is None:
            raise ActionFailed("it is gone")
        # Whoever sits there is not spared the weather.
        with suppress(PoolError):
            if kind == "slots looked at":
                for quality in ("compressed", "original"):
                    self._client.frame(task_id, slot.start_frame, quality)
            else:
                hidden = self._client.hidden_frames(task_id)
                self._pages.append((task_id, hidden - {slot.start_frame}))

    def _save_pages(self) -> None:
        for task_id, hidden in self._pages:
            with suppress(PoolError):
                self._client.show_frames(task_id, hidden, cloud_storage_id=None)
        self._pages.clear()

    def _happen(self, kind: str) -> None:
        actions, proxy = self._server.actions, self._proxy
        match kind:
            case "down":
                actions.down(self._rng.uniform(0.5, 2.0))
            case "restart":
                actions.down(self._rng.uniform(0.5, 2.0), queues=False)
            case "queues lost":
                actions.lose_queues()
            case "tokens revoked":
                actions.revoke_tokens()
            case "proxy down":
                proxy.stop()
            case "proxy cuts":
                direction: Direction = self._rng.choice(("up", "down"))
                proxy.cut(direction, self._rng.randrange(1, 6000), times=self._rng.randrange(1, 6))
                proxy.reset_all()
            case "proxy slow":
                proxy.delay = self._rng.uniform(0.02, 0.3)
            case "clock set":
                actions.jump_clock(self._rng.choice((-3600.0, -30.0, 30.0, 3600.0)))

    def _clear_up(self) -> None:
        """All is well again; what a fault held up goes on."""
        self._share.mend()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._server.actions.up()
        self._server.actions.restore_tokens()
        self._proxy.delay = 0.0
        self._proxy.forget_cuts()
        if not self._proxy.listening:
            self._proxy.start()
        self._save_pages()
        for spell in self.spells:
            spell.ended = min(spell.ended, time.time())

    # --- Afterwards -----------------------------------------------------------------------------

    def explains(self, request: Any) -> bool:
        """Whether an accepted request that failed had to, for what was in force then."""
        since = request.uploaded_at or request.created_at
        during = {spell.kind for spell in self.spells if spell.meets(since, request.finished_at)}
        # Its caller, who waited, was told so; who asks again by the key gets the same answer.
        if not request.spooled and tells_of_other_data(request.error):
            return self.counts["fill"] > 0
        match request.error_code:
            case "import-failed":
                if ABANDONED in request.error:
                    return bool(during & {"down", "restart", "queues lost"})
                if NO_RECORD in request.error:
                    return bool(during & LOST)
                return WORDS.strip() in request.error
            case "task-gone" | "cvat-not-found":
                return request.task_id in self.deleted
        return bool(during & CAUSES.get(request.error_code, set()))
