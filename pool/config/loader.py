"""``config.toml``, read into the frozen settings of :mod:`pool.config.settings`.

The whole file is read before anything is said, so that one run names every problem. A problem
names the line, the key, what was expected and what was found; what looks like a credential is
never shown. ``config.toml`` at the root of the repository documents every key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pool.config.data_params import DataParams, merged
from pool.config.keys import (
    CVAT,
    DAEMON,
    DEFAULT_TABLES,
    EVENTS,
    LABEL_SOURCES,
    SINK,
    STORE,
    TEMPLATE_NAME,
    TEMPLATE_TABLES,
    TOP_TABLES,
    explain_unknown,
)
from pool.config.labels import name_of, read_labels, read_labels_file
from pool.config.lines import Key, key_lines, show_key
from pool.config.problems import InvalidConfig, Problem, parse
from pool.config.settings import (
    CvatSettings,
    DaemonSettings,
    EventSettings,
    ImportSettings,
    PoolSettings,
    Settings,
    SinkSettings,
    Stamp,
    StoreSettings,
    TaskSettings,
    Template,
)
from pool.config.values import Reader, Unfit, expected, nearest, text, unknown_key, whole
from pool.errors import ConfigError, InputError

__all__ = ["InvalidConfig", "Problem", "find_config", "load", "loads", "require_templates", "stamp"]


def find_config(environ: Mapping[str, str]) -> Path:
    """The configuration to use: the file that ``POOL_CONFIG`` names, else ``./config.toml``."""
    named = environ.get("POOL_CONFIG")
    path = Path(named) if named else Path("config.toml")
    if path.is_file():
        return path
    if named:
        raise ConfigError(f"POOL_CONFIG names {path}, which is not a file")
    raise ConfigError(
        f"there is no config.toml in {Path.cwd()}: go where it is, or name it in POOL_CONFIG"
    )


def load(path: str | Path, *, environ: Mapping[str, str] | None = None) -> Settings:
    """Read a file. Relative paths in it start from its own folder.

    ``${NAME}`` in ``access_token_file`` and ``labels_file`` is taken from ``environ`` (default:
    the process's), as for ``${CREDENTIALS_DIRECTORY}`` of systemd. Raises
    :class:`~pool.errors.ConfigError`.
    """
    path = Path(path)
    environ = os.environ if environ is None else environ
    files = {path: stamp(path)}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidConfig((Problem(line, "", "not valid UTF-8"),), path) from None
    try:
        reading = _Reading(decoded, path, environ, files)
    except InvalidConfig as error:
        error.files = files
        error.rest = _before_mistake(decoded, error.problems[0].line, path, environ)
        raise
    return reading.settings()


def require_templates(settings: Settings) -> None:
    """
    :raises ConfigError: there is no template, so that a daemon would have nothing to do.
    """
    if not settings.templates:
        place = f"{settings.path}: " if settings.path else ""
        raise ConfigError(
            f"{place}there is no template: add one, as a table [templates.street-scenes] with "
            'labels = [{ name = "car" }]'
        )


def stamp(path: Path) -> Stamp:
    """What tells the file as it is now from what it was, or will be."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _before_mistake(
    text: str, line: int, path: Path, environ: Mapping[str, str]
) -> Settings | None:
    """What the tables say that stand before a line at which the text is no TOML, unless the store's
    stands after it: then it is not known which store is meant."""
    lines = text.splitlines(keepends=True)
    headers = [number for number in range(min(line, len(lines))) if lines[number][0] == "["]
    end = headers[-1] if headers else 0
    if any(each.lstrip().startswith(("[store]", "store.")) for each in lines[end:]):
        return None
    try:
        return _Reading("".join(lines[:end]), path, environ).settings()
    except InvalidConfig as error:
        return error.rest


def loads(text: str, *, path: str | Path | None = None) -> Settings:
    """Read a text. ``path`` is what messages call it, and where its relative paths start from."""
    return _Reading(text, None if path is None else Path(path), os.environ).settings()


