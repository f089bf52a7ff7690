"""Requests that share an import: what gathers while the server is busy, and what each gets.

The daemon's services run one by one, on a scripted CVAT and a clock that the test moves.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import pytest
from support.hooked import completed, created
from support.scripted import ScriptedCvat
from support.stepped import (
    CANCELLED,
    CONTENT,
    FAILED,
    IMPORTING,
    QUEUED,
    READY,
    Start,
    Stepped,
    come_back,
    go_down,
    grouped,
    levels,
    uploads,
)
from support.waiting import PATIENCE

from pool.config.data_params import read_params
from pool.config.settings import Template
from pool.config.source import Upload
from pool.cvat.records import ImportState, ImportStatus
from pool.errors import CvatAmbiguous, CvatError, CvatNotFound, CvatRejected, QueueFull
from pool.maintenance.finalize import FIRST_PAUSE, MOST_TRIES, pause_after
from pool.maintenance.heartbeat import TERM
from pool.model import MOST_TASKS_SPOOLED, Hold, Outcome, RequestState, TaskState
from pool.requests.breaker import SERVER, TRANSIENT_CAP
from pool.requests.grouping import LONGEST_GATHERING
from pool.tracking.webhook_receiver import Effect, WebhookReceiver

UPLOADING = RequestState.UPLOADING
BAD = "InvalidImageError: failed to parse image file '{}'"


@pytest.fixture
def grouping(start: Start, template: Template, cvat: ScriptedCvat) -> Stepped:
    """A daemon with a full pool, on a server that has one worker for imports."""
    return filled(start(grouped(template)), cvat)


def filled(daemon: Stepped, cvat: ScriptedCvat) -> Stepped:
    daemon.fill()
    cvat.calls.clear()
    return daemon


def sent(cvat: ScriptedCvat) -> list[Upload]:
    return [call[2] for call in cvat.calls if call[0] == "upload"]


def sizes(cvat: ScriptedCvat) -> list[int]:
    """How many files each upload had."""
    return [len(upload.files) for upload in sent(cvat)]


def busy(daemon: Stepped) -> str:
    """A request that has gone at once, so that the server is busy with it."""
    request = daemon.accept(name="first.jpg")
    daemon.drain()
    assert daemon.states(request) == {IMPORTING}
    return request


def gathered(daemon: Stepped, count: int) -> list[str]:
    """Requests that have come while the server was busy, and whose group was sent."""
    busy(daemon)
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(count)]
    assert daemon.serve() == 0
    assert daemon.states(*requests) == {QUEUED}
    daemon.import_all()
    assert daemon.serve() == count
    return requests


def fail(daemon: Stepped, cvat: ScriptedCvat, *names: str, named: bool = True) -> None:
    """CVAT fails on these files until all that waits has ended; it makes jobs of all others."""
    for _ in range(99):
        under_way = daemon.store.tasks(states=(TaskState.IMPORTING,))
        if not under_way and not daemon.serve():
            return
        for task in daemon.store.tasks(states=(TaskState.IMPORTING,)):
            task_id = task.task_id or 0
            given = [file.name for call in cvat.calls if call[:2] == ("upload", task_id)
                     for file in call[2].files]  # fmt: skip
            bad = [name for name in given if name in names]
            if bad:
                cvat.fail_import(task_id, BAD.format(bad[0]) if named else "out of memory")
            else:
                cvat.make_ready(task_id)
        daemon.track()
    raise AssertionError("it does not end")


def shares(daemon: Stepped, requests: Sequence[str]) -> list[int | None]:
    return [daemon.read(each).task_id for each in requests]


# --- What people see ------------------------------------------------------------------------------


def test_a_status_says_what_waits_for_which_reason(grouping: Stepped, cvat: ScriptedCvat) -> None:
    def seen() -> tuple[int, str, int, int, tuple[int, ...]]:
        status = grouping.pool.status()
        (row,) = status.templates
        return row.queued, row.waits_for, status.places_used, row.places, row.group_sizes

    assert seen() == (0, "nothing", 0, 1, ())
    busy(grouping)
    for number in range(3):
        grouping.accept(name=f"{number}.jpg")
    grouping.serve()
    assert seen() == (3, "place", 1, 1, ())
    grouping.import_all()
    assert seen()[1:] == ("turn", 0, 1, (1,))
    grouping.serve()
    assert seen() == (0, "nothing", 1, 1, (1,))
    grouping.import_all()
    assert seen() == (0, "nothing", 0, 1, (1, 3))
    now = grouping.clock.now()
    grouping.store.hold(Hold(template=SERVER, code="c", reason="r", since=now, retry_at=None))
    grouping.accept(name="last.jpg", priority="bulk")
    assert seen()[:2] == (1, "hold")
    assert grouping.pool.status().templates[0].queued_bulk == 1


# --- Gathering ------------------------------------------------------------------------------------


def test_what_comes_while_the_server_is_busy_goes_into_the_next_import(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    requests = gathered(grouping, 3)
    assert grouping.states(*requests) == {IMPORTING}
    assert len(set(shares(grouping, requests))) == 1
    first, together = sent(cvat)
    assert (first.names, first.job_sizes) == (("first.jpg",), ())
    assert (together.names, together.job_sizes) == (("0.jpg", "1.jpg", "2.jpg"), (1, 1, 1))
    grouping.import_all()
    assert grouping.states(*requests) == {READY}
    task_id = grouping.read(requests[0]).task_id or 0
    jobs = [grouping.pool.request(each).jobs(timeout=0) for each in requests]
    assert [[(job.id, job.start_frame, job.stop_frame) for job in own] for own in jobs] == [
        [(task_id * 10 + place, place, place)] for place in range(3)
    ]


def test_nothing_waits_where_the_server_is_idle(grouping: Stepped, cvat: ScriptedCvat) -> None:
    for name in ("a.jpg", "b.jpg"):
        request = grouping.accept(name=name)
        assert grouping.read(request).outcome is Outcome.HIT
        grouping.drain()
        grouping.import_all()
        assert grouping.states(request) == {READY}
    assert sizes(cvat) == [1, 1]


def test_as_many_imports_are_under_way_as_the_server_has_workers(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = filled(start(grouped(template, concurrency=2), workers=4), cvat)
    requests = [daemon.accept(name="0.jpg")]
    daemon.drain()
    requests.append(daemon.accept(name="1.jpg"))
    daemon.advance(LONGEST_GATHERING)
    assert daemon.serve() == 1
    requests += [daemon.accept(name=f"{number}.jpg") for number in range(2, 5)]
    assert daemon.serve() == 0
    assert sizes(cvat) == [1, 1]
    task_id = daemon.read(requests[0]).task_id or 0
    cvat.make_ready(task_id)
    daemon.track(until=lambda: daemon.states(requests[0]) == {READY})
    assert daemon.serve() == 3
    assert sizes(cvat) == [1, 1, 3]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"group_requests": 2}, [1, 2, 2, 1]),
        ({"group_files": 3}, [1, 3, 2]),
        ({"group_bytes": 4 * len(CONTENT)}, [1, 4, 1]),
    ],
)
def test_a_group_has_limits(
    start: Start,
    template: Template,
    cvat: ScriptedCvat,
    limit: dict[str, int],
    expected: list[int],
) -> None:
    daemon = filled(start(grouped(template, **limit)), cvat)
    busy(daemon)
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(5)]
    fail(daemon, cvat)
    assert daemon.states(*requests) == {READY}
    assert sizes(cvat) == expected
    names = [name for upload in sent(cvat)[1:] for name in upload.names]
    assert names == [f"{number}.jpg" for number in range(5)], "the oldest first"


def test_files_of_one_name_are_told_apart(grouping: Stepped, cvat: ScriptedCvat) -> None:
    busy(grouping)
    requests = [grouping.accept(name="a.jpg") for _ in range(2)]
    grouping.import_all()
    grouping.serve()
    names = sent(cvat)[-1].names
    assert names[0] != names[1]
    importing = grouping.store.import_record(grouping.read(requests[0]).import_id or "")
    assert importing is not None
    members = [(member.request_id, member.files, member.names) for member in importing.members]
    assert members == [
        (request, ("a.jpg",), (name,)) for request, name in zip(requests, names, strict=True)
    ]


@pytest.mark.parametrize("params", ['{"image_quality": 50}', '{"frame_filter": "step=2"}'])
def test_other_data_parameters_are_another_import(
    grouping: Stepped, cvat: ScriptedCvat, params: str
) -> None:
    busy(grouping)
    alike = [grouping.accept(name=f"{number}.jpg") for number in range(2)]
    other = grouping.accept(name="x.jpg", params=params)
    fail(grouping, cvat)
    assert grouping.states(*alike, other) == {READY}
    assert sorted(upload.names for upload in sent(cvat)[1:]) == [("0.jpg", "1.jpg"), ("x.jpg",)]


def test_what_is_no_image_goes_alone_and_takes_no_place(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    busy(grouping)
    waits = grouping.accept(name="a.jpg")
    video = grouping.accept(name="a.mp4")
    assert grouping.serve() == 1
    assert (grouping.states(waits), grouping.states(video)) == ({QUEUED}, {IMPORTING})
    assert [upload.names for upload in sent(cvat)] == [("first.jpg",), ("a.mp4",)]


@pytest.mark.parametrize("door", ["HTTP", "TaskPool"])
def test_who_comes_later_takes_no_place_from_those_that_wait(
    start: Start, template: Template, cvat: ScriptedCvat, door: str
) -> None:
    scenes = grouped(template)
    other = replace(scenes, name="other", labels=({"name": "tram"},))
    daemon = filled(start(scenes, other), cvat)
    busy(daemon)
    waits = daemon.accept(name="waits.jpg")
    daemon.import_all()
    if door == "HTTP":
        later = daemon.accept("other", name="later.jpg")
    else:
        later = daemon.pool.submit("other", [("later.jpg", CONTENT)]).id
    assert daemon.states(waits, later) == {QUEUED}
    fail(daemon, cvat)
    assert [upload.names for upload in sent(cvat)[1:]] == [("waits.jpg",), ("later.jpg",)]


def test_templates_share_no_task_and_take_turns(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    scenes = grouped(template)
    other = replace(scenes, name="other", labels=({"name": "tram"},))
    daemon = filled(start(scenes, other), cvat)
    busy(daemon)
    requests = [
        daemon.accept(name_of, name=f"{number}.jpg")
        for number, name_of in enumerate(["scenes", "other"] * 2)
    ]
    fail(daemon, cvat)
    assert daemon.states(*requests) == {READY}
    assert [upload.names for upload in sent(cvat)[1:]] == [("0.jpg", "2.jpg"), ("1.jpg", "3.jpg")]


def test_a_delay_makes_larger_groups(start: Start, template: Template, cvat: ScriptedCvat) -> None:
    daemon = filled(start(grouped(template, group_delay=0.4)), cvat)
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(2)]
    assert daemon.serve() == 0
    daemon.advance(0.3)
    requests.append(daemon.accept(name="2.jpg"))
    assert daemon.serve() == 0 and not daemon.dispatcher.is_due()
    daemon.advance(0.2)
    assert daemon.dispatcher.is_due()
    assert daemon.serve() == 3
    assert sizes(cvat) == [3]


def test_a_full_group_does_not_wait(start: Start, template: Template, cvat: ScriptedCvat) -> None:
    daemon = filled(start(grouped(template, group_delay=60.0, group_requests=2)), cvat)
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(3)]
    assert daemon.serve() == 2
    assert daemon.states(requests[2]) == {QUEUED}


# --- Ahead of a place -----------------------------------------------------------------------------


def learned(daemon: Stepped, seconds: float) -> None:
    """An import has taken so long, so that the next one is expected to take as long."""
    request = daemon.accept(name="learned.jpg")
    daemon.drain()
    daemon.advance(seconds)
    daemon.import_all()
    assert daemon.states(request) == {READY}


def test_requests_that_come_together_share_the_second_place(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    """Also where nothing is known of the server: the first goes at once, all others together."""
    daemon = filled(start(grouped(template, concurrency=2), workers=4), cvat)
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(5)]
    daemon.drain()
    assert daemon.serve() == 0
    assert daemon.dispatcher.due_at is not None
    daemon.advance(daemon.dispatcher.due_at - daemon.clock.monotonic())
    assert daemon.serve() == 4
    assert daemon.states(*requests) == {IMPORTING}
    assert sizes(cvat) == [1, 4]


def test_an_upload_begins_before_a_place_is_free(grouping: Stepped, cvat: ScriptedCvat) -> None:
    learned(grouping, 60.0)
    first = busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(2)]
    grouping.advance(50.0)
    assert grouping.serve() == 0, "too early"
    requests.append(grouping.accept(name="2.jpg"))
    grouping.advance(10.0)
    assert grouping.dispatcher.is_due()
    assert grouping.serve() == 3
    assert grouping.states(first, *requests) == {IMPORTING}
    assert sizes(cvat)[-1] == 3
    assert grouping.store.grouped_imports() == 2


def test_one_group_alone_goes_ahead(grouping: Stepped, cvat: ScriptedCvat) -> None:
    learned(grouping, 4.0)
    first = busy(grouping)
    ahead = grouping.accept(name="ahead.jpg")
    grouping.advance(4.0)
    assert grouping.serve() == 1
    later = [grouping.accept(name=f"{number}.jpg") for number in range(2)]
    grouping.advance(20.0)
    assert grouping.serve() == 0
    cvat.make_ready(grouping.read(first).task_id or 0)
    grouping.track(until=lambda: grouping.states(first) == {READY})
    assert grouping.states(ahead) == {IMPORTING}
    grouping.advance(4.0)
    assert grouping.serve() == 2
    assert sizes(cvat)[-1] == 2
    fail(grouping, cvat)
    assert grouping.states(ahead, *later) == {READY}


def test_nothing_goes_ahead_where_nothing_is_known(grouping: Stepped, cvat: ScriptedCvat) -> None:
    busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(2)]
    grouping.advance(600.0)
    assert grouping.serve() == 0
    assert grouping.states(*requests) == {QUEUED}


# --- Tasks made on the spot -----------------------------------------------------------------------


def test_a_task_made_on_the_spot_is_for_all_that_wait_by_then(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = start(grouped(template))
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(2)]
    assert daemon.serve() == 0, "a task may become warm"

    def join(operation: str) -> None:
        if operation == "create_task":
            requests.append(daemon.accept(name="2.jpg"))

    cvat.before = join
    daemon.advance(template.pool.max_wait)
    daemon.serve()
    assert cvat.count("create_task") == 1
    assert [upload.names for upload in sent(cvat)] == [("0.jpg", "1.jpg", "2.jpg")]
    daemon.import_all()
    assert daemon.states(*requests) == {READY}
    assert {daemon.read(each).outcome for each in requests} == {Outcome.COLD}
    assert daemon.store.hand_outs()["scenes"] == {Outcome.COLD: 3}
    assert sum(each.total for each in daemon.store.demand("scenes", since=0)) == 1


def test_a_task_is_made_for_each_group_and_no_more(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    wanted = grouped(template, group_requests=2, concurrency=3)
    wanted = replace(wanted, pool=replace(wanted.pool, create_concurrency=3))
    daemon = start(wanted, workers=4)
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(4)]
    daemon.serve()
    all_begun, go = threading.Barrier(3), threading.Event()

    def hold(operation: str) -> None:
        if operation == "create_task":
            all_begun.wait(PATIENCE)
            assert go.wait(PATIENCE)

    cvat.before = hold
    daemon.advance(template.pool.max_wait)
    daemon.dispatcher.run_once()
    all_begun.wait(PATIENCE)
    daemon.dispatcher.run_once()
    go.set()
    daemon.drain()
    assert cvat.count("create_task") == 2
    assert sizes(cvat) == [2, 2]
    assert daemon.states(*requests) == {IMPORTING}


def test_one_that_leaves_while_its_task_is_made_leaves_it_to_the_others(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = start(grouped(template))
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(3)]
    daemon.serve()

    def leave(operation: str) -> None:
        if operation == "create_task":
            daemon.pool.request(requests[1]).cancel()

    cvat.before = leave
    daemon.advance(template.pool.max_wait)
    daemon.serve()
    fail(daemon, cvat)
    assert [daemon.read(each).state for each in requests] == [READY, CANCELLED, READY]
    assert sizes(cvat) == [2]


def test_a_refused_create_keeps_the_others_waiting(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = start(grouped(template))
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(3)]
    daemon.serve()
    go_down(cvat)
    daemon.advance(template.pool.max_wait)
    daemon.serve()
    assert daemon.states(*requests) == {QUEUED}
    come_back(cvat)
    daemon.advance(TRANSIENT_CAP + template.pool.max_wait)
    fail(daemon, cvat)
    assert daemon.states(*requests) == {READY}
    assert sum(sizes(cvat)) == 3


def test_a_task_that_becomes_warm_instead_is_for_all_that_wait(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    """Refilling has made one by the time that a worker has begun."""
    daemon = start(grouped(template))
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(3)]
    daemon.serve()
    daemon.advance(template.pool.max_wait)
    held = daemon.process.placement.held

    def refill(lease_id: str) -> Any:
        daemon.fill()
        return held(lease_id)

    with mock.patch.object(daemon.process.placement, "held", refill):
        daemon.serve()
    assert daemon.states(*requests) == {IMPORTING}
    assert sizes(cvat) == [3]


# --- Library callers ------------------------------------------------------------------------------


def test_library_callers_go_inline_while_there_is_a_place_and_else_together(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    inline = grouping.pool.submit("scenes", [("first.jpg", CONTENT)])
    assert inline.task_id is not None and not grouping.read(inline.id).spooled
    waiting = [grouping.pool.submit("scenes", [(f"{n}.jpg", CONTENT)]) for n in range(2)]
    assert [each.task_id for each in waiting] == [None, None]
    over_http = grouping.accept(name="http.jpg")
    alone = grouping.pool.submit("scenes", [("a.mp4", CONTENT)])
    assert alone.task_id is not None, "it takes no place"
    assert grouping.spooled() == sorted([*(each.id for each in waiting), over_http])
    assert grouping.serve() == 0
    fail(grouping, cvat)
    assert sent(cvat)[-1].names == ("0.jpg", "1.jpg", "http.jpg")
    jobs = [each.jobs(timeout=0)[0] for each in waiting]
    assert [(job.start_frame, job.stop_frame) for job in jobs] == [(0, 0), (1, 1)]
    assert waiting[0].task_id == waiting[1].task_id == grouping.read(over_http).task_id


def test_a_library_caller_is_refused_where_too_many_wait(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    daemon = filled(start(grouped(template), max_queued=1), cvat)
    busy(daemon)
    daemon.pool.submit("scenes", [("a.jpg", CONTENT)])
    with pytest.raises(QueueFull, match="1 requests wait"):
        daemon.pool.submit("scenes", [("b.jpg", CONTENT)])
    assert daemon.post(name="c.jpg").status == 429
    assert daemon.store.queue_length() == 1


# --- Tasks ----------------------------------------------------------------------------------------


def test_the_shared_task_says_how_many_share_it(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 3)
    grouping.import_all()
    grouping.process.settle(PATIENCE)
    named = {call[1]: call[2] for call in cvat.calls if call[0] == "rename_task"}
    first = grouping.read(requests[0])
    assert named[first.task_id] == "scenes: 0.jpg and 2 other requests"
    task = grouping.store.task(first.pooled_id or "")
    assert task is not None and task.name == named[first.task_id]


def test_each_job_goes_to_the_assignee_of_its_request(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    busy(grouping)
    wanted: list[dict[str, Any]] = [{"assignee": 7}, {}, {"assignee": 9}]
    requests = [grouping.accept(name=f"{n}.jpg", **each) for n, each in enumerate(wanted)]
    fail(grouping, cvat)
    grouping.process.settle(PATIENCE)
    jobs = [grouping.pool.request(each).jobs(timeout=0)[0].id for each in requests]
    assigned = {call[1]: call[2] for call in cvat.calls if call[0] == "assign_job"}
    assert assigned == {jobs[0]: 7, jobs[2]: 9}


def test_each_request_is_counted_and_the_demand_is_for_tasks(grouping: Stepped) -> None:
    requests = gathered(grouping, 3)
    grouping.import_all()
    assert {grouping.read(each).outcome for each in requests} == {Outcome.WAIT}
    assert grouping.store.hand_outs()["scenes"] == {Outcome.HIT: 1, Outcome.WAIT: 3}
    demand = grouping.store.demand("scenes", since=0)
    assert sum(each.total for each in demand) == 2


def test_no_more_tasks_are_made_than_the_requests_that_wait_can_share(
    start: Start, template: Template, cvat: ScriptedCvat
) -> None:
    small = grouped(template)
    daemon = filled(start(replace(small, pool=replace(small.pool, min_size=1))), cvat)
    busy(daemon)
    for number in range(6):
        daemon.accept(name=f"{number}.jpg")
    assert daemon.serve() == 0
    daemon.fill()
    # One for the only place, and one for the group after that.
    assert daemon.levels()["warm"] == 2


@pytest.mark.parametrize("on_empty", ["wait", "create", "fail"])
def test_a_request_that_waits_for_a_place_does_not_wait_for_a_task(
    start: Start, template: Template, cvat: ScriptedCvat, on_empty: Any
) -> None:
    wanted = grouped(template)
    wanted = replace(wanted, pool=replace(wanted.pool, on_empty=on_empty))
    daemon = filled(start(wanted), cvat)
    busy(daemon)
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(2)]
    daemon.serve()
    daemon.advance(10 * template.pool.max_wait)
    assert daemon.serve() == 0
    assert daemon.states(*requests) == {QUEUED}
    daemon.import_all()
    assert daemon.serve() == 2
    assert daemon.states(*requests) == {IMPORTING}
    assert cvat.count("create_task") == 0


@pytest.mark.parametrize("change", ["nobody waits any more", "nothing is grouped any more"])
def test_a_reload_while_requests_wait_for_a_place(
    start: Start, template: Template, cvat: ScriptedCvat, change: str
) -> None:
    wanted = grouped(template)
    daemon = filled(start(wanted), cvat)
    busy(daemon)
    requests = [daemon.accept(name=f"{number}.jpg") for number in range(2)]
    if change == "nobody waits any more":
        changed = replace(wanted, pool=replace(wanted.pool, on_empty="fail"))
    else:
        changed = replace(wanted, importing=replace(wanted.importing, grouping="off"))
    daemon.process.templates.replace({"scenes": changed})
    daemon.serve()
    fail(daemon, cvat)
    assert daemon.states(*requests) == {READY}
    assert sizes(cvat) == ([1, 2] if changed.importing.grouping == "auto" else [1, 1, 1])


def test_what_a_reload_has_numbered_otherwise_goes_alone(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    """Sent for a while with another sorting, in vain, and grouped after the next reload."""
    wanted = grouping.pool.settings.templates["scenes"]
    off = replace(wanted.importing, grouping="off")
    in_order = replace(wanted, data=read_params({"sorting_method": "predefined"}), importing=off)
    busy(grouping)
    with grouping.api as api:
        files = [("b.jpg", CONTENT), ("a.jpg", CONTENT)]
        numbered = str(api.submit(files, template="scenes").json["id"])
    grouping.process.templates.replace({"scenes": in_order})
    go_down(cvat)
    grouping.serve()
    come_back(cvat)
    grouping.advance(TRANSIENT_CAP + 1.0)
    assert [frame.number for frame in grouping.read(numbered).frames] == [0, 1]
    grouping.process.templates.replace({"scenes": wanted})
    others = [grouping.accept(name=f"{number}.jpg") for number in range(2)]
    fail(grouping, cvat)
    assert grouping.states(numbered, *others) == {READY}
    assert [frame.number for frame in grouping.read(numbered).frames] == [1, 0]
    sent_last = {upload.names for upload in sent(cvat)[-2:]}
    assert sent_last == {("b.jpg", "a.jpg"), ("0.jpg", "1.jpg")}


@pytest.mark.parametrize("data", [{"sorting_method": "natural"}, {"start_frame": 1}])
def test_what_a_reload_lets_share_no_task_goes_alone(
    grouping: Stepped, cvat: ScriptedCvat, data: dict[str, Any]
) -> None:
    busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(2)]
    wanted = grouping.pool.settings.templates["scenes"]
    grouping.process.templates.replace({"scenes": replace(wanted, data=read_params(data))})
    grouping.import_all()
    grouping.serve()
    fail(grouping, cvat)
    assert grouping.states(*requests) == {READY}
    assert sizes(cvat) == [1, 1, 1]


# --- Members that leave ---------------------------------------------------------------------------


def test_a_request_leaves_before_its_group_is_sealed_and_not_after(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    busy(grouping)
    leaves, stays, other = (grouping.accept(name=f"{number}.jpg") for number in range(3))
    with grouping.api as api:
        assert api.delete(f"/v1/requests/{leaves}").status in (200, 204)
    grouping.import_all()
    assert grouping.serve() == 2
    with grouping.api as api:
        assert api.delete(f"/v1/requests/{stays}").status == 409
    grouping.import_all()
    assert grouping.states(leaves) == {CANCELLED}
    assert grouping.states(stays, other) == {READY}
    assert sent(cvat)[-1].names == ("1.jpg", "2.jpg")


def test_a_member_whose_data_is_gone_fails_alone(grouping: Stepped) -> None:
    busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(3)]
    grouping.process.spool.drop(requests[1])
    grouping.import_all()
    grouping.serve()
    grouping.import_all()
    assert [grouping.read(each).state for each in requests] == [READY, FAILED, READY]
    assert grouping.read(requests[1]).error_code == "data-gone"


# --- Members that nobody wants any more -----------------------------------------------------------


def hide(daemon: Stepped, request_id: str) -> Any:
    with daemon.api as api:
        return api.delete(f"/v1/requests/{request_id}?hide=true")


def frames_of(daemon: Stepped, request_id: str) -> set[int]:
    return {frame.number or 0 for frame in daemon.read(request_id).frames}


def test_a_sealed_request_is_hidden_as_soon_as_its_frames_exist(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    requests = gathered(grouping, 4)
    unwanted = requests[1:3]
    for _ in range(2):
        for each in unwanted:
            answer = hide(grouping, each)
            assert (answer.status, answer.json["hidden"]) == (202, "pending")
    assert grouping.states(*requests) == {IMPORTING} and not cvat.hidden
    grouping.import_all()
    grouping.process.settle(PATIENCE)
    assert grouping.states(*requests) == {READY}
    task_id = grouping.read(requests[0]).task_id or 0
    assert cvat.hidden == {task_id: {1, 2}}
    hidden = [grouping.read(each).hidden for each in requests]
    assert hidden == [None, "done", "done", None]
    assert hide(grouping, unwanted[0]).json["hidden"] == "done"
    assert cvat.count("hide_frames") == 2


def test_a_request_that_is_ready_is_hidden_by_itself(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 2)
    grouping.import_all()
    request = grouping.pool.erase(requests[0])
    assert (request.state, request.task_id) == (READY, grouping.read(requests[1]).task_id)
    grouping.process.settle(PATIENCE)
    assert request.hidden == "done"
    assert cvat.hidden == {request.task_id: frames_of(grouping, requests[0])}
    grouping.run("delete")
    assert cvat.count("delete_task") == 0, "others have frames there"


def test_what_is_to_be_hidden_is_not_sent_again(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 4)
    hide(grouping, requests[2])
    fail(grouping, cvat, "1.jpg")
    states = [grouping.read(each).state for each in requests]
    assert states == [READY, FAILED, CANCELLED, READY]
    assert {upload.names for upload in sent(cvat)[2:]} == {("1.jpg",), ("0.jpg", "3.jpg")}
    assert grouping.read(requests[2]).hidden is None and not cvat.hidden
    assert hide(grouping, requests[2]).status == 204
    assert hide(grouping, requests[1]).status == 409, "it has no frames"


def test_hiding_is_tried_again_where_others_have_undone_it(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    """CVAT loses what was written while another call rewrote the task's list."""
    requests = gathered(grouping, 2)
    grouping.import_all()
    grouping.process.settle(PATIENCE)
    undone = [True]

    def undo(operation: str) -> None:
        if operation == "hidden_frames" and undone:
            undone.pop()
            cvat.hidden.clear()

    cvat.before = undo
    request = grouping.pool.erase(requests[1])
    grouping.process.settle(PATIENCE)
    assert request.hidden == "pending" and not cvat.hidden
    grouping.advance(FIRST_PAUSE)
    grouping.run("finalize")
    assert request.hidden == "done"
    assert cvat.hidden == {request.task_id: {1}}


