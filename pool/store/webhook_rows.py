"""What a store must do for the webhooks: a part of :class:`pool.store.base.Store`, whose rules
hold here too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from pool.model import PooledTask, RequestRecord, WebhookRecord

#: Seconds for which a webhook that was heard counts as heard without being written down again.
HEARD_FOR = 5.0


class WebhookRows(Protocol):
    """The installed webhooks, and the tasks that their deliveries are about."""

    def webhook_secret(self) -> str | None:
        """What CVAT signs its deliveries with; None before :meth:`keep_webhook_secret`."""

    def keep_webhook_secret(self, secret: str) -> str:
        """Keep the secret, unless there is one. Answers the one that is kept: of several
        processes that bring one, all get the same."""

    def webhooks(self) -> Mapping[str, WebhookRecord]:
        """The installed webhooks by scope."""

    def keep_webhook(self, scope: str, *, hook_id: int, target_url: str, now: float) -> bool:
        """A webhook is installed, in place of the scope's one before. False when it is the same
        as that: then what is known of its deliveries stays."""

    def forget_webhook(self, scope: str) -> bool:
        """A webhook was removed; False when there was none."""

    def hear_webhook(self, hook_id: int, *, now: float) -> bool:
        """A delivery came: ``heard_at`` is now and ``missed`` is 0. False, and nothing is
        written, when that stands there already, give or take :data:`HEARD_FOR`."""

    def miss_webhook(self, scope: str) -> bool:
        """An import that was left to the scope's webhook was found first by polling."""

    def task_on_server(self, task_id: int) -> tuple[PooledTask, RequestRecord | None] | None:
        """The task that has CVAT's id ``task_id``, in whatever state, with the request that it
        serves, if it serves one."""
