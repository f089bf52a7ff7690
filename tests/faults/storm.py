"""A storm: callers and daemons on one store, killed at random points, in any weather.

``python tests/faults/soak.py`` runs a long one by hand; the tests run a short one.
"""

from __future__ import annotations

import random
import signal
import socket
import threading
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from support.forked import forkserver
from support.postgres import PostgresServer
from support.proxy import CuttingProxy
from support.slots import slot_table
from support.waiting import wait_until

from faults.actors import DISK_FULL, TERM, Place, run_caller, run_daemon
from faults.bystander import Bystander
from faults.reckoning import Outcome, Reckoning
from faults.weather import SlotShare, Weather
from pool.config.loader import load
from pool.config.settings import SlotSettings
from pool.cvat import connect
from pool.model import Placed, RequestState, TaskState
from pool.requests.slot_storage import SlotStorage
from pool.simulator import CloudStorageSettings, SimulatorServer, SimulatorSettings, Timings
from pool.store import Store, open_store

CALLERS = 4
#: Requests that wait for each other at the beginning, where they may share a task.
GATHERED = 5
DAEMONS = 2
#: Names of tasks that are somebody else's, some of them much like ours.
OTHERS = (
    "my own task",
    "[cvat-pool] not really",
    "[cvat-pool 00000000] scenes: empty, waiting for data 01abc",
    "scenes: empty, waiting for data",
)
#: Seconds within which everything must have come to an end once the storm is over: imports time
#: out after 20, a create whose answer was lost is settled after 40, and a template that CVAT has
#: refused is tried again after 60 and more.
CALM = 240.0


