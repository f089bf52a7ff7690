"""Uploads in one request: what is sent, and what a failure leaves of the task."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from support.clock import ManualClock

from pool import errors
from pool.config.data_params import DataParams, ValidationParams
from pool.config.settings import CvatSettings
from pool.config.source import LocalFile, Upload
from pool.cvat import AccessTokenCredentials, CvatClient, PasswordCredentials, left_untouched
from unit.cvat_data_stub import MIB, RQ_ID, DataEndpoint, files, send
from unit.cvat_stub import Reply, Seen, StubServer, closed_port

TOKEN = AccessTokenCredentials("s3cr3t")


# --- One request -------------------------------------------------------------------------------


def test_small_uploads_are_one_request_without_upload_headers(
    endpoint: DataEndpoint, client: CvatClient, tmp_path: Path
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"from a path")
    data = Upload(
        files=(
            LocalFile("a&amp;.jpg", b"from bytes", 10),
            LocalFile("b.jpg", path, 11),
            LocalFile("c.jpg", io.BytesIO(b"from a file"), 11),
        ),
        extra={"frame_filter": "step=2", "chunk_size": 4},
    )
    params = DataParams(
        use_cache=True,
        sorting_method="predefined",
        chunk_size=8,
        validation_params=ValidationParams(
            mode="gt", frame_selection_method="manual", frames=("b.jpg",)
        ),
    )
    assert send(client, data, params=params) == RQ_ID
    assert endpoint.steps == ["POST"]
    assert endpoint.files == {
        "a&amp;amp;.jpg": b"from bytes",
        "b.jpg": b"from a path",
        "c.jpg": b"from a file",
    }
    assert endpoint.fields == {
        "image_quality": "70",
        "use_cache": "true",
        "sorting_method": "predefined",
        "chunk_size": "4",
        "frame_filter": "step=2",
        "validation_params.mode": "gt",
        "validation_params.frame_selection_method": "manual",
        "validation_params.frames[0]": "b.jpg",
        "upload_file_order[0]": "a&amp;.jpg",
        "upload_file_order[1]": "b.jpg",
        "upload_file_order[2]": "c.jpg",
    }
    sent = endpoint.server.seen[0]
    assert sent.path == "/api/tasks/7/data"
    assert int(sent.headers["Content-Length"]) == len(sent.body)


def test_a_large_body_is_streamed_in_one_request(
    endpoint: DataEndpoint, client: CvatClient, tmp_path: Path
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"0123456789abcdef" * (3 * MIB // 16))
    seen: list[tuple[int, int]] = []
    data = Upload(files=(LocalFile("a.mp4", path, 3 * MIB),))
    send(client, data, progress=lambda *step: seen.append(step))
    assert endpoint.files["a.mp4"] == path.read_bytes()
    assert "Transfer-Encoding" not in endpoint.server.seen[0].headers
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[-1] == (3 * MIB, 3 * MIB)


def test_an_answer_without_an_id_still_has_one(endpoint: DataEndpoint, client: CvatClient) -> None:
    endpoint.after = lambda _: Reply(status=202, data={})
    assert send(client, files(a_jpg=b"x")) == RQ_ID


def test_an_expired_session_costs_a_second_request(
    endpoint: DataEndpoint, server: StubServer, clock: ManualClock
) -> None:
    def guard(seen: Seen) -> Reply | None:
        if seen.path == "/api/auth/login":
            cookies = [f"sessionid=s{len(server.seen)}; Path=/", "csrftoken=c; Path=/"]
            return Reply(data={}, headers={"Set-Cookie": cookies})
        if "sessionid=s1" in seen.headers["Cookie"]:
            clock.advance(86400)
            return Reply(status=401, data={"detail": "expired"})
        return None

    endpoint.before = guard
    settings = CvatSettings(url=server.url)
    with CvatClient(settings, PasswordCredentials("u", "p"), clock=clock) as client:
        send(client, Upload(files=(LocalFile("a.jpg", io.BytesIO(b"x" * 2 * MIB), 2 * MIB),)))
    assert endpoint.files["a.jpg"] == b"x" * 2 * MIB
    assert server.paths() == ["/api/auth/login", "/api/tasks/7/data"] * 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Upload(files=(LocalFile("a.jpg", Path("/no/such.jpg"), 1),)), r"such\.jpg cannot be"),
    ],
)
def test_input_that_cannot_be_used_is_refused_before_anything_is_sent(
    endpoint: DataEndpoint, client: CvatClient, data: Upload, message: str
) -> None:
    with pytest.raises(errors.InputError, match=message) as raised:
        send(client, data)
    assert left_untouched(raised.value)
    assert endpoint.server.connections == 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_any_number_of_files_takes_few_that_are_open(
    endpoint: DataEndpoint, client: CvatClient, tmp_path: Path
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x")
    before, most = open_files(), 0

    def count(*_: int) -> None:
        nonlocal most
        most = max(most, open_files())

    data = Upload(files=tuple(LocalFile(f"{n}.jpg", path, 1) for n in range(500)))
    send(client, data, limit=100, at_once=4, progress=count)
    assert len(endpoint.files) == 500
    assert most - before < 40


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Growing(io.BytesIO):
    """A file that is written to while it is read."""

    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("size", [10, 2 * MIB])
def test_a_file_that_changes_while_it_is_sent(
    endpoint: DataEndpoint, client: CvatClient, size: int
) -> None:
    data = Upload(files=(LocalFile("a.jpg", Growing(b"x" * size), size - 1),))
    with pytest.raises(errors.InputError, match=r"a\.jpg became longer") as raised:
        send(client, data)
    assert endpoint.server.seen == []
    # Of a small body nothing was sent yet; of a large one, most.
    assert left_untouched(raised.value) is (size == 10)


@pytest.mark.parametrize(
    ("reply", "kind", "untouched"),
    [
        (Reply(cut=True), errors.CvatAmbiguous, False),
        (Reply(status=400, data=["Adding more data is not supported"]), errors.CvatRejected, False),
        (Reply(status=401, data={"detail": "Invalid token."}), errors.CvatRefusedCredentials, True),
        (Reply(status=403, data={"detail": "no"}), errors.CvatForbidden, True),
        (Reply(status=404, data={"detail": "No Task"}), errors.CvatNotFound, False),
        (Reply(status=413, text="<html>"), errors.CvatRejected, False),
        (Reply(status=429, data={}), errors.CvatBusy, True),
        (Reply(status=500, text="<html>"), errors.CvatBusy, False),
        (Reply(status=504, text="<html>"), errors.CvatAmbiguous, False),
        (Reply(status=200, text="<html>", kind="text/html"), errors.CvatError, False),
    ],
)
def test_what_a_failed_upload_leaves_of_the_task(
    endpoint: DataEndpoint,
    client: CvatClient,
    reply: Reply,
    kind: type[errors.CvatError],
    untouched: bool,
) -> None:
    endpoint.before = lambda _: reply
    with pytest.raises(errors.CvatError) as raised:
        send(client, files(a_jpg=b"x"))
    assert type(raised.value) is kind
    assert left_untouched(raised.value) is untouched
    assert endpoint.steps == ["POST"]


def test_an_upload_that_never_got_a_connection_left_the_task_untouched(
    clock: ManualClock,
) -> None:
    settings = CvatSettings(url=f"http://127.0.0.1:{closed_port()}")
    with (
        CvatClient(settings, TOKEN, clock=clock) as client,
        pytest.raises(errors.CvatUnreachable) as raised,
    ):
        send(client, files(a_jpg=b"x"))
    assert left_untouched(raised.value)


def test_an_upload_cut_in_the_middle_was_not_acted_on_but_counts_as_touched(
    endpoint: DataEndpoint, client: CvatClient, tmp_path: Path
) -> None:
    endpoint.server.refuse_body = lambda *_: True
    path = tmp_path / "a.bin"
    # More than the buffers of both ends take.
    path.write_bytes(b"x" * 24 * MIB)
    with pytest.raises(errors.CvatUnreachable, match=r"after \d+ of 25\d+ bytes") as raised:
        send(client, Upload(files=(LocalFile("a.bin", path, 24 * MIB),)))
    assert type(raised.value) is errors.CvatUnreachable
    assert not left_untouched(raised.value)


# --- From where the server is ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "sent"),
    [
        (Upload(share=("a.jpg", "d/")), {"server_files": ["a.jpg", "d/"], "copy_data": True}),
        (Upload(urls=("http://x/a.jpg",)), {"remote_files": ["http://x/a.jpg"], "copy_data": True}),
        (
            Upload(cloud=(3, ("m.jsonl",)), extra={"filename_pattern": "cam1/*.jpg"}),
            {
                "cloud_storage_id": 3,
                "server_files": ["m.jsonl"],
                "copy_data": True,
                "filename_pattern": "cam1/*.jpg",
            },
        ),
        (
            Upload(cloud=(3, ("k1", "k2")), extra={"job_file_mapping": [["k2"], ["k1"]]}),
            {
                "cloud_storage_id": 3,
                "server_files": ["k1", "k2"],
                "copy_data": True,
                "job_file_mapping": [["k2"], ["k1"]],
            },
        ),
        (
            # What the template got since the request was accepted does not count.
            Upload(
                share=("c.jpg", "a.jpg", "b.jpg"),
                job_sizes=(2, 1),
                extra={"sorting_method": "predefined"},
            ),
            {
                "server_files": ["c.jpg", "a.jpg", "b.jpg"],
                "copy_data": True,
                "job_file_mapping": [["c.jpg", "a.jpg"], ["b.jpg"]],
            },
        ),
    ],
)
def test_server_side_sources_are_one_json_request(
    endpoint: DataEndpoint, client: CvatClient, data: Upload, sent: dict[str, Any]
) -> None:
    assert send(client, data, params=DataParams(copy_data=True)) == RQ_ID
    assert endpoint.finish == {"image_quality": 70, **sent}
    assert endpoint.steps == ["POST"]
