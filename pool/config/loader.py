"""``config.toml``, read into the frozen settings of :mod:`pool.config.settings`.

The whole file is read before anything is reported, so that one run names every problem. A problem
names the line, the key, what was expected and what was found; what looks like a credential is
never shown. ``config.toml`` at the root of the repository documents every key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

from pydantic import TypeAdapter, ValidationError

from pool.config.arguments import TEMPLATE_NAME
from pool.config.data_params import (
    SOURCES,
    DataParams,
    explain_unknown,
    merged,
)
from pool.config.fields import Id, Stamp, Surroundings, WatchedFile, stamp
from pool.config.labels import name_of, read_labels, read_labels_file
from pool.config.problems import Problem, explain, mismatch, nearest, unknown_key
from pool.config.settings import (
    DEFAULT_TABLES,
    LABEL_SOURCES,
    NO_CACHE_STORAGE,
    TEMPLATE_TABLES,
    AssignmentSettings,
    CvatSettings,
    DaemonSettings,
    EventSettings,
    Settings,
    SinkSettings,
    SlotSettings,
    StoreSettings,
    Template,
    TokenSettings,
    against_groups,
    against_slots,
    keys_of,
)
from pool.config.toml import Key, key_lines, parse, show_key
from pool.errors import ConfigError, InputError
from pool.model import Role

Table = TypeVar("Table")
#: A value and its key in the file; and the members of a table by their names.
Placed = tuple[Key, Any]
Given = Mapping[str, Placed]

_TOP_TABLES: Final = ("cvat", "store", "daemon", "events", "tokens", "defaults", "templates")
_CREDENTIALS: Final = re.compile(
    r"(?:.*_)?(?:token|password|passwd|secret|username|user|login|credentials?|api_?key|pat)", re.I
)


class InvalidConfig(ConfigError):
    """The configuration is wrong."""

    def __init__(self, problems: tuple[Problem, ...], path: Path | None = None) -> None:
        self.problems = problems
        self.path = path
        #: As :attr:`Settings.files`, as far as the file could be understood.
        self.files: Mapping[Path, Stamp] = {}
        #: The settings of the tables beside the templates, where nothing is wrong with them.
        self.rest: Settings | None = None
        first, *others = self.lines()
        more = f" (and {len(others)} more: 'cvat-pool check' shows all)" if others else ""
        super().__init__(first + more)

    def lines(self) -> tuple[str, ...]:
        """Every problem on a line of its own, ``file:line: key: what is wrong``."""
        return tuple(problem.in_file(self.path) for problem in self.problems)


def find_config(environ: Mapping[str, str]) -> Path:
    """Return the configuration to use: what ``POOL_CONFIG`` names, else ``./config.toml``."""
    named = environ.get("POOL_CONFIG")
    path = Path(named) if named else Path("config.toml")
    if path.is_file():
        return path
    if named:
        raise ConfigError(f"POOL_CONFIG names {path}, which is not a file")
    raise ConfigError(
        f"there is no config.toml in {Path.cwd()}: 'cvat-pool init' writes one; --config or "
        "POOL_CONFIG names one that is elsewhere"
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


def _before_mistake(
    text: str, line: int, path: Path, environ: Mapping[str, str]
) -> Settings | None:
    """Return the settings before a line at which the text is no TOML, unless the store's table
    comes after it: then it is not known which store is meant."""
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


class _Reading:
    """One reading of one text: from the top down, collecting problems."""

    def __init__(
        self,
        text: str,
        path: Path | None,
        environ: Mapping[str, str],
        files: dict[Path, Stamp] | None = None,
    ) -> None:
        self._path = path
        self._surroundings = Surroundings(path.parent if path else None, environ, files or {})
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        raw = parse(text)
        if isinstance(raw, Problem):
            raise InvalidConfig((raw,), path)
        self._text, self._raw = text, raw

    def settings(self) -> Settings:
        for name in self._raw:
            if name not in _TOP_TABLES:
                self._problem((name,), unknown_key(name, _TOP_TABLES))
        server = self._top_table(CvatSettings, "cvat")
        store = self._top_table(StoreSettings, "store")
        daemon = self._top_table(DaemonSettings, "daemon")
        templates = self._templates(server)
        events = self._events(templates)
        tokens = self._tokens(templates)
        if self._problems:
            invalid = InvalidConfig(_in_order(self._problems), self._path)
            invalid.files = self._surroundings.files
            if not any(each.key.startswith(("cvat", "store")) for each in self._problems):
                invalid.rest = Settings(cvat=server, store=store, path=self._path)
            raise invalid
        return Settings(
            cvat=server,
            store=store,
            daemon=daemon,
            events=events,
            tokens=tokens,
            templates=templates,
            path=self._path,
            warnings=tuple(each.in_file(self._path) for each in _in_order(self._warnings)),
            files=self._surroundings.files,
        )

    # --- The tables, in the order of the file ---------------------------------------------------

    def _top_table(self, kind: type[Table], name: str) -> Table:
        return self._table(kind, self._members((name,), self._raw.get(name, {}), keys_of(kind)))

    def _events(self, templates: Mapping[str, Template]) -> EventSettings:
        key: Key = ("events",)
        given = self._members(key, self._raw.get("events", {}), keys_of(EventSettings))
        place, sinks = given.get("sinks", (key, []))
        if not isinstance(sinks, list):
            self._problem(place, mismatch("an array of tables, [[…]]", sinks))
            sinks = []
        read = [self._sink((*place, number), raw, templates) for number, raw in enumerate(sinks)]
        return EventSettings(sinks=tuple(filter(None, read)))

    def _sink(
        self, key: Key, raw: object, templates: Mapping[str, Template]
    ) -> SinkSettings | None:
        given = self._members(key, raw, keys_of(SinkSettings))
        if "url" not in given:
            if isinstance(raw, dict):
                self._problem(key, "the url is missing")
            return None
        sink = self._table(SinkSettings, given, url="http://wrong")
        self._known((*key, "templates"), sink.templates, templates)
        return sink

    def _tokens(self, templates: Mapping[str, Template]) -> dict[str, TokenSettings]:
        tokens: dict[str, TokenSettings] = {}
        places: dict[object, str] = {}
        for name, raw in self._mapping(("tokens",), self._raw.get("tokens", {})).items():
            key = ("tokens", name)
            self._check_name(key, name)
            given = self._members(key, raw, keys_of(TokenSettings))
            if not isinstance(raw, dict):
                continue
            if "role" not in given:
                self._problem(key, f"the role is missing: {', '.join(get_args(Role))}")
            if not given.keys() & {"secret", "secret_file"}:
                self._problem(
                    key,
                    'the secret is missing: name a variable that holds it, secret = "${NAME}", or '
                    "a file, secret_file",
                )
            token = self._table(TokenSettings, {"role": (key, "read"), **given}, role="read")
            self._known((*key, "templates"), token.templates, templates)
            place = token.secret_env or token.secret_file
            if place is not None and (other := places.setdefault(place, name)) != name:
                self._problem(key, f"its secret is that of tokens.{other}: each needs its own")
            tokens[name] = token
        return tokens

    def _known(self, key: Key, named: Iterable[str], templates: Mapping[str, Template]) -> None:
        """Report the templates that a list names and that there are not."""
        for position, name in enumerate(named):
            if name not in templates:
                near = nearest(name, templates)
                hint = f"; did you mean {near}?" if near else ""
                self._problem((*key, position), f"there is no template {name!r}{hint}")

    def _check_name(self, key: Key, name: str) -> None:
        if not TEMPLATE_NAME.fullmatch(name):
            what = "a name of 1 to 64 letters, digits, -, _ and ."
            self._problem(key, mismatch(what, name))

    def _templates(self, server: CvatSettings) -> dict[str, Template]:
        defaults = self._defaults()
        templates = {}
        for name, raw in self._mapping(("templates",), self._raw.get("templates", {})).items():
            self._check_name(("templates", name), name)
            templates[name] = self._template(name, raw, defaults, server)
        return templates

    def _defaults(self) -> dict[str, Given]:
        """Return [defaults], whose keys stand there flat or in tables named as in a template."""
        keys = {table: keys_of(TEMPLATE_TABLES[table]) for table in DEFAULT_TABLES}
        known = chain(DEFAULT_TABLES, *keys.values())
        given = self._members(("defaults",), self._raw.get("defaults", {}), known)
        defaults: dict[str, Given] = {}
        for table in DEFAULT_TABLES:
            key = ("defaults", table)
            own = self._members(key, given.get(table, (key, {}))[1], keys[table])
            flat = {name: each for name, each in given.items() if name in keys[table]}
            for name in own.keys() & flat.keys():
                self._problem(own[name][0], f"given twice, as defaults.{name} too")
            defaults[table] = {**flat, **own}
            # Whether they go together is seen in each template, which may have its own.
            self._table(TEMPLATE_TABLES[table], defaults[table], together=False)
        return defaults

    def _template(
        self, name: str, raw: object, defaults: Mapping[str, Given], server: CvatSettings
    ) -> Template:
        key = ("templates", name)
        own_keys = keys_of(AssignmentSettings)
        known = (*LABEL_SOURCES, *TEMPLATE_TABLES, "slots", *own_keys)
        given = self._members(key, raw, known)
        assignment = self._table(
            AssignmentSettings, {name: given[name] for name in own_keys if name in given}
        )
        tables: dict[str, Any] = {}
        places: dict[str, Given] = {}
        for table, kind in TEMPLATE_TABLES.items():
            own = self._members(*given.get(table, ((*key, table), {})), keys_of(kind))
            places[table] = {**defaults.get(table, {}), **own}
            tables[table] = self._table(kind, places[table])
        labels, project = self._labels(key, given)
        task, data = tables["task"], tables["data"]
        if assignment.assignees and task.assignee is not None:
            self._problem(
                given["assignees"][0],
                "give only one of assignees, who get the jobs, and task.assignee, who gets the "
                "task with all of them",
            )
        try:
            data = merged(
                DataParams(), data.model_dump(exclude_none=True), segment_size=task.segment_size
            )
        except InputError as error:
            words = error.detail.removeprefix("params: ")
            self._problem(_place_of(words, places["data"]), words)
        else:
            if tables["import"].grouping == "auto":
                # Where it is switched on, and what does not go with it, may stand apart.
                there = {**places["import"], **places["data"], **places["task"]}
                for name in against_groups(task, data):
                    self._problem(
                        there[name][0] if name in there else there["grouping"][0],
                        'grouping = "auto" gives each request a job of a shared task, and that '
                        f"does not go with {name} in CVAT",
                    )
        slots = self._slots(given["slots"], task, data, places) if "slots" in given else None
        if slots is not None and slots.per_task > tables["pool"].max_size:
            self._problem(
                (*given["slots"][0], "per_task"),
                f"per_task, {slots.per_task}, is above the pool's max_size, "
                f"{tables['pool'].max_size}, which counts slots",
            )
        return Template(
            name=name,
            labels=labels,
            project=project,
            task=task,
            data=data,
            pool=tables["pool"],
            importing=tables["import"],
            assignment=assignment,
            slots=slots,
            server=server,
        )

    def _slots(
        self, placed: Placed, task: Any, data: DataParams, places: Mapping[str, Given]
    ) -> SlotSettings | None:
        """Return a template's slots, if they are what can be, and go with the rest of it."""
        key = placed[0]
        given = self._members(*placed, keys_of(SlotSettings))
        required = [name for name in ("size", "storage", "server") if name not in given]
        if required:
            if isinstance(placed[1], dict):
                self._problem(key, f"{' and '.join(required)} is missing")
            return None
        stand_in: dict[str, Any] = {
            "size": "1x1",
            "storage": "s3://wrong",
            "server": "cloud:1",
        }
        if "cache_storage" not in given and str(given["server"][1]).startswith("share:"):
            self._problem(key, NO_CACHE_STORAGE)
            stand_in["cache_storage"] = 1
        slots = self._table(SlotSettings, given, **stand_in)
        there = {**places["data"], **places["task"]}
        for name in against_slots(task, data):
            self._problem(
                there[name][0] if name in there else key,
                "slots are jobs over placeholder files that CVAT reads when a person looks, and "
                f"that does not go with {name}",
            )
        return slots

    def _labels(self, key: Key, given: Given) -> tuple[tuple[dict[str, Any], ...], int | None]:
        """Return a template's labels, or the project that has them: from exactly one key."""
        sources = [source for source in LABEL_SOURCES if source in given]
        if not sources:
            self._problem(
                key,
                'labels are missing: give labels = [{ name = "car" }], labels_file = "labels.json" '
                "or project = 12 (labels = [] makes tasks without labels)",
            )
            return (), None
        if len(sources) > 1:
            message = f"give only one of {', '.join(sources)}"
            self._problem((*key, sources[1]), message)
            return (), None
        place, value = given[sources[0]]
        match sources[0]:
            case "project":
                return (), self._value(Id, place, value)
            case "labels":
                return self._checked_labels(value, place), None
        path = self._value(WatchedFile, place, value)
        if path is None:
            return (), None
        content = read_labels_file(path, lambda what: self._problem(place, what))
        return self._checked_labels(content, place, path), None

    def _checked_labels(
        self, raw: object, place: Key, path: Path | None = None
    ) -> tuple[dict[str, Any], ...]:
        """Return labels of the file itself, or of the JSON in ``path``, which has no lines."""

        def placed(at: Key, what: str) -> tuple[Key, str]:
            if path is None:
                return place + at, what
            named = str(path), name_of(raw, at), show_key(at), what
            return place, ": ".join(filter(None, named))

        return read_labels(
            raw,
            lambda at, what: self._problem(*placed(at, what)),
            lambda at, what: self._warnings.append(self._at(*placed(at, what))),
        )

    # --- The steps that all tables share --------------------------------------------------------

    def _table(
        self,
        kind: type[Table],
        given: Given,
        *,
        together: bool = True,
        **fallback: object,
    ) -> Table:
        """Return a table of the settings. A key with an invalid value gets its default, or the
        ``fallback``. Without ``together`` each key is checked by itself only."""
        given = dict(given)
        wrong: set[str] = set()
        while True:
            values = {name: value for name, (_, value) in given.items()}
            try:
                return TypeAdapter(kind).validate_python(
                    {**fallback, **values},
                    context=self._surroundings,
                    by_alias=True,
                    by_name=False,
                )
            except ValidationError as error:
                errors = error.errors(include_url=False)
            for each in errors:
                words = explain(each)
                if each["loc"]:
                    name = str(each["loc"][0])
                    wrong.add(name)
                    self._problem((*given[name][0], *each["loc"][1:]), words)
                else:
                    # Each value is valid, but not with the others.
                    named = _names_in(words)
                    if together and not named & wrong:
                        self._problem(_place_of(words, given), words)
                    wrong |= named & given.keys() or given.keys()
            given = {name: each for name, each in given.items() if name not in wrong}

    def _value(self, kind: Any, key: Key, value: object) -> Any:
        """Return one value of a type, or None where it is invalid."""
        try:
            return TypeAdapter(kind).validate_python(value, context=self._surroundings)
        except ValidationError as error:
            self._problem(key, explain(error.errors(include_url=False)[0]))
            return None

    def _members(self, key: Key, raw: object, known: Iterable[str]) -> dict[str, Placed]:
        """Return the members of a table that are ``known``, each with its place."""
        known, placed = tuple(known), {}
        for name, value in self._mapping(key, raw).items():
            place = (*key, name)
            if name in known:
                placed[name] = (place, value)
            else:
                self._problem(place, _explain_unknown(place, known))
        return placed

    def _mapping(self, key: Key, raw: object) -> Mapping[str, Any]:
        if isinstance(raw, dict):
            return raw
        self._problem(key, mismatch(f"a table, [{show_key(key)}]", raw))
        return {}

    def _problem(self, key: Key, message: str) -> None:
        self._problems.append(self._at(key, message))

    @cached_property
    def _lines(self) -> Mapping[Key, int]:
        # Computed at the first problem only, since that takes longer than reading.
        return key_lines(self._text)

    def _at(self, key: Key, message: str) -> Problem:
        place = key
        while place and place not in self._lines:
            place = place[:-1]
        line = self._lines.get(place, 0)
        return Problem(line, show_key(key), " ".join(message.split()))


