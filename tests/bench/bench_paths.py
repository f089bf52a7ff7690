"""How much code a call runs through: files, functions and switches between files, by path.

    python tests/bench/bench_paths.py [--runs 5] [--list PATH]

Counts the code of ``pool/`` without the simulator, by :func:`sys.setprofile` in every thread. A
switch is a call from a function of one file to a function of another, each pair counted once,
whatever other libraries stand between them. A function counts when more than half of the runs
call it: so the periodic work of a daemon, which a run meets by chance, stays out. ``--list``
prints the functions of one path, too.

The server is a simulated CVAT with the timings of a real one, the daemon a thread of this
process. Only public doors are used: TaskPool, Daemon, the HTTP API and the command.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import urllib3
from PIL import Image

import pool as product
from pool import TaskPool
from pool.config.loader import load
from pool.daemon import Daemon
from pool.simulator import SimulatorServer
from pool.simulator.faults import Cut

ROOT = Path(product.__file__).parent
#: Seconds in which everything that is waited for has happened, and between two looks.
PATIENCE = 60.0
LOOK = 0.01
#: Seconds that follow a call, in which other threads end what it has left to them.
SETTLE = 0.5

#: A function: its file below ``pool/``, its qualified name, its line.
Function = tuple[str, str, int]


class Recorder:
    """Records the functions that run in the threads of this process, and which call which."""

    def __init__(self) -> None:
        self.functions: set[Function] = set()
        self.switches: set[tuple[Function, Function]] = set()
        self._recording = False
        self._without: int | None = None
        self._known: dict[CodeType, Function | None] = {}

    def install(self) -> None:
        """Follow this thread, and all that are started from now on."""
        threading.setprofile(self._on_event)
        sys.setprofile(self._on_event)

    def start(self, *, without_this_thread: bool = False) -> None:
        """Begin anew."""
        self.functions, self.switches = set(), set()
        self._without = threading.get_ident() if without_this_thread else None
        self._recording = True

    def stop(self) -> None:
        """Record nothing more."""
        self._recording = False

    def _on_event(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not self._recording or threading.get_ident() == self._without:
            return
        function = self._function(frame.f_code)
        if function is None:
            return
        self.functions.add(function)
        caller = frame.f_back
        while caller is not None:
            calling = self._function(caller.f_code)
            if calling is not None:
                if calling[0] != function[0]:
                    self.switches.add((calling, function))
                return
            caller = caller.f_back

    def _function(self, code: CodeType) -> Function | None:
        """The function of the product that has this code; None for all other code."""
        if code not in self._known:
            self._known[code] = _function(code)
        return self._known[code]


def _function(code: CodeType) -> Function | None:
    path = Path(code.co_filename)
    # A module's own code runs once, when it is imported; a comprehension is its function's.
    if not path.is_relative_to(ROOT) or (code.co_name[0] == "<" and code.co_name != "<lambda>"):
        return None
    file = path.relative_to(ROOT).as_posix()
    return None if file.startswith("simulator/") else (file, code.co_qualname, code.co_firstlineno)


RECORDER = Recorder()


class CallPath:
    """What the runs of one path have in common."""

    def __init__(self, name: str, *, without_this_thread: bool = False) -> None:
        self.name = name
        self.runs = 0
        self._without_this_thread = without_this_thread
        self._functions: Counter[Function] = Counter()
        self._switches: Counter[tuple[Function, Function]] = Counter()

    def record(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Record a call; give its result."""
        RECORDER.start(without_this_thread=self._without_this_thread)
        try:
            result = function(*arguments, **options)
        finally:
            RECORDER.stop()
        self.add()
        return result

    def add(self) -> None:
        """Count what was recorded as one run. The first only imports, and is left out."""
        self.runs += 1
        if self.runs > 1:
            self._functions.update(RECORDER.functions)
            self._switches.update(RECORDER.switches)

    @property
    def functions(self) -> list[Function]:
        """Those that most runs call."""
        return sorted(each for each, count in self._functions.items() if self._usual(count))

    def __str__(self) -> str:
        files = len({file for file, _, _ in self.functions})
        switches = sum(map(self._usual, self._switches.values()))
        return f"{self.name:32} {files:6} {len(self.functions):10} {switches:9}"

    def _usual(self, count: int) -> bool:
        return 2 * count > self.runs - 1


