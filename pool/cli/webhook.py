"""``cvat-pool webhook``: install and remove the webhooks by which CVAT reports new jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pool.cli.options import ConfigOption, JsonOption, settings_of
from pool.cli.output import print_results

if TYPE_CHECKING:
    from pool.config.settings import Settings
    from pool.store import Store
    from pool.tracking.webhook_setup import WebhookReport, WebhookSetup

webhook = typer.Typer(
    name="webhook",
    help="Have CVAT report new jobs to the daemon, so that it polls less.",
    no_args_is_help=True,
)


@webhook.command()
def install(
    config: ConfigOption = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="The address at which CVAT reaches the daemon; by default its own.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Install a webhook for each project of the templates, or for the organization.

    May be run again: only what is wrong or missing is changed.
    """
    from pool.clock import StoreClock
    from pool.errors import EXIT_FAILED
    from pool.tracking.webhook_setup import default_url, target_of

    settings = settings_of(config)
    target = target_of(url) if url is not None else default_url(settings)
    with _parts(settings) as (setup, store):
        daemon_runs = bool(store.daemons(now=StoreClock(store.time).now()))
        reports = print_results(
            (setup.ping(each) if daemon_runs else each for each in setup.install(target)),
            partial(_line, daemon_runs=daemon_runs),
            _document,
            as_json=as_json,
        )
    if any(report.reachable is False for report in reports):
        raise typer.Exit(EXIT_FAILED)
    if not any(report.webhook_id is not None for report in reports):
        raise typer.Exit(EXIT_FAILED)


@webhook.command()
def remove(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Remove the pool's webhooks, and no others."""
    with _parts(settings_of(config)) as (setup, _):
        removed = print_results(
            setup.remove(), partial(_line, daemon_runs=True), _document, as_json=as_json
        )
    if not removed and not as_json:
        print("the pool has no webhooks: nothing was removed")


@contextmanager
def _parts(settings: Settings) -> Iterator[tuple[WebhookSetup, Store]]:
    from contextlib import closing

    from pool.clock import StoreClock
    from pool.cvat import connect
    from pool.store import open_store
    from pool.tracking.webhook_setup import WebhookSetup

    with closing(open_store(settings.store.url)) as store, connect(settings.cvat) as cvat:
        yield WebhookSetup(store, cvat, settings, clock=StoreClock(store.time)), store


def _line(report: WebhookReport, *, daemon_runs: bool) -> str:
    names = ", ".join(report.templates)
    if not report.scope:
        return (
            f"{names}: not installed, since CVAT has no webhooks for personal tasks outside of a "
            "project; jobs are found by polling"
        )
    what = report.scope.replace(":", " ") + (f" ({names})" if names else "")
    if report.error is not None:
        return f"{what}: {report.error}"
    line = f"{what}: {report.action}"
    if report.webhook_id is not None:
        line += f", webhook {report.webhook_id} to {report.target_url}"
        line += f"; ping: {report.delivery}" if daemon_runs else "; not tried, since no daemon runs"
    if not report.complete:
        line += (
            "; this CVAT is older than 2.73 and reports new jobs only, so failed imports are "
            "found by polling; the daemon completes the webhook after an upgrade"
        )
    return line


def _document(report: WebhookReport) -> dict[str, Any]:
    return {
        "scope": report.scope or None,
        "templates": report.templates,
        "action": report.action,
        "webhook_id": report.webhook_id,
        "target_url": report.target_url or None,
        "complete": report.complete,
        "delivery": report.delivery or None,
        "reachable": report.reachable,
        "error": str(report.error) if report.error else None,
    }
