"""What comes in is checked before anything is done, alike by every door.

One table of what cannot be used, for the library, HTTP, both clients and the command line: the
error is one line, no row is written and no task is taken.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
from PIL import Image
from support.commands import cvat_pool
from support.pools import HERE, REMOTE, level, opened, serving, wait_for, write_config
from support.waiting import PATIENCE

from pool import (
    Frame,
    ImportFailed,
    InputError,
    Priority,
    RemotePool,
    TaskPool,
    UnknownLease,
    UnknownRequest,
    UnknownTemplate,
)
from pool.bench.pictures import sample_image
from pool.daemon import Daemon
from pool.simulator import SimulatorServer

#: A file system has room for 255 bytes of a name.
LONG = "\N{GRINNING FACE}" * 63 + ".png"
SECRET = "hunter2"


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, simulator: SimulatorServer
) -> Iterator[Daemon]:
    path = write_config(tmp_path_factory.mktemp("door"), simulator)
    path.write_text(
        path.read_text()
        + """
[templates.pieces]
labels = []
import = { single_request_limit = "1KiB" }
pool = { min_size = 0 }

[templates.sorted]
labels = []
data = { sorting_method = "natural" }
pool = { min_size = 0, on_empty = "fail" }

[templates.parts]
labels = []
task = { segment_size = 2 }
pool = { min_size = 0, on_empty = "fail" }
"""
    )
    with serving(path, simulator) as daemon:
        for name in ("sorted", "parts"):
            daemon.process.store.pause(name, now=daemon.process.clock.now())
        yield daemon


@pytest.fixture(scope="module", params=[HERE, *REMOTE])
def caller(request: pytest.FixtureRequest, daemon: Daemon) -> Iterator[Any]:
    with opened(request.param, daemon) as pool:
        yield pool


@pytest.fixture
def full(daemon: Daemon, caller: Any) -> Any:
    wait_for(daemon, lambda: level(caller).warm >= 3)
    return caller


def done_by(daemon: Daemon) -> tuple[object, ...]:
    """What calls have left behind: rows, hand-outs, data."""
    store = daemon.process.store
    handed_out = [
        sum(each.total for each in store.demand(template, since=0.0))
        for template in daemon.process.templates
    ]
    return (
        [each.id for each in store.requests().requests],
        handed_out,
        daemon.process.spool.room.used,
    )


# --- Data -----------------------------------------------------------------------------------------

A = [("a.jpg", b"x")]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # Parameters.
    ("scenes", {"params": {"frame_stp": 5}}, "unknown key; did you mean frame_step?"),
    ("scenes", {"params": {"remote_files": ["http://h/b.jpg"]}}, "given by urls"),
    ("scenes", {"params": {"server_files": ["b.jpg"]}}, "given by share or cloud"),
    ("scenes", {"params": {"cloud_storage_id": 1}}, "given by cloud"),
    ("scenes", {"params": {"client_files": []}}, "given by files"),
    ("scenes", {"params": {"image_quality": 0}}, "a whole number from 1 to 100"),
    ("scenes", {"params": {"image_quality": 101}}, "a whole number from 1 to 100"),
    ("scenes", {"params": {"image_quality": "70"}}, "a whole number from 1 to 100"),
    ("scenes", {"params": {"chunk_size": 0}}, 'expected "auto", "server" or a whole number'),
    ("scenes", {"params": {"chunk_size": 2**31}}, "a whole number from 1 to 2147483647"),
    ("scenes", {"params": {"sorting_method": "naturl"}}, 'did you mean "natural"?'),
    ("scenes", {"params": {"frame_filter": "every=2"}}, 'expected "step=N"'),
    ("scenes", {"params": {"frame_step": 0}}, "a whole number from 1"),
    ("scenes", {"params": {"frame_step": 2, "frame_filter": "step=2"}}, "give one of"),
    ("scenes", {"params": {"start_frame": 3, "stop_frame": 2}}, "is after stop_frame"),
    ("scenes", {"params": {"use_cache": 1}}, "true or false"),
    ("scenes", {"params": {"job_file_mapping": []}}, "expected a list of jobs"),
    ("scenes", {"params": {"job_file_mapping": ["a.jpg"]}}, "expected a list of jobs"),
    ("scenes", {"params": {"job_file_mapping": [["a.jpg"], ["a.jpg"]]}}, "is named twice"),
    ("scenes", {"params": {"job_file_mapping": [["b.jpg"]]}}, "names b.jpg, which is none of"),
    ("scenes", {"params": {"job_file_mapping": [[" a.jpg"]]}}, "CVAT cuts the spaces off"),
    (
        "scenes",
        {"params": {"job_file_mapping": [["a.jpg"]], "frame_step": 2}},
        "job_file_mapping and frame_filter exclude each other",
    ),
    (
        "sorted",
        {"params": {"job_file_mapping": [["a.jpg"]]}},
        "job_file_mapping and sorting_method exclude each other",
    ),
    (
        "parts",
        {"params": {"job_file_mapping": [["a.jpg"]]}},
        "job_file_mapping and segment_size exclude each other",
    ),
    (
        "scenes",
        {"files": [("a.mp4", b"x")], "params": {"job_file_mapping": [["a.mp4"]]}},
        "no job_file_mapping for videos",
    ),
    ("scenes", {"params": {"server_files_exclude": ["a/"]}}, "about share and cloud"),
    ("scenes", {"params": {"filename_pattern": "*.jpg"}}, "about share and cloud"),
    ("scenes", {"params": {"upload_file_order": ["a.jpg"]}}, 'sorting_method "predefined" only'),
    ("scenes", {"params": {"validation_params": {"mode": "x"}}}, 'expected "gt" or "gt_pool"'),
    ("scenes", {"params": {"validation_params": {"mod": "gt"}}}, "did you mean mode?"),
    ("scenes", {"params": {"validation_params": {"mode": "gt"}}}, "_method is missing"),
    (
        "scenes",
        {
            "params": {
                "validation_params": {
                    "mode": "gt",
                    "frame_selection_method": "random_uniform",
                    "frame_share": 1.5,
                }
            }
        },
        "a number from 0 to 1",
    ),
    (
        "scenes",
        {
            "params": {
                "validation_params": {
                    "mode": "gt_pool",
                    "frame_selection_method": "random_uniform",
                    "frame_count": 1,
                    "frames_per_job_count": 1,
                }
            }
        },
        'go with sorting_method "random" only',
    ),
    # Jobs of a given size.
    ("scenes", {"job_size": 0}, ""),
    ("scenes", {"job_size": -1}, ""),
    ("scenes", {"job_size": 2**31}, ""),
    ("scenes", {"job_size": "2 files"}, "job_size is a whole number"),
    ("parts", {"job_size": 2}, "job_size and segment_size exclude each other"),
    ("sorted", {"job_size": 2}, "job_size and sorting_method exclude each other"),
    ("scenes", {"job_size": 2, "params": {"sorting_method": "random"}}, "job_size and sorting"),
    ("scenes", {"job_size": 2, "params": {"frame_step": 2}}, "job_size and frame_filter"),
    ("scenes", {"job_size": 2, "params": {"start_frame": 1}}, "job_size and start_frame"),
    (
        "scenes",
        {"job_size": 2, "params": {"job_file_mapping": [["a.jpg"]]}},
        "give one of job_size and job_file_mapping",
    ),
    ("scenes", {"job_size": 2, "files": [("a.zip", b"x")]}, "a.zip is an archive"),
    ("scenes", {"job_size": 2, "files": [("a.mp4", b"x")]}, "a.mp4 is a video"),
    ("scenes", {"job_size": 2, "files": [*A, ("m.jsonl", b"x")]}, "m.jsonl is a manifest"),
    ("scenes", {"job_size": 2, "share": ["cam1/"]}, "a folder has to be given as its files"),
    ("scenes", {"job_size": 2, "share": ["cam1"]}, "a folder has to be given as its files"),
    ("scenes", {"job_size": 2, "urls": ["http://h/%20a.jpg"]}, "CVAT cuts off in a mapping"),
    (
        "scenes",
        {"job_size": 1, "share": [f"{number}.jpg" for number in range(5001)]},
        "CVAT makes at most 5000 jobs of a task, and 5001 files would be 5001",
    ),
    # Names of files.
    (
        "scenes",
        {
            "files": [("c/a.jpg", b"x"), ("c/a.jpg", b"y")],
            "params": {"job_file_mapping": [["c/a.jpg"]]},
        },
        "names c/a.jpg, which is several of the files",
    ),
    ("scenes", {"files": [("a" * 1021 + ".jpg", b"x")]}, "at most 1024 characters"),
    ("scenes", {"files": [(LONG, b"x")]}, "CVAT has room for 255 bytes"),
    ("scenes", {"files": [("a.jpg ", b"x")]}, "'a.jpg ': the space at its end"),
    ("scenes", {"files": [("a", b"x")]}, "CVAT knows media by their extension"),
    ("scenes", {"files": [(".jpg", b"x")]}, "CVAT knows media by their extension"),
    ("scenes", {"files": [("..", b"x")]}, "is no file name"),
    ("scenes", {"files": [("\u200b", b"x")]}, "is no file name"),
    (
        "scenes",
        {"files": [(" a.jpg", b"x")], "params": {"sorting_method": "predefined"}},
        "cannot be put in its place",
    ),
    # Where CVAT has the data, or fetches it.
    ("scenes", {"share": ["/etc/a.jpg"]}, "is not relative"),
    ("scenes", {"share": ["a/../../b.jpg"]}, "contains '..'"),
    ("scenes", {"share": ["./a.jpg"]}, "has needless slashes or dots"),
    ("scenes", {"share": ["a.jpg", "a.jpg"]}, "is named twice"),
    ("scenes", {"share": ["x" * 1025]}, "CVAT has room for 1024 characters"),
    ("scenes", {"share": [" a.jpg"]}, "spaces around it"),
    ("scenes", {"share": ["a\0.jpg"]}, "has a NUL character"),
    ("scenes", {"cloud": (1, ["/a.jpg"])}, "is not relative"),
    ("scenes", {"cloud": (0, ["a.jpg"])}, ""),
    (
        "scenes",
        {"share": ["a.jpg"], "params": {"filename_pattern": "*.jpg"}},
        "the name of a manifest",
    ),
    ("scenes", {"urls": ["ftp://h/a.jpg"]}, "http:// and https:// addresses only"),
    ("scenes", {"urls": ["a.jpg"]}, "http:// and https:// addresses only"),
    ("scenes", {"urls": ["http://h:99999/a.jpg"]}, "this is no valid address"),
    ("scenes", {"urls": ["http:///a.jpg"]}, "this is no valid address"),
    ("scenes", {"urls": [f"http://h/a.jpg?{'x' * 1024}"]}, "CVAT has room for 1024 characters"),
    ("scenes", {"urls": ["http://h/" + "a" * 252 + ".jpg"]}, "CVAT has room for 255 bytes"),
    ("scenes", {"urls": ["http://h/dir/"]}, "does not end with a file's name"),
    ("scenes", {"urls": ["http://h"]}, "does not end with a file's name"),
    ("scenes", {"urls": ["http://h/get?file=a.jpg"]}, "CVAT knows media by their extension"),
    ("scenes", {"urls": ["http://h/1/a.jpg", "http://h/2/a.jpg"]}, "in a request of its own"),
    ("scenes", {"urls": ["http://h/a.jpg?1", "http://h/a.jpg?2"]}, "two files of one name"),
    # What goes with the data.
    ("scenes", {"priority": "urgent"}, "is one of interactive, normal, bulk, not 'urgent'"),
    ("scenes", {"priority": 1}, "is one of interactive, normal, bulk, not"),
    ("scenes", {"assignee": " ann"}, "no space around them"),
    ("scenes", {"assignee": ""}, ""),
    ("scenes", {"assignee": "a\0b"}, "characters that can be printed"),
    ("scenes", {"assignee": "a" * 151}, "1 to 150 characters"),
    ("scenes", {"assignee": "0"}, "a whole number from 1 to 2147483647"),
    ("scenes", {"assignee": -1}, "a whole number from 1 to 2147483647"),
    ("scenes", {"assignee": 0}, ""),
    ("scenes", {"assignee": 2**31}, ""),
    ("scenes", {"name": "  "}, "1 to 256 characters"),
    ("scenes", {"name": "a\0b"}, "has a NUL character"),
    ("scenes", {"name": "n" * 257}, ""),
]


#: URLs that cannot be used, each with a password or a signature in it.
SECRET_URLS: Any = [
    "http://u:s3cr3t@h/a\0.jpg",
    "http://u:s3 cr3t@h/a\0.jpg?sig=s3cr3t",
    "http://h/a.jpg?sig=s3cr3t\0",
    "http://u:s3cr3t@h:99999/a.jpg",
    "http://[u:s3cr3t@h/a.jpg?sig=s3cr3t",
    "http://u:s3cr3t@h/get?sig=s3cr3t",
    "ftp://u:s3cr3t@h/a.jpg?sig=s3cr3t",
    f"http://u:s3cr3t@h/a.jpg?sig=s3cr3t{'x' * 1024}",
]


def ids(value: object) -> str | None:
    return ascii(value)[:60] if isinstance(value, dict) else ""


@pytest.mark.parametrize(("template", "given", "words"), REFUSED, ids=ids)
def test_what_cannot_be_used_is_said_and_nothing_is_done(
    full: Any, daemon: Daemon, template: str, given: dict[str, Any], words: str
) -> None:
    before = done_by(daemon)
    given = dict(given)
    if not {"share", "urls", "cloud"} & given.keys():
        given.setdefault("files", A)
    with pytest.raises(InputError) as caught:
        full.submit(template, given.pop("files", None), **given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert done_by(daemon) == before


@pytest.mark.parametrize("assignee", [True, 1.5, ["ann"]])
def test_an_assignee_is_a_number_or_a_text(full: Any, daemon: Daemon, assignee: Any) -> None:
    """A form has no such values."""
    before = done_by(daemon)
    with pytest.raises(InputError, match="a whole number"):
        full.submit("scenes", A, assignee=assignee)
    answer = post(daemon, "scenes", {"share": ["a.jpg"], "assignee": assignee})
    assert (answer.status, b"a whole number" in answer.data) == (422, True)
    assert done_by(daemon) == before


@pytest.mark.parametrize(("template", "given", "words"), REFUSED, ids=ids)
def test_over_http_without_a_client_of_ours(
    daemon: Daemon, template: str, given: dict[str, Any], words: str
) -> None:
    before = done_by(daemon)
    answer = post(daemon, template, given)
    assert answer.status == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    said = " ".join(
        [problem.get("detail", ""), *(each["what"] for each in problem.get("errors", ()))]
    )
    assert words in said
    assert done_by(daemon) == before


@pytest.mark.parametrize("url", SECRET_URLS, ids=lambda url: ascii(url)[:40])
def test_no_secret_of_a_url_is_in_an_error(full: Any, daemon: Daemon, url: str) -> None:
    with pytest.raises(InputError) as caught:
        full.submit("scenes", urls=[url])
    answer = post(daemon, "scenes", {"urls": [url]})
    assert answer.status == 422
    for said in (str(caught.value), answer.data.decode()):
        assert "cr3t" not in said


def post(daemon: Daemon, template: str, given: dict[str, Any]) -> urllib3.BaseHTTPResponse:
    """A request as any other program sends it."""
    fields = {"template": template, **given}
    url = f"{daemon.url}/v1/requests"
    if {"share", "urls", "cloud"} & given.keys():
        if "cloud" in fields:
            fields["cloud"] = dict(zip(("storage_id", "keys"), fields["cloud"], strict=True))
        return urllib3.request("POST", url, json=fields, timeout=PATIENCE)
    parts = [("files", (name, content)) for name, content in fields.pop("files", A)]
    values = [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in fields.items()
    ]
    return urllib3.request("POST", url, fields=[*values, *parts], timeout=PATIENCE)


# --- Numbers, keys and ids ------------------------------------------------------------------------


def test_a_lease_survives_data_that_cannot_be_used(full: Any, daemon: Daemon, image: bytes) -> None:
    lease = full.acquire("scenes")
    before = done_by(daemon)
    for given in (
        {"files": [(LONG, image)]},
        {"files": A, "params": {"frame_stp": 5}},
        {"files": A, "assignee": " ann"},
        {"files": A, "name": " "},
        {"urls": ["ftp://h/a.jpg"]},
    ):
        with pytest.raises(InputError):
            lease.upload(given.pop("files", None), **given)
    assert done_by(daemon) == before
    assert len(lease.upload([("a.jpg", image)]).jobs(timeout=20)) == 1


@pytest.mark.parametrize(
    ("method", "given"),
    [
        *(("acquire", {"ttl": ttl}) for ttl in (0, 0.5, -1, math.inf, math.nan, 1e300, "1h", True)),
        *(("acquire", {"timeout": wait}) for wait in (-1, math.inf, math.nan, 10**400, "5s")),
        *(
            ("acquire", {"idempotency_key": key})
            for key in ("", "a b", "ä", "a\0", "\udcff", "k" * 256)
        ),
        *(("submit", {"timeout": wait}) for wait in (-1, math.inf, math.nan, 1e300)),
        ("submit", {"idempotency_key": "a b"}),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_numbers_are_finite_and_keys_fit_into_a_header(
    full: Any, daemon: Daemon, method: str, given: dict[str, Any]
) -> None:
    before = done_by(daemon)
    with pytest.raises(InputError):
        getattr(full, method)("scenes", *([A] if method == "submit" else []), **given)
    assert done_by(daemon) == before


@pytest.mark.parametrize(
    ("count", "duration"), [(1.5, 9), (-1, 9), (10**400, 9), (1, math.inf), (1, 0)]
)
def test_a_prewarm_is_finite(full: Any, count: Any, duration: Any) -> None:
    with pytest.raises(InputError):
        full.prewarm("scenes", count, duration=duration)


@pytest.mark.parametrize("wait", [-1, math.inf, math.nan])
def test_a_wait_for_jobs_is_finite(full: Any, image: bytes, wait: float) -> None:
    request = full.submit("scenes", [("a.jpg", image)])
    with pytest.raises(InputError):
        request.jobs(timeout=wait)
    lease = full.acquire("scenes")
    with pytest.raises(InputError):
        lease.jobs(timeout=wait)
    lease.release()
    assert len(request.jobs(timeout=20)) == 1


@pytest.mark.parametrize("id", ["", "a\0b", "\udcff", "ä", "a/b", "x" * 65], ids=ascii)
def test_ids_that_nothing_can_have(full: Any, id: str) -> None:
    for call in (full.lease, full.release):
        with pytest.raises(UnknownLease):
            call(id)
    with pytest.raises(UnknownRequest):
        full.request(id)


@pytest.mark.parametrize("name", [5, None, [], "", "\udcff", "a\0b", "x" * 65], ids=ascii)
def test_templates_that_there_cannot_be(full: Any, daemon: Daemon, name: Any) -> None:
    before = done_by(daemon)
    calls: Any = (
        full.acquire,
        full.pause,
        full.drain,
        lambda name: full.prewarm(name, 1, duration=5),
        lambda name: full.submit(name, A),
    )
    for call in calls:
        with pytest.raises(UnknownTemplate):
            call(name)
    assert done_by(daemon) == before


@pytest.mark.parametrize(
    "document",
    [
        {"ttl": 0},
        {"ttl": 0.5},
        {"ttl": 1e300},
        {"timeout": -1},
        {"timeout": 1e300},
        {"timeout": "5"},
    ],
    ids=str,
)
def test_numbers_over_http(daemon: Daemon, document: dict[str, Any]) -> None:
    before = done_by(daemon)
    answer = urllib3.request(
        "POST", f"{daemon.url}/v1/leases", json={"template": "scenes", **document}
    )
    assert answer.status == 422
    assert done_by(daemon) == before


def test_a_client_does_not_wait_for_ever_either(daemon: Daemon) -> None:
    for options in ({"timeout": math.inf}, {"timeout": 0}, {"patience": math.nan}):
        with pytest.raises(InputError):
            RemotePool(daemon.url, **options)


# --- Files of this machine ------------------------------------------------------------------------


def test_a_path_that_is_no_utf_8_is_refused_or_called_otherwise(
    full: Any, daemon: Daemon, tmp_path: Path, image: bytes
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.jpg"))
    path.write_bytes(image)
    before = done_by(daemon)
    with pytest.raises(InputError, match="is not UTF-8") as caught:
        full.submit("scenes", [path])
    assert str(caught.value).isprintable()
    assert done_by(daemon) == before
    assert len(full.submit("scenes", [("a.jpg", path)]).jobs(timeout=20)) == 1


def test_a_path_that_is_none(full: Any, daemon: Daemon) -> None:
    before = done_by(daemon)
    for path in ("a\0.jpg", "\udcff.jpg", 5, object()):
        with pytest.raises(InputError):
            full.submit("scenes", [path])
    assert done_by(daemon) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["get", "scenes", "a.jpg", "--assignee", "-1"], "assignee is a whole number"),
        (["get", "scenes", "a.jpg", "--name", " "], "not all blank"),
        (["get", "scenes", "a.jpg", "./a.jpg"], "a.jpg: is given twice"),
        (["get", "scenes", "\udcff.jpg"], "is not UTF-8"),
        (["get", "scenes", "a.jpg", "--key", "a b"], "visible ASCII"),
        (["get", "scenes", "--url", f"http://me:{SECRET}@h/a.jpg?{'x' * 1024}"], "1024 characters"),
        (["lease", "scenes", "--ttl", "0"], "lasts 1s to 30d"),
        (["lease", "scenes", "--timeout", "31d"], "lasts 0s to 30d"),
    ],
    ids=lambda value: ascii(value)[-20:] if isinstance(value, list) else "",
)
@pytest.mark.parametrize("kind", [HERE, "RemotePool"])
def test_the_command_line_says_it_in_one_line(
    daemon: Daemon,
    simulator: SimulatorServer,
    tmp_path: Path,
    image: bytes,
    arguments: list[str],
    words: str,
    kind: str,
) -> None:
    before = done_by(daemon)
    (tmp_path / "cam").mkdir()
    for name in ("a.jpg", "cam/a.jpg", "\udcff.jpg"):
        (tmp_path / name).write_bytes(image)
    to = ["--config", str(daemon.settings.path)] if kind == HERE else ["--server", daemon.url]
    token = simulator.access_token
    result = cvat_pool(*arguments, *to, cwd=tmp_path, CVAT_ACCESS_TOKEN=token)
    assert result.returncode == 2, result.stderr
    assert words in " ".join(result.stderr.split())
    assert result.stderr.count("\n") == 1
    assert SECRET not in result.stderr
    assert done_by(daemon) == before


# --- What works -----------------------------------------------------------------------------------

#: Of a macOS screenshot, of an emoji with a joiner, of a page; and what CVAT makes of them.
ODD = {
    "Screenshot at 9.41.00\u202fAM.jpg": "Screenshot at 9.41.00AM.jpg",
    "\N{MAN}\u200d\N{PERSONAL COMPUTER}.jpg": "\N{MAN}\N{PERSONAL COMPUTER}.jpg",
    "写\u3000真.jpg": "写真.jpg",
    "cam1/so\u00adft.jpg": "soft.jpg",
    "a&amp;amp;b.jpg": "a&amp;b.jpg",
    'say "é".jpg': 'say "é".jpg',
}


@cache
def photo(seed: int) -> bytes:
    """Another one for each seed."""
    return sample_image(seed, size=3_000)


def frames_of(simulator: SimulatorServer, request: Any) -> list[str]:
    data = simulator.state.tasks[request.task_id].data
    assert data is not None
    return [frame.name for frame in data.frames]


@pytest.mark.parametrize("template", ["scenes", "pieces"])
@pytest.mark.parametrize("how", ["plain", "predefined", "mapped"])
def test_odd_names_become_what_cvat_makes_of_them_however_they_are_sent(
    full: Any, simulator: SimulatorServer, template: str, how: str
) -> None:
    files = [(name, photo(7)) for name in ODD]
    params: dict[str, Any] = {}
    if how == "predefined":
        params = {"sorting_method": "predefined"}
    elif how == "mapped":
        params = {"job_file_mapping": [[name] for name in reversed(ODD)]}
    request = full.submit(template, files, params=params)
    jobs = request.jobs(timeout=20)
    there = list(ODD.values())
    assert list(request.record.files) == there
    expected = {"plain": sorted(there), "predefined": there, "mapped": there[::-1]}[how]
    assert frames_of(simulator, request) == expected
    assert request.frames == tuple(
        Frame(file=file, name=name, number=expected.index(name)) for file, name in ODD.items()
    )
    assert len(jobs) == (len(ODD) if how == "mapped" else 1)


def test_odd_names_from_another_program(daemon: Daemon, simulator: SimulatorServer) -> None:
    given = {"files": [("Screenshot\u202fAM.jpg", photo(7))]}
    answer = post(daemon, "scenes", given)
    assert answer.status == 202
    assert answer.json()["files"] == ["ScreenshotAM.jpg"]
    frame = {"file": "Screenshot\u202fAM.jpg", "name": "ScreenshotAM.jpg", "number": 0}
    assert answer.json()["frames"] == [frame]
    with opened("RemotePool", daemon) as pool:
        request = pool.request(answer.json()["id"])
        request.jobs(timeout=20)
        assert frames_of(simulator, request) == ["ScreenshotAM.jpg"]


def test_names_as_clients_of_old_send_them(daemon: Daemon, image: bytes) -> None:
    """RFC 8187: requests with urllib3 1 does so where a name is not ASCII."""
    parts = [
        b'form-data; name="template"\r\n\r\nscenes',
        b"form-data; name=\"files\"; filename*=UTF-8''%E2%82%AC%20x.jpg\r\n\r\n" + image,
        b'form-data; name="files"; filename="p.jpg"; filename*=utf-8\'\'star.jpg\r\n\r\n' + image,
        b'form-data; name="files"; filename="a; filename*=utf-8\'\'b.jpg"\r\n\r\n' + image,
    ]
    body = b"".join(b"--X\r\nContent-Disposition: " + part + b"\r\n" for part in parts)
    answer = urllib3.request(
        "POST",
        f"{daemon.url}/v1/requests",
        body=body + b"--X--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=X"},
    )
    assert answer.status == 202, answer.data
    assert answer.json()["files"] == ["€ x.jpg", "star.jpg", "a; filename*=utf-8''b.jpg"]


#: What callers call files, in their order, with the width of each picture; and its name in CVAT.
ALIKE = {
    "cam2/0001.png": (20, "cam2_0001.png"),
    "cam1/0001.png": (10, "cam1_0001.png"),
    "0002.png": (30, "0002.png"),
    "cam1/0003.png": (40, "0003.png"),
}
SAME = [("a.png", 10, "a.png"), ("a.png", 30, "a-2.png"), ("b.png", 20, "b.png")]


def picture(width: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, 8)).save(content, "PNG")
    return content.getvalue()


def check_frames(simulator: SimulatorServer, request: Any) -> None:
    """Check that each file of :data:`ALIKE` is the frame that the request says."""
    data = simulator.state.tasks[request.task_id].data
    assert data is not None
    assert [frame.file for frame in request.frames] == list(ALIKE)
    for frame in request.frames:
        there = data.frames[frame.number]
        assert ((there.width, there.name), frame.name) == (ALIKE[frame.file], there.name)
    assert request.record.files == tuple(name for _, name in ALIKE.values())


@pytest.mark.parametrize("template", ["scenes", "pieces"])
@pytest.mark.parametrize("how", ["bytes", "paths", "open files"])
def test_files_of_one_name_are_called_by_their_folders_too(
    full: Any, simulator: SimulatorServer, tmp_path: Path, template: str, how: str
) -> None:
    files: list[Any] = [(name, picture(width)) for name, (width, _) in ALIKE.items()]
    with ExitStack() as stack:
        if how != "bytes":
            for name, content in files:
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_bytes(content)
            # A path is called by its folders where it takes that to tell it from another.
            files = [tmp_path / name for name in list(ALIKE)[:3]] + files[3:]
        if how == "open files":
            files[:3] = [stack.enter_context(path.open("rb")) for path in files[:3]]
        request = full.submit(template, files)
    assert len(request.jobs(timeout=20)) == 1
    check_frames(simulator, request)
    assert [frame.number for frame in request.frames] == [3, 2, 0, 1], "as CVAT sorts the names"
    assert full.request(request.id).frames == request.frames


@pytest.mark.parametrize("template", ["scenes", "pieces"])
@pytest.mark.parametrize("size", [1, 3, 4, 100])
def test_jobs_of_a_given_size(
    full: Any, simulator: SimulatorServer, template: str, size: int
) -> None:
    request = full.submit(
        template, [(name, picture(width)) for name, (width, _) in ALIKE.items()], job_size=size
    )
    jobs = request.jobs(timeout=20)
    ranges = {
        1: [(0, 0), (1, 1), (2, 2), (3, 3)],
        3: [(0, 2), (3, 3)],
        4: [(0, 3)],
        100: [(0, 3)],
    }
    assert [(job.start_frame, job.stop_frame) for job in jobs] == ranges[size]
    check_frames(simulator, request)
    assert [frame.number for frame in request.frames] == [0, 1, 2, 3], "in the order given"


@pytest.mark.parametrize("job_size", [None, 1])
def test_files_that_their_caller_calls_the_same_get_numbers(
    full: Any, daemon: Daemon, simulator: SimulatorServer, job_size: int | None
) -> None:
    """As curl sends those of two folders: it leaves the folders out."""
    files = [(name, picture(width)) for name, width, _ in SAME]
    size = {} if job_size is None else {"job_size": job_size}
    answer = post(daemon, "scenes", {"files": files, **size})
    assert answer.status == 202, answer.data
    for request in (full.submit("scenes", files, **size), full.request(answer.json()["id"])):
        assert len(request.jobs(timeout=20)) == (3 if job_size else 1)
        data = simulator.state.tasks[request.task_id].data
        assert data is not None
        assert [
            (frame.file, data.frames[frame.number].width, frame.name) for frame in request.frames
        ] == SAME


@pytest.mark.parametrize("priority", [None, *Priority])
def test_the_priority_of_a_request(full: Any, daemon: Daemon, priority: str | None) -> None:
    request = full.submit("scenes", [("a.png", picture(9))], priority=priority)
    assert request.record.priority is Priority(priority or "normal")
    answer = urllib3.request("GET", f"{daemon.url}/v1/requests?limit=1")
    (listed,) = answer.json()["items"]
    assert (listed["id"], listed["priority"]) == (request.id, priority or "normal")
    request.jobs(timeout=20)


def test_jobs_of_a_given_size_of_names_with_spaces(full: Any, simulator: SimulatorServer) -> None:
    """CVAT cuts the spaces off in a mapping (recording names), so the file is sent without them."""
    request = full.submit("scenes", [(" b.png", picture(9)), ("a.png", picture(8))], job_size=1)
    assert len(request.jobs(timeout=20)) == 2
    assert frames_of(simulator, request) == ["b.png", "a.png"]
    assert [frame.file for frame in request.frames] == [" b.png", "a.png"]


def test_jobs_of_a_given_size_of_what_cvat_has_and_in_a_leased_task(
    full: Any, simulator: SimulatorServer
) -> None:
    names = ["cam1/b.jpg", "cam1/a.jpg"]
    request = full.acquire("scenes").upload(share=names, job_size=1)
    assert len(request.jobs(timeout=20)) == 2
    assert frames_of(simulator, request) == names
    assert [frame.number for frame in request.frames] == [0, 1]


@pytest.mark.parametrize(
    ("files", "params"),
    [
        ([("all.zip", b"")], {}),
        ([("a.png", picture(8))], {"sorting_method": "natural"}),
        ([("a.png", picture(8))], {"sorting_method": "random"}),
        ([("a.png", picture(8)), ("notes.txt", b"no picture")], {}),
    ],
    ids=ascii,
)
def test_frames_that_cvat_alone_decides_on_have_no_numbers(
    full: Any, files: list[tuple[str, bytes]], params: dict[str, Any]
) -> None:
    if files[0][0].endswith(".zip"):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as content:
            content.writestr("a.png", picture(8))
        files = [("all.zip", archive.getvalue())]
    request = full.submit("scenes", files, params=params)
    assert request.jobs(timeout=20)
    assert request.frames == tuple(Frame(file=name, name=name) for name, _ in files)


def test_a_file_that_a_mapping_leaves_out_has_no_number(full: Any) -> None:
    files = [(name, picture(8)) for name in ("a.png", "b.png", "c.png")]
    request = full.submit("scenes", files, params={"job_file_mapping": [["c.png"], ["a.png"]]})
    assert len(request.jobs(timeout=20)) == 2
    assert [frame.number for frame in request.frames] == [1, None, 0]


def test_parameters_name_files_of_one_name_as_their_caller_does(
    full: Any, simulator: SimulatorServer
) -> None:
    files = [("cam1/a.png", picture(8)), ("cam2/a.png", picture(9))]
    mapping = [["cam2/a.png"], ["cam1/a.png"]]
    request = full.submit("scenes", files, params={"job_file_mapping": mapping})
    assert len(request.jobs(timeout=20)) == 2
    assert frames_of(simulator, request) == ["cam2_a.png", "cam1_a.png"]
    assert [frame.number for frame in request.frames] == [1, 0]


def test_names_inside_an_archive_are_told_apart(
    full: Any, simulator: SimulatorServer, image: bytes
) -> None:
    names = ["a.jpg", "x/a.jpg", "x/y/a\u202fb.jpg"]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        for name in names:
            content.writestr(name, image)
    mapping = [["x/y/a\u202fb.jpg"], ["x/a.jpg"]]
    request = full.submit(
        "scenes", [("all.zip", archive.getvalue())], params={"job_file_mapping": mapping}
    )
    assert len(request.jobs(timeout=20)) == 2
    assert frames_of(simulator, request) == ["x/y/a\u202fb.jpg", "x/a.jpg"]


@pytest.mark.parametrize(
    ("data", "params", "frames", "jobs"),
    [
        ({}, {"frame_step": 2}, ["0.jpg", "2.jpg"], 1),
        ({}, {"frame_filter": "step=3"}, ["0.jpg", "3.jpg"], 1),
        ({}, {"chunk_size": "auto"}, ["0.jpg", "1.jpg", "2.jpg", "3.jpg"], 1),
        ({}, {"chunk_size": "server", "start_frame": 2}, ["2.jpg", "3.jpg"], 1),
        (
            {},
            {
                "sorting_method": "predefined",
                "upload_file_order": ["3.jpg", "0.jpg", "2.jpg", "1.jpg"],
            },
            ["3.jpg", "0.jpg", "2.jpg", "1.jpg"],
            1,
        ),
        ({}, {"job_file_mapping": [["3.jpg", "1.jpg"], ["0.jpg"]]}, ["3.jpg", "1.jpg", "0.jpg"], 2),
        (
            {},
            {
                "validation_params": {
                    "mode": "gt",
                    "frame_selection_method": "manual",
                    "frames": ["2.jpg"],
                }
            },
            ["0.jpg", "1.jpg", "2.jpg", "3.jpg"],
            1,
        ),
        ({"share": ["cam1/"]}, {"server_files_exclude": ["cam1/a.jpg"]}, ["cam1/b.jpg"], 1),
        (
            {"share": ["cam1/a.jpg", "cam1/b.jpg"]},
            {"job_file_mapping": [["cam1/b.jpg"], ["cam1/a.jpg"]]},
            ["cam1/b.jpg", "cam1/a.jpg"],
            2,
        ),
    ],
    ids=lambda value: ascii(value)[:50] if isinstance(value, dict) else "",
)
def test_data_parameters_work_by_every_door(
    full: Any,
    daemon: Daemon,
    simulator: SimulatorServer,
    data: dict[str, Any],
    params: dict[str, Any],
    frames: list[str],
    jobs: int,
) -> None:
    given = data or {"files": [(f"{number}.jpg", photo(number)) for number in range(4)]}
    mine = full.submit("scenes", given.get("files"), params=params, **data)
    answer = post(daemon, "scenes", {**given, "params": params})
    assert answer.status == 202, answer.data
    for request in (mine, full.request(answer.json()["id"])):
        assert len(request.jobs(timeout=20)) == jobs
        assert frames_of(simulator, request) == frames


# --- Data that CVAT fetches -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """An address at which every path is an image."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = photo(1)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_fetched_file_is_called_as_its_path_ends(
    full: Any, daemon: Daemon, simulator: SimulatorServer, web: str
) -> None:
    urls = [
        f"HTTP://me:{SECRET}@{web}/cam1/a%20b.jpg?X-Amz-Signature={SECRET}",
        f"http://{web}/c d.jpg?token={SECRET}#{SECRET}",
    ]
    params = {"job_file_mapping": [[urls[1]], ["a b.jpg"]]}
    request = full.submit("scenes", urls=urls, params=params)
    assert len(request.jobs(timeout=20)) == 2
    assert list(request.record.files) == ["a b.jpg", "c d.jpg"]
    assert frames_of(simulator, request) == ["c d.jpg", "a b.jpg"]
    called = "scenes: a b.jpg and 1 more"
    simulator.wait_for(lambda state: state.tasks[request.task_id].name == called)
    assert_no_secrets(daemon, request)


