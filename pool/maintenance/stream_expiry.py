"""Close streams that no request uses any more: idle ones, and those of a template that has no tasks
that can grow any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pool.clock import Clock
from pool.config.settings import Template
from pool.logs import get_logger
from pool.model import Stream
from pool.store import USED_WITHIN, Store

log = get_logger(__name__)

#: Why slots of streams are retired, as their rows have it.
CLOSED: Final = "the stream is closed"
IDLE: Final = "the stream was idle"
ENDED: Final = "the template has no streams any more"


class StreamExpiry:
    """Closes streams; what is left of their tasks is retired."""

    def __init__(self, store: Store, templates: Mapping[str, Template], *, clock: Clock) -> None:
        self._store = store
        self._templates = templates
        self._clock = clock

    def run_once(self) -> int:
        """Close what is due now; return how many streams that were."""
        closed = 0
        for each in self._store.streams():
            stream, now = each.stream, self._clock.now()
            reason = why_close(stream, self._templates.get(stream.template), now=now)
            if reason and self._store.close_stream(stream.id, reason=reason, now=now):
                log.info("stream closed", stream=stream.name, template=stream.template, why=reason)
                closed += 1
        self._store.retire_of_closed_streams(reason=CLOSED, now=self._clock.now())
        return closed


def why_close(stream: Stream, template: Template | None, *, now: float) -> str:
    """Return why an open stream is to be closed; "" where it is not."""
    if template is None or template.slots is None or template.slots.per_task == 1:
        return ENDED
    return IDLE if now - stream.last_at > template.slots.stream_idle + USED_WITHIN else ""
