"""Which requests go together, how a failed group goes on, and whose jobs are whose."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import ManualClock
from support.stepped import CONTENT

from pool.config.data_params import DataParams, read_params
from pool.config.settings import ImportSettings, TaskSettings, Template
from pool.config.source import LocalFile, Upload, build_upload
from pool.model import ImportMember, Job, Priority, RequestState
from pool.requests.grouping import (
    LONGEST_GATHERING,
    QUIET,
    Places,
    checked_key,
    group_key,
    groups_of,
    is_full,
    pace_of,
    predicted,
    seconds_to_wait,
)
from pool.requests.lifecycle import Delivery, Fault, Step, next_step
from pool.store import Unserved
from pool.tracking.splitting import divided_as_asked, parts_of

AUTO = ImportSettings(grouping="auto")
TEMPLATE = Template(name="scenes", importing=AUTO)


def upload(*names: str, size: int = 10, **extra: Any) -> Upload:
    files = tuple(LocalFile(name, Path("x"), size) for name in names)
    return Upload(files=files, extra=read_params(extra).given)


def waiting(number: int, *, key: str | None = "k", files: int = 1, size: int = 10) -> Unserved:
    return Unserved(
        id=f"r{number}",
        template="scenes",
        state=RequestState.QUEUED,
        lease_id=f"l{number}",
        created_at=float(number),
        group_key=key,
        size=size,
        files=tuple(f"{number}-{index}.jpg" for index in range(files)),
    )


def members(*sizes: int) -> list[ImportMember]:
    return [
        ImportMember(
            request_id=f"r{number}",
            files=tuple(f"{index}.jpg" for index in range(size)),
            names=tuple(f"{number}-{index}.jpg" for index in range(size)),
        )
        for number, size in enumerate(sizes)
    ]


def jobs(*ranges: tuple[int, int]) -> list[Job]:
    return [
        Job(id=number, url="u", start_frame=first, stop_frame=last)
        for number, (first, last) in enumerate(ranges)
    ]


# --- Which requests may share a task --------------------------------------------------------------


def test_images_of_one_set_of_parameters_may_share_a_task() -> None:
    key = group_key(TEMPLATE, upload("a.jpg"))
    assert key is not None
    assert group_key(TEMPLATE, upload("b.PNG", "c.tiff", size=99)) == key
    other = group_key(TEMPLATE, upload("a.jpg", image_quality=50))
    assert other is not None and other != key
    assert group_key(TEMPLATE, upload("b.jpg", image_quality=50)) == other


@pytest.mark.parametrize(
    "data",
    [
        upload("a.mp4"),
        upload("a.zip"),
        upload("a.jpg", "b.mp4"),
        upload("a.jpg", "manifest.jsonl"),
        upload("a.pcd"),
        upload("a"),
        Upload(share=("a.jpg",)),
        Upload(urls=("http://a/b.jpg",)),
        Upload(cloud=(1, ("a.jpg",))),
        upload("a.jpg", frame_filter="step=2"),
        upload("a.jpg", frame_step=2),
        upload("a.jpg", stop_frame=1),
        upload("a.jpg", sorting_method="natural"),
        upload("a.jpg", job_file_mapping=[["a.jpg"]]),
        upload(
            "a.jpg",
            validation_params={
                "mode": "gt",
                "frame_selection_method": "random_uniform",
                "frame_count": 1,
            },
        ),
        upload(*(f"{number}.jpg" for number in range(AUTO.group_files + 1))),
        upload("a.jpg", size=AUTO.group_bytes + 1),
    ],
)
def test_all_else_goes_alone(data: Upload) -> None:
    assert group_key(TEMPLATE, data) is None


@pytest.mark.parametrize(("seconds", "looked_at"), [(0.0, True), (0.01, True), (0.03, False)])
def test_what_is_not_looked_at_in_time_goes_alone(seconds: float, looked_at: bool) -> None:
    class Slow(ManualClock):
        def monotonic(self) -> float:
            self.advance(seconds)
            return super().monotonic()

    names = [f"{number}.gif" for number in range(5)]
    data = Upload(files=tuple(LocalFile(name, CONTENT, len(CONTENT)) for name in names))
    assert (checked_key(TEMPLATE, data, Slow()) is not None) == looked_at


@pytest.mark.parametrize(
    ("before", "given", "sound"), [(CONTENT, b"no image", False), (b"no image", CONTENT, True)]
)
def test_an_open_file_is_looked_at_from_where_it_stands(
    before: bytes, given: bytes, sound: bool
) -> None:
    stream = io.BytesIO(before + given)
    stream.seek(len(before))
    data = build_upload([("a.png", stream)])
    assert (checked_key(TEMPLATE, data, ManualClock()) is not None) == sound
    assert stream.tell() == len(before)


@pytest.mark.parametrize(
    "template",
    [
        replace(TEMPLATE, importing=ImportSettings()),
        replace(TEMPLATE, task=TaskSettings(segment_size=5)),
        replace(TEMPLATE, task=TaskSettings(consensus_replicas=2)),
        replace(TEMPLATE, data=DataParams(sorting_method="natural")),
    ],
)
def test_some_templates_have_no_groups(template: Template) -> None:
    assert group_key(template, upload("a.jpg")) is None


# --- Which go together ----------------------------------------------------------------------------


def test_groups_are_in_the_order_of_their_first_members() -> None:
    keys = ["a", None, "b", "a", None, "b", "a"]
    groups = groups_of([waiting(number, key=key) for number, key in enumerate(keys)], AUTO)
    ids = [[each.id for each in group] for group in groups]
    assert ids == [["r0", "r3", "r6"], ["r1"], ["r2", "r5"], ["r4"]]


def test_what_has_no_room_begins_the_next_group_and_is_not_passed() -> None:
    settings = replace(AUTO, group_files=4)
    sizes = [2, 3, 1, 1]
    groups = groups_of([waiting(n, files=size) for n, size in enumerate(sizes)], settings)
    assert [[each.id for each in group] for group in groups] == [["r0"], ["r1", "r2"], ["r3"]]


def test_one_that_is_larger_than_a_group_goes_all_the_same() -> None:
    settings = replace(AUTO, group_files=1, group_bytes=5)
    groups = groups_of([waiting(n, files=2, size=9) for n in range(2)], settings)
    assert [len(group) for group in groups] == [1, 1]


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "a", "b"]), st.integers(1, 5), st.integers(1, 100)),
        max_size=30,
    ),
    st.integers(1, 6),
    st.integers(5, 12),
    st.integers(100, 300),
)
def test_groups_have_each_request_once_and_keep_the_limits(
    wanted: list[tuple[str | None, int, int]], most: int, files: int, size: int
) -> None:
    settings = replace(AUTO, group_requests=most, group_files=files, group_bytes=size)
    given = [waiting(n, key=k, files=f, size=s) for n, (k, f, s) in enumerate(wanted)]
    groups = groups_of(given, settings)
    assert sorted(each.created_at for group in groups for each in group) == [
        each.created_at for each in given
    ]
    for group in groups:
        assert len({each.group_key for each in group}) == 1
        assert group[0].group_key is not None or len(group) == 1
        assert len(group) <= most
        assert sum(len(each.files) for each in group) <= files
        assert sum(each.size for each in group) <= size
        assert [each.created_at for each in group] == sorted(each.created_at for each in group)


def test_a_group_is_full_when_nothing_more_has_room() -> None:
    settings = replace(AUTO, group_requests=3, group_files=4, group_bytes=50)
    assert not is_full([waiting(n) for n in range(2)], settings)
    assert is_full([waiting(n) for n in range(3)], settings)
    assert is_full([waiting(n, files=2) for n in range(2)], settings)
    assert is_full([waiting(n, size=25) for n in range(2)], settings)


def test_tenants_do_not_share_a_group() -> None:
    tenants = ["robot", "", "ann", "robot", ""]
    groups = groups_of([replace(waiting(n), tenant=t) for n, t in enumerate(tenants)], AUTO)
    ids = [[each.id for each in group] for group in groups]
    assert ids == [["r0", "r3"], ["r1", "r4"], ["r2"]]


def test_priorities_do_not_share_a_group() -> None:
    levels = [Priority.BULK, Priority.INTERACTIVE, Priority.NORMAL, *Priority]
    groups = groups_of([replace(waiting(n), priority=p) for n, p in enumerate(levels)], AUTO)
    ids = [[each.id for each in group] for group in groups]
    assert ids == [["r0", "r5"], ["r1", "r3"], ["r2", "r4"]]


@pytest.mark.parametrize(
    ("pace", "most"),
    # A second of CVAT is 150 ms and 6 ms for each image (CVAT.md, fact 3).
    [(0.5, 200), (1.0, 141), (2.0, 58), (6.0, 2), (20.0, 1)],
)
def test_a_group_of_bulk_takes_a_predicted_second(pace: float, most: int) -> None:
    bulk = [replace(waiting(n), priority=Priority.BULK) for n in range(200)]
    group = groups_of(bulk, AUTO, pace=pace)[0]
    assert len(group) == most
    assert most == 1 or predicted(most, pace=pace) <= 1.0
    assert is_full(group, AUTO, pace=pace)
    assert len(groups_of([waiting(n) for n in range(200)], AUTO, pace=pace)[0]) == 200
    # Ones with many images are fewer.
    assert len(groups_of([replace(each, files=("a.jpg",) * 60) for each in bulk], AUTO)[0]) == 2


# --- When a group is sent -------------------------------------------------------------------------


def seconds(places: Places, *, ages: Sequence[float] = (1.0, 0.9), **settings: Any) -> float:
    """How long a group waits of requests that came so many seconds ago."""
    group = [replace(waiting(n), created_at=100.0 - age) for n, age in enumerate(ages)]
    return seconds_to_wait(group, replace(AUTO, **settings), places, now=100.0)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (Places(free=2, busy=0, quiet=0.0), 0.0),
        (Places(free=1, busy=1), 0.0),
        (Places(free=0, busy=2), math.inf),
        (Places(free=0, busy=2, next_free=0.5), 0.5),
        (Places(free=0, busy=2, next_free=0.5, upload=0.2), 0.3),
        (Places(free=0, busy=2, next_free=0.1, upload=0.2), 0.0),
        (Places(free=0, busy=2, next_free=0.0), 0.0),
        (Places(free=-1, busy=3, next_free=0.0), math.inf),
    ],
)
def test_a_group_is_sent_to_be_there_when_a_place_is_free(places: Places, expected: float) -> None:
    assert seconds(places) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("age", "quiet", "expected"),
    [
        (0.0, 0.0, QUIET),
        (0.0, QUIET / 3, QUIET * 2 / 3),
        (0.0, QUIET, 0.0),
        (LONGEST_GATHERING - 0.004, 0.0, 0.004),
        (LONGEST_GATHERING, 0.0, 0.0),
        # The clock was set back.
        (-5.0, 0.0, 0.0),
    ],
)
def test_beside_others_a_group_waits_until_it_is_quiet(
    age: float, quiet: float, expected: float
) -> None:
    places = Places(free=1, busy=1, quiet=quiet)
    assert seconds(places, ages=[age, min(age, 0.0)]) == pytest.approx(expected)


def test_a_full_group_gathers_no_more() -> None:
    gathering = Places(free=1, busy=1, quiet=0.0)
    assert seconds(gathering, ages=[0.0, 0.0], group_requests=2) == 0.0
    assert seconds(gathering, ages=[0.0, 0.0], group_requests=2, group_delay=9.0) == 0.0
    none_free = Places(free=0, busy=1, next_free=3.0)
    assert seconds(none_free, ages=[0.0, 0.0], group_requests=2) == 3.0


def test_a_delay_is_of_the_first_of_a_group() -> None:
    idle = Places(free=2, busy=0)
    assert seconds(idle, ages=[1.0, 0.0], group_delay=4.0) == 3.0
    assert seconds(idle, ages=[5.0, 0.0], group_delay=4.0) == 0.0


@pytest.mark.parametrize(
    ("seen", "pace"),
    [
        ([], 1.0),
        ([(1, predicted(1))], 1.0),
        ([(1, 3 * predicted(1)), (96, 3 * predicted(96))], 3.0),
        # One that had to wait for others says little.
        ([(1, predicted(1)), (3, predicted(3)), (12, 40.0)], 1.0),
    ],
)
def test_the_pace_of_a_server(seen: list[tuple[int, float]], pace: float) -> None:
    assert pace_of(seen) == pytest.approx(pace)


# --- How a failed group goes on -------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "utils.dataset_manifest.errors.InvalidImageError: failed to parse image file '1-0.jpg'",
        'Can\'t find file "1-0.jpg" in the input files',
        "cannot identify image file '/home/django/data/data/7/raw/1-0.jpg'",
        "1-0.jpg became shorter while it was being read",
    ],
)
def test_who_is_named_goes_alone_and_the_others_together(message: str) -> None:
    assert parts_of(members(2, 1, 3), message) == [["r1"], ["r0", "r2"]]


@pytest.mark.parametrize(
    "message",
    [
        "out of memory",
        "",
        "failed to parse image file '1-9.jpg'",
        "failed to parse image file '11-0.jpg'",
        "failed on '1-0.jpg' and on '2-0.jpg'",
    ],
)
def test_where_nobody_is_named_it_goes_on_in_parts(message: str) -> None:
    assert parts_of(members(*[1] * 7), message) == [
        ["r0", "r1"],
        ["r2", "r3"],
        ["r4", "r5"],
        ["r6"],
    ]
    assert parts_of(members(1, 1), "?") == [["r0"], ["r1"]]


@given(st.integers(2, 60), st.data())
def test_splitting_finds_every_culprit_and_ends(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), max_size=5) | st.just(set(range(count))))
    named = data.draw(st.booleans())
    everyone = {member.request_id: member for member in members(*[1] * count)}
    groups, failed, ready, imports = [list(everyone)], set[str](), set[str](), 0
    while groups:
        group = groups.pop()
        imports += 1
        guilty = [each for each in group if int(each[1:]) in bad]
        if not guilty:
            ready.update(group)
        elif len(group) == 1:
            failed.update(group)
        else:
            name = everyone[guilty[0]].names[0]
            message = f"failed to parse image file '{name}'" if named else "?"
            parts = parts_of([everyone[each] for each in group], message)
            assert all(parts) and sorted(chain.from_iterable(parts)) == sorted(group)
            groups += parts
    assert failed == {f"r{number}" for number in bad} and len(ready) == count - len(bad)
    rounds = ((count - 1).bit_length() + 1) // 2
    most = 2 * len(bad) if named else min(4 * len(bad) * rounds, count * 5 / 3)
    assert imports <= 1 + most


@pytest.mark.parametrize("delivery", Delivery)
@pytest.mark.parametrize("fault", [None, *Fault])
@pytest.mark.parametrize("tasks_left", [0, 1])
@pytest.mark.parametrize("accepted", [False, True])
def test_a_group_is_split_where_a_request_alone_would_fail(
    delivery: Delivery, fault: Fault | None, tasks_left: int, accepted: bool
) -> None:
    alone, together = (
        next_step(delivery, fault, tasks_left=tasks_left, accepted=accepted, shared=shared)
        for shared in (False, True)
    )
    assert together is (Step.SPLIT if alone is Step.FAIL else alone)


# --- Whose jobs are whose -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "right"),
    [
        ([(0, 1), (2, 2), (3, 5)], True),
        ([(3, 5), (0, 1), (2, 2)], True),
        ([(0, 0), (1, 1), (2, 2), (3, 4), (5, 5)], True),
        ([(0, 5)], False),
        ([(0, 2), (3, 5)], False),
        ([(0, 1), (2, 2), (3, 4)], False),
        ([(0, 1), (2, 2), (3, 6)], False),
        ([(0, 1), (3, 5)], False),
        ([(0, 1), (2, 2), (2, 5)], False),
        ([], False),
    ],
)
def test_jobs_are_those_that_the_group_asked_for(
    ranges: list[tuple[int, int]], right: bool
) -> None:
    assert divided_as_asked(members(2, 1, 3), jobs(*ranges)) is right


def test_a_request_alone_may_be_divided_in_any_way() -> None:
    assert divided_as_asked(members(1), jobs((0, 49), (50, 99)))


def test_one_picture_is_looked_at_however_long_the_thread_stood_still() -> None:
    """Twenty threads that submit at the same time wait a tenth of a second for each other."""

    class Stalled(ManualClock):
        def monotonic(self) -> float:
            self.advance(1.0)
            return super().monotonic()

    one = build_upload([("a.gif", CONTENT)])
    two = build_upload([("a.gif", CONTENT), ("b.gif", CONTENT)])
    assert checked_key(TEMPLATE, one, Stalled()) is not None
    assert checked_key(TEMPLATE, two, Stalled()) is None