# --- The parts ------------------------------------------------------------------------------------


def picture() -> bytes:
    """An image of 100 KB or so, which is what one request is about."""
    target = io.BytesIO()
    Image.effect_noise((400, 400), 80).save(target, "JPEG", quality=95)
    return target.getvalue()


IMAGE = picture()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Place:
    """A folder with a configuration and a store, and the daemon that runs on them here."""

    def __init__(self, folder: Path, url: str, size: int, *, source: str = "") -> None:
        self.port = free_port()
        self.config = folder / "config.toml"
        self.config.write_text(
            f"""
            [cvat]
            url = "{url}"
            [store]
            url = "sqlite:///{folder}/pool.db"
            [daemon]
            port = {self.port}
            [templates.scenes]
            {source or 'labels = [{ name = "car" }]'}
            pool = {{ min_size = {size}, max_size = {size}, on_empty = "fail" }}
            """
        )
        self._http = urllib3.PoolManager(retries=False, timeout=PATIENCE)

    def call(self, method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        """Call the daemon's API."""
        answer = self._http.request(method, f"http://127.0.0.1:{self.port}{path}", **more)
        assert answer.status < 400, answer.data
        return answer

    def post(self, wait: int) -> urllib3.BaseHTTPResponse:
        """Give one image to the daemon."""
        fields = [("template", "scenes"), ("files", ("a.jpg", IMAGE))]
        return self.call("POST", "/v1/requests", fields=fields, headers={"Prefer": f"wait={wait}"})

    def warm(self) -> int:
        """How many tasks are warm."""
        try:
            (row,) = self.call("GET", "/v1/templates").json()["templates"]
        except urllib3.exceptions.HTTPError:
            return 0
        return int(row["warm"])

    @contextmanager
    def no_refill(self, full: int) -> Iterator[None]:
        """Have the daemon refill only afterwards, so that this is no part of another path."""
        self.call("POST", "/v1/templates/scenes/pause")
        time.sleep(SETTLE)
        try:
            yield
        finally:
            self.call("POST", "/v1/templates/scenes/resume")
            self.wait_for_warm(full)
            time.sleep(SETTLE)

    def wait_for_warm(self, count: int) -> None:
        end = time.monotonic() + PATIENCE
        while self.warm() < count:
            assert time.monotonic() < end, "the pool was not filled"
            time.sleep(LOOK)

    @contextmanager
    def daemon(self) -> Iterator[None]:
        """Run a daemon on a thread."""
        daemon = Daemon(load(self.config))
        thread = threading.Thread(target=daemon.run, name="daemon")
        thread.start()
        try:
            yield
        finally:
            daemon.stop()
            thread.join(PATIENCE)

    @contextmanager
    def filled_daemon(self, count: int) -> Iterator[None]:
        with self.daemon():
            self.wait_for_warm(count)
            time.sleep(SETTLE)
            yield


class Relay(BaseHTTPRequestHandler):
    """Passes webhooks on to a daemon, and has the path recorded from the first of a request."""

    target = ""
    armed = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if Relay.armed:
            Relay.armed = False
            RECORDER.start()
        answer = urllib3.request("POST", Relay.target, body=body, headers=dict(self.headers))
        self.send_response(answer.status)
        self.end_headers()
        self.wfile.write(answer.data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


# --- The paths ------------------------------------------------------------------------------------


def open_pool(config: Path) -> TaskPool:
    pool = TaskPool.from_config(config)
    pool.start()
    return pool


def library_paths(folder: Path, url: str, runs: int) -> Iterator[CallPath]:
    """The pool as a library. The daemon that has filled it is gone again."""
    place = Place(folder, url, 2 * runs)
    with place.filled_daemon(2 * runs):
        pass
    opening, submit = CallPath("open the pool"), CallPath("submit")
    jobs, claim = CallPath("jobs"), CallPath("claim")
    for _ in range(runs):
        pool = opening.record(open_pool, place.config)
        with pool:
            time.sleep(SETTLE)
            request = submit.record(pool.submit, "scenes", [("a.jpg", IMAGE)])
            assert jobs.record(request.jobs, timeout=PATIENCE)
            time.sleep(SETTLE)
            lease = claim.record(pool.acquire, "scenes")
            assert lease.outcome == "hit"
    yield from (opening, submit, jobs, claim)


def served_paths(
    folder: Path, url: str, runs: int, simulator: SimulatorServer
) -> Iterator[CallPath]:
    """The daemon with its pool full, in good weather and in an outage."""
    place = Place(folder, url, 3)
    idle, posted = CallPath("idle daemon, 1 s"), CallPath("POST to jobs")
    refill = CallPath("refill creates one", without_this_thread=True)
    outage = CallPath("queued in an outage, then served")

    def wait_out_an_outage() -> str:
        fault = simulator.faults.add(Cut("*"))
        location = place.post(wait=0).headers["Location"]
        fault.wait(timeout=PATIENCE)
        fault.remove()
        answer = place.call("GET", location, headers={"Prefer": "wait=30"})
        return str(answer.json()["state"])

    def take_one() -> None:
        # This thread is another process's: its hand-out is what the daemon has to notice.
        assert pool.acquire("scenes").outcome == "hit"
        while place.warm() == 3:
            time.sleep(LOOK)
        place.wait_for_warm(3)

    with place.filled_daemon(3), TaskPool.from_config(place.config) as pool:
        for _ in range(runs):
            idle.record(time.sleep, 1.0)
            with place.no_refill(3):
                assert posted.record(place.post, wait=30).status == 201
            refill.record(take_one)
            time.sleep(SETTLE)
        for _ in range(runs):
            with place.no_refill(3):
                assert outage.record(wait_out_an_outage) == "ready"
    yield from (idle, posted, refill, outage)


def start_path(folder: Path, url: str, runs: int) -> Iterator[CallPath]:
    """A daemon's start on a new store, up to the first warm task."""
    started = CallPath("daemon start to first warm")
    for number in range(runs):
        (folder / str(number)).mkdir()
        place = Place(folder / str(number), url, 1)
        RECORDER.start()
        with place.daemon():
            place.wait_for_warm(1)
            RECORDER.stop()
        started.add()
    yield started


def webhook_path(folder: Path, url: str, runs: int) -> Iterator[CallPath]:
    """From a webhook's arrival at the daemon to the answer of the request that waits for it."""
    token = os.environ["CVAT_ACCESS_TOKEN"]
    project = urllib3.request(
        "POST",
        f"{url}/api/projects",
        json={"name": "scenes", "labels": [{"name": "car"}]},
        headers={"Authorization": f"Bearer {token}"},
    ).json()["id"]
    place = Place(folder, url, 2, source=f"project = {project}")
    Relay.target = f"http://127.0.0.1:{place.port}/webhooks/cvat"
    hooked = CallPath("webhook")
    relay = ThreadingHTTPServer(("127.0.0.1", 0), Relay)
    threading.Thread(target=relay.serve_forever, daemon=True).start()
    with place.filled_daemon(2):
        here = f"http://127.0.0.1:{relay.server_port}/webhooks/cvat"
        command = [sys.executable, "-m", "pool.cli", "webhook", "install", "--url", here, "--json"]
        said = subprocess.run(
            [*command, "--config", str(place.config)], check=True, capture_output=True
        ).stdout
        assert json.loads(said)[0]["reachable"], said
        time.sleep(SETTLE)
        for _ in range(runs):
            with place.no_refill(2):
                Relay.armed = True
                assert place.post(wait=30).status == 201
                RECORDER.stop()
                hooked.add()
    relay.shutdown()
    yield hooked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--list", default="")
    given = parser.parse_args()
    runs = given.runs + 1  # the first one imports
    RECORDER.install()
    print(f"{'':32} {'files':>6} {'functions':>10} {'switches':>9}")
    with SimulatorServer() as simulator, tempfile.TemporaryDirectory() as folder:
        os.environ["CVAT_ACCESS_TOKEN"] = simulator.access_token
        url = simulator.url
        places = [Path(folder, name) for name in ("library", "served", "started", "hooked")]
        for place in places:
            place.mkdir()
        for paths in (
            library_paths(places[0], url, runs),
            served_paths(places[1], url, runs, simulator),
            start_path(places[2], url, runs),
            webhook_path(places[3], url, runs),
        ):
            for path in paths:
                print(path, flush=True)
                if given.list and given.list in path.name:
                    print(*(f"    {file}: {name}" for file, name, _ in path.functions), sep="\n")


if __name__ == "__main__":
    main()
