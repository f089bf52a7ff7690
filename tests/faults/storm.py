"""A storm: callers and daemons on one store, killed at random points, and what must hold after.

``python tests/faults/soak.py`` runs a long one by hand; the tests run a short one.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from actors import run_caller, run_daemon

from pool.config import load
from pool.cvat import connect
from pool.demo import sample_image
from pool.model import LeaseState, RequestState, TaskState, pool_mark
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.store import open_store

CALLERS = 4
DAEMONS = 2
#: Names of tasks that are somebody else's, some of them much like ours.
OTHERS = (
    "my own task",
    "[cvat-pool] not really",
    "[cvat-pool 00000000] scenes: empty, waiting for data 01abc",
    "scenes: empty, waiting for data",
)
#: Seconds within which everything must have come to an end once the storm is over.
CALM = 60.0


@dataclass
class Outcome:
    """What the storm did, and what was found wrong afterwards."""

    kills: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    handed_out_twice: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    mixed_up: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> list[str]:
        """Everything that must be empty, in one list."""
        return [
            *(f"handed out twice: {what}" for what in self.handed_out_twice),
            *(f"lost: {what}" for what in self.lost),
            *(f"mixed up: {what}" for what in self.mixed_up),
            *(f"orphan: {what}" for what in self.orphans),
            *(f"touched: {what}" for what in self.touched),
        ]

    def summary(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "kills": dict(self.kills),
            "events": dict(self.events),
            "requests": dict(self.requests),
            "errors told to callers": dict(self.errors),
            "tasks handed out twice": len(self.handed_out_twice),
            "accepted requests lost or without an end": len(self.lost),
            "requests with somebody else's data": len(self.mixed_up),
            "pool tasks on the server without a row": len(self.orphans),
            "tasks of others touched": len(self.touched),
        }


class Storm:
    """Starts the processes, kills them, lets things calm down, and looks."""

    def __init__(
        self,
        folder: Path,
        *,
        seed: int,
        timings: Timings | None = None,
        weather: Callable[[SimulatorServer, random.Random], None] | None = None,
    ) -> None:
        self._folder = folder
        self._rng = random.Random(seed)
        self._seed = seed
        self._weather = weather
        self._server = SimulatorServer(
            SimulatorSettings(timings=timings or Timings().scaled(0.2), seed=seed)
        )
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["actors", "pool.taskpool", "pool.daemon"])
        self._image = sample_image(1, size=4_000)
        self._processes: dict[str, list[ForkServerProcess]] = {"caller": [], "daemon": []}
        self._born = 0
        self.outcome = Outcome()

    def blow(self, *, kills: int, pause: float) -> Outcome:
        """Kill ``kills`` processes, about one every ``pause`` seconds, each replaced at once;
        then stop the callers, let one daemon finish what is left, and look."""
        began = time.monotonic()
        with self._server as server:
            config = self._write_config(server.url)
            others = self._make_others(server)
            try:
                for role, count in (("daemon", DAEMONS), ("caller", CALLERS)):
                    for _ in range(count):
                        self._start(role, config, server)
                for _ in range(kills):
                    time.sleep(self._rng.expovariate(1 / pause))
                    if self._weather is not None:
                        self._weather(server, self._rng)
                    self._kill_one(config, server)
                self._calm_down(config, server)
            finally:
                for processes in self._processes.values():
                    for process in processes:
                        process.kill()
                        process.join()
            self._look(config, server, others)
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    # --- Before ---------------------------------------------------------------------------------

    def _write_config(self, url: str) -> Path:
        path = self._folder / "config.toml"
        path.write_text(
            f'[cvat]\nurl = "{url}"\ntimeout = "5s"\n'
            '[daemon]\nport = 0\ntick = "500ms"\n'
            '[templates.scenes]\nlabels = [{ name = "car" }]\n'
            'pool = { min_size = 6, max_wait = "3s", lease_ttl = "3s" }\n'
            'import = { timeout = "20s" }\n'
        )
        return path

    def _make_others(self, server: SimulatorServer) -> dict[int, Any]:
        """Tasks that are nobody's business of ours; how they look before."""
        client = connect(load(self._folder / "config.toml").cvat, _environment(server))
        ids = [client.create_task({"labels": []}, name) for name in OTHERS]
        before = client.tasks(ids)
        client.close()
        return dict(before)

    def _start(self, role: str, config: Path, server: SimulatorServer) -> None:
        self._born += 1
        arguments: tuple[Any, ...] = (config, self._folder, server.access_token)
        if role == "caller":
            arguments += (self._image, self._seed * 10_000 + self._born)
        process = self._context.Process(
            target=run_caller if role == "caller" else run_daemon, args=arguments, daemon=True
        )
        process.start()
        self._processes[role].append(process)

    # --- During ---------------------------------------------------------------------------------

    def _kill_one(self, config: Path, server: SimulatorServer) -> None:
        role = self._rng.choices(("caller", "daemon"), weights=(CALLERS, DAEMONS))[0]
        victim = self._rng.choice(self._processes[role])
        self._processes[role].remove(victim)
        victim.kill()
        victim.join()
        self.outcome.kills[role] += victim.exitcode == -signal.SIGKILL
        self._start(role, config, server)

    # --- After ----------------------------------------------------------------------------------

    def _calm_down(self, config: Path, server: SimulatorServer) -> None:
        """No more callers; the daemons bring everything to an end."""
        for process in self._processes["caller"]:
            process.kill()
            process.join()
            self.outcome.kills["caller"] += 1
        self._processes["caller"].clear()
        store = open_store(load(config).store.url)
        try:
            deadline = time.monotonic() + CALM
            while time.monotonic() < deadline and not self._is_calm(store):
                time.sleep(0.2)
        finally:
            store.close()
        for process in self._processes["daemon"]:
            process.terminate()
            process.join(10)

    def _is_calm(self, store: Any) -> bool:
        unfinished = any(
            store.requests(state=state, limit=1).requests
            for state in RequestState
            if not state.finished
        )
        busy = {
            TaskState.CREATING,
            TaskState.LEASED,
            TaskState.IMPORTING,
            TaskState.FAILED,
            TaskState.RETIRED,
            TaskState.DELETING,
        }
        return not unfinished and not any(
            levels[state] for levels in store.levels().values() for state in busy
        )

    def _look(self, config: Path, server: SimulatorServer, others: dict[int, Any]) -> None:
        diaries = [
            json.loads(line)
            for path in sorted(self._folder.glob("caller-*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        self.outcome.events.update(event["event"] for event in diaries)
        self.outcome.errors.update(event["code"] for event in diaries if event["event"] == "error")
        store = open_store(load(config).store.url)
        try:
            self._look_for_doubles(store, diaries)
            self._look_for_lost_requests(store, server, diaries)
            self._look_at_the_server(store, server, others)
        finally:
            store.close()

    def _look_for_doubles(self, store: Any, diaries: list[dict[str, Any]]) -> None:
        """Of the leases that callers heard of, no two have one task, unless it was given back."""
        holders: dict[int, set[str]] = defaultdict(set)
        for event in diaries:
            if event["event"] == "leased":
                record = store.lease(event["lease"])
                if record.state not in (LeaseState.RELEASED, LeaseState.EXPIRED):
                    holders[event["task"]].add(event["lease"])
            if event["event"] == "accepted":
                request = store.request(event["request"])
                if request.task_id is not None:
                    holders[request.task_id].add(request.lease_id)
        for task_id, leases in holders.items():
            if len(leases) > 1:
                self.outcome.handed_out_twice.append(f"task {task_id}: {sorted(leases)}")

    def _look_for_lost_requests(
        self, store: Any, server: SimulatorServer, diaries: list[dict[str, Any]]
    ) -> None:
        """Every accepted request has come to an end; a ready one has the caller's own data."""
        files = {event["key"]: event["file"] for event in diaries if event["event"] == "submit"}
        answers: dict[str, set[str]] = defaultdict(set)
        for event in diaries:
            if event["event"] in ("accepted", "again") and event["key"] is not None:
                answers[event["key"]].add(event["request"])
            if event["event"] != "accepted":
                continue
            request = store.request(event["request"])
            if request is None or not request.state.finished:
                self.outcome.lost.append(f"request {event['request']}: {request}")
                continue
            self.outcome.requests[f"{request.state.value} {request.error_code}".strip()] += 1
            if request.state is RequestState.READY:
                self._look_at_data(request, files.get(event["key"]), server)
        for key, requests in answers.items():
            if len(requests) > 1:
                self.outcome.lost.append(f"{key} has {len(requests)} requests")

    def _look_at_data(self, request: Any, file: str | None, server: SimulatorServer) -> None:
        task = server.state.tasks.get(request.task_id)
        if task is None or task.data is None:
            self.outcome.lost.append(f"request {request.id} is ready, and its task is gone")
            return
        frames = [frame.name for frame in task.data.frames]
        if frames != list(request.files) or (file is not None and frames != [file]):
            self.outcome.mixed_up.append(f"request {request.id} of {file}: {frames}")

    def _look_at_the_server(
        self, store: Any, server: SimulatorServer, others: dict[int, Any]
    ) -> None:
        client = connect(load(self._folder / "config.toml").cvat, _environment(server))
        rows = {task.task_id for task in store.tasks(states=tuple(TaskState))}
        gone = {task.task_id for task in store.tasks(states=(TaskState.DELETED,))}
        for task in client.marked_tasks(pool_mark(store.pool_id)):
            if task.id not in rows or task.id in gone:
                self.outcome.orphans.append(f"task {task.id}: {task.name}")
        for task_id, info in client.tasks(list(others)).items():
            if info != others[task_id]:
                self.outcome.touched.append(f"{others[task_id]} is now {info}")
        if missing := set(others) - set(client.tasks(list(others))):
            self.outcome.touched.append(f"deleted: {missing}")
        client.close()


def _environment(server: SimulatorServer) -> dict[str, str]:
    return {"CVAT_ACCESS_TOKEN": server.access_token}
