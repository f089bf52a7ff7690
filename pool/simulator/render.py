"""Rows as JSON. ``base_url`` is empty in the webhooks that the import worker sends."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import quote

from .records import (
    CloudStorage,
    Data,
    ExportRequest,
    Job,
    Json,
    Label,
    Organization,
    Project,
    Request,
    Task,
    User,
)
from .state import State


def timestamp(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def basic_user(user: User | None, base_url: str) -> Json | None:
    if user is None:
        return None
    return {
        "url": f"{base_url}/api/users/{user.id}",
        "id": user.id,
        "username": user.username,
        "first_name": user.first_name,
        "last_name": user.last_name,
    }


def full_user(user: User, base_url: str) -> Json:
    return (basic_user(user, base_url) or {}) | {
        "email": user.email,
        "groups": list(user.groups),
        "is_staff": user.is_superuser,
        "is_superuser": user.is_superuser,
        "is_active": True,
        "last_login": timestamp(user.last_login),
        "date_joined": timestamp(user.date_joined),
        "has_analytics_access": user.is_superuser,
    }


def cloud_storage_json(storage: CloudStorage, base_url: str) -> Json:
    return {
        "id": storage.id,
        "owner": basic_user(storage.owner, base_url),
        "manifests": storage.manifests,
        "created_date": timestamp(storage.created),
        "updated_date": timestamp(storage.updated),
        "provider_type": storage.provider_type,
        "resource": storage.resource,
        "display_name": storage.display_name,
        "credentials_type": storage.credentials_type,
        "specific_attributes": storage.specific_attributes,
        "description": storage.description,
        "organization": _organization_id(storage.organization),
    }


def label_json(label: Label) -> Json:
    body: Json = {
        "id": label.id,
        "name": label.name,
        "color": label.color,
        "attributes": label.attributes,
        "type": label.type,
        "sublabels": label.sublabels,
        "parent_id": None,
        "has_parent": False,
    }
    if label.svg is not None:
        body["svg"] = label.svg
    if label.task_id is not None:
        body["task_id"] = label.task_id
    if label.project_id is not None:
        body["project_id"] = label.project_id
    return body


def project_json(project: Project, state: State, base_url: str) -> Json:
    tasks = state.tasks_of(project)
    dimensions = {task.dimension for task in tasks if task.dimension}
    return {
        "url": f"{base_url}/api/projects/{project.id}",
        "id": project.id,
        "name": project.name,
        "owner": basic_user(project.owner, base_url),
        "assignee": basic_user(project.assignee, base_url),
        "guide_id": None,
        "bug_tracker": project.bug_tracker,
        "task_subsets": sorted({task.subset for task in tasks if task.subset}),
        "created_date": timestamp(project.created),
        "updated_date": timestamp(project.updated),
        "status": "annotation",
        "dimension": min(dimensions, default=None),
        "organization": _organization_id(project.organization),
        "organization_id": _organization_id(project.organization),
        "target_storage": None,
        "source_storage": None,
        "tasks": {
            "url": f"{base_url}/api/tasks?project_id={project.id}",
            "count": len(tasks),
        },
        "labels": {"url": f"{base_url}/api/labels?project_id={project.id}"},
        "assignee_updated_date": timestamp(project.assignee_updated),
    }


def task_json(task: Task, state: State, base_url: str) -> Json:
    layout = task.data.validation if task.data else None
    body: Json = {
        "url": f"{base_url}/api/tasks/{task.id}",
        "id": task.id,
        "name": task.name,
        "project_id": task.project.id if task.project else None,
        "project_name": task.project.name if task.project else None,
        "owner": basic_user(task.owner, base_url),
        "assignee": basic_user(task.assignee, base_url),
        "bug_tracker": task.bug_tracker,
        "created_date": timestamp(task.created),
        "updated_date": timestamp(task.updated),
        "overlap": task.overlap,
        "segment_size": task.segment_size,
        "status": "annotation",
    }
    body |= _task_data(task)
    body |= {
        "guide_id": None,
        "dimension": task.dimension,
        "mode": task.mode,
        "media_type": task.media_type,
        "subset": task.subset,
        "organization_id": _organization_id(task.organization),
        "organization": _organization_id(task.organization),
        "target_storage": None,
        "source_storage": None,
        "jobs": _job_summary(task, state, base_url),
        "labels": {"url": f"{base_url}/api/labels?task_id={task.id}"},
        "assignee_updated_date": timestamp(task.assignee_updated),
        "validation_mode": layout.mode if layout else None,
        "consensus_enabled": task.consensus_replicas > 0,
    }
    if task.job_ids:
        body["status"] = _task_status(task, state)
    return body


def _task_data(task: Task) -> Json:
    """The fields of a task that its data brings: none at first, two more when prepared."""
    data = task.data
    if data is None:
        return {"data": None}
    body: Json = {
        "data": data.id,
        "size": data.size,
        "data_cloud_storage_id": data.cloud_storage.id if data.cloud_storage else None,
    }
    if task.is_initialized:
        body |= {
            "data_chunk_size": data.chunk_size,
            "data_original_chunk_type": data.original_chunk_type,
            "data_compressed_chunk_type": data.compressed_chunk_type,
            "image_quality": data.image_quality,
        }
    return body


def _job_summary(task: Task, state: State, base_url: str) -> Json:
    completed = validation = 0
    for job in state.jobs_of(task):
        completed += job.stage == "acceptance" and job.state == "completed"
        validation += job.stage == "validation"
    return {
        "count": len(task.job_ids),
        "completed": completed,
        "validation": validation,
        "url": f"{base_url}/api/jobs?task_id={task.id}",
    }


def _task_status(task: Task, state: State) -> str:
    stages = {job.stage for job in state.jobs_of(task)}
    for stage in ("annotation", "validation"):
        if stage in stages:
            return stage
    return "completed"


def job_json(job: Job, base_url: str) -> Json:
    task, data = job.task, job.task.data
    project = task.project
    tracker = task.bug_tracker or (project.bug_tracker if project else "")
    return {
        "url": f"{base_url}/api/jobs/{job.id}",
        "id": job.id,
        "task_id": task.id,
        "task_name": task.name,
        "project_id": project.id if project else None,
        "project_name": project.name if project else None,
        "assignee": basic_user(job.assignee, base_url),
        "guide_id": None,
        "dimension": task.dimension,
        "mode": task.mode,
        "media_type": task.media_type,
        "bug_tracker": tracker or None,
        "status": job.status,
        "stage": job.stage,
        "state": job.state,
        "frame_count": job.frame_count,
        "start_frame": job.start_frame,
        "stop_frame": job.stop_frame,
        "data_chunk_size": data.chunk_size if data else None,
        "data_compressed_chunk_type": data.compressed_chunk_type if data else "",
        "data_original_chunk_type": data.original_chunk_type if data else "",
        "created_date": timestamp(job.created),
        "updated_date": timestamp(job.updated),
        "issues": {"url": f"{base_url}/api/issues?job_id={job.id}", "count": 0},
        "labels": {"url": f"{base_url}/api/labels?job_id={job.id}"},
        "type": job.type,
        "organization": _organization_id(task.organization),
        "target_storage": None,
        "source_storage": None,
        "assignee_updated_date": timestamp(job.assignee_updated),
        "parent_job_id": job.parent_job_id,
        "replicas_count": job.replicas_count,
        "consensus_replicas": job.replicas_count,
    }


def created_job_json(job: Job) -> Json:
    """A job as ``create:job`` tells it: before the import has set what it sets last."""
    unknown = ("task_name", "project_name", "data_chunk_size", "issues")
    blank = (
        "dimension", "mode", "media_type", "bug_tracker", "data_compressed_chunk_type",
        "data_original_chunk_type",
    )  # fmt: skip
    body = job_json(job, "") | {"frame_count": 1}
    return body | dict.fromkeys(unknown) | dict.fromkeys(blank, "")


def data_meta_json(data: Data, job: Job | None = None) -> Json:
    """What the frames of a task are, or those of one of its jobs."""
    is_audio, is_video = data.is_audio, data.is_video
    frames = [
        ({} if is_audio else {"width": frame.width, "height": frame.height})
        | {
            "name": frame.name,
            "related_files": len(frame.related),
            "has_related_context": bool(frame.related),
        }
        for frame in data.frames
    ]
    meta = {
        "chapters": [] if is_video else None,
        "chunks_updated_date": timestamp(data.chunks_updated),
        "chunk_size": data.chunk_size,
        "size": data.size,
        "image_quality": data.image_quality,
        "start_frame": data.start_frame,
        "stop_frame": data.stop_frame,
        "frame_filter": data.frame_filter,
        "frames": frames,
        "deleted_frames": sorted(data.deleted_frames),
        "included_frames": None,
        "storage": data.storage,
        "cloud_storage_id": data.cloud_storage.id if data.cloud_storage else None,
    }
    if is_audio:
        del meta["image_quality"]
    if job is not None:
        first, last = job.start_frame, job.stop_frame
        meta |= {
            "size": last - first + 1,
            "start_frame": first,
            "stop_frame": last,
            # A video has one entry for all of its frames.
            "frames": frames if is_video or is_audio else frames[first : last + 1],
            "deleted_frames": sorted(set(range(first, last + 1)) & set(data.deleted_frames)),
        }
    return meta


def request_json(request: Request) -> Json:
    operation: Json = {"type": "create:task", "target": "task", "job_id": None, "format": None}
    result_url = None
    if isinstance(request, ExportRequest):
        target = "task" if request.job_id is None else "job"
        target_id = request.job_id or request.task_id
        operation = {
            "type": "export:dataset",
            "target": target,
            "job_id": request.job_id,
            "format": request.format,
        }
        if request.status == "finished":
            path = f"/api/{target}s/{target_id}/dataset/download"
            result_url = f"{request.base_url}{path}?rq_id={quote(request.id, safe='')}"
    return {
        "status": request.status,
        "message": request.message,
        "id": request.id,
        "operation": operation
        | {
            "project_id": request.project_id,
            "task_id": request.task_id,
            "org_id": _organization_id(request.organization),
            "lightweight": None,
        },
        "progress": 0.0,
        "created_date": timestamp(request.created),
        "started_date": timestamp(request.started),
        "finished_date": timestamp(request.finished),
        "expiry_date": timestamp(request.expires),
        "owner": {"id": request.owner.id, "username": request.owner.username},
        "result_url": result_url,
        "result_id": None,
    }


def _organization_id(organization: Organization | None) -> int | None:
    return organization.id if organization else None
