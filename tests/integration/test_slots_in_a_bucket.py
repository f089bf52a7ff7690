"""Slots whose files stand in a bucket, of a server of S3 that fails at times."""

from __future__ import annotations

import re

from support.api import settings_for
from support.bucket import Bucket, bucket, refusing_writes
from support.simulated import client_of
from support.slots import (
    carriers_of,
    colour_of,
    colours_of,
    picture_of,
    slot_daemon,
    slot_server,
    slot_template,
    wait_for_slots,
)
from support.waiting import PATIENCE, wait_until

from pool import TaskPool
from pool.handles import Request
from pool.model import Hidden, Placed, SlotState
from pool.simulator import CloudStorageSettings
from pool.simulator.buckets import S3


def storage_of(there: Bucket) -> CloudStorageSettings:
    """How CVAT has the bucket."""
    found = S3(there.name, endpoint=there.endpoint, key="another", secret="secret")
    return CloudStorageSettings(display_name="slots", bucket=found)


def test_a_bucket_that_answers_503_sends_requests_the_ordinary_way(store_url: str) -> None:
    """No slot that a write has failed into is used again, and the others have their own pictures;
    all of it as CVAT shows it."""
    with bucket() as there, slot_server(cloud_storages=(storage_of(there),)) as server:
        template = slot_template(
            server.share,
            per_task=6,
            slots={
                "storage": f"s3://{there.name}/pool",
                "server": "cloud:1",
                "cache_storage": None,
            },
        )
        settings = settings_for(server.url, store_url, template)
        with (
            slot_daemon(server, store_url, template) as daemon,
            client_of(server) as cvat,
            TaskPool(settings, cvat=cvat) as pool,
        ):
            wait_for_slots(daemon.process, 6)

            def submit(colour: str) -> Request:
                return pool.submit("camera", [(f"{colour}.jpg", picture_of(colour))])

            def check(request: Request, colour: str, placed: Placed) -> int:
                (job,) = request.jobs(timeout=PATIENCE)
                if placed is Placed.SLOT:
                    request.shown(PATIENCE)
                record = request.refresh()
                assert record.placed is placed
                assert record.task_id is not None
                assert colours_of(cvat, record.task_id, job.start_frame) == {colour}
                (frame,) = request.frames
                assert (there.get(frame.name) is not None) == (placed is Placed.SLOT)
                return job.id

            jobs = [check(submit("red"), "red", Placed.SLOT)]
            with refusing_writes():
                request = submit("green")
                jobs.append(check(request, "green", Placed.TASK))
            # Older versions of obstore tell the status alone.
            assert re.search("SlowDown|503", request.record.no_slot)
            assert there.name in request.record.no_slot
            jobs.append(check(submit("blue"), "blue", Placed.SLOT))
            assert len(set(jobs)) == 3
            store = daemon.process.store
            states = [
                (SlotState.of(slot.state), slot.request_id is not None)
                for carrier in carriers_of(store)
                for slot in store.slots_of(carrier.id)
            ]
            assert states.count((SlotState.FILLED, True)) == 2
            assert states.count((SlotState.RETIRED, False)) == 1
            assert (SlotState.FILLED, False) not in states


def test_an_erased_picture_is_gone_from_the_bucket(store_url: str) -> None:
    """The object holds the placeholder again, and CVAT shows that."""
    with bucket() as there, slot_server(cloud_storages=(storage_of(there),)) as server:
        template = slot_template(
            server.share,
            slots={
                "storage": f"s3://{there.name}/pool",
                "server": "cloud:1",
                "cache_storage": None,
            },
        )
        with (
            slot_daemon(server, store_url, template) as daemon,
            client_of(server) as cvat,
            TaskPool(settings_for(server.url, store_url, template), cvat=cvat) as pool,
        ):
            wait_for_slots(daemon.process, 2)
            request, other = (
                pool.submit("camera", [("a.jpg", picture_of(colour))]) for colour in ("red", "blue")
            )
            for each in (request, other):
                each.shown(PATIENCE)
            pool.erase(request.id)
            wait_until(pool.store, lambda: request.hidden is Hidden.DONE)
            for each, colour in ((request, ""), (other, "blue")):
                (frame,) = each.frames
                assert each.task_id is not None and frame.number is not None
                content = there.get(frame.name)
                assert content is not None and colour_of(content) == colour
                assert colours_of(cvat, each.task_id, frame.number) == {colour}
                hidden = frame.number in cvat.hidden_frames(each.task_id)
                assert hidden is (each is request)
