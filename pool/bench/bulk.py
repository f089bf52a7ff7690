"""``cvat-pool bench --bulk``: many requests at once over HTTP, with group commit and without.

Each figure stands beside what it is compared with, which is measured in the same run, in turns. The
callers are in this process; the daemon has one of its own, and so has the simulator.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from httpx import AsyncClient

from pool.bench import processes
from pool.bench.bulk_report import Burst, Served, burst_figures, pair_figures
from pool.bench.measure import PATIENCE, fsync_ms
from pool.bench.pictures import corrupt_image, sample_image, sample_images
from pool.bench.pooled import Supply, open_supply, resident_bytes
from pool.bench.report import Figures, percentile, spread
from pool.client import AsyncRemotePool
from pool.client.transport import LIMITS
from pool.config.settings import CvatSettings, Template

#: What is measured, in the order of the report; all but the first two on a simulator only: they
#: leave thousands of tasks, and one that is damaged.
SCENARIOS: Final = ("bursts", "idle", "corrupt", "arrivals", "queue")
SIMULATED: Final = frozenset(SCENARIOS[2:])
#: The templates, which make the same tasks: with group commit, and without.
GROUPED: Final = "bench-grouped"
SINGLE: Final = "bench-single"
#: Different images: more would only take longer to draw.
PICTURES: Final = 20
#: Arrivals come at so many times the rate at which the server serves requests one by one, which so
#: many bursts measure.
OVERLOAD: Final = 4.0
BURSTS: Final = 3
#: Seconds for which the last arrivals may still be served, and between two looks at them.
SETTLE: Final = 5.0
LOOK: Final = 0.05
#: Requests of a long queue, those by which the cost of one more is measured, and the callers that
#: fill it at the same time.
QUEUED: Final = 50_000
PROBES: Final = 100
FILLERS: Final = 16
#: Bytes of an image in a long queue: gigabytes would measure the disk.
SMALL: Final = 2_000
#: Seconds for which a request of a queue waits for a task, and an answer for job ids.
PATIENT: Final = 3600.0
WAIT: Final = 60


@dataclass(frozen=True, kw_only=True)
class Bulk:
    """Many requests at once, against one server.

    ``mark`` is in the names of all tasks that are filled. ``few`` and ``many`` are the requests of
    a burst, which is repeated ``rounds`` times; ``pairs`` is how many requests of each kind an idle
    server gets, ``seconds`` how long arrivals last, ``queued`` the length of the queue. ``say`` is
    called with what is done next.
    """

    server: CvatSettings
    template: Template
    environment: Mapping[str, str]
    folder: Path
    mark: str
    say: Callable[[str], None]
    scenarios: Sequence[str] = SCENARIOS
    few: int = 20
    many: int = 200
    rounds: int = 5
    pairs: int = 50
    seconds: float = 60.0
    queued: int = QUEUED
    seed: int = 0

    def run(self) -> Figures:
        """Measure, and return the figures by scenario.

        :raises PoolError: a part did not come up, or the server refused something.
        """
        return asyncio.run(self._run())

    async def _run(self) -> Figures:
        figures: Figures = {}
        if tasks := self._tasks():
            async with self._pool("bursts", tasks) as callers:
                if "bursts" in self.scenarios:
                    figures["bursts"] = await self._bursts(callers)
                if "idle" in self.scenarios:
                    figures["idle"] = await self._idle(callers)
                if "corrupt" in self.scenarios:
                    figures["corrupt"] = await self._corrupt(callers)
                if "arrivals" in self.scenarios:
                    capacity = await self._capacity(callers)
        if "arrivals" in self.scenarios:
            figures["arrivals"] = await self._arrivals(capacity)
        if "queue" in self.scenarios:
            figures["queue"] = await self._queue()
        return figures

    def _tasks(self) -> dict[str, int]:
        """Return how many tasks the pools have that several scenarios share: as many as requests
        without group commit, and with it more than enough."""
        needed = {
            "bursts": ((self.few + 1) * self.rounds + self.many, 20 * self.rounds),
            "idle": (self.pairs, self.pairs),
            "corrupt": (0, self.few),
            "arrivals": (BURSTS * self.few, 0),
        }
        wanted = [each for name, each in needed.items() if name in self.scenarios]
        single, grouped = (sum(each[at] for each in wanted) for at in (0, 1))
        return {name: count for name, count in ((SINGLE, single), (GROUPED, grouped)) if count}

    # --- Bursts -----------------------------------------------------------------------------------

    async def _bursts(self, callers: Callers) -> Figures:
        """Measure one request, a few and many at once, and one import of as many files."""
        found: dict[str, list[Burst]] = {}
        for number in range(self.rounds):
            self.say(f"Bursts, round {number + 1} of {self.rounds} ...")
            found.setdefault("one", []).append(await callers.burst(SINGLE, 1))
            found.setdefault("few", []).append(await callers.burst(SINGLE, self.few))
            found.setdefault("few-grouped", []).append(await callers.burst(GROUPED, self.few))
            found.setdefault("many-grouped", []).append(await callers.burst(GROUPED, self.many))
            found.setdefault("one-import", []).append(await callers.one_import(GROUPED, self.many))
            # It takes half a minute, and varies least.
            if number == self.rounds // 2:
                found["many"] = [await callers.burst(SINGLE, self.many)]
        return burst_figures(found)

    async def _idle(self, callers: Callers) -> Figures:
        """Measure a request on a server that has nothing else to do, in pairs: what group commit
        adds to it."""
        self.say(f"{self.pairs} pairs on an idle server ...")
        pairs: list[tuple[float, float]] = []
        for number in range(self.pairs):
            took = {}
            # Each is the first of every other pair.
            for name in (SINGLE, GROUPED)[:: 1 if number % 2 else -1]:
                took[name] = (await callers.burst(name, 1)).all_ms
                await asyncio.sleep(LOOK)
            pairs.append((took[SINGLE], took[GROUPED]))
        return pair_figures(pairs)

    async def _corrupt(self, callers: Callers) -> Figures:
        """Measure many at once, of which one has an image that only CVAT finds to be broken."""
        self.say("One corrupt image among many ...")
        clean = await callers.burst(GROUPED, self.many)
        found = await callers.burst(GROUPED, self.many, corrupt=self.many // 2)
        jobs = [job for each in found.served for job in each.jobs]
        failures = [each.why for each in found.served if each.why]
        return {
            "requests": self.many,
            "ready": sum(bool(each.jobs) for each in found.served),
            "failed": len(failures),
            "why": failures,
            "jobs_given_twice": len(jobs) - len(set(jobs)),
            "imports": found.imports,
            "imports_without_it": clean.imports,
        }

    # --- Arrivals ---------------------------------------------------------------------------------

    async def _capacity(self, callers: Callers) -> float:
        """Measure how many requests a second the server manages one by one."""
        self.say("What the server manages one by one ...")
        bursts = [await callers.burst(SINGLE, self.few) for _ in range(BURSTS)]
        return statistics.median(self.few / burst.all_ms * 1000 for burst in bursts)

    async def _arrivals(self, capacity: float) -> Figures:
        """Measure Poisson arrivals at more than that rate."""
        rng, moments = random.Random(self.seed), list[float]()
        while not moments or moments[-1] < self.seconds:
            moments.append((moments or [0.0])[-1] + rng.expovariate(OVERLOAD * capacity))
        figures: Figures = {}
        for name, template in (("grouped", GROUPED), ("single", SINGLE)):
            # With some to spare: an empty pool would be another thing to wait for.
            tasks = int(1.3 * capacity * self.seconds) + self.few
            async with self._pool(f"arrivals-{name}", {template: tasks}) as callers:
                self.say(f"{len(moments)} arrivals in {self.seconds:g} s, {name} ...")
                figures[name] = await callers.arrivals(template, moments)
        return {
            "one_by_one_per_s": round(capacity, 2),
            "arrivals_per_s": round(OVERLOAD * capacity, 2),
            "seconds": self.seconds,
            **figures,
        }

    # --- A long queue -----------------------------------------------------------------------------

    async def _queue(self) -> Figures:
        """Measure what one more request costs while many wait, how a daemon starts with them, and
        what an interactive one waits for its job ids meanwhile."""
        picture = sample_image(self.seed, size=SMALL)
        tasks = {GROUPED: self.few}
        async with self._pool("queue", tasks, on_empty="wait") as callers:
            # They take all tasks that there are, so that none of what follows is served.
            alone = [await callers.interactive(picture) for _ in range(self.few)]
            empty = await callers.costs(picture, PROBES)
            self.say(f"{self.queued} requests for the queue ...")
            began = time.perf_counter()
            await callers.fill(picture, self.queued)
            rate = self.queued / (time.perf_counter() - began)
            full = await callers.costs(picture, PROBES)
            resident = {"full": callers.resident_mb()}
        self.say("A daemon that starts with them ...")
        began = time.perf_counter()
        async with self._pool("queue", tasks, on_empty="wait", fill=False) as callers:
            restart = time.perf_counter() - began
            left = callers.supply.pool.store.queue_length()
            callers.supply.pool.resume(GROUPED)
            self.say("Interactive requests meanwhile ...")
            meanwhile = [await callers.interactive(picture) for _ in range(self.few)]
            resident["serving"] = callers.resident_mb()
            still = callers.supply.pool.store.queue_length()
        return {
            "queued": self.queued,
            "accepted_per_s": round(rate, 1),
            "submit": {"empty": empty, "full": full},
            "resident_mb": resident,
            "restart_s": round(restart, 2),
            "waiting": {"after_restart": left, "at_the_end": still},
            "interactive_ms": {"alone": spread(alone), "meanwhile": spread(meanwhile)},
        }

    # --- Setting up -------------------------------------------------------------------------------

    def _pool(
        self, name: str, tasks: Mapping[str, int], *, on_empty: str = "create", fill: bool = True
    ) -> AbstractAsyncContextManager[Callers]:
        templates = {each: (self._template(each), count) for each, count in tasks.items()}
        return open_callers(
            self.folder / name,
            self.server,
            templates,
            self.environment,
            pictures=sample_images(PICTURES, seed=self.seed),
            mark=self.mark,
            say=self.say,
            on_empty=on_empty,
            fill=fill,
        )

    def _template(self, name: str) -> Template:
        grouping: Literal["auto", "off"] = "auto" if name == GROUPED else "off"
        return replace(
            self.template,
            importing=replace(self.template.importing, grouping=grouping),
            pool=replace(self.template.pool, max_wait=PATIENT),
        )


@asynccontextmanager
async def open_callers(
    folder: Path,
    server: CvatSettings,
    templates: Mapping[str, tuple[Template, int]],
    environment: Mapping[str, str],
    *,
    pictures: Sequence[bytes],
    mark: str,
    say: Callable[[str], None],
    on_empty: str = "create",
    fill: bool = True,
) -> AsyncIterator[Callers]:
    """Start a daemon in a ``folder``, fill its pools with so many tasks each and let them rest, and
    open its callers."""
    folder.mkdir(exist_ok=True)
    config = processes.write_configuration(folder, server, templates, on_empty=on_empty)
    with open_supply(config, environment) as supply:
        url = supply.daemon.listening_at()
        counts = {name: count for name, (_, count) in templates.items() if fill}
        if fill:
            say(f"Filling a pool of {sum(counts.values())} tasks ...")
        for name, count in counts.items():
            supply.fill(name, count)
        async with (
            AsyncRemotePool(url) as remote,
            AsyncClient(limits=LIMITS, timeout=PATIENCE, trust_env=False) as http,
        ):
            yield Callers(supply, remote, http, pictures, mark)


class Callers:
    """Callers of one daemon over HTTP."""

    def __init__(
        self,
        supply: Supply,
        remote: AsyncRemotePool,
        http: AsyncClient,
        pictures: Sequence[bytes],
        mark: str,
    ) -> None:
        self.supply = supply
        self._remote = remote
        self._http = http
        self._pictures = pictures
        self._mark = mark
        self._sent = 0

    async def burst(self, template: str, count: int, *, corrupt: int | None = None) -> Burst:
        """Make ``count`` requests of one image at once; that of the number ``corrupt`` has half an
        image, whose header is as it should be."""
        files = [
            self.files(1) if number != corrupt else [("corrupt.png", corrupt_image())]
            for number in range(count)
        ]
        self._settle()
        warm, began = self._warm(template), time.perf_counter()
        served = await asyncio.gather(*(self.ask(template, each, began=began) for each in files))
        return Burst(served=tuple(served), imports=warm - self._warm(template))

    async def one_import(self, template: str, count: int) -> Burst:
        """Make one request of ``count`` images, each of which has a job of its own."""
        self._settle()
        files, began = self.files(count), time.perf_counter()
        served = await self.ask(template, files, began=began, job_size=1)
        return Burst(served=(served,), imports=1)

    async def ask(
        self, template: str, files: Sequence[tuple[str, bytes]], *, began: float, **fields: Any
    ) -> Served:
        """Make a request whose answer waits for the job ids: one call for most of them."""
        answer = await self._http.post(
            f"{self._remote.url}/v1/requests",
            headers={"Prefer": f"wait={WAIT}"},
            data={"template": template, "name": self._mark, **fields},
            files=[("files", file) for file in files],
        )
        document = answer.json()
        if answer.status_code == 202:
            sent = await self._remote.request(document["id"])
            ids = tuple(job.id for job in await sent.jobs(PATIENCE))
        elif answer.status_code == 201:
            ids = tuple(job["id"] for job in document["jobs"])
        else:
            return Served(why=str(document["detail"]))
        return Served(ms=(time.perf_counter() - began) * 1000, jobs=ids)

    async def arrivals(self, template: str, moments: Sequence[float]) -> Figures:
        """Make a request at each of these moments, in seconds, and count what waits at each second.

        The events say when each is ready: thousands of callers that wait at the same time would
        cost more than what is measured.
        """
        asked: dict[str, float] = {}
        waited: dict[str, float] = {}
        waiting: list[int] = []
        warm, began = self._warm(template), time.perf_counter()
        stream = self._remote.event_stream(kinds=["request.ready"], template=template)
        await stream.open()

        async def listen() -> None:
            while True:
                event = await stream.next()
                if event.request_id is not None:
                    waited[event.request_id] = time.perf_counter() - began

        async def request() -> None:
            at = time.perf_counter() - began
            asked[(await self._remote.submit(template, self.files(1))).id] = at

        async def count(seconds: int) -> None:
            for second in range(1, seconds + 1):
                await asyncio.sleep(began + second - time.perf_counter())
                waiting.append(sum(moment <= second for moment in moments) - len(waited))

        listening = asyncio.create_task(listen())
        counting = asyncio.create_task(count(int(moments[-1])))
        async with asyncio.TaskGroup() as callers:
            for moment in moments:
                await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
                callers.create_task(request())
        await counting
        # Those that came last have their time, too; but not those of a queue without an end.
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE):
                while len(waited) < len(asked):
                    await asyncio.sleep(LOOK)
        listening.cancel()
        await stream.close()
        took = [(waited[id] - at) * 1000 for id, at in asked.items() if id in waited]
        return {
            "requests": len(asked),
            "served": len(took),
            "ms": spread(took),
            "p95_ms": round(percentile(took, 95), 1) if took else None,
            "imports": warm - self._warm(template),
            "waiting": waiting,
        }

    async def costs(self, picture: bytes, count: int) -> Figures:
        """Measure what it takes to have a request accepted, and to write the same bytes to the disk
        and wait for it, in turns."""
        accepted, written = [], []
        for number in range(count):
            began = time.perf_counter()
            await self._remote.submit(GROUPED, [("frame.jpg", picture)])
            accepted.append((time.perf_counter() - began) * 1000)
            path = self.supply.pool.settings.store.spool_folder.parent / f"probe-{number}"
            written.append(fsync_ms(path, picture))
        ratio = statistics.median(accepted) / statistics.median(written)
        return {"ms": spread(accepted), "fsync_ms": spread(written), "ratio": round(ratio, 2)}

    async def fill(self, picture: bytes, count: int) -> None:
        """Have ``count`` requests accepted that are in no hurry."""
        left = iter(range(count))

        async def caller() -> None:
            for _ in left:
                await self._remote.submit(GROUPED, [("frame.jpg", picture)], priority="bulk")

        await asyncio.gather(*(caller() for _ in range(FILLERS)))

    async def interactive(self, picture: bytes) -> float:
        """Make a request that is in a hurry; return the ms until it has its job ids."""
        began = time.perf_counter()
        files = [("frame.jpg", picture)]
        served = await self.ask(GROUPED, files, began=began, priority="interactive")
        return served.ms

    def resident_mb(self) -> float:
        """Return the memory of the daemon."""
        return round(resident_bytes(self.supply.daemon.process.pid) / 1e6, 1)

    def files(self, count: int) -> list[tuple[str, bytes]]:
        """Return images whose names no other request has."""
        first, self._sent = self._sent, self._sent + count
        return [
            (f"frame{number:06d}.jpg", self._pictures[number % len(self._pictures)])
            for number in range(first, first + count)
        ]

    def _settle(self) -> None:
        """Wait until what follows after job ids are out is done: names, say."""
        store = self.supply.pool.store
        self.supply.wait_for(
            lambda: not store.due_steps(now=float("inf"), limit=1), "tasks to be named"
        )

    def _warm(self, template: str) -> int:
        """Return how many tasks of a pool that rests are left."""
        return self.supply.level(template).warm
