"""Decide what follows from what the server says about our rows. Pure, no I/O.

What becomes of a warm task:

=============================  ======================  ============================================
the server says                the row                 the task
=============================  ======================  ============================================
there, empty, as it was left   stays warm              stays
gone                           retired, then deleted   is gone
hidden from our credentials    retired, then deleted   deleted once we may; until then it is tried
has frames or jobs             disowned                left: it is in use
has another name               disowned                left: it was renamed on purpose
in another project or          disowned                left: it was moved on purpose
organization
=============================  ======================  ============================================

What becomes of an orphan, a task that bears this pool's mark and that no row holds:

* It is left alone while it is young, has data or is about to, bears a name that is not exactly
  one of ours, or was given up before (disowned).
* It is adopted when the row that its name refers to had its create given up without a task, and
  the template is still the same: that task cannot have been handed out. Never as a carrier, whose
  placeholders it would need first.
* Otherwise it is deleted. In particular when there is no row at all: rows are written before
  their tasks, so one that is missing has been lost, with an older copy of the store say, and with
  it whether the task was handed out. Warm again, it might be handed out twice.

What becomes of a carrier, a task over placeholders whose slots may hold data: nothing, while it is
as it was left. Where it is gone, hidden, renamed or moved, as above, its warm slots are retired,
and what its others hold stays.

A task whose row is in any other state than warm, creating for too long or on its way out is not
looked at: it was handed out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pool.config.settings import Template
from pool.cvat.failures import tells_of_other_data
from pool.cvat.records import ImportStatus, TaskInfo
from pool.model import Carrier, PooledTask, TaskState

#: States of an import whose data is in the task, or will be.
IMPORT_UNDER_WAY: Final = frozenset(
    {ImportStatus.QUEUED, ImportStatus.STARTED, ImportStatus.FINISHED}
)
#: Calls that one create makes: the task, and the preparation of its upload.
CALLS_OF_A_CREATE: Final = 2
#: Seconds beyond its deadline after which a create whose answer was lost cannot happen any more.
STUCK_GRACE: Final = 30.0
#: Seconds beyond that for which a task without a row is left alone.
ORPHAN_GRACE: Final = 300.0


def stuck_after(http_timeout: float) -> float:
    """Return the seconds after which a create has ended, or its process has, and a lost one cannot
    happen any more, so that it is looked up by its name. ``http_timeout`` is that of one call."""
    return CALLS_OF_A_CREATE * http_timeout + STUCK_GRACE


def orphan_after(http_timeout: float) -> float:
    """Return the age in seconds from which a task without a row is an orphan.

    Longer than :func:`stuck_after`, or two parts of the pool would disagree about the same task:
    it would be deleted as an orphan before its create was given up.
    """
    return stuck_after(http_timeout) + ORPHAN_GRACE


class Action(StrEnum):
    """What to do about a finding."""

    #: A warm task leaves the pool, and is deleted on the server if it is there.
    RETIRE = "retire"
    #: The row ends; the task stays as it is on the server.
    DISOWN = "disown"
    #: A create without an answer has happened: the task is warm.
    FINISH_CREATE = "finish create"
    #: It has not, or the task cannot be used.
    FAIL_CREATE = "give up create"
    #: A task whose create was given up goes into the pool after all.
    ADOPT = "adopt"
    #: The task is deleted on the server.
    DELETE = "delete"
    #: Nothing is done, and here is why.
    LEAVE = "leave alone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is not as it should be. ``task_id`` is CVAT's, ``pooled_id`` ours."""

    action: Action
    reason: str
    name: str
    template: str = ""
    task_id: int | None = None
    pooled_id: str | None = None
    prepared: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What the server shows of one task. ``info`` is None when it is gone, or ``hidden`` from us;
    ``elsewhere`` when it is in another organization than ours."""

    info: TaskInfo | None = None
    elsewhere: bool = False
    hidden: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Orphan:
    """A task with this pool's mark that no row holds.

    ``named`` is the id in its name, None when the name is not one of ours, and ``row`` the row of
    that id. ``importing`` is the state of its import, where that was asked.
    """

    info: TaskInfo
    named: str | None
    row: PooledTask | None
    importing: ImportStatus = ImportStatus.UNKNOWN


def judge_warm(task: PooledTask, sight: Sight, template: Template | None) -> Finding | None:
    """Return what is wrong with a warm task; None when nothing is."""

    def finding(action: Action, reason: str) -> Finding:
        return of_row(task, action, reason)

    info = sight.info
    if sight.hidden:
        return finding(Action.RETIRE, "the credentials may not see it any more")
    if info is None:
        return finding(Action.RETIRE, "deleted on the server")
    if info.name != task.name:
        return finding(Action.DISOWN, f"renamed on the server: {info.name}")
    if not info.empty:
        return finding(Action.DISOWN, "data was put into it")
    if template is None:
        return None  # it is retired for that anyway
    older = template.fingerprint != task.fingerprint
    if sight.elsewhere and (not older or template.origin == task.origin):
        return finding(Action.DISOWN, "moved to another organization")
    # In which project an older template wanted it is not known any more.
    if not older and info.project_id != template.project:
        return finding(Action.DISOWN, f"moved to {_project(info.project_id)}")
    return None


def judge_carrier(
    carrier: Carrier, task: PooledTask, sight: Sight, template: Template | None, *, origin: str
) -> Finding | None:
    """Return what is wrong with the task of a carrier; None when nothing is.

    ``origin`` is that of carriers like it on the server and in the organization of now.
    """
    info = sight.info
    if sight.hidden:
        return of_row(task, Action.RETIRE, "the credentials may not see it any more")
    if info is None:
        return of_row(task, Action.RETIRE, "deleted on the server")
    if info.name not in (task.name, carrier.title):
        return of_row(task, Action.DISOWN, f"renamed on the server: {info.name}")
    if sight.elsewhere and origin == task.origin:
        return of_row(task, Action.DISOWN, "moved to another organization")
    same = template is not None and template.fingerprint == task.fingerprint
    if same and template is not None and info.project_id != template.project:
        return of_row(task, Action.DISOWN, f"moved to {_project(info.project_id)}")
    return None


def judge_stuck(task: PooledTask, matches: Sequence[TaskInfo]) -> Finding:
    """Return how to settle a create without an answer; ``matches`` bear its name or its id, the
    oldest first."""
    if not matches:
        return of_row(task, Action.FAIL_CREATE, "the create never happened")
    info = next((match for match in matches if match.id == task.task_id), matches[0])
    usable = info.empty and info.name == task.name and not task.slots
    unfinished = "its placeholders were not all imported" if task.slots else "used or renamed"
    return Finding(
        action=Action.FINISH_CREATE if usable else Action.FAIL_CREATE,
        reason="its answer was lost" if usable else unfinished,
        name=task.name,
        template=task.template,
        task_id=info.id,
        pooled_id=task.id,
        prepared=info.has_data,
    )


def judge_orphan(
    orphan: Orphan, templates: Mapping[str, Template], *, old_after: float
) -> Finding | None:
    """Return what to do about a marked task that no row holds; None when that is not known yet.

    One of up to ``old_after`` seconds may be of a create that is under way.
    """
    info, row = orphan.info, orphan.row

    def finding(action: Action, reason: str) -> Finding:
        return Finding(
            action=action,
            reason=reason,
            name=info.name,
            template=row.template if row else "",
            task_id=info.id,
            pooled_id=row.id if row and action is Action.ADOPT else None,
            prepared=info.has_data,
        )

    if row is not None and row.task_id is None and row.state is not TaskState.DELETED:
        return None  # its create is under way, or about to be settled
    if orphan.named is None:
        return finding(Action.LEAVE, "renamed on the server")
    if row is not None and row.task_id == info.id:
        return finding(Action.LEAVE, f"given up: {row.reason}")
    if not info.empty:
        return finding(Action.LEAVE, "data was put into it")
    if orphan.importing in IMPORT_UNDER_WAY:
        return finding(Action.LEAVE, "data is on its way into it")
    if info.age is None or info.age <= old_after:
        return finding(Action.LEAVE, "so young that its create may be under way")
    if row is None:
        return finding(Action.DELETE, "it has no row")
    if row.task_id is not None:
        return finding(Action.DELETE, f"the name is that of task {row.task_id}")
    if row.slots:
        return finding(Action.DELETE, "a carrier whose create was given up")
    template = templates.get(row.template)
    if template is None or template.fingerprint != row.fingerprint:
        return finding(Action.DELETE, "its template has changed")
    if info.project_id != template.project:
        return finding(Action.LEAVE, f"moved to {_project(info.project_id)}")
    if orphan.importing is ImportStatus.FAILED:
        return finding(Action.DELETE, "an import into it has failed")
    return finding(Action.ADOPT, "its create was given up, and happened after all")


def judge_doomed(
    task: PooledTask, sight: Sight, *, served: bool, importing: ImportStatus, title: str = ""
) -> Action | None:
    """Return what to do on the server about a task that the pool is about to delete.

    ``DELETE``; ``DISOWN`` when it is used or was renamed meanwhile; ``LEAVE`` when it is gone
    already; None when the server does not show it to us. ``served`` tells that the pool itself
    sent data to it, so that data in it is no sign of another use. A carrier has placeholders from
    the start, goes only when none of its slots holds more, and may have been given a ``title``.
    """
    if sight.hidden:
        return None
    if sight.info is None:
        return Action.LEAVE
    if sight.info.name not in (task.name, title):
        return Action.DISOWN
    if task.slots:
        return Action.DELETE
    if sight.info.empty and (served or importing not in IMPORT_UNDER_WAY):
        return Action.DELETE
    if served and not tells_of_other_data(task.reason):
        return Action.DELETE
    return Action.DISOWN


def longest_unseen(
    warm: Sequence[PooledTask], verified: Mapping[str, float], *, batch: int
) -> list[PooledTask]:
    """Return the warm tasks to look at next: a batch, the longest unseen first. Those that are not
    due yet go along with the first that is, since one call asks for all of them."""
    return sorted(warm, key=lambda task: (verified[task.id], task.id))[:batch]


def of_row(task: PooledTask, action: Action, reason: str) -> Finding:
    """Return a finding about the task of a row."""
    return Finding(
        action=action,
        reason=reason,
        name=task.name,
        template=task.template,
        task_id=task.task_id,
        pooled_id=task.id,
    )


def _project(number: int | None) -> str:
    return "no project" if number is None else f"project {number}"
