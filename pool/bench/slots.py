"""``cvat-pool bench --slots``: job ids before CVAT has the data, beside what they take otherwise.

All is measured in turns in one run. The callers are in this process; the daemon has one of its own,
and so have the simulator and the server of buckets.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pool.bench import processes
from pool.bench.bulk import Callers, open_callers
from pool.bench.measure import PATIENCE, Flow, fsync_ms, interleave
from pool.bench.pictures import DIMENSIONS, sample_image
from pool.bench.pooled import RESTING, Supply
from pool.bench.report import Figures
from pool.bench.server_time import ServerTimes, busy_share
from pool.bench.slots_report import aims, ids_figures, percentiles
from pool.client import AsyncRemotePool
from pool.config.settings import SLOT_FORMATS, CvatSettings, SlotSettings, Template
from pool.errors import PoolError
from pool.model import Placed, RequestRecord
from pool.requests.slot_storage import SlotStorage
from pool.store import Store

#: What is measured, in the order of the report.
SCENARIOS: Final = ("ids", "burst", "lone", "rate")
#: The templates, by where their slots' files stand.
SHARE: Final = "bench-share"
BUCKET: Final = "bench-s3"
#: Slots of a task. Showing some of them costs CVAT the more the more a task has. At high rates the
#: import counts, whose fixed part is shared by more.
PER_TASK: Final = 50
PER_TASK_AT_RATE: Final = 100
#: Requests of each kind in a round, one after the other, and those at once.
EACH: Final = 10
TOGETHER: Final = 20
#: Frames a second, the clients they come from, and for how many seconds there are slots at first.
PER_SECOND: Final = 50
CLIENTS: Final = 4
STOCK: Final = 20.0
#: Seconds until the first frame comes.
SETTING_UP: Final = 0.5
#: Different pictures: more would only take longer to draw.
PICTURES: Final = 20
#: Rows of a store that are read at a time.
PAGE: Final = 500


# --- Where the files stand ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Storages:
    """Where the slots' files of a bench on a simulator stand: its share, and a bucket (``s3://…``)
    unless it says why there is none."""

    share: Path
    bucket: str
    why_no_bucket: str

    def slots(self) -> dict[str, SlotSettings]:
        """Return the slots of the templates; the storages are marked."""
        given: dict[str, Any] = {
            "size": "x".join(map(str, DIMENSIONS)),
            "per_task": PER_TASK,
        }
        found = {
            SHARE: SlotSettings(
                storage=f"file://{self.share}/pool", server="share:pool", cache_storage=1, **given
            )
        }
        if self.bucket:
            found[BUCKET] = SlotSettings(storage=f"{self.bucket}/pool", server="cloud:2", **given)
        for settings in found.values():
            SlotStorage(settings, "").mark()
        return found


@contextmanager
def open_storages(folder: Path) -> Iterator[Storages]:
    """Make a share in a folder, and a bucket where there is what it takes; meanwhile the
    environment says how to reach it."""
    share = folder / "share"
    share.mkdir()
    missing = [name for name in ("obstore", "moto") if find_spec(name) is None]
    if missing:
        why = f"{' and '.join(missing)} not installed: pip install obstore 'moto[server]'"
        yield Storages(share=share, bucket="", why_no_bucket=why)
        return
    with processes.s3(folder) as endpoint:
        made = urllib.request.Request(f"{endpoint}/bench", method="PUT")
        urllib.request.urlopen(made, timeout=PATIENCE).close()
        access = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
        }
        before = {name: os.environ.get(name) for name in access}
        os.environ.update(access)
        try:
            yield Storages(share=share, bucket="s3://bench", why_no_bucket="")
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


# --- Measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Requests into slots, against one server.

    ``slots`` are those of the templates, of which the first is measured in all scenarios, with
    ``per_task_at_rate`` slots a task in the last one, unless that is None. There are ``rounds`` of
    the first three scenarios, and ``seconds`` of frames in the last one. ``sdk`` is the SDK with
    its defaults, run ``sdk_runs`` times. ``skipped`` says what could not be measured, and why;
    ``say`` is called with what is done next.
    """

    server: CvatSettings
    template: Template
    slots: Mapping[str, SlotSettings]
    environment: Mapping[str, str]
    folder: Path
    mark: str
    say: Callable[[str], None]
    times: ServerTimes
    sdk: Flow
    sdk_runs: int
    scenarios: Sequence[str] = SCENARIOS
    rounds: int = 20
    seconds: float = 60.0
    seed: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    per_task_at_rate: int | None = None

    def run(self) -> Figures:
        """Measure, and return the figures by scenario.

        :raises PoolError: a part did not come up, or the server refused something.
        """
        return asyncio.run(self._run())

    async def _run(self) -> Figures:
        figures: Figures = {"skipped": dict(self.skipped)}
        main = next(iter(self.slots))
        if in_rounds := [name for name in self.scenarios if name != "rate"]:
            async with self._pool("rounds", self._stock()) as callers:
                figures |= await self._rounds(callers, main, in_rounds)
        if "rate" in self.scenarios:
            stock = math.ceil(PER_SECOND * min(STOCK, self.seconds))
            async with self._pool("rate", {main: stock}, self.per_task_at_rate) as callers:
                figures["rate"] = await self._rate(callers, main)
        return figures | {"aims": aims(figures)}

    def _stock(self) -> dict[str, int]:
        """Return how many slots, and ordinary tasks, the rounds take; one is not measured."""
        main, *others = self.slots
        each = {"ids": 2 * EACH, "burst": 2 * TOGETHER, "lone": 1}
        wanted = {main: sum(each[name] for name in each if name in self.scenarios)}
        if "ids" in self.scenarios:
            wanted |= {RESTING: 1, **dict.fromkeys(others, EACH)}
        return {name: count * (self.rounds + 1) for name, count in wanted.items()}

    # --- Rounds -----------------------------------------------------------------------------------

    async def _rounds(
        self, callers: Callers, main: str, scenarios: Sequence[str]
    ) -> dict[str, Figures]:
        found: dict[str, list[float]] = defaultdict(list)
        runs = {"round": self.rounds + 1}
        if "ids" in scenarios:
            runs["sdk"] = self.sdk_runs
        for what, number in interleave(runs):
            if what == "sdk":
                self.say("The SDK with its defaults ...")
                self._await_shown(callers.supply)
                found["sdk"] += [each.ours_ms for each in self.sdk.run(number)]
                continue
            self.say(f"Round {number} of {self.rounds} ..." if number else "A round to warm up ...")
            # The first opens connections.
            kept = found if number else defaultdict(list)
            if "ids" in scenarios:
                await self._ids(callers, main, kept)
            if "burst" in scenarios:
                kept["burst"].append(self._together(callers, main))
                kept["burst-http"].append((await callers.burst(main, TOGETHER)).all_ms)
            if "lone" in scenarios:
                kept["lone"].append(await self._lone(callers, main))
        placed = _placed(callers.supply.pool.store, self.slots)
        figures: dict[str, Figures] = {"placed": placed}
        if "ids" in scenarios:
            figures["ids"] = ids_figures(found, main, [name for name in self.slots if name != main])
        if "burst" in scenarios:
            figures["burst"] = {
                name: percentiles(found[key])
                for name, key in (("library", "burst"), ("http", "burst-http"))
            }
        if "lone" in scenarios:
            figures["lone"] = {"shown_s": percentiles(found["lone"])}
        return figures

    async def _ids(self, callers: Callers, main: str, found: dict[str, list[float]]) -> None:
        """Measure requests one after the other, each beside the same bytes brought to the disk."""
        settings, picture = self.slots[main], callers.files(1)[0][1]
        scheme, _, folder = settings.storage.partition("://")
        for _ in range(EACH):
            if scheme == "file":
                found["fsync"].append(fsync_ms(Path(folder) / ".bench", picture))
            found[main].append(_ids_ms(callers, main))
            found["http"].append(await _ids_over_http_ms(callers, main))
            for other in self.slots:
                if other != main:
                    found[other].append(_ids_ms(callers, other))
        self._await_shown(callers.supply)
        found["pool"].append(_ids_ms(callers, RESTING))

    def _together(self, callers: Callers, template: str) -> float:
        """Make requests at once; return the ms until the last one has its job ids."""
        together = threading.Barrier(TOGETHER)

        def request(_: int) -> float:
            together.wait(PATIENCE)
            return _ids_ms(callers, template)

        with ThreadPoolExecutor(TOGETHER) as threads:
            return max(threads.map(request, range(TOGETHER)))

    async def _lone(self, callers: Callers, template: str) -> float:
        """Make a request while the server has nothing else to do; return the seconds from its job
        ids until it is shown."""
        self._await_shown(callers.supply)
        await _ids_over_http_ms(callers, template)
        self._await_shown(callers.supply)
        page = callers.supply.pool.store.requests(template=template, limit=1)
        if not (shown := _shown_s(page.requests)):
            raise PoolError("a request into a slot was not shown")
        return shown[0]

    # --- A camera's frames ------------------------------------------------------------------------

    async def _rate(self, callers: Callers, template: str) -> Figures:
        """Have so many frames come a second, from clients that wait for none before the next, while
        the daemon makes new slots."""
        supply, count = callers.supply, int(PER_SECOND * self.seconds)
        self.say(f"{PER_SECOND} frames a second for {self.seconds:g} s ...")
        failed: list[str] = []
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(AsyncRemotePool(supply.daemon.listening_at()))
                for _ in range(CLIENTS)
            ]
            for client in clients:
                # Opens a connection.
                await client.status()
            supply.pool.resume(template)
            # All that come are set up before the first one is due.
            since, began = time.time() + SETTING_UP, time.perf_counter() + SETTING_UP

            async def request(number: int) -> float:
                due = began + number / PER_SECOND
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                try:
                    sent = await clients[number % CLIENTS].submit(template, callers.files(1))
                    await sent.jobs(PATIENCE)
                except PoolError as error:
                    failed.append(str(error))
                # From when it was to come, so that one that is late makes no other look quick.
                return (time.perf_counter() - due) * 1000

            took = await asyncio.gather(*map(request, range(count)))
            until = time.time()
        supply.pool.pause(template)
        self._await_shown(supply)
        store = supply.pool.store
        placed = _placed(store, [template])
        shown = _shown_s(_requests(store, template))
        tasks = [carrier.task_id for carrier in store.carriers(limit=count)]
        return {
            "seconds": self.seconds,
            "requests": count,
            "failed": failed,
            "ms": percentiles(took),
            "placed": placed,
            "not_shown": placed["slot"] - len(shown),
            "shown_s": percentiles(shown),
            "tasks": len(tasks),
            "import_busy": round(busy_share(self.times.spans(tasks), since, until), 3),
        }

    # --- Setting up -------------------------------------------------------------------------------

    def _pool(
        self, name: str, stock: Mapping[str, int], per_task: int | None = None
    ) -> AbstractAsyncContextManager[Callers]:
        def with_slots(template: str) -> Template:
            slots = self.slots.get(template)
            if slots is not None and per_task is not None:
                slots = replace(slots, per_task=per_task)
            return replace(self.template, slots=slots)

        templates = {each: (with_slots(each), count) for each, count in stock.items()}
        settings = next(iter(self.slots.values()))
        pictures = [
            sample_image(
                self.seed * 1000 + number,
                dimensions=settings.dimensions,
                format=SLOT_FORMATS[settings.format],
            )
            for number in range(PICTURES)
        ]
        return open_callers(
            self.folder / name,
            self.server,
            templates,
            self.environment,
            pictures=pictures,
            mark=self.mark,
            say=self.say,
        )

    def _await_shown(self, supply: Supply) -> None:
        """Wait until all that is in slots is shown."""
        store, clock = supply.pool.store, supply.pool.clock
        supply.wait_for(lambda: (store.next_look() or math.inf) > clock.now(), "slots to be shown")


