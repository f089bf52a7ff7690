"""Webhooks: create, list, change, delete, ping, their deliveries."""

from __future__ import annotations

from typing import Any

from .call import Call
from .deliveries import Item, delivery_json
from .events import ALL_EVENTS, ORGANIZATION_EVENTS, PROJECT_EVENTS
from .fields import Fields
from .filters import Field, Listing
from .organizations import may_list, visible
from .paging import page
from .records import Delivery, Json, Webhook
from .render import basic_user, timestamp
from .replies import Refusal, Reply, crash, forbidden, invalid
from .state import State
from .versions import REQUEST_EVENTS

TYPES = ("organization", "project")
_OFFERED = {"all": ALL_EVENTS, "project": PROJECT_EVENTS, "organization": ORGANIZATION_EVENTS}

LISTING: Listing[Webhook] = Listing(
    fields={
        "id": Field(lambda row: row.id, "number"),
        "target_url": Field(lambda row: row.target_url),
        "owner": Field(lambda row: row.owner.username),
        "type": Field(lambda row: row.type, choices=TYPES),
        "project_id": Field(lambda row: row.project_id, "number"),
        "description": Field(lambda row: row.description),
        "updated_date": Field(lambda row: row.updated, "date"),
    },
    search=("target_url", "owner", "description"),
    not_simple=("id", "description", "updated_date"),
)


def webhook_json(webhook: Webhook, state: State, base_url: str) -> Json:
    body: Json = {
        "id": webhook.id,
        "url": f"{base_url}/api/webhooks/{webhook.id}",
        "target_url": webhook.target_url,
        "description": webhook.description,
        "type": webhook.type,
        "content_type": webhook.content_type,
        "is_active": webhook.is_active,
        "enable_ssl": webhook.enable_ssl,
        "created_date": timestamp(webhook.created),
        "updated_date": timestamp(webhook.updated),
        "owner": basic_user(webhook.owner, base_url),
        "project_id": webhook.project_id,
        "organization": webhook.organization.id if webhook.organization else None,
        "events": sorted(webhook.events),
    }
    if webhook.deliveries:
        last = state.deliveries[webhook.deliveries[-1]]
        body["last_status"] = last.status_code
        body["last_delivery_date"] = timestamp(last.updated)
    return body


def webhook_of(call: Call) -> Webhook:
    return visible(call, call.state.webhooks, "Webhook")


async def create_webhook(call: Call) -> Reply:
    fields = Fields(await call.json_object())
    kind = fields.choice("type", TYPES, required=True) or ""
    project_id = fields.integer("project_id", null=True)
    content_type = fields.choice("content_type", ("application/json",), default="application/json")
    values = _read(call, fields, kind, new=True)
    organization = call.organization
    if kind == "project":
        project = call.state.projects.get(project_id or -1)
        if project is None:
            raise invalid("Project matching query does not exist.")
        organization = project.organization
    elif organization is None:
        raise forbidden()
    moment = call.state.now()
    webhook = Webhook(
        id=next(call.state.ids.webhook),
        type=kind,
        content_type=content_type or "",
        owner=call.user,
        project_id=project_id if kind == "project" else None,
        organization=organization,
        created=moment,
        updated=moment,
        **values,
    )
    call.state.webhooks[webhook.id] = webhook
    body = webhook_json(webhook, call.state, call.base_url)
    return Reply(body, status=201, headers={"location": body["url"]})


def _read(call: Call, fields: Fields, kind: str, *, new: bool) -> Json:
    """What can be chosen of a webhook: all of it for a new one, else what is said."""
    values: Json = {
        "target_url": fields.text("target_url", required=new, blank=False, longest=8192),
        "description": fields.text("description", default="", longest=128),
        "secret": fields.text("secret", default="", longest=64),
        "is_active": fields.boolean("is_active", default=True),
        "enable_ssl": fields.boolean("enable_ssl", default=True),
        "events": _events(call, fields, required=new),
    }
    fields.check()
    if new or "events" in fields:
        _check_events(kind, values["events"])
    return {name: value for name, value in values.items() if new or name in fields}


def _offered(call: Call, kind: str) -> list[tuple[str, str]]:
    """Events that this server's version knows, each with its group."""
    all_known = call.settings.since(REQUEST_EVENTS)
    return [each for each in _OFFERED[kind] if all_known or not each[0].startswith("completed:")]


def _events(call: Call, fields: Fields, *, required: bool) -> tuple[str, ...]:
    if "events" not in fields:
        if required:
            fields.wrong("events", "This field is required.")
        return ()
    known = {key for key, _ in _offered(call, "all")}
    events: list[str] = []
    for event in fields.items("events"):
        if event not in known:
            fields.wrong("events", f'"{event}" is not a valid choice.')
            break
        events.append(str(event))
    return tuple(dict.fromkeys(events))


def _check_events(kind: str | None, events: tuple[str, ...]) -> None:
    offered = {key for key, _ in _OFFERED[kind or "all"]}
    if not events or not offered >= set(events):
        message = f"Invalid events list for {kind} webhook"
        raise Refusal(400, {"non_field_errors": [message]})


async def list_webhooks(call: Call) -> Reply:
    rows = (row for row in call.state.webhooks.values() if may_list(call, row))
    body, _ = page(
        call,
        LISTING.apply(rows, call.query),
        lambda row: webhook_json(row, call.state, call.base_url),
    )
    return Reply(body)


async def get_webhook(call: Call) -> Reply:
    return Reply(webhook_json(webhook_of(call), call.state, call.base_url))


async def patch_webhook(call: Call) -> Reply:
    webhook = webhook_of(call)
    fields = Fields(await call.json_object())
    for name, value in _read(call, fields, webhook.type, new=False).items():
        setattr(webhook, name, value)
    webhook.updated = call.state.now()
    return Reply(webhook_json(webhook, call.state, call.base_url))


async def delete_webhook(call: Call) -> Reply:
    call.state.forget_webhook(webhook_of(call))
    return Reply(status=204)


async def list_events(call: Call) -> Reply:
    kind = call.query.get("type", "all")
    if kind not in _OFFERED:
        return Reply("Incorrect value of type parameter", status=400)
    offered = _offered(call, kind)
    events: list[Any] = [key for key, _ in offered]
    if call.settings.since(REQUEST_EVENTS):
        events = [{"key": key, "group": {"display_name": group}} for key, group in offered]
    return Reply({"webhook_type": kind, "events": events})


async def ping_webhook(call: Call) -> Reply:
    """Deliver a ``ping`` while the caller waits."""
    webhook = webhook_of(call)
    payload: Json = {
        "event": "ping",
        "webhook": webhook_json(webhook, call.state, call.base_url),
        "sender": basic_user(call.user, call.base_url),
    }
    delivery = await call.simulator.sender.deliver(Item(webhook, payload))
    return Reply(delivery_json(delivery))


async def list_deliveries(call: Call) -> Reply:
    webhook = webhook_of(call)
    rows: list[Any] = [call.state.deliveries[number] for number in reversed(webhook.deliveries)]
    body, _ = page(call, rows, delivery_json)
    return Reply(body)


async def redeliver(call: Call) -> Reply:
    webhook = webhook_of(call)
    delivery = _delivery_of(call)
    call.simulator.sender.put(webhook, delivery.request, redelivery=True)
    return Reply({})


def _delivery_of(call: Call) -> Delivery:
    webhook = webhook_of(call)
    number = call.number("delivery_id")
    if number not in webhook.deliveries:
        # CVAT looks a delivery up without expecting that there is none.
        raise crash()
    return call.state.deliveries[number]