@pytest.mark.parametrize("deleted", [True, False])
def test_hiding_has_an_end(grouping: Stepped, cvat: ScriptedCvat, deleted: bool) -> None:
    requests = gathered(grouping, 2)
    grouping.import_all()
    grouping.process.settle(PATIENCE)
    error: CvatError = CvatRejected("no", http_status=400)
    if deleted:
        error = CvatNotFound("gone", http_status=404)
    cvat.failures["hide_frames"] = [error] * 99
    request = grouping.pool.erase(requests[0])
    grouping.process.settle(PATIENCE)
    for _ in range(MOST_TRIES):
        grouping.advance(pause_after(MOST_TRIES))
        grouping.run("finalize")
    if deleted:
        assert (request.hidden, request.warnings) == ("done", ())
        return
    assert request.hidden is None
    assert [warning.code for warning in request.warnings] == ["not-hidden"]
    cvat.failures.clear()
    grouping.pool.erase(request.id)
    grouping.process.settle(PATIENCE)
    assert request.hidden == "done"


# --- One bad input sinks nobody else --------------------------------------------------------------


@pytest.mark.parametrize(("named", "extra"), [(True, 2), (False, 6)])
def test_one_bad_file_fails_its_request_alone(
    grouping: Stepped, cvat: ScriptedCvat, named: bool, extra: int
) -> None:
    requests = gathered(grouping, 8)
    fail(grouping, cvat, "5.jpg", named=named)
    states = [grouping.read(each).state for each in requests]
    assert states == [FAILED if number == 5 else READY for number in range(8)]
    failed = grouping.read(requests[5])
    assert failed.error_code == "import-failed"
    assert failed.error == (BAD.format("5.jpg") if named else "out of memory")
    assert len(sizes(cvat)) == 2 + extra
    assert {grouping.read(each).imports_used for each in requests} == {0}
    grouping.process.settle(PATIENCE)
    assert grouping.spooled() == []


