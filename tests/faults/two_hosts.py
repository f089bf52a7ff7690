"""Two daemons on two hosts, their database on a third, CVAT and callers on a fourth; and what
becomes of all when hosts fail.

Again and again: a daemon is killed, and started again; another one is cut off from the database
for a while, and goes on all the same, with CVAT and callers in its reach; the database is killed.
``python tests/faults/soak.py --hosts`` runs it for long by hand; the tests run it once.
"""

from __future__ import annotations

import multiprocessing.forkserver
import random
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from starlette.responses import Response
from support.forked import forkserver
from support.hosts import Host, Switch, need_hosts
from support.postgres import PostgresServer

from faults.actors import Place, run_caller_on, run_daemon_on
from faults.reckoning import Outcome, Reckoning
from faults.storm import CALM, OTHERS, is_calm
from pool.config.loader import load
from pool.config.settings import Settings
from pool.cvat import CvatClient, connect
from pool.requests.breaker import SERVER
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.simulator.call import Call
from pool.simulator.passage import Answer
from pool.store import Store, open_store

CALLERS = 8
PORT = 8765
#: Seconds between two looks at what is announced nowhere.
LOOK = 0.1
#: Seconds within which another daemon maintains the store once the one that did cannot.
TAKEOVER = 10.0


@dataclass
class Machine:
    """A host with a daemon."""

    host: Host
    url: str
    #: Its address for CVAT.
    address: str
    place: Place
    process: ForkServerProcess | None = None

    def answers(self, path: str) -> int:
        """The status of an answer to a caller; 0 without one."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=5.0) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except (OSError, HTTPException):
            return 0


class Deletions:
    """Writes down when a CVAT server is asked to delete a task, from which address."""

    def __init__(self, server: SimulatorServer) -> None:
        self.calls: list[tuple[float, str, int]] = []
        self._passage = server.simulator.passage
        server.simulator.passage = self

    async def __call__(self, call: Call, answer: Answer) -> Response:
        if call.operation == "tasks:delete":
            client = call.request.client
            assert client is not None
            self.calls.append((time.time(), client.host, int(call.request.path_params["id"])))
        return await self._passage(call, answer)


class TwoHosts:
    """Makes the hosts, starts what is to run on them, lets hosts fail, and looks.

    ``away`` are the seconds for which a daemon is cut off, and ``pause`` those between two
    failures. With ``shared``, the data of requests is where both hosts can read it, else where the
    host has it that has accepted it. ``haste`` is what takes less long than in the product, as in
    :data:`actors.HASTE`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        away: float,
        pause: float,
        shared: bool,
        timings: Timings | None = None,
        haste: Mapping[str, dict[str, Any]] | None = None,
        safe: dict[str, str] | None = None,
    ) -> None:
        need_hosts()
        self._folder = folder
        self._seed, self._rng = seed, random.Random(seed)
        self._away, self._pause, self._shared = away, pause, shared
        self._timings, self._haste, self._safe = timings, haste or {}, safe
        self._context = forkserver()
        # Here, before this thread is on another host: it stays for those who come after.
        multiprocessing.forkserver.ensure_running()
        self._machines: list[Machine] = []
        self._callers: list[ForkServerProcess] = []
        self._born = 0
        self.outcome = Outcome()

    def run(self, seconds: float) -> Outcome:
        """Let hosts fail for about so long, at least once each; then let all come to its end."""
        began = time.monotonic()
        with ExitStack() as stack:
            self._backstage = stack.enter_context(Switch("backstage", "10.91.1"))
            self._stage = stack.enter_context(Switch("stage", "10.91.2"))
            self._upstream = stack.enter_context(Switch("upstream", "10.91.3"))
            self._desk = self._new_host(stack, "desk")
            self._make_database(stack)
            self._stage.join(self._desk)
            address = self._upstream.join(self._desk)
            # From here on, nothing of this thread's is on any network but those.
            stack.enter_context(self._desk.entered())
            self._server = stack.enter_context(
                SimulatorServer(
                    SimulatorSettings(timings=self._timings or Timings(), seed=self._seed),
                    host=address,
                )
            )
            deletions = Deletions(self._server)
            stack.callback(self._end_all)
            for number in (1, 2):
                self._make_machine(self._new_host(stack, f"daemon-{number}"))
            settings = self._settings()
            store = stack.enter_context(closing(open_store(settings.store.url)))
            client = stack.enter_context(
                closing(connect(settings.cvat, {"CVAT_ACCESS_TOKEN": self._server.access_token}))
            )
            ids = [client.create_task({"labels": []}, name) for name in OTHERS]
            others = dict(client.tasks(ids))
            for machine in self._machines:
                self._start(machine)
            self._until(lambda: self._maintained_by(store) is not None)
            for _ in range(CALLERS):
                self._start_caller()
            while True:
                self._fail_all(store)
                if time.monotonic() - began >= seconds:
                    break
            self._calm_down(store)
            self._reckon(settings, store, client, others, deletions)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # --- Before ---------------------------------------------------------------------------------

    def _new_host(self, stack: ExitStack, name: str) -> Host:
        host = Host(name)
        stack.callback(host.remove)
        return host

    def _make_database(self, stack: ExitStack) -> None:
        host = self._new_host(stack, "database")
        self._address = self._backstage.join(host)
        self._database = PostgresServer(self._safe, address=self._address, within=host.within)
        stack.callback(self._database.remove)
        self._name = self._database.new_database()

    def _make_machine(self, host: Host) -> None:
        self._backstage.join(host)
        address = self._stage.join(host)
        upstream = self._upstream.join(host)
        folder = self._folder / host.name
        folder.mkdir()
        config = folder / "config.toml"
        store = self._database.url(self._name, host=self._address)
        spool = self._folder / "spool" if self._shared else folder / "spool"
        config.write_text(
            f'[cvat]\nurl = "{self._server.url}"\ntimeout = "5s"\n'
            f'[store]\nurl = "{store}"\nspool = "{spool}"\n'
            f'[daemon]\nhost = "{address}"\nport = {PORT}\n'
            '[templates.scenes]\nlabels = [{ name = "car" }]\n'
            'pool = { min_size = 12, create_concurrency = 4, max_wait = "3s", lease_ttl = "3s", '
            'max_age = "6s" }\n'
            'import = { timeout = "20s" }\n'
        )
        place = Place(config, self._folder, self._server.access_token, "")
        self._machines.append(Machine(host, f"http://{address}:{PORT}", upstream, place))

    def _settings(self) -> Settings:
        """Those of one who is nowhere, and has a line to the database that is never cut."""
        settings = load(self._machines[0].place.config)
        store = replace(settings.store, url=self._database.url(self._name))
        return replace(settings, store=store)

    def _start(self, machine: Machine) -> None:
        machine.process = self._context.Process(
            target=run_daemon_on,
            args=(machine.host.pid, machine.place, self._haste),
            daemon=True,
        )
        machine.process.start()

    def _start_caller(self) -> None:
        self._born += 1
        urls = tuple(machine.url for machine in self._machines)
        process = self._context.Process(
            target=run_caller_on,
            args=(self._desk.pid, self._folder, urls, self._seed * 10_000 + self._born),
            daemon=True,
        )
        process.start()
        self._callers.append(process)

    # --- During ---------------------------------------------------------------------------------

    def _fail_all(self, store: Store) -> None:
        """Once each: a daemon is killed, another one cut off from the database, and one from CVAT,
        the database killed."""
        self._work(self._pause)
        first, second = self._in_order(store)
        self._kill(first, store)
        self._work(self._pause)
        self._cut_off(second, store)
        self._work(self._pause)
        self._cut_off_from_cvat(first, store)
        self._work(self._pause)
        self._restart_database()
        self._until(lambda: all(machine.answers("/readyz") == 200 for machine in self._machines))

    def _in_order(self, store: Store) -> tuple[Machine, Machine]:
        """The one that maintains, which is killed, and the other; at times the other way round."""
        first, second = self._machines
        maintains = self._maintained_by(store)
        if maintains is second and self._rng.random() < 0.75:
            return second, first
        return first, second

    def _kill(self, machine: Machine, store: Store) -> None:
        assert machine.process is not None
        other = self._other(machine)
        maintained = self._maintained_by(store) is machine
        began = time.monotonic()
        machine.process.kill()
        machine.process.join()
        self.outcome.kills["daemon"] += machine.process.exitcode == -signal.SIGKILL
        if maintained:
            self._taken_over(other, store, began)
        self._start(machine)
        self._until(lambda: machine.answers("/readyz") == 200)

    def _cut_off(self, machine: Machine, store: Store) -> None:
        """It runs on, and still reaches CVAT and its callers; it sees nothing of the database."""
        other = self._other(machine)
        maintained = self._maintained_by(store) is machine
        self._backstage.unplug(machine.host)
        began = time.monotonic()
        try:
            if maintained:
                self._taken_over(other, store, began)
            self._work(began + self._away - time.monotonic())
            assert machine.answers("/healthz") == 200, "it is not reached"
            assert machine.answers("/readyz") != 200, "it cannot serve, and says that it can"
        finally:
            self._backstage.plug_in(machine.host)
        self.outcome.kills["cut off"] += 1
        self._until(lambda: machine.answers("/readyz") == 200)

    def _cut_off_from_cvat(self, machine: Machine, store: Store) -> None:
        """It still reaches its callers and the database."""
        other = self._other(machine)
        maintained = self._maintained_by(store) is machine
        self._upstream.unplug(machine.host)
        began = time.monotonic()
        try:
            if maintained:
                # It finds out first: by a call that gets no answer, and another one.
                self._until(lambda: self._maintained_by(store) is other)
            self._work(began + self._away - time.monotonic())
            self._until(lambda: machine.answers("/readyz") == 503)
            self._until(lambda: SERVER not in store.holds())
            assert other.answers("/readyz") == 200
            assert self._maintained_by(store) is other
        finally:
            self._upstream.plug_in(machine.host)
        self.outcome.kills["cut off from CVAT"] += 1
        self._until(lambda: machine.answers("/readyz") == 200)

    def _restart_database(self) -> None:
        self._database.stop("immediate")
        time.sleep(self._rng.uniform(0.0, 2.0))
        self._database.start()
        self.outcome.kills["database"] += 1

    def _taken_over(self, other: Machine, store: Store, began: float) -> None:
        """Wait until the ``other`` one maintains, and write down how long that took."""
        self._until(lambda: self._maintained_by(store) is other)
        self.outcome.takeovers.append(time.monotonic() - began)

    def _maintained_by(self, store: Store) -> Machine | None:
        owner = store.maintainer(now=time.time()) or ""
        name = owner.partition(":")[0]
        return next((each for each in self._machines if each.host.name == name), None)

    def _other(self, machine: Machine) -> Machine:
        return next(each for each in self._machines if each is not machine)

    def _work(self, seconds: float) -> None:
        """Let callers call for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(LOOK)
            self._replace_those_that_died()

    def _until(self, condition: Callable[[], object], patience: float = 60.0) -> None:
        end = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < end, "it did not come to that"
            self._work(LOOK)

    def _replace_those_that_died(self) -> None:
        """Callers kill themselves at times; nobody else ends who was not told to."""
        for process in [each for each in self._callers if not each.is_alive()]:
            self._callers.remove(process)
            if process.exitcode == -signal.SIGKILL:
                self.outcome.kills["caller, by itself"] += 1
            else:
                self.outcome.crashed.append(f"caller {process.pid}: exit {process.exitcode}")
            self._start_caller()
        for machine in self._machines:
            code = machine.process.exitcode if machine.process is not None else None
            if code not in (None, -signal.SIGKILL):
                self.outcome.crashed.append(f"{machine.host.name}: exit {code}")
                self._start(machine)

    # --- After ----------------------------------------------------------------------------------

    def _calm_down(self, store: Store) -> None:
        """No more callers; the daemons bring everything to an end."""
        for process in self._callers:
            process.kill()
            process.join()
        self._callers.clear()
        with suppress(AssertionError):
            self._until(lambda: is_calm(store), CALM)
        for machine in self._machines:
            assert machine.process is not None
            machine.process.terminate()
            machine.process.join(15)
            if machine.process.exitcode != 0:
                self.outcome.crashed.append(
                    f"{machine.host.name} was stopped: exit {machine.process.exitcode}"
                )

    def _reckon(
        self,
        settings: Settings,
        store: Store,
        client: CvatClient,
        others: dict[int, Any],
        deletions: Deletions,
    ) -> None:
        names = {each.address: each.host.name for each in self._machines}
        calls = [(at, names[address], task_id) for at, address, task_id in deletions.calls]
        reckoning = Reckoning(self.outcome, settings, store, client, self._server, None)
        reckoning.look_at_terms(calls)
        reckoning.look(self._folder, others)

    def _end_all(self) -> None:
        for process in (*self._callers, *(machine.process for machine in self._machines)):
            if process is not None:
                process.kill()
                process.join()
