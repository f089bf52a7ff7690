"""Annotations of jobs: get, replace, add, change and remove, also on hidden frames.

As recorded for shapes (slots); tags and tracks are kept as they are sent.
"""

from __future__ import annotations

from collections.abc import Callable

from .call import Call
from .fields import Fields
from .jobs import job_of
from .records import Job, Json
from .replies import Reply, detail

KINDS = ("tags", "shapes", "tracks")
#: What a shape has where nothing else was sent, in the order in which CVAT answers.
SHAPE: Json = {
    "type": "rectangle",
    "occluded": False,
    "outside": False,
    "z_order": 0,
    "rotation": 0,
    "points": [],
    "id": 0,
    "label_id": 0,
    "group": 0,
    "source": "manual",
    "frame": 0,
    "score": 1,
    "attributes": [],
    "elements": [],
}
#: Fields of a shape that the database keeps as numbers with a fraction.
FRACTIONS = ("score", "rotation")


async def get_annotations(call: Call) -> Reply:
    job = job_of(call)
    return Reply(_body({kind: _of(job, kind) for kind in KINDS}))


async def put_annotations(call: Call) -> Reply:
    """Replace all annotations of a job."""
    return await _change(call, _replace)


async def patch_annotations(call: Call) -> Reply:
    """``action=create``, ``update`` or ``delete`` those that are sent."""
    change = _ACTIONS.get(call.query.get("action", ""))
    if change is None:
        raise detail(400, "Please specify a correct 'action' for the request")
    return await _change(call, change)


async def delete_annotations(call: Call) -> Reply:
    job = job_of(call)
    _replace(call, job, {})
    _touch(call, job)
    return Reply(status=204)


Sent = dict[str, list[Json]]


async def _change(call: Call, change: Callable[[Call, Job, Sent], Sent]) -> Reply:
    job = job_of(call)
    fields = Fields(await call.json_object())
    sent: Sent = {
        kind: fields.each(kind, lambda item: _read(item, job)) for kind in KINDS if kind in fields
    }
    fields.check()
    answer = change(call, job, sent)
    _touch(call, job)
    return Reply(_body(answer))


def _read(item: Fields, job: Job) -> Json:
    """One annotation as it was sent; it must be in the job, whose frames may be hidden."""
    item.integer("frame", required=True, least=job.start_frame, most=job.stop_frame)
    item.integer("label_id", required=True)
    return dict(item.values)


def _replace(call: Call, job: Job, sent: Sent) -> Sent:
    job.annotations.clear()
    return _create(call, job, sent)


def _create(call: Call, job: Job, sent: Sent) -> Sent:
    made: Sent = {}
    for kind, items in sent.items():
        defaults = SHAPE if kind == "shapes" else {}
        made[kind] = [{**defaults, **item, "id": next(call.state.ids.annotation)} for item in items]
        job.annotations.setdefault(kind, []).extend(made[kind])
    return made


def _update(call: Call, job: Job, sent: Sent) -> Sent:
    _delete(call, job, sent)
    for kind, items in sent.items():
        job.annotations.setdefault(kind, []).extend(items)
    return sent


def _delete(_: Call, job: Job, sent: Sent) -> Sent:
    for kind, items in sent.items():
        gone = {item.get("id") for item in items}
        kept = [item for item in job.annotations.get(kind, ()) if item["id"] not in gone]
        job.annotations[kind] = kept
    return sent


_ACTIONS = {"create": _create, "update": _update, "delete": _delete}


def _touch(call: Call, job: Job) -> None:
    job.updated = call.state.now()


def _of(job: Job, kind: str) -> list[Json]:
    """Annotations as they come back from the database: by frame, with numbers as it has them."""
    found = sorted(job.annotations.get(kind, ()), key=lambda item: (item["frame"], item["id"]))
    if kind != "shapes":
        return found
    return [
        item
        | {name: float(item[name]) for name in FRACTIONS}
        | {"points": [float(number) for number in item["points"]]}
        for item in found
    ]


def _body(found: Sent) -> Json:
    return {"version": 0, **{kind: found.get(kind, []) for kind in KINDS}, "intervals": []}
