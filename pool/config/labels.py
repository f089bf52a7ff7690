"""CVAT's label-constructor JSON, as in the "Raw" tab of its label editor: checked, normalised.

What CVAT takes is taken, also what its ``GET /api/labels`` exports; what it refuses, with 400 or
500, is an error. What it takes although its pages cannot use it well is a warning. The recording
``labels`` has CVAT's verdicts. The rules are those of CVAT 2.73: ``LabelSerializer`` and
``AttributeSerializer`` in ``cvat/apps/engine/serializers.py``, the column lengths in ``models.py``;
the warnings are those of ``validateParsedLabel`` in
``cvat-ui/src/components/labels-editor/common.ts``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import PlainValidator, TypeAdapter, ValidationError

from pool.config.fields import ONE_OF, Flag, expected
from pool.config.problems import explain, mismatch, unknown_key
from pool.config.toml import Key

#: Called with where a problem is, inside the labels, and what it is.
Complain = Callable[[Key, str], None]

SublabelType = Literal[
    "any",
    "cuboid",
    "ellipse",
    "interval",
    "mask",
    "points",
    "polygon",
    "polyline",
    "rectangle",
    "tag",
]
LabelType = Literal[SublabelType, "skeleton"]
InputType = Literal["checkbox", "radio", "number", "text", "select"]

_LABEL_FIELDS: Final = ("name", "color", "type", "attributes", "sublabels", "svg")
_SUBLABEL_FIELDS: Final = ("name", "color", "type", "attributes")
_ATTRIBUTE_FIELDS: Final = ("name", "input_type", "mutable", "default_value", "values")
# What a server adds when labels are exported. The ids are those of another task, so sending
# them would break the creation.
_OF_THE_SERVER: Final = frozenset({"id", "url", "project_id", "task_id", "parent_id", "has_parent"})

_TYPE: Final = TypeAdapter[str](Annotated[LabelType, ONE_OF])
_SUBLABEL_TYPE: Final = TypeAdapter[str](Annotated[SublabelType, ONE_OF])
_INPUT_TYPE: Final = TypeAdapter[str](Annotated[InputType, ONE_OF])
_FLAG: Final = TypeAdapter[bool](Flag)
_NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_COLOR: Final = re.compile(r"#(?:[0-9a-f]{3}|[0-9a-f]{6})")


def read_labels(raw: object, complain: Complain, warn: Complain) -> tuple[dict[str, Any], ...]:
    """Return labels as they are sent to CVAT: defaults filled in, keys in one order, no ids.

    The order of the labels is kept, since it is their order on the screen. ``complain`` is called
    with each problem, and the result is of use only when there was none; ``warn`` with what CVAT
    takes although it is probably a mistake.
    """
    return tuple(_Labels(complain, warn).labels(raw, (), sublabels=False))


def read_labels_file(path: Path, complain: Callable[[str], None]) -> object:
    """Return the JSON in a file of labels; call ``complain`` and return no labels where there is
    none."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        complain(f"cannot read {path}: {error.strerror or error}")
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        complain(f"{place}: not valid JSON: {error.msg.lower()}")
    except (UnicodeDecodeError, RecursionError):
        complain(f"{path}: not valid JSON")
    return []


def name_of(raw: object, key: Key) -> str:
    """Return the name of the label that ``key`` leads into: positions are hard to count."""
    match raw, key:
        case [*labels], (int(position), *_):
            label = labels[position]
            if isinstance(label, dict) and isinstance(label.get("name"), str):
                return f'label "{label["name"][:64]}"'
    return ""


