"""``cvat-pool init``: write a configuration for a CVAT server of one's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from pool.cli.options import JsonOption
from pool.cli.output import counted, hint, print_json
from pool.cli.table import Column, table
from pool.errors import InputError

if TYPE_CHECKING:
    from pool.config.settings import CvatSettings
    from pool.cvat import CvatClient, Project

T = TypeVar("T")

#: Projects that are shown with their labels, the newest: each costs a call.
MOST_SHOWN: Final = 20
#: The largest min_size whose max_size is the default.
_USUAL_MAX_SIZE: Final = 200
_BARE_KEY: Final = re.compile(r"[0-9A-Za-z_-]+")


def init(
    url: Annotated[
        str | None,
        typer.Option(help="The address of CVAT; by default $CVAT_URL.", show_default=False),
    ] = None,
    organization: Annotated[
        str, typer.Option(help="Slug of the organization; by default the personal workspace.")
    ] = "",
    project: Annotated[
        str | None,
        typer.Option(help="Id or name of the project whose labels to use.", show_default=False),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help='Labels in place of a project\'s, such as "car,person".',
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The name of the template; made from the project's by default."
        ),
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option(min=0, max=10_000, help="Tasks to keep warm; by default 5.", metavar="COUNT"),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path(
        "config.toml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a configuration for your CVAT server: asks on a terminal, or takes options.

    Credentials are read from the environment (CVAT_ACCESS_TOKEN, or CVAT_USERNAME and
    CVAT_PASSWORD) and never written. Creates nothing on the server.
    """
    from pool.cvat import connect

    _check_free(output, force)
    if project is not None and labels is not None:
        raise InputError("give either --project or --labels: a template has the labels of one")
    asks = sys.stdin.isatty() and sys.stderr.isatty()
    names = None if labels is None else _labels_in(labels)
    named = None if template is None else _template_name(template)
    server = _server(url or os.environ.get("CVAT_URL"), organization, asks)
    with closing(connect(server)) as cvat:
        _greet(cvat, asks)
        chosen = None
        if names is None:
            chosen = _choose_project(cvat, project, asks)
            names = chosen.labels if chosen else _ask("Labels, such as car, person", _labels_in)
    if named is None:
        suggested = _slug(chosen.project.name) if chosen else "street-scenes"
        named = _ask("Name of the template", _template_name, suggested) if asks else suggested
    if min_size is None:
        min_size = _ask("Tasks to keep warm", _count, "5") if asks else 5
    _write(output, force, _text(server, named, chosen, names, min_size))
    option = "" if output == Path("config.toml") else f" --config {output}"
    following = [f"cvat-pool check{option}", f"cvat-pool run{option}"]
    if as_json:
        print_json(
            {
                "path": output,
                "url": server.url,
                "organization": server.organization,
                "template": named,
                "project": chosen.project.id if chosen else None,
                "labels": names,
                "min_size": min_size,
                "next": following,
            }
        )
    else:
        source = f"project {chosen.project.id}" if chosen else f"labels {', '.join(names)}"
        print(
            f"wrote {output}: template {named}, {source}, {counted(min_size, 'task')} to keep warm"
        )
    hint(f"Next: '{following[0]}', then '{following[1]}'")


# --- Questions ------------------------------------------------------------------------------------


def _ask(question: str, read: Callable[[str], T], default: str = "") -> T:
    """Ask until the answer can be used. The question stands on standard error, unlike that of
    :func:`input`.

    :raises typer.Abort: the input has ended.
    """
    shown = f" [{default}]" if default else ""
    while True:
        print(f"{question}{shown}: ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            raise typer.Abort
        try:
            return read(line.strip() or default)
        except InputError as error:
            hint(f"  {error.detail}")


def _labels_in(text: str) -> tuple[str, ...]:
    from pool.config.labels import read_labels

    names = tuple(filter(None, (name.strip() for name in text.split(","))))
    problems: list[str] = []
    read_labels(
        [{"name": name} for name in names],
        lambda _, what: problems.append(what),
        lambda *_: None,
    )
    if problems or not names:
        why = problems[0] if problems else 'name at least one, such as "car,person"'
        raise InputError(f"labels {text!r}: {why}")
    return names


def _template_name(text: str) -> str:
    from pool.config.arguments import TEMPLATE_NAME

    if not TEMPLATE_NAME.fullmatch(text):
        raise InputError(f"template {text!r}: its name is 1 to 64 letters, digits, -, _ and .")
    return text


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 10_000):
        raise InputError(f"{text!r}: give a number from 0 to 10000")
    return int(text)


def _server(url: str | None, organization: str, asks: bool) -> CvatSettings:
    def read(text: str) -> CvatSettings:
        from pydantic import ValidationError

        from pool.config.problems import explain
        from pool.config.settings import CvatSettings

        try:
            return CvatSettings(url=text, organization=organization)
        except ValidationError as error:
            wrong = error.errors(include_url=False)[0]
            raise InputError(f"--{wrong['loc'][0]}: {explain(wrong)}") from None

    if url:
        return read(url)
    if not asks:
        raise InputError("where is CVAT? give --url or set CVAT_URL")
    return _ask("Address of CVAT", read, "http://localhost:8080")


def _greet(cvat: CvatClient, asks: bool) -> None:
    """Show a person which server answers, and as whom.

    :raises PoolError: it does not answer, is too old, or refuses the credentials.
    """
    about = cvat.about()
    about.check()
    user, token = cvat.whoami(), cvat.access_token()
    if asks:
        hint(f"CVAT {about.version} at {cvat.server_url}, as {user.username}")
    if token is not None and token.read_only:
        hint(f"Warning: {token.refusal}")


