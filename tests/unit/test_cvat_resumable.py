"""Uploads of several requests: groups, chunks, and going on after a cut."""

from __future__ import annotations

import io

import pytest
from support.clock import ManualClock

from pool import errors
from pool.config.data_params import DataParams
from pool.config.source import LocalFile, Upload
from pool.cvat import CvatClient, left_untouched
from unit.cvat_data_stub import RQ_ID, DataEndpoint, files, send
from unit.cvat_stub import Reply, Seen


@pytest.mark.parametrize("prepared", [True, False])
def test_large_uploads_go_in_groups_and_chunks(
    endpoint: DataEndpoint, client: CvatClient, prepared: bool
) -> None:
    data = files(a_jpg=b"a" * 60, b_jpg=b"b" * 60, c_mp4=b"c" * 250, d_jpg=b"d" * 30)
    seen: list[tuple[int, int]] = []
    params = DataParams(sorting_method="predefined", chunk_size=4)
    rq_id = send(
        client,
        data,
        limit=100,
        params=params,
        prepared=prepared,
        progress=lambda *step: seen.append(step),
    )
    assert rq_id == RQ_ID
    assert endpoint.steps == [
        *([] if prepared else ["Upload-Start"]),
        "Upload-Multiple",
        "Upload-Multiple",
        "Upload-Length",
        "Upload-Offset",
        "Upload-Offset",
        "Upload-Offset",
        "Upload-Finish",
    ]
    assert endpoint.files == {file.name: file.source for file in data.files}
    assert endpoint.finish == {
        "image_quality": 70,
        "chunk_size": 4,
        "sorting_method": "predefined",
        "upload_file_order": ["a.jpg", "b.jpg", "c.mp4", "d.jpg"],
    }
    assert seen == sorted(seen)
    assert seen[-1] == (400, 400)


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize("which", [1, 2, 3])
@pytest.mark.parametrize(
    "fault", [Reply(cut=True), Reply(status=503, headers={"Retry-After": "9"})]
)
def test_a_cut_upload_goes_on_where_the_server_is(
    endpoint: DataEndpoint,
    client: CvatClient,
    clock: ManualClock,
    lost: str,
    which: int,
    fault: Reply,
) -> None:
    chunks = 0

    def fail(seen: Seen) -> Reply | None:
        nonlocal chunks
        if seen.method != "PATCH":
            return None
        chunks += 1
        return fault if chunks == which else None

    setattr(endpoint, lost, fail)
    stream = io.BytesIO(bytes(range(250)))
    stream.seekable = lambda: False  # type: ignore[method-assign]
    send(client, Upload(files=(LocalFile("v.mp4", stream, 250),)), limit=100)
    assert endpoint.files["v.mp4"] == bytes(range(250))
    assert len(clock.slept) == 1
    if fault.status == 503:
        assert clock.slept == [9.0]


def test_an_announcement_that_is_lost_is_made_again(
    endpoint: DataEndpoint, client: CvatClient, clock: ManualClock
) -> None:
    faults = iter([Reply(cut=True), Reply(status=502)])
    endpoint.after = lambda seen: next(faults, None) if "Upload-Length" in seen.headers else None
    send(client, files(v_mp4=b"v" * 250), limit=100)
    assert endpoint.files["v.mp4"] == b"v" * 250
    assert len(clock.slept) == 2


def test_a_server_that_stays_away_is_given_up(
    endpoint: DataEndpoint, client: CvatClient, clock: ManualClock
) -> None:
    endpoint.before = lambda seen: Reply(cut=True) if seen.method in ("PATCH", "HEAD") else None
    with pytest.raises(errors.CvatUnreachable) as raised:
        send(client, files(v_mp4=b"v" * 250), limit=100)
    assert not left_untouched(raised.value)
    assert len(clock.slept) == 5
    assert max(clock.slept) <= 15


def test_a_server_that_lost_the_file_is_an_error(
    endpoint: DataEndpoint, client: CvatClient
) -> None:
    endpoint.before = lambda seen: Reply(status=404) if seen.method == "PATCH" else None
    with pytest.raises(errors.CvatNotFound) as raised:
        send(client, files(v_mp4=b"v" * 250), limit=100)
    assert not left_untouched(raised.value)


def test_an_offset_that_makes_no_sense_is_an_error(
    endpoint: DataEndpoint, client: CvatClient
) -> None:
    strange = Reply(status=204, headers={"Upload-Offset": "7000"})
    endpoint.after = lambda seen: strange if seen.method == "PATCH" else None
    with pytest.raises(errors.CvatError, match="the server is at byte 7000, not at 0"):
        send(client, files(v_mp4=b"v" * 250), limit=100)


def test_a_group_is_never_sent_twice(endpoint: DataEndpoint, client: CvatClient) -> None:
    endpoint.after = lambda seen: Reply(cut=True) if "Upload-Multiple" in seen.headers else None
    with pytest.raises(errors.CvatAmbiguous) as raised:
        send(client, files(a_jpg=b"a" * 60, b_jpg=b"b" * 60), limit=100)
    assert not left_untouched(raised.value)
    assert endpoint.steps == ["Upload-Start", "Upload-Multiple"]


def test_a_refusal_after_the_first_group_leaves_a_touched_task(
    endpoint: DataEndpoint, client: CvatClient
) -> None:
    endpoint.before = lambda seen: Reply(status=403) if "Upload-Finish" in seen.headers else None
    with pytest.raises(errors.CvatForbidden) as raised:
        send(client, files(a_jpg=b"a" * 60, b_jpg=b"b" * 60), limit=100)
    assert not left_untouched(raised.value)


def test_a_refusal_at_the_start_leaves_an_untouched_task(
    endpoint: DataEndpoint, client: CvatClient
) -> None:
    endpoint.before = lambda _: Reply(status=403)
    with pytest.raises(errors.CvatForbidden) as raised:
        send(client, files(a_jpg=b"a" * 60, b_jpg=b"b" * 60), limit=100)
    assert left_untouched(raised.value)


def test_a_start_can_be_repeated(endpoint: DataEndpoint, client: CvatClient) -> None:
    faults = iter([Reply(cut=True)])
    endpoint.after = lambda _: next(faults, None)
    client.prepare_upload(7)
    assert endpoint.steps == ["Upload-Start", "Upload-Start"]
