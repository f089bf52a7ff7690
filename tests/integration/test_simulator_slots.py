"""The simulator's slots: buckets and caches beyond what the recordings have."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from support.bucket import Bucket, bucket
from support.commands import running
from support.simulated import LABELS, client_of, jpeg

from pool.config.data_params import DataParams
from pool.config.settings import CvatSettings
from pool.config.source import build_upload
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.errors import CvatBusy, CvatRejected
from pool.simulator import CloudStorageSettings, SimulatorServer, SimulatorSettings, Timings
from pool.simulator.buckets import S3

KEYS = ("pool/c1/0000.jpg", "pool/c1/0001.jpg")
#: Told from a placeholder by its size.
PLACEHOLDER, FILLED = jpeg(), jpeg((80, 60))
DAY = 24 * 60 * 60


@pytest.fixture
def there() -> Iterator[Bucket]:
    with bucket() as there:
        _put(there, "?acl")
        for key in KEYS:
            _put(there, f"/{key}", PLACEHOLDER)
        yield there


def _put(there: Bucket, what: str, content: bytes = b"") -> None:
    """Have an object, or the bucket's list (``?acl``), that anybody may read."""
    headers = {
        "x-amz-acl": "public-read",
        "Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/x",
    }
    url = f"{there.endpoint}/{there.name}{what}"
    assert urllib3.request("PUT", url, body=content, headers=headers).status == 200


def _serving(
    storage: CloudStorageSettings | None = None, share: Path | None = None, **timings: float
) -> SimulatorServer:
    return SimulatorServer(
        SimulatorSettings(
            timings=dataclasses.replace(Timings.zero(), **timings),
            cloud_storages=(storage or CloudStorageSettings(display_name="any"),),
            share=share,
        )
    )


def _carrier(client: CvatClient, *, cloud: int | None = None) -> int:
    """Import over the placeholders; return the task when its jobs are there."""
    task_id = client.create_task(LABELS, "carrier")
    mapping = {"job_file_mapping": [[key] for key in KEYS]}
    data = (
        build_upload(share=KEYS, params=mapping)
        if cloud is None
        else build_upload(cloud=(cloud, KEYS), params=mapping)
    )
    params = DataParams(use_cache=True, copy_data=False, chunk_size=1)
    client.upload(task_id, data, params, single_request_limit=10**8, prepared=False)
    while not client.jobs([task_id]):
        state = client.import_state(task_id)
        assert state.status != "failed", state.message
    return task_id


def _on_share(share: Path) -> Path:
    for key in KEYS:
        (share / key).parent.mkdir(parents=True, exist_ok=True)
        (share / key).write_bytes(PLACEHOLDER)
    return share


@pytest.mark.parametrize("is_keyed", [True, False])
def test_a_carrier_in_a_bucket(there: Bucket, is_keyed: bool) -> None:
    key = {"key": "k" * 20, "secret": "s" * 40} if is_keyed else {}
    storage = CloudStorageSettings(
        display_name="slots", bucket=S3(there.name, endpoint=there.endpoint, **key)
    )
    with _serving(storage) as server, client_of(server) as client:
        task_id = _carrier(client, cloud=1)
        assert client.frame_names(task_id) == KEYS
        assert client.frame(task_id, 1, "original") == PLACEHOLDER
        _put(there, f"/{KEYS[1]}", FILLED)
        assert client.frame(task_id, 1, "original") == PLACEHOLDER
        assert client.show_frames(task_id, [0], cloud_storage_id=1) == {0}
        assert client.frame(task_id, 1, "original") == FILLED


def test_a_bucket_that_is_out_of_reach(there: Bucket) -> None:
    """Nothing is dropped, what is cached is served, and the rest fails until it is back."""
    broken = S3("no-such-bucket", endpoint=there.endpoint, key="k" * 20, secret="s" * 40)
    storage = CloudStorageSettings(
        display_name="slots",
        bucket=S3(there.name, endpoint=there.endpoint, key="k" * 20, secret="s" * 40),
    )
    with _serving(storage) as server, client_of(server) as client:
        task_id = _carrier(client, cloud=1)
        assert client.frame(task_id, 0, "original") == PLACEHOLDER
        row = server.state.cloud_storages[1]
        whole, row.bucket = row.bucket, broken
        with pytest.raises(CvatRejected, match="The specified cloud storage 'slots' is not avail"):
            client.show_frames(task_id, [], cloud_storage_id=1)
        assert client.frame(task_id, 0, "original") == PLACEHOLDER
        with pytest.raises(CvatBusy):
            client.frame(task_id, 1, "original")
        row.bucket = whole
        assert client.frame(task_id, 1, "original") == PLACEHOLDER


def test_what_is_cached_is_forgotten_after_a_day(tmp_path: Path) -> None:
    share = _on_share(tmp_path)
    with _serving(share=share) as server, client_of(server) as client:
        task_id = _carrier(client)
        assert client.frame(task_id, 1, "original") == PLACEHOLDER
        (share / KEYS[1]).write_bytes(FILLED)
        server.actions.jump_clock(DAY - 60)
        assert client.frame(task_id, 1, "original") == PLACEHOLDER
        server.actions.jump_clock(60)
        assert client.frame(task_id, 1, "original") == FILLED


def test_a_frame_that_is_not_cached_takes_longer(tmp_path: Path) -> None:
    slow = _serving(share=_on_share(tmp_path), first_read_wait=150.0)
    with slow as server, client_of(server) as client:
        task_id = _carrier(client)
        took = []
        for _ in range(2):
            began = time.monotonic()
            client.frame(task_id, 1, "original")
            took.append(time.monotonic() - began)
    assert took[0] >= 0.15
    assert took[1] < took[0]


def test_a_drop_takes_longer_the_more_frames_there_are(tmp_path: Path) -> None:
    slow = _serving(share=_on_share(tmp_path), drop=60.0, drop_per_frame=20.0)
    with slow as server, client_of(server) as client:
        task_id = _carrier(client)
        began = time.monotonic()
        client.show_frames(task_id, [], cloud_storage_id=1)
        assert time.monotonic() - began >= 0.1


def test_the_command_takes_cloud_storages(there: Bucket, tmp_path: Path) -> None:
    """A folder, and a bucket where the environment says."""
    folder = tmp_path / "bucket"
    (folder / KEYS[0]).parent.mkdir(parents=True)
    for key in KEYS:
        (folder / key).write_bytes(FILLED)
    storages = ("--cloud-storage", folder, "--cloud-storage", f"s3://{there.name}")
    with running("simulator", "--port", "0", "--speed", "0", *storages, cwd=tmp_path) as simulator:
        url = simulator.wait_for("CVAT_URL=").partition("=")[2]
        token = simulator.wait_for("CVAT_ACCESS_TOKEN=").partition("=")[2]
        with CvatClient(CvatSettings(url=url), AccessTokenCredentials(token)) as client:
            for storage, content in ((1, FILLED), (2, PLACEHOLDER)):
                task_id = _carrier(client, cloud=storage)
                assert client.frame(task_id, 1, "original") == content
        assert simulator.stop() == 0
