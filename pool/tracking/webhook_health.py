"""Judge whether webhooks can be relied on, and polling left to them.

A webhook is a wake-up, and polling stays the truth: as long as deliveries come in time, polling
is a rare safety net; when the safety net has to find the jobs, polling is back. Each scope (a
project, or the organization) is judged by itself, by what all processes on the store have seen.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import PurePosixPath

from pool.clock import Clock
from pool.config.settings import Template
from pool.errors import StoreError
from pool.logs import get_logger
from pool.model import ImportRecord, Job, WebhookRecord
from pool.status import WebhookState
from pool.store import Store

log = get_logger(__name__)

#: After so many imports in a row that the safety net found first, a webhook counts as silent.
MISSES = 2
#: Seconds for which a judgement is used before the store is read again.
JUDGED_FOR = 1.0

#: The organization's webhook speaks for all templates.
ORGANIZATION = "organization"

#: Files that are one frame each.
_FRAMES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})


def webhook_state(record: WebhookRecord | None, *, heard: bool) -> WebhookState:
    """Return whether deliveries can be relied on. ``heard``: a daemon is there to receive them.

    A webhook is alive from its first delivery on, until the safety net has been first
    :data:`MISSES` times in a row; any delivery after that revives it.
    """
    if record is None:
        return WebhookState.NOT_INSTALLED
    if heard and record.heard_at is not None and record.missed < MISSES:
        return WebhookState.ALIVE
    return WebhookState.SILENT


def scope_of(
    template: Template | None, organization: str, templates: Mapping[str, Template]
) -> str | None:
    """Return which webhook announces the imports of a template; None when CVAT cannot have one, or
    there is no such template any more.

    With an organization, one webhook of it serves all templates as soon as one of them has
    labels of its own: a second one, of a project, would deliver everything twice.
    """
    if template is None:
        return None
    if organization and any(each.project is None for each in templates.values()):
        return ORGANIZATION
    return None if template.project is None else f"project:{template.project}"


def project_of(scope: str) -> int | None:
    """Return the project of a scope; None when it is the organization's."""
    return None if scope == ORGANIZATION else int(scope.partition(":")[2])


def whole_task(template: Template | None, importing: ImportRecord, job: Job) -> bool:
    """Return whether the job certainly is the only one of its task, so that no poll is needed.

    It is when the template makes one job a task and the job has as many frames as the
    import has files, each a single image. (With ``params`` that map
    files to jobs, the job would have fewer.)
    """
    if template is None:
        return False
    if template.task.segment_size or template.task.consensus_replicas:
        return False
    names = [name for member in importing.members for name in member.names]
    return (job.start_frame, job.stop_frame) == (0, len(names) - 1) and all(
        PurePosixPath(name).suffix.lower() in _FRAMES for name in names
    )


class WebhookHealth:
    """What this process knows of the webhooks. Thread-safe, and cheap to ask often.

    ``templates`` are those in force, which a reload may change.
    """

    def __init__(
        self, store: Store, templates: Mapping[str, Template], organization: str, *, clock: Clock
    ) -> None:
        self._store = store
        self._templates = templates
        self._organization = organization
        self._clock = clock
        self._guard = threading.Lock()
        self._states: dict[str, WebhookState] = {}
        self._judge_at = 0.0

    def alive(self, template: str) -> bool:
        """Whether the template's imports may be left to its webhook."""
        scope = scope_of(self._templates.get(template), self._organization, self._templates)
        if scope is None:
            return False
        with self._guard:
            now = self._clock.monotonic()
            if now >= self._judge_at:
                self._judge_at = now + JUDGED_FOR
                self._states = self._judge()
            return self._states.get(scope) is WebhookState.ALIVE

    def missed(self, template: str) -> None:
        """An import that was left to the webhook was found by polling."""
        scope = scope_of(self._templates.get(template), self._organization, self._templates)
        if scope is None:
            return
        with self._guard:
            self._judge_at = 0.0
        try:
            self._store.miss_webhook(scope)
        except StoreError as error:
            log.info("missed delivery not counted", scope=scope, why=str(error))

    def _judge(self) -> dict[str, WebhookState]:
        try:
            records = self._store.webhooks()
            heard = bool(records) and bool(self._store.daemons(now=self._clock.now()))
        except StoreError as error:
            log.info("webhooks not judged", why=str(error))
            return {}
        states = {scope: webhook_state(record, heard=heard) for scope, record in records.items()}
        for scope, state in states.items():
            before = self._states.get(scope)
            if before is not None and state is not before:
                log.info("webhook judged anew", scope=scope, state=state.value)
        return states
