"""What deliveries do to imports, on a real store, with a scripted server and a manual clock."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
from support.clock import ManualClock
from support.hooked import PING, Imports, body, completed, created
from support.scripted import ScriptedCvat
from support.waiting import PATIENCE

from pool.config.settings import TaskSettings, Template
from pool.cvat.webhooks import signature_of
from pool.model import RequestState, TaskState
from pool.process import Process
from pool.store import Store
from pool.tracking import webhook_receiver as module
from pool.tracking.webhook_receiver import Effect, WebhookReceiver

#: Far longer than an import takes.
LONG = 5.0


@pytest.fixture
def template(template: Template) -> Template:
    return replace(template, labels=(), project=12)


# --- Ending waits -------------------------------------------------------------------------------


def test_the_only_job_is_taken_from_the_delivery(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    finished: list[object] = []
    engine.tracker.listen(finished.append)
    task_id = imports.begin()
    assert deliveries.handle(created(task_id)) is Effect.DELIVERED
    assert imports.state(task_id) is RequestState.READY
    (job,) = engine.store.jobs_of("pooled1")
    assert (job.id, job.url) == (1010, "/tasks/101/jobs/1010")
    assert cvat.count("jobs") == 0
    assert engine.tracker.seconds_until_due() is None
    assert len(finished) == 1


def test_one_of_several_jobs_is_a_reason_to_ask(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    task_id = imports.begin("a.jpg", "b.jpg")
    cvat.make_ready(task_id, jobs=2)
    assert engine.tracker.seconds_until_due()
    assert deliveries.handle(created(task_id)) is Effect.EXPEDITED
    assert engine.tracker.seconds_until_due() == 0
    assert deliveries.handle(created(task_id)) is Effect.EXPEDITED
    engine.tracker.run_once()
    assert imports.state(task_id) is RequestState.READY
    assert len(engine.store.jobs_of("pooled1")) == 2
    assert deliveries.handle(created(task_id)) is Effect.IGNORED


def test_a_finished_import_is_a_reason_to_ask(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    task_id = imports.begin()
    cvat.make_ready(task_id)
    assert deliveries.handle(completed(task_id)) is Effect.EXPEDITED
    engine.tracker.run_once()
    assert imports.state(task_id) is RequestState.READY


def test_a_delivery_during_a_poll_that_came_too_early_makes_another(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    task_id = imports.begin("a.jpg", "b.jpg")
    deliveries.handle(completed(task_id))
    cvat.before = lambda _: cast(None, deliveries.handle(completed(task_id)))
    engine.tracker.run_once()
    assert imports.state(task_id) is RequestState.IMPORTING
    assert engine.tracker.seconds_until_due() == 0


def test_a_failed_import_ends_in_cvats_words(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    task_id = imports.begin()
    assert deliveries.handle(completed(task_id, "failed", "no image\n")) is Effect.FAILED
    record = imports.read(1)
    assert (record.state, record.error_code) == (RequestState.FAILED, "import-failed")
    assert record.error == "no image"
    assert cvat.calls == []
    assert engine.tracker.seconds_until_due() is None


def test_the_request_of_another_process_is_completed_and_finished(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    finished: list[Any] = []
    engine.tracker.listen(finished.append)
    task_id = imports.begin(owner="elsewhere")
    assert deliveries.handle(created(task_id)) is Effect.DELIVERED
    assert imports.state(task_id) is RequestState.READY
    assert [each.task_id for each in finished] == [task_id], "it gets its name here"
    assert cvat.count("jobs") == 0
    task_id = imports.begin(owner="elsewhere")
    deliveries.handle(completed(task_id, "failed", "broken"))
    assert imports.read(2).error == "broken"


def test_the_jobs_of_another_processs_request_are_asked_for_once(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    task_id = imports.begin("a.jpg", "b.jpg", owner="elsewhere")
    assert deliveries.handle(created(task_id)) is Effect.EXPEDITED
    engine.tracker.run_once()
    assert engine.tracker.seconds_until_due() is None, "it is the other one's to ask again"
    cvat.make_ready(task_id, jobs=2)
    deliveries.handle(created(task_id))
    engine.tracker.run_once()
    assert imports.state(task_id) is RequestState.READY


@pytest.mark.parametrize(
    ("doubt", "found", "end"),
    [
        ({"frames": ("a.jpg",)}, "a.jpg", RequestState.READY),
        # Its data is in the spool: it gets another task.
        ({"frames": ("a.jpg",)}, "theirs.jpg", RequestState.QUEUED),
        ({"answered": False}, "a.jpg", RequestState.READY),
        # The process that sends it is to find out.
        ({"answered": False}, "theirs.jpg", RequestState.UPLOADING),
    ],
)
def test_the_frames_of_another_processs_import_in_doubt_are_compared(
    deliveries: WebhookReceiver,
    engine: Process,
    imports: Imports,
    cvat: ScriptedCvat,
    doubt: dict[str, Any],
    found: str,
    end: RequestState,
) -> None:
    task_id = imports.begin(owner="elsewhere", **doubt)
    cvat.make_ready(task_id)
    cvat.frames_there[task_id] = (found,)
    deliveries.handle(created(task_id))
    engine.tracker.run_once()
    assert imports.state(task_id) is end
    assert engine.tracker.seconds_until_due() is None


def test_the_upload_of_a_callers_own_is_noticed(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    task_id = imports.begin(with_request=False)
    cvat.make_ready(task_id)
    assert deliveries.handle(created(task_id)) is Effect.EXPEDITED
    engine.tracker.run_once()
    task = engine.store.task("pooled1")
    assert task is not None
    assert task.state is TaskState.READY


@pytest.mark.parametrize(
    "sent",
    [created(999), completed(999), completed(999, "failed"), body("update:task"), PING, b"?"],
)
def test_what_is_not_about_an_import_changes_nothing(
    deliveries: WebhookReceiver, imports: Imports, cvat: ScriptedCvat, sent: bytes
) -> None:
    task_id = imports.begin()
    assert deliveries.handle(sent) is Effect.IGNORED
    assert imports.state(task_id) is RequestState.IMPORTING
    assert cvat.calls == []


def test_duplicates_and_replays_are_harmless(
    deliveries: WebhookReceiver, engine: Process, imports: Imports
) -> None:
    task_id = imports.begin()
    deliveries.handle(created(task_id))
    for replay in (created(task_id), completed(task_id), completed(task_id, "failed", "x")):
        assert deliveries.handle(replay) is Effect.IGNORED
    assert imports.state(task_id) is RequestState.READY
    assert len(engine.store.jobs_of("pooled1")) == 1


def test_whoever_is_second_does_nothing(
    deliveries: WebhookReceiver, engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    """A delivery and a poll may find the same jobs at the same time."""
    finished: list[object] = []
    engine.tracker.listen(finished.append)
    task_id = imports.begin()
    cvat.make_ready(task_id)
    cvat.before = lambda _: cast(None, deliveries.handle(created(task_id)))
    engine.clock.sleep(LONG)
    engine.tracker.run_once()
    assert cvat.count("jobs") == 1
    assert len(finished) == 1
    assert engine.tracker.seconds_until_due() is None


# --- Between the HTTP server and the thread -----------------------------------------------------


def test_the_secret_may_be_made_after_the_start(
    deliveries: WebhookReceiver, store: Store, clock: ManualClock
) -> None:
    assert not deliveries.authentic(PING, signature_of(PING, "made later"))
    store.keep_webhook_secret("made later")
    clock.advance(1.0)
    assert deliveries.authentic(PING, signature_of(PING, "made later"))
    assert not deliveries.authentic(PING, signature_of(PING, "another"))
    assert not deliveries.authentic(PING, "")


def test_wrong_signatures_do_not_make_the_store_busy(
    deliveries: WebhookReceiver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[None] = []
    monkeypatch.setattr(store, "webhook_secret", lambda: reads.append(None), raising=False)
    for _ in range(100):
        assert not deliveries.authentic(PING, "sha256=wrong")
    assert len(reads) == 1


def test_what_was_seen_is_dropped_and_what_is_too_much_refused(
    deliveries: WebhookReceiver, imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[bytes] = []
    monkeypatch.setattr(deliveries, "handle", handled.append)
    monkeypatch.setattr(module, "REMEMBERED", 2)
    for signature in ("a", "a", "b", "c", "c", "a"):
        assert deliveries.put(signature.encode(), signature)
    deliveries.start()
    deliveries.stop()
    assert handled == [b"a", b"b", b"c", b"a"]
    for number in range(module.WAITING):
        assert deliveries.put(b"", f"sha256={number}")
    assert not deliveries.put(b"", "one more")


def test_a_stop_does_not_wait_for_all_that_has_come(
    deliveries: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes as long as it likes, and as many wait behind it as may."""
    handled: list[bytes] = []
    begun, go = threading.Event(), threading.Event()

    def handle(body: bytes) -> None:
        begun.set()
        assert go.wait(PATIENCE)
        handled.append(body)

    monkeypatch.setattr(deliveries, "handle", handle)
    deliveries.start()
    assert deliveries.put(b"first", "first")
    assert begun.wait(PATIENCE)
    for number in range(module.WAITING):
        assert deliveries.put(b"", f"sha256={number}")
    *_, thread = [each for each in threading.enumerate() if each.name == "deliveries"]
    with ThreadPoolExecutor(1) as threads:
        stopped = threads.submit(deliveries.stop, 0.05)
        try:
            stopped.result(PATIENCE)
        finally:
            go.set()
    thread.join(PATIENCE)
    assert handled == [b"first"]


def test_one_odd_delivery_does_not_silence_the_others(
    deliveries: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    handled: list[bytes] = []

    def handle(body: bytes) -> None:
        handled.append(body)
        if len(handled) == 1:
            raise RuntimeError

    monkeypatch.setattr(deliveries, "handle", handle)
    deliveries.put(b"1", "1")
    deliveries.put(b"2", "2")
    deliveries.start()
    deliveries.stop()
    assert handled == [b"1", b"2"]


def test_several_jobs_a_task_are_never_taken_from_one_delivery(
    engine: Process, deliveries: WebhookReceiver, imports: Imports, template: Template
) -> None:
    cut = replace(template, task=TaskSettings(segment_size=1))
    changed = WebhookReceiver(
        engine.store,
        engine.tracker,
        {template.name: cut},
        lambda *_: "",
        clock=engine.clock,
    )
    assert changed.handle(created(imports.begin())) is Effect.EXPEDITED
