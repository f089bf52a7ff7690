"""The registered cloud storages: only to be looked at; their content comes from the settings."""

from __future__ import annotations

from .call import Call
from .filters import Field, Listing
from .organizations import may_list, may_see
from .paging import page
from .records import CloudStorage, Json
from .render import basic_user, timestamp
from .replies import Reply, forbidden, missing

LISTING: Listing[CloudStorage] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "name": Field(lambda row: row.display_name),
        "resource": Field(lambda row: row.resource),
        "owner": Field(lambda row: row.owner.username),
        "provider_type": Field(lambda _: "AWS_S3_BUCKET"),
        "credentials_type": Field(lambda _: "ANONYMOUS_ACCESS"),
    },
    simple=("name", "resource", "owner", "provider_type", "credentials_type"),
    search=("name", "resource", "owner"),
)


async def list_storages(call: Call) -> Reply:
    rows = (row for row in call.state.cloud_storages.values() if may_list(call, row))
    body, _ = page(call, LISTING.apply(rows, call.query), lambda row: _json(row, call.base_url))
    return Reply(body)


async def get_storage(call: Call) -> Reply:
    storage = call.state.cloud_storages.get(call.number())
    if storage is None:
        raise missing("CloudStorage")
    if not may_see(call, storage):
        raise forbidden()
    return Reply(_json(storage, call.base_url))


def _json(storage: CloudStorage, base_url: str) -> Json:
    return {
        "id": storage.id,
        "owner": basic_user(storage.owner, base_url),
        "manifests": [],
        "provider_type": "AWS_S3_BUCKET",
        "resource": storage.resource,
        "display_name": storage.display_name,
        "created_date": timestamp(storage.created),
        "updated_date": timestamp(storage.created),
        "credentials_type": "ANONYMOUS_ACCESS",
        "specific_attributes": "",
        "description": "",
        "organization": storage.organization.id if storage.organization else None,
    }
