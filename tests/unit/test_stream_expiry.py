"""When an open stream is to be closed."""

from __future__ import annotations

import pytest

from pool.config.settings import SlotSettings, Template
from pool.maintenance.stream_expiry import ENDED, IDLE, why_close
from pool.model import Stream
from pool.store import USED_WITHIN

STREAM = Stream(id="s", template="camera", name="camera 7", opened_at=0.0, last_at=100.0)


def template(*, per_task: int) -> Template:
    slots = SlotSettings(
        size="64x48",
        storage="file:///mnt/share",
        server="share:pool",
        cache_storage=1,
        per_task=per_task,
        stream_idle=60.0,
    )
    return Template(name="camera", slots=slots)


@pytest.mark.parametrize(
    ("of", "now", "why"),
    [
        (template(per_task=5), 160.0 + USED_WITHIN, ""),
        (template(per_task=5), 160.1 + USED_WITHIN, IDLE),
        (template(per_task=1), 100.0, ENDED),
        (Template(name="camera"), 100.0, ENDED),
        (None, 100.0, ENDED),
    ],
)
def test_why_a_stream_is_closed(of: Template | None, now: float, why: str) -> None:
    assert why_close(STREAM, of, now=now) == why
