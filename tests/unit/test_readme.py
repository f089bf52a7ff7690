"""The README tells the truth about the commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer
import typer.main
from typer.models import CommandInfo

from pool import errors
from pool.cli.app import app
from pool.config.loader import loads

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands(of: typer.Typer = app) -> list[str]:
    """All commands; those of a group with its name before theirs."""
    infos: list[CommandInfo] = of.registered_commands
    names = [info.name or info.callback.__name__ for info in infos if info.callback]
    for group in of.registered_groups:
        assert group.typer_instance is not None
        names += [
            f"{group.typer_instance.info.name} {name}" for name in commands(group.typer_instance)
        ]
    return names


def options() -> set[str]:
    every = [typer.main.get_command(app)]
    for command in every:
        every += getattr(command, "commands", {}).values()
    return {
        name
        for command in every
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    } | {"--help"}


@pytest.mark.parametrize("command", commands())
def test_every_command_is_explained(command: str) -> None:
    assert f"`cvat-pool {command}" in README


def test_every_command_in_the_readme_exists() -> None:
    known = {name.split()[0] for name in commands()}
    assert set(re.findall(r"cvat-pool ([a-z]+)", README)) <= known


def test_every_option_is_named_and_no_other() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", README.split("## Commands")[1].split("## How")[0]))
    assert named == options()


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "pool/docs").glob("*.md"))])
def test_every_example_of_a_configuration_is_valid(page: Path) -> None:
    for example in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
        loads("\n".join(line.strip() for line in example.splitlines()))


def test_the_errors_in_the_table_have_these_exit_codes() -> None:
    rows = re.findall(r"^\| (`.*?) \| .*? \| (\d) \|$", README, re.MULTILINE)
    assert len(rows) >= 10
    for names, code in rows:
        for name in re.findall(r"`([A-Z]\w+)`", names):
            if hasattr(errors, name):
                assert getattr(errors, name).exit_code == int(code), name