class _Labels:
    def __init__(self, complain: Complain, warn: Complain) -> None:
        self._complain = complain
        self._warn = warn

    def labels(self, raw: object, key: Key, *, sublabels: bool) -> list[dict[str, Any]]:
        what = "sublabel" if sublabels else "label"
        label = self._sublabel if sublabels else self._label
        return [label(one, at) for one, at in self._members(raw, key, what)]

    def _label(self, raw: Mapping[str, Any], key: Key) -> dict[str, Any]:
        self._refuse_unknown(raw, key, _LABEL_FIELDS)
        label = self._common(raw, key, _TYPE)
        sublabels, svg = raw.get("sublabels", []), raw.get("svg", "")
        if not isinstance(svg, str):
            self._complain((*key, "svg"), mismatch("text in quotes", svg))
            svg = ""
        read = self.labels(sublabels, (*key, "sublabels"), sublabels=True)
        if label["type"] == "skeleton":
            label["sublabels"] = read
            if svg:
                label["svg"] = self._svg(svg, read, sublabels, (*key, "svg"))
            if not read:
                self._warn(key, "a skeleton needs sublabels, one for each of its points")
            elif not svg:
                self._warn(key, "a skeleton needs svg, its drawing; copy it from CVAT's Raw tab")
            return label
        if read:
            label["sublabels"] = read
        for name, value in (("sublabels", read), ("svg", svg)):
            if value:
                self._warn((*key, name), 'only a label of type "skeleton" has a use for this')
        return label

    def _sublabel(self, raw: Mapping[str, Any], key: Key) -> dict[str, Any]:
        empty = {name for name in ("sublabels", "svg") if not raw.get(name)}
        self._refuse_unknown(raw, key, _SUBLABEL_FIELDS, ignored=empty)
        return self._common(raw, key, _SUBLABEL_TYPE)

    def _common(self, raw: Mapping[str, Any], key: Key, types: TypeAdapter[str]) -> dict[str, Any]:
        label: dict[str, Any] = {"name": self._name(raw, key)}
        color = self._read(_text(most=8), raw.get("color", ""), (*key, "color"))
        if color:  # without one the server picks a colour, the same for the same name
            label["color"] = color.lower()
            if not _COLOR.fullmatch(label["color"]):
                self._warn((*key, "color"), mismatch('a colour such as "#ff8800"', raw["color"]))
        label["type"] = self._read(types, raw.get("type", "any"), (*key, "type"))
        members = self._members(raw.get("attributes", []), (*key, "attributes"), "attribute")
        label["attributes"] = [self._attribute(one, at) for one, at in members]
        return label

    def _attribute(self, raw: Mapping[str, Any], key: Key) -> dict[str, Any]:
        """Return an attribute; ``mutable``, ``default_value`` and, where there are no options,
        ``values`` may be left out, although CVAT wants them."""
        self._refuse_unknown(raw, key, _ATTRIBUTE_FIELDS)
        attribute: dict[str, Any] = {"name": self._name(raw, key)}
        kind = None
        if "input_type" in raw:
            kind = self._read(_INPUT_TYPE, raw["input_type"], (*key, "input_type"))
        else:
            self._complain(
                key, f"input_type is missing; it is one of {', '.join(get_args(InputType))}"
            )
        attribute["input_type"] = kind
        attribute["mutable"] = self._read(_FLAG, raw.get("mutable", False), (*key, "mutable"))
        values = self._values(kind, raw, (*key, "values"))
        default = raw.get("default_value")
        if default is None:
            default = (values or [""])[0]
        default = self._read(_text(most=128), _word(default), (*key, "default_value"))
        attribute["default_value"] = default
        attribute["values"] = values
        if doubt := _doubtful_values(kind, values or []):
            self._warn((*key, "values"), doubt)
        elif default and values and (doubt := _doubtful_default(kind, default, values)):
            self._warn((*key, "default_value"), doubt)
        return attribute

    def _values(self, kind: str | None, raw: Mapping[str, Any], key: Key) -> list[str] | None:
        if "values" not in raw:
            if kind == "checkbox":
                return [str(_word(raw.get("default_value")) or "false")]
            if kind not in ("text", None):
                self._complain(key[:-1], f"values are missing; a {kind} has them")
            return []
        if not isinstance(raw["values"], list):
            self._complain(key, mismatch("an array", raw["values"]))
            return None
        read = [self._read(_text(most=200), _word(one), key) for one in raw["values"]]
        values = [value for value in read if value is not None]
        if len(values) < len(read):
            return None
        if len("\n".join(values)) > 4096:
            self._complain(key, "expected at most 4096 characters in all")
            return None
        return values

    def _svg(
        self, svg: str, sublabels: Iterable[Mapping[str, Any]], raw: Iterable[object], key: Key
    ) -> str:
        """Return the drawing, its points tied to the sublabels by name, as a new task needs it.

        An exported drawing names them by id, and CVAT answers 500 to that. It puts the new ids in
        again by itself.
        """
        names = {str(one["name"]) for one in sublabels}
        by_id = {
            str(one["id"]): str(one.get("name")).strip()
            for one in raw
            if isinstance(one, dict) and "id" in one
        }

        def name_for(match: re.Match[str]) -> str:
            if match[1] in by_id:
                return f'data-label-name="{by_id[match[1]]}"'
            self._complain(key, f"a point belongs to sublabel id {match[1]}, which is not here")
            return match[0]

        svg = re.sub(r'data-label-id="([^"]*)"', name_for, svg)
        for name in re.findall(r'data-label-name="([^"]*)"', svg):
            if name not in names:
                self._warn(key, f'a point belongs to sublabel "{name}", which is not here')
        return svg

    def _members(self, raw: object, key: Key, what: str) -> Iterable[tuple[Mapping[str, Any], Key]]:
        """Yield the tables of an array, each with its place; a name must not stand there twice."""
        if not isinstance(raw, list):
            self._complain(key, mismatch(f"an array of {what}s", raw))
            return
        names = set()
        for position, one in enumerate(raw):
            at = (*key, position)
            if not isinstance(one, dict):
                self._complain(at, mismatch(f'a {what}, {{ name = "…" }}', one))
                continue
            name = str(one.get("name")).strip()
            if name in names and "name" in one:
                self._complain((*at, "name"), f'another {what} is named "{name}" as well')
            names.add(name)
            yield one, at

    def _name(self, raw: Mapping[str, Any], key: Key) -> Any:
        if "name" not in raw:
            self._complain(key, "the name is missing")
            return None
        return self._read(_text(most=64, blank=False), raw["name"], (*key, "name"))

    def _read(self, kind: TypeAdapter[Any], value: object, key: Key) -> Any:
        try:
            return kind.validate_python(value)
        except ValidationError as error:
            self._complain(key, explain(error.errors(include_url=False)[0]))
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