def _ids_ms(callers: Callers, template: str) -> float:
    """Make a request with the library; return the ms until it has its job ids."""
    pool, files = callers.supply.pool, callers.files(1)
    began = time.perf_counter()
    pool.submit(template, files).jobs(PATIENCE)
    return (time.perf_counter() - began) * 1000


async def _ids_over_http_ms(callers: Callers, template: str) -> float:
    """Make a request of the daemon; return the ms until it has its job ids."""
    served = await callers.ask(template, callers.files(1), began=time.perf_counter())
    if served.why:
        raise PoolError(served.why)
    return served.ms


def _shown_s(records: Iterable[RequestRecord]) -> list[float]:
    """Return the seconds from the job ids of requests until an annotator can open them, of those
    that are shown."""
    return [
        max(0.0, each.shown_at - each.finished_at)
        for each in records
        if each.shown_at is not None and each.finished_at is not None
    ]


def _requests(store: Store, template: str) -> Iterator[RequestRecord]:
    cursor: str | None = None
    while True:
        page = store.requests(template=template, limit=PAGE, cursor=cursor)
        yield from page.requests
        cursor = page.next_cursor
        if cursor is None:
            return


def _placed(store: Store, templates: Sequence[str] | Mapping[str, Any]) -> dict[str, int]:
    """Return how many requests went into what; those into no slot are ``otherwise``."""
    found = [each.placed is Placed.SLOT for name in templates for each in _requests(store, name)]
    return {"slot": sum(found), "otherwise": len(found) - sum(found)}
