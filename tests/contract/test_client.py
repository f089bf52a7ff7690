"""Every operation of the client but those on data, against the simulator and a real CVAT alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from contract.uploads import UNKNOWN_ID, images, send
from pool import errors
from pool.cvat import (
    AccessTokenCredentials,
    CvatClient,
    ImportState,
    ImportStatus,
    listing,
)
from pool.model import Job

if TYPE_CHECKING:
    from contract.conftest import Maker, Server

Connect = Callable[..., CvatClient]
WaitForJobs = Callable[[int], tuple[Job, ...]]
WaitForFailure = Callable[[int], ImportState]

# --- The server and who we are to it -----------------------------------------------------------


def test_about(client: CvatClient) -> None:
    info = client.about()
    assert info.name
    assert info.version.count(".") >= 1


def test_whoami(client: CvatClient) -> None:
    user = client.whoami()
    assert user.id > 0
    assert user.username


def test_access_token_tells_whether_it_may_write(
    server: Server, client: CvatClient, connected: Connect
) -> None:
    token = client.access_token()
    assert token is not None
    assert token.read_only is False
    if server.readonly_token is None:
        pytest.skip("there is no read-only token")
    token = connected(AccessTokenCredentials(server.readonly_token)).access_token()
    assert token is not None
    assert token.read_only is True


def test_a_read_only_token_reads_but_does_not_create(server: Server, connected: Connect) -> None:
    if server.readonly_token is None:
        pytest.skip("there is no read-only token")
    reader = connected(AccessTokenCredentials(server.readonly_token))
    assert reader.find_tasks(f"{server.mark} nothing") == []
    with pytest.raises(errors.CvatForbidden, match="may be read-only"):
        reader.create_task({"labels": []}, f"{server.mark} refused")


def test_an_unknown_token_is_refused(connected: Connect) -> None:
    stranger = connected(AccessTokenCredentials("abcdefgh.0123456789"))
    with pytest.raises(errors.CvatRefusedCredentials, match="HTTP 401"):
        stranger.whoami()


def test_a_password_logs_in_and_may_write(server: Server, connected: Connect) -> None:
    if server.password is None:
        pytest.skip("there is no password")
    client = connected(server.password)
    client.warm_up(2)
    assert client.access_token() is None
    task_id = client.create_task({"labels": []}, f"{server.mark} by password")
    assert client.delete_task(task_id)


def test_a_wrong_password_is_refused(server: Server, connected: Connect) -> None:
    if server.password is None:
        pytest.skip("there is no password")
    client = connected(type(server.password)(server.password.username, "wrong"))
    with pytest.raises(errors.CvatRefusedCredentials, match="Unable to log in"):
        client.whoami()


def test_an_unknown_organization(connected: Connect, make_task: Maker) -> None:
    client = connected(organization="no-such-org")
    task_id = make_task()
    for call in (
        client.whoami,
        client.access_token,
        lambda: client.jobs([task_id]),
        lambda: client.tasks([task_id]),
        lambda: client.create_task({"labels": []}, "x"),
        lambda: client.rename_task(task_id, "x"),
        lambda: client.prepare_upload(task_id),
        lambda: send(client, task_id, images("a.jpg")),
        lambda: client.delete_task(task_id),
    ):
        with pytest.raises(errors.CvatNotFound, match=r"check cvat\.organization"):
            call()


def test_warming_up(client: CvatClient) -> None:
    client.warm_up(3)
    assert client.whoami().id > 0


# --- Tasks -------------------------------------------------------------------------------------


def test_a_new_task_is_empty(client: CvatClient, make_task: Maker) -> None:
    task_id = make_task("new")
    task = client.tasks([task_id])[task_id]
    assert task.id == task_id
    assert task.name == make_task.name("new")
    assert task.empty
    assert not task.has_data
    assert task.project_id is None
    assert task.organization_id is None
    assert client.jobs([task_id]) == {}
    assert client.import_state(task_id) == ImportState(status=ImportStatus.UNKNOWN)


def test_a_prepared_task_is_empty_but_has_a_data_row(client: CvatClient, make_task: Maker) -> None:
    task_id = make_task()
    client.prepare_upload(task_id)
    client.prepare_upload(task_id)
    task = client.tasks([task_id])[task_id]
    assert task.empty
    assert task.has_data
    assert client.import_state(task_id).status is ImportStatus.UNKNOWN


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"labels": [{"name": "a"}, {"name": "a"}]}, "must be unique"),
        ({"labels": [{"name": "a", "type": "blob"}]}, "labels: type: .*not a valid choice"),
        ({"project_id": UNKNOWN_ID}, "Project matching query does not exist"),
    ],
)
def test_a_task_that_cannot_be_created(
    make_task: Maker, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(errors.CvatRejected, match=words):
        make_task("rejected", **fields)


def test_a_task_in_a_project(client: CvatClient, make_task: Maker) -> None:
    fields = {"name": make_task.name("project"), "labels": [{"name": "car"}]}
    project = client._transport.call("project", "POST", "/api/projects", data=fields).json()["id"]
    try:
        task_id = make_task("in a project", project_id=project)
        assert client.tasks([task_id])[task_id].project_id == project
        with pytest.raises(errors.CvatRejected, match="only one of Label set or project"):
            make_task("both", project_id=project, labels=[{"name": "a"}])
    finally:
        client._transport.call("project", "DELETE", f"/api/projects/{project}")


def test_an_unknown_assignee_is_the_servers_own_failure(make_task: Maker) -> None:
    with pytest.raises(errors.CvatBusy) as raised:
        make_task("assigned", labels=[], assignee_id=UNKNOWN_ID)
    assert raised.value.http_status == 500


def test_tasks_are_found_by_their_exact_name(client: CvatClient, make_task: Maker) -> None:
    first, second = make_task("name & co"), make_task("name & co")
    make_task("name & company")
    found = client.find_tasks(make_task.name("name & co"))
    assert [task.id for task in found] == [first, second]
    assert client.find_tasks(make_task.name("name")) == []


def test_marked_tasks_are_found_over_all_pages(
    client: CvatClient, make_task: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_PAGE_SIZE", 2)
    mark = make_task.name('[pool "1"]')
    made = [make_task(f'[pool "1"] {number}') for number in range(5)]
    make_task("[pool 1]")
    assert [task.id for task in client.marked_tasks(mark)] == made


def test_only_tasks_that_exist_are_told_of(client: CvatClient, make_task: Maker) -> None:
    made = [make_task(), make_task()]
    asked = [*made, *range(UNKNOWN_ID, UNKNOWN_ID + 1000)]
    assert sorted(client.tasks(asked)) == made
    assert client.tasks([UNKNOWN_ID]) == {}
    assert client.tasks([]) == {}


def test_rename(client: CvatClient, make_task: Maker) -> None:
    task_id = make_task("before")
    client.rename_task(task_id, make_task.name("after"))
    assert client.tasks([task_id])[task_id].name == make_task.name("after")


def test_a_task_that_is_gone(client: CvatClient, make_task: Maker) -> None:
    task_id = make_task()
    assert client.delete_task(task_id) is True
    assert client.delete_task(task_id) is False
    assert client.tasks([task_id]) == {}
    assert client.jobs([task_id]) == {}
    for call in (
        lambda: client.rename_task(task_id, "x"),
        lambda: client.prepare_upload(task_id),
        lambda: send(client, task_id, images("a.jpg")),
    ):
        with pytest.raises(errors.CvatNotFound):
            call()