@cache
def _text(*, most: int, blank: bool = True) -> TypeAdapter[str]:
    """Return the type of text as CVAT keeps it: stripped, numbers too, any character but NUL."""

    def read(value: object) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise expected("text in quotes")
        text = str(value).strip()
        if not text and not blank:
            raise expected("text that is not blank")
        if len(text) > most:
            raise expected(f"text of at most {most} characters")
        if any(one == "\0" or "\ud800" <= one <= "\udfff" for one in text):
            raise expected("text without NUL and halves of characters")
        return text

    return TypeAdapter(Annotated[str, PlainValidator(read)])


def _word(value: object) -> object:
    """Return a default or an option; CVAT has text for true and false, which TOML writes better."""
    return str(value).lower() if isinstance(value, bool) else value


def _doubtful_values(kind: str | None, values: list[str]) -> str | None:
    """Return why values are probably a mistake, although CVAT takes them."""
    if any("\n" in value for value in values):
        return "CVAT joins the values by newlines, so one with a newline becomes two"
    match kind:
        case "radio" | "select" if not any(values):
            return f"a {kind} needs values to choose from"
        case "radio" | "select" if "" in values:
            return "one of the values is blank"
        case "radio" | "select" if len(set(values)) < len(values):
            return "the same value stands there twice"
        case "checkbox" if not {value.lower() for value in values} <= {"true", "false", ""}:
            return 'the values of a checkbox are "true" or "false"'
        case "number":
            # CVAT's editor and player need all three.
            numbers = [float(value) for value in values if _NUMBER.fullmatch(value)]
            if len(numbers) != 3 or len(values) != 3 or numbers[0] >= numbers[1]:
                return 'a number needs three values, ["lowest", "highest", "step"]'
            if numbers[2] <= 0:
                return "the step of a number, its third value, must be more than 0"
    return None


def _doubtful_default(kind: str | None, default: str, values: list[str]) -> str | None:
    """Return why a default is probably a mistake, although CVAT takes it."""
    match kind:
        case "radio" | "select" if default not in values:
            return mismatch(f"one of the values ({', '.join(values)})", default)
        case "checkbox" if default.lower() not in ("true", "false"):
            return mismatch('"true" or "false"', default)
        case "number":
            low, high = float(values[0]), float(values[1])
            if not _NUMBER.fullmatch(default) or not low <= float(default) <= high:
                return mismatch(f"a number from {values[0]} to {values[1]}", default)
    return None
