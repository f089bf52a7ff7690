"""When polling leaves imports to webhooks, and when it takes over, by a manual clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.daemons import ends
from support.hooked import PING, SCOPE, Imports, created
from support.scripted import ScriptedCvat

from pool.config.settings import Settings, Template
from pool.model import RequestState
from pool.observability.status import read_status
from pool.process import Process
from pool.status import WebhookState
from pool.tracking.webhook_health import JUDGED_FOR
from pool.tracking.webhook_receiver import TOO_LATE, WebhookReceiver

#: The usual time of an import.
USUAL = 0.2


@pytest.fixture
def template(template: Template) -> Template:
    return replace(template, labels=(), project=12)


# --- Polling as the safety net ------------------------------------------------------------------


def hook_state(engine: Process, settings: Settings) -> WebhookState:
    return (
        read_status(engine.store, settings, engine.templates, now=engine.clock.now())
        .templates[0]
        .hooks
    )


def learn(engine: Process, deliveries: WebhookReceiver, imports: Imports, count: int = 5) -> None:
    """Let imports be announced in their usual time."""
    for _ in range(count):
        task_id = imports.begin()
        engine.clock.sleep(USUAL)
        deliveries.handle(created(task_id))


@pytest.fixture
def alive(hearing: None, engine: Process, deliveries: WebhookReceiver, imports: Imports) -> None:
    deliveries.handle(PING)
    engine.clock.sleep(JUDGED_FOR)
    learn(engine, deliveries, imports)


@pytest.mark.usefixtures("alive")
def test_polling_waits_while_webhooks_are_alive(
    engine: Process, imports: Imports, settings: Settings, cvat: ScriptedCvat
) -> None:
    imports.begin()
    due = engine.tracker.seconds_until_due()
    assert due == pytest.approx(2.5 * USUAL, rel=0.3)
    assert hook_state(engine, settings) is WebhookState.ALIVE
    assert cvat.count("jobs") == 0


@pytest.mark.usefixtures("alive")
def test_a_lost_delivery_is_made_up_for(
    engine: Process, imports: Imports, settings: Settings, cvat: ScriptedCvat
) -> None:
    task_id = imports.begin()
    cvat.make_ready(task_id)
    engine.clock.sleep(engine.tracker.seconds_until_due() or 0.0)
    engine.tracker.run_once()
    assert imports.state(task_id) is RequestState.READY
    assert engine.store.webhooks()[SCOPE].missed == 1
    assert hook_state(engine, settings) is WebhookState.ALIVE, "one may get lost"


def lose(engine: Process, imports: Imports, cvat: ScriptedCvat) -> int:
    task_id = imports.begin()
    cvat.make_ready(task_id)
    engine.clock.sleep(engine.tracker.seconds_until_due() or 0.0)
    engine.tracker.run_once()
    assert imports.state(task_id) is RequestState.READY
    return task_id


@pytest.mark.usefixtures("alive")
def test_polling_takes_over_when_deliveries_stop_and_gives_way_again(
    engine: Process,
    deliveries: WebhookReceiver,
    imports: Imports,
    settings: Settings,
    cvat: ScriptedCvat,
) -> None:
    for _ in range(2):
        lost = lose(engine, imports, cvat)
    assert hook_state(engine, settings) is WebhookState.SILENT
    status = read_status(
        engine.store, settings, engine.templates, now=engine.clock.now()
    ).templates[0]
    assert status.hooks_silent_since is not None
    last = imports.begin()
    assert (engine.tracker.seconds_until_due() or 0.0) < 1.2 * USUAL
    engine.tracker.forget(f"pooled{last - 100}")
    # A polled import is always found before its delivery, which comes a little later.
    deliveries.handle(created(lost))
    assert hook_state(engine, settings) is WebhookState.ALIVE
    engine.clock.sleep(JUDGED_FOR)
    imports.begin()
    assert (engine.tracker.seconds_until_due() or 0.0) > 1.5 * USUAL


@pytest.mark.usefixtures("alive")
def test_deliveries_that_are_late_are_not_relied_on(
    engine: Process,
    deliveries: WebhookReceiver,
    imports: Imports,
    settings: Settings,
    cvat: ScriptedCvat,
) -> None:
    lost = [lose(engine, imports, cvat) for _ in range(2)]
    engine.clock.sleep(TOO_LATE + 0.1)
    for task_id in lost:
        deliveries.handle(created(task_id))
    assert hook_state(engine, settings) is WebhookState.SILENT


@pytest.mark.usefixtures("alive")
def test_without_a_daemon_nobody_hears(
    engine: Process, imports: Imports, settings: Settings
) -> None:
    ends(engine.store, now=engine.clock.now())
    assert hook_state(engine, settings) is WebhookState.SILENT
    engine.clock.sleep(JUDGED_FOR)
    imports.begin()
    assert (engine.tracker.seconds_until_due() or 0.0) < 1.2 * USUAL


@pytest.mark.usefixtures("hearing")
def test_before_the_first_delivery_polling_does_the_work(
    engine: Process, deliveries: WebhookReceiver, imports: Imports, settings: Settings
) -> None:
    assert hook_state(engine, settings) is WebhookState.SILENT
    imports.begin()
    assert (engine.tracker.seconds_until_due() or 0.0) < USUAL


@pytest.mark.usefixtures("alive")
def test_the_end_of_an_import_in_another_process_is_noticed_without_a_call(
    engine: Process, imports: Imports, cvat: ScriptedCvat
) -> None:
    task_id = imports.begin()
    job = cvat_job(task_id)
    engine.store.complete_import(f"pooled{task_id - 100}", [job], now=engine.clock.now())
    engine.clock.sleep(engine.tracker.seconds_until_due() or 0.0)
    engine.tracker.run_once()
    assert engine.tracker.seconds_until_due() is None
    assert cvat.count("jobs") == 0


def cvat_job(task_id: int) -> Any:
    scripted = ScriptedCvat()
    scripted.make_ready(task_id)
    return scripted.jobs_there[task_id][0]
