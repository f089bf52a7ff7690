"""The README and the manual are true: commands, options, configurations, errors and links."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer.main
from support.manual import DOCUMENTS, FOLDER, PAGES, README, ROOT, blocks, rows

import pool
from pool import errors
from pool.cli.app import app
from pool.config.loader import loads


def all_commands() -> dict[str, Any]:
    """All commands by their names, those of a group with its name before theirs."""
    found: dict[str, Any] = {}
    general: Any = typer.main.get_command(app)
    for name, command in general.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {each}": sub for each, sub in command.commands.items()}
        else:
            found[name] = command
    return found


def options_of(command: Any) -> set[str]:
    return {name for each in command.params for name in each.opts if name.startswith("--")}


COMMANDS = all_commands()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_explained_with_its_options_and_no_others(command: str) -> None:
    assert f"`cvat-pool {command}`" in DOCUMENTS["README"]
    (row,) = (
        row
        for row in rows("commands", "command")
        if re.fullmatch(rf"`cvat-pool {command}( [^a-z].*)?`", row[0])
    )
    assert set(re.findall(r"`(--[a-z-]+)`", row[2])) == options_of(COMMANDS[command])


def test_the_options_before_the_command_are_named() -> None:
    (line,) = re.findall(r"^Options before the command: (.*)$", PAGES["commands"], re.MULTILINE)
    general = options_of(typer.main.get_command(app)) - {"--help"}
    assert set(re.findall(r"`(--[a-z-]+)`", line)) == general


@pytest.mark.parametrize("topic", DOCUMENTS)
def test_commands_in_the_text_exist_and_have_the_options_that_they_are_given(topic: str) -> None:
    general = options_of(typer.main.get_command(app))
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    for words in re.findall(r"cvat-pool ((?:--[a-z-]+ )*[a-z][^`\n'|]*)", DOCUMENTS[topic]):
        given = [word for word in words.split() if not word.startswith("--")]
        name = " ".join(given[: 2 if given[0] in groups else 1])
        assert name in COMMANDS, words
        known = options_of(COMMANDS[name]) | general | {"--help"}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", words)) <= known, words


@pytest.mark.parametrize("block", blocks("toml"), ids=lambda block: block.place)
def test_every_example_of_a_configuration_is_valid(block: Any) -> None:
    if not block.use:
        loads(block.text)


def test_the_errors_are_all_in_the_table_with_their_codes() -> None:
    found = {
        name: (kind.exit_code, kind.status, kind.code)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.PoolError)
    }
    found.pop("PoolError")
    table = {
        row[0].strip("`"): (int(row[2]), int(row[3]), row[4].strip("`"))
        for row in rows("errors", "exception")
    }
    assert table == found


def test_the_errors_that_callers_can_get_are_public() -> None:
    inside = {"BadSignature", "CannotListen", "TermLost"}
    assert {row[0].strip("`") for row in rows("errors", "exception")} - inside <= {*pool.__all__}


# --- Pages and links ------------------------------------------------------------------------------


def slugs(text: str) -> set[str]:
    """The anchors of the headings of a document, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    }


@pytest.mark.parametrize("topic", DOCUMENTS)
def test_links_lead_somewhere(topic: str) -> None:
    folder = ROOT if topic == "README" else FOLDER
    for target in re.findall(r"\]\(([^)]+)\)", DOCUMENTS[topic]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        assert not path or (folder / path).exists(), target
        if anchor:
            text = DOCUMENTS[(folder / path).stem if path else topic]
            assert anchor in slugs(text), target


def test_the_readme_is_short_and_links_all_pages() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 220
    assert [name for name in PAGES if f"(pool/docs/{name}.md)" not in text] == []


@pytest.mark.parametrize("topic", PAGES)
def test_a_page_has_one_title(topic: str) -> None:
    prose = re.sub(r"^```.*?^```", "", PAGES[topic], flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^# .*$", prose, re.MULTILINE) == [PAGES[topic].splitlines()[0]]
