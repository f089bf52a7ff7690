"""After which time what counts as over, from the time-out of one call up.

Each deadline is longer than the one before it, or two parts of the pool would disagree about the
same task: a create that is still under way would be settled as one that never happened, and the
task that it makes would be an orphan before anybody had given it up.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Calls that one create makes: the task, and the preparation of its upload.
CALLS_OF_A_CREATE = 2
#: Seconds beyond its deadline after which a create whose answer was lost cannot happen any more.
STUCK_GRACE = 30.0
#: Seconds beyond that for which a task without a row is left alone.
ORPHAN_GRACE = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadlines:
    """All in seconds. ``http``: a call has ended. ``create``: a create has ended, or its process
    has. ``stuck``: nor can a lost one happen any more, so that it is looked up by its name.
    ``orphan``: a task that nobody has a row for is nobody's."""

    http: float
    create: float
    stuck: float
    orphan: float

    def __post_init__(self) -> None:
        if not 0 < self.http < self.create < self.stuck < self.orphan:
            raise ValueError(f"deadlines out of order: {self}")

    @classmethod
    def of(cls, http_timeout: float) -> Deadlines:
        """The deadlines that go with a time-out for one call."""
        create = CALLS_OF_A_CREATE * http_timeout
        stuck = create + STUCK_GRACE
        return cls(http=http_timeout, create=create, stuck=stuck, orphan=stuck + ORPHAN_GRACE)
