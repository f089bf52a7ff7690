from __future__ import annotations

from collections.abc import Callable

from conformance import store_processes as processes
from conformance.store_scene import JOBS, NOW, Scene
from pool.model import TaskState, WebhookRecord
from pool.store import HEARD_FOR, Store

URL = "http://pool/webhooks/cvat"
INSTALLED = WebhookRecord(scope="project:3", hook_id=7, target_url=URL, installed_at=NOW)


def install(store: Store, scope: str = "project:3", *, hook_id: int = 7, now: float = NOW) -> bool:
    return store.keep_webhook(scope, hook_id=hook_id, target_url=URL, now=now)


def test_the_first_secret_is_kept(store: Store, open_another: Callable[[], Store]) -> None:
    assert store.webhook_secret() is None
    assert store.keep_webhook_secret("first") == "first"
    assert open_another().keep_webhook_secret("second") == "first"
    assert store.webhook_secret() == "first"


def test_of_many_processes_all_keep_one_secret(store: Store, store_url: str) -> None:
    kept = processes.run(processes.keep_secret, *[(store_url, secret) for secret in "abcd"])
    assert set(kept) == {store.webhook_secret()}


def test_a_webhook_is_kept_and_forgotten(store: Store) -> None:
    assert install(store)
    assert store.webhooks() == {"project:3": INSTALLED}
    assert install(store, "organization", hook_id=8)
    assert set(store.webhooks()) == {"project:3", "organization"}
    assert store.forget_webhook("organization")
    assert not store.forget_webhook("organization")
    assert set(store.webhooks()) == {"project:3"}


def test_what_was_heard_belongs_to_one_webhook(store: Store) -> None:
    install(store)
    store.hear_webhook(7, now=NOW + 1)
    assert not install(store, now=NOW + 2)
    assert store.webhooks()["project:3"].heard_at == NOW + 1
    assert install(store, hook_id=9, now=NOW + 3)
    record = store.webhooks()["project:3"]
    assert (record.hook_id, record.installed_at, record.heard_at) == (9, NOW + 3, None)


def test_a_delivery_is_written_down_now_and_then(store: Store) -> None:
    install(store)
    assert store.hear_webhook(7, now=NOW)
    assert not store.hear_webhook(7, now=NOW + HEARD_FOR / 2)
    assert store.webhooks()["project:3"].heard_at == NOW
    assert store.hear_webhook(7, now=NOW + HEARD_FOR)
    assert store.webhooks()["project:3"].heard_at == NOW + HEARD_FOR


def test_a_delivery_that_changes_nothing_writes_nothing(store: Store) -> None:
    install(store)
    store.hear_webhook(7, now=NOW)
    before = store.change_token()
    assert not store.hear_webhook(7, now=NOW + 1)
    assert not store.hear_webhook(99, now=NOW + 1)
    assert store.change_token() == before


def test_misses_are_counted_until_a_delivery_comes(store: Store) -> None:
    install(store)
    store.hear_webhook(7, now=NOW)
    assert store.miss_webhook("project:3")
    assert store.miss_webhook("project:3")
    assert not store.miss_webhook("project:4")
    assert store.webhooks()["project:3"].missed == 2
    assert store.hear_webhook(7, now=NOW + 1)
    record = store.webhooks()["project:3"]
    assert (record.missed, record.heard_at) == (0, NOW + 1)


def test_a_task_is_found_by_the_servers_id(store: Store, scene: Scene) -> None:
    warm = scene.warm()
    assert warm.task_id is not None
    assert store.task_on_server(warm.task_id) == (warm, None)
    opened = scene.importing()
    assert opened.task is not None
    assert opened.task.id == warm.id, "the oldest is taken"
    assert store.task_on_server(warm.task_id) == (
        scene.task(warm.id),
        store.import_record(scene.import_id(scene.request(opened.request).id)),
    )
    assert store.complete_import(warm.id, JOBS, now=NOW)
    found = store.task_on_server(warm.task_id)
    assert found is not None
    assert found[0].state is TaskState.READY
    assert store.task_on_server(999) is None


def test_a_lease_without_a_request_is_found_too(store: Store, scene: Scene) -> None:
    opened = scene.leased()
    assert opened.task is not None
    assert opened.task.task_id is not None
    assert store.task_on_server(opened.task.task_id) == (scene.task(opened.task.id), None)
