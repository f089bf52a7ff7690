"""What the API costs: hand-outs, long-polls and one-image requests over HTTP.

    python tests/bench/bench_http.py [--seconds 30] [--clients 32] [--pollers 500]

A daemon, with all its services, runs in a process of its own, the clients in this one; both share
the cores of the machine, and a simulated CVAT does too. It takes as long as a real one for
hand-outs, whose tasks are put into the store directly; for the others no time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.waiting import poll_until

from bench.http_server import NAME, SPACING, Server, jobs_of, put_warm, server
from pool import TaskPool
from pool.bench.pictures import sample_image
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.model import new_id
from pool.simulator import SimulatorServer, SimulatorSettings, Timings
from pool.store import NewLease, NewRequest

#: Hand-outs of one client, and one-image requests each way.
ALONE = 2000
IMAGES = 100


@contextlib.contextmanager
def pool_beside(server: Server) -> Iterator[TaskPool]:
    """A pool in this process, on the daemon's store."""
    credentials = AccessTokenCredentials(server.simulator.access_token)
    with (
        contextlib.closing(CvatClient(server.settings.cvat, credentials)) as cvat,
        TaskPool(server.settings, cvat=cvat) as pool,
    ):
        yield pool


def report(what: str, value: float, unit: str = "") -> None:
    print(f"{what:58} {value:9.2f} {unit}", flush=True)


# --- The clients ----------------------------------------------------------------------------------


class Line:
    """A connection that sends one call again and again, with as little work as possible."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def call(self, request: bytes) -> int:
        """The status of the answer, which is read to its end."""
        self._socket.sendall(request)
        status = int(self._file.readline().split()[1])
        length = 0
        while (line := self._file.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self._file.read(length)
        return status

    def close(self) -> None:
        self._file.close()
        self._socket.close()


LEASE = (
    b"POST /v1/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 21\r\n\r\n{"template":"scenes"}'
)


def hand_outs(address: tuple[str, int], count: int, until: float) -> tuple[list[float], int]:
    """Seconds of each of at most ``count`` calls until then, and how many failed."""
    line, errors = Line(address), 0
    took: list[float] = []
    with contextlib.closing(line):
        while len(took) < count and time.monotonic() < until:
            began = time.perf_counter()
            errors += line.call(LEASE) != 201
            took.append(time.perf_counter() - began)
    return took, errors


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[-1]


def most_hand_outs(seconds: float) -> int:
    return ALONE + 200 + int(seconds * 1000)


def measure_hand_outs(server: Server, clients: int, seconds: float) -> None:
    put_warm(server.settings, most_hand_outs(seconds))
    hand_outs(server.address, 200, float("inf"))
    took, errors = hand_outs(server.address, ALONE, float("inf"))
    report("POST /v1/leases, one client, median", 1e3 * statistics.median(took), "ms")
    report("POST /v1/leases, one client, p99", 1e3 * p99(took), "ms")
    report("POST /v1/leases, one client, errors", errors)
    results: list[tuple[list[float], int]] = []
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=lambda: results.append(hand_outs(server.address, 10**9, until)))
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = [each for times, _ in results for each in times]
    rate = len(took) / seconds
    name = f"POST /v1/leases, {clients} clients for {seconds:g} s"
    report(f"{name}, hand-outs", rate, "1/s")
    report(f"{name}, p99", 1e3 * p99(took), "ms")
    report(f"{name}, errors", sum(errors for _, errors in results))


# --- Long-polls -----------------------------------------------------------------------------------


def begin_imports(pool: TaskPool, first: int, last: int) -> list[str]:
    """Requests whose imports this process watches; their task ids are ``first`` to ``last``."""
    store, owner = pool.store, pool.process.owner
    template, ids = pool.process.template(NAME), []
    for task_id in range(first, last):
        now = time.time()
        task = store.begin_create(
            new_id(now), template.name, template.fingerprint, limit=None, owner=owner, now=now
        )
        assert task is not None
        store.record_created(task.id, task_id=task_id, now=now)
        lease = NewLease(
            id=new_id(now), template=template.name, fingerprint="none", owner=owner, ttl=600.0
        )
        request = NewRequest(id=new_id(now), files=("a.jpg",), size=1)
        store.open_lease(lease, request=request, now=now)
        handout = store.finish_cold(task.id, lease.id, prepared=True, now=now)
        assert handout is not None and handout.request is not None
        assert store.begin_import(handout.request.import_id or "", deadline=now + 600, now=now)
        ids.append(request.id)
    return ids


async def poll(address: tuple[str, int], request_id: str, waits: asyncio.Semaphore) -> float:
    """Seconds from the end of the request, by its own word, to the answer."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(
        f"GET /v1/requests/{request_id} HTTP/1.1\r\nHost: localhost\r\n"
        "Prefer: wait=60\r\nConnection: close\r\n\r\n".encode()
    )
    await writer.drain()
    waits.release()
    answer = await reader.read()
    at = time.time()
    writer.close()
    document = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert document["state"] == "ready", document
    return at - datetime.fromisoformat(document["finished_at"]).timestamp()