def _names_in(words: str) -> set[str]:
    return set(re.findall(r"\w+", words))


def _place_of(words: str, given: Given) -> Key:
    """Return the key of a contradiction, by the keys that its ``words`` name: at a template's own
    rather than at a default, which may suit others."""
    places = [given[name][0] for name in re.findall(r"\w+", words) if name in given]
    return min(places, key=lambda place: place[0] == "defaults", default=("templates",))


def _explain_unknown(key: Key, known: Iterable[str]) -> str:
    """Return the message for a key that does not belong where it stands, among the ``known``."""
    name = str(key[-1])
    if _CREDENTIALS.fullmatch(name):
        if key[0] == "daemon":
            return "tokens never stand here: set POOL_API_TOKEN in the environment"
        if key[0] in ("events", "tokens"):
            return (
                'credentials never stand here: secret = "${NAME}" names a variable that holds one'
            )
        return (
            "credentials never stand here: set CVAT_ACCESS_TOKEN, or CVAT_USERNAME and "
            "CVAT_PASSWORD, in the environment, or use access_token_file, or profile for a "
            "profile that cvat-cli has saved"
        )
    if name in SOURCES:
        return explain_unknown(name)
    # Elsewhere than in a template, only the defaults of a task are a likely slip.
    candidates = {"templates": tuple(TEMPLATE_TABLES), "defaults": ("task",)}.get(str(key[0]), ())
    for table in candidates:
        if name in keys_of(TEMPLATE_TABLES[table]):
            return f"unknown key here; it belongs in a template's table {table} = {{ … }}"
    return unknown_key(name, known)


def _in_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """Each problem once, in the order of the lines."""
    return tuple(sorted(dict.fromkeys(problems), key=lambda problem: problem.line))
