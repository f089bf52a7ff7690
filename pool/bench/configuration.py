"""The configuration of a bench's own daemon: the configured template, a store of its own.

The daemon is the product's own, ``cvat-pool run``, so it reads a ``config.toml`` as any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pool.config.data_params import DataParams
from pool.config.keys import CVAT, TEMPLATE_TABLES
from pool.config.settings import CvatSettings, Template
from pool.config.values import Reader, Unfit

#: The store's file.
STORE = "pool.db"
#: Where a template's tables are in its settings.
_ATTRIBUTES = {"task": "task", "data": "data", "pool": "pool", "import": "importing"}


def sized(template: Template, *, name: str, tasks: int) -> Template:
    """A template whose pool has exactly ``tasks`` tasks, and whose callers never wait long."""
    pool = replace(template.pool, min_size=tasks, max_size=max(tasks, 1), on_empty="create")
    return replace(template, name=name, pool=pool)


def write_configuration(folder: Path, server: CvatSettings, templates: Sequence[Template]) -> Path:
    """A ``config.toml`` with a new store in ``folder``, and exactly these templates.

    The daemon listens where nobody else does.
    """
    lines = ["[cvat]", *_lines(server, CVAT)]
    lines += ["[store]", f"url = {_text(f'sqlite:///{folder}/{STORE}')}"]
    lines += ["[daemon]", "port = 0"]
    for template in templates:
        lines += _template_lines(folder, template)
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _template_lines(folder: Path, template: Template) -> list[str]:
    table = f"templates.{_text(template.name)}"
    lines = [f"[{table}]"]
    if template.project is not None:
        lines.append(f"project = {template.project}")
    else:
        labels = folder / f"labels of {template.name}.json"
        labels.write_text(json.dumps([dict(label) for label in template.labels]), encoding="utf-8")
        lines.append(f"labels_file = {_text(str(labels))}")
    for name, readers in TEMPLATE_TABLES.items():
        lines.append(f"[{table}.{name}]")
        lines += _lines(getattr(template, _ATTRIBUTES[name]), readers)
    return lines


def _lines(settings: Any, readers: Mapping[str, Reader]) -> list[str]:
    """Every key that is set, as the file spells it."""
    if isinstance(settings, DataParams):
        return [f"{key} = {_toml(value)}" for key, value in settings.given.items()]
    lines = []
    for key, reader in readers.items():
        value = getattr(settings, key)
        if value is not None:
            lines.append(f"{key} = {_spelling(value, reader)}")
    return lines


def _toml(value: Any) -> str:
    """A value of JSON in TOML, whose tables alone are written in another way."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def _spelling(value: Any, reader: Reader) -> str:
    """How a value is written, so that its reader reads it: 2.0 may be ``2.0`` or ``"2.0s"``."""
    if isinstance(value, Path):
        return _text(str(value))
    for candidate in (value, f"{value:.3f}s" if isinstance(value, float) else value):
        try:
            if reader(candidate) == value:
                return _text(candidate) if isinstance(candidate, str) else json.dumps(candidate)
        except Unfit:
            continue
    raise ValueError(f"no spelling of {value!r} is read as that")


def _text(text: str) -> str:
    """A basic string of TOML, whose escapes are those of JSON."""
    return json.dumps(text, ensure_ascii=False)
