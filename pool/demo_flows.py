"""The plain ways to job ids, with the SDK alone: what the demo compares the pool with."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class PlainFlows:
    """The SDK as most people use it. Each call makes one task and waits for its jobs."""

    def __init__(
        self, environment: Mapping[str, str], labels: Sequence[str], pictures: Sequence[bytes]
    ) -> None:
        self._environment = environment
        self._labels = labels
        self._pictures = pictures

    def __enter__(self) -> Self:
        from pool.cvat.plain import plain_client

        self._folder = tempfile.TemporaryDirectory(prefix="cvat-pool-images-")
        self._paths: list[Path] = []
        for number, picture in enumerate(self._pictures):
            path = Path(self._folder.name) / f"frame{number:03d}.jpg"
            path.write_bytes(picture)
            self._paths.append(path)
        self._client: Any = plain_client(
            self._environment["CVAT_URL"], self._environment["CVAT_ACCESS_TOKEN"]
        )
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()
        self._folder.cleanup()

    def defaults(self, number: int) -> None:
        """``create_from_data`` with nothing changed: it looks every 5 s."""
        task = self._client.tasks.create_from_data(
            spec=self._spec(f"defaults {number}"),
            resources=self._paths,
            data_params={"image_quality": 70},
        )
        self._expect(task.get_jobs())

    def polling(self, number: int) -> None:
        """Create, upload without waiting, look at the request every 500 ms, list the jobs."""
        task = self._client.tasks.create(spec=self._spec(f"polling {number}"))
        task.upload_data(self._paths, params={"image_quality": 70}, wait_for_completion=False)
        request_id = f"action=create&target=task&target_id={task.id}"
        while True:
            request, _ = self._client.api_client.requests_api.retrieve(request_id)
            if request.status.value in ("finished", "failed"):
                break
            time.sleep(0.5)
        self._expect(task.get_jobs())

    def _spec(self, name: str) -> dict[str, Any]:
        return {"name": name, "labels": [{"name": label} for label in self._labels]}

    def _expect(self, jobs: Sequence[Any]) -> None:
        if not jobs:
            logging.getLogger(__name__).error("the SDK found no jobs")
