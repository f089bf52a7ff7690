"""Exports of tasks and jobs with their images, in the two formats that were recorded (slots)."""

from __future__ import annotations

import asyncio
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

from .call import Call
from .jobs import job_of
from .pictures import Pictures
from .records import Data, ExportRequest, Frame, Job, Json, Label, Task, export_id
from .replies import Reply, forbidden, invalid
from .requests_api import unknown_request
from .tasks import task_of

#: For so long an export can be asked for and downloaded.
KEPT = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is exported: a task, or one of its jobs, as it was when the export began."""

    task: Task
    job: Job | None
    jobs: Sequence[Job]
    labels: Sequence[Label]
    #: The address that the export was asked for at, which gets into the file.
    url: str
    #: The numbers of the frames that are not hidden, and those frames.
    shown: Mapping[int, Frame]
    #: Rectangles by their frames; no other annotations are exported.
    boxes: Mapping[int, Sequence[Json]]
    dumped: str


def _coco(subject: Subject) -> tuple[str, str]:
    categories = {label.id: place for place, label in enumerate(subject.labels, start=1)}
    images: list[Json] = []
    annotations: list[Json] = []
    for place, (number, frame) in enumerate(subject.shown.items(), start=1):
        images.append(
            {
                "id": place,
                "width": frame.width,
                "height": frame.height,
                "file_name": frame.name,
                "license": 0,
                "flickr_url": "",
                "coco_url": "",
                "date_captured": 0,
            }
        )
        for box in subject.boxes.get(number, ()):
            left, top, right, bottom = map(float, box["points"])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": place,
                    "category_id": categories[box["label_id"]],
                    "segmentation": [],
                    "area": (right - left) * (bottom - top),
                    "bbox": [left, top, right - left, bottom - top],
                    "iscrowd": 0,
                    "attributes": {
                        "occluded": box["occluded"],
                        "rotation": float(box["rotation"]),
                    },
                }
            )
    info = ("contributor", "date_created", "description", "url", "version", "year")
    body = {
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "info": dict.fromkeys(info, ""),
        "categories": [
            {"id": categories[label.id], "name": label.name, "supercategory": ""}
            for label in subject.labels
        ],
        "images": images,
        "annotations": annotations,
    }
    return "annotations/instances_default.json", json.dumps(body, separators=(",", ":"))


def _cvat_for_images(subject: Subject) -> tuple[str, str]:
    root = ElementTree.Element("annotations")
    _texts(root, {"version": "1.1"})
    meta = ElementTree.SubElement(root, "meta")
    _describe(meta, subject)
    _texts(meta, {"dumped": subject.dumped})
    names = {label.id: label.name for label in subject.labels}
    for number, frame in subject.shown.items():
        image = ElementTree.SubElement(
            root,
            "image",
            id=str(number),
            name=frame.name,
            width=str(frame.width),
            height=str(frame.height),
        )
        for box in subject.boxes.get(number, ()):
            left, top, right, bottom = (f"{float(value):.2f}" for value in box["points"])
            ElementTree.SubElement(
                image,
                "box",
                label=names[box["label_id"]],
                source=box["source"],
                occluded=str(int(box["occluded"])),
                xtl=left,
                ytl=top,
                xbr=right,
                ybr=bottom,
                z_order=str(box["z_order"]),
            )
    ElementTree.indent(root)
    text = ElementTree.tostring(root, "unicode", short_empty_elements=False)
    return "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _describe(meta: ElementTree.Element, subject: Subject) -> None:
    task, job = subject.task, subject.job
    data = task.data
    assert data is not None
    about = ElementTree.SubElement(meta, "job" if job else "task")
    _texts(about, {"id": job.id if job else task.id})
    if job is None:
        _texts(about, {"name": task.name})
    _texts(
        about,
        {
            "size": job.frame_count if job else data.size,
            "mode": task.mode,
            "overlap": task.overlap or 0,
            "bugtracker": task.bug_tracker,
            "created": task.created,
            "updated": job.updated if job else task.updated,
            "subset": task.subset or "default",
            "start_frame": job.start_frame if job else data.start_frame,
            "stop_frame": job.stop_frame if job else data.stop_frame,
            "frame_filter": data.frame_filter,
        },
    )
    segments = ElementTree.SubElement(about, "segments")
    for each in subject.jobs:
        _texts(
            ElementTree.SubElement(segments, "segment"),
            {
                "id": each.id,
                "start": each.start_frame,
                "stop": each.stop_frame,
                "url": f"{subject.url}/api/jobs/{each.id}",
            },
        )
    owner = ElementTree.SubElement(about, "owner")
    _texts(owner, {"username": task.owner.username, "email": task.owner.email})
    assignee = ElementTree.SubElement(about, "assignee")
    if user := job.assignee if job else task.assignee:
        _texts(assignee, {"username": user.username, "email": user.email})
    labels = ElementTree.SubElement(about, "labels")
    for label in subject.labels:
        element = ElementTree.SubElement(labels, "label")
        _texts(element, {"name": label.name, "color": label.color, "type": label.type})
        ElementTree.SubElement(element, "attributes")


def _texts(parent: ElementTree.Element, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        ElementTree.SubElement(parent, name).text = str(value)


#: By CVAT's name of the format: what makes the file of annotations, and where its images are.
FORMATS: Mapping[str, tuple[Callable[[Subject], tuple[str, str]], str]] = {
    "COCO 1.0": (_coco, "images/default"),
    "CVAT for images 1.1": (_cvat_for_images, "images"),
}


async def export_task(call: Call) -> Reply:
    return _begin(call, task_of(call), None)


async def export_job(call: Call) -> Reply:
    job = job_of(call)
    return _begin(call, job.task, job)


def _begin(call: Call, task: Task, job: Job | None) -> Reply:
    """Have a worker export; the answer is the request that says when it is done."""
    wanted = call.query.get("format", "")
    data = task.data
    if data is None or not task.is_initialized:
        raise invalid("Exporting annotations from a task without data is not allowed")
    if task.media_type != "image" or data.is_video:
        raise invalid("The simulator exports images only")
    if wanted not in FORMATS:
        raise invalid("Unknown format specified for the request")
    target, target_id = ("job", job.id) if job else ("task", task.id)
    identity = export_id(target, target_id, call.user.id, wanted)
    existing = call.state.request_of(identity)
    if existing is not None and existing.status in ("queued", "started"):
        return Reply({"rq_id": identity}, status=409)
    request = ExportRequest(
        id=identity,
        task_id=task.id,
        job_id=job.id if job else None,
        format=wanted,
        owner=call.user,
        project_id=task.project.id if task.project else None,
        organization=task.organization,
        created=call.state.now(),
        base_url=call.base_url,
        with_images=call.query.get("save_images", "").lower() == "true",
    )
    call.state.requests[identity] = request
    call.simulator.busy(1)
    call.simulator.later(_work(call, request, task, data, job))
    return Reply({"rq_id": identity}, status=202)


async def _work(
    call: Call, request: ExportRequest, task: Task, data: Data, job: Job | None
) -> None:
    """Export in the background.

    With images, *all* frames are read, hidden ones too, and stay in the cache as they are now.
    """
    state = call.state
    own = range(job.start_frame, job.stop_frame + 1) if job else range(data.size)
    try:
        request.status, request.started = "started", state.now()
        await call.spend(call.timings.export + call.timings.export_per_frame * len(own))
        target = call.simulator.folder / f"export-{next(state.ids.export)}.zip"
        subject = _subject(call, task, data, job, own)
        pictures = Pictures(data, state.now()) if request.with_images else None
        try:
            await asyncio.to_thread(_write, target, subject, request.format, pictures, own)
        except OSError as error:
            request.status, request.message = "failed", f"{type(error).__name__}: {error}\n"
        else:
            request.status, request.result = "finished", target
        request.finished = state.now()
        request.expires = request.finished + KEPT
    finally:
        call.simulator.busy(-1)


def _subject(call: Call, task: Task, data: Data, job: Job | None, own: range) -> Subject:
    state = call.state
    hidden = frozenset(data.deleted_frames)
    annotated = [job] if job else list(state.jobs_of(task))
    boxes: dict[int, list[Json]] = {}
    for each in annotated:
        for shape in each.annotations.get("shapes", ()):
            if shape["type"] == "rectangle":
                boxes.setdefault(shape["frame"], []).append(shape)
    return Subject(
        task=task,
        job=job,
        jobs=[each for each in annotated if each.type == "annotation"],
        labels=state.labels_of(task),
        url=f"{call.base_url}{call.request.url.path}",
        shown={number: data.frames[number] for number in own if number not in hidden},
        boxes=boxes,
        dumped=str(state.now()),
    )


def _write(
    target: Path, subject: Subject, wanted: str, pictures: Pictures | None, own: range
) -> None:
    describe, folder = FORMATS[wanted]
    with zipfile.ZipFile(target, "w") as archive:
        for number in own if pictures else ():
            found = pictures.frame(number, original=True) if pictures else None
            if found and number in subject.shown:
                archive.writestr(f"{folder}/{subject.shown[number].name}", found.content)
        archive.writestr(*describe(subject))


async def download(call: Call) -> Reply:
    """The file of an export of a task or a job."""
    request = call.state.request_of(call.query.get("rq_id", ""))
    if not isinstance(request, ExportRequest):
        raise unknown_request()
    if request.owner is not call.user and not call.user.is_superuser:
        raise forbidden()
    if request.result is None:
        raise invalid("The export is not finished")
    content = await asyncio.to_thread(request.result.read_bytes)
    return Reply(content=content, media_type="application/zip")
