"""CVAT's label-constructor JSON, as in the "Raw" tab of its label editor: checked, normalised.

CVAT takes a colour that is none and a field that it does not know without a word, so both are
checked here. The rules are those of CVAT 2.73: ``LabelSerializer`` and ``AttributeSerializer``
in ``cvat/apps/engine/serializers.py``, the column lengths in ``models.py``, and
``validateParsedLabel`` in ``cvat-ui/src/components/labels-editor/common.ts``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pool.config_lines import Key
from pool.config_values import Unfit, choice, expected, flag, matching, text, unknown_key

#: Called with where a problem is, inside the labels, and what it is.
Complain = Callable[[Key, str], None]

LABEL_TYPES: Final = (
    "any",
    "cuboid",
    "ellipse",
    "interval",
    "mask",
    "points",
    "polygon",
    "polyline",
    "rectangle",
    "skeleton",
    "tag",
)
INPUT_TYPES: Final = ("checkbox", "radio", "number", "text", "select")

_LABEL_FIELDS: Final = ("name", "color", "type", "attributes", "sublabels", "svg")
_SUBLABEL_FIELDS: Final = ("name", "color", "type", "attributes")
_ATTRIBUTE_FIELDS: Final = ("name", "input_type", "mutable", "default_value", "values")
# What a server adds when labels are exported. The ids are those of another task, so sending
# them would break the creation.
_OF_THE_SERVER: Final = frozenset({"id", "url", "project_id", "task_id", "parent_id", "has_parent"})

_NAME: Final = text(most=64, blank=False)
_COLOR: Final = matching(r"#[0-9A-Fa-f]{6}|", 'a colour such as "#ff8800"')
_TYPE: Final = choice(*LABEL_TYPES)
_SUBLABEL_TYPE: Final = choice(*(name for name in LABEL_TYPES if name != "skeleton"))
_INPUT_TYPE: Final = choice(*INPUT_TYPES)
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


def read_labels(raw: object, complain: Complain) -> tuple[dict[str, Any], ...]:
    """Labels as they are sent to CVAT: defaults filled in, keys in one order, no ids.

    The order of the labels is kept, since it is their order on the screen. Every problem is
    told to ``complain``; what is returned is of use only when there was none.
    """
    return tuple(_Labels(complain).labels(raw, (), sublabels=False))


def read_labels_file(path: Path) -> object:
    """The JSON in a file of labels; raises :class:`Unfit` when there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise Unfit(f"cannot read {path}: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise Unfit(f"{place}: not valid JSON: {error.msg.lower()}") from None
    except (UnicodeDecodeError, RecursionError):
        raise Unfit(f"{path}: not valid JSON") from None


def name_of(raw: object, key: Key) -> str:
    """The name of the label that ``key`` leads into, for people: in a long file nobody counts."""
    match raw, key:
        case [*labels], (int(position), *_):
            label = labels[position]
            if isinstance(label, dict) and isinstance(label.get("name"), str):
                return f'label "{label["name"][:64]}"'
    return ""


class _Labels:
    def __init__(self, complain: Complain) -> None:
        self._complain = complain

    def labels(self, raw: object, key: Key, *, sublabels: bool) -> list[dict[str, Any]]:
        what = "sublabel" if sublabels else "label"
        label = self._sublabel if sublabels else self._label
        return [label(one, at) for one, at in self._members(raw, key, what)]

    def _label(self, raw: Mapping[str, Any], key: Key) -> dict[str, Any]:
        self._refuse_unknown(raw, key, _LABEL_FIELDS)
        label = self._common(raw, key, _TYPE)
        sublabels, svg = raw.get("sublabels") or [], raw.get("svg") or ""
        if label["type"] != "skeleton":
            for name, value in (("sublabels", sublabels), ("svg", svg)):
                if value:
                    self._complain((*key, name), 'only a label of type "skeleton" has this')
            return label
        label["sublabels"] = self.labels(sublabels, (*key, "sublabels"), sublabels=True)
        if not sublabels:
            self._complain(key, "a skeleton needs sublabels, one for each of its points")
        elif not isinstance(svg, str) or not svg:
            self._complain(key, "a skeleton needs svg, its drawing; copy it from CVAT's Raw tab")
        else:
            label["svg"] = self._svg(svg, sublabels, (*key, "svg"))
        return label

    def _sublabel(self, raw: Mapping[str, Any], key: Key) -> dict[str, Any]:
        empty = {name for name in ("sublabels", "svg") if not raw.get(name)}
        self._refuse_unknown(raw, key, _SUBLABEL_FIELDS, ignored=empty)
        return self._common(raw, key, _SUBLABEL_TYPE)

    def _common(
        self, raw: Mapping[str, Any], key: Key, read_type: Callable[[object], str]
    ) -> dict[str, Any]:
        label: dict[str, Any] = {"name": self._name(raw, key)}
        color = self._read(_COLOR, raw.get("color") or "", (*key, "color"))
        if color:  # without one the server picks a colour, the same for the same name
            label["color"] = color.lower()
        label["type"] = self._read(read_type, raw.get("type", "any"), (*key, "type"))
        members = self._members(raw.get("attributes", []), (*key, "attributes"), "attribute")
        label["attributes"] = [self._attribute(one, at) for one, at in members]
        return label

    def _attribute(self, raw: Mapping[str, Any], key: Key) -> dict[str, Any]:
        self._refuse_unknown(raw, key, _ATTRIBUTE_FIELDS)
        attribute: dict[str, Any] = {"name": self._name(raw, key)}
        kind = None
        if "input_type" in raw:
            kind = self._read(_INPUT_TYPE, raw["input_type"], (*key, "input_type"))
        else:
            self._complain(key, f"input_type is missing; it is one of {', '.join(INPUT_TYPES)}")
        attribute["input_type"] = kind
        attribute["mutable"] = self._read(flag, raw.get("mutable", False), (*key, "mutable"))
        values = self._values(kind, raw, (*key, "values"))
        default = raw.get("default_value")
        default = _text(default if default is not None else (values or [""])[0])
        attribute["default_value"] = default
        attribute["values"] = values
        if default is None or len(default) > 128:
            what = "text of at most 128 characters"
            self._complain((*key, "default_value"), str(expected(what, raw["default_value"])))
        elif default and values and (wrong := _default_problem(kind, default, values)):
            self._complain((*key, "default_value"), wrong)
        return attribute

    def _values(self, kind: str | None, raw: Mapping[str, Any], key: Key) -> list[str]:
        given = raw.get("values", [])
        if not isinstance(given, list):
            self._complain(key, str(expected("an array", given)))
            return []
        values = [value for value in map(_text, given) if value is not None]
        if kind == "checkbox" and not given:
            return [_text(raw.get("default_value")) or "false"]
        if len(values) < len(given) or any("\n" in v or len(v) > 200 for v in values):
            self._complain(key, "expected texts of at most 200 characters, on one line each")
        elif len("\n".join(values)) > 4096:
            self._complain(key, "expected at most 4096 characters in all")
        elif wrong := _values_problem(kind, values):
            self._complain(key, wrong)
        else:
            return values
        return []

    def _svg(self, svg: str, sublabels: Iterable[object], key: Key) -> str:
        """The drawing, its points tied to the sublabels by name, as a new task needs it.

        An exported drawing names them by id. CVAT itself puts the new ids in again.
        """
        known = [one for one in sublabels if isinstance(one, dict)]
        names = {str(one.get("name")).strip() for one in known}
        by_id = {str(one["id"]): str(one.get("name")).strip() for one in known if "id" in one}

        def name_for(match: re.Match[str]) -> str:
            name = by_id.get(match[1])
            if name is None:
                self._complain(key, f"a point belongs to sublabel id {match[1]}, which is not here")
            return f'data-label-name="{name}"'

        svg = re.sub(r'data-label-id="([^"]*)"', name_for, svg)
        for name in re.findall(r'data-label-name="([^"]*)"', svg):
            if name not in names:
                self._complain(key, f'a point belongs to sublabel "{name}", which is not here')
        return svg

    def _members(self, raw: object, key: Key, what: str) -> Iterable[tuple[Mapping[str, Any], Key]]:
        """The tables of an array, each with its place; a name must not stand there twice."""
        if not isinstance(raw, list):
            self._complain(key, str(expected(f"an array of {what}s", raw)))
            return
        names = set()
        for position, one in enumerate(raw):
            at = (*key, position)
            if not isinstance(one, dict):
                self._complain(at, str(expected(f'a {what}, {{ name = "…" }}', one)))
                continue
            name = str(one.get("name")).strip()
            if name in names and "name" in one:
                self._complain((*at, "name"), f'another {what} is named "{name}" as well')
            names.add(name)
            yield one, at

    def _name(self, raw: Mapping[str, Any], key: Key) -> str | None:
        if "name" not in raw:
            self._complain(key, "the name is missing")
            return None
        name = self._read(_NAME, raw["name"], (*key, "name"))
        return name.strip() if isinstance(name, str) else None  # the server strips it as well

    def _read(self, reader: Callable[[object], Any], value: object, key: Key) -> Any:
        try:
            return reader(value)
        except Unfit as error:
            self._complain(key, str(error))
            return None

    def _refuse_unknown(
        self,
        raw: Mapping[str, Any],
        key: Key,
        known: tuple[str, ...],
        *,
        ignored: Iterable[str] = (),
    ) -> None:
        for name in raw:
            if name not in known and name not in _OF_THE_SERVER and name not in ignored:
                self._complain((*key, name), unknown_key(name, known))


def _text(value: object) -> str | None:
    """CVAT keeps all values as text; TOML has numbers and booleans, which read better there."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return value.strip() if isinstance(value, str) else None


def _values_problem(kind: str | None, values: list[str]) -> str | None:
    match kind:
        case "radio" | "select" if not values or "" in values:
            return f"a {kind} needs values to choose from, none of them blank"
        case "radio" | "select" if len(set(values)) < len(values):
            return "the same value stands there twice"
        case "checkbox" if not {value.lower() for value in values} <= {"true", "false"}:
            return 'the values of a checkbox are "true" or "false"'
        case "number":
            # The server is content with two, but its editor and its player need the step.
            numbers = [float(value) for value in values if _NUMBER.fullmatch(value)]
            if len(numbers) != 3 or len(values) != 3 or numbers[0] >= numbers[1]:
                return 'a number needs three values, ["lowest", "highest", "step"]'
            if numbers[2] <= 0:
                return "the step of a number, its third value, must be more than 0"
    return None


def _default_problem(kind: str | None, default: str, values: list[str]) -> str | None:
    match kind:
        case "radio" | "select" if default not in values:
            return str(expected(f"one of the values ({', '.join(values)})", default))
        case "checkbox" if default.lower() not in ("true", "false"):
            return str(expected('"true" or "false"', default))
        case "number":
            low, high = float(values[0]), float(values[1])
            if not _NUMBER.fullmatch(default) or not low <= float(default) <= high:
                return str(expected(f"a number from {values[0]} to {values[1]}", default))
    return None
