"""The data endpoint of a task, for the stub server, and short ways to send to it."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from pool.config.data_params import DataParams
from pool.config.source import LocalFile, Upload
from pool.cvat import CvatClient
from unit.cvat_stub import Reply, Seen, StubServer

RQ_ID = "action=create&target=task&target_id=7"
MIB = 2**20


class DataEndpoint:
    """CVAT's ``/api/tasks/7/data`` as the recordings show it, with faults to put in."""

    def __init__(self, server: StubServer) -> None:
        self.server = server
        server.answer = self.answer
        self.files: dict[str, bytes] = {}
        self.fields: dict[str, str] = {}
        self.finish: dict[str, Any] | None = None
        self.uploads: dict[str, tuple[str, int, bytearray]] = {}
        self._places = itertools.count()
        #: Asked before and after a request is acted on; a reply given here is sent instead.
        self.before: Callable[[Seen], Reply | None] = lambda _: None
        self.after: Callable[[Seen], Reply | None] = lambda _: None

    def answer(self, seen: Seen) -> Reply:
        early = self.before(seen)
        if early is not None:
            return early
        reply = self.act(seen)
        return self.after(seen) or reply

    def act(self, seen: Seen) -> Reply:
        headers = seen.headers
        if seen.path.startswith("/api/tasks/7/data/") and seen.path != "/api/tasks/7/data/":
            return self.tus(seen, seen.path.rpartition("/")[2])
        if "Upload-Start" in headers:
            return Reply(status=202)
        if "Upload-Length" in headers:
            key, value = headers["Upload-Metadata"].split(" ")
            assert key == "filename"
            name = base64.b64decode(value).decode()
            place = f"2_{next(self._places)}"
            self.uploads[place] = (name, int(headers["Upload-Length"]), bytearray())
            there = f"https://inner.test/api/tasks/7/data/{place}"
            return Reply(status=201, headers={"Location": there, "Upload-Filename": name})
        if "Upload-Finish" in headers:
            self.finish = seen.json
            return Reply(status=202, data={"rq_id": RQ_ID})
        if headers["Content-Type"] == "application/json":
            self.finish = seen.json
            return Reply(status=202, data={"rq_id": RQ_ID})
        self.read_multipart(seen)
        if "Upload-Multiple" in headers:
            return Reply(status=200)
        return Reply(status=202, data={"rq_id": RQ_ID})

    def read_multipart(self, seen: Seen) -> None:
        head = f"Content-Type: {seen.headers['Content-Type']}\r\n\r\n".encode()
        for part in BytesParser(policy=HTTP).parsebytes(head + seen.body).iter_parts():
            data = part.get_payload(decode=True)
            name = part.get_param("name", header="Content-Disposition")
            assert isinstance(data, bytes) and isinstance(name, str)
            filename = part.get_filename()
            if filename is None:
                self.fields[name] = data.decode()
            else:
                self.files[filename] = self.files.get(filename, b"") + data

    def tus(self, seen: Seen, place: str) -> Reply:
        assert seen.headers["Tus-Resumable"] == "1.0.0"
        if place not in self.uploads:
            return Reply(status=404)
        name, length, data = self.uploads[place]
        if seen.method == "HEAD":
            return Reply(headers={"Upload-Offset": str(len(data))})
        if int(seen.headers["Upload-Offset"]) != len(data):
            return Reply(status=409)
        data += seen.body
        if len(data) == length:
            self.files[name] = bytes(data)
            del self.uploads[place]
        return Reply(status=204, headers={"Upload-Offset": str(len(data))})

    @property
    def steps(self) -> list[str]:
        """What was asked for, one word a request."""
        words = []
        for seen in self.server.seen:
            marks = [name for name in seen.headers if name.startswith("Upload-")]
            words.append(marks[0] if marks else seen.method)
        return words


def send(client: CvatClient, data: Upload, limit: int = 64 * MIB, **options: Any) -> str:
    params = options.pop("params", DataParams())
    prepared = options.pop("prepared", False)
    return client.upload(7, data, params, single_request_limit=limit, prepared=prepared, **options)


def files(**contents: bytes) -> Upload:
    return Upload(
        files=tuple(
            LocalFile(name.replace("_", "."), data, len(data)) for name, data in contents.items()
        )
    )
