"""The simulator against what was recorded with a real CVAT 2.73.

Each recording is replayed in its order on a fresh simulator; of one that goes from task to task,
only the exchanges with the task that is asked for. Compared are the status, the headers that
clients go by, and the body: key for key, type for type, value for value, but for what must differ
from server to server (ids, dates, the host); of a picture its format, size and corners. Bodies of
errors are compared whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import obstore
import pytest
import urllib3
from obstore.store import S3Store
from support.bucket import bucket
from support.served import Delivered, getting, receiver

from contract.recording_replay import RECORDINGS, Answer, Replay, load, stored, subject
from contract.recording_scenes import KINDS, RECORDED_HOOK, SCENES
from pool.simulator import SimulatorServer

#: Values that are not compared in some exchanges, and why. Their types still are.
IGNORED: dict[str, tuple[frozenset[str], str]] = {
    "server_and_auth::about": (
        frozenset({"description"}), "the simulator says of itself what it is"
    ),
    "server_and_auth::read-only token reads": (
        frozenset({"count"}), "the recorded server had 738 tasks"
    ),
    "paging::bad sort": (frozenset({"count"}), "the recorded server had 786 tasks"),
    "requests::list by status": (
        frozenset({"count"}), "the recorded server had 285 finished requests"
    ),
    "server_and_auth::access token about itself": (
        frozenset({"name"}), "the token's name is ours"
    ),
}  # fmt: skip
_DRAWN = frozenset(
    {"name", "width", "validation_frames", "honeypot_frames", "honeypot_real_frames"}
)
IGNORED |= {
    f"data_params::{name}": (_DRAWN, "frames are drawn, by another generator")
    for name in (
        "sorting_method random: its frames",
        "gt, 2 random frames: its validation layout",
        "gt, a share: its validation layout",
        "gt, each job: its validation layout",
        "gt with a mapping: its validation layout",
        "gt with overlap: its validation layout",
        "gt_pool, random sorting: its frames",
        "gt_pool, random sorting: its validation layout",
        "gt_pool, by name: its frames",
        "gt_pool, by name: its validation layout",
        "gt_pool, no segment_size: its frames",
        "gt_pool, no segment_size: its validation layout",
    )
}

#: Exchanges that differ from the recording in a way that is accepted, and why.
_NO_STAR = "RFC 7578 forbids filename* in forms, and our parser of forms passes over it"
_NO_MINUTE = "there the web server in front gave up after 60 s, while the delete went on"
DIFFERENT: dict[str, str] = {
    "assignees::register an ordinary user": "the simulator's users stand in its settings",
    "names::raw header: filename* in UTF-8: how it ended": _NO_STAR,
    "names::raw header: filename* in UTF-8: its frames": _NO_STAR,
    "names::raw header: filename and filename*: its frames": _NO_STAR,
    "groups::5000 jobs over the share: deleted": _NO_MINUTE,
    "groups::5000 jobs over the share: deleted again right away": _NO_MINUTE,
    "groups::5000 jobs over the share: the task meanwhile": _NO_MINUTE,
}


def _parts(recorded: list[dict[str, Any]]) -> list[range]:
    """The parts of a recording that share no task: each can be replayed without the others."""
    subjects = [subject(exchange) for exchange in recorded]
    last = {name: number for number, name in enumerate(subjects) if name is not None}
    parts: list[range] = []
    start = until = 0
    for number, name in enumerate(subjects):
        if name is not None and number > until and number > start:
            parts.append(range(start, number))
            start = number
        until = max(until, last.get(name or "", number))
    return [*parts, range(start, len(recorded))]


class Recording:
    """A recording that is replayed part by part, when it is asked for what came of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.scene = SCENES[name]
        self.recorded = load(name)
        whole = range(len(self.recorded))
        self.parts = [whole] if self.scene.tasks is None else _parts(self.recorded)
        self.differences: dict[int, list[str]] = {}
        #: What was downloaded during each part.
        self.downloads: dict[range, list[str]] = {}
        self._asked: list[str] = []
        self._bucket_url = ""
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.callback(self._stack.close)
            self._prepare(self._stack, folder)
            stack.pop_all()

    def _prepare(self, stack: contextlib.ExitStack, folder: Path) -> None:
        hosts: dict[str, int] = {}
        folder.mkdir(exist_ok=True)
        self._folder = folder
        texts = {RECORDED_HOOK: ""}
        if self.scene.bucket is not None:
            texts |= self._open_bucket(stack, self.scene.bucket)
        for scenery in (entry for entry in self.recorded if "request" not in entry):
            if isinstance(scenery.get("files"), dict):
                for path, file in scenery["files"].items():
                    self._put(path, stored(file))
            if "routes" in scenery:
                url, self._asked = stack.enter_context(getting(_routes(scenery["routes"])))
                hosts["file.test"] = urlsplit(url).port or 0
        self.scene.share(folder)
        stack.enter_context(_resolving(hosts))
        texts[RECORDED_HOOK], self.delivered = stack.enter_context(receiver())
        settings = dataclasses.replace(self.scene.settings, share=folder)
        self.server = stack.enter_context(SimulatorServer(settings))
        self.replay = Replay(
            self.server,
            texts=texts,
            kinds=KINDS,
            tasks=self.scene.tasks,
            bucket_url=self._bucket_url,
        )
        stack.callback(self.replay.close)
        for scenery in (entry for entry in self.recorded if isinstance(entry.get("files"), list)):
            self.replay.staged = scenery["files"]
        self.scene.begin(self.replay)

    def _open_bucket(self, stack: contextlib.ExitStack, name: str) -> dict[str, str]:
        """Serve an empty bucket. Return what stands for its server in the recording."""
        endpoint = stack.enter_context(bucket()).endpoint
        self._bucket_url = f"{endpoint}/{name}"
        assert urllib3.request("PUT", self._bucket_url).status == 200
        self._store = S3Store(name, client_options={"allow_http": True})
        address = "endpoint_url={}&region=us-east-1"
        return {address.format("http://s3.test"): address.format(endpoint)}

    def _put(self, path: str, content: bytes) -> None:
        """Have a file of the recording be where it was: on the share, or in the bucket."""
        if self.scene.files_in_bucket:
            obstore.put(self._store, path, content)
            # Another recording has a bucket of this name.
            self._stack.callback(obstore.delete, self._store, path)
        else:
            (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / path).write_bytes(content)

    def close(self) -> None:
        self._stack.close()

    def differences_of(self, number: int) -> list[str]:
        if number not in self.differences:
            self._play(next(part for part in self.parts if number in part))
        return self.differences[number]

    def play_all(self) -> None:
        for part in self.parts:
            if part not in self.downloads:
                self._play(part)

    def _play(self, part: range) -> None:
        before = len(self._asked)
        for number in part:
            exchange = self.recorded[number]
            if "request" in exchange:
                self._exchange(number, exchange)
            elif "file" in exchange:
                # "a/b.jpg replaced", or "written"
                self._put(exchange["name"].rpartition(" ")[0], stored(exchange["file"]))
        self.server.wait_idle()
        self.downloads[part] = self._asked[before:]

    def _exchange(self, number: int, exchange: dict[str, Any]) -> None:
        name = exchange["name"]
        if name in self.scene.before:
            self.scene.before[name](self.replay)
        if name not in self.scene.unfinished:
            self.server.wait_idle()
        answer = self.replay.send(exchange)
        ignored, _ = IGNORED.get(f"{self.name}::{name}", (frozenset(), ""))
        # Compared at once: what an id stands for may be learned anew later.
        self.differences[number] = self.replay.compare(
            exchange["response"], answer, ignored, all_headers=self.scene.all_headers
        )
        if self._is_left_out_after(exchange, answer):
            self.replay.finish_upload(exchange, answer)

    def _is_left_out_after(self, exchange: dict[str, Any], answer: Answer) -> bool:
        """Whether an upload began whose pieces were sent but not recorded."""
        location = exchange["response"]["headers"].get("location", "")
        if answer.status != 201 or "/data/" not in location:
            return False
        sent = (entry["request"]["path"] for entry in self.recorded if "request" in entry)
        return urlsplit(location).path not in sent


