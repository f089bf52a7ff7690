"""The plain ways to job ids, with cvat-sdk alone: what the pool is compared with."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pool.bench.measure import CallCounter, Sample
from pool.config.settings import CvatSettings
from pool.cvat import Credentials, PasswordCredentials
from pool.cvat.multipart import form_fields
from pool.cvat.upload import request_id
from pool.errors import PoolError

#: Seconds within which a plain flow must have its jobs, however slow the server.
PATIENCE = 120.0


@contextmanager
def plain_client(settings: CvatSettings, credentials: Credentials) -> Iterator[Any]:
    """Open a logged-in ``cvat_sdk.Client`` with the SDK's defaults.

    The version check, which only warns, is left out.
    """
    from cvat_sdk.core.client import AccessTokenCredentials, Client, Config

    client = Client(
        settings.url,
        config=Config(verify_ssl=settings.verify_tls),
        check_server_version=False,
        logger=logging.getLogger("cvat_sdk"),
    )
    try:
        client.organization_slug = settings.organization
        if isinstance(credentials, PasswordCredentials):
            client.login((credentials.username, credentials.password))
        else:
            client.login(AccessTokenCredentials(credentials.token))
        yield client
    finally:
        client.close()
        # Its own close leaves the connections open.
        client.api_client.rest_client.pool_manager.clear()


@contextmanager
def plain_flows(
    client: Any,
    fields: Mapping[str, Any],
    pictures: Sequence[bytes],
    *,
    data: Mapping[str, Any] | None = None,
    mark: str = "",
    basic: tuple[str, str] | None = None,
) -> Iterator[PlainFlows]:
    """Write the pictures to files, which is what the SDK takes. See :class:`PlainFlows`."""
    with TemporaryDirectory(prefix="cvat-pool-images-") as folder:
        paths = [Path(folder, f"frame{number:03d}.jpg") for number in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            path.write_bytes(picture)
        yield PlainFlows(client, fields, paths, data or {}, mark, basic)


class PlainFlows:
    """The SDK as most people use it. Each call makes one task, waits for its jobs, and returns
    the task's id; a name of a task begins with ``mark``.

    ``fields`` is the body of the create, less the name; ``data`` goes with the upload. ``basic``
    is a user and a password for :meth:`busy_loop`; without them it uses the client's own
    credentials.
    """

    def __init__(
        self,
        client: Any,
        fields: Mapping[str, Any],
        paths: Sequence[Path],
        data: Mapping[str, Any],
        mark: str,
        basic: tuple[str, str] | None,
    ) -> None:
        self._client = client
        self._fields = fields
        self._paths = paths
        self._data = {"image_quality": 70, **data}
        self._mark = mark
        self._basic = basic

    def defaults(self, number: int) -> int:
        """``create_from_data`` with nothing changed: it looks every 5 s."""
        return self._create_from_data(f"defaults {number}", {})

    def often(self, number: int) -> int:
        """``create_from_data``, looking every 100 ms."""
        return self._create_from_data(f"100 ms {number}", {"status_check_period": 0.1})

    def polling(self, number: int) -> int:
        """Create, upload without waiting, look at the request every 500 ms, list the jobs."""
        task = self._client.tasks.create(spec=self._spec(f"polling {number}"))
        task.upload_data(self._paths, params=self._data, wait_for_completion=False)
        deadline = time.monotonic() + PATIENCE
        while _in_time(deadline):
            request, _ = self._client.api_client.requests_api.retrieve(request_id(task.id))
            if request.status.value in ("finished", "failed"):
                break
            time.sleep(0.5)
        return _checked(task.id, task.get_jobs())

    def busy_loop(self, number: int) -> int:
        """Create, one multipart POST, list the jobs in a busy loop (cvat-ai/cvat issue 9073)."""
        task = self._client.tasks.create(spec=self._spec(f"busy loop {number}"))
        self._post_data(task.id)
        deadline = time.monotonic() + PATIENCE
        jobs: list[Any] = []
        while not jobs and _in_time(deadline):
            _, answer = self._client.api_client.jobs_api.list(
                task_id=task.id, _parse_response=False
            )
            jobs = json.loads(answer.data)["results"]
        return _checked(task.id, jobs)

    def _create_from_data(self, name: str, options: Mapping[str, Any]) -> int:
        task = self._client.tasks.create_from_data(
            spec=self._spec(name), resources=self._paths, data_params=self._data, **options
        )
        return _checked(task.id, task.get_jobs())

    def _post_data(self, task_id: int) -> None:
        from cvat_sdk.core.helpers import make_request_headers

        api = self._client.api_client
        headers = dict(make_request_headers(api))
        if self._basic is not None:
            pair = base64.b64encode(":".join(self._basic).encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
        headers["Content-Type"] = "multipart/form-data"
        files = {
            f"client_files[{index}]": (path.name, path.read_bytes(), "image/jpeg")
            for index, path in enumerate(self._paths)
        }
        api.rest_client.POST(
            f"{api.configuration.host}/api/tasks/{task_id}/data",
            headers=headers,
            post_params={**dict(form_fields(self._data)), **files},
        )

    def _spec(self, name: str) -> dict[str, Any]:
        return {**self._fields, "name": f"{self._mark} {name}".strip()}


def _in_time(deadline: float) -> bool:
    """Return True, so that a loop goes on.

    :raises PoolError: the deadline has passed.
    """
    if time.monotonic() > deadline:
        raise PoolError(f"a plain flow had no jobs after {PATIENCE:g} s")
    return True


def _checked(task_id: int, jobs: Sequence[Any]) -> int:
    if not jobs:
        raise PoolError(f"the SDK found no jobs in task {task_id}")
    return int(task_id)


class PlainFlow:
    """One of the plain ways as a :class:`~pool.bench.bench.Flow`: everything is a part of the
    request, so there is nothing to prepare and nothing that follows."""

    def __init__(self, ask: Callable[[int], int], counter: CallCounter) -> None:
        self._ask = ask
        self.counter = counter

    def prepare(self) -> None:
        """Do nothing."""

    def run(self, number: int) -> list[Sample]:
        """Make one request."""
        began, started = time.time(), time.perf_counter()
        task_id = self._ask(number)
        ours_ms = (time.perf_counter() - started) * 1000
        return [
            Sample(
                task_id=task_id,
                ours_ms=ours_ms,
                began=began,
                ended=began + ours_ms / 1000,
                post_ms=(self.counter.last_seconds("upload") or 0.0) * 1000,
            )
        ]

    def settle(self) -> None:
        """Do nothing."""
