"""What tests of the simulator share: clients, and data to give it."""

from __future__ import annotations

import io
import json
from typing import Any
from urllib.parse import urlencode

import urllib3
from PIL import Image

from pool.bench.pictures import sample_image
from pool.config.data_params import DataParams
from pool.config.settings import CvatSettings
from pool.config.source import LocalFile, Upload
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.simulator import SimulatorServer

IMAGE = sample_image(1, size=5_000)
LABELS = {"labels": [{"name": "car"}]}


def client_of(
    server: SimulatorServer, timeout: float = 10.0, *, organization: str = ""
) -> CvatClient:
    settings = CvatSettings(url=server.url, timeout=timeout, organization=organization)
    return CvatClient(settings, AccessTokenCredentials(server.access_token))


def upload(client: CvatClient, task_id: int, content: bytes = IMAGE) -> str:
    data = Upload(files=(LocalFile("a.jpg", content, len(content)),))
    return client.upload(task_id, data, DataParams(), single_request_limit=10**8, prepared=False)


class Caller:
    """Plain HTTP with a token."""

    def __init__(self, server: SimulatorServer) -> None:
        self.server = server
        self.http = urllib3.PoolManager(
            headers={"Authorization": f"Bearer {server.access_token}"}, maxsize=8, retries=False
        )

    def __call__(
        self, method: str, path: str, query: dict[str, Any] | None = None, **options: Any
    ) -> urllib3.BaseHTTPResponse:
        url = self.server.url + path + (f"?{urlencode(query)}" if query else "")
        return self.http.request(method, url, **options)

    def create(self, name: str = "task", **spec: Any) -> int:
        body = {"name": name, "labels": [{"name": "car"}], **spec}
        return int(self("POST", "/api/tasks", json=body).json()["id"])

    def upload(self, task_id: int, *names: str, content: bytes | None = None) -> Any:
        fields: dict[str, Any] = {"image_quality": "70"}
        for number, name in enumerate(names):
            fields[f"client_files[{number}]"] = (name, content or jpeg())
        return self("POST", f"/api/tasks/{task_id}/data", fields=fields)

    def request_of(self, task_id: int) -> Any:
        return self("GET", f"/api/requests/action=create&target=task&target_id={task_id}")

    def listed(self, collection: str, rules: Any = None, **query: Any) -> list[int]:
        if rules is not None:
            query["filter"] = json.dumps(rules)
        answer = self("GET", f"/api/{collection}", {"sort": "id", "page_size": "all", **query})
        assert answer.status == 200, answer.data
        return [row["id"] for row in answer.json()["results"]]


def jpeg(size: tuple[int, int] = (64, 48)) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, "teal").save(target, "JPEG")
    return target.getvalue()
