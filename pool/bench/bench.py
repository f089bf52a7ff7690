"""``cvat-pool bench``: set everything up, run the flows alternately, and leave nothing behind."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pool.bench import pooled, processes
from pool.bench.idle import TASKS, TEMPLATE, IdleCost, check_idle_possible, measure_idle
from pool.bench.leftovers import delete_all, stoppable, undisturbed
from pool.bench.measure import LOGGING, CallCounter, FlowResult, Sample, count_calls, interleave
from pool.bench.pictures import sample_images, sample_labels
from pool.bench.plain import PlainFlow, plain_client, plain_flows
from pool.bench.report import Conditions, Report
from pool.bench.server_time import DatedTimes, ServerTimes, SimulatorTimes, is_simulator
from pool.config.data_params import merged
from pool.config.settings import CvatSettings, Settings, Template
from pool.cvat import find_credentials
from pool.errors import ConfigError, InputError
from pool.model import new_id

#: The flows, in the order of the report.
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
POOLED = frozenset({"pool", "pool-refill", "pool-concurrent"})
HOOKED = "pool-webhooks"
#: Labels of a template that has none of its own to measure with.
LABELS = 2
#: Requests of the SDK with its defaults, each of which takes more than 5 s.
MOST_SDK_REQUESTS = 3
#: Bursts of requests at once: one for so many requests of the other flows.
REQUESTS_A_BURST = 10
#: The most tasks that are kept warm for requests; beyond that, they are refilled in between.
MOST_WARM = 60
#: Unmeasured requests of each flow ahead of the others: connections are opened, and the pool
#: learns how long imports take, which it keeps from one start to the next.
WARM_UP = 3
#: Seconds between two requests, in which the server ends what the one before has left to do: an
#: import says that it is finished some 40 ms after its jobs are there.
REST = 0.1

Say = Callable[[str], None]


class Flow(Protocol):
    """One way to job ids."""

    #: Counts the calls that it makes.
    counter: CallCounter

    def prepare(self) -> None:
        """Have ready what is there before the request comes; not measured."""

    def run(self, number: int) -> list[Sample]:
        """Make one request, or several at once."""

    def settle(self) -> None:
        """Wait for what follows after the job ids are out; not measured, but its calls count."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    ``settings`` have the template, and the server unless ``simulator`` starts one, which
    ``speed`` 1 makes as slow as CVAT is. ``labels`` None takes the template's. ``idle`` is in
    seconds; with it, an idle daemon is measured and nothing else.
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


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a bench takes place."""

    folder: Path
    settings: Settings
    server: CvatSettings
    template: Template
    environment: dict[str, str]
    mark: str

    def client(self) -> AbstractContextManager[Any]:
        """A plain client of the SDK."""
        return plain_client(self.server, find_credentials(self.server, self.environment))

    def configure(self, folder: Path, template: Template, sizes: Mapping[str, int]) -> Path:
        """Write the configuration of a daemon."""
        return processes.write_configuration(folder, self.settings, self.server, template, sizes)


def parse_flows(text: str | None) -> Sequence[str]:
    """Return the flows of ``a,b,c``, in the order of :data:`FLOWS`; all of them of None.

    :raises InputError: there is no such flow.
    """
    if text is None:
        return FLOWS
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    unknown = sorted(wanted - set(FLOWS))
    if unknown or not wanted:
        what = ", ".join(unknown) or "none given"
        raise InputError(f"--flows: {what}; there are {', '.join(FLOWS)}")
    return [name for name in FLOWS if name in wanted]


def requests_of(options: BenchOptions) -> dict[str, int]:
    """Return how often each flow is run."""
    counts = dict.fromkeys(options.flows, options.requests)
    if "sdk" in counts:
        counts["sdk"] = min(options.requests, MOST_SDK_REQUESTS)
    if "pool-concurrent" in counts:
        counts["pool-concurrent"] = max(1, options.requests // REQUESTS_A_BURST)
    return counts


def run_flows(
    flows: Mapping[str, Flow],
    counts: Mapping[str, int],
    times: ServerTimes,
    *,
    warm_ups: Mapping[str, int],
    advance: Callable[[str], None] = lambda _: None,
    rest: float = REST,
) -> dict[str, FlowResult]:
    """Run each flow as often as ``counts`` says, alternately, so that a drift of the machine
    affects all alike.

    ``advance`` is called with the name of the flow after each run, the unmeasured ``warm_ups``
    included. ``rest`` is in seconds.
    """
    results = {name: FlowResult(name) for name in flows}

    def once(name: str, number: int, *, measured: bool) -> None:
        flow = flows[name]
        flow.prepare()
        time.sleep(rest)
        flow.counter.take()
        samples = flow.run(number)
        flow.settle()
        calls = flow.counter.take()
        if measured:
            for sample in samples:
                times.note(sample)
            results[name].add(samples, calls)
        advance(name)

    for number, names in interleave(warm_ups):
        for name in names:
            once(name, -1 - number, measured=False)
    for number, names in interleave(counts):
        for name in names:
            once(name, number, measured=True)
    return results


class Bench:
    """One bench; each step is a method, in the order of the story."""

    def __init__(self, options: BenchOptions, environment: Mapping[str, str]) -> None:
        self._options = options
        self._environment = dict(environment)

    def run(self, *, say: Say, progress: Callable[[int], Any]) -> Report:
        """Measure, and delete everything that was made.

        ``say`` is called with what begins; ``progress`` with the number of steps, and gives a
        context manager whose value is called with the name of each flow that was run once.

        :raises PoolError: a part did not come up, the server refused something, or tasks that
            were made could not be deleted.
        """
        with stoppable(), self._place(say) as place:
            if self._options.idle is not None:
                return self._report(place, {}, idle=self._idle(place, self._options.idle, say))
            with self._server_times(place) as times, ExitStack() as stack:
                results = {name: FlowResult(name) for name in self._options.flows}
                flows = self._flows(place, results, stack, say)
                counts = {
                    name: count
                    for name, count in requests_of(self._options).items()
                    if name in flows
                }
                # None of what takes 5 s, nor of a burst, which fills the server's queue.
                warm_ups = {
                    name: min(WARM_UP, count)
                    for name, count in counts.items()
                    if name not in ("sdk", "pool-concurrent")
                }
                say(f"Measuring {', '.join(counts)}, alternately ...")
                with progress(sum(counts.values()) + sum(warm_ups.values())) as advance:
                    results |= run_flows(
                        flows,
                        counts,
                        times,
                        warm_ups=warm_ups,
                        advance=advance,
                        rest=REST * min(1.0, self._options.speed),
                    )
                refill = flows.get("pool-refill")
                refilled = refill.refilled if isinstance(refill, pooled.RefillingHits) else 0
                return self._report(place, results, times=times, refilled=refilled)

    # --- Setting up -------------------------------------------------------------------------------

    @contextmanager
    def _place(self, say: Say) -> Iterator[_Place]:
        with ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="cvat-pool-bench-"))
            )
            settings, environment = self._options.settings or Settings(), self._environment
            server = settings.cvat
            if self._options.simulator:
                say("Starting a simulated CVAT with the timings of a real one ...")
                environment = stack.enter_context(
                    processes.simulator(folder, speed=self._options.speed, seed=self._options.seed)
                )
                server = CvatSettings(url=environment["CVAT_URL"])
            place = _Place(
                folder=folder,
                settings=settings,
                server=server,
                template=self._template(settings),
                environment=environment,
                mark=f"[cvat-pool bench {new_id()}]",
            )
            if not self._options.simulator:
                # Its own simulator goes away with all that is in it.
                stack.callback(self._clean_up, place, say)
            yield place

    def _clean_up(self, place: _Place, say: Say) -> None:
        with undisturbed():
            say("Deleting what was made ...")
            stores = sorted(place.folder.glob(f"**/{processes.STORE}"))
            delete_all(place.server, place.environment, stores, place.mark)

    def _template(self, settings: Settings) -> Template:
        """The template that is measured; plain labels on a simulator, which has no projects."""
        name, templates = self._options.template, settings.templates
        if name is not None and name not in templates:
            known = ", ".join(templates) or "none at all"
            raise InputError(f"--template {name!r}: there is {known}")
        if not templates and self._options.settings is not None:
            raise ConfigError("no template is configured")
        chosen = templates[name or next(iter(templates))] if templates else Template(name="bench")
        count = self._options.labels
        if count is None and (not templates or (chosen.project and self._options.simulator)):
            count = LABELS
        return chosen if count is None else _with_labels(chosen, count)

    def _flows(
        self, place: _Place, results: Mapping[str, FlowResult], stack: ExitStack, say: Say
    ) -> dict[str, Flow]:
        """The flows that can be run, ready to be; the results of the others say why not."""
        pictures = sample_images(self._options.images, seed=self._options.seed)
        flows: dict[str, Flow] = {}
        if PLAIN & results.keys():
            flows |= self._plain_flows(place, pictures, stack)
        if POOLED & results.keys():
            flows |= self._pool_flows(place, pictures, stack, say)
        if HOOKED in results:
            hooked = self._hooked_flow(place, pictures, stack, say)
            if isinstance(hooked, str):
                results[HOOKED].not_available = hooked
            else:
                flows[HOOKED] = hooked
        return {name: flows[name] for name in results if name in flows}

    def _plain_flows(
        self, place: _Place, pictures: Sequence[bytes], stack: ExitStack
    ) -> dict[str, Flow]:
        counter, client = CallCounter(), stack.enter_context(place.client())
        user = place.environment.get("CVAT_USERNAME")
        password = place.environment.get("CVAT_PASSWORD")
        data = {
            key: value
            for key, value in merged(place.template.data, {}).given.items()
            # How the pool chooses is no value of CVAT's.
            if value not in ("auto", "server")
        }
        plain = stack.enter_context(
            plain_flows(
                client,
                place.template.create_fields,
                pictures,
                data=data,
                mark=place.mark,
                basic=(user, password) if user and password else None,
            )
        )
        count_calls(client, counter)
        return {
            "sdk": PlainFlow(plain.defaults, counter),
            "sdk-100ms": PlainFlow(plain.often, counter),
            "poll-500ms": PlainFlow(plain.polling, counter),
            "busy-loop": PlainFlow(plain.busy_loop, counter),
        }

    def _pool_flows(
        self, place: _Place, pictures: Sequence[bytes], stack: ExitStack, say: Say
    ) -> dict[str, Flow]:
        counts = requests_of(self._options)
        needed = counts.get("pool", 0) + WARM_UP
        needed += counts.get("pool-concurrent", 0) * pooled.AT_ONCE
        # Enough for all requests, so that all are hits.
        warm = min(needed, MOST_WARM)
        sizes = {pooled.RESTING: warm, pooled.REFILLING: pooled.STOCK + pooled.LACKING}
        config = place.configure(place.folder, place.template, sizes)
        supply = stack.enter_context(pooled.open_supply(config, place.environment))
        supply.pool.pause(pooled.REFILLING)
        say("Filling a pool of its own ...")
        supply.fill(pooled.RESTING, count=warm)
        rng = random.Random(self._options.seed)
        return {
            "pool": pooled.Hits(supply, pictures, mark=place.mark),
            "pool-refill": pooled.RefillingHits(supply, pictures, mark=place.mark, rng=rng),
            "pool-concurrent": pooled.ConcurrentHits(supply, pictures, mark=place.mark),
        }

    def _hooked_flow(
        self, place: _Place, pictures: Sequence[bytes], stack: ExitStack, say: Say
    ) -> Flow | str:
        """The flow in a project of its own, called ``mark``, by which it is found and deleted.

        CVAT has webhooks for projects and organizations only, and an organization's would serve
        the other flows as well. A string says why there can be none.
        """
        say("Filling a second one, in a project with a webhook ...")
        folder = place.folder / HOOKED
        folder.mkdir()
        template = place.template
        if template.project is not None:
            template = _with_labels(template, LABELS)
        labels = [dict(label) for label in template.labels]
        client = stack.enter_context(place.client())
        project = client.projects.create(spec={"name": place.mark, "labels": labels})
        tasks = min(requests_of(self._options)[HOOKED] + WARM_UP, MOST_WARM)
        template = replace(template, labels=(), project=project.id)
        config = place.configure(folder, template, {pooled.HOOKED: tasks})
        supply = stack.enter_context(
            pooled.open_supply(config, place.environment, log_options=LOGGING)
        )
        reason = pooled.install_webhook(config, supply.daemon.listening_at(), place.environment)
        if reason:
            return reason
        supply.fill(pooled.HOOKED, count=tasks)
        return pooled.HookedHits(supply, pictures, mark=place.mark)

    @contextmanager
    def _server_times(self, place: _Place) -> Iterator[ServerTimes]:
        if self._options.simulator or is_simulator(place.server.url):
            yield SimulatorTimes(place.server.url)
            return
        with place.client() as client:
            yield DatedTimes(client)

    def _idle(self, place: _Place, seconds: float, say: Say) -> IdleCost:
        check_idle_possible()
        say(f"Filling a pool of {TASKS} tasks, then watching its daemon for {seconds:g} s ...")
        config = place.configure(place.folder, place.template, {TEMPLATE: TASKS})
        return measure_idle(config, place.environment, seconds)

    # --- The outcome ------------------------------------------------------------------------------

    def _report(
        self,
        place: _Place,
        results: Mapping[str, FlowResult],
        *,
        times: ServerTimes | None = None,
        idle: IdleCost | None = None,
        refilled: int = 0,
    ) -> Report:
        task_ids = [sample.task_id for result in results.values() for sample in result.samples]
        return Report(
            conditions=Conditions(
                server=place.server.url,
                simulator_speed=self._options.speed if self._options.simulator else None,
                template=place.template.name,
                images=self._options.images,
                labels=len(place.template.labels),
                requests=self._options.requests,
                seed=self._options.seed,
                server_time_how=times.how if times is not None else "",
                server_time_exact=times.exact if times is not None else False,
            ),
            results=results,
            own=times.of(task_ids) if times is not None else {},
            idle=idle,
            refilled=refilled,
        )


def _with_labels(template: Template, count: int) -> Template:
    labels = tuple({"name": label} for label in sample_labels(count))
    return replace(template, labels=labels, project=None)