class Storm:
    """Starts the processes, kills them, lets things calm down, and looks.

    ``weather`` are the kinds of :data:`weather.ALL` that are drawn from, at a ``pace``; none for a
    clear sky. With a ``database`` the rows are in PostgreSQL, and after every so many kills
    (``restart_after``) the server is killed, too, and started again. Every other caller calls the
    daemon over HTTP, the rest use the pool as a library. With ``slots`` the data goes into slots on
    a share.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        timings: Timings | None = None,
        callers: int = CALLERS,
        weather: tuple[str, ...] = (),
        pace: float = 1.0,
        database: PostgresServer | None = None,
        restart_after: int = 10,
        grouping: str = "off",
        slots: bool = False,
    ) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._seed = seed
        self._kinds = weather
        self._pace = pace
        self._database = database
        self._restart_after = restart_after
        self._grouping = grouping
        self._slots = slots
        share = folder / "share"
        share.mkdir()
        self._share = SlotShare(share / "pool", folder / DISK_FULL)
        self._counts = {"daemon": DAEMONS, "caller": callers}
        self._server = SimulatorServer(
            SimulatorSettings(
                timings=timings or Timings().scaled(0.2),
                seed=seed,
                share=share,
                cloud_storages=(CloudStorageSettings(display_name="any"),),
            )
        )
        self._context = forkserver()
        self._processes: dict[str, list[ForkServerProcess]] = {"caller": [], "daemon": []}
        #: Where each daemon listens, and which process does.
        self._ports: dict[int, ForkServerProcess | None] = {}
        self._born = 0
        self._place: Place | None = None
        self.outcome = Outcome()

    def blow(self, *, kills: int, pause: float) -> Outcome:
        """Kill ``kills`` processes, about one every ``pause`` seconds, each replaced at once;
        then stop the callers, let the daemons finish what is left, and look."""
        began = time.monotonic()
        with self._server as server, CuttingProxy(server.url) as proxy:
            self._place = self._settle_down(proxy.url, server)
            settings = load(self._place.config)
            others = self._make_others(server)
            store = open_store(settings.store.url)
            # Past the proxy: whatever is wrong with it now, people and looks are not to suffer.
            straight = replace(settings.cvat, url=server.url)
            client = connect(straight, {"CVAT_ACCESS_TOKEN": server.access_token})
            weather: Weather | None = None
            try:
                for role, count in self._counts.items():
                    for _ in range(count):
                        self._start(role)
                if self._grouping != "off":
                    self._gather(server, store)
                if self._slots:
                    self._await_slots(store)
                if self._kinds:
                    place = self._place
                    weather = Weather(
                        server,
                        proxy,
                        store,
                        bystander=Bystander(place.config, place.daemon, server.url, place.token),
                        client=client,
                        share=self._share,
                        seed=self._seed,
                        kinds=self._kinds,
                        pace=self._pace,
                    )
                    with weather:
                        self._kill(kills, pause, weather)
                    self.outcome.weather = weather.counts
                    self.outcome.take(weather)
                    assert weather.error is None, weather.error
                else:
                    self._kill(kills, pause)
                self._calm_down(store)
                self.outcome.written = self._share.written
                Reckoning(self.outcome, settings, store, client, server, weather).look(
                    self._folder, others
                )
            finally:
                self._end_all()
                client.close()
                store.close()
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # --- Before ---------------------------------------------------------------------------------

    def _settle_down(self, url: str, server: SimulatorServer) -> Place:
        with ExitStack() as taken:
            for _ in range(DAEMONS):
                free = taken.enter_context(socket.create_server(("127.0.0.1", 0)))
                self._ports[free.getsockname()[1]] = None
        port = next(iter(self._ports))
        path = self._folder / "config.toml"
        store = "sqlite:///pool.db"
        if self._database is not None:
            store = self._database.url(self._database.new_database())
        slots = ""
        if self._slots:
            settings = SlotSettings(
                size="16x16",
                format="png",
                per_task=5,
                storage=f"file://{self._share.folder}",
                server="share:pool",
                cache_storage=1,
            )
            SlotStorage(settings, "").mark()
            slots = f"{slot_table(settings)}\n"
        path.write_text(
            f'[cvat]\nurl = "{url}"\ntimeout = "5s"\n'
            f'[store]\nurl = "{store}"\nspool = "pool.db.spool"\n'
            f'[daemon]\nport = {port}\ntick = "500ms"\n'
            '[templates.scenes]\nlabels = [{ name = "car" }]\n'
            'pool = { min_size = 12, create_concurrency = 4, max_wait = "3s", lease_ttl = "3s" }\n'
            f'import = {{ timeout = "20s", grouping = "{self._grouping}", concurrency = 1 }}\n'
            f"{slots}"
            '[templates.poisoned]\nlabels = [{ name = "car" }]\n'
            'pool = { min_size = 0, max_wait = "500ms" }\nimport = { timeout = "20s" }\n'
        )
        return Place(path, self._folder, server.access_token, f"http://127.0.0.1:{port}")

    def _make_others(self, server: SimulatorServer) -> dict[int, Any]:
        """Tasks that are nobody's business of ours; how they look before."""
        assert self._place is not None
        settings = replace(load(self._place.config).cvat, url=server.url)
        client = connect(settings, {"CVAT_ACCESS_TOKEN": server.access_token})
        ids = [client.create_task({"labels": []}, name) for name in OTHERS]
        before = client.tasks(ids)
        client.close()
        return dict(before)

    def _start(self, role: str) -> None:
        self._born += 1
        assert self._place is not None
        if role == "caller":
            seed = self._seed * 10_000 + self._born
            port = tuple(self._ports)[self._born // 2 % DAEMONS]
            place = replace(self._place, daemon=f"http://127.0.0.1:{port}")
            process = self._context.Process(
                target=run_caller, args=(place, seed, self._born % 2 == 0), daemon=True
            )
            process.start()
        else:
            port = next(port for port, by in self._ports.items() if by is None or not by.is_alive())
            process = self._context.Process(
                target=run_daemon, args=(self._place, port), daemon=True
            )
            process.start()
            self._ports[port] = process
        self._processes[role].append(process)

    def _gather(self, server: SimulatorServer, store: Store) -> None:
        """Have requests wait for each other before anything is killed, so that some share a task
        for certain."""

        def gathered() -> bool:
            # Callers whose requests wait kill themselves at times.
            self._replace_those_that_died()
            return store.queue_length() >= GATHERED

        server.hold_imports()
        try:
            wait_until(store, gathered, CALM)
        finally:
            server.release_imports()

    def _await_slots(self, store: Store) -> None:
        """Let some requests be in slots before anything is killed."""

        def filled() -> bool:
            self._replace_those_that_died()
            return any(each.placed is Placed.SLOT for each in store.requests(limit=9).requests)

        wait_until(store, filled, CALM)

    # --- During ---------------------------------------------------------------------------------

    def _kill(self, kills: int, pause: float, weather: Weather | None = None) -> None:
        """While a template is poisoned, only callers are killed."""
        spared = threading.Event() if weather is None else weather.poisoned
        roles, weights = tuple(self._counts), tuple(self._counts.values())
        for number in range(1, kills + 1):
            time.sleep(self._rng.expovariate(1 / pause))
            self._replace_those_that_died()
            role = self._rng.choices(roles, weights)[0]
            if spared.is_set():
                role = "caller"
            victim = self._rng.choice(self._processes[role])
            self._processes[role].remove(victim)
            victim.kill()
            victim.join()
            self.outcome.kills[role] += victim.exitcode == -signal.SIGKILL
            self._start(role)
            due = number % self._restart_after == 0 and not spared.is_set()
            if self._database is not None and due:
                with nullcontext() if weather is None else weather.store_away:
                    self._database.stop("immediate")
                    # At times for longer than a process counts as alive without a sign of life.
                    time.sleep(self._rng.uniform(0.0, 2 * TERM))
                    self._database.start()
                self.outcome.kills["database"] += 1

    def _replace_those_that_died(self) -> None:
        """Callers kill themselves at times; nobody else ends who was not told to."""
        for role, processes in self._processes.items():
            for process in [each for each in processes if not each.is_alive()]:
                processes.remove(process)
                if role == "caller" and process.exitcode == -signal.SIGKILL:
                    self.outcome.kills["caller, by itself"] += 1
                else:
                    self.outcome.crashed.append(f"{role} {process.pid}: exit {process.exitcode}")
                self._start(role)

    # --- After ----------------------------------------------------------------------------------

    def _calm_down(self, store: Store) -> None:
        """No more callers, once one of them was served; the daemons bring everything to an end."""
        self._replace_those_that_died()
        wait_until(store, lambda: store.requests([RequestState.READY], limit=1).requests, CALM)
        for process in self._processes["caller"]:
            process.kill()
            process.join()
            self.outcome.kills["caller"] += process.exitcode == -signal.SIGKILL
        self._processes["caller"].clear()
        deadline = time.monotonic() + CALM
        while time.monotonic() < deadline and not is_calm(store):
            time.sleep(0.2)
        for process in self._processes["daemon"]:
            process.terminate()
            process.join(15)
            begun = (self._folder / f"daemon-{process.pid}.log").exists()
            # One that was just started is stopped before it has begun to listen for that.
            if process.exitcode != 0 and (begun or process.exitcode != -signal.SIGTERM):
                self.outcome.crashed.append(f"daemon {process.pid}: exit {process.exitcode}")
        self._processes["daemon"].clear()

    def _end_all(self) -> None:
        for processes in self._processes.values():
            for process in processes:
                process.kill()
                process.join()


def is_calm(store: Store) -> bool:
    """Whether all that was begun has come to an end."""
    unfinished = any(
        store.requests([state], limit=1).requests for state in RequestState if not state.finished
    )
    busy = {
        TaskState.CREATING,
        TaskState.LEASED,
        TaskState.IMPORTING,
        TaskState.FAILED,
        TaskState.RETIRED,
        TaskState.DELETING,
    }
    return (
        not unfinished
        and store.next_look() is None
        and not any(levels[state] for levels in store.levels().values() for state in busy)
    )
