"""What happens once: people who use the server too, administrators, power cuts."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from .call import Actor
from .data import data_row
from .data_params import DataParams
from .records import AccessToken, Project, Task, User
from .requests_api import request_id
from .simulator import Simulator
from .state import State
from .tasks import move_task, remove_task

if TYPE_CHECKING:
    from .door import Door

T = TypeVar("T")

#: Actions that the simulator's own routes offer.
NAMES = (
    "delete_task", "fill_task", "rename_task", "move_task", "forget_requests", "lose_queues",
    "down", "cut_connections", "revoke_tokens", "restrict_tokens", "restore_tokens",
    "end_sessions", "jump_clock",
)  # fmt: skip


class ActionFailed(Exception):
    """There is nothing that this could be done to."""


class Somebody:
    """The server's first user, in a browser."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator

    @property
    def state(self) -> State:
        return self.simulator.state

    @property
    def user(self) -> User:
        return self.simulator.owner

    @property
    def base_url(self) -> str:
        return ""


class Actions:
    """Done at once, on the server's loop. From another thread ``run`` is the way there.

    Where a task is not named by its id, it is drawn from those whose name contains ``mark``.
    All raise :class:`ActionFailed` when there is no such task.
    """

    def __init__(self, simulator: Simulator, run: Callable[[Callable[[], Any]], Any]) -> None:
        self._simulator = simulator
        self._run = run
        self._somebody: Actor = Somebody(simulator)

    def _do(self, name: str, action: Callable[[], T]) -> T:
        def counted() -> T:
            self._simulator.stats.actions[name] += 1
            return action()

        result: T = self._run(counted)
        return result

    # --- Tasks --------------------------------------------------------------------------------

    def delete_task(self, task_id: int | None = None, mark: str = "") -> int:
        """Delete a task; returns its id. While it is imported, it goes after that."""

        def delete() -> int:
            task = self._task(task_id, mark)
            if task.lock.locked():
                self._simulator.later(self._delete_unlocked(task))
            else:
                remove_task(self._somebody, task)
            return task.id

        return self._do("delete_task", delete)

    async def _delete_unlocked(self, task: Task) -> None:
        async with task.lock:
            if task.id in self._simulator.state.tasks:
                remove_task(self._somebody, task)

    def fill_task(self, task_id: int | None = None, mark: str = "", frames: int = 1) -> int:
        """Put images into an empty task, with its jobs at once; returns its id."""

        def fill() -> int:
            task = self._task(task_id, mark, lambda task: not task.is_initialized)
            if task.is_initialized or task.lock.locked() or self._is_imported_into(task):
                raise ActionFailed(f"task {task.id} is not empty")
            data = data_row(self._somebody, task)
            data.image_quality = data.image_quality or 70
            for number in range(frames):
                name = f"somebody-{number}.jpg"
                Image.new("RGB", (64, 48), "teal").save(data.raw / name, "JPEG")
                data.client_files[name] = None
            self._simulator.imports.import_at_once(self._somebody, task, data, DataParams())
            return task.id

        return self._do("fill_task", fill)

    def _is_imported_into(self, task: Task) -> bool:
        request = self._simulator.state.request_of(request_id(task.id))
        return request is not None and request.status in ("queued", "started")

    def rename_task(
        self, task_id: int | None = None, mark: str = "", name: str = "renamed by somebody"
    ) -> int:
        """Give a task another name; returns its id."""

        def rename() -> int:
            task = self._task(task_id, mark)
            before = self._simulator.events.snapshot(task)
            task.name, task.updated = name, self._simulator.state.now()
            self._simulator.events.task_updated(task, before, self._somebody)
            return task.id

        return self._do("rename_task", rename)

    def move_task(
        self, task_id: int | None = None, mark: str = "", project_id: int | None = None
    ) -> int:
        """Move a task into a project, by default a new one; returns the task's id."""

        def move() -> int:
            task = self._task(task_id, mark)
            project = project_id if project_id is not None else self._new_project().id
            if project not in self._simulator.state.projects:
                raise ActionFailed(f"there is no project {project}")
            before = self._simulator.events.snapshot(task)
            move_task(self._somebody, task, project)
            task.updated = self._simulator.state.now()
            self._simulator.events.task_updated(task, before, self._somebody)
            return task.id

        return self._do("move_task", move)

    def _task(
        self, task_id: int | None, mark: str, fitting: Callable[[Task], bool] = lambda _: True
    ) -> Task:
        tasks = self._simulator.state.tasks
        if task_id is not None:
            if task_id not in tasks:
                raise ActionFailed(f"there is no task {task_id}")
            return tasks[task_id]
        found = [task for task in tasks.values() if mark in task.name and fitting(task)]
        if not found:
            raise ActionFailed(f"there is no such task with {mark!r} in its name")
        return self._rng.choice(found)

    @property
    def _rng(self) -> random.Random:
        return self._simulator.rng

    def _new_project(self) -> Project:
        state = self._simulator.state
        moment = state.now()
        project = Project(
            id=next(state.ids.project),
            name="somebody's project",
            owner=self._somebody.user,
            assignee=None,
            bug_tracker="",
            organization=None,
            created=moment,
            updated=moment,
        )
        state.projects[project.id] = project
        return project

    # --- Queues and the machine ---------------------------------------------------------------

    def forget_requests(self, task_id: int | None = None) -> int:
        """Have no request known any more, of one task or of all; their imports go on."""

        def forget() -> int:
            requests = self._simulator.state.requests
            keys = [key for key, each in requests.items() if task_id in (None, each.task_id)]
            for key in keys:
                del requests[key]
            return len(keys)

        return self._do("forget_requests", forget)

    def lose_queues(self) -> int:
        """Restart Redis with nothing in it; returns how many imports are lost.

        All that was queued or started vanishes, and no request is known. Tasks and their data
        rows stay.
        """

        def lose() -> int:
            if self._simulator.is_halted:
                return self._simulator.empty_queues()
            self._simulator.halt()
            lost = self._simulator.empty_queues()
            self._simulator.resume(queues=True)
            return lost

        return self._do("lose_queues", lose)

    def down(self, seconds: float | None = None, queues: bool = True) -> None:
        """Switch the server off: connections are reset, then refused, and no import goes on.

        It comes back after ``seconds``, or with :meth:`up`.
        """

        def down() -> None:
            if self._door.is_shut:
                raise ActionFailed("the server is down already")
            self._door.shut()
            self._simulator.halt()
            if seconds is not None:
                loop = asyncio.get_running_loop()
                loop.call_later(seconds, lambda: self._up(queues))

        self._do("down", down)

    def up(self, queues: bool = True) -> None:
        """Switch the server on again, on the same port; without ``queues``, with empty ones.

        Imports that were under way fail, as rq finds out in the end; queued ones go on.
        """
        self._do("up", lambda: self._up(queues))

    def _up(self, queues: bool) -> None:
        if self._door.is_shut:
            self._simulator.resume(queues=queues)
            self._door.open()

    def cut_connections(self) -> int:
        """Reset all open connections, idle ones too; returns how many."""
        return self._do("cut_connections", lambda: self._door.cut_all())

    @property
    def _door(self) -> Door:
        if self._simulator.door is None:
            raise ActionFailed("the server has no socket")
        return self._simulator.door

    # --- Credentials and time -----------------------------------------------------------------

    def revoke_tokens(self, token: str | None = None) -> int:
        """Have access tokens refused, one or all; returns how many."""

        def revoke() -> int:
            found = self._tokens(token)
            for each in found:
                self._simulator.revoked[each.value] = self._simulator.state.tokens.pop(each.value)
            return len(found)

        return self._do("revoke_tokens", revoke)

    def restrict_tokens(self, token: str | None = None) -> int:
        """Make access tokens read-only, one or all; returns how many."""

        def restrict() -> int:
            found = [each for each in self._tokens(token) if not each.read_only]
            for each in found:
                each.read_only = True
                self._simulator.restricted.append(each)
            return len(found)

        return self._do("restrict_tokens", restrict)

    def restore_tokens(self) -> int:
        """Undo all revocations and restrictions; returns how many."""

        def restore() -> int:
            simulator = self._simulator
            count = len(simulator.revoked) + len(simulator.restricted)
            simulator.state.tokens |= simulator.revoked
            for each in simulator.restricted:
                each.read_only = False
            simulator.revoked.clear()
            simulator.restricted.clear()
            return count

        return self._do("restore_tokens", restore)

    def _tokens(self, value: str | None) -> list[AccessToken]:
        tokens = self._simulator.state.tokens
        return [each for each in tokens.values() if value in (None, each.value)]

    def end_sessions(self) -> int:
        """Log everybody out; returns how many sessions there were."""

        def end() -> int:
            state = self._simulator.state
            count = len(state.sessions)
            state.sessions.clear()
            state.session_keys.clear()
            return count

        return self._do("end_sessions", end)

    def jump_clock(self, seconds: float) -> None:
        """Move the server's clock, forward or (with a negative number) back."""

        def jump() -> None:
            offset = self._simulator.state.clock_offset.total_seconds()
            self._simulator.set_clock(offset + seconds)

        self._do("jump_clock", jump)
