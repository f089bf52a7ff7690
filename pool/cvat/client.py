"""What the pool asks of CVAT, one method a question. :mod:`pool.cvat.transport` makes the calls."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from pool.clock import Clock, SystemClock
from pool.config.data_params import DataParams
from pool.config.settings import CvatSettings
from pool.config.source import Progress, Upload
from pool.cvat import failures
from pool.cvat.credentials import Credentials, find_credentials
from pool.cvat.failures import Answer
from pool.cvat.listing import Unsteady, answered_at, json_filter, list_all
from pool.cvat.records import (
    AccessToken,
    ImportState,
    ImportStatus,
    Project,
    ServerInfo,
    TaskInfo,
    User,
    parse_annotated,
    parse_assignee,
    parse_count,
    parse_frame_names,
    parse_hidden_frames,
    parse_id,
    parse_job,
    parse_label_name,
    parse_state,
)
from pool.cvat.transport import OnCall, Transport
from pool.cvat.upload import prepare_upload, request_id, upload_data
from pool.cvat.webhooks import Webhooks
from pool.errors import CvatAmbiguous, CvatError
from pool.model import Assignee, Job

#: Ids in one filter: 1,000 make the URL too long (414).
MAX_IDS: Final = 500


def connect(
    settings: CvatSettings,
    environ: Mapping[str, str] | None = None,
    *,
    on_call: OnCall | None = None,
) -> CvatClient:
    """Return a client with the credentials in ``environ`` (default: the process's).

    No call is made yet.

    :raises ConfigError: there are none, or the server's address is none.
    """
    credentials = find_credentials(settings, os.environ if environ is None else environ)
    return CvatClient(settings, credentials, on_call=on_call)


class CvatClient:
    """A client for one server, organization and credential. Thread-safe.

    Every call has a time-out: ``settings.timeout`` seconds for the answer, less to connect.
    Failures of the server or the network raise subclasses of CvatError: CvatUnreachable,
    CvatBusy, CvatRefusedCredentials, CvatForbidden, CvatNotFound (also when the organization does
    not exist), CvatRejected, and from calls that change something CvatAmbiguous. Nothing is
    retried here except calls that met a closed keep-alive connection, and the parts of a
    resumable upload.

    ``on_call`` is called after each call with (operation, seconds, "ok" or the error's code),
    from the thread that made it; it must not raise.
    """

    def __init__(
        self,
        settings: CvatSettings,
        credentials: Credentials,
        *,
        on_call: OnCall | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._transport = Transport(
            settings,
            credentials,
            clock=clock or SystemClock(),
            on_call=on_call,
        )
        self.webhooks = Webhooks(self._transport)
        self.server_url = self._transport.server
        self.organization = settings.organization

    def __enter__(self) -> CvatClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CvatClient({self.server_url!r}, organization={self.organization!r})"

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def use(self, credentials: Credentials) -> None:
        """Make all calls that begin from now on with these credentials."""
        self._transport.use(credentials)

    def warm_up(self, connections: int) -> None:
        """Open connections ahead of need, and log in, so that the first request pays neither."""
        self._transport.warm_up(connections)

    # --- The server and the user --------------------------------------------------------------

    def about(self) -> ServerInfo:
        """Return the server's name and version.

        :raises CvatError: it is no CVAT server.
        """
        answer = self._transport.call("about", "GET", "/api/server/about", accept=(404,))
        if answer.status == 404:
            raise failures.not_cvat(answer, "nothing at /api/server/about")
        payload = answer.json()
        if not (isinstance(payload, dict) and "version" in payload):
            raise failures.not_cvat(answer, "no version")
        return ServerInfo.parse(payload)

    def whoami(self) -> User:
        """Return the user of the credentials.

        :raises CvatRefusedCredentials: CVAT does not accept them.
        """
        return User.parse(self._transport.call("whoami", "GET", "/api/users/self").json())

    def find_user(self, user: Assignee) -> User | None:
        """Return a user by id or by name; None where CVAT has none or does not show it.

        Only administrators see users outside of their organizations.
        """
        if isinstance(user, str):
            found = list_all(self._transport, "user", "/api/users", {"username": user})
            users = [User.parse(payload) for payload, _ in found]
            return next((each for each in users if each.username == user), None)
        answer = self._call_if_there("user", "GET", f"/api/users/{user}")
        return None if answer is None else User.parse(answer.json())

    def count_open_jobs(self, username: str) -> int:
        """Return how many jobs are assigned to a user and not completed, as far as CVAT shows
        them."""
        rules = [
            {"==": [{"var": "assignee"}, username]},
            {"!": {"==": [{"var": "state"}, "completed"]}},
        ]
        query = {"filter": json_filter({"and": rules}), "page_size": 1}
        answer = self._transport.call("open_jobs", "GET", "/api/jobs", query=query)
        return parse_count(answer.json())

    def access_token(self) -> AccessToken | None:
        """Return the access token in use; None with a password, or with a server before 2.48."""
        if not self._transport.uses_token:
            return None
        answer = self._transport.call(
            "access_token", "GET", "/api/auth/access_tokens/self", accept=(404,)
        )
        if answer.status == 404:
            if failures.organization_unknown(answer.data):
                raise self._error(answer, "GET")
            return None
        return AccessToken.parse(answer.json())

    # --- Projects -----------------------------------------------------------------------------

    def projects(self) -> list[Project]:
        """Return the projects that the user sees in the organization, oldest first."""
        found = list_all(self._transport, "projects", "/api/projects", {})
        return [Project.parse(payload) for payload, _ in found]

    def label_names(self, project_id: int) -> tuple[str, ...]:
        """Return the names of a project's labels.

        :raises CvatNotFound: it is gone.
        """
        found = list_all(self._transport, "labels", "/api/labels", {"project_id": project_id})
        names = (parse_label_name(payload) for payload, _ in found)
        return tuple(name for name in names if name is not None)

    # --- Tasks --------------------------------------------------------------------------------

    def create_task(
        self, fields: Mapping[str, Any], name: str, *, timeout: float | None = None
    ) -> int:
        """Create a task and return its id in CVAT. ``timeout`` is in seconds.

        Never tried twice, because CVAT would create two.

        :raises CvatAmbiguous: it is unknown whether the task exists; look for it by its name
            after a while.
        """
        answer = self._transport.call(
            "create_task", "POST", "/api/tasks", data={**fields, "name": name}, timeout=timeout
        )
        try:
            return parse_id(answer.json())
        except CvatError as error:
            raise CvatAmbiguous(error.detail, http_status=answer.status) from None

    def prepare_upload(self, task_id: int) -> None:
        """Have CVAT make the data row and the folders ahead of the data. Can be repeated."""
        prepare_upload(self._transport, task_id)

    def upload(
        self,
        task_id: int,
        data: Upload,
        params: DataParams,
        *,
        single_request_limit: int,
        prepared: bool,
        at_once: int = 1,
        progress: Progress | None = None,
    ) -> str:
        """Send data to an empty task and return the id of its import.

        Files of up to ``single_request_limit`` bytes together go in exactly one request.
        Larger uploads go in requests of at most that size, up to ``at_once`` of them at the same
        time, which a lost connection does not undo for a single large file. ``prepared`` says
        that :meth:`prepare_upload` was called before. All files are opened before anything is
        sent; an open file is read from its position, for exactly its ``size``. ``progress``
        is called with (bytes sent, bytes in all), from one thread at a time, and never goes
        back.

        When :func:`pool.cvat.failures.left_untouched` holds for an error, nothing reached the
        task and it can go back to warm. After CvatAmbiguous look for the task's jobs and import.
        After anything else the task must be deleted: CVAT refuses a second upload of the same
        files into one task.

        :raises InputError: the files or parameters cannot be used, or a file changed while it
            was sent.
        """
        return upload_data(
            self._transport,
            task_id,
            data,
            params,
            single_request_limit=single_request_limit,
            prepared=prepared,
            at_once=at_once,
            progress=progress,
        )

    def find_tasks(self, name: str) -> list[TaskInfo]:
        """Return the tasks of exactly this name, oldest first."""
        found = self._list_tasks("find_tasks", {"name": name})
        return [task for task in found if task.name == name]

    def marked_tasks(self, mark: str) -> list[TaskInfo]:
        """Return the tasks whose name contains the mark, oldest first."""
        query = {"filter": json_filter({"in": [mark, {"var": "name"}]})}
        return [task for task in self._list_tasks("marked_tasks", query) if mark in task.name]

    def tasks(self, task_ids: Sequence[int]) -> dict[int, TaskInfo]:
        """Return those of the tasks that still exist, by id.

        A task in another organization is left out as if it did not exist; see :meth:`task`.
        """
        found: dict[int, TaskInfo] = {}
        for ids in _batches(task_ids):
            query = {"filter": json_filter({"in": [{"var": "id"}, ids]})}
            found |= {task.id: task for task in self._list_tasks("tasks", query)}
        return found

    def task(self, task_id: int) -> TaskInfo | None:
        """Return one task of any organization; None when it does not exist.

        :raises CvatForbidden: it exists, but not for this user.
        """
        answer = self._call_if_there("task", "GET", f"/api/tasks/{task_id}", task_id)
        return None if answer is None else TaskInfo.parse(answer.json(), answered_at(answer))

    def rename_task(self, task_id: int, name: str) -> None:
        """Rename a task.

        :raises CvatNotFound: it is gone.
        """
        path = f"/api/tasks/{task_id}"
        self._transport.call("rename_task", "PATCH", path, data={"name": name}, task_id=task_id)

    def delete_task(self, task_id: int) -> bool:
        """Delete a task. Return False when it was gone already."""
        path = f"/api/tasks/{task_id}"
        return self._call_if_there("delete_task", "DELETE", path, task_id) is not None

    # --- Jobs and imports ---------------------------------------------------------------------

    def jobs(self, task_ids: Sequence[int]) -> dict[int, tuple[Job, ...]]:
        """Return the annotation jobs by task, in order of id; tasks without any are left out.

        A task's jobs appear in one transaction, so what is found for a task is complete.

        :raises CvatBusy: even the jobs of one task change while they are listed.
        """
        found: dict[int, tuple[Job, ...]] = {}
        for ids in _batches(task_ids):
            found |= self._jobs_of(ids)
        return found

    def _jobs_of(self, ids: Sequence[int]) -> dict[int, tuple[Job, ...]]:
        if len(ids) == 1:
            query: dict[str, object] = {"task_id": ids[0]}
        else:
            query = {"filter": json_filter({"in": [{"var": "task_id"}, ids]})}
        try:
            listed = list_all(self._transport, "jobs", "/api/jobs", query)
        except Unsteady:
            if len(ids) == 1:
                raise
            # Other imports end meanwhile. Fewer tasks fill fewer pages, which change less often.
            middle = len(ids) // 2
            return self._jobs_of(ids[:middle]) | self._jobs_of(ids[middle:])
        found: dict[int, list[Job]] = {}
        for payload, _ in listed:
            parsed = parse_job(payload, self.job_url)
            if parsed is not None:
                found.setdefault(parsed[0], []).append(parsed[1])
        return {task_id: tuple(jobs) for task_id, jobs in found.items()}

    def assign_job(self, job_id: int, user_id: int | None) -> str | None:
        """Assign a job to a user, or to none, and return that user's name.

        :raises CvatNotFound: it is gone.
        """
        answer = self._transport.call(
            "assign_job", "PATCH", f"/api/jobs/{job_id}", data={"assignee": user_id}
        )
        return parse_assignee(answer.json())

    def close_job(self, job_id: int) -> None:
        """Have a job count as done and be assigned to no one, so that it stands in no list of
        work, and keeps its task from being done no longer: of stage "acceptance" and state
        "completed", as CVAT counts the jobs of a task that are done.

        :raises CvatNotFound: it is gone.
        """
        data = {"assignee": None, "stage": "acceptance", "state": "completed"}
        self._transport.call("close_job", "PATCH", f"/api/jobs/{job_id}", data=data)

    def import_state(self, task_id: int) -> ImportState:
        """Return the state of the import of a task's data."""
        path = f"/api/requests/{request_id(task_id)}"
        answer = self._transport.call(
            "import_state", "GET", path, accept=(400, 404), task_id=task_id
        )
        if answer.status == 200:
            return ImportState.parse(answer.json())
        if failures.organization_unknown(answer.data):
            raise self._error(answer, "GET")
        if answer.status == 404:
            return ImportState(status=ImportStatus.UNKNOWN)
        if b"does not exist" not in answer.data:
            raise self._error(answer, "GET")
        return ImportState(status=ImportStatus.TASK_GONE)

    def frame_names(self, task_id: int) -> tuple[str, ...]:
        """Return the names of a task's frames, in order; of a video its own name.

        :raises CvatNotFound: the task is gone, or has no data.
        """
        path = f"/api/tasks/{task_id}/data/meta"
        answer = self._transport.call("frame_names", "GET", path, task_id=task_id)
        return parse_frame_names(answer.json())

    def hide_frames(self, job_id: int, frames: Iterable[int]) -> None:
        """Mark these frames of a job as deleted, and none of its others.

        CVAT keeps one list for the task and rewrites it without a lock, so that of calls for jobs
        of one task at the same time some are lost: look at :meth:`hidden_frames` afterwards.

        :raises CvatNotFound: the job is gone.
        """
        path = f"/api/jobs/{job_id}/data/meta"
        data = {"deleted_frames": sorted(frames)}
        self._transport.call("hide_frames", "PATCH", path, data=data)

    def hidden_frames(self, task_id: int) -> frozenset[int]:
        """Return the frames of a task that are marked as deleted.

        :raises CvatNotFound: the task is gone.
        """
        path = f"/api/tasks/{task_id}/data/meta"
        answer = self._transport.call("hidden_frames", "GET", path, task_id=task_id)
        return parse_hidden_frames(answer.json())

    def show_frames(
        self, task_id: int, hidden: Iterable[int], *, cloud_storage_id: int | None
    ) -> frozenset[int]:
        """Have exactly these frames of a task be marked as deleted; return CVAT's list.

        Naming a cloud storage drops all frames, chunks and previews that CVAT has cached of the
        task, in the same call (recording slots_drop). Any storage that CVAT can reach does, also
        for a task whose files are on a share, which then records its id. Without one a frame that
        was read before its file was replaced stays as it was for a day.

        CVAT rewrites its list without a lock, so one writer a task at a time; look at
        :meth:`hidden_frames` afterwards.

        :raises CvatRejected: the storage does not exist or cannot be reached, or a frame does not
            exist. Nothing is changed, and nothing dropped.
        :raises CvatNotFound: the task is gone.
        """
        path = f"/api/tasks/{task_id}/data/meta"
        data: dict[str, Any] = {"deleted_frames": sorted(hidden)}
        if cloud_storage_id is not None:
            data["cloud_storage_id"] = cloud_storage_id
        answer = self._transport.call("show_frames", "PATCH", path, data=data, task_id=task_id)
        return parse_hidden_frames(answer.json())

    def frame(self, task_id: int, number: int, quality: Literal["compressed", "original"]) -> bytes:
        """Return a frame of a task as annotators see it, or as it was imported; hidden ones too.

        CVAT keeps what it has read of a file for a day, each quality apart (recording slots), so
        never look before the file is there.

        :raises CvatBusy: the file is gone, or is no image (500).
        :raises CvatNotFound: the task is gone, or has no such frame.
        """
        path = f"/api/tasks/{task_id}/data"
        query = {"type": "frame", "number": number, "quality": quality}
        return self._transport.call("frame", "GET", path, query=query, task_id=task_id).data

    def annotated(self, job_id: int) -> bool:
        """Return whether a job has annotations, those on hidden frames included.

        :raises CvatNotFound: the job is gone.
        """
        answer = self._transport.call("annotated", "GET", f"/api/jobs/{job_id}/annotations")
        return parse_annotated(answer.json())

    def job_state(self, job_id: int) -> str:
        """Return how far annotators say that a job is: "new" where none has begun.

        :raises CvatNotFound: the job is gone.
        """
        return parse_state(self._transport.call("job_state", "GET", f"/api/jobs/{job_id}").json())

    # --- Pages for people ---------------------------------------------------------------------

    def job_url(self, task_id: int, job_id: int) -> str:
        """Return the address of the page on which a job is annotated."""
        return f"{self.server_url}/tasks/{task_id}/jobs/{job_id}"

    # --- Steps --------------------------------------------------------------------------------

    def _list_tasks(self, operation: str, query: Mapping[str, object]) -> list[TaskInfo]:
        found = list_all(self._transport, operation, "/api/tasks", query)
        return [TaskInfo.parse(payload, moment) for payload, moment in found]

    def _call_if_there(
        self, operation: str, method: str, path: str, task_id: int | None = None
    ) -> Answer | None:
        """Return the answer; None where CVAT says that there is no such thing.

        CVAT itself says so in JSON; a proxy's 404 proves nothing.
        """
        answer = self._transport.call(operation, method, path, accept=(404,), task_id=task_id)
        if answer.status != 404:
            return answer
        if failures.organization_unknown(answer.data) or not answer.is_json:
            raise self._error(answer, method)
        return None

    def _error(self, answer: Answer, method: str) -> CvatError:
        return failures.error_from_answer(answer, method=method, now=self._transport.clock.now())


def _batches(task_ids: Sequence[int]) -> Iterator[list[int]]:
    ids = sorted(set(task_ids))
    for start in range(0, len(ids), MAX_IDS):
        yield ids[start : start + MAX_IDS]
