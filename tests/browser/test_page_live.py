"""The page on a real daemon, which works on the simulator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from browser.seen import NewPage, RunDaemon, Running, Watched
from pool.client import RemotePool
from pool.errors import ImportFailed, LeaseEnded
from pool.status import TemplateStatus

TEMPLATE = "street-scenes"
TOKEN = "a-token-for-this-test"


def card(page: Page) -> Any:
    return page.get_by_role("article", name=TEMPLATE)


def status(running: Running) -> TemplateStatus:
    return next(row for row in running.pool.status().templates if row.name == TEMPLATE)


@pytest.fixture(scope="module")
def watched(new_page: NewPage) -> Iterator[Watched]:
    """One page for all tests, as people leave it open."""
    with new_page() as watched:
        yield watched


@pytest.fixture
def shown(watched: Watched, running: Running) -> Iterator[Page]:
    """The page, live; the template is as it was when the test is over."""
    page = watched.page
    if page.url == "about:blank":
        page.goto(running.url)
    expect(page.locator("#connection-words")).to_have_text("Live")
    yield page
    # Without being loaded again, and with all dialogs closed.
    page.goto(f"{running.url}#overview")
    running.pool.resume(TEMPLATE)
    expect(page.get_by_role("button", name=f"Pause {TEMPLATE}")).to_be_visible()


def test_it_shows_the_level_of_each_template(shown: Page, running: Running) -> None:
    expect(card(shown).locator(".gauge-words")).to_have_text("3 of 3 warm")
    expect(shown.get_by_role("article")).to_have_count(2)
    expect(shown.locator("#server")).to_have_text(running.pool.settings.cvat.url)
    assert shown.get_by_role("main").get_attribute("aria-busy") is None


def test_it_follows_requests_without_being_loaded_again(
    shown: Page, running: Running, image: bytes
) -> None:
    shown.evaluate("window.loadedOnce = true")
    before = status(running)
    for number in range(5):
        running.pool.submit(TEMPLATE, [(f"{number}.jpg", image)]).jobs(timeout=20)
    after = status(running)
    hits = card(shown).locator(".outcomes dd").first
    expect(hits).to_have_text(str(after.hits))
    served = after.hits + after.waits + after.colds
    assert served == before.hits + before.waits + before.colds + 5
    expect(card(shown).locator(".spread figcaption")).to_contain_text("requests of the last hour")
    expect(card(shown).locator(".gauge-words")).to_have_text("3 of 3 warm")
    assert shown.evaluate("window.loadedOnce")


def test_a_failure_tells_its_reason(shown: Page, running: Running) -> None:
    request = running.pool.submit(TEMPLATE, [("<b>broken.jpg", b"no image")], name="<i>drive 7</i>")
    with pytest.raises(ImportFailed) as failure:
        request.jobs(timeout=20)
    row = shown.locator("#failures tbody tr").first
    expect(row).to_contain_text("<i>drive 7</i>")
    expect(row).to_contain_text("CVAT could not import the data")
    assert failure.value.detail
    expect(row.locator(".detail")).to_have_text(failure.value.detail)
    expect(row.get_by_role("link")).to_have_attribute("href", request.url)


def test_a_warning_tells_what_is_missing_also_after_a_reload(
    shown: Page, running: Running, image: bytes
) -> None:
    request = running.pool.submit(TEMPLATE, [("a.jpg", image)], assignee=999)
    assert request.jobs(timeout=20)
    row = shown.locator("#failures tbody tr").first
    expect(row).to_contain_text("Ready, with a warning")
    expect(row.locator(".detail")).to_contain_text("no user 999")
    shown.reload()
    expect(row.locator(".detail")).to_contain_text("not assigned to user 999")


def test_the_list_has_what_became_of_requests(shown: Page, running: Running, image: bytes) -> None:
    request = running.pool.submit(TEMPLATE, [("a.jpg", image)], name="drive 12")
    (job,) = request.jobs(timeout=20)
    failing = running.pool.submit(TEMPLATE, [("b.jpg", b"no image")], name="drive 13")
    with pytest.raises(ImportFailed) as failure:
        failing.jobs(timeout=20)
    shown.get_by_role("link", name="Requests", exact=True).click()
    shown.get_by_label("Search").fill("DRIVE 1")
    rows = shown.locator("#requests tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text(failure.value.detail)
    expect(rows.nth(1).locator("td:nth-child(3)").get_by_role("link")).to_have_attribute(
        "href", job.url
    )
    shown.get_by_role("button", name="drive 12", exact=True).click()
    dialog = shown.get_by_role("dialog", name="drive 12")
    for kind in ("lease.handed_out", "request.importing", "request.ready"):
        expect(dialog.locator(".events")).to_contain_text(kind)
    expect(dialog.locator(".parts")).to_contain_text("CVAT’s part")  # noqa: RUF001


def test_a_lease_is_given_back_by_a_click(shown: Page, running: Running) -> None:
    lease = running.pool.acquire(TEMPLATE, timeout=20, name="batch 9")
    shown.get_by_role("link", name="Leases").click()
    rows = shown.locator("#leases tbody tr")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text("batch 9")
    shown.get_by_role("button", name=f"Give back task {lease.task_id}").click()
    shown.get_by_role("dialog").get_by_role("button", name="Give back").click()
    expect(shown.locator("#leases .empty")).to_be_visible()
    expect(rows).to_have_count(0)
    with pytest.raises(LeaseEnded):
        running.pool.release(lease)
    assert status(running).leased == 0


def test_a_template_is_paused_and_resumed(shown: Page, running: Running) -> None:
    button = shown.get_by_role("button", name=f"Pause {TEMPLATE}")
    button.click()
    resume = shown.get_by_role("button", name=f"Resume {TEMPLATE}")
    expect(resume).to_be_focused()
    expect(card(shown)).to_contain_text("paused since")
    expect(shown.locator("#announcer")).to_contain_text(f"{TEMPLATE} is paused")
    assert status(running).paused_since is not None
    resume.click()
    expect(button).to_be_visible()
    assert status(running).paused_since is None


def test_what_others_do_is_shown_too(shown: Page, running: Running) -> None:
    running.pool.pause(TEMPLATE)
    expect(card(shown)).to_contain_text("paused since")


def test_a_drain_is_asked_for_twice(shown: Page, running: Running) -> None:
    drain = shown.get_by_role("button", name=f"Drain {TEMPLATE}")
    dialog = shown.get_by_role("dialog", name=f"Drain {TEMPLATE}?")
    drain.click()
    dialog.get_by_role("button", name="Cancel").click()
    assert status(running).paused_since is None
    drain.click()
    dialog.get_by_role("button", name="Drain").click()
    expect(card(shown)).to_contain_text("drained since")
    expect(card(shown).locator(".gauge-words")).to_contain_text("0 of")
    assert status(running).warm == 0
    shown.get_by_role("button", name=f"Resume {TEMPLATE}").click()
    expect(card(shown).locator(".gauge-words")).to_have_text("3 of 3 warm")


def test_a_prewarm_has_a_size(watched: Watched, shown: Page, running: Running) -> None:
    watched.expected.append("status of 422")
    prewarm = shown.get_by_role("button", name=f"Prewarm {TEMPLATE}")
    dialog = shown.get_by_role("dialog", name=f"Prewarm {TEMPLATE}")
    prewarm.click()
    dialog.get_by_label("Warm tasks").fill("5")
    dialog.get_by_label("For", exact=True).select_option("5 minutes")
    dialog.get_by_role("button", name="Prewarm").click()
    expect(card(shown)).to_contain_text("prewarm 5 until")
    expect(card(shown).locator(".gauge-words")).to_have_text("5 of 5 warm")
    assert status(running).prewarm_size == 5
    prewarm.click()
    dialog.get_by_label("Warm tasks").fill("99999")
    shown.keyboard.press("Enter")
    expect(card(shown).locator(".error")).to_contain_text("cannot be used")


@pytest.mark.parametrize("role", ["read", "submit"])
def test_what_the_page_shows_to_a_role(
    new_page: NewPage,
    run_daemon: RunDaemon,
    monkeypatch: pytest.MonkeyPatch,
    image: bytes,
    role: str,
) -> None:
    """All of it, or what is the token's own; and what it may not do cannot be pressed."""
    monkeypatch.setenv("PAGE_TOKEN", TOKEN)
    bound = f'templates = ["{TEMPLATE}"]' if role == "submit" else ""
    tokens = f'\n[tokens.camera]\nrole = "{role}"\nsecret = "${{PAGE_TOKEN}}"\n{bound}\n'
    with run_daemon(api_token="the-operators", tokens=tokens) as running, new_page() as watched:
        watched.expected.append("status of 401")
        running.pool.submit(TEMPLATE, [("a.png", image)], name="the operator's").jobs(timeout=20)
        lease = running.pool.acquire(TEMPLATE, name="also the operator's")
        page = watched.page
        page.goto(running.url)
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#connection-words")).to_have_text("Live")
        expect(page.get_by_role("article")).to_have_count(1 if role == "submit" else 2)
        expect(page.get_by_role("button", name=f"Pause {TEMPLATE}")).to_have_attribute(
            "title", f"A token with the role {role} may not do this"
        )
        expect(page.locator("#banners")).to_have_text("")
        seen = 0 if role == "submit" else 1
        page.goto(f"{running.url}#requests")
        expect(page.get_by_text("the operator's", exact=True)).to_have_count(seen)
        page.goto(f"{running.url}#leases")
        expect(page.get_by_text("also the operator's", exact=True)).to_have_count(seen)
        if role == "submit":
            with RemotePool(running.url, token=TOKEN) as pool:
                pool.submit(TEMPLATE, [("b.png", image)], name="its own").jobs(timeout=20)
            page.goto(f"{running.url}#requests")
            expect(page.get_by_text("its own", exact=True)).to_have_count(1)
            expect(page.locator("main")).to_contain_text(f"{TEMPLATE} · camera")
        lease.release()


