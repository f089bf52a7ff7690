"""The checks of ``cvat-pool check``: from the configuration file to a task of each template."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import Final

from pool.clock import Clock, StoreClock, parse_time
from pool.config.loader import InvalidConfig, require_templates
from pool.config.settings import (
    SLOT_FORMATS,
    DaemonSettings,
    Settings,
    SlotSettings,
    StoreSettings,
    Template,
    TokenSettings,
)
from pool.config.tokens import OPERATORS, Tokens, read_secret, tokens_in
from pool.cvat import CvatClient, connect
from pool.errors import (
    ConfigError,
    CvatBusy,
    CvatError,
    CvatForbidden,
    PoolError,
    SlotStorageUnavailable,
)
from pool.events.sinks import sink_names
from pool.http.server import check_exposure, listen
from pool.maintenance.placeholders import carrier_keys, import_placeholders
from pool.model import DaemonRecord, check_name, new_id, pool_mark
from pool.observability.status import own_spools
from pool.requests.breaker import with_advice
from pool.requests.shared_spool import SharedSpool
from pool.requests.slot_pictures import placeholder
from pool.requests.slot_storage import SlotStorage
from pool.requests.spool_files import check_folder
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
    operators = tokens_in(environ.get(OPERATORS))
    yield _checked(
        "exposure",
        lambda: check_exposure(settings.daemon, guarded=bool(operators or settings.tokens)),
        f"listens at {settings.daemon.host}",
    )
    yield from _check_tokens(settings.tokens, operators, environ)
    for name, sink in zip(sink_names(settings.events.sinks), settings.events.sinks, strict=True):
        signed = sink.secret_env is not None or sink.secret_file is not None
        yield _checked(
            f"sink {name}",
            partial(read_secret, sink, environ, of="a sink"),
            "its secret was found" if signed else "not signed",
        )
    try:
        yield _checked("spool", partial(_check_spool, settings.store), spool_words(settings.store))
    except ConfigError as error:
        yield CheckResult(name="spool", error=error)


def _check_spool(store: StoreSettings) -> None:
    check_folder(store.spool_folder)
    if store.spool_address is not None:
        # Whether the bucket can be reached is no condition for a start.
        SharedSpool(store.spool_address, "").check_client()


def spool_words(store: StoreSettings) -> str:
    """Return where the data of requests waits, and with what.

    :raises ConfigError: the user has no folder for it.
    """
    if store.spool_address is not None:
        return f"{store.spool_address}, and {store.spool_folder} as its cache"
    if store.waits_with_machine:
        return f"{store.spool_folder}; data in it waits with this machine, {socket.gethostname()}"
    return str(store.spool_folder)


def _check_shared_spool(address: str, pool_id: str) -> CheckResult:
    return _checked(
        "shared spool",
        SharedSpool(address, pool_id).check,
        f"{address}: one entry written, read and deleted",
    )


def _check_daemons(store: Store, clock: Clock) -> CheckResult:
    """Say which daemons are alive, and whether each has a spool of its own."""
    daemons = store.daemons(now=clock.now())
    words = own_spools(daemons, store.spools())
    count = len(daemons)
    detail = "none is alive" if not count else f"{count} alive" if count > 1 else "one is alive"
    return CheckResult(name="daemons", detail=detail, warnings=(words,) if words else ())


def run_checks(
    settings: Settings, *, environ: Mapping[str, str], clock: Clock
) -> Iterator[CheckResult]:
    """Yield the results of all checks; those that depend on a failed one are left out.

    For each template one task is created and deleted, and one more with a slot where it has some.
    """
    yield from before_start(settings, environ)
    with ExitStack() as opened:
        name = "store"
        try:
            store = opened.enter_context(closing(open_store(settings.store.url)))
            yield CheckResult(name=name, detail=f"pool {store.pool_id}")
            yield _checked("store writable", store.check_writable, settings.store.place)
            if settings.store.spool_address is not None:
                yield _check_shared_spool(settings.store.spool_address, store.pool_id)
            yield _check_daemons(store, StoreClock(store.time, clock))
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
            if template.slots is not None:
                yield _check_slots(cvat, store.pool_id, template, clock)


def _checked(name: str, check: Callable[[], object], detail: str) -> CheckResult:
    """Return the result of a check that raises an error if it fails; ``detail`` if it passes."""
    try:
        check()
    except PoolError as error:
        return CheckResult(name=name, error=error)
    return CheckResult(name=name, detail=detail)


def _check_tokens(
    settings: Mapping[str, TokenSettings], operators: tuple[str, ...], environ: Mapping[str, str]
) -> Iterator[CheckResult]:
    """Check that the secret of each token is found, and is no other's."""
    good: dict[str, TokenSettings] = {}
    for name, token in settings.items():
        result = _checked(
            f"token {name}",
            partial(Tokens, {**good, name: token}, operators=operators, environ=environ),
            f"{token.role}, {', '.join(token.templates) or 'all templates'}; its secret was found",
        )
        if result.ok:
            good[name] = token
        yield result


