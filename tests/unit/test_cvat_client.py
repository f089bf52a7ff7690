"""Listings, and answers that a real server gives too rarely for the contract suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pool import errors
from pool.config.settings import CvatSettings
from pool.cvat import AccessTokenCredentials, CvatClient, ImportState, ImportStatus
from pool.cvat import client as client_module
from pool.model import Job
from unit.cvat_stub import Reply, Seen, StubServer

Query = dict[str, str]


@pytest.fixture
def client(server: StubServer) -> Iterator[CvatClient]:
    with CvatClient(CvatSettings(url=server.url), AccessTokenCredentials("x")) as client:
        yield client


def query(seen: Seen) -> Query:
    return {key: values[0] for key, values in parse_qs(urlsplit(seen.path).query).items()}


def page(*results: Any, count: int, more: bool = False) -> Reply:
    # As it would be behind a proxy that the server knows nothing of.
    following = "http://inner.test/api/jobs?page=2" if more else None
    return Reply(data={"count": count, "next": following, "results": list(results)})


def job(job_id: int, task_id: int = 1, kind: str = "annotation", **fields: Any) -> dict[str, Any]:
    frames = {"start_frame": 0, "stop_frame": 1}
    return {"id": job_id, "task_id": task_id, "type": kind, **frames, **fields}


def ids(found: dict[int, tuple[Job, ...]]) -> dict[int, list[int]]:
    return {task_id: [job.id for job in jobs] for task_id, jobs in found.items()}


def test_pages_are_followed_on_the_same_host(server: StubServer, client: CvatClient) -> None:
    pages = iter([page(job(1), count=2, more=True), page(job(2, 2), count=2)])
    server.answer = lambda _: next(pages)
    assert ids(client.jobs([1, 2])) == {1: [1], 2: [2]}
    first, second = map(query, server.seen)
    assert first == {
        "filter": '{"in":[{"var":"task_id"},[1,2]]}',
        "page_size": "500",
        "sort": "id",
    }
    assert second == {**first, "page": "2"}


def test_one_task_is_asked_for_without_a_filter(server: StubServer, client: CvatClient) -> None:
    server.answer = lambda _: page(count=0)
    assert client.jobs([7, 7]) == {}
    assert query(server.seen[0])["task_id"] == "7"


def test_a_listing_that_changes_meanwhile_is_begun_again(
    server: StubServer, client: CvatClient
) -> None:
    pages = iter(
        [
            page(job(1), job(2), count=4, more=True),
            # Job 1 was deleted, so that job 3 moved to the first page.
            page(job(4), count=3),
            page(job(2), job(3), count=3, more=True),
            page(job(4), count=3),
        ]
    )
    server.answer = lambda _: next(pages)
    assert ids(client.jobs([1])) == {1: [2, 3, 4]}


def test_a_page_that_is_gone_begins_the_listing_again(
    server: StubServer, client: CvatClient
) -> None:
    gone = Reply(status=404, data={"detail": "Invalid page."})
    pages = iter([page(job(1), job(2), count=3, more=True), gone, page(job(2), count=1)])
    server.answer = lambda _: next(pages)
    assert ids(client.jobs([1])) == {1: [2]}


def test_a_listing_that_never_holds_still_is_not_taken_for_complete(
    server: StubServer, client: CvatClient
) -> None:
    counts = iter(range(100))
    server.answer = lambda seen: page(
        job(1), count=next(counts), more=query(seen).get("page") is None
    )
    with pytest.raises(errors.CvatBusy, match="changed between two pages"):
        client.jobs([1])
    assert len(server.seen) == 6


def test_jobs_of_many_tasks_that_change_are_listed_for_fewer(
    server: StubServer, client: CvatClient
) -> None:
    counts = iter(range(100))

    def answer(seen: Seen) -> Reply:
        asked = query(seen)
        if "filter" in asked:
            return page(job(1), count=next(counts), more="page" not in asked)
        task_id = int(asked["task_id"])
        return page(job(2 * task_id, task_id), job(2 * task_id + 1, task_id), count=2)

    server.answer = answer
    assert ids(client.jobs([1, 2, 3])) == {n: [2 * n, 2 * n + 1] for n in (1, 2, 3)}


def test_ids_are_asked_for_in_batches(server: StubServer, client: CvatClient) -> None:
    server.answer = lambda _: page(count=0)
    client.tasks(range(10_000_000, 10_001_200))
    asked = [query(seen)["filter"].count(",") for seen in server.seen]
    assert asked == [500, 500, 200]
    assert max(len(seen.path) for seen in server.seen) < 8000


def test_which_jobs_are_for_annotation(server: StubServer, client: CvatClient) -> None:
    server.answer = lambda _: page(
        job(1, assignee={"id": 2, "username": "worker"}),
        job(2, kind="ground_truth"),
        job(3, kind="consensus_replica", parent_job_id=1),
        count=3,
    )
    found = client.jobs([1])[1]
    assert [(job.id, job.assignee) for job in found] == [(1, "worker"), (3, None)]
    assert found[0].url == f"{server.url}/tasks/1/jobs/1"


def test_an_answer_that_lacks_what_is_needed(server: StubServer, client: CvatClient) -> None:
    server.answer = lambda _: page({"id": 1, "task_id": 1}, count=1)
    with pytest.raises(errors.CvatError, match=r"not what CVAT is known to send.*start_frame"):
        client.jobs([1])


def test_marks_are_quoted(server: StubServer, client: CvatClient) -> None:
    server.answer = lambda _: page(count=0)
    client.marked_tasks('[cvat-pool "a&b" ü]')
    assert query(server.seen[0])["filter"] == '{"in":["[cvat-pool \\"a&b\\" ü]",{"var":"name"}]}'


def test_tasks_of_another_name_are_left_out(server: StubServer, client: CvatClient) -> None:
    server.answer = lambda _: page({"id": 1, "name": "X"}, {"id": 2, "name": "x"}, count=2)
    assert [task.id for task in client.find_tasks("x")] == [2]


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply(data={"status": "queued"}), ImportStatus.QUEUED),
        (Reply(data={"status": "started", "message": None}), ImportStatus.STARTED),
        (Reply(status=404, text="There is no request", kind="text/html"), ImportStatus.UNKNOWN),
        (
            Reply(status=400, data=["Task matching query does not exist."]),
            ImportStatus.TASK_GONE,
        ),
    ],
)
def test_states_of_an_import(
    server: StubServer, client: CvatClient, reply: Reply, status: ImportStatus
) -> None:
    server.answer = lambda _: reply
    assert client.import_state(7) == ImportState(status=status)
    assert server.paths() == ["/api/requests/action=create&target=task&target_id=7"]


def test_the_times_of_an_import(server: StubServer, client: CvatClient) -> None:
    dates = {
        "created_date": "2026-11-27T10:00:00.250000Z",
        "started_date": "2026-11-27T10:00:00.500000Z",
    }
    server.answer = lambda _: Reply(data={"finished_date": None, "status": "started", **dates})
    begun = client.import_state(7)
    assert (begun.queued_for, begun.ran_for) == (0.25, None)
    dates["finished_date"] = "2026-11-27T10:00:02Z"
    assert client.import_state(7).ran_for == 1.5


def test_the_message_of_a_failed_import(server: StubServer, client: CvatClient) -> None:
    server.answer = lambda _: Reply(data={"status": "failed", "message": "ValueError: no\n"})
    state = client.import_state(7)
    assert state == ImportState(status=ImportStatus.FAILED, message="ValueError: no")


@pytest.mark.parametrize(
    ("call", "reply", "kind"),
    [
        (
            lambda client: client.import_state(7),
            Reply(status=400, data=["You cannot specify both"]),
            errors.CvatRejected,
        ),
        (
            lambda client: client.import_state(7),
            Reply(status=404, data={"detail": "x organization does not exist."}),
            errors.CvatNotFound,
        ),
        (
            lambda client: client.import_state(7),
            Reply(data={"status": "a new one"}),
            errors.CvatError,
        ),
        (
            lambda client: client.delete_task(7),
            Reply(status=404, text="<html>", kind="text/html"),
            errors.CvatNotFound,
        ),
        (
            lambda client: client.jobs([7]),
            Reply(status=404, data={"detail": "x organization does not exist."}),
            errors.CvatNotFound,
        ),
        (
            lambda client: client.access_token(),
            Reply(status=404, data={"detail": "x organization does not exist."}),
            errors.CvatNotFound,
        ),
    ],
)
def test_answers_that_do_not_mean_what_their_status_does(
    server: StubServer,
    client: CvatClient,
    call: Callable[[CvatClient], object],
    reply: Reply,
    kind: type[errors.CvatError],
) -> None:
    server.answer = lambda _: reply
    with pytest.raises(errors.CvatError) as raised:
        call(client)
    assert type(raised.value) is kind


def test_servers_without_access_tokens(server: StubServer, client: CvatClient) -> None:
    server.answer = lambda _: Reply(status=404, text="<html>", kind="text/html")
    assert client.access_token() is None


def test_connecting_takes_the_credentials_from_the_environment(server: StubServer) -> None:
    server.answer = lambda _: Reply(data={"id": 1, "username": "bot"})
    calls: list[str] = []
    settings = CvatSettings(url=server.url)
    environ = {"CVAT_ACCESS_TOKEN": "abc"}
    with client_module.connect(
        settings, environ, on_call=lambda operation, *_: calls.append(operation)
    ) as client:
        client.whoami()
    assert server.seen[0].headers["Authorization"] == "Bearer abc"
    assert calls == ["whoami"]


# --- One task, and how old it is ---------------------------------------------------------------


def test_the_age_is_by_the_servers_clock_on_both_sides(
    server: StubServer, client: CvatClient
) -> None:
    task = {"id": 3, "name": "n", "created_date": "2001-02-03T04:05:06.5Z"}
    date = {"Date": "Sat, 03 Feb 2001 04:06:06 GMT"}
    server.answer = lambda _: Reply(data=page(task, count=1).data, headers=dict(date))
    assert client.tasks([3])[3].age == pytest.approx(59.5)
    server.answer = lambda _: Reply(data=task, headers=dict(date))
    one = client.task(3)
    assert one is not None
    assert one.age == pytest.approx(59.5)
    server.answer = lambda _: Reply(data={"id": 3, "name": "n"})
    one = client.task(3)
    assert one is not None
    assert one.age is None


def test_a_task_that_is_gone_is_told_from_one_we_may_not_see(
    server: StubServer, client: CvatClient
) -> None:
    server.answer = lambda _: Reply(404, {"detail": "No Task matches the given query."})
    assert client.task(3) is None
    server.answer = lambda _: Reply(403, {"detail": "You do not have permission."})
    with pytest.raises(errors.CvatForbidden):
        client.task(3)
    server.answer = lambda _: Reply(404, text="<h1>not found</h1>", kind="text/html")
    with pytest.raises(errors.CvatNotFound):
        client.task(3)
