"""Install the pool's webhooks on the server, and remove them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from pool.clock import Clock
from pool.config.settings import Settings
from pool.config.urls import split_url
from pool.cvat import CvatClient
from pool.cvat.webhooks import EVENTS, OLDER_EVENTS, Delivery, Webhook
from pool.errors import ConfigError, CvatError, CvatNotFound, PoolError
from pool.logs import get_logger
from pool.model import pool_mark
from pool.store import Store
from pool.tracking.webhook_health import project_of, scope_of

log = get_logger(__name__)

#: Where the daemon receives deliveries.
PATH = "/webhooks/cvat"
#: CVAT's limit is 64 characters.
SECRET_BYTES = 32
_ANY_ADDRESS = ("0.0.0.0", "::", "[::]")


@dataclass(frozen=True, kw_only=True)
class WebhookReport:
    """What was done about one scope, or about a template that can have no webhook.

    ``action`` is "installed", "repaired", "unchanged", "removed", "not installed" or "failed".
    ``delivery`` is the outcome of a ping, when one was sent, and ``reachable`` whether it arrived.
    A webhook is not ``complete`` where the server does not know all of the events.
    """

    scope: str
    action: str
    templates: tuple[str, ...] = ()
    webhook_id: int | None = None
    target_url: str = ""
    complete: bool = True
    delivery: str = ""
    reachable: bool | None = None
    error: PoolError | None = None


def default_url(settings: Settings) -> str:
    """Return the address of the daemon for a CVAT on the same machine.

    :raises ConfigError: the configuration does not say it.
    """
    host, port = settings.daemon.host, settings.daemon.port
    if port == 0 or host in _ANY_ADDRESS:
        raise ConfigError(
            f"daemon.host {host!r} and daemon.port {port} do not say where CVAT reaches the "
            "daemon: give --url"
        )
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{shown}:{port}{PATH}"


def target_of(url: str) -> str:
    """Return the address to deliver to; the route is added to a bare address.

    :raises ConfigError: it is no address.
    """
    parts = split_url(url.strip())
    if parts is None or "@" in parts.netloc or parts.fragment:
        raise ConfigError(
            f'--url {url!r}: give the address at which CVAT reaches the daemon, such as "http://'
            'pool.example.com:8765"'
        )
    bare = parts.path in ("", "/")
    return parts._replace(path=PATH if bare else parts.path).geturl()


class WebhookSetup:
    """Installs and removes the webhooks of one pool. They are known by the pool's mark."""

    def __init__(self, store: Store, cvat: CvatClient, settings: Settings, *, clock: Clock) -> None:
        self._store = store
        self._cvat = cvat
        self._settings = settings
        self._clock = clock
        self._mark = pool_mark(store.pool_id)

    # --- Installing -----------------------------------------------------------------------------

    def install(self, target_url: str) -> Iterator[WebhookReport]:
        """Bring each scope of the templates into order, one after the other; a scope that fails
        does not keep the others from it. What is in order already is not touched."""
        secret = self._store.keep_webhook_secret(secrets.token_urlsafe(SECRET_BYTES))
        scopes = self._scopes()
        for scope, templates in scopes.items():
            if scope is None:
                yield from (
                    WebhookReport(scope="", action="not installed", templates=(name,))
                    for name in templates
                )
                continue
            yield self._report(scope, templates, partial(self._install, scope, target_url, secret))
        for scope in self._store.webhooks().keys() - scopes.keys():
            yield self._report(scope, (), partial(self._remove, scope))

    def ping(self, report: WebhookReport) -> WebhookReport:
        """Have CVAT deliver something to a webhook that was installed, and add what came of it.

        Where the receiver does not know the secret, CVAT is given it again, once.
        """
        if report.webhook_id is None:
            return report
        try:
            delivery = self._cvat.webhooks.ping(report.webhook_id)
            if delivery.status == 401:
                self._replace(
                    report.webhook_id, report.target_url, self._store.webhook_secret() or ""
                )
                delivery = self._cvat.webhooks.ping(report.webhook_id)
        except CvatError as error:
            return _with_delivery(report, str(error), reachable=False)
        return _with_delivery(
            report, meaning(delivery, report.target_url), reachable=delivery.status == 204
        )

    def _scopes(self) -> dict[str | None, list[str]]:
        organization = self._settings.cvat.organization
        scopes: dict[str | None, list[str]] = {}
        for name, template in self._settings.templates.items():
            scope = scope_of(template, organization, self._settings.templates)
            scopes.setdefault(scope, []).append(name)
        return scopes

    def _install(self, scope: str, target_url: str, secret: str) -> tuple[str, Webhook | None]:
        ours = self._ours(scope)
        known = self._store.webhooks().get(scope)
        for surplus in ours[1:]:
            self._cvat.webhooks.delete(surplus.id)
        action = "unchanged"
        if not ours:
            hook = self._cvat.webhooks.create(
                project_of(scope),
                target_url=target_url,
                description=self._description,
                secret=secret,
            )
            action = "installed"
        elif (unknown := known is None or known.hook_id != ours[0].id) or not _fits(
            ours[0], target_url
        ):
            # One that this store does not know may have another secret, which CVAT never shows.
            hook = self._replace(ours[0].id, target_url, secret)
            if unknown or hook != ours[0]:
                action = "repaired"
        else:
            hook = ours[0]
        self._store.keep_webhook(
            scope, hook_id=hook.id, target_url=target_url, now=self._clock.now()
        )
        return action, hook

    @property
    def _description(self) -> str:
        return f"{self._mark} wakes the task pool; 'cvat-pool webhook remove' takes it away"

    def _ours(self, scope: str) -> list[Webhook]:
        project = project_of(scope)
        return [
            hook
            for hook in self._cvat.webhooks.of(project)
            if self._mark in hook.description and hook.project_id == project
        ]

    def _replace(self, webhook_id: int, target_url: str, secret: str) -> Webhook:
        return self._cvat.webhooks.replace(
            webhook_id, target_url=target_url, description=self._description, secret=secret
        )

    def complete(self) -> int:
        """Complete the webhooks that an older server could install in part only; return how many.
        For after an upgrade of the server.

        :raises CvatError: the server did not do it.
        """
        secret = self._store.webhook_secret()
        completed = 0
        for scope, record in self._store.webhooks().items():
            for hook in self._ours(scope):
                if secret is None or hook.id != record.hook_id or hook.events != OLDER_EVENTS:
                    continue
                after = self._replace(hook.id, record.target_url, secret)
                if after.events == EVENTS:
                    log.info("webhook completed", scope=scope, webhook_id=hook.id)
                    completed += 1
        return completed

    # --- Removing -------------------------------------------------------------------------------

    def remove(self) -> Iterator[WebhookReport]:
        """Remove the webhooks of all scopes, the templates' and those that the store knows."""
        scopes = {scope: names for scope, names in self._scopes().items() if scope is not None}
        for scope in (*scopes, *(self._store.webhooks().keys() - scopes.keys())):
            yield self._report(scope, scopes.get(scope, ()), partial(self._remove, scope))

    def _remove(self, scope: str) -> tuple[str, Webhook | None]:
        try:
            ours = self._ours(scope)
        except CvatNotFound:
            ours = []  # the project is gone, and its webhooks with it
        for hook in ours:
            self._cvat.webhooks.delete(hook.id)
        self._store.forget_webhook(scope)
        return ("removed", ours[0]) if ours else ("not installed", None)

    # --- Reporting ------------------------------------------------------------------------------

    def _report(
        self,
        scope: str,
        templates: list[str] | tuple[str, ...],
        what: Callable[[], tuple[str, Webhook | None]],
    ) -> WebhookReport:
        try:
            action, hook = what()
        except CvatError as error:
            log.info("webhook failed", scope=scope, why=str(error))
            return WebhookReport(
                scope=scope, action="failed", templates=tuple(templates), error=error
            )
        log.info("webhook", scope=scope, action=action, webhook_id=hook.id if hook else None)
        return WebhookReport(
            scope=scope,
            action=action,
            templates=tuple(templates),
            webhook_id=hook.id if hook and action != "removed" else None,
            target_url=hook.target_url if hook else "",
            complete=hook is None or action == "removed" or hook.events == EVENTS,
        )


