"""What happens once: people who use the server too, administrators, power cuts."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from PIL import Image

from .backend import Backend
from .call import Actor
from .data import data_row
from .data_params import DataParams
from .door import Door
from .events import Snapshot
from .records import AccessToken, Project, Task, User, request_id
from .state import State
from .tasks import move_task, remove_task

T = TypeVar("T")
P = ParamSpec("P")

#: Actions that the simulator's own routes offer.
NAMES = (
    "delete_task", "fill_task", "rename_task", "move_task", "forget_requests", "lose_queues",
    "down", "cut_connections", "revoke_tokens", "restrict_tokens", "restore_tokens",
    "end_sessions", "jump_clock",
)  # fmt: skip


class ActionFailed(Exception):
    """There is nothing that this could be done to."""


class Person:
    """The server's first user, in a browser."""

    def __init__(self, simulator: Backend) -> None:
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


def action(
    method: Callable[Concatenate[Actions, P], T],
) -> Callable[Concatenate[Actions, P], T]:
    """Have a method done on the server's loop, and counted."""

    @functools.wraps(method)
    def on_the_loop(actions: Actions, /, *args: P.args, **options: P.kwargs) -> T:
        def counted() -> T:
            actions._simulator.stats.actions[method.__name__] += 1
            return method(actions, *args, **options)

        result: T = actions._run(counted)
        return result

    return on_the_loop


