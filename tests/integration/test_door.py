"""What comes in is checked before anything is done, alike by every door.

One table of what cannot be used, for the library, HTTP, both clients and the command line: the
caller is told in one line, no row is written and no task is taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3
from support.commands import PATIENCE
from support.pools import HERE, REMOTE, level, opened, serving, wait_for, write_config

from pool import InputError
from pool.daemon import Daemon
from pool.simulator import SimulatorServer

#: A file system has room for 255 bytes of a name.
LONG = "\N{GRINNING FACE}" * 63 + ".png"


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, simulator: SimulatorServer
) -> Iterator[Daemon]:
    path = write_config(tmp_path_factory.mktemp("door"), simulator)
    path.write_text(
        path.read_text()
        + """
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
            daemon.engine.store.pause(name, now=daemon.engine.clock.now())
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
    store = daemon.engine.store
    handed_out = [
        sum(each.total for each in store.demand(template, since=0.0))
        for template in daemon.engine.templates
    ]
    return [each.id for each in store.requests().requests], handed_out, daemon.engine.spool.used


# --- Data -----------------------------------------------------------------------------------------

A = [("a.jpg", b"x")]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # Parameters.
    ("scenes", {"params": {"frame_stp": 5}}, "unknown key; did you mean frame_step?"),
    ("scenes", {"params": {"remote_files": ["http://h/b.jpg"]}}, "urls tells"),
    ("scenes", {"params": {"server_files": ["b.jpg"]}}, "share or cloud tells"),
    ("scenes", {"params": {"cloud_storage_id": 1}}, "cloud tells"),
    ("scenes", {"params": {"client_files": []}}, "files tells"),
    ("scenes", {"params": {"image_quality": 0}}, "a whole number from 1 to 100"),
    ("scenes", {"params": {"image_quality": 101}}, "a whole number from 1 to 100"),
    ("scenes", {"params": {"image_quality": "70"}}, "a whole number from 1 to 100"),
    ("scenes", {"params": {"chunk_size": 0}}, 'expected "auto", "server" or a whole number'),
    ("scenes", {"params": {"chunk_size": 2**31}}, 'expected "auto", "server" or a whole'),
    ("scenes", {"params": {"sorting_method": "naturl"}}, 'did you mean "natural"?'),
    ("scenes", {"params": {"frame_filter": "every=2"}}, 'expected "step=N"'),
    ("scenes", {"params": {"frame_step": 0}}, "a whole number from 1"),
    ("scenes", {"params": {"frame_step": 2, "frame_filter": "step=2"}}, "give one of"),
    ("scenes", {"params": {"start_frame": 3, "stop_frame": 2}}, "is after stop_frame"),
    ("scenes", {"params": {"use_cache": 1}}, "true or false"),
    ("scenes", {"params": {"job_file_mapping": []}}, "for each job a list"),
    ("scenes", {"params": {"job_file_mapping": ["a.jpg"]}}, "for each job a list"),
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
        'goes with sorting_method "random" only',
    ),
    # Names of files.
    ("scenes", {"files": [("a.jpg", b"x"), ("cam/a.jpg", b"y")]}, "two files of one name"),
    ("scenes", {"files": [("ab.jpg", b"x"), ("a\u202fb.jpg", b"y")]}, "put them into a zip"),
    ("scenes", {"files": [("a&amp;.jpg", b"x"), ("a&.jpg", b"y")]}, "CVAT calls both of them a&."),
    ("scenes", {"files": [(LONG, b"x")]}, "CVAT has room for 255 bytes"),
    ("scenes", {"files": [("a.jpg ", b"x")]}, "the space at its end"),
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
    ("scenes", {"urls": [f"http://h/a.jpg?{'x' * 1024}"]}, "CVAT has room for 1024 characters"),
    ("scenes", {"urls": ["http://h/" + "a" * 252 + ".jpg"]}, "CVAT has room for 255 bytes"),
    ("scenes", {"urls": ["http://h/dir/"]}, "does not end with a file's name"),
    ("scenes", {"urls": ["http://h"]}, "does not end with a file's name"),
    ("scenes", {"urls": ["http://h/get?file=a.jpg"]}, "CVAT knows media by their extension"),
    ("scenes", {"urls": ["http://h/1/a.jpg", "http://h/2/a.jpg"]}, "two files of one name"),
    ("scenes", {"urls": ["http://h/a.jpg?1", "http://h/a.jpg?2"]}, "two files of one name"),
    # What is told beside.
    ("scenes", {"assignee": "worker"}, ""),
    ("scenes", {"assignee": -1}, ""),
    ("scenes", {"assignee": 0}, ""),
    ("scenes", {"assignee": 2**31}, ""),
    ("scenes", {"assignee": True}, ""),
    ("scenes", {"name": "  "}, "1 to 256 characters"),
    ("scenes", {"name": "a\0b"}, "has a NUL character"),
    ("scenes", {"name": "n" * 257}, ""),
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


def post(daemon: Daemon, template: str, given: dict[str, Any]) -> urllib3.BaseHTTPResponse:
    """A request as any other program sends it."""
    fields = {"template": template, **given}
    url = f"{daemon.url}/v1/requests"
    if {"share", "urls", "cloud"} & given.keys():
        if "cloud" in fields:
            fields["cloud"] = dict(zip(("storage_id", "keys"), fields["cloud"], strict=True))
        return urllib3.request("POST", url, json=fields, timeout=PATIENCE)
    parts = [("files", (name, content)) for name, content in fields.pop("files", A)]
    told = [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in fields.items()
    ]
    return urllib3.request("POST", url, fields=[*told, *parts], timeout=PATIENCE)