def test_each_of_several_bad_files_is_found(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 6)
    fail(grouping, cvat, "1.jpg", "4.jpg")
    states = [grouping.read(each).state for each in requests]
    assert states == [FAILED if number in (1, 4) else READY for number in range(6)]


def test_tasks_that_a_split_has_burnt_are_deleted(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 3)
    burnt = grouping.read(requests[0]).task_id
    fail(grouping, cvat, "1.jpg")
    grouping.run("delete")
    deleted = [call[1] for call in cvat.calls if call[0] == "delete_task"]
    assert burnt in deleted and len(deleted) == 2, "that of the group and that of the culprit"


def test_a_shared_task_that_is_ready_stays(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 3)
    grouping.import_all()
    shared = grouping.read(requests[0]).task_id or 0
    grouping.pool.drain("scenes")
    grouping.process.templates.replace({})
    grouping.advance(7 * 86400.0)
    grouping.run("reconcile", "retirement", "delete", "cleanup")
    deleted = {call[1] for call in cvat.calls if call[0] == "delete_task"}
    assert deleted and shared not in deleted


def test_each_request_of_a_task_that_people_delete_hears_of_it_once(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    requests = gathered(grouping, 3)
    task_id = grouping.read(requests[0]).task_id or 0
    del cvat.tasks_there[task_id]
    cvat.states[task_id] = ImportState(status=ImportStatus.TASK_GONE)
    uploaded = len(sent(cvat))
    grouping.track()
    for _ in range(2):
        grouping.serve()
        grouping.run("adopt", "reconcile", "delete")
    assert {(grouping.read(each).state, grouping.read(each).error_code) for each in requests} == {
        (FAILED, "task-gone")
    }
    assert len(sent(cvat)) == uploaded
    events = grouping.store.events_after(0, limit=999, kinds=["request.failed"])
    assert sorted(event.request_id or "" for event in events) == sorted(requests)


def test_parts_do_not_mix_with_what_comes_later(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 2)
    cvat.fail_import(grouping.read(requests[0]).task_id or 0, BAD.format("0.jpg"))
    grouping.track()
    assert grouping.states(*requests) == {QUEUED}
    later = grouping.accept(name="later.jpg")
    fail(grouping, cvat, "0.jpg")
    assert grouping.states(requests[1], later) == {READY}
    assert grouping.states(requests[0]) == {FAILED}
    assert [upload.names for upload in sent(cvat)[2:]] == [("0.jpg",), ("1.jpg",), ("later.jpg",)]


def test_jobs_that_are_not_as_asked_are_nobodys(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 2)
    task_id = grouping.read(requests[0]).task_id or 0
    cvat._divided[task_id] = (2,)
    cvat.make_ready(task_id)
    grouping.track()
    assert grouping.states(*requests) == {QUEUED}
    fail(grouping, cvat)
    assert grouping.states(*requests) == {READY}
    assert sizes(cvat)[-2:] == [1, 1]


def test_a_group_that_does_not_end_holds_no_place_and_fails_one_request_only(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    """The import of one request hangs, with whatever it is imported."""
    requests = gathered(grouping, 3)
    task_id = grouping.read(requests[0]).task_id or 0
    cvat.states[task_id] = ImportState(status=ImportStatus.STARTED)
    waits = grouping.accept(name="waits.jpg")
    grouping.track()
    assert grouping.states(*requests, waits) == {QUEUED}
    # None of the three takes a place, so that all can be sent at once.
    assert grouping.serve() == 4
    hangs, *others = (grouping.read(each).task_id or 0 for each in (*requests, waits))
    cvat.states[hangs] = ImportState(status=ImportStatus.STARTED)
    for each in others:
        cvat.make_ready(each)
    grouping.track()
    assert [grouping.read(each).state for each in (*requests, waits)] == [FAILED, *[READY] * 3]
    assert grouping.read(requests[0]).error_code == "import-timed-out"
    assert sizes(cvat) == [1, 3, 1, 1, 1, 1]
    grouping.run("delete")
    assert {task_id, hangs} <= {call[1] for call in cvat.calls if call[0] == "delete_task"}


def test_a_group_that_cvat_loses_time_and_again_goes_on_in_parts(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    """CVAT knows of no import; its members go on together, until they have used up their tries."""
    requests = gathered(grouping, 2)
    for _ in range(MOST_TASKS_SPOOLED):
        grouping.track()
        assert grouping.states(*requests) == {QUEUED}
        grouping.serve()
    assert {grouping.read(each).imports_used for each in requests} == {MOST_TASKS_SPOOLED - 1}
    fail(grouping, cvat)
    assert grouping.states(*requests) == {READY}
    assert sizes(cvat) == [1, *[2] * MOST_TASKS_SPOOLED, 1, 1]


def test_a_lease_that_has_ended_fails_no_group_in_its_task(
    grouping: Stepped, cvat: ScriptedCvat
) -> None:
    first = busy(grouping)
    lease = grouping.pool.acquire("scenes")
    grouping.run("leases")
    # Another process does.
    assert grouping.store.give_back(lease.id, now=grouping.process.clock.now())
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(3)]
    cvat.make_ready(grouping.read(first).task_id or 0)
    grouping.track(until=lambda: grouping.states(first) == {READY})
    grouping.advance(2.0)

    def fail_at_once(operation: str) -> None:
        """CVAT says that it fails before it has answered the upload."""
        if operation == "upload":
            cvat.states[lease.task_id] = ImportState(status=ImportStatus.FAILED, message="no")
            grouping.process.tracker.run_once()
            del cvat.states[lease.task_id]

    cvat.before = fail_at_once
    grouping.serve()
    assert {grouping.read(each).task_id for each in requests} == {lease.task_id}
    grouping.import_all()
    assert grouping.states(*requests) == {READY}


def test_a_refused_upload_is_split(grouping: Stepped, cvat: ScriptedCvat) -> None:
    busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(3)]
    cvat.failures["upload"] = [CvatRejected("no room for the name", http_status=400)]
    grouping.import_all()
    fail(grouping, cvat)
    assert grouping.states(*requests) == {READY}
    assert {grouping.read(each).imports_used for each in requests} == {0}


def test_hooks_of_a_group_cause_one_listing(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 3)
    task_id = grouping.read(requests[0]).task_id or 0
    process = grouping.process
    receiver = WebhookReceiver(
        process.store, process.tracker, process.templates, cvat.job_url, clock=grouping.clock
    )
    cvat.make_ready(task_id)
    cvat.calls.clear()
    for _ in requests[1:]:
        assert receiver.handle(created(task_id)) is Effect.EXPEDITED
    process.tracker.run_once()
    assert receiver.handle(created(task_id)) is Effect.IGNORED
    grouping.track()
    assert grouping.states(*requests) == {READY}
    assert cvat.count("jobs") == 1


def test_a_hook_of_a_failure_splits_the_group(grouping: Stepped, cvat: ScriptedCvat) -> None:
    requests = gathered(grouping, 3)
    task_id = grouping.read(requests[0]).task_id or 0
    process = grouping.process
    receiver = WebhookReceiver(
        process.store, process.tracker, process.templates, cvat.job_url, clock=grouping.clock
    )
    receiver.handle(completed(task_id, "failed", BAD.format("2.jpg")))
    assert grouping.states(*requests) == {QUEUED}
    fail(grouping, cvat, "2.jpg")
    assert [grouping.read(each).state for each in requests] == [READY, READY, FAILED]


# --- The server is away, or processes die ---------------------------------------------------------


def test_a_group_waits_together_while_cvat_is_away(grouping: Stepped, cvat: ScriptedCvat) -> None:
    busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(3)]
    grouping.import_all()
    go_down(cvat)
    grouping.serve()
    assert grouping.states(*requests) == {QUEUED}
    warm = levels(grouping.store)["warm"]
    come_back(cvat)
    grouping.advance(TRANSIENT_CAP + 1.0)
    fail(grouping, cvat)
    assert grouping.states(*requests) == {READY}
    assert levels(grouping.store)["warm"] == warm - 1
    assert sizes(cvat) == [1, 3, 3]