def _check_port(daemon: DaemonSettings, store: Store, clock: Clock) -> CheckResult:
    free = f"{daemon.host}:{daemon.port} is free"
    result = _checked("port", lambda: listen(daemon).close(), free)
    if not result.ok and _is_here(daemon, store.daemons(now=clock.now())):
        return CheckResult(name="port", detail="in use by a daemon that is at work on the store")
    return result


def _is_here(settings: DaemonSettings, daemons: Iterable[DaemonRecord]) -> bool:
    """Whether one of the daemons has the address."""
    here = f"{socket.gethostname()}:"
    port = f":{settings.port}"
    return any(each.owner.startswith(here) and each.url.endswith(port) for each in daemons)


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
            detail = f"{token.name}, expires in {days:.0f} day{'' if round(days) == 1 else 's'}"
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


# --- Slots ----------------------------------------------------------------------------------------

#: Seconds for which the import of one slot is waited for.
IMPORT_PATIENCE: Final = 60.0
#: What the slot is filled with; a placeholder is dark grey.
_COLOUR: Final = (230, 60, 200)


def _check_slots(cvat: CvatClient, pool_id: str, template: Template, clock: Clock) -> CheckResult:
    """Prove by one slot, filled and shown, that storage and server are the same place, and that
    CVAT's cache is dropped; what is made is deleted."""
    trial = _Trial(cvat, pool_id, template, clock)
    name = f"slots of {template.name}"
    try:
        detail = trial.run()
    except PoolError as error:
        return CheckResult(name=name, detail=trial.why(error), error=error)
    return CheckResult(name=name, detail=detail)


