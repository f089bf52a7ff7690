"""The lists of the page: requests, leases and streams, and what can be done with them."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from browser.scripted_daemon import (
    LONG_NAME,
    ScriptedDaemon,
    in_seconds,
    lease_of,
    request_of,
    status_of,
    stream_of,
)
from browser.seen import NewPage, Watched, assert_accessible
from pool.clock import rfc3339

FAILED = {"code": "import-failed", "title": "CVAT could not import the data", "status": 422}
JOBS = [
    {
        "id": 700 + n,
        "url": f"https://cvat.example.com/tasks/1/jobs/{700 + n}",
        "start_frame": n,
        "stop_frame": n,
        "assignee": None,
    }
    for n in range(5)
]


def rows(page: Page) -> Any:
    return page.locator("#requests tbody tr")


def searches(daemon: ScriptedDaemon) -> list[str]:
    """What the list has asked for, as its queries."""
    asked = [each.partition("?")[2] for each in daemon.asked if "GET /v1/requests?" in each]
    return [query for query in asked if query.startswith("limit=200")]


# --- Requests -------------------------------------------------------------------------------------


def test_the_list_shows_what_became_of_requests(page: Page, scripted: ScriptedDaemon) -> None:
    scripted.requests = [
        request_of(1, "importing", name="drive 1"),
        request_of(2, "ready", jobs=JOBS, stream="camera 7"),
        request_of(3, "failed", error={**FAILED, "detail": "no image"}, task_deleted=True),
    ]
    page.goto(scripted.url)
    page.get_by_role("link", name="Requests", exact=True).click()
    expect(rows(page)).to_have_count(3)
    expect(rows(page).nth(0)).to_contain_text("drive 1")
    expect(rows(page).nth(0)).to_contain_text("importing")
    expect(rows(page).nth(1)).to_contain_text("scenes · stream camera 7 · 1 file · 1.0 MiB")
    links = rows(page).nth(1).locator("td:nth-child(3)").get_by_role("link")
    expect(links).to_have_text(["700", "701", "702"])
    expect(links.first).to_have_attribute("href", JOBS[0]["url"])
    expect(rows(page).nth(1)).to_contain_text("+2")
    expect(rows(page).nth(2)).to_contain_text("CVAT could not import the data: no image")
    expect(page.locator("#requests")).to_contain_text("3 requests")


def test_a_filter_is_in_the_address_and_the_daemon_follows_it(
    page: Page, scripted: ScriptedDaemon
) -> None:
    scripted.status["templates"] = [status_of("scenes"), status_of("other")]
    scripted.requests = [
        request_of(1, "failed", name="Drive 1", error={**FAILED, "detail": ""}),
        request_of(2, "ready", name="drive 2"),
        request_of(3, "ready", name="drive 3", template="other"),
        request_of(4, "queued", name="walk", created_at=rfc3339(time.time() - 7000)),
    ]
    page.goto(f"{scripted.url}#requests")
    expect(rows(page)).to_have_count(4)
    page.get_by_label("ready", exact=True).check()
    expect(rows(page)).to_have_count(2)
    expect(page.locator("#announcer")).to_have_text("2 requests.")
    assert page.title() == "Requests - cvat-task-pool"
    page.get_by_label("failed", exact=True).check()
    expect(rows(page)).to_have_count(3)
    page.get_by_label("Template", exact=True).select_option("scenes")
    expect(rows(page)).to_have_count(2)
    page.get_by_label("Accepted").select_option("Last hour")
    before = len(searches(scripted))
    page.get_by_label("Search").press_sequentially("DRIVE 1", delay=10)
    expect(rows(page)).to_have_count(1)
    asked = searches(scripted)[before:]
    # Asked once for what was typed, and not for each key.
    assert sum("text=" in query for query in asked) == 1
    assert all("state=ready&state=failed&template=scenes" in query for query in asked)
    address = "#requests?state=ready&state=failed&template=scenes&text=DRIVE+1&within=3600"
    assert page.evaluate("location.hash") == address
    page.reload()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_label("Search")).to_have_value("DRIVE 1")
    expect(page.get_by_label("ready", exact=True)).to_be_checked()
    expect(page.get_by_label("Template", exact=True)).to_have_value("scenes")
    page.go_back()
    expect(page.get_by_label("Accepted")).to_have_value("")
    page.get_by_label("Search").fill("nothing like it")
    expect(page.locator("#requests .empty")).to_have_text("No request matches the filter.")


def test_older_requests_come_by_the_page(page: Page, scripted: ScriptedDaemon) -> None:
    scripted.requests = [request_of(n, "ready", name=f"drive {n}") for n in range(450)]
    page.goto(f"{scripted.url}#requests")
    panel = page.locator("#requests")
    expect(panel).to_contain_text("The newest 200 requests")
    older = panel.get_by_role("button", name="Older")
    older.click()
    expect(panel).to_contain_text("Requests 201 to 400")
    expect(rows(page).first).to_contain_text("drive 200")
    older.click()
    expect(rows(page)).to_have_count(50)
    expect(older).to_be_hidden()
    panel.get_by_role("button", name="Newer").click()
    expect(panel).to_contain_text("Requests 201 to 400")


def test_a_search_goes_on_until_it_finds_something(page: Page, scripted: ScriptedDaemon) -> None:
    scripted.requests = [request_of(n, "ready", name=f"drive {n}") for n in range(450)]
    scripted.requests.append(request_of(450, "ready", name="the one"))
    scripted.searched_at_once = 100
    page.goto(f"{scripted.url}#requests?text=THE+ONE")
    expect(rows(page)).to_have_count(1)
    asked = [query.partition("cursor=")[2] for query in searches(scripted)]
    # A busy machine may have it begin once more.
    first = asked.index("100") - 1
    assert asked[first : first + 5] == ["", "100", "200", "300", "400"]
    # And says how to go on where that would take long.
    scripted.searched_at_once = 20
    page.get_by_label("Search").fill("the on")
    panel = page.locator("#requests")
    expect(panel).to_contain_text("None found among these")
    for last in ("380", "440"):
        panel.get_by_role("button", name="Older").click()
        # To click before it is there would ask for the same again.
        while not searches(scripted)[-1].endswith(f"cursor={last}"):
            page.wait_for_timeout(20)
    expect(rows(page)).to_have_count(1)


def test_the_list_follows_events(page: Page, scripted: ScriptedDaemon) -> None:
    request = request_of(1, "importing", name="drive 1")
    scripted.requests = [request]
    page.goto(f"{scripted.url}#requests")
    expect(rows(page)).to_contain_text("importing")
    request |= {"state": "ready", "jobs": JOBS[:1], "finished_at": rfc3339(time.time())}
    scripted.requests.insert(0, request_of(2, "queued", name="drive 2"))
    scripted.tell("request.ready", request, seconds=1.0)
    expect(rows(page)).to_have_count(2)
    expect(rows(page).nth(1)).to_contain_text("ready")
    expect(rows(page).nth(1)).to_contain_text("700")


def test_a_queued_request_is_cancelled_when_people_confirm(
    page: Page, scripted: ScriptedDaemon
) -> None:
    scripted.requests = [request_of(n, "queued", name=f"drive {n}") for n in (1, 2)]
    page.goto(f"{scripted.url}#requests")
    dialog = page.get_by_role("dialog", name="Cancel drive 1?")
    button = page.get_by_role("button", name="Cancel drive 1")
    button.click()
    dialog.get_by_role("button", name="Keep it").click()
    assert scripted.requests[0]["state"] == "queued"
    button.click()
    dialog.get_by_role("button", name="Cancel the request").click()
    expect(rows(page).first).to_contain_text("cancelled")
    expect(button).to_be_hidden()
    assert "DELETE /v1/requests/request1" in scripted.asked


def test_one_that_was_taken_up_meanwhile_says_so(
    watched: Watched, scripted: ScriptedDaemon
) -> None:
    watched.expected.append("status of 409")
    page = watched.page
    scripted.requests = [request_of(1, "queued", name="drive 1")]
    page.goto(f"{scripted.url}#requests")
    page.get_by_role("button", name="Cancel drive 1").click()
    scripted.requests[0]["state"] = "importing"
    page.get_by_role("button", name="Cancel the request").click()
    expect(page.locator("#requests").get_by_role("alert")).to_contain_text("it is not queued")


def test_a_request_has_its_events_and_its_times(page: Page, scripted: ScriptedDaemon) -> None:
    at = time.time() - 60
    request = request_of(1, "ready", name="drive 1", jobs=JOBS)
    times = ("created_at", "handed_out_at", "uploaded_at", "finished_at", "shown_at")
    request |= {
        field: rfc3339(at + after)
        for field, after in zip(times, (0, 30.004, 30.05, 30.25, 31.5), strict=True)
    }
    scripted.requests = [request]
    event = {
        "template": "scenes",
        "request_id": "request1",
        "state": "",
        "code": "",
        "at": rfc3339(at),
    }
    scripted.events["request1"] = [
        {**event, "id": 1, "kind": "request.queued", "seconds": None},
        {**event, "id": 2, "kind": "lease.handed_out", "seconds": 30.004},
        {
            **event,
            "id": 3,
            "kind": "request.ready",
            "seconds": 30.25,
            "server_seconds": 0.2,
            "held_seconds": 30.0,
        },
    ]
    page.goto(f"{scripted.url}#requests")
    opener = page.get_by_role("button", name="drive 1", exact=True)
    opener.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="drive 1")
    steps = dialog.locator(".steps tbody tr")
    expect(steps).to_have_count(5)
    for step, words in enumerate(("accepted", "handed out (hit)", "sent", "ready", "shown")):
        expect(steps.nth(step)).to_contain_text(words)
    expect(steps.nth(3)).to_contain_text("30.3 s")
    expect(dialog.locator(".parts")).to_contain_text("the pool’s part50 ms")  # noqa: RUF001
    expect(dialog.locator(".parts")).to_contain_text("CVAT’s part200 ms")  # noqa: RUF001
    expect(dialog.locator(".parts")).to_contain_text("outage30.0 s")
    expect(dialog.locator(".events tbody tr")).to_have_count(3)
    expect(dialog.locator(".job-list a")).to_have_count(5)
    expect(dialog).to_contain_text("It has ended, so there is nothing to cancel.")
    assert page.evaluate("location.hash") == "#requests?id=request1"
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(opener).to_be_focused()
    assert page.evaluate("location.hash") == "#requests"
    # The address shows the same to others.
    page.goto(f"{scripted.url}#requests?id=request1")
    expect(dialog).to_be_visible()


def test_an_open_request_moves_on(page: Page, scripted: ScriptedDaemon) -> None:
    request = request_of(1, "queued", name="drive 1", handed_out_at=None, uploaded_at=None)
    scripted.requests = [request]
    page.goto(f"{scripted.url}#requests?id=request1")
    dialog = page.get_by_role("dialog", name="drive 1")
    expect(dialog.get_by_role("button", name="Cancel the request")).to_be_visible()
    request["state"] = "importing"
    scripted.tell("request.importing", request)
    expect(dialog).to_contain_text("It cannot be cancelled: CVAT imports its data already.")
    expect(dialog.get_by_role("button", name="Cancel the request")).to_be_hidden()


def test_a_request_that_is_not_known_says_so(watched: Watched, scripted: ScriptedDaemon) -> None:
    watched.expected.append("status of 404")
    page = watched.page
    page.goto(f"{scripted.url}#requests?id=nothing")
    alert = page.get_by_role("dialog", name="Request").get_by_role("alert")
    expect(alert).to_have_text(re.compile("not found", re.IGNORECASE))


def test_equal_failures_are_one_and_deleted_tasks_are_no_link(
    page: Page, scripted: ScriptedDaemon
) -> None:
    def failed(number: int, detail: str, **more: Any) -> dict[str, Any]:
        finished = rfc3339(time.time() - 60 * number)
        error = {**FAILED, "detail": detail}
        return request_of(number, "failed", error=error, finished_at=finished, **more)

    scripted.requests = [
        failed(n, f"cannot identify image file '/data/{n}/raw/{n}.jpg'", task_deleted=n == 2)
        for n in range(2, 14)
    ] + [failed(20, "the disk is full")]
    page.goto(scripted.url)
    failures = page.locator("#failures tbody tr")
    expect(failures).to_have_count(2)
    expect(failures.nth(0)).to_contain_text("12 times, the last 2 min ago")
    expect(failures.nth(0)).to_contain_text("task 102, deleted")
    expect(failures.nth(0).get_by_role("link")).to_have_count(0)
    expect(failures.nth(1).get_by_role("link")).to_have_text("task 120")
    failures.nth(0).get_by_role("button", name="2.jpg").click()
    dialog = page.get_by_role("dialog", name="2.jpg")
    expect(dialog).to_contain_text("task 102, deleted")
    expect(dialog.get_by_role("link")).to_have_count(0)
    page.keyboard.press("Escape")
    page.get_by_role("link", name="All failures").click()
    expect(rows(page)).to_have_count(13)


# --- Leases and streams ---------------------------------------------------------------------------


def test_leases_say_who_holds_what_and_are_given_back(page: Page, scripted: ScriptedDaemon) -> None:
    waiting = {
        "state": "waiting",
        "task_id": None,
        "url": None,
        "expires_at": None,
        "outcome": None,
    }
    scripted.leases = [lease_of(1, name="batch 9"), lease_of(2), lease_of(3, **waiting)]
    page.goto(f"{scripted.url}#leases")
    leases = page.locator("#leases tbody tr")
    expect(leases).to_have_count(3)
    for words in ("task 101", "scenes · hit", "batch 9", "through host, process 4711", "in 58 min"):
        expect(leases.nth(0)).to_contain_text(words)
    expect(leases.nth(2)).to_contain_text("waits for a task")
    expect(leases.nth(2).get_by_role("button")).to_have_count(0)
    page.get_by_role("button", name="Give back task 101").click()
    dialog = page.get_by_role("dialog", name="Give back task 101?")
    expect(dialog).to_contain_text('"batch 9" holds it')
    dialog.get_by_role("button", name="Give back").click()
    expect(leases).to_have_count(2)
    assert "DELETE /v1/leases/lease1" in scripted.asked
    # CVAT is asked whether the task has data.
    scripted.status |= {"hold_reason": "CVAT is away", "hold_code": "cvat-unreachable"}
    scripted.tell_levels()
    expect(page.get_by_role("button", name="Give back task 102")).to_be_disabled()
    scripted.leases.clear()
    scripted.tell("request.queued", request_of(9, "queued"))
    expect(page.locator("#leases .empty")).to_have_text("No caller holds a task or waits for one.")


def test_streams_are_closed(page: Page, scripted: ScriptedDaemon) -> None:
    scripted.streams = [stream_of("camera 7"), stream_of("camera 8 & 9")]
    page.goto(f"{scripted.url}#leases")
    streams = page.locator("#streams tbody tr")
    expect(streams).to_have_count(2)
    expect(streams.nth(0)).to_contain_text("12 of 50 slots")
    page.get_by_role("button", name="Close the stream camera 8 & 9").click()
    page.get_by_role("dialog").get_by_role("button", name="Close the stream").click()
    expect(streams).to_have_count(1)
    assert [each["name"] for each in scripted.streams] == ["camera 7"]


# --- All eyes, all screens ------------------------------------------------------------------------


def crowded(daemon: ScriptedDaemon) -> None:
    """Lists with all kinds of rows, and with long words."""
    error = {**FAILED, "detail": f"cannot identify {'x' * 300}"}
    long = {"template": LONG_NAME, "name": "n" * 90}
    daemon.requests = [
        request_of(1, "queued", **long),
        request_of(2, "uploading"),
        request_of(3, "importing"),
        request_of(4, "ready", jobs=JOBS, **long),
        request_of(5, "failed", error=error, **long),
        request_of(6, "cancelled"),
        request_of(7, "ready", warnings=[{"code": "not-named", "text": "w" * 200}]),
    ]
    daemon.leases = [lease_of(1, **long, owner=f"{'h' * 60}:1:2f"), lease_of(2)]
    daemon.streams = [stream_of("s" * 100, template=LONG_NAME), stream_of("camera 7")]
    daemon.status["templates"] = [status_of(LONG_NAME, oldest_waiting_since=in_seconds(-9))]


VIEWS = ("#requests", "#requests?id=request4", "#requests?id=request5", "#leases")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lists_can_be_used_by_everybody(
    new_page: NewPage, scripted: ScriptedDaemon, scheme: str
) -> None:
    crowded(scripted)
    with new_page(color_scheme=scheme, reduced_motion="reduce") as watched:
        for view in VIEWS:
            show(watched.page, scripted, view)
            assert_accessible(watched.page)


BESIDE = """() => [...document.querySelectorAll("body *:not(.sr-only, .sr-only *)")]
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5)
  .map((each) => each.outerHTML.slice(0, 120))"""


@pytest.mark.parametrize("width", [320, 375, 768, 1280, 1920])
def test_no_list_lies_beside_the_screen(page: Page, scripted: ScriptedDaemon, width: int) -> None:
    crowded(scripted)
    page.set_viewport_size({"width": width, "height": 800})
    for view in VIEWS:
        show(page, scripted, view)
        assert page.evaluate(BESIDE) == [], view


def show(page: Page, daemon: ScriptedDaemon, view: str) -> None:
    page.goto("about:blank")
    page.goto(f"{daemon.url}{view}")
    if "id=" in view:
        expect(page.locator("#request-dialog .steps tbody tr").first).to_be_visible()
    else:
        expect(page.locator(".list tbody tr:visible").first).to_be_visible()