@pytest.mark.parametrize("arrived", [True, False])
def test_a_lost_answer_is_settled_as_for_one(
    grouping: Stepped, cvat: ScriptedCvat, arrived: bool
) -> None:
    busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(2)]
    grouping.import_all()
    cvat.failures["upload"] = [CvatAmbiguous("cut")]

    def arrive(operation: str) -> None:
        if operation == "upload" and arrived:
            cvat.states[uploads(cvat)[-1]] = ImportState(status=ImportStatus.STARTED)

    cvat.before = arrive
    grouping.serve()
    assert grouping.states(*requests) == {IMPORTING if arrived else QUEUED}
    grouping.advance(TRANSIENT_CAP + 1.0)
    fail(grouping, cvat)
    assert grouping.states(*requests) == {READY}
    assert len(uploads(cvat)) == len(set(uploads(cvat))), "no task has data twice"
    # One goes alone, to see whether CVAT takes data again.
    assert sizes(cvat) == [1, 2] if arrived else [1, 2, 1, 1]


def left_in_the_upload(daemon: Stepped, start: Start, cvat: ScriptedCvat) -> Stepped:
    """The daemon dies while it sends, and the next one takes its term over."""
    cvat.failures["upload"] = [cast(Any, MemoryError("killed"))]
    daemon.import_all()
    daemon.serve()
    daemon.process.heartbeat.stop()
    heir = start(*daemon.pool.settings.templates.values())
    heir.advance(TERM + 1.0)
    heir.run("reconcile", "adopt")
    return heir


