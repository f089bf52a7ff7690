"""Size a template's pool: a base-stock rule on the demand that was seen.

If hand-outs come at a rate and one refill takes a lead time, then the number asked for during
that time is about Poisson distributed, and holding its ``hit_rate`` quantile serves that share
of the callers at once (the (S-1, S) policy; Zipkin, "Foundations of Inventory Management",
2000, section 6.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pool.config.settings import PoolSettings, Template
from pool.model import Demand, Prewarm
from pool.store import Store

#: Seconds of history from which the rate is taken; the busiest of them counts.
WINDOWS = (60.0, 300.0, 900.0)
#: Seconds over which the rate of now is taken.
NOW = 60.0
#: Seconds that one create takes before any was measured, and the least that sizing assumes:
#: refilling also waits for the foreground.
LEAD_TIME = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """``size`` tasks should be warm or on their way; at ``reorder_point`` or fewer warm ones
    refilling no longer waits for the foreground.

    ``rate`` is that of the last :data:`NOW` seconds, for people. The size is taken from the
    ``peak_rate``, that of the busiest window, and the ``lead_time`` in seconds. Rates are in
    hand-outs a second.
    """

    size: int
    reorder_point: int
    rate: float
    peak_rate: float
    lead_time: float


def current_target(store: Store, template: Template, *, now: float) -> Target:
    """Return the target of a template's pool now: the only one, for refilling and for people."""
    return target_size(
        store.demand(template.name, since=now - max(WINDOWS)),
        template.pool,
        lead_time=max(LEAD_TIME, store.lead_times().get(template.name, 0.0)),
        now=now,
        prewarm=store.prewarms().get(template.name),
    )


def rate_over(window: float, history: Sequence[Demand], *, now: float) -> float:
    """Return the hand-outs a second in the last ``window`` seconds.

    What is yet to come was seen before the clock was set back, at a time that is not known.
    """
    return sum(bucket.total for bucket in history if now - window < bucket.start <= now) / window


def demand_rate(history: Sequence[Demand], *, now: float) -> float:
    """Return the hand-outs a second in the busiest of :data:`WINDOWS`."""
    return max(rate_over(window, history, now=now) for window in WINDOWS)


def poisson_quantile(mean: float, probability: float) -> int:
    """Return the smallest ``k`` that a Poisson variable does not exceed with ``probability``."""
    if mean <= 0:
        return 0
    if mean > 500:
        from statistics import NormalDist

        # The sum below would underflow; the normal approximation is within one here.
        return math.ceil(mean + NormalDist().inv_cdf(probability) * math.sqrt(mean))
    term = math.exp(-mean)
    total, k = term, 0
    while total < probability:
        k += 1
        term *= mean / k
        total += term
        if term == 0.0:
            break
    return k


def target_size(
    history: Sequence[Demand],
    settings: PoolSettings,
    *,
    lead_time: float,
    now: float,
    prewarm: Prewarm | None = None,
) -> Target:
    """Return the target for one template.

    ``lead_time`` is how many seconds pass from the decision to create one task until it is
    warm, waiting for the foreground included. A ``prewarm`` counts while its time lasts.
    """
    rate = demand_rate(history, now=now)
    wanted = poisson_quantile(rate * lead_time, settings.hit_rate)
    asked_for = prewarm.size if prewarm is not None and prewarm.active(now) else 0
    size = min(settings.max_size, max(settings.min_size, wanted, asked_for))
    # A fifth of the target is the least that counts as "about to run dry", so that a small pool
    # without history still refills in time.
    reorder_point = min(max(wanted // 2, size // 5), max(size - 1, 0))
    return Target(
        size=size,
        reorder_point=reorder_point,
        rate=rate_over(NOW, history, now=now),
        peak_rate=rate,
        lead_time=lead_time,
    )
