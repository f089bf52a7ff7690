"""Check what a daemon needs before it starts, and whether the configuration suits its server, from
the file to a task of each template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from pool.clock import Clock, parse_time
from pool.config.loader import InvalidConfig, require_templates
from pool.config.settings import Settings, Template
from pool.cvat import CvatClient
from pool.errors import CvatBusy, CvatForbidden, PoolError
from pool.events.delivery import secret_of
from pool.events.sinks import sink_names
from pool.http.middleware import tokens_in
from pool.http.server import check_exposure, listen
from pool.model import check_name, new_id, pool_mark
from pool.requests.breaker import with_advice
from pool.requests.spool import check_folder
from pool.store import Store

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """One thing that was checked. ``error`` is None when it is as it should be; ``warnings`` are
    probably mistakes, although the pool can work with them."""

    name: str
    detail: str = ""
    error: PoolError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What was found."""
        return self.detail or str(self.error or "")

    @property
    def ok(self) -> bool:
        """Whether it is as it should be."""
        return self.error is None


def mistakes(error: InvalidConfig) -> Iterator[CheckResult]:
    """Yield what is wrong with a configuration file, each with its line."""
    for line in error.lines():
        yield CheckResult(name="configuration", detail=line, error=error)


def before_start(settings: Settings, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check what a daemon needs of this machine, beside its store, its port and credentials."""
    count = len(settings.templates)
    yield replace(
        _attempt(
            "configuration",
            lambda: require_templates(settings),
            lambda _: f"{settings.path or 'defaults'}: {count} template{'s' * (count > 1)}",
        )[0],
        warnings=settings.warnings,
    )
    yield _attempt(
        "exposure",
        lambda: check_exposure(settings.daemon, "".join(tokens_in(environ.get("POOL_API_TOKEN")))),
        lambda _: f"listens at {settings.daemon.host}",
    )[0]
    for name, sink in zip(sink_names(settings.events.sinks), settings.events.sinks, strict=True):
        yield _attempt(
            f"sink {name}",
            partial(secret_of, sink, environ),
            lambda secret: "not signed" if secret is None else "its secret was found",
        )[0]
    folder = settings.store.spool_folder
    yield _attempt("spool", lambda: check_folder(folder), lambda _: str(folder))[0]


def run_checks(
    settings: Settings,
    open_store: Callable[[], Store],
    connect: Callable[[], CvatClient],
    *,
    environ: Mapping[str, str],
    clock: Clock,
) -> Iterator[CheckResult]:
    """Check one thing after the other; what depends on a failed one is left out.

    Each template is tried by creating one task, which is deleted again.
    """
    yield from before_start(settings, environ)
    store_result, store = _attempt("store", open_store, lambda store: f"pool {store.pool_id}")
    yield store_result
    if store is None:
        return
    yield _attempt("store writable", store.check_writable, lambda _: settings.store.url)[0]
    yield _check_port(settings, store, clock)
    client_result, cvat = _attempt("credentials", connect, lambda _: "found")
    yield client_result
    if cvat is None:
        return
    about_result, about = _attempt("server", cvat.about, lambda info: f"CVAT {info.version}")
    yield about_result if about is None else replace(about_result, warnings=about.lacks)
    if about is None:
        return
    version_result, _ = _attempt("version", about.check, lambda _: "supported")
    yield version_result
    user_result, user = _attempt("user", cvat.whoami, lambda user: user.username)
    yield user_result
    if user is None:
        return
    yield _check_token(cvat, clock)
    organization = settings.cvat.organization
    organization_result, _ = _attempt(
        "organization",
        lambda: cvat.find_tasks(pool_mark(store.pool_id)),
        lambda _: organization or "personal workspace",
    )
    yield organization_result
    if not organization_result.ok:
        return
    for template in settings.templates.values():
        yield _check_template(cvat, store.pool_id, template, clock)


def _attempt(
    name: str, what: Callable[[], Value], detail: Callable[[Any], str]
) -> tuple[CheckResult, Value | None]:
    try:
        value = what()
    except PoolError as error:
        return CheckResult(name=name, error=error), None
    return CheckResult(name=name, detail=detail(value)), value


def _check_port(settings: Settings, store: Store, clock: Clock) -> CheckResult:
    daemon = settings.daemon
    result, listener = _attempt(
        "port", lambda: listen(daemon), lambda _: f"{daemon.host}:{daemon.port} is free"
    )
    if listener is not None:
        listener.close()
    elif store.maintainer(now=clock.now()) is not None:
        # A second daemon stands by, and does not listen before it takes over.
        return CheckResult(name="port", detail="in use, and a daemon is at work on the store")
    return result


def _check_token(cvat: CvatClient, clock: Clock) -> CheckResult:
    result, token = _attempt(
        "access token", cvat.access_token, lambda token: "" if token is None else token.name
    )
    if not result.ok:
        return result
    if token is None:
        return CheckResult(name="access token", detail="not used")
    if token.read_only:
        return CheckResult(
            name="access token",
            error=CvatForbidden(token.refusal),
        )
    if token.expiry_date is None:
        return CheckResult(name="access token", detail=f"{token.name}, does not expire")
    days = (parse_time(token.expiry_date).timestamp() - clock.now()) / 86400
    return CheckResult(name="access token", detail=f"{token.name}, expires in {days:.0f} day(s)")


def _check_template(
    cvat: CvatClient, pool_id: str, template: Template, clock: Clock
) -> CheckResult:
    name = check_name(pool_id, template.name, new_id(clock.now()))
    what = f"template {template.name}"
    try:
        task_id = cvat.create_task(template.create_fields, name)
        cvat.delete_task(task_id)
    except PoolError as error:
        if isinstance(error, CvatBusy) and (error.http_status or 0) >= 500:
            because = "CVAT has answered all calls before"
            return CheckResult(
                name=what, error=with_advice(error, template.doubtful, because=because)
            )
        return CheckResult(name=what, error=error)
    return CheckResult(name=what, detail="accepted (one task created and deleted)")
