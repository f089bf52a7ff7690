"""The manual as the daemon shows it: its pages, and the viewer of the API."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import urllib3
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from browser.seen import NewPage, RunDaemon, Running
from pool.docs import TOPICS
from pool.docs import page as page_of
from pool.http.manual import ALL, API

TOKEN = "a-token-for-this-test"
ADDRESSES = ("/docs", f"/docs/{ALL}", *(f"/docs/{topic}" for topic in TOPICS))
#: What is wider than the screen, and is not inside of something that scrolls by itself.
BESIDE = """() => [...document.querySelectorAll("body *")]
  .filter((each) => !each.closest("pre, .wide, .skip"))
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5)
  .map((each) => each.outerHTML.slice(0, 120))"""


@pytest.fixture(scope="module")
def phone(new_page: NewPage) -> Iterator[Page]:
    with new_page(viewport={"width": 375, "height": 700}, color_scheme="dark") as watched:
        yield watched.page


@pytest.fixture(scope="module")
def screen(new_page: NewPage) -> Iterator[Page]:
    with new_page(viewport={"width": 1280, "height": 800}, color_scheme="light") as watched:
        yield watched.page


@pytest.mark.parametrize("address", ["/docs", "/docs/http-api"])
def test_everyone_can_read_it(running: Running, screen: Page, phone: Page, address: str) -> None:
    for shown in (screen, phone):
        shown.goto(running.url + address)
        found = Axe().run(shown)
        assert found.violations_count == 0, found.generate_report()


def test_everyone_can_read_all_of_it(running: Running, screen: Page) -> None:
    screen.goto(f"{running.url}/docs/{ALL}")
    found = Axe().run(screen)
    assert found.violations_count == 0, found.generate_report()


def test_nothing_lies_beside_the_screen(running: Running, screen: Page, phone: Page) -> None:
    for address in ADDRESSES:
        for shown in (screen, phone):
            shown.goto(running.url + address)
            assert shown.evaluate(BESIDE) == [], address


def test_every_link_leads_to_a_page_and_to_a_place_on_it(running: Running, screen: Page) -> None:
    ids: dict[str, set[str]] = {}
    links: set[str] = set()
    for address in (*ADDRESSES, f"/docs/{API}"):
        screen.goto(running.url + address)
        ids[running.url + address] = set(
            screen.eval_on_selector_all("[id]", "all => all.map((each) => each.id)")
        )
        found = screen.eval_on_selector_all("a[href]", "all => all.map((each) => each.href)")
        links |= {link for link in found if link.startswith(running.url)}
    assert len(links) > 100
    for link in links:
        page, _, anchor = link.partition("#")
        if page in ids:
            assert not anchor or anchor in ids[page], link
        else:
            assert urllib3.request("GET", page).status == 200, link


def test_a_reader_goes_from_topic_to_topic(running: Running, page: Page) -> None:
    page.goto(f"{running.url}/docs")
    page.get_by_role("link", name="When CVAT is away").first.click()
    expect(page).to_have_url(f"{running.url}/docs/outages")
    expect(page).to_have_title("When CVAT is away - cvat-task-pool")
    topics = page.get_by_role("navigation", name="Manual")
    expect(topics.locator("[aria-current=page]")).to_have_text("When CVAT is away")
    page.get_by_role("main").get_by_role("link", name="files").click()
    expect(page).to_have_url(f"{running.url}/docs/operations#files")
    expect(page.get_by_role("heading", name="Files", exact=True)).to_be_in_viewport()


def test_one_page_has_all_for_the_search_of_the_browser(running: Running, page: Page) -> None:
    page.goto(f"{running.url}/docs/{ALL}")
    titles = page.locator("main h2").all_inner_texts()
    assert [title for title in titles if title in {page_of(each).title for each in TOPICS}] == [
        page_of(topic).title for topic in TOPICS
    ]


def test_pictures_are_shown(running: Running, page: Page) -> None:
    page.goto(f"{running.url}/docs/slots")
    widths = page.eval_on_selector_all("main img", "all => all.map((each) => each.naturalWidth)")
    assert len(widths) == 3
    assert min(widths) > 100


# --- The viewer ---------------------------------------------------------------------------------


def test_the_viewer_shows_each_call_and_makes_one(running: Running, page: Page) -> None:
    page.goto(f"{running.url}/docs/{API}")
    calls = page.locator(".opblock")
    expect(calls.first).to_be_visible()
    document = urllib3.request("GET", f"{running.url}/openapi.json").json()
    assert calls.count() == sum(len(methods) for methods in document["paths"].values())
    call = page.locator(".opblock", has=page.locator('[data-path="/v1/templates"]')).first
    call.locator(".opblock-summary").click()
    call.get_by_role("button", name="Try it out").click()
    call.get_by_role("button", name="Execute").click()
    expect(call.locator(".live-responses-table td.response-col_status").last).to_have_text("200")


def test_the_viewer_can_be_read_too(running: Running, screen: Page, phone: Page) -> None:
    for shown in (screen, phone):
        shown.goto(f"{running.url}/docs/{API}")
        expect(shown.locator(".opblock").first).to_be_visible()
        # Swagger UI's own: what copies a path is within what opens it.
        found = Axe().run(shown, options={"rules": {"nested-interactive": {"enabled": False}}})
        assert found.violations_count == 0, found.generate_report()


def test_the_viewer_asks_for_the_token(run_daemon: RunDaemon, new_page: NewPage) -> None:
    with run_daemon(api_token=TOKEN) as running, new_page() as watched:
        watched.expected += ["401"]
        page = watched.page
        page.goto(f"{running.url}/docs")
        expect(page.get_by_role("heading", name="The manual")).to_be_visible()
        page.get_by_role("link", name="The API, call by call").click()
        page.get_by_label("Token", exact=True).fill("wrong")
        page.get_by_role("button", name="Show the API").click()
        expect(page.get_by_role("alert")).to_have_text("The daemon does not know this token.")
        page.get_by_label("Token", exact=True).fill(TOKEN)
        page.get_by_role("button", name="Show the API").click()
        expect(page.locator(".opblock").first).to_be_visible()
        expect(page.get_by_label("Token", exact=True)).to_be_hidden()
        page.reload()
        expect(page.locator(".opblock").first).to_be_visible()


def test_the_policy_is_loosened_for_the_viewer_alone(running: Running) -> None:
    def policy(path: str) -> dict[str, str]:
        header = urllib3.request("GET", running.url + path).headers["Content-Security-Policy"]
        rules = (rule.partition(" ") for rule in header.split("; "))
        return {name: value for name, _, value in rules}

    page, viewer = policy("/"), policy(f"/docs/{API}")
    assert [policy(address) for address in ADDRESSES] == [page] * len(ADDRESSES)
    assert viewer.pop("img-src") == "'self' data:"
    assert page.pop("img-src") == "'self'"
    assert {page.pop("require-trusted-types-for"), page.pop("trusted-types")} == {
        "'script'",
        "'none'",
    }
    assert viewer == page


@pytest.mark.parametrize("path", ["/docs/nothing", "/docs/../page", "/docs/pictures/nothing.png"])
def test_nothing_else_is_there(running: Running, path: str) -> None:
    assert urllib3.request("GET", running.url + path).status == 404


def test_the_viewer_comes_with_its_licence_and_version() -> None:
    from importlib import resources

    folder = resources.files("pool.http") / "static" / "swagger-ui"
    assert "Apache License" in (folder / "LICENSE").read_text()
    version = re.search(r"Swagger UI (\d+\.\d+\.\d+)", (folder / "README.md").read_text())
    assert version is not None
    assert f'"{version[1]}"' in (folder / "swagger-ui-bundle.js").read_text()
