"""The one worker that delivers all webhooks of the server, one after another."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
from collections import deque
from collections.abc import Callable

import urllib3

from .records import Delivery, Json, Webhook
from .render import timestamp
from .settings import SimulatorSettings
from .state import State, now
from .stats import Stats
from .timing import Processor

logger = logging.getLogger(__name__)

#: Deliveries of a webhook that can be looked up later; the oldest are forgotten first.
KEPT_DELIVERIES = 2000
#: How much of a receiver's answer is kept, in bytes.
KEPT_ANSWER = 64 * 1024

BAD_GATEWAY = 502
GATEWAY_TIMEOUT = 504


class Sender:
    """A queue of deliveries and its one worker."""

    def __init__(
        self,
        settings: SimulatorSettings,
        state: State,
        stats: Stats,
        processor: Processor,
        on_change: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._state = state
        self._stats = stats
        self._processor = processor
        #: Told +1 and -1 for each delivery begun and ended, so that others can wait for silence.
        self._on_change = on_change
        self._queue: deque[tuple[Webhook, Json, bool]] = deque()
        self._something = asyncio.Event()
        self._connections = urllib3.PoolManager(
            retries=False,
            timeout=urllib3.Timeout(total=settings.webhook_timeout),
            headers={
                "User-Agent": f"CVAT/{settings.version} simulator",
                "Accept-Encoding": "gzip, deflate",
                "Accept": "*/*",
            },
        )

    def put(self, webhook: Webhook, payload: Json, *, redelivery: bool = False) -> None:
        """Queue a delivery and return at once."""
        self._queue.append((webhook, payload, redelivery))
        self._on_change(1)
        self._something.set()

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            while not self._queue:
                self._something.clear()
                await self._something.wait()
            webhook, payload, redelivery = self._queue.popleft()
            try:
                await self._processor.use(self._settings.timings.webhook_delivery)
                if webhook.id in self._state.webhooks:
                    await self.deliver(webhook, payload, redelivery=redelivery)
            except Exception:
                # One odd address must not silence all other webhooks.
                logger.exception("webhook %d was not delivered", webhook.id)
            finally:
                self._on_change(-1)

    def close(self) -> None:
        self._connections.clear()

    async def deliver(self, webhook: Webhook, payload: Json, *, redelivery: bool) -> Delivery:
        """Send one payload now and keep what came of it.

        A receiver that cannot be reached is a delivery with status 502, one that does not
        answer in time with 504; nothing is tried twice.
        """
        created = now()
        body = json.dumps(payload).encode()
        headers = {"Content-Type": "application/json", "Connection": "keep-alive"}
        if webhook.secret:
            digest = hmac.new(webhook.secret.encode(), body, hashlib.sha256).hexdigest()
            headers["X-Signature-256"] = f"sha256={digest}"
        started = time.perf_counter()
        status, answer = await asyncio.to_thread(self._post, webhook.target_url, body, headers)
        delivery = Delivery(
            id=next(self._state.ids.delivery),
            webhook_id=webhook.id,
            event=payload["event"],
            status_code=status,
            redelivery=redelivery,
            request_duration=round((time.perf_counter() - started) * 1000),
            created=created,
            updated=now(),
            changed_fields=",".join(payload.get("changes", ())),
            request=payload,
            response=answer,
        )
        self._keep(webhook, delivery)
        return delivery

    def _post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        merged = {**self._connections.headers, **headers}
        try:
            response = self._connections.request(
                "POST", url, body=body, headers=merged, redirect=False
            )
        except urllib3.exceptions.TimeoutError:
            return GATEWAY_TIMEOUT, ""
        except urllib3.exceptions.HTTPError:
            return BAD_GATEWAY, ""
        return response.status, response.data[:KEPT_ANSWER].decode(errors="replace")

    def _keep(self, webhook: Webhook, delivery: Delivery) -> None:
        self._stats.deliveries += 1
        self._state.deliveries[delivery.id] = delivery
        webhook.deliveries.append(delivery.id)
        if len(webhook.deliveries) > KEPT_DELIVERIES:
            self._state.deliveries.pop(webhook.deliveries.pop(0), None)


def delivery_json(delivery: Delivery) -> Json:
    return {
        "id": delivery.id,
        "webhook_id": delivery.webhook_id,
        "event": delivery.event,
        "status_code": delivery.status_code,
        "redelivery": delivery.redelivery,
        "attempt": 1,
        "request_duration": delivery.request_duration,
        "created_date": timestamp(delivery.created),
        "updated_date": timestamp(delivery.updated),
        "changed_fields": delivery.changed_fields,
        "request": delivery.request,
        "response": delivery.response,
    }