def _routes(routes: Mapping[str, Any]) -> Callable[[str], tuple[int, Mapping[str, str], bytes]]:
    """What the recorded server served: any path that begins with /long is as /ok.png."""

    def answer(asked: str) -> tuple[int, Mapping[str, str], bytes]:
        path = asked.partition("?")[0]
        route = routes.get("/ok.png" if path.startswith("/long") else path)
        return (route["status"], route["headers"], stored(route)) if route else (404, {}, b"")

    return answer


@contextlib.contextmanager
def _resolving(hosts: Mapping[str, int]) -> Iterator[None]:
    """Have names of the recordings lead to ports of this machine, and ``.invalid`` nowhere."""
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host in hosts:
            return real("127.0.0.1", hosts[host], *args, **options)
        if str(host).endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, port, *args, **options)

    with mock.patch("socket.getaddrinfo", resolve):
        yield


@pytest.fixture(scope="module")
def replayed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Recording]]:
    """Opens a recording; the one before it is closed then, so that no test has to close all."""
    opened: list[Recording] = []

    def get(name: str) -> Recording:
        if not opened or opened[0].name != name:
            close()
            opened.append(Recording(name, tmp_path_factory.mktemp("share")))
        return opened[0]

    def close() -> None:
        while opened:
            opened.pop().close()

    yield get
    close()


def _cases() -> Iterator[Any]:
    for name in SCENES:
        for number, entry in enumerate(load(name)):
            if "request" in entry:
                yield pytest.param(
                    name, number, id=f"{name}::{number} {ascii(entry['name'])[1:-1]}"
                )


@pytest.mark.parametrize(("name", "number"), list(_cases()))
def test_answers_as_recorded(name: str, number: int, replayed: Callable[[str], Recording]) -> None:
    differences = replayed(name).differences_of(number)
    exchange = f"{name}::{load(name)[number]['name']}"
    if exchange in DIFFERENT:
        assert differences, f"{exchange} is as recorded now: take it off the list of differences"
    else:
        assert not differences, "\n".join(differences)


def test_all_recordings_are_replayed() -> None:
    assert set(SCENES) == {path.stem for path in RECORDINGS.glob("*.json")}


def test_remote_files_are_asked_for_as_recorded(replayed: Callable[[str], Recording]) -> None:
    recording = replayed("remote_urls")
    recording.play_all()
    downloads = [path for part in recording.parts for path in recording.downloads[part]]
    recorded = [asked["path"] for asked in load("remote_urls")[-1]["requests"]]
    # The recorder has cut long ones.
    assert [path[:200] for path in downloads] == recorded


def test_webhooks_are_delivered_as_recorded(replayed: Callable[[str], Recording]) -> None:
    scenario = replayed("webhooks")
    scenario.play_all()
    recorded = load("webhooks")[-1]["deliveries"]
    got: list[Delivered] = scenario.delivered
    assert [d.json["event"] for d in got] == [d["body"]["event"] for d in recorded]
    for expected, delivery in zip(recorded, got, strict=True):
        assert delivery.signed_with("recording-secret")
        assert delivery.headers["Content-Type"] == expected["headers"]["Content-Type"]
        scenario.replay.learn_ids(expected["body"], delivery.json)
        differences = scenario.replay.differences(expected["body"], delivery.json, frozenset())
        assert not differences, "\n".join(differences)
