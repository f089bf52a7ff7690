"""``cvat-pool reconcile``: compare the store with the server, and repair what differs."""

from __future__ import annotations

from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pool.cli.options import ConfigOption, JsonOption, settings_of
from pool.cli.output import counted, hint, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from pool.maintenance.reconcile_rules import Finding

#: What was done, in words, by the keys of the document.
_DONE: Final = {
    "retire": "retired",
    "disown": "left to people",
    "finish create": "creates finished",
    "give up create": "creates given up",
    "adopt": "adopted",
    "delete": "to delete",
    "leave alone": "left alone",
    "deleted": "deleted",
    "left to others": "left to others",
    "slots retired": "slots retired",
    "slots ended": "slots ended",
    "not deleted yet": "not deleted yet",
}


def reconcile(
    config: ConfigOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done, and change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the pool's tasks with the server, and repair what differs.

    The daemon does this by itself. Only this pool's own tasks are changed; while a daemon maintains
    the pool, it alone deletes tasks.
    """
    from pool.clock import StoreClock
    from pool.cvat import connect
    from pool.maintenance.carriers import Carriers
    from pool.maintenance.deletion import Deletion, DeletionReport, delete_all
    from pool.maintenance.heartbeat import new_owner
    from pool.maintenance.reconcile import Reconcile
    from pool.maintenance.reconcile_rules import Action
    from pool.maintenance.term import maintaining
    from pool.observability.status import owner_in_words
    from pool.requests.slot_storage import SlotStorages
    from pool.store import open_store

    settings = settings_of(config)
    done: dict[str, Any] | None = None
    with ExitStack() as stack:
        cvat = stack.enter_context(closing(connect(settings.cvat)))
        store = stack.enter_context(closing(open_store(settings.store.url)))
        clock, owner = StoreClock(store.time), new_owner()
        term = None
        if not dry_run:
            term = stack.enter_context(maintaining(store, owner, clock=clock))
        service = Reconcile(
            store,
            cvat,
            settings.templates,
            term,
            http_timeout=settings.cvat.timeout,
            verify_every=settings.daemon.verify_every,
            clock=clock,
        )
        carriers = Carriers(
            store,
            cvat,
            SlotStorages(store.pool_id),
            settings.cvat,
            settings.templates,
            term,
            verify_every=settings.daemon.verify_every,
            clock=clock,
        )
        plan, looks = service.plan(), carriers.look()
        wrong = [look.finding for look in looks if look.finding is not None and look.warm]
        findings = [*plan.findings, *wrong, *service.doomed()]
        verified = len(plan.verified)
        verified += sum(len(look.warm) for look in looks if look.finding is None)
        if not dry_run:
            report = service.apply(plan)
            of_carriers = carriers.apply(looks)
            deletion = DeletionReport()
            if term is not None:
                deletion = delete_all(Deletion(store, cvat, term, owner=owner, clock=clock))
            elif service.doomed() or any(each.action is Action.DELETE for each in findings):
                maintainer = store.maintainer(now=clock.now())
                who = f" ({owner_in_words(maintainer)})" if maintainer else ""
                hint(f"What is to delete is left to the daemon that maintains the pool{who}.")
            done = {
                **{action.value: times for action, times in report.done.items()},
                "deleted": deletion.deleted,
                "left to others": deletion.disowned,
                "slots retired": of_carriers.retired,
                "slots ended": of_carriers.ended,
                "not deleted yet": deletion.failed,
            }
            if report.error:
                hint(f"Warning: not everything was done: {report.error}")
    if as_json:
        print_json({"verified": verified, "findings": findings, "done": done})
    else:
        _print(findings, verified, done)


def _print(findings: list[Finding], verified: int, done: dict[str, Any] | None) -> None:
    if findings:
        from rich.console import Console

        Console().print(_table(findings))
    right = f"{counted(verified, 'warm task')} as expected"
    if done is None:
        print(f"{counted(len(findings), 'finding')}, {right}; nothing was done")
    else:
        did = ", ".join(f"{times} {_DONE[what]}" for what, times in done.items() if times)
        print(f"reconciled: {did or 'nothing to do'}; {right}")


def _table(findings: list[Finding]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("task", justify="right", no_wrap=True)
    table.add_column("action", no_wrap=True)
    table.add_column("template", overflow="fold")
    table.add_column("why", overflow="fold")
    for finding in findings:
        table.add_row(
            "" if finding.task_id is None else str(finding.task_id),
            finding.action.value,
            # A task of no template of ours by its name, whose square brackets are no markup.
            escape(finding.template or finding.name),
            escape(finding.reason),
        )
    return table
