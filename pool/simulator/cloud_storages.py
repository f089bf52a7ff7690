"""Cloud storages: register a bucket, see it and what is in it, forget it.

As recorded (slots_s3, slots_drop), for buckets that speak S3.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl

from .buckets import S3
from .call import Call
from .fields import Fields
from .media import kind_of
from .organizations import visible
from .records import CloudStorage, Json
from .render import cloud_storage_json
from .replies import Refusal, Reply

PROVIDERS = ("AWS_S3_BUCKET",)
KEY_PAIR, ANONYMOUS = "KEY_SECRET_KEY_PAIR", "ANONYMOUS_ACCESS"
#: Characters of a bucket's and a storage's name.
LONGEST_RESOURCE, LONGEST_NAME = 222, 63


def _storage_of(call: Call) -> CloudStorage:
    return visible(call, call.state.cloud_storages, "CloudStorage")


async def create_storage(call: Call) -> Reply:
    """Register a bucket, if it is there and can be reached."""
    fields = Fields(await call.json_object())
    provider = fields.choice("provider_type", PROVIDERS, required=True)
    resource = fields.text("resource", required=True, blank=False, longest=LONGEST_RESOURCE)
    name = fields.text("display_name", required=True, blank=False, longest=LONGEST_NAME)
    credentials = fields.choice("credentials_type", (KEY_PAIR, ANONYMOUS), required=True)
    is_keyed = credentials == KEY_PAIR
    key = fields.text("key", required=is_keyed)
    secret = fields.text("secret_key", required=is_keyed)
    attributes = fields.text("specific_attributes", default="") or ""
    description = fields.text("description", default="") or ""
    manifests = [str(item) for item in fields.items("manifests")]
    fields.check()
    given = dict(parse_qsl(attributes))
    bucket = S3(
        resource or "",
        endpoint=given.get("endpoint_url"),
        region=given.get("region"),
        key=key if is_keyed else None,
        secret=secret,
    )
    if not await asyncio.to_thread(bucket.exists):
        what = f"resource: The resource {resource} not found. It may have been deleted.\n"
        raise Refusal(400, html=what)
    moment = call.state.now()
    storage = CloudStorage(
        id=next(call.state.ids.cloud_storage),
        display_name=name or "",
        resource=resource or "",
        bucket=bucket,
        owner=call.user,
        organization=call.organization,
        created=moment,
        updated=moment,
        provider_type=provider or "",
        credentials_type=credentials or "",
        specific_attributes=attributes,
        description=description,
        manifests=manifests,
    )
    call.state.cloud_storages[storage.id] = storage
    return Reply(cloud_storage_json(storage, call.base_url), status=201)


async def get_storage(call: Call) -> Reply:
    return Reply(cloud_storage_json(_storage_of(call), call.base_url))


async def delete_storage(call: Call) -> Reply:
    """Forget a storage. Tasks stay, and what is cached of them, without it."""
    storage = _storage_of(call)
    del call.state.cloud_storages[storage.id]
    for task in call.state.tasks.values():
        if task.data is not None and task.data.cloud_storage is storage:
            task.data.cloud_storage = None
    return Reply(status=204)


async def get_status(call: Call) -> Reply:
    storage = _storage_of(call)
    exists = await asyncio.to_thread(storage.bucket.exists)
    return Reply("AVAILABLE" if exists else "NOT_FOUND")


async def get_content(call: Call) -> Reply:
    """One folder of a bucket, whole."""
    storage, prefix = _storage_of(call), call.query.get("prefix", "")
    keys = await asyncio.to_thread(storage.bucket.keys, prefix)
    parts = (key.removeprefix(prefix).partition("/") for key in keys if key.startswith(prefix))
    # A folder once, however much is in it.
    found = dict.fromkeys((name, bool(mark)) for name, mark, _ in parts)
    return Reply({"next": None, "content": [_entry(*each) for each in found]})


def _entry(name: str, is_folder: bool) -> Json:
    if is_folder:
        return {"name": name, "type": "DIR", "mime_type": "DIR"}
    return {"name": name, "type": "REG", "mime_type": kind_of(name)}
