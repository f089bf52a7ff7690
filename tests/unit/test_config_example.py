"""``config.toml`` at the root of the repository: complete, commented, and true."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest

from pool.config.data_params import DEFAULTS, DataParams
from pool.config.loader import loads
from pool.config.settings import (
    LABEL_SOURCES,
    TEMPLATE_TABLES,
    CvatSettings,
    DaemonSettings,
    EventSettings,
    ImportSettings,
    PoolSettings,
    SinkSettings,
    StoreSettings,
    TaskSettings,
    Template,
    keys_of,
)
from pool.model import EventKind

EXAMPLE = Path(__file__).parents[2] / "config.toml"

TABLES: list[tuple[tuple[str, ...], type]] = [
    (("cvat",), CvatSettings),
    (("store",), StoreSettings),
    (("daemon",), DaemonSettings),
    (("defaults",), PoolSettings),
    (("defaults",), ImportSettings),
    (("defaults",), DataParams),
    (("templates", "street-scenes", "task"), TaskSettings),
]


#: Keys that exclude another one.
EXCLUSIVE = ("frame_step", "upload_file_order", "filename_pattern", "job_file_mapping")


def uncommented(text: str, *, exclusive: bool = True) -> str:
    """The example with every key that is unset by default taken out of its comment, maybe but
    those that exclude each other."""
    keys = "" if exclusive else f"(?!{'|'.join(EXCLUSIVE)})"
    return re.sub(rf"(?m)^#(?={keys}[a-z\[])", "", text)


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


@pytest.mark.parametrize(("table", "cls"), TABLES)
def test_config_toml_has_every_key(table: tuple[str, ...], cls: Any) -> None:
    text = EXAMPLE.read_text()
    set_keys, all_keys = tomllib.loads(text), tomllib.loads(uncommented(text))
    for name in table:
        set_keys, all_keys = set_keys[name], all_keys[name]
    defaults = cls(**DEFAULTS) if cls is DataParams else cls()
    for name in keys_of(cls):
        unset = getattr(defaults, name) is None
        assert (name in set_keys) != unset, f"{name} in [{'.'.join(table)}]"
        assert name in all_keys, f"{name} in [{'.'.join(table)}]"


@pytest.mark.parametrize("key", list(DataParams.model_fields))
def test_config_toml_has_a_valid_value_for_every_data_parameter(key: str) -> None:
    text = re.sub(rf"(?m)^#(?={key} = )", "", EXAMPLE.read_text())
    if key == "upload_file_order":
        text = text.replace('#sorting_method = "natural"', 'sorting_method = "predefined"')
    assert getattr(loads(text).templates["street-scenes"].data, key) is not None


def test_config_toml_speaks_of_every_key_of_a_template() -> None:
    text = EXAMPLE.read_text()
    for key in (*LABEL_SOURCES, *TEMPLATE_TABLES):
        assert re.search(rf"\b{key}\b", text), key
    known = {field.name for field in dataclasses.fields(Template)} - {"name", "server"}
    keys = {*LABEL_SOURCES, *TEMPLATE_TABLES} - {"labels_file"}
    assert known == keys - {"import"} | {"importing"}


def test_config_toml_has_every_key_of_a_sink_and_says_the_defaults() -> None:
    text = uncommented(EXAMPLE.read_text(), exclusive=False)
    (sink,) = loads(text).events.sinks
    for key in keys_of(SinkSettings):
        assert re.search(rf"\b{key}\b", text), key
    assert sink == SinkSettings(
        url=sink.url, secret_env="POOL_SINK_SECRET", templates=("street-scenes",)
    )
    for kind in get_args(EventKind):
        assert f'"{kind}"' in text


def test_config_toml_is_valid_with_every_key_set() -> None:
    read = loads(uncommented(EXAMPLE.read_text(), exclusive=False))
    assert len(read.templates) == 2
    for table, cls in TABLES:
        holder: Any = {
            CvatSettings: read.cvat,
            StoreSettings: read.store,
            DaemonSettings: read.daemon,
            PoolSettings: read.templates["street-scenes"].pool,
            ImportSettings: read.templates["street-scenes"].importing,
            DataParams: read.templates["street-scenes"].data,
            TaskSettings: read.templates["street-scenes"].task,
        }[cls]
        unset = [
            name for name in keys_of(cls) if getattr(holder, name) is None and name not in EXCLUSIVE
        ]
        assert not unset, f"not set in [{'.'.join(table)}]"


def test_every_key_of_config_toml_has_a_comment_above_it() -> None:
    blocks = re.split(r"\n\s*\n", EXAMPLE.read_text())
    bare = [block for block in blocks if re.match(r"#?[a-z_]+ = ", block)]
    assert not bare
