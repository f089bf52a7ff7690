"""What CVAT calls files, as recorded from a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.config.names import check_file_name, distinct_names, name_in_cvat, telling_folders
from pool.config.source import build_upload, combined, group_names
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


# --- Names that would meet in one task ------------------------------------------------------------

FOLDER = "f" * 250


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        (["cam1/a.jpg", "cam1/b.jpg"], ["a.jpg", "b.jpg"]),
        (["cam1/a.jpg", "cam2/a.jpg"], ["cam1_a.jpg", "cam2_a.jpg"]),
        (["x/cam/a.jpg", "y/cam/a.jpg", "b.jpg"], ["x_cam_a.jpg", "y_cam_a.jpg", "b.jpg"]),
        (["a.jpg", "cam/a.jpg"], ["a.jpg", "cam_a.jpg"]),
        (["C:\\1\\a.jpg", "C:\\2\\a.jpg"], ["1_a.jpg", "2_a.jpg"]),
        (["/1/../a.jpg", "./2/a.jpg"], ["1_a.jpg", "2_a.jpg"]),
        (["a.jpg", "a.jpg", "a.jpg"], ["a.jpg", "a-2.jpg", "a-3.jpg"]),
        (["ab.jpg", "a\u202fb.jpg", "a&#8239;b.jpg"], ["ab.jpg", "ab-2.jpg", "ab-3.jpg"]),
        # A name that is another file's own stays with that.
        (["1/a.jpg", "2/a.jpg", "1_a.jpg"], ["a-2.jpg", "2_a.jpg", "1_a.jpg"]),
        (["a.jpg", "a.jpg", "a-2.jpg"], ["a.jpg", "a-3.jpg", "a-2.jpg"]),
        ([f"{FOLDER}1/a.jpg", f"{FOLDER}2/a.jpg"], ["a.jpg", "a-2.jpg"]),
        (["x" * 251 + ".jpg"] * 2, ["x" * 251 + ".jpg", "x" * 249 + "-2.jpg"]),
        (["é" * 125 + ".jpg"] * 2, ["é" * 125 + ".jpg", "é" * 124 + "-2.jpg"]),
        ([" a.jpg", "a.jpg"], [" a.jpg", "a.jpg"]),
    ],
)
def test_each_file_has_a_name_of_its_own(files: list[str], names: list[str]) -> None:
    assert distinct_names(files) == names
    for name in names:
        assert check_file_name(name) == name


PARTS = st.sampled_from(
    [
        "a.jpg",
        "b.jpg",
        "a-2.jpg",
        "1_a.jpg",
        "a\u202f.jpg",
        "a&amp;.jpg",
        "&.jpg",
        "é" * 120 + ".jpg",
    ]
)
FOLDERS = st.sampled_from(["1", "2", "a&amp;amp", " x ", "..", ".", "", "C:", "é" * 100, "\u200b"])


@given(
    st.lists(
        st.builds(
            lambda folders, separator, name: separator.join((*folders, name)),
            st.lists(FOLDERS, max_size=3),
            st.sampled_from("/\\"),
            PARTS,
        ),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
)
def test_names_are_distinct_and_stay_what_they_are_in_cvat(files: list[str], mapped: bool) -> None:
    names = distinct_names(files, mapped=mapped)
    assert len(set(names)) == len(files)
    assert names == distinct_names(files, mapped=mapped)
    for file, name in zip(files, names, strict=True):
        # As it is sent (pool.cvat.multipart), CVAT keeps it, and has room for it.
        assert name_in_cvat(name.replace("&", "&amp;")) == name
        assert len(name.encode()) <= 255
        alone = name_in_cvat(file)
        if sum(name_in_cvat(other) == alone for other in files) == 1:
            assert name == alone, "it keeps its name"


def test_names_in_a_mapping_have_no_spaces_around_them() -> None:
    """Recording names: CVAT cuts them off, and then finds no such file."""
    assert distinct_names([" a.jpg", "a.jpg"], mapped=True) == ["a.jpg", "a-2.jpg"]


def test_many_files_of_one_name_are_no_work() -> None:
    assert len(set(distinct_names(["a.jpg"] * 20_000))) == 20_000
    deep = [f"{'x/' * 400}{number}/a.jpg" for number in range(2_000)]
    assert distinct_names(deep) == [f"{number}_a.jpg" for number in range(2_000)]


def test_no_folders_are_named_that_tell_nothing_apart() -> None:
    assert telling_folders(["a/x.jpg", "a/x.jpg"]) == [(), ()]
    assert telling_folders(["1/c/x.jpg", "2/c/x.jpg", "2/c/x.jpg"]) == [
        ("1", "c"),
        ("2", "c"),
        ("2", "c"),
    ]


def test_requests_that_share_a_task_have_jobs_and_names_of_their_own() -> None:
    uploads = [
        build_upload([("cam2/a.jpg", b"2"), ("cam1/a.jpg", b"1")]),
        build_upload([("a.jpg", b"3")]),
        build_upload([(" c.jpg", b"5"), ("b.jpg", b"4")]),
        build_upload([("a.jpg", b"6")]),
    ]
    names = group_names([upload.given for upload in uploads])
    assert names == [("cam2_a.jpg", "cam1_a.jpg"), ("a.jpg",), ("c.jpg", "b.jpg"), ("a-2.jpg",)]
    together = combined(uploads)
    assert together.job_sizes == (2, 1, 2, 1)
    # Within a request the frames are in the order in which CVAT sorts them alone.
    assert [file.source for file in together.files] == [b"1", b"2", b"3", b"5", b"4", b"6"]
    assert together.jobs == (
        ("cam1_a.jpg", "cam2_a.jpg"),
        ("a.jpg",),
        ("c.jpg", "b.jpg"),
        ("a-2.jpg",),
    )
    assert together.given == ("cam1/a.jpg", "cam2/a.jpg", "a.jpg", " c.jpg", "b.jpg", "a.jpg")
