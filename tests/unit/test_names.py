"""What CVAT calls files, as recorded from a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pool.config.names import check_file_name, name_in_cvat
from pool.config.urls import check_url, name_in_url, without_secrets
from pool.errors import InputError

RECORDINGS = Path(__file__).parents[1] / "contract" / "recordings"


def recorded(topic: str) -> Iterator[tuple[str, Any, Any]]:
    """What was sent, by name, and the content of what came back."""
    for each in json.loads((RECORDINGS / f"{topic}.json").read_text()):
        if "request" in each:
            yield each["name"], each["request"].get("body") or {}, each["response"]


def frames_of(topic: str) -> dict[str, list[str]]:
    """The names of the frames that each recorded upload has become."""
    return {
        name.removesuffix(": its frames"): [frame["name"] for frame in answer["json"]["frames"]]
        for name, _, answer in recorded(topic)
        if name.endswith(": its frames")
    }


def uploads() -> list[Any]:
    frames = frames_of("names")
    cases = []
    for name, body, _ in recorded("names"):
        files = [
            part["file"]
            for field, part in body.get("multipart", {}).items()
            if field.startswith("client_files")
        ]
        # urllib3 has sent that quote as %22; the pool sends it as it is (raw header: quote).
        if name in frames and "%22" not in name:
            cases.append(pytest.param(files, frames[name], id=name))
    return cases


@pytest.mark.parametrize(("files", "frames"), [case for case in uploads() if case.values[0]])
def test_uploaded_files_have_the_names_that_cvat_gave_them(
    files: list[str], frames: list[str]
) -> None:
    assert sorted(map(name_in_cvat, files)) == sorted(frames)
    assert sorted(map(check_file_name, files)) == sorted(frames)


def test_enough_names_were_recorded() -> None:
    assert len(uploads()) > 30


@pytest.mark.parametrize("what", ["284 bytes of emoji", "trailing space"])
def test_names_that_cvat_has_refused(what: str) -> None:
    (files,) = [
        [part["file"] for field, part in body["multipart"].items() if field.startswith("client")]
        for name, body, _ in recorded("names")
        if name == what
    ]
    with pytest.raises(InputError):
        check_file_name(files[0])


def fetched() -> list[Any]:
    frames = frames_of("remote_urls")
    return [
        pytest.param(body["json"]["remote_files"], frames[name], id=name)
        for name, body, _ in recorded("remote_urls")
        if name in frames and "json" in body and name not in ("zip", "video")
    ]


@pytest.mark.parametrize(("urls", "frames"), fetched())
def test_fetched_files_have_the_names_that_cvat_gave_them(
    urls: list[str], frames: list[str]
) -> None:
    assert sorted(name_in_url(check_url(url)) for url in urls) == sorted(frames)


@pytest.mark.parametrize(
    "what",
    [
        "URL of 1025 characters",
        "file name of 300 characters",
        "no scheme",
        "ftp",
        "file:",
        "blank",
        "path ends in /",
        "no path",
    ],
)
def test_urls_that_cvat_has_refused(what: str) -> None:
    (urls,) = [
        body["json"]["remote_files"] for name, body, _ in recorded("remote_urls") if name == what
    ]
    with pytest.raises(InputError):
        check_url(urls[0])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://me:pw@h:80/a.png?sig=x", "http://h:80/a.png?…"),
        ("'HTTPS://h/a.png?sig=x&y=a/b#c'", "'HTTPS://h/a.png?…'"),
        (
            "(redirected from http://p@h/a.png#token=x); HTTP",
            "(redirected from http://h/a.png?… HTTP",
        ),
        (
            "retries exceeded with url: /a.png?sig=x (Caused by",
            "retries exceeded with url: /a.png?… (Caused by",
        ),
        ("failed to parse image file 'a#b?c.png'", "failed to parse image file 'a#b?c.png'"),
        ("http://h/a.png", "http://h/a.png"),
    ],
)
def test_texts_without_the_secrets_of_their_urls(text: str, left: str) -> None:
    assert without_secrets(text) == left


def test_a_url_is_sent_so_that_it_ends_where_it_ends() -> None:
    url = check_url("HTTP://h/a b.png?sig='x y\"\\")
    assert url == "HTTP://h/a%20b.png?sig=%27x%20y%22%5C"
    assert name_in_url(url) == "a b.png"
