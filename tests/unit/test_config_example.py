"""``config.toml`` at the root of the repository: complete, commented, and true."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from pydantic import TypeAdapter

from pool.config.data_params import DEFAULTS, DataParams, ValidationParams
from pool.config.loader import loads
from pool.config.settings import (
    DEFAULT_TABLES,
    LABEL_SOURCES,
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
    keys_of,
)
from pool.model import EventKind, Role

EXAMPLE = Path(__file__).parents[2] / "config.toml"


def schema() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every table of the settings, and where the example has it."""
    for name, kind in get_type_hints(Settings).items():
        if hasattr(kind, "__pydantic_fields__"):
            yield (name,), kind
    for name, kind in TEMPLATE_TABLES.items():
        yield (
            ("defaults",) if name in DEFAULT_TABLES else ("templates", "street-scenes", name),
            kind,
        )


TABLES = [(place, kind) for place, kind in schema() if kind is not EventSettings]


#: Keys that exclude another one.
EXCLUSIVE = (
    *("frame_step", "upload_file_order", "filename_pattern", "job_file_mapping"),
    *("assignees", "assign ", "slots"),
)


def uncommented(*, exclusive: bool = True) -> str:
    """The example with every key that is unset by default taken out of its comment, maybe but
    those that exclude each other."""
    keys = "" if exclusive else f"(?!{'|'.join(EXCLUSIVE)})"
    return re.sub(rf"(?m)^#(?={keys}[a-z\[])", "", EXAMPLE.read_text())


def test_config_toml_is_valid_and_says_nothing_but_the_defaults() -> None:
    read = loads(EXAMPLE.read_text())
    assert (read.cvat, read.store, read.daemon, read.events) == (
        CvatSettings(),
        StoreSettings(),
        DaemonSettings(),
        EventSettings(),
    )
    assert list(read.templates) == ["street-scenes"]
    template = read.templates["street-scenes"]
    assert {"car", "person"} <= {label["name"] for label in template.labels}
    assert template == Template(name="street-scenes", labels=template.labels)


def test_every_table_of_the_settings_is_looked_at() -> None:
    places = {place[0] for place, _ in TABLES}
    assert places == set(tomllib.loads(EXAMPLE.read_text()))
    known = {CvatSettings, StoreSettings, DaemonSettings, *TEMPLATE_TABLES.values()}
    assert known == {kind for _, kind in TABLES}


@pytest.mark.parametrize(("place", "kind"), TABLES)
def test_config_toml_has_every_key_with_its_default(place: tuple[str, ...], kind: Any) -> None:
    """What is set by default stands there; what is not, in a comment, with a value to take."""
    active, every = tomllib.loads(EXAMPLE.read_text()), tomllib.loads(uncommented())
    for name in place:
        active, every = active[name], every[name]
    defaults = kind(**DEFAULTS) if kind is DataParams else kind()
    for key in keys_of(kind):
        default = getattr(defaults, key)
        assert (key in active) == (default is not None), f"{key} in {place}"
        assert key in every, f"{key} in {place}"


@pytest.mark.parametrize(("place", "kind"), TABLES)
def test_config_toml_says_the_bounds(place: tuple[str, ...], kind: Any) -> None:
    text = EXAMPLE.read_text()
    for key, field in TypeAdapter(kind).json_schema()["properties"].items():
        bounds = [each.get("maximum") for each in (field, *field.get("anyOf", ()))]
        most = next((bound for bound in bounds if bound is not None and 1 < bound < 10**6), None)
        comment = re.search(rf"((?:^#.*\n)+)#?{key} = ", text, re.M)
        if most is not None:
            assert comment and f" {most}" in comment[1], f"{key} in {place}"


@pytest.mark.parametrize("key", list(DataParams.model_fields))
def test_config_toml_has_a_valid_value_for_every_data_parameter(key: str) -> None:
    text = re.sub(rf"(?m)^#(?={key} = )", "", EXAMPLE.read_text())
    if key == "upload_file_order":
        text = text.replace('#sorting_method = "natural"', 'sorting_method = "predefined"')
    assert getattr(loads(text).templates["street-scenes"].data, key) is not None


def test_config_toml_speaks_of_every_key_of_a_template() -> None:
    text = EXAMPLE.read_text()
    own = keys_of(AssignmentSettings)
    for key in (*LABEL_SOURCES, *TEMPLATE_TABLES, *own, *ValidationParams.model_fields):
        assert re.search(rf"\b{key}\b", text), key
    known = {field.name for field in dataclasses.fields(Template)} - {"name", "server"}
    keys = {*LABEL_SOURCES, *TEMPLATE_TABLES} - {"labels_file"}
    assert known == keys - {"import"} | {"importing", "assignment", "slots"}


def test_config_toml_has_every_key_of_slots_and_a_valid_example() -> None:
    text = re.sub(r"(?m)^#(?=slots = )", "", EXAMPLE.read_text())
    example = loads(text).templates["street-scenes"].slots
    assert example is not None
    for key in keys_of(SlotSettings):
        assert re.search(rf"\b{key} = ", text), key


def test_config_toml_says_how_jobs_are_divided() -> None:
    text = re.sub(r"(?m)^#(?=assign(ees)? =)", "", EXAMPLE.read_text())
    assignment = loads(text).templates["street-scenes"].assignment
    assert assignment.assign == "round-robin" and len(assignment.assignees) > 1
    for mode in ("round-robin", "least-loaded"):
        assert f'"{mode}"' in text


def test_config_toml_has_every_key_of_a_sink_and_says_the_defaults() -> None:
    text = uncommented(exclusive=False)
    (sink,) = loads(text).events.sinks
    for key in keys_of(SinkSettings):
        assert re.search(rf"\b{key}\b", text), key
    assert sink == SinkSettings(
        url=sink.url, secret_env="POOL_SINK_SECRET", templates=("street-scenes",)
    )
    for kind in get_args(EventKind):
        assert f'"{kind}"' in text


def test_config_toml_has_every_key_of_a_token() -> None:
    text = uncommented(exclusive=False)
    for key in keys_of(TokenSettings):
        assert re.search(rf"\b{key} = ", text), key
    assert loads(text).tokens == {
        "robot": TokenSettings(
            role="submit", templates=("street-scenes",), secret_env="POOL_TOKEN_ROBOT"
        )
    }
    for role in get_args(Role):
        assert f'"{role}"' in text


def test_config_toml_is_valid_with_every_key_set() -> None:
    read = loads(uncommented(exclusive=False))
    assert len(read.templates) == 2
    template = read.templates["street-scenes"]
    tables = [read.cvat, read.store, read.daemon, template.pool, template.importing, template.data]
    for table in (*tables, template.task):
        keys = [key for key in keys_of(type(table)) if key not in EXCLUSIVE]
        assert not [key for key in keys if getattr(table, key) is None], type(table)


def test_every_key_of_config_toml_has_a_comment_above_it() -> None:
    blocks = re.split(r"\n\s*\n", EXAMPLE.read_text())
    bare = [block for block in blocks if re.match(r"#?[a-z_]+ = ", block)]
    assert not bare
