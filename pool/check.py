"""The checks of ``cvat-pool check``: from the configuration file to a task of each template."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

from pool.clock import Clock, StoreClock, parse_time
from pool.config.loader import InvalidConfig, require_templates
from pool.config.settings import DaemonSettings, Settings, Template
from pool.cvat import CvatClient, connect
from pool.errors import CvatBusy, CvatForbidden, PoolError
from pool.events.delivery import secret_of
from pool.events.sinks import sink_names
from pool.http.middleware import tokens_in
from pool.http.server import check_exposure, listen
from pool.model import check_name, new_id, pool_mark
from pool.requests.breaker import with_advice
from pool.requests.spool import check_folder
from pool.store import Store, open_store


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check. ``error`` is None if it passed; ``warnings`` are probable mistakes
    with which the pool works all the same."""

    name: str
    detail: str = ""
    error: PoolError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """What was found, in words."""
        return self.detail or str(self.error or "")

    @property
    def ok(self) -> bool:
        """Whether it passed."""
        return self.error is None


def mistakes(error: InvalidConfig) -> Iterator[CheckResult]:
    """Yield the mistakes in a configuration file, each with its line."""
    for line in error.lines():
        yield CheckResult(name="configuration", detail=line, error=error)


def before_start(settings: Settings, environ: Mapping[str, str]) -> Iterator[CheckResult]:
    """Check what a daemon needs on this machine besides its store, its port and credentials."""
    count = len(settings.templates)
    configuration = _checked(
        "configuration",
        lambda: require_templates(settings),
        f"{settings.path or 'defaults'}: {count} template{'s' * (count > 1)}",
    )
    yield replace(configuration, warnings=settings.warnings)
    yield _checked(
        "exposure",
        lambda: check_exposure(settings.daemon, "".join(tokens_in(environ.get("POOL_API_TOKEN")))),
        f"listens at {settings.daemon.host}",
    )
    for name, sink in zip(sink_names(settings.events.sinks), settings.events.sinks, strict=True):
        signed = sink.secret_env is not None or sink.secret_file is not None
        yield _checked(
            f"sink {name}",
            partial(secret_of, sink, environ),
            "its secret was found" if signed else "not signed",
        )
    folder = settings.store.spool_folder
    yield _checked("spool", lambda: check_folder(folder), str(folder))


def run_checks(
    settings: Settings, *, environ: Mapping[str, str], clock: Clock
) -> Iterator[CheckResult]:
    """Yield the results of all checks; those that depend on a failed one are left out.

    For each template one task is created and deleted.
    """
    yield from before_start(settings, environ)
    with ExitStack() as opened:
        name = "store"
        try:
            store = opened.enter_context(closing(open_store(settings.store.url)))
            yield CheckResult(name=name, detail=f"pool {store.pool_id}")
            yield _checked("store writable", store.check_writable, settings.store.place)
            yield _check_port(settings.daemon, store, StoreClock(store.time, clock))
            name = "credentials"
            cvat = opened.enter_context(closing(connect(settings.cvat, environ)))
            yield CheckResult(name=name, detail="found")
            name = "server"
            about = cvat.about()
            yield CheckResult(name=name, detail=f"CVAT {about.version}", warnings=about.lacks)
            yield _checked("version", about.check, "supported")
            name = "user"
            yield CheckResult(name=name, detail=cvat.whoami().username)
            yield _check_token(cvat, clock)
            name = "organization"
            cvat.find_tasks(pool_mark(store.pool_id))
            detail = settings.cvat.organization or "personal workspace"
            yield CheckResult(name=name, detail=detail)
        except PoolError as error:
            yield CheckResult(name=name, error=error)
            return
        for template in settings.templates.values():
            yield _check_template(cvat, store.pool_id, template, clock)


def _checked(name: str, check: Callable[[], object], detail: str) -> CheckResult:
    """Return the result of a check that raises an error if it fails; ``detail`` if it passes."""
    try:
        check()
    except PoolError as error:
        return CheckResult(name=name, error=error)
    return CheckResult(name=name, detail=detail)


def _check_port(daemon: DaemonSettings, store: Store, clock: Clock) -> CheckResult:
    free = f"{daemon.host}:{daemon.port} is free"
    result = _checked("port", lambda: listen(daemon).close(), free)
    if not result.ok and store.maintainer(now=clock.now()) is not None:
        # A second daemon stands by, and does not listen before it takes over.
        return CheckResult(name="port", detail="in use, and a daemon is at work on the store")
    return result


def _check_token(cvat: CvatClient, clock: Clock) -> CheckResult:
    name, detail = "access token", "not used"
    try:
        token = cvat.access_token()
    except PoolError as error:
        return CheckResult(name=name, error=error)
    if token is not None:
        if token.read_only:
            return CheckResult(name=name, error=CvatForbidden(token.refusal))
        detail = f"{token.name}, does not expire"
        if token.expiry_date is not None:
            days = (parse_time(token.expiry_date).timestamp() - clock.now()) / 86400
            detail = f"{token.name}, expires in {days:.0f} day(s)"
    return CheckResult(name=name, detail=detail)


def _check_template(
    cvat: CvatClient, pool_id: str, template: Template, clock: Clock
) -> CheckResult:
    name = check_name(pool_id, template.name, new_id(clock.now()))
    what = f"template {template.name}"
    try:
        task_id = cvat.create_task(template.create_fields, name)
        cvat.delete_task(task_id)
        unknown = [user for user in template.assignment.assignees if cvat.find_user(user) is None]
    except PoolError as error:
        if isinstance(error, CvatBusy) and (error.http_status or 0) >= 500:
            because = "CVAT has answered all calls before"
            return CheckResult(
                name=what, error=with_advice(error, template.doubtful, because=because)
            )
        return CheckResult(name=what, error=error)
    return CheckResult(
        name=what,
        detail="accepted (one task created and deleted)",
        warnings=tuple(f"CVAT shows no user {user}, an assignee" for user in unknown),
    )