def test_a_group_whose_daemon_died_gets_another_task(
    grouping: Stepped, start: Start, cvat: ScriptedCvat
) -> None:
    busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(3)]
    heir = left_in_the_upload(grouping, start, cvat)
    assert heir.states(*requests) == {UPLOADING}
    sealed = heir.read(requests[0]).import_id
    heir.serve()
    assert heir.states(*requests) == {IMPORTING}
    assert len(set(shares(heir, requests))) == 1
    assert heir.read(requests[0]).import_id != sealed
    assert {heir.read(each).imports_used for each in requests} == {1}
    heir.import_all()
    assert heir.states(*requests) == {READY}
    assert sizes(cvat)[-2:] == [3, 3]


def test_who_kills_its_daemon_does_not_take_the_others_along(
    grouping: Stepped, start: Start, cvat: ScriptedCvat
) -> None:
    """One that has used up nearly all of its tries, and others that have come since."""
    busy(grouping)
    requests = [grouping.accept(name=f"{number}.jpg") for number in range(4)]
    daemon = grouping
    for _ in range(MOST_TASKS_SPOOLED):
        daemon = left_in_the_upload(daemon, start, cvat)
        daemon.dispatcher.run_once()
        daemon.drain()
    fail(daemon, cvat)
    assert daemon.states(*requests) == {READY}


def test_a_group_that_is_being_imported_is_adopted_as_a_whole(
    grouping: Stepped, start: Start, cvat: ScriptedCvat
) -> None:
    requests = gathered(grouping, 3)
    heir = start(*grouping.pool.settings.templates.values())
    heir.advance(TERM + 1.0)
    heir.run("adopt")
    assert {heir.read(each).owner for each in requests} == {heir.process.owner}
    waits = heir.accept(name="later.jpg")
    assert heir.serve() == 0, "it has the only place"
    heir.import_all()
    assert heir.states(*requests) == {READY}
    heir.serve()
    assert heir.states(waits) == {IMPORTING}
    assert sizes(cvat) == [1, 3, 1]
