"""``cvat-pool bench``: sets everything up, runs the flows in turn, and leaves nothing behind."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pool.bench import processes
from pool.bench.calls import CallCounter, count_calls
from pool.bench.configuration import STORE, sized, write_configuration
from pool.bench.flows import PlainFlows
from pool.bench.leftovers import delete_all, stoppable, undisturbed
from pool.bench.measure import FlowResult
from pool.bench.pictures import sample_images, sample_labels
from pool.bench.report import Conditions, Report
from pool.bench.runner import REST, WARM_UP, Flow, PlainFlow, run_flows
from pool.bench.server_time import DatedTimes, ServerTimes, SimulatorTimes, is_simulator
from pool.bench.supply import open_supply
from pool.config.data_params import merged
from pool.config.settings import CvatSettings, Settings, Template
from pool.errors import ConfigError, InputError
from pool.model import new_id

if TYPE_CHECKING:
    from pool.bench.idle import IdleCost

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

Progress = Callable[[str], None]


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
    server: CvatSettings
    template: Template
    environment: dict[str, str]
    mark: str
    own_simulator: bool


def parse_flows(text: str | None) -> Sequence[str]:
    """From ``a,b,c`` to the flows, in the order of :data:`FLOWS`; all of them from None.

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
    """How often each flow is run."""
    counts = dict.fromkeys(options.flows, options.requests)
    if "sdk" in counts:
        counts["sdk"] = min(options.requests, MOST_SDK_REQUESTS)
    if "pool-concurrent" in counts:
        counts["pool-concurrent"] = max(1, options.requests // REQUESTS_A_BURST)
    return counts


class Bench:
    """One bench; each step is a method, in the order of the story."""

    def __init__(self, options: BenchOptions, environment: Mapping[str, str]) -> None:
        self._options = options
        self._environment = dict(environment)

    def run(self, *, say: Progress, progress: Callable[[int], Any]) -> Report:
        """Measure, and delete everything that was made.

        ``say`` is told what begins; ``progress`` is called with the number of steps and gives
        a context manager whose value is called with the name of each flow that was run once.

        :raises PoolError: a part did not come up, the server refused something, or tasks that
            were made could not be deleted.
        """
        with stoppable(), self._place(say) as place:
            if self._options.idle is not None:
                return self._report(place, {}, None, self._idle(place, say), 0)
            with self._server_times(place) as times, self._flows(place, say) as (flows, results):
                counts = {
                    name: count
                    for name, count in requests_of(self._options).items()
                    if name in flows
                }
                warm_ups = _warm_ups(counts)
                say(f"Measuring {', '.join(counts)}, in turn ...")
                with progress(sum(counts.values()) + sum(warm_ups.values())) as advance:
                    results.update(
                        run_flows(
                            flows,
                            counts,
                            times,
                            warm_ups=warm_ups,
                            advance=advance,
                            rest=REST * min(1.0, self._options.speed),
                        )
                    )
                refilled = getattr(flows.get("pool-refill"), "refilled", 0)
                return self._report(place, results, times, None, refilled)

    # --- Setting up -------------------------------------------------------------------------------

    @contextmanager
    def _place(self, say: Progress) -> Iterator[_Place]:
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
                server=server,
                template=self._template(settings),
                environment=environment,
                mark=f"[cvat-pool bench {new_id()}]",
                own_simulator=self._options.simulator,
            )
            if not place.own_simulator:
                # Its own simulator goes away with all that is in it.
                stack.callback(self._clean_up, place, say)
            yield place

    def _clean_up(self, place: _Place, say: Progress) -> None:
        with undisturbed():
            say("Deleting what was made ...")
            stores = sorted(place.folder.glob(f"**/{STORE}"))
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
        if count is None:
            return chosen
        labels = tuple({"name": label} for label in sample_labels(count))
        return replace(chosen, labels=labels, project=None)

    @contextmanager
    def _flows(
        self, place: _Place, say: Progress
    ) -> Iterator[tuple[dict[str, Flow], dict[str, FlowResult]]]:
        """The flows that can be run, ready to be, and the results of those that cannot."""
        results = {name: FlowResult(name) for name in self._options.flows}
        pictures = sample_images(self._options.images, seed=self._options.seed)
        flows: dict[str, Flow] = {}
        with ExitStack() as stack:
            if PLAIN & results.keys():
                flows.update(stack.enter_context(self._plain_flows(place, pictures)))
            if POOLED & results.keys():
                flows.update(stack.enter_context(self._pool_flows(place, pictures, say)))
            if HOOKED in results:
                hooked = stack.enter_context(self._hooked_flow(place, pictures, say))
                if isinstance(hooked, str):
                    results[HOOKED].not_available = hooked
                else:
                    flows[HOOKED] = hooked
            yield {name: flows[name] for name in results if name in flows}, results

    @contextmanager
    def _plain_flows(self, place: _Place, pictures: Sequence[bytes]) -> Iterator[dict[str, Flow]]:
        counter = CallCounter()
        user = place.environment.get("CVAT_USERNAME")
        password = place.environment.get("CVAT_PASSWORD")
        data = {
            key: value
            for key, value in merged(place.template.data, {}).given.items()
            # How the pool chooses is not CVAT's to know.
            if value not in ("auto", "server")
        }
        with (
            self._plain_client(place) as client,
            PlainFlows(
                client,
                place.template.create_fields,
                pictures,
                data=data,
                mark=place.mark,
                basic=(user, password) if user and password else None,
            ) as plain,
        ):
            count_calls(client, counter)
            yield {
                "sdk": PlainFlow(plain.defaults, counter),
                "sdk-100ms": PlainFlow(plain.often, counter),
                "poll-500ms": PlainFlow(plain.polling, counter),
                "busy-loop": PlainFlow(plain.busy_loop, counter),
            }

    @contextmanager
    def _pool_flows(
        self, place: _Place, pictures: Sequence[bytes], say: Progress
    ) -> Iterator[dict[str, Flow]]:
        from pool.bench import pool_flows as ours

        # Enough for all requests, so that all are hits.
        counts = requests_of(self._options)
        needed = counts.get("pool", 0) + WARM_UP
        needed += counts.get("pool-concurrent", 0) * ours.AT_ONCE
        templates = [
            sized(place.template, name=ours.RESTING, tasks=min(needed, MOST_WARM)),
            sized(place.template, name=ours.REFILLING, tasks=ours.STOCK + ours.LACKING),
        ]
        config = write_configuration(place.folder, place.server, templates)
        with open_supply(config, place.environment) as supply:
            supply.pool.pause(ours.REFILLING)
            say("Filling a pool of its own ...")
            supply.fill(ours.RESTING, count=min(needed, MOST_WARM))
            rng = random.Random(self._options.seed)
            yield {
                "pool": ours.Hits(supply, pictures, mark=place.mark),
                "pool-refill": ours.RefillingHits(supply, pictures, mark=place.mark, rng=rng),
                "pool-concurrent": ours.ConcurrentHits(supply, pictures, mark=place.mark),
            }

    @contextmanager
    def _hooked_flow(
        self, place: _Place, pictures: Sequence[bytes], say: Progress
    ) -> Iterator[Flow | str]:
        from pool.bench.hooked import open_hooked

        say("Filling a second one, in a project with a webhook ...")
        folder = place.folder / HOOKED
        folder.mkdir()
        template = place.template
        if template.project is not None:
            labels = tuple({"name": label} for label in sample_labels(LABELS))
            template = replace(template, labels=labels, project=None)
        with (
            self._plain_client(place) as client,
            open_hooked(
                folder,
                place.server,
                template,
                place.environment,
                client,
                pictures,
                tasks=min(requests_of(self._options)[HOOKED] + WARM_UP, MOST_WARM),
                mark=place.mark,
            ) as hooked,
        ):
            yield hooked

    def _plain_client(self, place: _Place) -> AbstractContextManager[Any]:
        from pool.cvat import find_credentials
        from pool.cvat.plain import plain_client

        return plain_client(place.server, find_credentials(place.server, place.environment))

    @contextmanager
    def _server_times(self, place: _Place) -> Iterator[ServerTimes]:
        if place.own_simulator or is_simulator(place.server.url):
            yield SimulatorTimes(place.server.url)
            return
        with self._plain_client(place) as client:
            yield DatedTimes(client)

    # --- An idle daemon ---------------------------------------------------------------------------

    def _idle(self, place: _Place, say: Progress) -> IdleCost:
        from pool.bench.idle import TASKS, check_idle_possible, measure_idle

        check_idle_possible()
        seconds = self._options.idle or 0.0
        say(f"Filling a pool of {TASKS} tasks, then watching its daemon for {seconds:g} s ...")
        return measure_idle(
            place.folder, place.server, place.template, place.environment, seconds=seconds
        )

    # --- The outcome ------------------------------------------------------------------------------

    def _report(
        self,
        place: _Place,
        results: Mapping[str, FlowResult],
        times: ServerTimes | None,
        idle: IdleCost | None,
        refilled: int,
    ) -> Report:
        task_ids = [sample.task_id for result in results.values() for sample in result.samples]
        return Report(
            conditions=Conditions(
                server=place.server.url,
                simulator_speed=self._options.speed if place.own_simulator else None,
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


def _warm_ups(counts: Mapping[str, int]) -> dict[str, int]:
    """Unmeasured runs: none of what takes 5 s, nor of a burst, which fills the server's queue."""
    return {
        name: min(WARM_UP, count)
        for name, count in counts.items()
        if name not in ("sdk", "pool-concurrent")
    }
