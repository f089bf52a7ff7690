"""What the calls to a simulated server work on: its state, its workers, what happens to it."""

from __future__ import annotations

import asyncio
import random
import secrets
import shutil
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import Any

from .buckets import Bucket, Folder
from .deliveries import Sender
from .door import Door
from .events import Events
from .fault_table import Faults
from .imports import Imports
from .machine import Machine
from .records import AccessToken, CloudStorage, Data, Organization, Upload, User
from .replies import Refusal
from .settings import CloudStorageSettings, SimulatorSettings

MINUTE = 60.0


class Backend(Machine):
    """A CVAT server without its HTTP. All of it belongs to one loop.

    ``operations`` are the names of what faults of calls can be about.
    """

    def __init__(
        self,
        settings: SimulatorSettings | None,
        utc: Callable[[], datetime] | None,
        operations: Iterable[str],
    ) -> None:
        super().__init__(settings, utc)
        self.faults = Faults(self.settings.seed, self.stats, sorted(operations))
        self.sender = Sender(
            self.settings, self.state, self.stats, self.processor, self.faults, self.busy
        )
        self.events = Events(self.state, self.sender)
        self.imports = Imports(self, self.events, self.faults)
        self.uploads: dict[str, Upload] = {}
        #: The socket that the server is reached by, if it is by one.
        self.door: Door | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._later: set[asyncio.Task[None]] = set()
        #: What is drawn when something happens to any one of several.
        self.rng = random.Random(f"{self.settings.seed} actions")
        #: Tokens that are refused, and tokens that are read-only, until they are restored.
        self.revoked: dict[str, AccessToken] = {}
        self.restricted: list[AccessToken] = []
        self._anonymous: deque[float] = deque()
        self._populate()
        for fault in self.settings.faults:
            self.faults.add(fault)

    def _populate(self) -> None:
        settings, state, moment = self.settings, self.state, self.state.now()
        self.share.mkdir(parents=True, exist_ok=True)
        for number, given in enumerate(settings.users, start=2):
            state.users[number] = User(
                id=number,
                username=given.username,
                password=given.password or secrets.token_urlsafe(12),
                email=given.email,
                is_superuser=given.is_superuser,
                groups=given.groups,
                date_joined=moment,
                last_login=moment,
                first_name=given.first_name,
                last_name=given.last_name,
            )
        self.owner = next(iter(state.users.values()))
        self.access_token = self.add_token(self.owner, settings.access_token, read_only=False)
        self.readonly_token = self.add_token(self.owner, settings.readonly_token, read_only=True)
        for number, organization in enumerate(settings.organizations, start=1):
            owner = state.user_named(organization.owner or "") or self.owner
            members = [owner, *map(state.user_named, organization.members)]
            state.organizations[number] = Organization(
                id=number,
                slug=organization.slug,
                name=organization.name or organization.slug,
                owner=owner,
                members={member.id for member in members if member is not None},
                created=moment,
            )
        for number, storage in enumerate(settings.cloud_storages, start=1):
            state.cloud_storages[number] = CloudStorage(
                id=number,
                display_name=storage.display_name,
                resource=storage.resource,
                bucket=self._bucket(number, storage),
                owner=self.owner,
                organization=state.organization_named(storage.organization or ""),
                created=moment,
                updated=moment,
            )
            next(state.ids.cloud_storage)

    def _bucket(self, number: int, storage: CloudStorageSettings) -> Bucket:
        if storage.bucket is not None:
            return storage.bucket
        folder = storage.folder or self.folder / "cloud" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        for key, content in storage.objects.items():
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(content)
        return Folder(folder)

    def add_token(
        self,
        user: User,
        value: str | None = None,
        *,
        read_only: bool = False,
        expires: datetime | None = None,
    ) -> str:
        """Make an access token for a user and return its value; without one it is drawn."""
        token = AccessToken(
            id=len(self.state.tokens) + 1,
            value=value or f"sim_{secrets.token_urlsafe(24)}",
            name="read-only" if read_only else "read and write",
            user=user,
            read_only=read_only,
            created=self.state.now(),
            expires=expires,
        )
        self.state.tokens[token.value] = token
        return token.value

    async def start(self) -> None:
        """Put the workers to work."""
        self._start_workers()

    def _start_workers(self) -> None:
        workers: list[Callable[[], Awaitable[None]]] = [self.sender.run]
        workers += [self.imports.work] * self.settings.import_workers
        self._workers = [asyncio.ensure_future(worker()) for worker in workers]

    async def stop(self) -> None:
        """Stop the workers and remove every file. Calling it twice does no harm."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        self._workers = []
        self.sender.close()
        await asyncio.to_thread(shutil.rmtree, self.folder, True)

    def halt(self) -> None:
        """Stop all work in the background where it is, as when the machine is switched off."""
        self.imports.interrupt()
        for worker in self._workers:
            worker.cancel()
        self._workers = []

    def resume(self, *, queues: bool) -> None:
        """Work again after :meth:`halt`: with the queues as they were, or with empty ones.

        Imports that were under way are not taken up again: their requests fail.
        """
        if queues:
            self.imports.find_abandoned()
        else:
            self.empty_queues()
        self._start_workers()

    def empty_queues(self) -> int:
        """Forget what Redis knows: imports, requests, deliveries. Returns the imports lost."""
        lost = self.imports.clear()
        self.sender.clear()
        self.state.requests.clear()
        return lost

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something as soon as it can be done."""
        task = asyncio.ensure_future(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    @property
    def is_halted(self) -> bool:
        return not self._workers

    def set_clock(self, seconds: float) -> None:
        """Have the server's clock be off by so much from now on."""
        self.state.clock_offset = timedelta(seconds=seconds)
        if self.door is not None:
            self.door.stamp()

    def hold_imports(self, at: str = "queued") -> None:
        """Let imports reach a state, ``queued`` or ``started``, and no further."""
        self.imports.may_be[at].clear()

    def release_imports(self) -> None:
        for allowed in self.imports.may_be.values():
            allowed.set()

    def forget_uploads(self, data: Data) -> None:
        """Give up what is still being uploaded in pieces to a task that is deleted."""
        for identity in [key for key, upload in self.uploads.items() if upload.data is data]:
            del self.uploads[identity]

    def throttle(self) -> None:
        """Count an anonymous call. Raises 429 when there were too many in the last minute."""
        most = self.settings.anonymous_calls_per_minute
        if most is None:
            return
        moment = time.monotonic()
        while self._anonymous and self._anonymous[0] <= moment - MINUTE:
            self._anonymous.popleft()
        if len(self._anonymous) >= most:
            wait = max(1, round(self._anonymous[0] + MINUTE - moment))
            raise Refusal(
                429,
                {"detail": f"Request was throttled. Expected available in {wait} seconds."},
                headers={"retry-after": str(wait)},
            )
        self._anonymous.append(moment)
