"""How a group goes on whose import has failed, and whether its jobs are those that it asked for.
Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pool.model import ImportMember, Job

#: Parts in which a group goes on where nothing tells which request is the cause. One culprit costs
#: as many imports as by halves and half as many rounds. A group of n that CVAT cannot import at all
#: costs n and two thirds more, not 2 n. It is not given up before, by what some parts failed of: in
#: tasks of their own its requests would cost as much, and one whose data is good must not fail for
#: what CVAT said of others.
PARTS: Final = 4


def parts_of(members: Sequence[ImportMember], message: str) -> list[list[str]]:
    """Return the requests of a group of several in parts, each to be imported by itself: the one
    whose file CVAT's ``message`` names alone, and the others together; in :data:`PARTS` of one size
    where it names none, or files of several."""
    named = [member for member in members if any(_names(message, name) for name in member.names)]
    ids = [member.request_id for member in members]
    if len(named) == 1:
        culprit = named[0].request_id
        return [[culprit], [each for each in ids if each != culprit]]
    size = -(-len(ids) // PARTS)
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _names(message: str, name: str) -> bool:
    """Whether a message names a file: in quotes, alone or as the end of a path. CVAT names the
    first bad file only, and in a group no two have the same name."""
    quoted = (f"{start}{name}{end}" for end in "'\"" for start in (end, "/"))
    # Errors of our own begin with the name.
    return message.startswith((f"{name} ", f"{name}:")) or any(each in message for each in quoted)


def divided_as_asked(members: Sequence[ImportMember], jobs: Sequence[Job]) -> bool:
    """Return whether the jobs of a group's task have all frames of all members, each job those of
    one member only. What a request alone is divided into is not asked for."""
    if len(members) < 2:
        return True
    ends, last = set[int](), -1
    for member in members:
        last += len(member.names)
        ends.add(last)
    expected = 0
    for job in sorted(jobs, key=lambda job: job.start_frame):
        if job.start_frame != expected or job.stop_frame < expected:
            return False
        expected = job.stop_frame + 1
        # A job that goes on past the end of a member has frames of two.
        if any(job.start_frame <= end < job.stop_frame for end in ends):
            return False
    return expected == last + 1
