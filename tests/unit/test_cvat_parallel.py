"""Several requests of one upload at the same time, and what happens when one of them fails."""

from __future__ import annotations

import io
import threading

import pytest
from support.clock import ManualClock

from pool import errors
from pool.config.data_params import DataParams
from pool.config.settings import CvatSettings
from pool.config.source import LocalFile, Upload
from pool.cvat import AccessTokenCredentials, CvatClient, cut_off, left_untouched
from unit.cvat_data_stub import RQ_ID, DataEndpoint, files, send
from unit.cvat_stub import Reply, Seen, StubServer

TOKEN = AccessTokenCredentials("s3cr3t")
PATIENCE = 10.0
#: Four groups and two large files, at a limit of 100 bytes.
MANY = files(
    a_jpg=b"a" * 90,
    b_jpg=b"b" * 90,
    c_mp4=b"c" * 250,
    d_jpg=b"d" * 90,
    e_mp4=b"e" * 250,
    f_jpg=b"f" * 90,
)


def is_part(seen: Seen) -> bool:
    return "Upload-Multiple" in seen.headers or seen.method == "PATCH"


class Together:
    """Holds requests until as many are there as should be; notes how many there were at most."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count)
        self._guard = threading.Lock()
        self._now = 0
        self.most = 0
        self.held = 0

    def enter(self, seen: Seen) -> Reply | None:
        if not is_part(seen):
            return None
        with self._guard:
            self._now += 1
            self.held += 1
            self.most = max(self.most, self._now)
            first_round = self.held <= self._barrier.parties
        if first_round:
            self._barrier.wait(PATIENCE)
        return None

    def leave(self, seen: Seen) -> None:
        if is_part(seen):
            with self._guard:
                self._now -= 1


@pytest.mark.parametrize("at_once", [2, 4])
def test_groups_and_large_files_go_at_the_same_time(
    endpoint: DataEndpoint, client: CvatClient, at_once: int
) -> None:
    together = Together(at_once)
    endpoint.before = together.enter
    endpoint.after = together.leave
    steps: list[tuple[int, int]] = []
    params = DataParams(sorting_method="predefined")
    done = send(
        client,
        MANY,
        limit=100,
        at_once=at_once,
        params=params,
        progress=lambda *step: steps.append(step),
    )
    assert done == RQ_ID
    assert together.most == at_once
    assert endpoint.files == {file.name: file.source for file in MANY.files}
    assert endpoint.steps[0] == "Upload-Start" and endpoint.steps[-1] == "Upload-Finish"
    assert endpoint.finish is not None
    assert endpoint.finish["upload_file_order"] == [file.name for file in MANY.files]
    assert steps == sorted(set(steps))
    assert steps[-1] == (860, 860)


def test_the_first_failure_stops_the_others(endpoint: DataEndpoint, client: CvatClient) -> None:
    data = Upload(files=tuple(LocalFile(f"{n}.jpg", b"x" * 90, 90) for n in range(40)))
    endpoint.before = lambda seen: (
        Reply(status=400, data=["no"]) if "Upload-Multiple" in seen.headers else None
    )
    with pytest.raises(errors.CvatRejected, match="no") as raised:
        send(client, data, limit=100, at_once=4)
    assert not left_untouched(raised.value)
    assert not cut_off(raised.value)
    assert endpoint.steps.count("Upload-Multiple") <= 4
    assert "Upload-Finish" not in endpoint.steps


@pytest.mark.parametrize("groups_before", [0, 1])
def test_only_when_every_part_was_refused_is_the_task_untouched(
    endpoint: DataEndpoint, client: CvatClient, groups_before: int
) -> None:
    taken = threading.Semaphore(groups_before)
    all_sent = threading.Barrier(4)

    def refuse(seen: Seen) -> Reply | None:
        if "Upload-Multiple" not in seen.headers:
            return None
        all_sent.wait(PATIENCE)
        return None if taken.acquire(blocking=False) else Reply(status=403)

    endpoint.before = refuse
    data = files(a_jpg=b"a" * 90, b_jpg=b"b" * 90, c_jpg=b"c" * 90, d_jpg=b"d" * 90)
    with pytest.raises(errors.CvatForbidden) as raised:
        send(client, data, limit=100, at_once=4)
    assert left_untouched(raised.value) is (groups_before == 0)


@pytest.mark.parametrize("reply", [Reply(cut=True), Reply(status=502), Reply(status=500)])
def test_a_lost_answer_in_the_middle_means_that_the_import_has_not_begun(
    endpoint: DataEndpoint, client: CvatClient, reply: Reply
) -> None:
    endpoint.after = lambda seen: reply if "Upload-Multiple" in seen.headers else None
    with pytest.raises(errors.CvatError) as raised:
        send(client, MANY, limit=100, at_once=2)
    assert cut_off(raised.value)


@pytest.mark.parametrize("reply", [Reply(cut=True), Reply(status=502), Reply(status=403)])
def test_a_failure_at_the_end_leaves_that_open(
    endpoint: DataEndpoint, client: CvatClient, reply: Reply
) -> None:
    endpoint.after = lambda seen: reply if "Upload-Finish" in seen.headers else None
    with pytest.raises(errors.CvatError) as raised:
        send(client, MANY, limit=100, at_once=2)
    assert not cut_off(raised.value)
    assert not left_untouched(raised.value)


def test_files_behind_one_stream_go_one_after_another(
    endpoint: DataEndpoint, client: CvatClient
) -> None:
    stream = io.BytesIO(bytes(range(90)))
    data = Upload(files=tuple(LocalFile(f"{n}.jpg", stream, 90) for n in range(8)))
    send(client, data, limit=100, at_once=4)
    assert set(endpoint.files.values()) == {bytes(range(90))}


def test_a_callback_that_fails_ends_the_upload(endpoint: DataEndpoint, client: CvatClient) -> None:
    def fail(*_: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        send(client, MANY, limit=100, at_once=4, progress=fail)
    assert "Upload-Finish" not in endpoint.steps


class WaitingClock(ManualClock):
    """Waits until it is woken, and says when it does."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def wait(self, condition: threading.Condition, seconds: float | None) -> bool:
        self.waiting.set()
        assert condition.wait(PATIENCE), "not woken"
        return True


