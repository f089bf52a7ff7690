"""Imports run one way: from what stands above to what stands below. Those for types count, too."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pool

ROOT = Path(pool.__file__).parent
#: Each imports only what stands before it.
ORDER = (
    "errors", "version", "clock", "logs", "forks", "backoff", "permissions", "docs",
    "model", "status",
    "config", "handles", "cvat", "store",
    "events", "tracking", "requests", "maintenance", "process", "observability",
    "taskpool", "http", "check", "upkeep", "daemon", "cli",
)  # fmt: skip
BELOW = {part: set(ORDER[:place]) for place, part in enumerate(ORDER)}
ALLOWED = {
    **BELOW,
    "simulator": set(),
    "client": BELOW["cvat"],
    "bench": {*ORDER, "client", "simulator"},
    "demo": {*ORDER, "client", "simulator", "bench"},
    "cli": BELOW["cli"] | {"client", "simulator", "bench", "demo"},
    "": {*ORDER, "client"},
}
#: The one module of another package that a client needs: the encoder of its uploads.
ENCODER = "pool.cvat.multipart"


def imports_of(path: Path, package: str, modules: set[str]) -> set[str]:
    """The modules of the product that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            names = {f"{base}.{each.name}" for each in node.names}
            # A name that is no module is one of the package's own.
            found |= {name if name in modules else base for name in names}
    return found & modules


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """The modules, and what each of them imports."""
    names = {}
    for path in ROOT.rglob("*.py"):
        parts = ("pool", *path.relative_to(ROOT).with_suffix("").parts)
        package = ".".join(parts[:-1])
        names[package if parts[-1] == "__init__" else ".".join(parts)] = (path, package)
    return {
        name: imports_of(path, package, set(names)) - {name}
        for name, (path, package) in names.items()
    }


def part_of(module: str) -> str:
    """The package or module of the layout; "" is ``pool`` itself."""
    return module.removeprefix("pool").removeprefix(".").partition(".")[0]


def test_every_part_has_its_place(imports: dict[str, set[str]]) -> None:
    assert set(ALLOWED) == {part_of(module) for module in imports}


def test_imports_follow_the_arrows(imports: dict[str, set[str]]) -> None:
    wrong: dict[str, set[str]] = {}
    for module, imported in imports.items():
        part = part_of(module)
        needed = {part_of(each) for each in imported if (part, each) != ("client", ENCODER)}
        if not_allowed := needed - {part} - ALLOWED[part]:
            wrong.setdefault(part, set()).update(not_allowed)
    assert wrong == {}


def test_there_are_no_circles(imports: dict[str, set[str]]) -> None:
    graph = {module: set(imported) for module, imported in imports.items()}
    circles = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
            break
        except CycleError as error:
            first, second = error.args[1][:2]
            circles.append(" <- ".join(error.args[1]))
            graph[second].discard(first)
    assert circles == []


@pytest.mark.parametrize("name", pool.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """They are loaded at their first use, each from the module that a table names."""
    assert getattr(pool, name) is not None
