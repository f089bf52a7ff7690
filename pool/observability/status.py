"""The status of the pool, read from the store, and its problems in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import fmean
from typing import Final

from pool.config.settings import Settings, Template
from pool.handles import when
from pool.maintenance.sizing import current_target
from pool.model import (
    EVERYTHING,
    DaemonRecord,
    Hold,
    Levels,
    Outcome,
    Priority,
    RequestRecord,
    RequestState,
    Scope,
    SlotLevels,
    SpoolRecord,
    TaskState,
)
from pool.requests.breaker import SERVER
from pool.requests.concurrency import places_of
from pool.status import DaemonStatus, SpoolStatus, Status, TemplateStatus, WaitReason, WebhookState
from pool.store import Store
from pool.tracking.webhook_health import scope_of, webhook_state

#: The imports whose requests are counted: of so many seconds, and so many at most.
LATELY: Final = 900.0
MOST_IMPORTS: Final = 100
#: Templates that a sentence names.
MOST_NAMED: Final = 3


def read_status(
    store: Store, settings: Settings, templates: Mapping[str, Template], *, now: float
) -> Status:
    """Return the status of the pool with the ``templates`` in force; CVAT is not called."""
    hold = store.holds().get(SERVER)
    maintainer = store.maintainer(now=now)
    daemons = store.daemons(now=now)
    configuration = store.configuration() if maintainer is not None else None
    used = store.grouped_imports()
    spools, waiting = store.spools(), store.waiting_by_spool()
    unread = _unread(spools, waiting, now=now)
    return Status(
        server=settings.cvat.url,
        store=settings.store.place,
        maintainer=maintainer,
        daemons=tuple(
            DaemonStatus(
                owner=each.owner,
                url=each.url,
                version=each.version,
                since=datetime.fromtimestamp(each.since, UTC),
                cut_off=each.cut_off,
            )
            for each in daemons
        ),
        in_flight=store.in_flight(),
        places_used=used,
        held_since=when(hold.since) if hold else None,
        held_until=when(hold.retry_at) if hold else None,
        hold_reason=hold.reason if hold else "",
        hold_code=hold.code if hold else "",
        spools=tuple(
            SpoolStatus(
                place=spool.place,
                host=spool.host,
                shared=spool.shared,
                seen_at=datetime.fromtimestamp(spool.seen_at, UTC),
                away=spool.is_away(now),
                trouble=spool.trouble_now(now),
                queued=sum(waiting.get(spool.id, {}).values()),
            )
            for spool in spools.values()
            if spool.id in waiting or not spool.is_away(now)
        ),
        spools_warning=own_spools(daemons, spools) or "",
        templates=_template_statuses(
            store,
            settings.cvat.organization,
            templates,
            used=used,
            unread=unread,
            heard=bool(daemons),
            now=now,
        ),
        config_loaded_at=when(configuration.loaded_at) if configuration else None,
        config_rejected_at=when(configuration.rejected_at) if configuration else None,
        config_problems=configuration.problems if configuration else (),
        config_restart=configuration.restart if configuration else (),
    )


def _template_statuses(
    store: Store,
    organization: str,
    templates: Mapping[str, Template],
    *,
    used: int,
    unread: Mapping[str, int],
    heard: bool,
    now: float,
) -> tuple[TemplateStatus, ...]:
    levels, hand_outs, queues = store.levels(), store.hand_outs(), store.queued_by_priority()
    oldest = store.oldest_waiting()
    sizes = store.group_sizes(since=now - LATELY, limit=MOST_IMPORTS)
    holds, paused, prewarms = store.holds(), store.paused(), store.prewarms()
    webhooks, slots = store.webhooks(), store.slot_levels()

    def status_of(name: str, template: Template) -> TemplateStatus:
        target = current_target(store, template, now=now)
        tasks, outcomes = levels.get(name, Levels()), hand_outs.get(name, {})
        hold = holds.get(name) or holds.get(SERVER)
        queued = queues.get(name, {})
        grouped = template.importing.grouping == "auto"
        places = places_of(store, template.importing) if grouped else 0
        filling = slots.get(name, SlotLevels())
        prewarm = prewarms.get(name)
        if prewarm is not None and not prewarm.active(now):
            prewarm = None
        scope = scope_of(template, organization, templates)
        webhook = webhooks.get(scope) if scope is not None else None
        hooks = WebhookState.IMPOSSIBLE if scope is None else webhook_state(webhook, heard=heard)
        silent = webhook if hooks is WebhookState.SILENT else None
        return TemplateStatus(
            name=name,
            target=target.size,
            warm=tasks[TaskState.WARM],
            creating=tasks[TaskState.CREATING],
            leased=tasks[TaskState.LEASED],
            importing=tasks[TaskState.IMPORTING],
            deleting=tasks[TaskState.RETIRED] + tasks[TaskState.FAILED] + tasks[TaskState.DELETING],
            carriers=filling.carriers,
            slots_filled=filling.filled,
            slots_retired=filling.retired,
            waiting=store.waiting(name),
            queued=sum(queued.values()),
            oldest_waiting_since=when(oldest.get(name)),
            queued_interactive=queued.get(Priority.INTERACTIVE, 0),
            queued_bulk=queued.get(Priority.BULK, 0),
            waits_for=waits_for(
                queued=sum(queued.values()),
                unread=unread.get(name, 0),
                hold=holds.get(SERVER) or hold,
                warm=tasks[TaskState.WARM],
                full=0 < places <= used,
                gathers=grouped and template.importing.group_delay > 0,
                served=heard,
            ),
            places=places,
            group_sizes=tuple(sizes.get(name, ())),
            rate=target.rate,
            peak_rate=target.peak_rate,
            lead_time=target.lead_time,
            hits=outcomes.get(Outcome.HIT, 0),
            waits=outcomes.get(Outcome.WAIT, 0),
            colds=outcomes.get(Outcome.COLD, 0),
            paused_since=when(paused.get(name)),
            held_since=when(hold.since) if hold else None,
            held_until=when(hold.retry_at) if hold else None,
            hold_reason=hold.reason if hold else "",
            hold_code=hold.code if hold else "",
            prewarm_size=prewarm.size if prewarm else 0,
            prewarm_until=when(prewarm.until) if prewarm else None,
            hooks=hooks,
            hooks_silent_since=when(silent.heard_at or silent.installed_at) if silent else None,
        )

    return tuple(status_of(name, template) for name, template in templates.items())


def _unread(
    spools: Mapping[str, SpoolRecord], waiting: Mapping[str, Mapping[str, int]], *, now: float
) -> Mapping[str, int]:
    """Return how many requests of each template have their data where no process reads it."""
    unread: Counter[str] = Counter()
    for spool_id, counts in waiting.items():
        if spool_id in spools and _away(spools[spool_id], now, "its"):
            unread.update(counts)
    return unread


def waits_for(
    *,
    queued: int,
    unread: int = 0,
    hold: Hold | None,
    warm: int,
    full: bool,
    gathers: bool,
    served: bool,
) -> WaitReason:
    """Return what the queued requests of a template wait for: the first thing that any of them
    needs and has not. ``unread`` is how many of them have their data where no process reads it;
    ``full``: no place is free; ``gathers``: they wait for others to go with;
    ``served``: a daemon is at work."""
    if not queued:
        return WaitReason.NOTHING
    if unread >= queued:
        return WaitReason.DATA
    if hold is not None and (hold.template == SERVER or hold.uploads or not warm):
        return WaitReason.HOLD
    if full:
        return WaitReason.PLACE
    if not warm:
        return WaitReason.TASK
    if not served:
        return WaitReason.DAEMON
    return WaitReason.OTHERS if gathers else WaitReason.TURN


# --- In words -----------------------------------------------------------------------------------


def state_of(row: TemplateStatus) -> str:
    """Return the state of a template in one or two words."""
    if row.held_since is not None:
        return "held"
    if row.paused_since is not None:
        return "paused"
    if row.creating:
        return f"creating {row.creating}"
    return "below target" if row.warm < row.target else "ok"


def troubles(status: Status, *, now: float) -> tuple[str, ...]:
    """Return each problem and what to do about it, in one sentence, the most urgent first."""
    found = []
    if status.maintainer is None:
        found.append("No daemon keeps the pools filled: start 'cvat-pool run'.")
    if status.held_since is not None:
        queued = sum(row.queued for row in status.templates)
        words = _hold(status.hold_reason, status.held_since, status.held_until, now)
        if queued:
            words += " 1 request waits." if queued == 1 else f" {queued} requests wait."
        found.append(f"{words} To try at once: 'cvat-pool resume'.")
    found += [
        f"CVAT answers other daemons, and not {owner_in_words(each.owner)}, which leaves the work "
        "to them: look at the way from there to CVAT."
        for each in status.daemons
        if each.cut_off
    ]
    found += [
        _spool(spool, now)
        for spool in status.spools
        if spool.queued and (spool.away or spool.trouble)
    ]
    if status.spools_warning:
        found.append(status.spools_warning)
    alike: dict[str, list[TemplateStatus]] = {}
    for row in status.templates:
        if row.held_since is not None and row.hold_reason != status.hold_reason:
            alike.setdefault(row.hold_reason, []).append(row)
    for reason, rows in alike.items():
        since = min(row.held_since for row in rows if row.held_since is not None)
        until = min((row.held_until for row in rows if row.held_until is not None), default=None)
        names = [row.name for row in rows]
        which = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} templates"
        command = "cvat-pool resume" + (f" {names[0]}" if len(names) == 1 else "")
        words = _hold(reason, since, until, now)
        found.append(f"{which}: {words} To try at once: '{command}'.")
    if status.config_rejected_at is not None and status.config_loaded_at is not None:
        first, *others = status.config_problems or ("",)
        more = f" (and {len(others)} more: 'cvat-pool check' shows all)" if others else ""
        found.append(
            f"The configuration is wrong since {moment(status.config_rejected_at, now)}: {first}"
            f"{more}. The daemon goes on with that of {moment(status.config_loaded_at, now)}."
        )
    if status.config_restart:
        keys = ", ".join(status.config_restart)
        found.append(f"The configuration is followed but for {keys}: restart the daemon.")
    return tuple(found)


def notes(status: Status, *, now: float) -> tuple[str, ...]:
    """Return other facts, one line each: pauses, prewarms, webhooks, the maintainer."""
    found = []
    for row in status.templates:
        if row.paused_since is not None:
            since = moment(row.paused_since, now)
            found.append(f"{row.name}: paused since {since}; 'cvat-pool resume {row.name}' ends it")
        if row.prewarm_until is not None:
            until = moment(row.prewarm_until, now)
            found.append(f"{row.name}: at least {row.prewarm_size} warm until {until}")
        if row.waits_for is not WaitReason.NOTHING or row.waiting:
            words = _queue(row, status.places_used) if row.queued else _callers(row)
            found.append(f"{row.name}: {words}{_waited(row, now)}")
        if row.carriers:
            found.append(f"{row.name}: {_slots(row)}")
        if max(row.group_sizes, default=0) > 1:
            found.append(
                f"{row.name}: {fmean(row.group_sizes):.1f} requests an import in the last "
                f"{LATELY / 60:.0f} minutes, {max(row.group_sizes)} at most"
            )
    hooks: dict[str, list[str]] = {}
    for row in status.templates:
        words = row.hooks.value
        if row.hooks_silent_since is not None:
            words += f" since {moment(row.hooks_silent_since, now)}"
        hooks.setdefault(words, []).append(row.name)
    for words, names in hooks.items():
        # Of those that need no one's attention, many are not named.
        fine = words in (WebhookState.ALIVE, WebhookState.IMPOSSIBLE) and len(names) > MOST_NAMED
        which = f"{len(names)} templates" if fine else ", ".join(names)
        found.append(f"webhooks: {words}" + (f" ({which})" if len(hooks) > 1 else ""))
    if hooks.keys() == {WebhookState.IMPOSSIBLE}:
        found[-1] += " for personal tasks outside of projects"
    if status.maintainer is not None:
        words = f"maintained by {owner_in_words(status.maintainer)}"
        if len(status.daemons) > 1:
            words += f", one of {len(status.daemons)} daemons"
        found.append(words)
    for each in status.daemons:
        if len(status.daemons) > 1 and each.owner != status.maintainer:
            since = moment(each.since, now)
            found.append(f"{owner_in_words(each.owner)} serves at {each.url} since {since}")
    return tuple(found)


def narrowed(status: Status, scope: Scope, store: Store) -> Status:
    """Return what a caller sees of a status. One that sees what is its own only sees nothing of the
    daemons, the store and the configuration.

    :raises StoreError: the store cannot be read.
    """
    if scope == EVERYTHING:
        return status
    seen = replace(
        status,
        in_flight=store.in_flight(scope=scope),
        templates=tuple(each for each in status.templates if scope.covers_template(each.name)),
    )
    if scope.tenant is None:
        return seen
    return replace(
        seen,
        store="",
        # Whether one maintains, and not on which host.
        maintainer=status.maintainer and "a daemon",
        daemons=(),
        spools=(),
        spools_warning="",
        config_rejected_at=None,
        config_problems=(),
        config_restart=(),
    )


def own_spools(daemons: Sequence[DaemonRecord], spools: Mapping[str, SpoolRecord]) -> str | None:
    """Return a warning where several daemons have spools of their own; None where they share one,
    or there is one daemon."""
    ids = dict.fromkeys(daemon.spool for daemon in daemons if daemon.spool)
    if len(ids) < 2:
        return None
    which = ", ".join(
        place_of(spools[each]) if each in spools else "one that is not known" for each in ids
    )
    return (
        f"{len(ids)} spools are in use by {len(daemons)} daemons: {which}. Data in one waits with "
        "its machine; let store.spool name a bucket, or one folder that all of them have."
    )


def place_of(spool: SpoolRecord) -> str:
    """Return where a spool is: "s3://bucket/spool", or "HOST (/var/lib/spool)"."""
    return spool.place if spool.shared else f"{spool.host} ({spool.place})"


def data_away(
    record: RequestRecord,
    spools: Mapping[str, SpoolRecord],
    *,
    scope: Scope = EVERYTHING,
    now: float,
) -> str:
    """Return why a request waits that could be served if its data could be read: in words that
    follow "waits: "; empty where it does not. One that sees what is its own only does not learn
    which machine it is."""
    if not record.spooled or record.state is not RequestState.QUEUED:
        return ""
    spool = spools.get(record.spool)
    words = _away(spool, now, "its") if spool is not None else ""
    if not words or spool is None or scope.tenant is None:
        return words
    if spool.is_away(now):
        return "its data is on another machine, which is away"
    return "its data cannot be read now"


def _away(spool: SpoolRecord, now: float, whose: str) -> str:
    since = datetime.fromtimestamp(spool.seen_at, UTC)
    if spool.is_away(now):
        return f"{whose} data is on {place_of(spool)}, not heard of since {moment(since, now)}"
    if trouble := spool.trouble_now(now):
        return f"{whose} data cannot be read: {trouble}"
    return ""


def owner_in_words(owner: str) -> str:
    """Return which process an owner is (:func:`pool.maintenance.heartbeat.new_owner`)."""
    host, _, rest = owner.rpartition(":")[0].rpartition(":")
    return f"process {rest} on {host}" if host and rest.isdecimal() else owner


def _spool(spool: SpoolStatus, now: float) -> str:
    """ "3 requests wait: their data is on db1 (/var/spool), not heard of since 14:02. …" """
    one = spool.queued == 1
    words = f"{spool.queued} request{'' if one else 's'} wait{'s' if one else ''}: "
    record = SpoolRecord(
        id="",
        place=spool.place,
        host=spool.host,
        shared=spool.shared,
        seen_at=spool.seen_at.timestamp(),
        trouble=spool.trouble,
        trouble_at=now,
    )
    words += f"{_away(record, now, 'its' if one else 'their')}."
    return f"{words} Start the daemon there, or 'cvat-pool cancel'." if spool.away else words


def _hold(reason: str, since: datetime, until: datetime | None, now: float) -> str:
    """ "CVAT cannot be reached since 14:02 (connection refused); next try in 4 s." """
    summary, colon, detail = reason.partition(": ")
    left = math.ceil(until.timestamp() - now) if until is not None else None
    words = f"{summary} since {moment(since, now)}" + (f" ({detail})" if colon else "")
    match left:
        case None:
            return f"{words}."
        case int() if left > 0:
            return f"{words}; next try in {lasting(left) if left >= 120 else f'{left} s'}."
    return f"{words}; trying again now."


def moment(at: datetime, now: float) -> str:
    """Return a time in the local zone: "14:02" today, else with its day."""
    local, today = at.astimezone(), datetime.fromtimestamp(now).astimezone()
    return f"{local:%H:%M}" if local.date() == today.date() else f"{local:%d %b %H:%M}"


def lasting(seconds: float) -> str:
    """Return how long something lasts, to one unit: "45 s", "3 min", "5 h", "2 days"."""
    for unit, factor in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * factor or (unit == "min" and seconds >= factor):
            return f"{seconds / factor:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


#: What requests wait for, in words.
_WAITS_FOR: Final = {
    WaitReason.HOLD: "CVAT, which is held",
    WaitReason.PLACE: "a place among the imports",
    WaitReason.TASK: "a warm task",
    WaitReason.OTHERS: "others to share an import with",
    WaitReason.TURN: "their turn",
    WaitReason.DAEMON: "their process, or a daemon",
    WaitReason.DATA: "their data, on a machine that is away",
}


def waiting_words(status: Status, template: str) -> str:
    """Return what the queued requests of a template wait for, in words that follow "is"."""
    row = next((row for row in status.templates if row.name == template), None)
    if row is None or row.waits_for is WaitReason.NOTHING:
        # It left the queue meanwhile.
        return "queued"
    if row.waits_for is WaitReason.HOLD:
        reason = status.hold_reason or row.hold_reason
        of_cvat = reason.removeprefix("CVAT ")
        return f"waiting for CVAT{', which ' if of_cvat != reason else ': '}{of_cvat}"
    words = f"waiting for {_WAITS_FOR[row.waits_for]}".replace("their", "its")
    if row.waits_for is WaitReason.PLACE:
        words += f", {status.places_used} of {row.places} in use"
    return words


def _slots(row: TemplateStatus) -> str:
    """Return how full the tasks of slots are."""
    words = f"slots of {row.carriers} task{'' if row.carriers == 1 else 's'}: {row.warm} warm"
    for what, count in (
        ("leased", row.leased),
        ("filled", row.slots_filled),
        ("retired", row.slots_retired),
    ):
        if count:
            words += f", {count} {what}"
    return words


def _callers(row: TemplateStatus) -> str:
    """Return how many callers wait for a task."""
    return (
        "1 caller waits for a task"
        if row.waiting == 1
        else f"{row.waiting} callers wait for a task"
    )


def _waited(row: TemplateStatus, now: float) -> str:
    """Return for how long the oldest of those that wait has waited."""
    since = row.oldest_waiting_since
    waited = 0.0 if since is None else now - since.timestamp()
    if waited < 1.0:
        return ""
    which = "it" if row.queued + row.waiting == 1 else "the oldest"
    return f"; {which} has waited for {lasting(waited)}"


def _queue(row: TemplateStatus, used: int) -> str:
    """Return how many requests are queued, of which priority, and what for."""
    one = row.queued == 1
    words = f"{row.queued} request{'' if one else 's'} wait{'s' if one else ''}"
    what = _WAITS_FOR[row.waits_for]
    words += f" for {what.replace('their', 'its') if one else what}"
    if row.waits_for is WaitReason.PLACE:
        words += f", {used} of {row.places} in use"
    named = {"interactive": row.queued_interactive, "bulk": row.queued_bulk}
    marked = ", ".join(f"{count} {name}" for name, count in named.items() if count)
    return f"{words} ({marked})" if marked else words