async def poll_all(
    server: Server, ids: Sequence[str], end: Callable[[], None], busy: dict[str, int]
) -> list[float]:
    waits = asyncio.Semaphore(0)
    polls = [asyncio.ensure_future(poll(server.address, each, waits)) for each in ids]
    for _ in ids:
        await waits.acquire()
    await asyncio.sleep(1.0)
    busy.update(memory=server.status("VmRSS"), threads=server.status("Threads"))
    ending = asyncio.ensure_future(asyncio.to_thread(end))
    latencies = await asyncio.gather(*polls)
    await ending
    return latencies


def end_here(pool: TaskPool, first: int, last: int, spacing: float) -> Callable[[], None]:
    """What has the imports of many tasks end, found by this process."""

    def end() -> None:
        for task_id in range(first, last):
            found = pool.store.task_on_server(task_id)
            assert found is not None
            pool.store.complete_import(found[0].id, jobs_of(task_id), now=time.time())
            time.sleep(spacing)

    return end


def measure_long_polls(server: Server, pool: TaskPool, pollers: int) -> None:
    def end_there(first: int) -> Callable[[], None]:
        def end() -> None:
            server.send((first, first + pollers))
            server.wait()

        return end

    # Connections, threads and caches of the first few are not those of the many.
    few = begin_imports(pool, 1, 9)
    asyncio.run(poll_all(server, few, end_here(pool, 1, 9, 0.0), {}))
    before = {"memory": server.status("VmRSS"), "threads": server.status("Threads")}
    runs = (
        ("found in the daemon", 10_000, end_there(10_000)),
        ("found by another process", 20_000, end_here(pool, 20_000, 20_000 + pollers, SPACING)),
        (
            "found by another process, all at once",
            30_000,
            end_here(pool, 30_000, 30_000 + pollers, 0.0),
        ),
    )
    for what, first, end in runs:
        busy: dict[str, int] = {}
        ids = begin_imports(pool, first, first + pollers)
        latencies = asyncio.run(poll_all(server, ids, end, busy))
        name = f"{pollers} long-polls, {what}"
        report(f"{name}, median", 1e3 * statistics.median(latencies), "ms")
        report(f"{name}, worst", 1e3 * max(latencies), "ms")
        if first == 10_000:
            grown = (busy["memory"] - before["memory"]) / 1024
            report(f"{pollers} long-polls, memory grown", grown, "MB")
            more = busy["threads"] - before["threads"]
            report(f"{pollers} long-polls, threads more", more)


# --- One image ------------------------------------------------------------------------------------


def form(image: bytes) -> bytes:
    boundary = b"a-boundary-of-the-bench"
    body = (
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="template"\r\n\r\nscenes\r\n'
        b"--" + boundary + b'\r\nContent-Disposition: form-data; name="files"; '
        b'filename="a.jpg"\r\n\r\n' + image + b"\r\n--" + boundary + b"--\r\n"
    )
    head = (
        b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=30\r\n"
        b"Content-Type: multipart/form-data; boundary=" + boundary + b"\r\n"
        b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n"
    )
    return head + body


def measure_images(server: Server, pool: TaskPool) -> None:
    """Alternately in process and over HTTP, so that both meet the same moods of the machine."""
    image = sample_image(1, size=100_000)
    here: list[float] = []
    there: list[float] = []
    line, request = Line(server.address), form(image)
    poll_until(lambda: pool.status().templates[0].warm >= 2 * IMAGES)
    for number in range(IMAGES + 10):
        began = time.perf_counter()
        pool.submit(NAME, [("a.jpg", image)]).jobs(timeout=30)
        between = time.perf_counter()
        assert line.call(request) == 201
        ended = time.perf_counter()
        if number >= 10:
            here.append(between - began)
            there.append(ended - between)
    line.close()
    inside, outside = statistics.median(here), statistics.median(there)
    print(f"one image, in process: {1e3 * inside:.1f} ms; over HTTP: {1e3 * outside:.1f} ms")
    report("one image, over HTTP more than in process, median", 1e3 * (outside - inside), "ms")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=30.0)
    arguments.add_argument("--clients", type=int, default=32)
    arguments.add_argument("--pollers", type=int, default=500)
    options = arguments.parse_args()
    most = most_hand_outs(options.seconds)
    # Refilling goes on meanwhile, at the pace of a CVAT.
    with SimulatorServer(SimulatorSettings()) as simulator, server(simulator, size=most) as running:
        measure_hand_outs(running, options.clients, options.seconds)
    with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as simulator:
        with server(simulator, size=1) as running, pool_beside(running) as pool:
            measure_long_polls(running, pool, options.pollers)
        with server(simulator, size=2 * IMAGES + 20) as running, pool_beside(running) as pool:
            measure_images(running, pool)


if __name__ == "__main__":
    main()
