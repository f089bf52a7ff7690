"""Labels: how they are given with a task or a project, and the list of them."""

from __future__ import annotations

import zlib
from typing import Any

from .call import Call
from .fields import Fields
from .filters import Field, Listing
from .organizations import may_see
from .paging import page
from .records import Json, Label, Project, Task
from .render import label_json
from .replies import Refusal, Reply, invalid, missing
from .state import State

TYPES = (
    "any", "cuboid", "ellipse", "mask", "points", "polygon", "polyline", "rectangle", "skeleton",
    "tag",
)  # fmt: skip
INPUT_TYPES = ("checkbox", "radio", "number", "text", "select")

LISTING: Listing[Label] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "name": Field(lambda row: row.name),
        "parent": Field(lambda _: None),
        "parent_id": Field(lambda _: None, "number"),
        "type": Field(lambda row: row.type, choices=TYPES),
        "color": Field(lambda row: row.color),
    },
    simple=("name", "parent", "type", "color", "parent_id"),
    search=("name", "parent"),
    sort="id",
)


def read_labels(fields: Fields) -> list[Json]:
    """The ``labels`` of a task or a project, checked one by one.

    A colour is not checked and unknown keys are dropped in silence, as CVAT does. Raises 400
    for a label that is wrong in itself; names that occur twice are refused by
    :func:`check_unique`, which comes after all the other checks.
    """
    labels: list[Json] = []
    errors: list[Json] = []
    for given in fields.items("labels"):
        label, mistakes = _read_label(given)
        labels.append(label)
        errors.append(mistakes)
    if any(errors):
        fields.errors["labels"] = errors
    return labels


def _read_label(given: Any) -> tuple[Json, Json]:
    if not isinstance(given, dict):
        kind = type(given).__name__
        message = f"Invalid data. Expected a dictionary, but got {kind}."
        return {}, {"non_field_errors": [message]}
    fields = Fields(given)
    label: Json = {
        "name": fields.text("name", required="id" not in given, blank=False, longest=64),
        "color": fields.text("color", default=""),
        "type": fields.choice("type", TYPES, default="any"),
        "deleted": fields.boolean("deleted"),
        "sublabels": fields.items("sublabels"),
    }
    if "id" in given:
        label["id"] = fields.integer("id")
    attributes, mistakes = [], []
    for attribute in fields.items("attributes"):
        inner = Fields(attribute if isinstance(attribute, dict) else {})
        values = inner.items("values")
        attributes.append(
            {
                "name": inner.text("name", required=True, blank=False, longest=64),
                "mutable": inner.boolean("mutable"),
                "input_type": inner.choice("input_type", INPUT_TYPES, required=True),
                "default_value": inner.text("default_value", default=""),
                "values": [str(value) for value in values],
            }
        )
        mistakes.append(inner.errors)
    if any(mistakes):
        fields.errors["attributes"] = mistakes
    label["attributes"] = attributes
    return label, fields.errors


def check_unique(labels: list[Json]) -> None:
    names = [label["name"] for label in labels]
    if len(set(names)) != len(names):
        raise invalid("All label names must be unique")


def add_labels(state: State, owner: Task | Project, labels: list[Json]) -> None:
    for given in labels:
        label = Label(
            id=next(state.ids.label),
            name=given["name"],
            color=given["color"] or default_color(given["name"]),
            type=given["type"],
            attributes=[
                {"id": next(state.ids.attribute)} | attribute for attribute in given["attributes"]
            ],
            sublabels=given["sublabels"],
        )
        if isinstance(owner, Task):
            label.task_id = owner.id
        else:
            label.project_id = owner.id
        state.labels[label.id] = label
        owner.label_ids.append(label.id)


def update_labels(state: State, owner: Task | Project, labels: list[Json]) -> None:
    """A PATCH of labels: those with an id are changed or deleted, the others are added."""
    for given in labels:
        label_id = given.get("id")
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
    """A colour that depends on nothing but the name, of the 8 x 8 x 8 that CVAT chooses from."""
    number = zlib.crc32(name.encode())
    channels = (((number >> shift) & 7) * 32 for shift in (0, 3, 6))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


async def list_labels(call: Call) -> Reply:
    state, query = call.state, call.query
    if owner := _owner(call):
        labels = state.labels_of(owner)
    else:
        labels = [label for label in state.labels.values() if _may_see_label(call, label)]
    body, _ = page(call, LISTING.apply(labels, query), label_json)
    return Reply(body)


def _owner(call: Call) -> Task | Project | None:
    """The one task or project that the labels are asked for, if it is one."""
    state, query = call.state, call.query
    found: Task | Project | None = None
    if "job_id" in query:
        job = state.jobs.get(_number(query["job_id"]))
        found, model = (job.task if job else None), "Job"
    elif "task_id" in query:
        found, model = state.tasks.get(_number(query["task_id"])), "Task"
    elif "project_id" in query:
        found, model = state.projects.get(_number(query["project_id"])), "Project"
    else:
        return None
    if found is None:
        raise invalid(f"{model} matching query does not exist.")
    if not may_see(call, found):
        raise missing(model)
    return found


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
