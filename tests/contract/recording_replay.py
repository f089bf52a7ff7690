"""Sends recorded requests to the simulator and compares what comes back.

Ids differ from server to server, so each scenario keeps a map from the recorded ones to ours: it
begins with the tasks that the scenario presupposes and grows with every answer.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree

import urllib3
from PIL import Image

from pool.simulator import SimulatorServer

RECORDINGS = Path(__file__).with_name("recordings")
RECORDED_HOST = "http://cvat.test"
#: How far a pixel may be from the recorded one: JPEG libraries differ in the last bit, and video
#: decoders in what they make of colours.
PIXEL_TOLERANCE = 16
#: Headers that are compared where the recording has them.
HEADERS = (
    "content-type", "www-authenticate", "allow", "vary", "cache-control", "tus-resumable",
    "tus-version", "tus-extension", "tus-max-size", "upload-offset", "upload-length",
    "upload-filename",
)  # fmt: skip
#: Values that depend on the server and its history; their types are compared all the same.
VOLATILE = frozenset({
    "id", "data", "created_date", "updated_date", "started_date", "finished_date", "expiry_date",
    "last_used_date", "last_login", "date_joined", "last_delivery_date", "assignee_updated_date",
    "chunks_updated_date", "request_duration", "key", "data_id", "from", "to", "response",
})  # fmt: skip
#: Ids of other objects, by the collection that they belong to.
REFERENCES = {
    "task_id": "tasks",
    "project_id": "projects",
    "webhook_id": "webhooks",
    "parent_job_id": "jobs",
    "job_id": "jobs",
    "label_id": "labels",
    "cloud_storage_id": "cloudstorages",
    "data_cloud_storage_id": "cloudstorages",
}
#: The same in bodies that are sent.
SENT_REFERENCES = {
    "project_id": "projects",
    "assignee_id": "users",
    "assignee": "users",
    "label_id": "labels",
    "cloud_storage_id": "cloudstorages",
}
DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")
_OBJECT = re.compile(r"/api/(tasks|jobs|webhooks|projects|users|labels|cloudstorages)/(\d+)")
#: What an export is of, and whose it is, in its id, which is in paths and in queries.
_EXPORT = re.compile(
    r"(?P<target>target(?:=|%3D)(?P<kind>task|job)(?:&|%26)target_id(?:=|%3D))(?P<id>\d+)"
    r"(?P<user>(?:&|%26)user_id(?:=|%3D))(?P<user_id>\d+)"
)
#: Moments as they are in XML.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\+00:00\Z")
_LABEL = re.compile(r'data-label-id="(\d+)"')
_TASK = re.compile(r"(?:/api/tasks/|task_id=|target_id=)(\d+)")
_RAW_FOLDER = re.compile(r"/data/data/\d+/raw")
_ADDRESS = re.compile(r"\b0x[0-9a-f]+\b")
#: A form's fields that stand for many, as in ``client_files[0] to [99]``.
_MANY = re.compile(r"(?P<name>\w+\[)0(?P<rest>\].*) to \[(?P<last>\d+)\](\[0\])?\Z")


@functools.cache
def load(scenario: str) -> list[dict[str, Any]]:
    recorded: list[dict[str, Any]] = json.loads((RECORDINGS / f"{scenario}.json").read_text())
    return recorded


def subject(exchange: Mapping[str, Any]) -> str | None:
    """The recorded id of the task that an exchange is about; ``None`` if it names none."""
    if "request" not in exchange:
        return None
    location = exchange["response"]["headers"].get("location", "")
    match = _TASK.search(exchange["request"]["path"]) or _TASK.search(location)
    return match[1] if match else None


def stored(file: Mapping[str, Any]) -> bytes:
    """The bytes of a file whose content was recorded."""
    if "input" in file:
        return Path(RECORDINGS, file["input"]).read_bytes()
    return base64.b64decode(file["base64"])


def tiny_png(width: int) -> bytes:
    """What the recordings call the picture of this width, byte for byte."""
    target = io.BytesIO()
    Image.new("RGB", (width, 16), (255, 0, 0)).save(target, "PNG")
    return target.getvalue()


def numbered(count: int) -> list[str]:
    """The names of as many files, where the recording says only "and so on"."""
    return [f"{number:05}.png" for number in range(count)]


@functools.cache
def _plain_jpeg() -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (320, 240), "teal").save(target, "JPEG")
    return target.getvalue()


@functools.cache
def content(size: int, kind: str = "image") -> bytes:
    """A file of exactly this size: an image, the beginning of one, or no image at all."""
    image = _plain_jpeg()
    if kind == "garbage":
        return (b"this is no picture, whatever its name says " * (size // 43 + 1))[:size]
    if kind == "truncated":
        # The header ends before the picture data, which is cut off.
        return (image[: image.rindex(b"\xff\xda") + 20] + b"\x55" * size)[:size]
    # What follows the end of a JPEG does not matter to anybody.
    return image + bytes(size - len(image))


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Replay:
    """One scenario on one server."""

    server: SimulatorServer
    #: Recorded id to ours, by the collection it belongs to.
    ids: dict[str, dict[int, int]] = field(default_factory=dict)
    #: Other texts that differ, recorded to ours.
    texts: dict[str, str] = field(default_factory=dict)
    #: Which uploads are not what their names say, by the recording's name.
    kinds: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Fields of the tasks that the recording takes as given, by its first exchange with one. All
    #: others are plain; ``None``: no task is made but by a request.
    tasks: Mapping[str, Mapping[str, Any]] | None = None
    #: The token of the recordings' other user.
    other_token: str = "not-a-token-of-this-server"
    #: The file that the last TUS upload is of, and how many there were before for the same task.
    upload_content: bytes = b""
    uploads: dict[str | None, int] = field(default_factory=dict)
    #: Files that tasks have before a recorded ``Upload-Finish``: the first two, or as many as
    #: ``files`` among the fields of the task.
    staged: Sequence[Mapping[str, Any]] = ()
    #: Where the recording's bucket is, if it has one.
    bucket_url: str = ""

    def __post_init__(self) -> None:
        self.http = urllib3.PoolManager(retries=False, timeout=20.0)

    def close(self) -> None:
        self.http.clear()

    def learn(self, collection: str, recorded: int, ours: int) -> None:
        self.ids.setdefault(collection, {})[recorded] = ours

    def ours(self, collection: str, recorded: int) -> int:
        return self.ids.get(collection, {}).get(recorded, recorded)

    # Requests

    def post(
        self,
        path: str,
        body: Any = None,
        step: str | None = None,
        auth: str = "pat",
        **options: Any,
    ) -> Any:
        """A request that no recording has: to set a scene. ``step`` is a header of an upload."""
        headers = self._credentials(auth)
        if step is not None:
            headers[step] = "true"
        if body is not None:
            options["json"] = body
        answer = self.http.request("POST", self.server.url + path, headers=headers, **options)
        assert answer.status < 300, answer.data
        return answer.json() if answer.data else None

    def create_task(self, recorded: int | None = None, auth: str = "pat", **spec: Any) -> int:
        body = {"name": "recording", **spec}
        if "project_id" not in spec:
            body.setdefault("labels", [{"name": "car"}, {"name": "person"}])
        task_id = int(self.post("/api/tasks", body, auth=auth)["id"])
        if recorded is not None:
            self.learn("tasks", recorded, task_id)
        return task_id

    def upload(self, task_id: int, *files: bytes, auth: str = "pat", **params: Any) -> None:
        fields: dict[str, Any] = {"image_quality": "70", **params}
        for number, data in enumerate(files):
            fields[f"client_files[{number}]"] = (f"{chr(97 + number)}.jpg", data)
        self.post(f"/api/tasks/{task_id}/data", fields=fields, auth=auth)

    def send(self, exchange: Mapping[str, Any]) -> Answer:
        """Send a recorded request, with our ids, files and credentials."""
        request = exchange["request"]
        self._meet(exchange)
        headers = {
            name: value for name, value in request["headers"].items() if name != "Authorization"
        }
        headers |= self._credentials(request["auth"])
        if "Upload-Multiple" in headers and headers["Upload-Multiple"] == "":
            headers["Upload-Multiple"] = "true"
        if "Upload-Length" in headers and request["method"] == "POST":
            self._begin_upload(subject(exchange), int(headers["Upload-Length"]))
        options = self._body(exchange, request.get("body") or {})
        response = self.http.request(
            request["method"],
            self.server.url + self.translate_path(request["path"]),
            headers=headers,
            **options,
        )
        answer = Answer(response.status, response.headers, response.data)
        self._learn_from(exchange["response"], answer)
        return answer

    def _credentials(self, auth: str | None) -> dict[str, str]:
        server = self.server
        match auth:
            case "pat":
                return {"Authorization": f"Bearer {server.access_token}"}
            case "ro":
                return {"Authorization": f"Bearer {server.readonly_token}"}
            case "basic":
                return urllib3.make_headers(basic_auth=f"{server.username}:{server.password}")
            case "other":
                return {"Authorization": f"Bearer {self.other_token}"}
        return {}

    def _meet(self, exchange: Mapping[str, Any]) -> None:
        """Create the task that an exchange names, if it was there before the recording."""
        match = _TASK.search(exchange["request"]["path"])
        if self.tasks is not None and match and int(match[1]) not in self.ids.get("tasks", {}):
            spec = dict(self.tasks.get(exchange["name"], {}))
            count = spec.pop("files", 2)
            task_id = self.create_task(int(match[1]), **spec)
            if "Upload-Finish" in exchange["request"]["headers"]:
                self._stage(task_id, self.staged[:count])

    def _stage(self, task_id: int, files: Sequence[Mapping[str, Any]]) -> None:
        path = f"/api/tasks/{task_id}/data"
        self.post(path, step="Upload-Start")
        fields = {
            f"client_files[{number}]": (file["file"], stored(file))
            for number, file in enumerate(files)
        }
        self.post(path, step="Upload-Multiple", fields={"image_quality": "70", **fields})

    def _begin_upload(self, task: str | None, size: int) -> None:
        """Have the content at hand of what is uploaded in pieces: the recordings' n-th picture."""
        number = self.uploads[task] = self.uploads.get(task, 0) + 1
        picture = tiny_png(9 + number)
        self.upload_content = picture if len(picture) == size else content(size)

    def finish_upload(self, exchange: Mapping[str, Any], answer: Answer) -> None:
        """Send what was announced, where the recording left out that it was sent."""
        headers = {
            "Authorization": f"Bearer {self.server.access_token}",
            "Content-Type": "application/offset+octet-stream",
            "Upload-Offset": "0",
        }
        location = answer.headers["location"]
        sent = self.http.request("PATCH", location, headers=headers, body=self.upload_content)
        assert sent.status == 204, f"{exchange['name']}: {sent.status}"

    def _body(self, exchange: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
        name: str = exchange["name"]
        if "json" in body:
            return {"json": self._translate(_in_full(body["json"]))}
        if "multipart" in body:
            kinds = self.kinds.get(name, {})
            fields = {
                key: _file(value, kinds) if isinstance(value, dict) else value
                for key, value in _all_fields(body["multipart"]).items()
            }
            return {"fields": fields}
        if "multipart_text" in body:
            # Recorded is the part's head only; what followed was the first picture.
            head = body["multipart_text"].encode()
            return {"body": head + b"\r\n\r\n" + tiny_png(10) + b"\r\n--XX--\r\n"}
        if name == "not JSON":
            return {"body": b"{"}
        if "bytes" in body:
            offset = int(exchange["request"]["headers"].get("Upload-Offset", "0"))
            return {"body": self.upload_content[offset : offset + body["bytes"]]}
        return {}

    # From the recording's ids to ours

    def translate_path(self, path: str) -> str:
        for recorded, ours in self.texts.items():
            path = path.replace(recorded, ours)
        path = _OBJECT.sub(
            lambda match: f"/api/{match[1]}/{self.ours(match[1], int(match[2]))}", path
        )
        if _EXPORT.search(path):
            return _EXPORT.sub(self._translate_export, path)
        path = re.sub(
            r"(task_id=|target_id=|create:task-)(\d+)",
            lambda match: f"{match[1]}{self.ours('tasks', int(match[2]))}",
            path,
        )
        path = re.sub(
            r"\b(job|project)(_id=)(\d+)",
            lambda match: f"{match[1]}{match[2]}{self.ours(f'{match[1]}s', int(match[3]))}",
            path,
        )
        before, mark, rules = path.partition("filter=")
        if not mark:
            return path
        rules, rest = rules.partition("&")[0], rules.partition("&")[1:]
        text = re.sub(
            r"\[(\d+(, \d+)*)\]",
            lambda match: str([self.ours("tasks", int(n)) for n in match[1].split(", ")]),
            unquote(rules.replace("+", " ")),
        )
        return before + mark + quote(text, safe="").replace("%20", "+") + "".join(rest)

    def _translate_export(self, match: re.Match[str]) -> str:
        target = self.ours(f"{match['kind']}s", int(match["id"]))
        user = self.ours("users", int(match["user_id"]))
        return f"{match['target']}{target}{match['user']}{user}"

    def _translate(self, body: Any) -> Any:
        """A recorded body with our ids, texts and password."""
        if isinstance(body, dict):
            return {
                key: type(value)(self.ours(SENT_REFERENCES[key], int(value)))
                if key in SENT_REFERENCES and str(value).isdigit()
                else self._translate(value)
                for key, value in body.items()
            }
        if isinstance(body, list):
            return [self._translate(value) for value in body]
        if body == "<password>":
            return self.server.password
        return self.texts.get(body, body) if isinstance(body, str) else body

    def _learn_from(self, recorded: Mapping[str, Any], answer: Answer) -> None:
        theirs = recorded["headers"].get("location")
        ours = answer.headers.get("location")
        if theirs and ours:
            if match := re.search(r"/data/(\w+-[\w-]+)\Z", theirs):
                self.texts[match[1]] = ours.rsplit("/", 1)[1]
            elif match := _OBJECT.search(theirs):
                self.learn(match[1], int(match[2]), int(ours.rsplit("/", 1)[1]))
        if "json" in recorded and recorded["status"] == answer.status:
            self.learn_ids(recorded["json"], answer.json)

    def learn_ids(self, recorded: Any, ours: Any) -> None:
        """Note which of our ids stands where the recording has one of its own."""
        if isinstance(recorded, dict) and isinstance(ours, dict):
            if "has_parent" in recorded:
                self.learn("labels", recorded["id"], ours["id"])
            if "provider_type" in recorded:
                self.learn("cloudstorages", recorded["id"], ours["id"])
            for key in recorded.keys() & ours.keys():
                self.learn_ids(recorded[key], ours[key])
        elif isinstance(recorded, list) and isinstance(ours, list):
            for one, other in zip(recorded, ours, strict=False):
                self.learn_ids(one, other)
        elif isinstance(recorded, str) and isinstance(ours, str):
            match, found = _OBJECT.search(recorded), _OBJECT.search(ours)
            if match and found and match[1] == found[1]:
                self.ids.setdefault(match[1], {}).setdefault(int(match[2]), int(found[2]))

    # Comparing

    def normal(self, text: str) -> str:
        """Recorded text as we would say it: our host, our ids, any data folder."""
        text = self.texts.get(text, text).replace(RECORDED_HOST, self.server.url)
        text = _ADDRESS.sub("0x0", _RAW_FOLDER.sub("/data/data/N/raw", text))
        text = _LABEL.sub(
            lambda match: f'data-label-id="{self.ours("labels", int(match[1]))}"', text
        )
        if DATE.match(text):
            return "a date"
        # Only what looks like an address has ids in it.
        return self.translate_path(text) if "/api/" in text or "target_id=" in text else text

    def differences(
        self, recorded: Any, ours: Any, ignored: frozenset[str], where: str = "$"
    ) -> list[str]:
        """What differs: keys, types, lengths, ``null`` or not, and values that can be known."""
        if type(recorded) is not type(ours):
            return [f"{where}: {recorded!r} became {ours!r}"]
        found: list[str] = []
        if isinstance(recorded, dict):
            if recorded.keys() != ours.keys():
                found.append(f"{where}: keys {sorted(recorded.keys() ^ ours.keys())} differ")
            for key in recorded.keys() & ours.keys():
                below = f"{where}.{key}"
                if key in REFERENCES and isinstance(recorded[key], int):
                    expected = self.ours(REFERENCES[key], recorded[key])
                    found += self.differences(expected, ours[key], ignored, below)
                elif key in ignored and isinstance(recorded[key], list):
                    if len(recorded[key]) != len(ours[key]):
                        found.append(f"{below}: {recorded[key]!r} became {ours[key]!r}")
                elif key in VOLATILE | ignored and not isinstance(recorded[key], dict | list):
                    if type(recorded[key]) is not type(ours[key]):
                        found.append(f"{below}: {recorded[key]!r} became {ours[key]!r}")
                else:
                    found += self.differences(recorded[key], ours[key], ignored, below)
        elif isinstance(recorded, list):
            if len(recorded) != len(ours):
                found.append(f"{where}: {len(recorded)} items became {len(ours)}")
            for number, (one, other) in enumerate(zip(recorded, ours, strict=False)):
                found += self.differences(one, other, ignored, f"{where}[{number}]")
        elif isinstance(recorded, str):
            theirs, now = self.normal(recorded), self._normal_ours(ours)
            if theirs != now:
                found.append(f"{where}: {theirs!r} became {now!r}")
        elif recorded != ours:
            found.append(f"{where}: {recorded!r} became {ours!r}")
        return found

    def _normal_ours(self, text: str) -> str:
        text = _ADDRESS.sub("0x0", _RAW_FOLDER.sub("/data/data/N/raw", text))
        return "a date" if DATE.match(text) else text

    def compare(
        self,
        recorded: Mapping[str, Any],
        answer: Answer,
        ignored: frozenset[str],
        *,
        all_headers: bool,
    ) -> list[str]:
        """All differences between a recorded answer and ours.

        ``all_headers`` says that the recording has all headers: one that it has not may not come.
        """
        if recorded["status"] != answer.status:
            return [f"status {recorded['status']} became {answer.status}: {answer.body[:300]!r}"]
        found = [
            f"header {name}: {recorded['headers'].get(name)!r} became {answer.headers.get(name)!r}"
            for name in HEADERS
            if (all_headers or name in recorded["headers"])
            and recorded["headers"].get(name) != answer.headers.get(name)
        ]
        theirs, ours = recorded["headers"].get("location"), answer.headers.get("location")
        if (theirs and self.normal(theirs)) != ours:
            found.append(f"header location: {theirs!r} became {ours!r}")
        if "set-cookie" in recorded["headers"]:
            found += _compare_cookies(recorded["headers"]["set-cookie"], answer)
        return found + self._compare_bodies(recorded, answer, ignored)

    def _compare_bodies(
        self, recorded: Mapping[str, Any], answer: Answer, ignored: frozenset[str]
    ) -> list[str]:
        if "json" in recorded:
            return self.differences(recorded["json"], answer.json, ignored)
        if recorded.get("sha256") == hashlib.sha256(answer.body).hexdigest():
            return []
        if "image" in recorded:
            return _compare_images(recorded["image"], answer.body)
        if "zip" in recorded:
            return self._compare_archives(recorded["zip"], answer.body)
        if recorded.get("bytes", 0):
            return [] if recorded["bytes"] == len(answer.body) else ["another length"]
        if recorded.get("text", "") != answer.body.decode():
            return [f"text {recorded.get('text')!r} became {answer.body!r}"]
        return []

    def _compare_archives(self, recorded: Mapping[str, Any], body: bytes) -> list[str]:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            if sorted(recorded) != sorted(archive.namelist()):
                return [f"members {sorted(recorded)} became {archive.namelist()}"]
            return [
                f"{name}: {difference}"
                for name, member in recorded.items()
                for difference in self._compare_members(name, member, archive.read(name))
            ]

    def _compare_members(self, name: str, recorded: Mapping[str, Any], content: bytes) -> list[str]:
        if "image" in recorded:
            return _compare_images(recorded["image"], content)
        if "text" not in recorded:
            return []
        if name.endswith(".xml"):
            theirs, ours = map(ElementTree.fromstring, (recorded["text"], content))
            return self._compare_elements(theirs, ours, f"<{theirs.tag}>")
        return self.differences(json.loads(recorded["text"]), json.loads(content), frozenset())

    def _compare_elements(
        self, theirs: ElementTree.Element, ours: ElementTree.Element, where: str
    ) -> list[str]:
        """What differs in tags, attributes and texts; ids that a text is are not compared."""
        one, other = (theirs.text or "").strip(), (ours.text or "").strip()
        if (_MOMENT.match(one) and _MOMENT.match(other)) or theirs.tag == "id":
            one = other
        if (theirs.tag, theirs.attrib, self.normal(one)) != (ours.tag, ours.attrib, other):
            return [f"{where}: {theirs.tag} {theirs.attrib} {one} became {ours.attrib} {other}"]
        if len(theirs) != len(ours):
            return [f"{where}: {len(theirs)} children became {len(ours)}"]
        return [
            difference
            for number, children in enumerate(zip(theirs, ours, strict=True))
            for difference in self._compare_elements(
                *children, f"{where}[{number}]<{children[0].tag}>"
            )
        ]


def _all_fields(form: Mapping[str, Any]) -> dict[str, Any]:
    """A form whose abbreviated fields are written out: each file a job of its own."""
    fields: dict[str, Any] = {}
    for key, value in form.items():
        if match := _MANY.match(key):
            names = numbered(int(match["last"]) + 1)
            for number, name in enumerate(names):
                field_name = f"{match['name']}{number}{match['rest']}"
                fields[field_name] = value | {"file": name} if isinstance(value, dict) else name
        else:
            fields[key] = value
    return fields


def _in_full(body: Any) -> Any:
    """A JSON body that the recording abbreviates, written out: labels, or share files.

    Each share file is a job of its own.
    """
    if isinstance(body, str):
        count = int(re.findall(r"\d+", body)[0])
        labels: list[Any] = [{"name": f"label {number}"} for number in range(count)]
        if body.startswith("attribute()"):
            choices = ["a", *(f"{number:020}" for number in range(count))]
            attribute = {"name": "x", "mutable": False, "input_type": "select", "values": choices}
            labels = [{"name": "car", "attributes": [attribute]}]
        return {"name": "labels", "labels": labels}
    files = body.get("server_files") if isinstance(body, dict) else None
    if not isinstance(files, str):
        return body
    names = numbered(int(files.partition(" of ")[0]))
    return body | {"server_files": names, "job_file_mapping": [[name] for name in names]}


def _file(file: Mapping[str, Any], kinds: Mapping[str, str]) -> tuple[str, bytes]:
    if "base64" in file or "input" in file:
        return file["file"], stored(file)
    return file["file"], content(file["bytes"], kinds.get(file["file"], "image"))


def _compare_images(recorded: Mapping[str, Any], body: bytes) -> list[str]:
    """The format, the size and the pixels in the corners: which picture came."""
    with Image.open(io.BytesIO(body)) as image:
        right, bottom = image.width - 1, image.height - 1
        pixels = image.convert("RGB")
        corners = [pixels.getpixel(at) for at in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
        ours = {"format": image.format, "width": image.width, "height": image.height}
    found = [
        f"image {key}: {recorded[key]!r} became {value!r}"
        for key, value in ours.items()
        if recorded[key] != value
    ]
    for theirs, got in zip(recorded["corners"], corners, strict=True):
        assert isinstance(got, tuple)
        if any(abs(a - b) > PIXEL_TOLERANCE for a, b in zip(theirs, got, strict=True)):
            found.append(f"corner {theirs} became {got}")
    return found


def _compare_cookies(recorded: str, answer: Answer) -> list[str]:
    """A cookie of the same name with the same attributes; values and dates are not looked at."""

    def attributes(text: str) -> list[str]:
        return [part.partition("=")[0] for part in text.split("; ")]

    headers: Any = answer.headers
    cookies = [attributes(text) for text in headers.getlist("set-cookie")]
    if attributes(recorded) in cookies:
        return []
    return [f"cookie {attributes(recorded)} is not among {cookies}"]
