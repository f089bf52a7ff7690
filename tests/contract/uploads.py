"""What the tests of the client upload, and how."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from pool.config.data_params import DataParams
from pool.config.source import Upload, build_upload
from pool.cvat import CvatClient

LIMIT = 64 * 2**20
UNKNOWN_ID = 2_000_000_000


def image(number: int = 0) -> bytes:
    """A JPEG of some ten kilobytes."""
    content = io.BytesIO()
    Image.effect_noise((160, 120), 40 + number).convert("RGB").save(content, "JPEG")
    return content.getvalue()


def images(*names: str, **params: Any) -> Upload:
    return build_upload([(name, image(number)) for number, name in enumerate(names)], params=params)


def send(client: CvatClient, task_id: int, data: Upload, **options: Any) -> str:
    params = options.pop("params", DataParams())
    options = {"single_request_limit": LIMIT, "prepared": False, **options}
    return client.upload(task_id, data, params, **options)


def data_meta(client: CvatClient, task_id: int) -> Any:
    """What the server says of a task's data; not something that the product asks for."""
    return client._transport.call("meta", "GET", f"/api/tasks/{task_id}/data/meta").json()


def frames(client: CvatClient, task_id: int) -> list[str]:
    """The names of a task's frames."""
    return [frame["name"] for frame in data_meta(client, task_id)["frames"]]


def original(client: CvatClient, task_id: int, number: int) -> bytes:
    """A frame as it was uploaded."""
    query = {"type": "frame", "quality": "original", "number": number}
    path = f"/api/tasks/{task_id}/data"
    return client._transport.call("frame", "GET", path, query=query).data
