"""The history of the levels, rolled up: the latest in small steps, older ones in larger ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pool.model import LevelRecord, LevelSample
from pool.store.connections import Connected
from pool.store.records import select, text

#: Seconds for which levels are kept, by the step in seconds that they are rolled up to.
STEPS: Final[Mapping[int, float]] = {10: 3600.0, 60: 6 * 3600.0, 600: 7 * 86400.0}


class LevelHistory(Connected):
    """The rows of the history of levels: one for each template, step and moment."""

    def keep_levels(self, samples: Mapping[str, LevelSample], *, now: float) -> None:
        """Keep the levels of templates as they are now, in all :data:`STEPS`, and forget what is
        too old, also of templates that there are no more; and what is still to come, by a clock
        that was set back."""
        with self.connections.writing() as db:
            for template, sample in samples.items():
                rows: list[str] = []
                moments: dict[str, float] = {}
                for step in STEPS:
                    rows.append(
                        f"(:step{step}, :at{step}, :template, 1, :warm, :warm, :creating, :target)"
                    )
                    moments |= {f"step{step}": step, f"at{step}": now // step * step}
                db.later(
                    f"""
                    INSERT INTO levels (step, at, template, samples, warm, least, creating, target)
                    VALUES {", ".join(rows)}
                    ON CONFLICT (step, at, template) DO UPDATE
                    SET samples = levels.samples + 1,
                        warm = levels.warm
                               + (excluded.warm - levels.warm) / (levels.samples + 1),
                        least = {db.least("levels.least", "excluded.least")},
                        creating = levels.creating
                                   + (excluded.creating - levels.creating) / (levels.samples + 1),
                        target = excluded.target
                    """,
                    template=text(template),
                    warm=float(sample.warm),
                    creating=float(sample.creating),
                    target=float(sample.target),
                    **moments,
                )
            for step, kept_for in STEPS.items():
                db.later(
                    "DELETE FROM levels WHERE step = :step AND (at < :oldest OR at > :now)",
                    step=step,
                    oldest=now - kept_for - step,
                    now=now,
                )

    def level_history(self, step: int, *, since: float, until: float) -> Sequence[LevelRecord]:
        """Return the levels in one of the :data:`STEPS`, of all templates, the oldest first: those
        of the steps that begin in this time."""
        with self.connections.reading() as db:
            return select(
                db,
                LevelRecord,
                """
                WHERE step = :step AND at >= :since AND at <= :until ORDER BY at, template
                """,
                step=step,
                since=since,
                until=until,
            )
