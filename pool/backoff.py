"""How long to wait after failures in a row, the same for all that is tried again."""

from __future__ import annotations

import random
from typing import Final

#: Doublings after which a pause grows no more, so that a long outage overflows no float.
MOST_DOUBLINGS: Final = 30


def backoff(
    failures: int,
    *,
    base: float,
    cap: float,
    rng: random.Random | None = None,
    least: float = 0.1,
) -> float:
    """Return the seconds to wait after so many failures in a row, counted from 1.

    Exponential with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/): drawn evenly from
    ``least`` to the whole of a ceiling that begins with ``base`` and doubles up to ``cap``.
    """
    ceiling = min(cap, base * 2.0 ** min(max(0, failures - 1), MOST_DOUBLINGS))
    draw = random.uniform if rng is None else rng.uniform
    return draw(least * ceiling, ceiling)
