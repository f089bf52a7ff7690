"""A CVAT client that does what the test says, and writes down what it was asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from pool.config.source import Upload
from pool.cvat.records import ImportState, ImportStatus, ServerInfo, TaskInfo, User
from pool.errors import CvatError, CvatForbidden
from pool.model import Job


class ScriptedCvat:
    """Tasks live in a dictionary; errors queued in ``failures`` are raised, one a call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.tasks_there: dict[int, TaskInfo] = {}
        #: Tasks that exist and that no listing shows; None for one that we may not see.
        self.elsewhere: dict[int, TaskInfo | None] = {}
        self.jobs_there: dict[int, tuple[Job, ...]] = {}
        self.states: dict[int, ImportState] = {}
        #: The names of frames, where they are not those that were uploaded last.
        self.frames_there: dict[int, tuple[str, ...]] = {}
        #: Frames that are marked as deleted, by task.
        self.hidden: dict[int, set[int]] = {}
        self.failures: dict[str, list[CvatError]] = {}
        self.unknown_users: set[int | str] = set()
        self.open_jobs: dict[str, int] = {}
        self.before: Callable[[str], None] = lambda _operation: None
        self._sent: dict[int, tuple[str, ...]] = {}
        #: The numbers of files of the jobs that an upload asked for.
        self._divided: dict[int, tuple[int, ...]] = {}
        self._next_id = 100

    def _call(self, operation: str, *arguments: Any) -> None:
        self.calls.append((operation, *arguments))
        self.before(operation)
        queued = self.failures.get(operation)
        if queued:
            raise queued.pop(0)

    def count(self, operation: str) -> int:
        return sum(call[0] == operation for call in self.calls)

    def make_ready(self, task_id: int, *, jobs: int = 1) -> None:
        """Make the jobs that the upload asked for, or so many of one frame each."""
        ends = list(accumulate(self._divided.get(task_id) or [1] * jobs, initial=0))
        self.jobs_there[task_id] = tuple(
            Job(id=task_id * 10 + index, url=f"u{index}", start_frame=first, stop_frame=end - 1)
            for index, (first, end) in enumerate(pairwise(ends))
        )

    def fail_import(self, task_id: int, message: str) -> None:
        self.states[task_id] = ImportState(status=ImportStatus.FAILED, message=message)

    def about(self) -> ServerInfo:
        self._call("about")
        return ServerInfo(name="scripted", version="0")

    def access_token(self) -> None:
        self._call("access_token")

    def find_user(self, user: int | str) -> User | None:
        """Return the user; one that is given by name has the name's length as its id."""
        self._call("find_user", user)
        if user in self.unknown_users:
            return None
        return User(id=user if isinstance(user, int) else len(user), username=str(user))

    def count_open_jobs(self, username: str) -> int:
        self._call("count_open_jobs", username)
        return self.open_jobs.get(username, 0)

    def create_task(self, fields: Any, name: str, *, timeout: float | None = None) -> int:
        self._call("create_task", dict(fields), name)
        self._next_id += 1
        self.put_task(self._next_id, name)
        return self._next_id

    def put_task(
        self,
        task_id: int,
        name: str,
        *,
        size: int = 0,
        jobs: int = 0,
        project: int | None = None,
        prepared: bool = False,
        age: float | None = 0.0,
    ) -> None:
        self.tasks_there[task_id] = TaskInfo(
            id=task_id,
            name=name,
            size=size,
            has_data=prepared or size > 0,
            jobs=jobs,
            project_id=project,
            organization_id=None,
            age=age,
        )

    def prepare_upload(self, task_id: int) -> None:
        self._call("prepare_upload", task_id)

    def upload(self, task_id: int, data: Upload, params: Any, **options: Any) -> str:
        self._sent[task_id] = data.names
        self._divided[task_id] = data.job_sizes
        self._call("upload", task_id, data)
        return f"action=create&target=task&target_id={task_id}"

    def jobs(self, task_ids: Sequence[int]) -> dict[int, tuple[Job, ...]]:
        self._call("jobs", tuple(task_ids))
        return {each: self.jobs_there[each] for each in task_ids if each in self.jobs_there}

    def import_state(self, task_id: int) -> ImportState:
        self._call("import_state", task_id)
        return self.states.get(task_id, ImportState(status=ImportStatus.UNKNOWN))

    def hide_frames(self, job_id: int, frames: Iterable[int]) -> None:
        self._call("hide_frames", job_id, tuple(frames))
        self.hidden.setdefault(job_id // 10, set()).update(frames)

    def hidden_frames(self, task_id: int) -> frozenset[int]:
        self._call("hidden_frames", task_id)
        return frozenset(self.hidden.get(task_id, ()))

    def frame_names(self, task_id: int) -> tuple[str, ...]:
        self._call("frame_names", task_id)
        return self.frames_there.get(task_id, self._sent.get(task_id, ()))

    def tasks(self, task_ids: Sequence[int]) -> dict[int, TaskInfo]:
        self._call("tasks", tuple(task_ids))
        return {each: self.tasks_there[each] for each in task_ids if each in self.tasks_there}

    def task(self, task_id: int) -> TaskInfo | None:
        self._call("task", task_id)
        if task_id in self.elsewhere and self.elsewhere[task_id] is None:
            raise CvatForbidden("not yours")
        return self.tasks_there.get(task_id) or self.elsewhere.get(task_id)

    def marked_tasks(self, mark: str) -> list[TaskInfo]:
        self._call("marked_tasks", mark)
        return [task for task in self.tasks_there.values() if mark in task.name]

    def find_tasks(self, name: str) -> list[TaskInfo]:
        self._call("find_tasks", name)
        return [task for task in self.tasks_there.values() if task.name == name]

    def rename_task(self, task_id: int, name: str) -> None:
        self._call("rename_task", task_id, name)

    def assign_job(self, job_id: int, user_id: int) -> None:
        self._call("assign_job", job_id, user_id)

    def delete_task(self, task_id: int) -> bool:
        self._call("delete_task", task_id)
        return self.tasks_there.pop(task_id, None) is not None

    def job_url(self, task_id: int, job_id: int) -> str:
        return f"/tasks/{task_id}/jobs/{job_id}"

    def close(self) -> None:
        self._call("close")