class Actions:
    """Done at once, on the server's loop. From another thread ``run`` is the way there.

    Where a task is not named by its id, it is drawn from those whose name contains ``mark``.
    All raise :class:`ActionFailed` when there is no such task.
    """

    def __init__(self, simulator: Backend, run: Callable[[Callable[[], Any]], Any]) -> None:
        self._simulator = simulator
        self._state = simulator.state
        self._run = run
        self._person: Actor = Person(simulator)

    # --- Tasks --------------------------------------------------------------------------------

    @action
    def delete_task(self, task_id: int | None = None, mark: str = "") -> int:
        """Delete a task; returns its id. While it is imported, it goes after that."""
        task = self._task(task_id, mark)
        if task.lock.locked():
            self._simulator.later(self._delete_unlocked(task))
        else:
            remove_task(self._person, task)
        return task.id

    async def _delete_unlocked(self, task: Task) -> None:
        async with task.lock:
            if task.id in self._state.tasks:
                remove_task(self._person, task)

    @action
    def fill_task(self, task_id: int | None = None, mark: str = "", frames: int = 1) -> int:
        """Put images into an empty task, with its jobs at once; returns its id."""
        task = self._task(task_id, mark, lambda task: not task.is_initialized)
        if task.is_initialized or task.lock.locked() or self._is_imported_into(task):
            raise ActionFailed(f"task {task.id} is not empty")
        data = data_row(self._person, task)
        data.image_quality = data.image_quality or 70
        for number in range(frames):
            name = f"other-{number}.jpg"
            Image.new("RGB", (64, 48), "teal").save(data.raw / name, "JPEG")
            data.client_files[name] = None
        self._simulator.imports.import_at_once(self._person, task, data, DataParams())
        return task.id

    def _is_imported_into(self, task: Task) -> bool:
        request = self._state.request_of(request_id(task.id))
        return request is not None and request.status in ("queued", "started")

    @action
    def rename_task(
        self, task_id: int | None = None, mark: str = "", name: str = "renamed by hand"
    ) -> int:
        """Give a task another name; returns its id."""
        task = self._task(task_id, mark)
        before = self._simulator.events.snapshot(task)
        task.name = name
        return self._updated(task, before)

    @action
    def move_task(
        self, task_id: int | None = None, mark: str = "", project_id: int | None = None
    ) -> int:
        """Move a task into a project, by default a new one; returns the task's id."""
        task = self._task(task_id, mark)
        project = project_id if project_id is not None else self._new_project().id
        if project not in self._state.projects:
            raise ActionFailed(f"there is no project {project}")
        before = self._simulator.events.snapshot(task)
        move_task(self._person, task, project)
        return self._updated(task, before)

    def _updated(self, task: Task, before: Snapshot) -> int:
        task.updated = self._state.now()
        self._simulator.events.task_updated(task, before, self._person)
        return task.id

    def _task(
        self, task_id: int | None, mark: str, fitting: Callable[[Task], bool] = lambda _: True
    ) -> Task:
        tasks = self._state.tasks
        if task_id is not None:
            if task_id not in tasks:
                raise ActionFailed(f"there is no task {task_id}")
            return tasks[task_id]
        found = [task for task in tasks.values() if mark in task.name and fitting(task)]
        if not found:
            raise ActionFailed(f"there is no such task with {mark!r} in its name")
        return self._simulator.rng.choice(found)

    def _new_project(self) -> Project:
        moment = self._state.now()
        project = Project(
            id=next(self._state.ids.project),
            name="a new project",
            owner=self._person.user,
            assignee=None,
            bug_tracker="",
            organization=None,
            created=moment,
            updated=moment,
        )
        self._state.projects[project.id] = project
        return project

    # --- Queues and the machine ---------------------------------------------------------------

    @action
    def forget_requests(self, task_id: int | None = None) -> int:
        """Have no request known any more, of one task or of all; their imports go on."""
        requests = self._state.requests
        keys = [key for key, each in requests.items() if task_id in (None, each.task_id)]
        for key in keys:
            del requests[key]
        return len(keys)

    @action
    def lose_queues(self) -> int:
        """Restart Redis with nothing in it; returns how many imports are lost.

        All that was queued or started vanishes, and no request is known. Tasks and their data
        rows stay.
        """
        if self._simulator.is_halted:
            return self._simulator.empty_queues()
        self._simulator.halt()
        lost = self._simulator.empty_queues()
        self._simulator.resume(queues=True)
        return lost

    @action
    def down(self, seconds: float | None = None, queues: bool = True) -> None:
        """Switch the server off: connections are reset, then refused, and no import goes on.

        It comes back after ``seconds``, or with :meth:`up`.
        """
        if self._door.is_shut:
            raise ActionFailed("the server is down already")
        self._door.shut()
        self._simulator.halt()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, lambda: self._up(queues))

    @action
    def up(self, queues: bool = True) -> None:
        """Switch the server on again, on the same port; without ``queues``, with empty ones.

        Imports that were under way fail, as rq finds out in the end; queued ones go on.
        """
        self._up(queues)

    def _up(self, queues: bool) -> None:
        if self._door.is_shut:
            self._simulator.resume(queues=queues)
            self._door.open()

    @action
    def cut_connections(self) -> int:
        """Reset all open connections, idle ones too; returns how many."""
        return self._door.cut_all()

    @property
    def _door(self) -> Door:
        if self._simulator.door is None:
            raise ActionFailed("the server has no socket")
        return self._simulator.door

    # --- Credentials and time -----------------------------------------------------------------

    @action
    def revoke_tokens(self, token: str | None = None) -> int:
        """Have access tokens refused, one or all; returns how many."""
        found = self._tokens(token)
        for each in found:
            self._simulator.revoked[each.value] = self._state.tokens.pop(each.value)
        return len(found)

    @action
    def restrict_tokens(self, token: str | None = None) -> int:
        """Make access tokens read-only, one or all; returns how many."""
        found = [each for each in self._tokens(token) if not each.read_only]
        for each in found:
            each.read_only = True
        self._simulator.restricted += found
        return len(found)

    @action
    def restore_tokens(self) -> int:
        """Undo all revocations and restrictions; returns how many."""
        simulator = self._simulator
        count = len(simulator.revoked) + len(simulator.restricted)
        self._state.tokens |= simulator.revoked
        for each in simulator.restricted:
            each.read_only = False
        simulator.revoked.clear()
        simulator.restricted.clear()
        return count

    def _tokens(self, value: str | None) -> list[AccessToken]:
        return [each for each in self._state.tokens.values() if value in (None, each.value)]

    @action
    def end_sessions(self) -> int:
        """End all sessions; returns how many sessions there were."""
        count = len(self._state.sessions)
        self._state.sessions.clear()
        self._state.session_keys.clear()
        return count

    @action
    def jump_clock(self, seconds: float) -> None:
        """Move the server's clock, forward or (with a negative number) back."""
        self._simulator.set_clock(self._state.clock_offset.total_seconds() + seconds)
