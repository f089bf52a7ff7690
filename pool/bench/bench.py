"""``cvat-pool bench``: set everything up, run the flows alternately, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.bench import pooled, processes
from pool.bench.bulk import Bulk
from pool.bench.measure import (
    CallCounter,
    Flow,
    FlowResult,
    count_calls,
    interleave,
)
from pool.bench.pictures import sample_images, sample_labels
from pool.bench.plain import PlainFlow, PlainWays, plain_client
from pool.bench.report import Figures, flow_figures
from pool.bench.server_time import DatedTimes, ServerTimes, SimulatorTimes, is_simulator
from pool.bench.slots import PER_TASK_AT_RATE, SHARE, Slots, Storages, open_storages
from pool.config.data_params import merged
from pool.config.settings import CvatSettings, Settings, SlotSettings, Template
from pool.cvat import connect, find_credentials
from pool.errors import ConfigError, CvatError, InputError, PoolError
from pool.maintenance.placeholders import carrier_keys
from pool.model import new_id, pool_mark
from pool.requests.slot_storage import SlotStorage
from pool.store import Store, open_store
from pool.version import VERSION

if TYPE_CHECKING:
    from rich.progress import Progress

#: The flows, in the order of the report; the first four are without a pool.
FLOWS = (
    "sdk",
    "sdk-100ms",
    "poll-500ms",
    "busy-loop",
    "pool",
    "pool-webhooks",
    "pool-refill",
    "pool-concurrent",
)
PLAIN = frozenset(FLOWS[:4])
#: Labels of a template that has none of its own to measure with.
LABELS = 2
#: Requests of the SDK with its defaults, each of which takes more than 5 s.
MOST_SDK_REQUESTS = 3
#: Bursts of requests at once: one for so many requests of the other flows.
REQUESTS_A_BURST = 10
#: Rounds of the bursts over HTTP: one for so many requests of the other flows.
REQUESTS_A_ROUND = 4
#: The most tasks that are kept warm for requests; beyond that, they are refilled in between.
MOST_WARM = 60
#: Unmeasured requests of each flow ahead of the others: connections are opened, and the pool
#: learns how long imports take, which it keeps from one start to the next.
WARM_UP = 3
#: Seconds between two requests, in which the server ends what the one before has left to do: an
#: import says that it is finished some 40 ms after its jobs are there.
REST = 0.1
#: Deletions at once.
DELETIONS = 4
#: More tasks with slots than any bench makes.
MOST_CARRIERS = 100_000


def parse_flows(text: str | None, known: Sequence[str] = FLOWS) -> Sequence[str]:
    """Return the flows of ``a,b,c``, in the order of those that are ``known``; all of them of None.

    :raises InputError: there is no such flow.
    """
    if text is None:
        return known
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(wanted - set(known))
    if unknown or not wanted:
        what = ", ".join(unknown) or "none given"
        raise InputError(f"--flows: {what}; there are {', '.join(known)}")
    return [name for name in known if name in wanted]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a bench takes place. ``mark`` is in the names of all that it makes on the server."""

    folder: Path
    server: CvatSettings
    template: Template
    environment: dict[str, str]
    mark: str
    storages: Storages | None = None

    def client(self) -> AbstractContextManager[Any]:
        """Open a plain client of the SDK."""
        return plain_client(self.server, find_credentials(self.server, self.environment))

    def configure(self, templates: Mapping[str, tuple[Template, int]]) -> Path:
        """Write the daemon's configuration: templates, and how many of their tasks are warm."""
        return processes.write_configuration(self.folder, self.server, templates)

    def delete_all(self) -> None:
        """Delete the tasks and projects of this bench.

        :raises PoolError: some tasks are left, and which.
        """
        marks, left = [self.mark], list[int]()
        carriers = dict[int, Callable[[], None]]()
        for path in self.folder.rglob(processes.STORE):
            with closing(open_store(f"sqlite:///{path}")) as store:
                marks.append(pool_mark(store.pool_id))
                carriers |= _carriers(store)
        with connect(self.server, self.environment) as cvat, self.client() as client:

            def delete(task_id: int) -> None:
                try:
                    cvat.delete_task(task_id)
                except CvatError:
                    left.append(task_id)

            tasks = {task.id for mark in marks for task in cvat.marked_tasks(mark)}
            with ThreadPoolExecutor(DELETIONS) as workers:
                list(workers.map(delete, sorted(tasks | carriers.keys())))
            for task_id, delete_files in carriers.items():
                if task_id not in left:
                    delete_files()
            projects = client.api_client.projects_api
            _, answer = projects.list(name=self.mark, _parse_response=False)
            for project in json.loads(answer.data)["results"]:
                projects.destroy(project["id"])
        if left:
            raise PoolError(f"these tasks of the bench could not be deleted: {sorted(left)}")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What to measure; each step is a method, in the order of the story.

    ``settings`` have the template, and the server unless ``simulator`` starts one, which
    ``speed`` 1 makes as slow as CVAT is. ``labels`` None takes the template's. ``idle`` is in
    seconds; with it, an idle daemon is measured and nothing else. With ``bulk``, these scenarios of
    :class:`~pool.bench.bulk.Bulk` are, with ``slots`` those of :class:`~pool.bench.slots.Slots`,
    which has ``seconds`` of frames.
    """

    settings: Settings | None = None
    simulator: bool = True
    template: str | None = None
    requests: int = 20
    flows: Sequence[str] = FLOWS
    images: int = 1
    labels: int | None = None
    speed: float = 1.0
    seed: int = 0
    idle: float | None = None
    bulk: Sequence[str] = ()
    slots: Sequence[str] = ()
    seconds: float = 60.0

    def run(self, progress: Progress) -> Figures:
        """Measure, and delete everything that was made; return the figures.

        :raises PoolError: a part did not come up, the server refused something, or tasks that
            were made could not be deleted.
        """
        with ExitStack() as stack:
            stack.enter_context(_handling(_exit, signal.SIGTERM))
            place = stack.enter_context(self._place(progress))
            figures: Figures = {
                "version": VERSION,
                "conditions": {
                    "server": place.server.url,
                    "simulator_speed": self.speed if self.simulator else None,
                    "template": place.template.name,
                    "images": self.images,
                    "labels": len(place.template.labels),
                    "requests": self.requests,
                    "seed": self.seed,
                    "server_time_how": "",
                    "server_time_exact": False,
                },
                "flows": {},
                "idle": None,
                "bulk": None,
                "slots": None,
            }
            if self.idle is not None:
                pooled.check_idle_possible()
                tasks = pooled.IDLE_TASKS
                _say(progress, f"Watching the daemon of {tasks} tasks for {self.idle:g} s ...")
                config = place.configure({pooled.IDLE: (place.template, tasks)})
                return figures | {"idle": pooled.measure_idle(config, place.environment, self.idle)}
            if self.bulk:
                return figures | {"bulk": self._bulk(place, progress).run()}
            times = self._server_times(place, stack)
            if self.slots:
                slots = self._slots(place, times, stack, progress)
                return figures | {"slots": slots.run()}
            figures["conditions"] |= {
                "server_time_how": times.how,
                "server_time_exact": times.exact,
            }
            flows = self._flows(place, stack, progress)
            return figures | {"flows": self._measure(flows, times, progress)}

    def _bulk(self, place: _Place, progress: Progress) -> Bulk:
        return Bulk(
            server=place.server,
            template=place.template,
            environment=place.environment,
            folder=place.folder,
            mark=place.mark,
            say=partial(_say, progress),
            scenarios=self.bulk,
            rounds=max(1, self.requests // REQUESTS_A_ROUND),
            pairs=self.requests,
            seed=self.seed,
        )

    def _slots(
        self, place: _Place, times: ServerTimes, stack: ExitStack, progress: Progress
    ) -> Slots:
        skipped, per_task = {}, None
        if place.storages is not None:
            slots, per_task = place.storages.slots(), PER_TASK_AT_RATE
            if place.storages.why_no_bucket:
                skipped["A bucket"] = place.storages.why_no_bucket
        else:
            assert place.template.slots is not None
            slots = {SHARE: place.template.slots}
        return Slots(
            server=place.server,
            template=place.template,
            slots=slots,
            environment=place.environment,
            folder=place.folder,
            mark=place.mark,
            say=partial(_say, progress),
            times=times,
            sdk=_plain_flows(place, sample_images(1, seed=self.seed), stack)["sdk"],
            sdk_runs=min(self.requests, MOST_SDK_REQUESTS),
            scenarios=self.slots,
            rounds=self.requests,
            seconds=self.seconds,
            seed=self.seed,
            skipped=skipped,
            per_task_at_rate=per_task,
        )

    def runs(self) -> dict[str, int]:
        """Return how often each flow is run."""
        counts = dict.fromkeys(self.flows, self.requests)
        if "sdk" in counts:
            counts["sdk"] = min(self.requests, MOST_SDK_REQUESTS)
        if "pool-concurrent" in counts:
            counts["pool-concurrent"] = max(1, self.requests // REQUESTS_A_BURST)
        return counts

    # --- Setting up -------------------------------------------------------------------------------

    @contextmanager
    def _place(self, progress: Progress) -> Iterator[_Place]:
        settings, environment = self.settings or Settings(), dict(os.environ)
        server, template = settings.cvat, self._template(settings)
        with ExitStack() as stack:
            made = stack.enter_context(tempfile.TemporaryDirectory(prefix="cvat-pool-bench-"))
            folder = Path(made)
            storages = None
            if self.simulator:
                _say(progress, "Starting a simulated CVAT with the timings of a real one ...")
                options = dict[str, Any]()
                if self.slots:
                    storages = stack.enter_context(open_storages(folder))
                    options = {"share": storages.share, "bucket": storages.bucket}
                environment = stack.enter_context(
                    processes.simulator(folder, speed=self.speed, seed=self.seed, **options)
                )
                server = CvatSettings(url=environment["CVAT_URL"])
            place = _Place(
                folder=folder,
                server=server,
                template=template,
                environment=environment,
                mark=f"[cvat-pool bench {new_id()}]",
                storages=storages,
            )
            try:
                yield place
            finally:
                # A simulator of its own goes away with all that is in it.
                if not self.simulator:
                    # A second Ctrl-C is ignored meanwhile.
                    with _handling(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
                        _say(progress, "Deleting what was made ...")
                        place.delete_all()

    def _template(self, settings: Settings) -> Template:
        """Return the template to measure; plain labels on a simulator, which has no projects."""
        name, templates = self.template, settings.templates
        if name is not None and name not in templates:
            known = ", ".join(templates) or "none at all"
            raise InputError(f"--template {name!r}: there is {known}")
        if not templates and self.settings is not None:
            raise ConfigError("no template is configured")
        chosen = templates[name or next(iter(templates))] if templates else Template(name="bench")
        if self.slots and not self.simulator and chosen.slots is None:
            raise ConfigError(f"--slots: template {chosen.name!r} has none")
        count = self.labels
        if count is None and (not templates or (chosen.project and self.simulator)):
            count = LABELS
        return chosen if count is None else _with_labels(chosen, count)

    def _server_times(self, place: _Place, stack: ExitStack) -> ServerTimes:
        if self.simulator or is_simulator(place.server.url):
            return SimulatorTimes(place.server.url)
        return DatedTimes(stack.enter_context(place.client()))

    def _flows(self, place: _Place, stack: ExitStack, progress: Progress) -> dict[str, Flow | str]:
        """Return the flows, ready to be run; a string says why one cannot be."""
        pictures = sample_images(self.images, seed=self.seed)
        flows: dict[str, Flow | str] = {}
        if PLAIN.intersection(self.flows):
            flows |= _plain_flows(place, pictures, stack)
        if not PLAIN.issuperset(self.flows):
            _say(progress, "Filling a pool of its own ...")
            flows |= self._pool_flows(place, pictures, stack)
        return {name: flows[name] for name in self.flows}

    def _pool_flows(
        self, place: _Place, pictures: Sequence[bytes], stack: ExitStack
    ) -> dict[str, Flow | str]:
        runs, counter = self.runs(), CallCounter()
        templates: dict[str, tuple[Template, int]] = {}
        # Enough for all requests, so that all are hits.
        if hits := runs.get("pool", 0) + runs.get("pool-concurrent", 0) * pooled.AT_ONCE:
            templates[pooled.RESTING] = place.template, min(hits + WARM_UP, MOST_WARM)
        if hits := runs.get("pool-webhooks", 0):
            hooked = _in_project(place, stack.enter_context(place.client()))
            templates[pooled.HOOKED] = hooked, min(hits + WARM_UP, MOST_WARM)
        full = dict(templates)
        if "pool-refill" in runs:
            templates[pooled.REFILLING] = place.template, pooled.STOCK + pooled.LACKING
        config = place.configure(templates)
        supply = stack.enter_context(pooled.open_supply(config, place.environment, counter))
        if "pool-refill" in runs:
            supply.pool.pause(pooled.REFILLING)
        why_not = supply.install_webhook() if "pool-webhooks" in runs else ""
        for name, (_, tasks) in full.items():
            supply.fill(name, tasks)
        given = (supply, counter, pictures, place.mark)
        return {
            "pool": pooled.Hits(*given),
            "pool-webhooks": why_not or pooled.HookedHits(*given),
            "pool-refill": pooled.RefillingHits(*given, self.seed),
            "pool-concurrent": pooled.ConcurrentHits(*given),
        }

    # --- Measuring --------------------------------------------------------------------------------

    def _measure(
        self, flows: Mapping[str, Flow | str], times: ServerTimes, progress: Progress
    ) -> dict[str, Figures]:
        ready = {name: flow for name, flow in flows.items() if not isinstance(flow, str)}
        counts = {name: count for name, count in self.runs().items() if name in ready}
        # None of what takes 5 s, nor of a burst, which fills the server's queue.
        warm_ups = {
            name: min(WARM_UP, count)
            for name, count in counts.items()
            if name not in ("sdk", "pool-concurrent")
        }
        results = {name: FlowResult() for name in ready}
        rest = REST * min(1.0, self.speed)
        row = progress.add_task("measuring", total=sum((*counts.values(), *warm_ups.values())))
        for wanted, kept in ((warm_ups, {}), (counts, results)):
            for name, number in interleave(wanted):
                result = kept.get(name) or FlowResult()
                # The names of the warm-ups are those of no other.
                result.add(ready[name], number if kept else -1 - number, times.of, rest=rest)
                progress.update(row, advance=1, description=name.ljust(16))
        figures: dict[str, Figures] = {}
        for name, flow in flows.items():
            if isinstance(flow, str):
                figures[name] = {"available": False, "reason": flow}
                continue
            figures[name] = flow_figures(results[name])
            if isinstance(flow, pooled.RefillingHits):
                figures[name]["refilled"] = flow.refilled
        return figures


def _carriers(store: Store) -> Iterator[tuple[int, Callable[[], None]]]:
    """Return the tasks of a store's carriers, each with what deletes its files."""
    for carrier in store.carriers(limit=MOST_CARRIERS):
        settings = SlotSettings(**carrier.settings)
        storage = SlotStorage(settings, store.pool_id)
        keys = carrier_keys(storage, carrier.id, settings)
        yield carrier.task_id, partial(storage.delete, keys)


