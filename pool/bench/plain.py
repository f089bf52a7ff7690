"""The plain ways to job ids, with cvat-sdk alone: what the pool is compared with."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pool.bench.measure import CallCounter, Flow, Sample, wait_for
from pool.config.settings import CvatSettings
from pool.cvat import Credentials, PasswordCredentials
from pool.cvat.failures import Answer, error_from_answer, error_from_exception
from pool.cvat.multipart import form_fields
from pool.cvat.upload import request_id
from pool.errors import PoolError


@contextmanager
def plain_client(settings: CvatSettings, credentials: Credentials) -> Iterator[Any]:
    """Open a logged-in ``cvat_sdk.Client`` with the SDK's defaults.

    The version check, which only warns, is left out.

    :raises CvatError: a call of the SDK in the block has failed.
    """
    from cvat_sdk.core.client import AccessTokenCredentials, Client, Config
    from cvat_sdk.exceptions import ApiException, CvatSdkException
    from urllib3 import HTTPHeaderDict
    from urllib3.exceptions import HTTPError

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
    except ApiException as error:
        # The SDK has decoded the body of an error.
        body = error.body.encode() if isinstance(error.body, str) else error.body or b""
        headers = HTTPHeaderDict(error.headers or {})
        answer = Answer(error.status or 0, headers, body, settings.url)
        raise error_from_answer(answer, method="POST", now=time.time()) from None
    except HTTPError as error:
        raise error_from_exception(
            error, method="POST", server=settings.url, sent=True, timeout=settings.timeout
        ) from None
    except CvatSdkException as error:
        raise PoolError(f"the SDK: {' '.join(str(error).split())}") from None
    finally:
        client.close()
        # Its own close leaves the connections open.
        client.api_client.rest_client.pool_manager.clear()


class PlainWays:
    """The SDK as most people use it. Each way makes one task, waits for its jobs, and returns
    the task's id; the names of the tasks begin with ``mark``.

    ``fields`` is the body of the create, less the name; ``data`` goes with the upload. The
    pictures are written to ``folder``, since the SDK takes files. ``basic`` is a user and a
    password for :meth:`busy_loop`; without them it uses the client's own credentials.
    """

    def __init__(
        self,
        client: Any,
        fields: Mapping[str, Any],
        pictures: Sequence[bytes],
        folder: Path,
        *,
        data: Mapping[str, Any] | None = None,
        mark: str = "",
        basic: tuple[str, str] | None = None,
    ) -> None:
        self._client = client
        self._fields = fields
        self._paths = [folder / f"frame{number:03d}.jpg" for number in range(len(pictures))]
        for path, picture in zip(self._paths, pictures, strict=True):
            path.write_bytes(picture)
        self._data = {"image_quality": 70, **(data or {})}
        self._mark = mark
        self._basic = basic

    def defaults(self, number: int) -> int:
        """``create_from_data`` with nothing changed: it looks every 5 s."""
        return self._create_from_data(f"defaults {number}")

    def often(self, number: int) -> int:
        """``create_from_data``, looking every 100 ms."""
        return self._create_from_data(f"100 ms {number}", status_check_period=0.1)

    def polling(self, number: int) -> int:
        """Create, upload without waiting, look at the request every 500 ms, list the jobs."""
        task = self._client.tasks.create(spec=self._spec(f"polling {number}"))
        task.upload_data(self._paths, params=self._data, wait_for_completion=False)

        def ended() -> bool:
            request, _ = self._client.api_client.requests_api.retrieve(request_id(task.id))
            return request.status.value in ("finished", "failed")

        wait_for(ended, "an import of a plain flow", every=0.5)
        return _checked(task.id, task.get_jobs())

    def busy_loop(self, number: int) -> int:
        """Create, one multipart POST, list the jobs in a busy loop (cvat-ai/cvat issue 9073)."""
        task = self._client.tasks.create(spec=self._spec(f"busy loop {number}"))
        self._post_data(task.id)

        def jobs() -> list[Any]:
            list_jobs = self._client.api_client.jobs_api.list
            _, answer = list_jobs(task_id=task.id, _parse_response=False)
            return list(json.loads(answer.data)["results"])

        return _checked(task.id, wait_for(jobs, "the jobs of a plain flow", every=0.0))

    def _create_from_data(self, name: str, **options: Any) -> int:
        task = self._client.tasks.create_from_data(
            spec=self._spec(name), resources=self._paths, data_params=self._data, **options
        )
        return _checked(task.id, task.get_jobs())

    def _post_data(self, task_id: int) -> None:
        from cvat_sdk.core.helpers import make_request_headers

        api = self._client.api_client
        headers = {**make_request_headers(api), "Content-Type": "multipart/form-data"}
        if self._basic is not None:
            pair = base64.b64encode(":".join(self._basic).encode()).decode()
            headers["Authorization"] = f"Basic {pair}"
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


def _checked(task_id: int, jobs: Sequence[Any]) -> int:
    if not jobs:
        raise PoolError(f"the SDK found no jobs in task {task_id}")
    return int(task_id)


class PlainFlow(Flow):
    """One of the plain ways, in which everything is a part of the request."""

    def __init__(self, way: Callable[[int], int], counter: CallCounter) -> None:
        super().__init__(counter)
        self._way = way

    def run(self, number: int) -> list[Sample]:
        began, started = time.time(), time.perf_counter()
        task_id = self._way(number)
        took = time.perf_counter() - started
        sample = Sample(
            task_id=task_id,
            ours_ms=took * 1000,
            began=began,
            ended=began + took,
            post_ms=self.counter.last_seconds("upload") * 1000,
        )
        return [sample]