def _fits(hook: Webhook, target_url: str) -> bool:
    return (
        hook.is_active
        and hook.target_url == target_url
        and hook.enable_ssl == target_url.startswith("https:")
        and hook.events == EVENTS
    )


def _with_delivery(report: WebhookReport, what: str, *, reachable: bool) -> WebhookReport:
    return replace(report, delivery=what, reachable=reachable)


def meaning(delivery: Delivery, target_url: str) -> str:
    """Return what the outcome of a ping means, and what to do about it."""
    # For a failed connection CVAT quotes its HTTP library, at length.
    said = " ".join(delivery.response.split()).rpartition("Caused by ")[2].strip("()\"' ")[:200]
    match delivery.status:
        case 204:
            return "delivered"
        case 401:
            return "refused: the daemon there belongs to another pool, or to another store"
        case 407 | 502 if delivery.status == 407 or " 407 " in said:
            return f"{_REFUSED_BY_PROXY} ({said})" if said else _REFUSED_BY_PROXY
        case 502:
            return (
                f"CVAT got no connection to {target_url}: it must be an address at which CVAT's "
                f"own machine or container reaches the daemon; or {_REFUSED_BY_PROXY}"
                + (f" ({said})" if said else "")
            )
        case 504:
            return f"CVAT got no answer from {target_url} in time"
        case status:
            return f"{target_url} answered {status}, so something else may listen there" + (
                f" ({said})" if said else ""
            )


_REFUSED_BY_PROXY = (
    "CVAT's outgoing proxy (smokescreen) refused it, as it does loopback and private addresses "
    "unless CVAT's administrator allows them in SMOKESCREEN_OPTS (--allow-address or --allow-range)"
)