def _plain_flows(
    place: _Place, pictures: Sequence[bytes], stack: ExitStack
) -> dict[str, PlainFlow]:
    counter, client = CallCounter(), stack.enter_context(place.client())
    count_calls(client, counter)
    user = place.environment.get("CVAT_USERNAME")
    password = place.environment.get("CVAT_PASSWORD")
    data = merged(place.template.data, {}).given
    ways = PlainWays(
        client,
        place.template.create_fields,
        pictures,
        place.folder,
        # How the pool chooses is no value of CVAT's.
        data={key: value for key, value in data.items() if value not in ("auto", "server")},
        mark=place.mark,
        basic=(user, password) if user and password else None,
    )
    by_name = zip(FLOWS, (ways.defaults, ways.often, ways.polling, ways.busy_loop), strict=False)
    return {name: PlainFlow(way, counter) for name, way in by_name}


def _in_project(place: _Place, client: Any) -> Template:
    """Return the template in a project of its own, called ``mark``, by which it is deleted.

    CVAT has webhooks for projects and organizations only, and an organization's would serve the
    other flows as well.
    """
    template = place.template
    if template.project is not None:
        template = _with_labels(template, LABELS)
    labels = [dict(label) for label in template.labels]
    project = client.projects.create(spec={"name": place.mark, "labels": labels})
    return replace(template, labels=(), project=project.id)


def _with_labels(template: Template, count: int) -> Template:
    labels = tuple({"name": label} for label in sample_labels(count))
    return replace(template, labels=labels, project=None)


def _say(progress: Progress, what: str) -> None:
    progress.console.print(what, highlight=False, soft_wrap=True)


# --- Signals --------------------------------------------------------------------------------------


def _exit(number: int, _frame: object) -> None:
    """End as Ctrl-C does, so that what was made is deleted."""
    raise SystemExit(128 + number)


@contextmanager
def _handling(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    """Handle signals in the block. Python allows that in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