def test_a_token_is_asked_for_and_kept_for_the_tab(
    new_page: NewPage, run_daemon: RunDaemon
) -> None:
    with run_daemon(api_token=f"another,{TOKEN}") as running, new_page() as watched:
        watched.expected.append("status of 401")
        page = watched.page
        dialog = page.get_by_role("dialog", name="This daemon needs a token")
        page.goto(running.url)
        expect(dialog.get_by_label("Token")).to_be_focused()
        assert dialog.get_by_label("Token").get_attribute("type") == "password"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("The daemon does not accept that token.")
        page.keyboard.press("Escape")
        expect(page.locator("#connection-words")).to_have_text("No token")
        page.get_by_role("button", name="Enter the token").click()
        page.keyboard.type(TOKEN)
        page.keyboard.press("Enter")
        expect(page.locator("#connection-words")).to_have_text("Live")
        expect(card(page).locator(".gauge-words")).to_contain_text("of 3 warm")
        page.get_by_role("button", name=f"Pause {TEMPLATE}").click()
        expect(card(page)).to_contain_text("paused since")
        page.reload()
        expect(page.locator("#connection-words")).to_have_text("Live")
        kept = "[JSON.stringify(localStorage), document.cookie, location.href]"
        assert not any(TOKEN in each for each in [*page.evaluate(kept), *watched.asked])
        page.get_by_role("button", name="Forget the token").click()
        expect(dialog).to_be_visible()
        assert page.evaluate("JSON.stringify(sessionStorage)").find(TOKEN) == -1