@dataclass(frozen=True, slots=True)
class _Choice:
    """A project, and the names of its labels."""

    project: Project
    labels: tuple[str, ...]


def _choose_project(cvat: CvatClient, given: str | None, asks: bool) -> _Choice | None:
    """Return the project that is given, or the answer; None for labels of the template's own."""
    projects = cvat.projects()

    def read(text: str) -> _Choice:
        project = _find(projects, text.strip(), cvat)
        return _Choice(project, cvat.label_names(project.id))

    if given is not None:
        return read(given)
    if asks and not projects:
        hint("There are no projects, so the template has labels of its own.")
        return None
    shown = [(each, cvat.label_names(each.id)) for each in projects[-MOST_SHOWN:]]
    if not asks:
        listed = "; ".join(f"{each.id} {each.name} ({', '.join(names)})" for each, names in shown)
        raise InputError(
            f"give --project or --labels; the projects are {listed}"
            if listed
            else "give --labels, such as --labels car,person: there are no projects"
        )
    _list(shown, len(projects))
    return _ask(
        "Project, by id or name (none: labels of its own)",
        lambda text: read(text) if text else None,
    )


def _find(projects: Sequence[Project], text: str, cvat: CvatClient) -> Project:
    """Return the project of an id or a name.

    :raises InputError: there is none, or there are several of the name.
    """
    by_id = [each for each in projects if str(each.id) == text]
    found = by_id or [each for each in projects if each.name.casefold() == text.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(str(each.id) for each in found)
        raise InputError(f"there are several projects {text!r}: give the id, one of {ids}")
    where = f"organization {cvat.organization!r}" if cvat.organization else "personal workspace"
    known = ", ".join(f"{each.id} {each.name}" for each in projects[-MOST_SHOWN:])
    raise InputError(
        f"there is no project {text!r} in the {where} of this user"
        + (f"; there is {known}" if known else "")
    )


def _list(shown: Sequence[tuple[Project, tuple[str, ...]]], count: int) -> None:
    some = f"The newest {len(shown)} of {count} projects" if count > len(shown) else "Projects"
    hint(f"{some}, with their labels:")
    columns = [
        Column(heading="id", values=[str(project.id) for project, _ in shown], right=True),
        Column(heading="name", values=[project.name for project, _ in shown], least=16),
        Column(
            heading="labels", values=[", ".join(names) for _, names in shown], tail=True, least=8
        ),
    ]
    for line in table(columns, width=shutil.get_terminal_size().columns):
        hint(line)


def _slug(name: str) -> str:
    """Return the name of a template that is made from that of a project."""
    return re.sub(r"[^0-9a-z._-]+", "-", name.lower()).strip("-._")[:64] or "tasks"


# --- The file -------------------------------------------------------------------------------------


def _check_free(output: Path, force: bool) -> None:
    if output.is_dir():
        raise InputError(f"{output}: is a folder; name the file to write")
    if not force and output.exists():
        raise InputError(f"{output} exists: --force replaces it, --output names another file")
    if not output.parent.is_dir():
        raise InputError(f"{output}: there is no folder {output.parent}")


def _write(output: Path, force: bool, text: str) -> None:
    try:
        if not force:
            # Also if another process has made it meanwhile.
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
            return
        written = output.with_name(f"{output.name}.new")
        written.write_text(text, encoding="utf-8")
        written.replace(output)
    except OSError as error:
        raise InputError(f"cannot write {output}: {error.strerror or error}") from None


def _text(
    server: CvatSettings, template: str, chosen: _Choice | None, names: Sequence[str], least: int
) -> str:
    """Return the configuration."""
    table = template if _BARE_KEY.fullmatch(template) else _quoted(template)
    if chosen:
        called = "".join(each for each in chosen.project.name if each.isprintable())
        source = f"""\
# The tasks are made in this project of CVAT, "{called}", and have its labels.
project = {chosen.project.id}
"""
    else:
        lines = "".join(f"  {{ name = {_quoted(name)} }},\n" for name in names)
        source = f"""\
# The labels, in the order in which CVAT shows them. A label may have a type ("rectangle",
# "polygon", "mask", "tag", ...; without one any shape may be drawn), a color and attributes.
labels = [
{lines}]
"""
    return f"""\
# The configuration of cvat-task-pool, written by 'cvat-pool init'. 'cvat-pool check' names every
# mistake with its line; 'cvat-pool docs configuration' says what else may stand here.

[cvat]
# Credentials never stand here: set CVAT_ACCESS_TOKEN, or CVAT_USERNAME and CVAT_PASSWORD, in the
# environment.
url = {_quoted(server.url)}
# The slug of the organization that the tasks belong to; "" is your personal workspace.
organization = {_quoted(server.organization)}

[store]
# Where the pool keeps its rows: a file beside this one, on a local disk; or the address of a
# PostgreSQL database, "postgresql://HOST/DATABASE".
url = "sqlite:///pool.db"

[daemon]
# The address that the daemon listens on. Any other than this machine's own needs a token in
# POOL_API_TOKEN.
host = "127.0.0.1"
port = 8765

# A template is what a pooled task looks like; callers ask for it by its name. Repeat it for more.
[templates.{table}]
{source}
[templates.{table}.pool]
# The fewest tasks to keep warm. More are kept when the demand asks for it, up to max_size.
min_size = {least}
max_size = {max(_USUAL_MAX_SIZE, 2 * least)}
# When none is warm: "create" waits for max_wait and then makes one on the spot; "wait" only waits;
# "fail" fails at once.
on_empty = "create"
max_wait = "2s"
"""


def _quoted(text: str) -> str:
    """Return a basic string of TOML, which is JSON's but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
