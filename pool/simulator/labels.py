"""Labels: how they are given with a task or a project, and the list of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2s

from .call import Call
from .fields import Fields
from .filters import Field, Listing
from .organizations import may_see
from .paging import page
from .records import Job, Json, Label, Project, Task
from .render import label_json
from .replies import Refusal, Reply, crash, invalid, missing
from .state import State

TYPES = (
    "any", "cuboid", "ellipse", "interval", "mask", "points", "polygon", "polyline", "rectangle",
    "skeleton", "tag",
)  # fmt: skip
INPUT_TYPES = ("checkbox", "radio", "number", "text", "select")
_COLORS = {"car": "#2080c0", "person": "#c06060"}

LISTING: Listing[Label] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "name": Field(lambda row: row.name),
        "parent": Field(lambda _: None),
        "parent_id": Field(lambda _: None, "number"),
        "type": Field(lambda row: row.type, choices=TYPES),
        "color": Field(lambda row: row.color),
    },
    search=("name", "parent"),
    sort="id",
)


def read_labels(fields: Fields) -> list[Json]:
    """The ``labels`` of a task or a project, checked one by one.

    A colour is not checked and unknown keys are dropped in silence, as CVAT does. Collects what
    is wrong with a label in itself; :func:`check_labels` comes after all the other checks.
    """
    return fields.each("labels", _read_label)


def _read_label(fields: Fields) -> Json:
    label = _read_sublabel(fields) | {
        "svg": fields.text("svg", default=""),
        "deleted": fields.boolean("deleted"),
        "sublabels": fields.each("sublabels", _read_sublabel),
    }
    if label["deleted"] and label["id"] is None and not fields.errors:
        fields.wrong("non_field_errors", "Deleted label must have an ID")
    return label


def _read_sublabel(fields: Fields) -> Json:
    return {
        "id": fields.integer("id"),
        "name": fields.text("name", required="id" not in fields, blank=False, longest=64),
        "color": fields.text("color", default=""),
        "type": fields.choice("type", TYPES, default="any"),
        "attributes": fields.each("attributes", _read_attribute),
        "has_parent": "has_parent" in fields,
    }


def _read_attribute(fields: Fields) -> Json:
    return {
        "name": fields.text("name", required=True, blank=False, longest=64),
        "mutable": fields.boolean("mutable", required=True),
        "input_type": fields.choice("input_type", INPUT_TYPES, required=True),
        "default_value": fields.text("default_value", default="", longest=128),
        # CVAT keeps them in one column, divided by newlines.
        "values": "\n".join(fields.texts("values", longest=200, required=True)),
    }


def check_labels(labels: list[Json]) -> None:
    """Refuse names that occur twice, and what the columns of the database do not hold.

    The last is found by the database only, and so is ``has_parent`` of a sublabel, which is why
    a skeleton as CVAT shows it cannot be pasted back: CVAT crashes on all of these.
    """
    for label in labels:
        attributes = [attribute["name"] for attribute in label["attributes"]]
        for name in attributes:
            if attributes.count(name) > 1:
                raise invalid(f"Duplicate attribute with name '{name}' exists")
        sublabels = label.get("sublabels", ())
        if len(label["color"]) > 8 or any(each["has_parent"] for each in sublabels):
            raise crash()
        if any(len(attribute["values"]) > 4096 for attribute in label["attributes"]):
            raise crash()
        check_labels(list(sublabels))
    names = [label["name"] for label in labels if label["name"]]
    if len(set(names)) != len(names):
        raise invalid("All label names must be unique")


def add_labels(state: State, owner: Task | Project, labels: list[Json]) -> None:
    for given in labels:
        label = Label(
            id=next(state.ids.label),
            name=given["name"],
            color=given["color"] or default_color(given["name"]),
            type=given["type"],
            attributes=_attributes(state, given),
            sublabels=[_sublabel(state, each) for each in given["sublabels"]],
        )
        if label.type == "skeleton":
            label.svg = str(given["svg"])
            for sublabel in label.sublabels:
                label.svg = label.svg.replace(
                    f'data-label-name="{sublabel["name"]}"', f'data-label-id="{sublabel["id"]}"'
                )
        if isinstance(owner, Task):
            label.task_id = owner.id
        else:
            label.project_id = owner.id
        state.labels[label.id] = label
        owner.label_ids.append(label.id)


def _sublabel(state: State, given: Json) -> Json:
    return {
        "id": next(state.ids.label),
        "name": given["name"],
        "color": given["color"] or default_color(given["name"]),
        "attributes": _attributes(state, given),
        "type": given["type"],
        "has_parent": True,
    }


def _attributes(state: State, label: Json) -> list[Json]:
    return [
        {"id": next(state.ids.attribute)} | given | {"values": given["values"].split("\n")}
        for given in label["attributes"]
    ]


def update_labels(state: State, owner: Task | Project, labels: list[Json]) -> None:
    """A PATCH of labels: those with an id are changed or deleted, the others are added."""
    for given in labels:
        label_id = given["id"]
        if label_id is None:
            add_labels(state, owner, [given])
            continue
        label = state.labels.get(label_id)
        if label is None or label_id not in owner.label_ids:
            raise Refusal(404, {"detail": f"Not found label with id #{label_id} to change"})
        if given["deleted"]:
            del state.labels[label_id]
            owner.label_ids.remove(label_id)
            continue
        label.name = given["name"] or label.name
        label.color = given["color"] or label.color


def default_color(name: str) -> str:
    """The colour that CVAT gives a label of this name.

    CVAT has a list of well-known names (of which two are here), and a hash for all others. It
    shades a colour that another label of the task has already; the simulator does not.
    """
    plain = re.sub(r"[-\s]+", "_", re.sub(r"[^\w\s-]", "", name.lower()).strip())
    if plain in _COLORS:
        return _COLORS[plain]
    number = int.from_bytes(blake2s(plain.encode(), digest_size=3).digest(), "big")
    # Every third bit belongs to one channel; the lowest bits are the channel's highest.
    channels = (
        sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
        for channel in range(3)
    )
    return "#" + "".join(f"{channel:02x}" for channel in channels)


async def list_labels(call: Call) -> Reply:
    state = call.state
    if owner := _owner(call):
        labels = state.labels_of(owner)
    else:
        labels = [label for label in state.labels.values() if _may_see_label(call, label)]
    body, _ = page(call, LISTING.apply(labels, call.query), label_json)
    return Reply(body)


def _owner(call: Call) -> Task | Project | None:
    """The one task or project that the labels are asked for, if it is one."""
    tables: dict[str, Mapping[int, Job | Task | Project]] = {
        "Job": call.state.jobs,
        "Task": call.state.tasks,
        "Project": call.state.projects,
    }
    for model, rows in tables.items():
        given = call.query.get(f"{model.lower()}_id")
        if given is None:
            continue
        row = rows.get(_number(given))
        if row is None:
            raise invalid(f"{model} matching query does not exist.")
        owner = row.task if isinstance(row, Job) else row
        if not may_see(call, owner):
            raise missing(model)
        return owner
    return None


def _number(text: str) -> int:
    return int(text) if text.isdigit() else -1


def _may_see_label(call: Call, label: Label) -> bool:
    owner: Task | Project | None
    if label.task_id is not None:
        owner = call.state.tasks.get(label.task_id)
    else:
        owner = call.state.projects.get(label.project_id or -1)
    return owner is not None and may_see(call, owner)


async def get_label(call: Call) -> Reply:
    label = call.state.labels.get(call.number())
    if label is None or not _may_see_label(call, label):
        raise missing("Label")
    return Reply(label_json(label))
