"""What tests of the simulator share: a client of ours, and data to give it."""

from __future__ import annotations

from pool.cvat import AccessTokenCredentials, CvatClient, LocalFile, Upload
from pool.demo import sample_image
from pool.settings import CvatSettings, DataSettings
from pool.simulator import SimulatorServer

IMAGE = sample_image(1, size=5_000)
LABELS = {"labels": [{"name": "car"}]}


def client_of(server: SimulatorServer, timeout: float = 10.0) -> CvatClient:
    return CvatClient(
        CvatSettings(url=server.url, timeout=timeout), AccessTokenCredentials(server.access_token)
    )


def upload(client: CvatClient, task_id: int, content: bytes = IMAGE) -> str:
    data = Upload(files=(LocalFile("a.jpg", content, len(content)),))
    return client.upload(task_id, data, DataSettings(), single_request_limit=10**8, prepared=False)
