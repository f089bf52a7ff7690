"""The one worker that delivers all webhooks of the server, one after another."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import urllib3

from .fault_table import Active, Faults
from .faults import (
    DoubledWebhook,
    ForgedWebhook,
    LateWebhook,
    LostWebhook,
    ReversedWebhooks,
    WebhookFault,
)
from .records import Delivery, Json, Webhook
from .render import timestamp
from .settings import SimulatorSettings
from .state import State
from .stats import Stats
from .timing import Processor

logger = logging.getLogger(__name__)

#: Deliveries of a webhook that can be looked up later; the oldest are forgotten first.
KEPT_DELIVERIES = 2000
#: How much of a receiver's answer is kept, in bytes.
KEPT_ANSWER = 64 * 1024

BAD_GATEWAY = 502
GATEWAY_TIMEOUT = 504


@dataclass(frozen=True, slots=True)
class Item:
    """A delivery on its way."""

    webhook: Webhook
    payload: Json
    redelivery: bool = False
    forged: bool = False


class Sender:
    """A queue of deliveries and its one worker."""

    def __init__(
        self,
        settings: SimulatorSettings,
        state: State,
        stats: Stats,
        processor: Processor,
        faults: Faults,
        on_change: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._state = state
        self._stats = stats
        self._processor = processor
        self._faults = faults
        #: Called with +1 and -1 for each delivery begun and ended, so that tests can wait for it.
        self._on_change = on_change
        self._queue: deque[Item] = deque()
        #: Held up by faults: for a time, and until there are enough of them.
        self._late: dict[asyncio.TimerHandle, list[Item]] = {}
        self._turning: dict[int, list[Item]] = {}
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
        items = [Item(webhook, payload, redelivery)]
        faults = self._faults.firing(WebhookFault, payload["event"])
        self._on_change(1)
        if faults:
            items = self._disturb(items, faults)
        self._queue.extend(items)
        self._something.set()

    def _disturb(self, items: list[Item], faults: list[Active[WebhookFault]]) -> list[Item]:
        """What faults make of a delivery: those that are to be sent now, in their order."""
        for active in faults:
            before = len(items)
            match active.fault:
                case LostWebhook():
                    items = []
                case DoubledWebhook(copies=copies):
                    items = items * copies
                case ForgedWebhook():
                    items = [dataclasses.replace(item, forged=True) for item in items]
                case LateWebhook(seconds=seconds, to=to):
                    self._send_later(active.seconds(seconds, to), items)
                    return []
                case ReversedWebhooks(count=count):
                    return self._turn_round(active, items, count)
            self._on_change(len(items) - before)
        return items

    def _send_later(self, seconds: float, items: list[Item]) -> None:
        def send() -> None:
            self._queue.extend(self._late.pop(timer))
            self._something.set()

        timer = asyncio.get_running_loop().call_later(seconds, send)
        self._late[timer] = items

    def _turn_round(
        self, active: Active[WebhookFault], items: list[Item], count: int
    ) -> list[Item]:
        if active.id not in self._turning:
            self._turning[active.id] = []
            active.when_released(lambda: self._send_turned(active.id))
        held = self._turning[active.id]
        held += items
        if len(held) < count:
            return []
        turned = held[::-1]
        held.clear()
        return turned

    def _send_turned(self, number: int) -> None:
        self._queue.extend(reversed(self._turning.pop(number)))
        self._something.set()

    def clear(self) -> None:
        """Lose the queue, with what faults hold up."""
        for timer in self._late:
            timer.cancel()
        lost = len(self._queue)
        self._queue.clear()
        for held in (*self._late.values(), *self._turning.values()):
            lost += len(held)
            held.clear()
        self._late.clear()
        self._on_change(-lost)

    async def run(self) -> None:
        """Deliver for ever."""
        while True:
            while not self._queue:
                self._something.clear()
                await self._something.wait()
            item = self._queue.popleft()
            try:
                await self._processor.use(self._settings.timings.webhook_delivery)
                if item.webhook.id in self._state.webhooks:
                    await self.deliver(item)
            except Exception:
                # One odd address must not silence all other webhooks.
                logger.exception("webhook %d was not delivered", item.webhook.id)
            finally:
                self._on_change(-1)

    def close(self) -> None:
        self._connections.clear()

    async def deliver(self, item: Item) -> Delivery:
        """Send one payload now and keep what came of it.

        A receiver that cannot be reached is a delivery with status 502, one that does not
        answer in time with 504; nothing is tried twice.
        """
        webhook, payload = item.webhook, item.payload
        created = self._state.now()
        body = json.dumps(payload).encode()
        headers = {"Content-Type": "application/json", "Connection": "keep-alive"}
        if webhook.secret or item.forged:
            secret = "a forger's own" if item.forged else webhook.secret
            digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
            headers["X-Signature-256"] = f"sha256={digest}"
        started = time.perf_counter()
        status, answer = await asyncio.to_thread(self._post, webhook.target_url, body, headers)
        delivery = Delivery(
            id=next(self._state.ids.delivery),
            webhook_id=webhook.id,
            event=payload["event"],
            status_code=status,
            redelivery=item.redelivery,
            request_duration=round((time.perf_counter() - started) * 1000),
            created=created,
            updated=self._state.now(),
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
