"""Many who wait at once, those who leave, and the end of the server."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from support.api import Api, Serving, keyed, serving, waiting
from support.waiting import PATIENCE, poll_until, wait_until

from pool.model import Job, LeaseState, RequestState
from pool.simulator import SimulatorServer
from pool.store import NewLease, NewRequest, open_store

JOBS = (Job(id=7, url="http://cvat/jobs/7", start_frame=0, stop_frame=0),)


def importing(served: Serving, number: int) -> str:
    """The id of a request whose import another process watches."""
    store, now = served.process.store, served.process.clock.now()
    fingerprint = served.process.templates["scenes"].fingerprint
    task = store.begin_create(
        f"task{number}", "scenes", fingerprint, limit=None, owner="other", now=now
    )
    assert task is not None
    store.record_created(task.id, task_id=number, now=now)
    lease = NewLease(
        id=f"lease{number}", template="scenes", fingerprint="none", owner="other", ttl=60.0
    )
    store.open_lease(lease, request=NewRequest(id=f"request{number}", files=("a",)), now=now)
    handout = store.finish_cold(task.id, lease.id, prepared=True, now=now)
    assert handout is not None and handout.request is not None
    assert store.begin_import(handout.request.import_id or "", deadline=now + 60, now=now)
    return f"request{number}"


def end(served: Serving, number: int) -> None:
    """A webhook delivers the jobs of that request to this process."""
    task, importing = served.process.store.task_on_server(number) or (None, None)
    assert task is not None and importing is not None
    served.process.tracker.deliver(task, importing, JOBS)


@contextmanager
def polling(served: Serving, path: str) -> Iterator[socket.socket]:
    """A connection on which somebody long-polls."""
    with socket.create_connection(("127.0.0.1", served.port)) as line:
        line.settimeout(PATIENCE)
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=60\r\n\r\n".encode())
        yield line


def test_ends_that_this_process_finds(served: Serving, api: Api) -> None:
    ids = [importing(served, number) for number in range(1, 4)]
    with ThreadPoolExecutor(3) as threads:
        polls = [
            threads.submit(api.get, f"/v1/requests/{each}", headers=waiting(20)) for each in ids
        ]
        for number in (3, 1, 2):
            end(served, number)
            assert polls[number - 1].result().json["state"] == "ready"


def test_ends_that_another_process_finds(served: Serving, api: Api, store_url: str) -> None:
    ready, failed = importing(served, 1), importing(served, 2)
    elsewhere = open_store(store_url)
    with ThreadPoolExecutor(2) as threads:
        polls = [
            threads.submit(api.get, f"/v1/requests/{each}", headers=waiting(20))
            for each in (ready, failed)
        ]
        now = served.process.clock.now()
        assert elsewhere.complete_import("task1", JOBS, now=now)
        assert elsewhere.fail_import("task2", code="task-gone", message="deleted", now=now)
        assert polls[0].result().json["jobs"][0]["id"] == 7
        assert polls[1].result().json["error"] == {
            "code": "task-gone",
            "title": "The task was deleted on the server while it was in use",
            "detail": "deleted",
            "status": 409,
        }
    elsewhere.close()


def test_many_wait_without_a_thread_for_each(served: Serving, waiters: Callable[[], int]) -> None:
    ids = [importing(served, number) for number in range(1, 41)]
    with polling(served, f"/v1/requests/{ids[0]}"):
        poll_until(lambda: waiters() == 1)
        before = threading.active_count()
    lines = []
    for each in ids * 3:
        line = polling(served, f"/v1/requests/{each}")
        lines.append((line, line.__enter__()))
    poll_until(lambda: waiters() >= len(lines))
    # Each group of the workers may have grown to its own bound, and not beyond.
    assert threading.active_count() - before <= 20
    for number in range(1, 41):
        end(served, number)
    for line, connection in lines:
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        line.__exit__(None, None, None)


def test_who_has_gone_is_forgotten(served: Serving, waiters: Callable[[], int]) -> None:
    request = importing(served, 1)
    with polling(served, f"/v1/requests/{request}"), polling(served, f"/v1/requests/{request}"):
        poll_until(lambda: waiters() == 2)
    poll_until(lambda: waiters() == 0)


def test_when_the_time_is_over(served: Serving, api: Api, waiters: Callable[[], int]) -> None:
    request = importing(served, 1)
    answer = api.get(f"/v1/requests/{request}", headers=waiting(1))
    assert (answer.status, answer.json["state"]) == (200, "importing")
    assert waiters() == 0


def test_a_preference_that_cannot_be_read_is_none(served: Serving, api: Api) -> None:
    request = importing(served, 1)
    for preference in ("wait", "wait=", "wait=-1", "wait=soon", "respond-async"):
        answer = api.get(f"/v1/requests/{request}", headers={"Prefer": preference})
        assert answer.status == 200
        assert "preference-applied" not in answer.headers
    answer = api.get(f"/v1/requests/{request}", headers={"Prefer": 'x=1, Wait="0"; y'})
    assert answer.headers["preference-applied"] == "wait=0"


# --- The end of the server ------------------------------------------------------------------------


def test_a_stop_answers_those_who_wait(
    served: Serving, api: Api, image: bytes, waiters: Callable[[], int]
) -> None:
    served.fill()
    request = importing(served, 1)
    lease = api.lease().json["id"]
    with ThreadPoolExecutor(3) as threads:
        polls = [
            threads.submit(api.get, f"/v1/requests/{request}", headers=waiting(60)),
            threads.submit(api.get, f"/v1/leases/{lease}", headers=waiting(60)),
        ]
        poll_until(lambda: waiters() == 2)
        sent = threads.submit(
            api.submit, [("a.jpg", image)], template="patient", wait=60, key="monday"
        )
        served.fill()
        wait_until(
            served.process.store,
            lambda: served.process.store.requests().requests[0].id != request,
        )
        served.daemon.stop()
        assert [poll.result().status for poll in polls] == [200, 200]
        assert sent.result().status in (201, 202)
    # Nothing that was accepted is lost.
    kept = served.process.store.request(sent.result().json["id"])
    assert kept is not None
    assert kept.state is not RequestState.FAILED


def test_a_stop_ends_the_wait_for_a_task(
    served: Serving, api: Api, simulator: SimulatorServer
) -> None:
    with ThreadPoolExecutor(1) as threads:
        lease = threads.submit(api.lease, "patient", key="monday")
        wait_until(served.process.store, lambda: served.process.store.leases([LeaseState.WAITING]))
        served.daemon.stop()
        answer = lease.result()
    assert (answer.status, answer.code) == (503, "stopping")
    assert int(answer.headers["retry-after"]) >= 1
    # The key is free: the caller asks again.
    with serving(served.pool.settings, simulator.access_token) as other:
        other.fill()
        again = other.api.post("/v1/leases", {"template": "patient"}, headers=keyed("monday"))
    assert again.status == 201


def test_a_stop_waits_for_what_is_being_sent(served: Serving, image: bytes) -> None:
    served.fill()
    body = (
        b'--b\r\nContent-Disposition: form-data; name="template"\r\n\r\nscenes\r\n--b\r\n'
        b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        + image
        + b"\r\n--b--\r\n"
    )
    port = served.port
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.settimeout(PATIENCE)
        line.sendall(
            b"POST /v1/requests HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; "
            b"boundary=b\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n%s"
            % (len(body), body[:100])
        )
        assert line.recv(100).startswith(b"HTTP/1.1 100 Continue"), "it is being read"
        served.daemon.stop()
        line.sendall(body[100:])
        assert line.recv(100).startswith(b"HTTP/1.1 202 Accepted")
    (request,) = served.process.store.requests().requests
    assert request.size == len(image)


@pytest.fixture
def waiters(served: Serving) -> Callable[[], int]:
    """How many wait for requests and leases."""
    waiting = served.state.waiting
    return lambda: waiting.count