def test_a_file_that_cannot_be_fetched_keeps_its_secrets(
    full: Any, daemon: Daemon, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"http://me:{SECRET}@127.0.0.1:9/a.jpg?X-Amz-Signature={SECRET}"
    request = full.submit("scenes", urls=[url])
    with pytest.raises(ImportFailed, match=r"http://127\.0\.0\.1:9/a\.jpg\?…") as caught:
        request.jobs(timeout=20)
    assert SECRET not in str(caught.value)
    assert_no_secrets(daemon, request)
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err


def assert_no_secrets(daemon: Daemon, request: Any) -> None:
    for path in (f"/v1/requests/{request.id}", "/v1/requests", "/v1/templates", "/metrics"):
        assert SECRET not in urllib3.request("GET", daemon.url + path).data.decode()
    store = Path(daemon.settings.store.url.partition(":///")[2])
    files = [file for file in store.parent.glob(f"{store.name}*") if file.is_file()]
    # By another process: closing a file drops the locks that SQLite has on it in this one, and the
    # next command that ends would take away what the daemon still writes to.
    kept = subprocess.run(["cat", *files], capture_output=True, check=True).stdout
    assert request.id.encode() in kept
    assert SECRET.encode() not in kept


def test_the_address_of_cvat_has_its_scheme_in_any_case(
    simulator: SimulatorServer, tmp_path: Path, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", simulator.access_token)
    lower = write_config(tmp_path, simulator)
    upper = tmp_path / "upper.toml"
    upper.write_text(lower.read_text().replace('url = "http://', 'url = "HTTP://'))
    with TaskPool.from_config(upper) as pool, TaskPool.from_config(lower) as other:
        assert len(pool.submit("scenes", [("a.jpg", image)]).jobs(timeout=20)) == 1
        # Their tasks are of one origin.
        assert pool.settings.templates == other.settings.templates