@dataclass
class _Table:
    """What a table of the file says, as far as it will do."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Key] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)

    def over(self, other: _Table) -> _Table:
        """This table with what the other one says where this one is silent."""
        return _Table(
            {**other.values, **self.values},
            {**other.places, **self.places},
            (other.wrong - self.values.keys()) | self.wrong,
        )

    def only(self, names: Container[str]) -> _Table:
        """This table without any other keys."""
        return _Table(
            {name: value for name, value in self.values.items() if name in names},
            {name: place for name, place in self.places.items() if name in names},
            {name for name in self.wrong if name in names},
        )


class _Reading:
    """One reading of one text: from the top down, collecting problems."""

    def __init__(
        self,
        text: str,
        path: Path | None,
        environ: Mapping[str, str],
        files: Mapping[Path, Stamp] | None = None,
    ) -> None:
        self._path = path
        self._environ = environ
        self._files = dict(files or {})
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._raw = parse(text, path)
        self._lines = key_lines(text)

    def settings(self) -> Settings:
        for name in self._raw:
            if name not in TOP_TABLES:
                self._problem((name,), unknown_key(name, TOP_TABLES))
        server = self._cvat()
        store = self._store()
        daemon = self._read(("daemon",), self._raw.get("daemon", {}), DAEMON).values
        templates = self._templates(server)
        events = self._events(templates)
        if self._problems:
            invalid = InvalidConfig(_in_order(self._problems), self._path)
            invalid.files = self._files
            if not any(each.key.startswith(("cvat", "store")) for each in self._problems):
                invalid.rest = Settings(cvat=server, store=store, path=self._path)
            raise invalid
        return Settings(
            cvat=server,
            store=store,
            daemon=DaemonSettings(**daemon),
            events=events,
            templates=templates,
            path=self._path,
            warnings=tuple(each.in_file(self._path) for each in _in_order(self._warnings)),
            files=self._files,
        )

    # --- The tables, in the order of the file ---------------------------------------------------

    def _cvat(self) -> CvatSettings:
        values = self._read(("cvat",), self._raw.get("cvat", {}), CVAT).values
        if "access_token_file" in values:
            key = ("cvat", "access_token_file")
            values["access_token_file"] = self._watched(values["access_token_file"], key)
        return CvatSettings(**values)

    def _store(self) -> StoreSettings:
        values = self._read(("store",), self._raw.get("store", {}), STORE).values
        if self._path is not None:
            values["url"] = self._store_url(values.get("url", StoreSettings.url))
        if "spool" in values:
            folder = self._file(values["spool"], ("store", "spool"))
            # As with the store: the same one from wherever a process is started.
            values["spool"] = folder.resolve() if folder and self._path else folder
        return StoreSettings(**values)

    def _events(self, templates: Mapping[str, Template]) -> EventSettings:
        key = ("events",)
        values = self._read(key, self._raw.get("events", {}), EVENTS).values
        return EventSettings(
            sinks=tuple(
                self._sink((*key, "sinks", position), raw, templates)
                for position, raw in enumerate(values.get("sinks", ()))
            )
        )

    def _sink(self, key: Key, raw: object, templates: Mapping[str, Template]) -> SinkSettings:
        values = self._read(key, raw, SINK).values
        given = raw if isinstance(raw, dict) else {"url": None}
        if "url" not in given:
            self._problem(key, "the url is missing")
        if "secret" in given and "secret_file" in given:
            self._problem((*key, "secret_file"), "give only one of secret, secret_file")
        for position, name in enumerate(values.get("templates", ())):
            if name not in templates:
                near = nearest(name, templates)
                message = f"there is no template {name!r}"
                self._problem(
                    (*key, "templates", position),
                    f"{message}; did you mean {near}?" if near else message,
                )
        if "secret_file" in values:
            values["secret_file"] = self._watched(values["secret_file"], (*key, "secret_file"))
        values["secret_env"] = values.pop("secret", None)
        return SinkSettings(**{"url": "", **values})

    def _templates(self, server: CvatSettings) -> dict[str, Template]:
        defaults = self._defaults()
        templates = {}
        for name, raw in self._members(("templates",), self._raw.get("templates", {})).items():
            key = ("templates", name)
            if not TEMPLATE_NAME.fullmatch(name):
                what = "a name of 1 to 64 letters, digits, -, _ and ."
                self._problem(key, str(expected(what, name)))
            templates[name] = self._template(name, self._members(key, raw), defaults, server)
        return templates

    def _defaults(self) -> dict[str, _Table]:
        """[defaults], whose keys stand there flat or in tables named as in a template."""
        raw = self._members(("defaults",), self._raw.get("defaults", {}))
        flat = {name: value for name, value in raw.items() if name not in DEFAULT_TABLES}
        readers = {
            name: reader
            for table in DEFAULT_TABLES
            for name, reader in TEMPLATE_TABLES[table].items()
        }
        both = self._read(("defaults",), flat, readers)
        defaults = {}
        for table in DEFAULT_TABLES:
            key = ("defaults", table)
            own = self._read(key, raw.get(table, {}), TEMPLATE_TABLES[table])
            for name in own.places.keys() & both.places.keys():
                self._problem(own.places[name], f"given twice, as defaults.{name} too")
            defaults[table] = own.over(both.only(TEMPLATE_TABLES[table]))
        return defaults

    def _template(
        self,
        name: str,
        raw: Mapping[str, Any],
        defaults: Mapping[str, _Table],
        server: CvatSettings,
    ) -> Template:
        key = ("templates", name)
        known = (*LABEL_SOURCES, *TEMPLATE_TABLES)
        for given in raw:
            if given not in known:
                self._problem((*key, given), explain_unknown((*key, given), known))
        tables = {}
        for table, readers in TEMPLATE_TABLES.items():
            own = self._read((*key, table), raw.get(table, {}), readers)
            tables[table] = own.over(defaults.get(table, _Table()))
        task = TaskSettings(**tables["task"].values)
        pool = PoolSettings(**tables["pool"].values)
        self._contradictions(task, tables["task"])
        self._contradictions(pool, tables["pool"])
        labels, project = self._labels(key, raw)
        return Template(
            name=name,
            labels=labels,
            project=project,
            task=task,
            data=self._data(tables["data"], task),
            pool=pool,
            importing=ImportSettings(**tables["import"].values),
            server=server,
        )

    def _labels(
        self, key: Key, raw: Mapping[str, Any]
    ) -> tuple[tuple[dict[str, Any], ...], int | None]:
        """A template's labels, or the project that has them: from exactly one of three keys."""
        given = [source for source in LABEL_SOURCES if source in raw]
        if len(given) > 1:
            message = f"give only one of {', '.join(given)}"
            self._problem((*key, given[1]), message)
        elif not given:
            self._problem(
                key,
                'labels are missing: give labels = [{ name = "car" }], labels_file = "labels.json" '
                "or project = 12 (labels = [] makes tasks without labels)",
            )
        elif given == ["project"]:
            values = self._read(key, {"project": raw["project"]}, {"project": whole(1)}).values
            return (), values.get("project")
        elif given == ["labels"]:
            place = (*key, "labels")
            return read_labels(
                raw["labels"],
                lambda at, what: self._problem(place + at, what),
                lambda at, what: self._warning(place + at, what),
            ), None
        else:
            return self._labels_from_file((*key, "labels_file"), raw["labels_file"]), None
        return (), None

    def _labels_from_file(self, key: Key, value: object) -> tuple[dict[str, Any], ...]:
        try:
            path = self._watched(text(most=4096, blank=False)(value), key)
            content = read_labels_file(path) if path else []
        except Unfit as error:
            self._problem(key, str(error))
            return ()

        def said(at: Key, what: str) -> str:
            return ": ".join(filter(None, (str(path), name_of(content, at), show_key(at), what)))

        return read_labels(
            content,
            lambda at, what: self._problem(key, said(at, what)),
            lambda at, what: self._warning(key, said(at, what)),
        )

    # --- The steps that all tables share --------------------------------------------------------

    def _read(self, key: Key, raw: object, readers: Mapping[str, Reader]) -> _Table:
        table = _Table()
        for name, value in self._members(key, raw).items():
            place = (*key, name)
            reader = readers.get(name)
            if reader is None:
                self._problem(place, explain_unknown(place, readers))
                continue
            table.places[name] = place
            try:
                table.values[name] = reader(value)
            except Unfit as error:
                table.wrong.add(name)
                self._problem(place, str(error))
        return table

    def _members(self, key: Key, raw: object) -> Mapping[str, Any]:
        if isinstance(raw, dict):
            return raw
        self._problem(key, str(expected(f"a table, [{show_key(key)}]", raw)))
        return {}

    def _data(self, table: _Table, task: TaskSettings) -> DataParams:
        """Data parameters, each of which will do for itself, if they do together."""
        try:
            return merged(DataParams(), table.values, segment_size=task.segment_size)
        except InputError as error:
            named = re.findall(r"\w+", error.detail)
            self._problem(self._nearest_place(table, named), error.detail.removeprefix("params: "))
            return DataParams()

    def _contradictions(self, settings: TaskSettings | PoolSettings, table: _Table) -> None:
        """Values that will do, each for itself, but not together."""
        match settings:
            case PoolSettings(min_size=low, max_size=high) if low > high:
                names, message = (
                    ("min_size", "max_size"),
                    f"min_size, {low}, is above max_size, {high}",
                )
            case TaskSettings(overlap=int(low), segment_size=high) if low >= high > 0:
                names = ("overlap", "segment_size")
                message = f"overlap, {low}, must be less than segment_size, {high}"
            case _:
                return
        if not table.wrong.intersection(names):
            self._problem(self._nearest_place(table, names), message)

    def _nearest_place(self, table: _Table, names: Iterable[str]) -> Key:
        """Where to look: at a template's own key rather than a default, which may suit others."""
        places = [table.places[name] for name in names if name in table.places]
        return min(places, key=lambda place: place[0] == "defaults", default=("templates",))

    def _problem(self, key: Key, message: str) -> None:
        self._problems.append(self._at(key, message))

    def _warning(self, key: Key, message: str) -> None:
        self._warnings.append(self._at(key, message))

    def _at(self, key: Key, message: str) -> Problem:
        place = key
        while place and place not in self._lines:
            place = place[:-1]
        line = self._lines.get(place, 0)
        return Problem(line, show_key(key), " ".join(message.split()))

    # --- Paths ----------------------------------------------------------------------------------

    def _file(self, value: str, key: Key) -> Path | None:
        """A path from the file: ``${NAME}`` and ``~`` filled in, relative to the file's folder."""
        missing = [name for name in re.findall(r"\$\{(\w+)\}", value) if name not in self._environ]
        if missing:
            self._problem(key, f"the environment has no {missing[0]}")
            return None
        filled = re.sub(r"\$\{(\w+)\}", lambda match: self._environ[match[1]], value)
        try:
            return self._folder() / Path(filled).expanduser()
        except RuntimeError:
            self._problem(key, str(expected("a path from a home folder that exists", value)))
            return None

    def _watched(self, value: str, key: Key) -> Path | None:
        """The path of a file whose content matters, noted before anybody reads it."""
        path = self._file(value, key)
        if path is not None:
            self._files[path] = stamp(path)
        return path

    def _store_url(self, url: str) -> str:
        """The same store from whatever folder a process is started in."""
        scheme, _, path = url.partition(":///")
        return f"{scheme}:///{self._folder().resolve() / path}"

    def _folder(self) -> Path:
        return self._path.parent if self._path else Path()


def _in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """Each problem once, in the order of the lines."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: problem.line))
