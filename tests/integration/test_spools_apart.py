"""Daemons on machines of their own, on one store: which of them can send what another accepted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from support.bucket import Bucket, away, bucket
from support.clock import ManualClock
from support.scripted import ScriptedCvat
from support.stepped import IMPORTING, QUEUED, Stepped, grouped, uploads
from support.waiting import PATIENCE

from pool.config.settings import Settings
from pool.model import SPOOL_AWAY, Scope
from pool.observability.status import troubles
from pool.status import WaitReason
from pool.store import Store

#: Starts a daemon on a machine, whose spool is that of the machine, or the one at an address;
#: requests may share a task, or not.
On = Callable[..., Stepped]
#: Seconds in which a process that has stopped counts as gone, and a request is tried again.
LATER = SPOOL_AWAY + 20.0


@pytest.fixture
def on(
    settings: Settings, store: Store, cvat: ScriptedCvat, clock: ManualClock, tmp_path: Path
) -> Iterator[On]:
    with ExitStack() as started:

        def begin(machine: str, *, spool: str | None = None, shares: bool = False) -> Stepped:
            folder = tmp_path / machine
            folder.mkdir(exist_ok=True)
            # The store is the test's; by this address only the folder is chosen.
            chosen = replace(settings.store, url=f"sqlite:///{folder / 'pool.db'}", spool=spool)
            templates = settings.templates
            if shares:
                templates = {name: grouped(each) for name, each in templates.items()}
            here = replace(settings, store=chosen, templates=templates)
            daemon = Stepped(here, store, cvat, clock)
            started.callback(daemon.stop)
            return daemon

        yield begin


@pytest.fixture
def there() -> Iterator[Bucket]:
    with bucket() as made:
        yield made


def away_words(daemon: Stepped, request_id: str) -> str:
    """What a caller of the library, and one over HTTP, reads."""
    words = daemon.read(request_id).data_away
    with daemon.api as api:
        assert (api.get(f"/v1/requests/{request_id}").json["data_away"] or "") == words
        (item,) = api.get("/v1/requests").json["items"]
        assert (item["data_away"] or "") == words
    return words


def test_what_only_a_machine_that_is_away_has_waits_for_it(
    on: On, cvat: ScriptedCvat, tmp_path: Path
) -> None:
    first, second = on("first"), on("second")
    request = first.accept()
    assert first.process.spool.id != second.process.spool.id
    first.stop()
    second.advance(LATER)
    assert second.fill()
    second.serve()
    assert second.states(request) == {QUEUED}
    place = f"{socket.gethostname()} ({tmp_path / 'first' / 'pool.db.spool'})"
    words = away_words(second, request)
    assert words.startswith(f"its data is on {place}, not heard of since ")
    record = second.store.request(request)
    assert record is not None
    (seen,) = second.pool.say_away([record], Scope(tenant=""))
    assert seen.data_away == "its data is on another machine, which is away"
    status = second.pool.status()
    assert status.templates[0].waits_for is WaitReason.DATA
    assert any(
        line.startswith(f"1 request waits: its data is on {place}, not heard of since ")
        for line in troubles(status, now=second.clock.now())
    )
    again = on("first")
    assert away_words(second, request) == ""
    again.serve()
    assert again.states(request) == {IMPORTING}
    assert len(uploads(cvat)) == 1


def test_what_is_in_a_shared_spool_is_sent_by_another_at_once(
    on: On, there: Bucket, cvat: ScriptedCvat
) -> None:
    spool = f"s3://{there.name}/spool"
    first, second = on("first", spool=spool), on("second", spool=spool)
    request = first.accept()
    first.stop()
    second.renew()
    assert second.fill()
    assert second.serve() == 1
    assert second.states(request) == {IMPORTING}
    assert len(uploads(cvat)) == 1


def test_a_bucket_that_takes_its_time_holds_up_no_dispatching(
    on: On, there: Bucket, cvat: ScriptedCvat, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = f"s3://{there.name}/spool"
    first, second = (on(name, spool=spool, shares=True) for name in ("first", "second"))
    requests = [first.accept() for _ in range(3)]
    first.stop()
    second.renew()
    assert second.fill()
    shared, answers = second.process.spool.shared, threading.Event()
    assert shared is not None
    fetch = shared.fetch

    def slow(request_id: str) -> Iterator[bytes]:
        assert answers.wait(PATIENCE)
        return fetch(request_id)

    monkeypatch.setattr(shared, "fetch", slow)
    second.run("dispatch")
    assert second.states(*requests) == {QUEUED}
    answers.set()
    second.drain()
    second.serve()
    assert second.states(*requests) == {IMPORTING}
    assert len(uploads(cvat)) == 1, "they share a task all the same"


def test_a_bucket_that_is_away_refuses_what_comes(on: On, there: Bucket) -> None:
    daemon = on("first", spool=f"s3://{there.name}/spool")
    with away(there):
        answer = daemon.post(key="k")
        assert (answer.status, answer.json["type"].rpartition(":")[2]) == (503, "store")
        assert f"s3://{there.name}" in answer.json["detail"]
    assert daemon.spooled() == []
    assert daemon.store.requests().requests == ()
    assert daemon.post(key="k").status in (201, 202)


def test_what_waits_in_a_bucket_that_is_away_says_so_and_is_sent_after(
    on: On, there: Bucket, cvat: ScriptedCvat
) -> None:
    spool = f"s3://{there.name}/spool"
    first, second = on("first", spool=spool), on("second", spool=spool)
    request = first.accept()
    first.stop()
    second.renew()
    warm = second.fill()
    with away(there):
        second.run("dispatch")
        second.drain()
        second.renew()
        assert second.states(request) == {QUEUED}
        assert away_words(second, request).startswith("its data cannot be read: ")
    assert second.levels() == {"warm": warm}, "no task was used up"
    second.advance(LATER)
    second.serve()
    assert second.states(request) == {IMPORTING}
    assert len(uploads(cvat)) == 1