class _Trial:
    """One slot that is made, filled and shown, to see whether that works."""

    def __init__(self, cvat: CvatClient, pool_id: str, template: Template, clock: Clock) -> None:
        assert template.slots is not None
        self._slots = replace(template.slots, per_task=1)
        self._template = replace(
            template,
            slots=self._slots,
            importing=replace(
                template.importing, timeout=min(IMPORT_PATIENCE, template.importing.timeout)
            ),
        )
        self._cvat, self._clock = cvat, clock
        self._storage = SlotStorage(self._slots, pool_id)
        self._folder = new_id(clock.now())
        self._name = check_name(pool_id, template.name, self._folder)
        self._keys = carrier_keys(self._storage, self._folder, self._slots)
        self._task_id: int | None = None
        #: What is being tried, and what to do where that fails.
        self._doing, self._advice = "", ""

    def why(self, error: PoolError) -> str:
        """Return in one line what has failed, and what to do."""
        if isinstance(error, SlotStorageUnavailable):
            return str(error)  # it says both
        return f"{self._doing}: {error}{self._advice and f' ({self._advice})'}"

    def run(self) -> str:
        """Try it all; return what is proved.

        :raises PoolError: it does not work; :meth:`why` says what.
        """
        self._step(f"storage {self._slots.storage}")
        is_new = False
        try:
            self._storage.require()
        except SlotStorageUnavailable:
            # Where it is another trouble than that of a new storage, that comes up here.
            self._storage.mark()
            is_new = True
        proved = False
        try:
            self._prove()
            proved = True
        finally:
            with ExitStack() as cleaning:
                if not proved:
                    cleaning.enter_context(suppress(PoolError))
                # In the reverse order, each whatever becomes of the others.
                if is_new and not proved:
                    cleaning.callback(self._storage.unmark)
                cleaning.callback(self._storage.delete, self._keys)
                if self._task_id is not None:
                    cleaning.callback(self._cvat.delete_task, self._task_id)
                if proved:
                    self._step("deleting what was made for the check", self._name)
        marked = ", marked as new" if is_new else ""
        return (
            f"{self._slots.storage}{marked} is {self._slots.server}; one slot filled and shown "
            "(and deleted)"
        )

    def _step(self, doing: str, advice: str = "") -> None:
        self._doing, self._advice = doing, advice

    def _prove(self) -> None:
        cvat, slots, storage = self._cvat, self._slots, self._storage
        self._step("creating a task", "the token has to be allowed to create tasks")
        self._task_id = cvat.create_task(self._template.create_fields, self._name)
        cvat.prepare_upload(self._task_id)
        where = storage.on_server(self._keys[0])
        self._step(
            f"importing {where} from {slots.server}",
            f"is {slots.storage} the same place, and mounted where CVAT's workers run?",
        )
        import_placeholders(
            cvat, self._template, storage, self._task_id, self._folder, clock=self._clock
        )
        self._step(f"reading {where} through CVAT", self._advice)
        self._expect(placeholder(slots), "another picture than its placeholder")
        self._step(f"filling {slots.storage}")
        picture = _picture(slots)
        storage.write(self._keys[0], picture)
        # Whether CVAT has noticed already does not matter.
        self._read()
        self._step(
            f"dropping CVAT's cache by cloud storage {slots.drops_with}",
            "it has to be the id of a cloud storage that CVAT can reach, and the token may use",
        )
        hidden = cvat.show_frames(self._task_id, (), cloud_storage_id=slots.drops_with)
        if hidden:
            raise ConfigError(f"CVAT shows all but {len(hidden)} of {len(self._keys)} frames")
        self._step(
            "reading the filled slot through CVAT",
            "naming a cloud storage drops what was cached since CVAT 2.44; or the server reads a "
            "copy of the storage that comes later",
        )
        self._expect(picture, "the placeholder still, after its cache was dropped")

    def _expect(self, picture: bytes, else_: str) -> None:
        wanted = _mean(picture)
        for found in map(_mean, self._read()):
            if max(abs(one - other) for one, other in zip(found, wanted, strict=True)) > 25:
                raise ConfigError(f"CVAT shows {else_}")

    def _read(self) -> list[bytes]:
        assert self._task_id is not None
        return [
            self._cvat.frame(self._task_id, 0, "compressed"),
            self._cvat.frame(self._task_id, 0, "original"),
        ]


def _picture(slots: SlotSettings) -> bytes:
    from PIL import Image

    stream = BytesIO()
    Image.new("RGB", slots.dimensions, _COLOUR).save(stream, SLOT_FORMATS[slots.format])
    return stream.getvalue()


def _mean(picture: bytes) -> tuple[int, ...]:
    """Return the mean colour of a picture.

    :raises CvatError: it is none.
    """
    from PIL import Image

    try:
        with Image.open(BytesIO(picture)) as image:
            pixel = image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    except OSError:
        raise CvatError("the frame is no picture") from None
    assert isinstance(pixel, tuple)
    return pixel
