"""Faults out of JSON and TOML, and the arguments of actions: every mistake is named."""

from __future__ import annotations

import difflib
import inspect
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .faults import KINDS, Fault, InvalidFault


def read_fault(given: Any) -> Fault:
    """One rule: its ``kind`` and what else it says. Raises :class:`InvalidFault`."""
    if not isinstance(given, Mapping):
        raise InvalidFault(f"a fault is a table with a kind, not {given!r}")
    values = dict(given)
    kind = KINDS.get(str(values.pop("kind", "")))
    if kind is None:
        raise InvalidFault(f"kind: {_one_of(str(given.get('kind', '')), KINDS)}")
    hints = get_type_hints(kind)
    known = {each.name: hints[each.name] for each in fields(kind)}
    try:
        return kind(**_checked(values, known))
    except InvalidFault as error:
        raise InvalidFault(f"{kind.kind}: {error}") from None


def read_faults(given: Any) -> tuple[Fault, ...]:
    """All rules of ``{"faults": [...]}``, the body and the file. Raises :class:`InvalidFault`."""
    if not isinstance(given, Mapping) or set(given) != {"faults"}:
        raise InvalidFault('expected "faults", a list of tables, and nothing else')
    if not isinstance(given["faults"], list):
        raise InvalidFault("faults: a list of tables")
    return tuple(read_fault(each) for each in given["faults"])


def load_faults(path: Path) -> tuple[Fault, ...]:
    """The ``[[faults]]`` of a TOML file. Raises ``OSError`` and :class:`InvalidFault`."""
    try:
        return read_faults(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, InvalidFault) as error:
        raise InvalidFault(f"{path}: {error}") from None


def read_arguments(function: Callable[..., Any], given: Any) -> dict[str, Any]:
    """The arguments of an action, out of a JSON object. Raises :class:`InvalidFault`."""
    if not isinstance(given, Mapping):
        raise InvalidFault(f"the arguments are an object, not {given!r}")
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    values = _checked(given, {each.name: hints[each.name] for each in parameters})
    for each in parameters:
        if each.default is each.empty and each.name not in values:
            raise InvalidFault(f"{each.name}: is needed")
    return values


def _checked(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for name, value in given.items():
        if name not in known:
            raise InvalidFault(f"{name}: {_one_of(name, known)}")
        values[name] = _fitting(name, value, known[name])
    return values


def _fitting(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InvalidFault(f"{name}: {' or '.join(get_args(hint))}, not {value!r}")
        return value
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if type(value) in kinds:
        return value
    if type(value) is int and float in kinds:
        return float(value)
    wanted = " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)
    raise InvalidFault(f"{name}: expected {wanted}, not {value!r}")


def _one_of(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"{name!r} is not known; {hint}" if name else f"is needed: {', '.join(known)}"