def test_a_failure_wakes_a_part_that_pauses(server: StubServer, endpoint: DataEndpoint) -> None:
    clock = WaitingClock()

    def answer(seen: Seen) -> Reply | None:
        if seen.method == "PATCH":
            return Reply(status=503, headers={"Retry-After": "60"})
        if "Upload-Multiple" in seen.headers:
            assert clock.waiting.wait(PATIENCE)
            return Reply(status=400, data=["no"])
        return None

    endpoint.before = answer
    settings = CvatSettings(url=server.url, timeout=5.0)
    data = files(a_mp4=b"a" * 250, b_jpg=b"b" * 90)
    with (
        CvatClient(settings, TOKEN, clock=clock) as client,
        pytest.raises(errors.CvatRejected, match="no"),
    ):
        send(client, data, limit=100, at_once=2)


def test_the_progress_never_goes_back_after_a_failure(
    server: StubServer, endpoint: DataEndpoint
) -> None:
    failed = threading.Event()

    def lose_one(seen: Seen) -> Reply | None:
        if seen.method != "PATCH" or failed.is_set():
            return None
        failed.set()
        return Reply(cut=True)

    endpoint.before = lose_one
    steps: list[tuple[int, int]] = []
    with CvatClient(CvatSettings(url=server.url), TOKEN, clock=ManualClock()) as client:
        send(client, MANY, limit=100, at_once=2, progress=lambda *step: steps.append(step))
    assert failed.is_set()
    assert steps == sorted(set(steps))
    assert steps[-1] == (860, 860)
