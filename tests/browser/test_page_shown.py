"""What the page shows of what a daemon says, and how it bears up when that one is gone."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from browser.scripted_daemon import (
    LONG_NAME,
    ScriptedDaemon,
    filled,
    in_seconds,
    request_of,
    status_of,
    stream_of,
)
from browser.seen import NewPage, Watched, assert_accessible

MARKUP = "<img src=x onerror=\"document.title='hacked'\"><b>bold</b>"

#: Notes what is written on canvases, and where its left and its right edge are.
NOTE_TEXTS = """
  globalThis.texts = [];
  const { fillText } = CanvasRenderingContext2D.prototype;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
    const width = this.measureText(text).width;
    const part = { left: 0, start: 0, center: 0.5, right: 1, end: 1 }[this.textAlign];
    texts.push({ text, left: x - part * width, right: x + (1 - part) * width });
    fillText.call(this, text, x, y);
  };
"""


def card(page: Page, name: str) -> Any:
    return page.get_by_role("article", name=name, exact=True)


# --- Words ----------------------------------------------------------------------------------------


def test_an_empty_pool_says_so(page: Page, scripted: ScriptedDaemon) -> None:
    page.goto(scripted.url)
    expect(card(page, "scenes")).to_contain_text("No request has finished in the last hour.")
    expect(card(page, "scenes")).to_contain_text("None so far.")
    expect(page.locator("#flight-empty")).to_have_text("Nothing is in flight.")
    expect(page.locator("#failures-empty")).to_have_text("No request has failed.")
    scripted.status["templates"] = []
    scripted.tell_levels()
    expect(page.locator("#templates-empty")).to_contain_text("No template is configured")


def test_times_are_told_in_words_and_split(page: Page, scripted: ScriptedDaemon) -> None:
    one = {"template": "scenes", "outcome": "hit", "at": time.time(), "code": "", "error": None}
    scripted.history["requests"] = [
        {**one, "request_id": f"r{n}", "state": "ready", "seconds": n / 100, "server_seconds": s}
        for n, s in ((20, 0.15), (30, 0.2), (90, None))
    ]
    page.goto(scripted.url)
    rows = card(page, "scenes").get_by_role("table").get_by_role("row")
    expect(rows.nth(1)).to_have_text("total300 ms900 ms900 ms")
    expect(rows.nth(2)).to_have_text("CVAT’s part150 ms200 ms200 ms")  # noqa: RUF001
    expect(rows.nth(3)).to_have_text("the pool’s part50 ms100 ms100 ms")  # noqa: RUF001
    expect(page.get_by_role("img", name="Histogram of the times")).to_have_attribute(
        "aria-label",
        "Histogram of the times from request to job ids of scenes: "
        "p50 300 ms, p90 900 ms, p99 900 ms.",
    )


def test_what_waits_and_what_is_shared_is_told(page: Page, scripted: ScriptedDaemon) -> None:
    (row,) = scripted.status["templates"]
    row |= {"queued": 1200, "queued_bulk": 1100, "waits_for": "place", "places": 2}
    row |= {"group_sizes": [1, 40, 19]}
    scripted.status["places_used"] = 2
    page.goto(scripted.url)
    shown = card(page, "scenes")
    expect(shown).to_contain_text(
        "1,200 requests wait for a place among the imports, 2 of 2 in use (1,100 bulk)."
    )
    expect(shown).to_contain_text(
        "Requests an import: 20.0 on average, 40 at most, in 3 imports of the last 15 minutes."
    )
    bars = shown.locator(".group-bars span")
    expect(bars).to_have_count(3)
    lowest, highest = (bars.nth(n).bounding_box() for n in (0, 1))
    assert lowest is not None and highest is not None and lowest["height"] < highest["height"]
    row |= {"queued": 0, "queued_bulk": 0, "waits_for": "nothing", "group_sizes": []}
    scripted.tell_levels()
    expect(shown.locator(".groups")).to_be_hidden()
    expect(shown.get_by_text("wait for a place")).to_be_hidden()


def test_more_requests_than_are_kept_are_not_those_of_an_hour(
    page: Page, scripted: ScriptedDaemon
) -> None:
    now = time.time()
    one: dict[str, Any] = {
        "template": "scenes",
        "outcome": "hit",
        "code": "",
        "error": None,
        "state": "ready",
    }
    one |= {"seconds": 0.3, "server_seconds": 0.2}
    scripted.history["requests"] = [
        {**one, "request_id": f"r{n}", "at": now - 605 + 0.6 * n} for n in range(1000)
    ]
    page.goto(scripted.url)
    words = card(page, "scenes").locator(".spread figcaption")
    expect(words).to_contain_text("1,000 requests of the last 10 min")


def test_the_time_of_an_outage_is_neither_cvats_nor_the_pools(
    page: Page, scripted: ScriptedDaemon
) -> None:
    one = {"template": "scenes", "outcome": "hit", "at": time.time(), "code": "", "error": None}
    one |= {"state": "ready", "seconds": 61.0, "server_seconds": 0.7}
    scripted.history["requests"] = [{**one, "request_id": "r1", "held_seconds": 60.0}]
    page.goto(scripted.url)
    rows = card(page, "scenes").get_by_role("table").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("total61.0 s")
    expect(rows.nth(2)).to_contain_text("CVAT’s part700 ms")  # noqa: RUF001
    expect(rows.nth(3)).to_contain_text("the pool’s part300 ms")  # noqa: RUF001
    expect(rows.nth(4)).to_contain_text("outage60.0 s")


def test_a_collapsed_template_has_its_figures(page: Page, scripted: ScriptedDaemon) -> None:
    one = {"template": "scenes", "at": time.time(), "code": "", "error": None, "state": "ready"}
    scripted.history["requests"] = [
        {**one, "request_id": f"r{n}", "outcome": outcome, "seconds": 0.4, "server_seconds": 0.3}
        for n, outcome in enumerate(("hit", "hit", "hit", "cold"))
    ]
    scripted.status["templates"] = [
        status_of("scenes", warm=6, target=3, rate=0.4),
        status_of("busy", rate=12.34, queued=3, oldest_waiting_since=in_seconds(-130)),
    ]
    # Also a request that failed was served from a warm task.
    failed = {"request_id": "f", "state": "failed", "outcome": "hit", "seconds": 1.0}
    scripted.history["requests"].append({**one, **failed, "server_seconds": 0.5})
    page.goto(scripted.url)
    card(page, "scenes").get_by_role("button", name="scenes", exact=True).click()
    head = card(page, "scenes").locator(".card-head")
    expect(head).to_contain_text("now24/min")
    expect(head).to_contain_text("hit80%")
    expect(head).to_contain_text("p50400 ms")
    expect(head).to_contain_text("6 warm, target 3")
    expect(card(page, "busy").locator(".card-head")).to_contain_text("now12/s")
    expect(card(page, "busy").locator(".badges")).to_contain_text("3 waiting, oldest 2 min")
    expect(page.locator("#tile-flight-note")).to_have_text("3 waiting, oldest 2 min")
    expect(page.get_by_text("it waited for a warm task")).to_have_count(1)


def test_slots_are_shown_in_words(page: Page, scripted: ScriptedDaemon) -> None:
    (row,) = scripted.status["templates"]
    row |= {"carriers": 3, "warm": 17, "slots_filled": 31, "slots_retired": 2}
    scripted.streams = [stream_of("camera 7")]
    page.goto(scripted.url)
    slots = card(page, "scenes").locator("[data-part=slots]")
    expect(slots).to_contain_text("Slots of 3 tasks: 17 warm, 31 filled, 2 retired.")
    slots.get_by_role("link", name="1 open stream").click()
    expect(page.locator("#streams tbody")).to_contain_text("camera 7")


def test_a_hold_counts_down(page: Page, scripted: ScriptedDaemon) -> None:
    (row,) = scripted.status["templates"]
    row |= {"hold_reason": "CVAT does not allow this", "held_since": in_seconds(-9)}
    row["held_until"] = in_seconds(65)
    page.clock.install(time=datetime.now())
    page.goto(scripted.url)
    hold = card(page, "scenes").locator(".hold")
    expect(hold).to_contain_text("CVAT does not allow this")
    expect(hold).to_contain_text("Next try in 1 min")
    page.clock.fast_forward(30_000)
    expect(hold).to_contain_text("Next try in 3")
    expect(card(page, "scenes").locator(".badges")).to_contain_text("held, next try in 3")
    row |= {"hold_reason": "", "held_since": None, "held_until": None}
    scripted.tell_levels()
    expect(hold).to_be_hidden()


def test_what_is_wrong_with_all_is_told_at_the_top(page: Page, scripted: ScriptedDaemon) -> None:
    page.goto(scripted.url)
    expect(page.locator("#maintainer")).to_have_text("host, process 4711")
    scripted.status["daemons"].append({"owner": "other:1:7c0857"})
    scripted.tell_levels()
    expect(page.locator("#maintainer")).to_have_text("host, process 4711, one of 2 daemons")
    expect(page.locator("#banners")).to_be_empty()
    scripted.status |= {"hold_reason": "CVAT is overloaded", "held_until": in_seconds(9)}
    scripted.status["maintainer"] = None
    scripted.tell_levels()
    expect(page.locator("#banners")).to_contain_text("All templates are held. CVAT is overloaded")
    expect(page.locator("#banners")).to_contain_text("Next try in")
    expect(page.locator("#banners")).to_contain_text("No daemon maintains the pool")
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#banners")).not_to_contain_text("All templates are held")
    expect(page.locator("#announcer")).to_contain_text("No daemon maintains the pool")


def test_a_configuration_that_is_not_followed_is_told_at_the_top(
    page: Page, scripted: ScriptedDaemon
) -> None:
    page.goto(scripted.url)
    banners = page.locator("#banners")
    expect(banners).to_be_empty()
    scripted.status["config_problems"] = ["config.toml:3: port: x", "config.toml:4: y", "z"]
    scripted.status["config_restart"] = ["daemon.tick", "cvat.timeout"]
    scripted.tell_levels()
    expect(banners).to_contain_text(
        "The configuration is wrong, so the daemon goes on with the previous"
    )
    expect(banners).to_contain_text("config.toml:3: port: x. And 2 more: see cvat-pool check.")
    expect(banners).to_contain_text(
        "These changes need a restart of the daemon: daemon.tick, cvat."
    )
    scripted.status |= {"config_problems": [], "config_restart": []}
    scripted.tell_levels()
    expect(banners).to_be_empty()


def test_names_are_text_and_never_markup(page: Page, scripted: ScriptedDaemon) -> None:
    error = {"code": "import-failed", "title": MARKUP, "detail": MARKUP, "status": 422}
    more: dict[str, Any] = {"template": MARKUP, "name": MARKUP, "files": [MARKUP]}
    scripted.requests = [
        request_of(1, **more, url="javascript:document.title='hacked'"),
        request_of(2, "failed", **more, error=error),
    ]
    row = status_of(MARKUP, hold_reason=MARKUP)
    scripted.status |= {"templates": [row], "hold_reason": MARKUP, "maintainer": MARKUP}
    scripted.status["server"] = "javascript:document.title='hacked'"
    page.goto(scripted.url)
    expect(page.locator("#flight")).to_contain_text(MARKUP)
    expect(page.locator("#failures")).to_contain_text(MARKUP)
    expect(page.locator("#banners")).to_contain_text(MARKUP)
    expect(page.locator(".card h3")).to_have_text(MARKUP)
    scripted.status["hold_reason"] = ""
    scripted.tell_levels()
    page.get_by_role("button", name="Drain").click()
    expect(page.get_by_role("dialog")).to_contain_text(MARKUP)
    assert page.locator("img[src=x], b:has-text('bold')").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0
    assert page.title() == "cvat-task-pool"


# --- Events ---------------------------------------------------------------------------------------


def test_a_request_is_followed_to_its_failure(page: Page, scripted: ScriptedDaemon) -> None:
    page.goto(scripted.url)
    expect(page.locator("#connection-words")).to_have_text("Live")
    request = request_of(1, name="drive 7")
    scripted.requests = [request]
    scripted.tell("request.importing", request)
    row = page.locator("#flight tbody tr")
    expect(row).to_contain_text("importing")
    expect(row).to_contain_text("drive 7")  # asked for, since events have no names
    request["state"] = "failed"
    request["error"] = {
        "code": "import-failed",
        "title": "CVAT could not import the data",
        "detail": "cannot identify image file",
        "status": 422,
    }
    scripted.tell("request.failed", request, seconds=1.5, server_seconds=1.0)
    expect(page.locator("#failures")).to_contain_text("cannot identify image file")
    expect(page.locator("#tile-failed")).to_have_text("1")
    expect(page.locator("#announcer")).to_contain_text("drive 7 of scenes failed")
    expect(card(page, "scenes")).to_contain_text("Last failure")


def test_a_change_is_shown_at_once(page: Page, scripted: ScriptedDaemon) -> None:
    page.goto(scripted.url)
    gauge = card(page, "scenes").locator(".gauge-words")
    expect(gauge).to_have_text("3 of 3 warm")
    scripted.status["templates"][0] |= {"warm": 1, "creating": 2, "hits": 1234}
    scripted.tell_levels()
    expect(gauge).to_have_text("1 of 3 warm")
    expect(card(page, "scenes").locator(".outcomes")).to_contain_text("1,234")
    label = "Now 1 warm task, 2 in creation, target 3."
    expect(page.get_by_role("img", name=label)).to_be_visible()
    scripted.status["templates"] = [status_of("other")]
    scripted.tell_levels()
    expect(card(page, "other")).to_be_visible()
    expect(card(page, "scenes")).to_have_count(0)


# --- CVAT that is away ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hold", "state", "words"),
    [
        (
            {"hold_code": "cvat-unreachable", "until": 9},
            "held",
            "CVAT does not answer, next try in",
        ),
        (
            {"hold_code": "cvat-unauthorized", "until": 900},
            "refuses",
            "CVAT refuses the token, next",
        ),
        ({"hold_code": "cvat-busy", "until": 900}, "held", "CVAT held until "),
    ],
)
def test_how_cvat_stands_is_shown_beside_the_connection(
    page: Page, scripted: ScriptedDaemon, hold: dict[str, Any], state: str, words: str
) -> None:
    page.goto(scripted.url)
    expect(page.locator("#cvat-words")).to_have_text("CVAT answers")
    green = dot(page)
    code, until = hold["hold_code"], in_seconds(hold["until"])
    scripted.status |= {"hold_reason": "CVAT is away", "hold_code": code, "held_until": until}
    scripted.tell_levels()
    expect(page.locator("#cvat-words")).to_contain_text(words)
    expect(page.locator("#cvat")).to_have_attribute("data-state", state)
    # The page is live all the same, but not as if all were well.
    expect(page.locator("#connection-words")).to_have_text("Live")
    assert dot(page) != green
    for name, usable in (("Pause", True), ("Drain", False), ("Prewarm", False)):
        button = page.get_by_role("button", name=f"{name} scenes")
        assert button.is_enabled() is usable, name
    drain = page.get_by_role("button", name="Drain scenes")
    expect(drain).to_have_attribute("title", re.compile("^CVAT "))
    drain.dispatch_event("click")
    expect(page.get_by_role("dialog")).to_have_count(0)


def dot(page: Page) -> Any:
    """The colour of the connection's dot."""
    return page.locator("#connection .dot").evaluate(
        "(dot) => [getComputedStyle(dot).backgroundColor, getComputedStyle(dot).borderColor].join()"
    )


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        # An invalid token is invalid for all, whichever has tried it.
        (("cvat-unauthorized", ""), "CVAT refuses the token"),
        (("cvat-forbidden", "cvat-forbidden"), "CVAT refuses the token"),
        # It may serve the other one.
        (("cvat-forbidden", ""), "CVAT answers"),
        (("cvat-rejected", "cvat-rejected"), "CVAT answers"),
    ],
)
def test_a_refused_token_is_shown_though_one_template_tried_it(
    page: Page, scripted: ScriptedDaemon, codes: tuple[str, str], words: str
) -> None:
    scripted.status["templates"] = [
        status_of(name, hold_code=code, hold_reason=code and "CVAT refused it")
        for name, code in zip(("scenes", "other"), codes, strict=True)
    ]
    page.goto(scripted.url)
    expect(page.locator("#cvat-words")).to_have_text(words)


# --- A daemon that is gone ------------------------------------------------------------------------


def test_a_lost_connection_is_told_and_taken_up_again(
    watched: Watched, scripted: ScriptedDaemon
) -> None:
    watched.expected += ["ERR_INCOMPLETE_CHUNKED", "ERR_CONNECTION", "ERR_SOCKET", "ERR_EMPTY"]
    page = watched.page
    page.goto(scripted.url)
    state = page.locator("#connection-words")
    expect(state).to_have_text("Live")
    scripted.tell("request.importing", request_of(1))
    expect(page.locator("#flight")).to_contain_text("importing")
    scripted.stop()
    expect(state).to_contain_text("Not connected")
    expect(page.locator("#banners")).to_contain_text("What is shown is as of")
    expect(page.locator("body")).to_have_attribute("data-stale", "")
    expect(page.locator("#announcer")).to_contain_text("connection to the daemon is lost")
    expect(card(page, "scenes")).to_contain_text("3 of 3 warm")  # still there to be read
    expect(page.locator("#cvat-words")).to_have_text("CVAT: not known")
    for name in ("Pause", "Drain", "Prewarm"):
        expect(page.get_by_role("button", name=f"{name} scenes")).to_be_disabled()

    scripted.status["templates"][0]["warm"] = 2
    scripted.start()
    # Unless it was quicker by itself.
    page.locator("#connect-now").evaluate("(button) => button.hidden || button.click()")
    expect(state).to_have_text("Live")
    expect(page.locator("#banners")).to_be_empty()
    expect(page.get_by_role("button", name="Drain scenes")).to_be_enabled()
    expect(card(page, "scenes")).to_contain_text("2 of 3 warm")
    assert page.locator("body").get_attribute("data-stale") is None
    assert (scripted.resumed[0], scripted.resumed[-1]) == (None, "1")


def test_another_store_begins_anew(page: Page, scripted: ScriptedDaemon) -> None:
    page.goto(scripted.url)
    expect(page.locator("#connection-words")).to_have_text("Live")
    scripted.tell("request.importing", request_of(1))
    expect(page.locator("#flight")).to_contain_text("importing")
    scripted.status["store"] = "sqlite:///other.db"
    scripted.tell_levels()
    expect(page.locator("#flight-empty")).to_be_visible()
    expect(page.locator("#connection-words")).to_have_text("Live")
    assert scripted.resumed == [None, None]


# --- All eyes, all screens ------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_used_by_everybody(
    new_page: NewPage, scripted: ScriptedDaemon, scheme: str
) -> None:
    filled(scripted, templates=3)
    with new_page(color_scheme=scheme, reduced_motion="reduce") as watched:
        page = watched.page
        page.goto(scripted.url)
        expect(page.locator("#failures tbody tr")).to_have_count(10)
        assert_accessible(page)
        scripted.status["hold_reason"] = ""
        scripted.tell_levels()
        expect(page.locator("#cvat-words")).to_have_text("CVAT answers")
        for name in ("Drain", "Prewarm"):
            button = page.get_by_role("button", name=f"{name} {LONG_NAME}")
            button.focus()
            page.keyboard.press("Enter")
            expect(page.get_by_role("dialog").locator(":focus")).to_have_count(1)
            assert_accessible(page)
            page.keyboard.press("Escape")
            expect(button).to_be_focused()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(244, 246, 248)", "dark": "rgb(14, 18, 22)"}[scheme]


def test_nothing_lies_beside_the_screen(page: Page, scripted: ScriptedDaemon) -> None:
    page.goto(filled(scripted, templates=2).url)
    expect(page.locator("#failures tbody tr")).to_have_count(10)
    # Charts take their new width a frame after all else has.
    beside = """async () => {
      for (const _ of [1, 2, 3]) await new Promise(requestAnimationFrame);
      return [...document.querySelectorAll("body *:not(.sr-only, .sr-only *)")]
        .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5)
        .map((each) => each.outerHTML.slice(0, 120));
    }"""
    for width in (1400, 800, 360, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(beside) == [], width
    scripted.status["hold_reason"] = ""
    scripted.tell_levels()
    page.get_by_role("button", name=f"Prewarm {LONG_NAME}").click()
    assert page.evaluate(beside) == []


def test_fifty_templates_are_found_by_name(page: Page, scripted: ScriptedDaemon) -> None:
    filled(scripted, templates=50)
    page.goto(scripted.url)
    expect(page.get_by_role("article")).to_have_count(50)
    assert page.locator("canvas").count() == 2  # those of the one that is open
    page.get_by_label("Filter").fill("-49")
    expect(page.get_by_role("article")).to_have_count(1)
    toggle = page.get_by_role("button", name="template-49", exact=True)
    toggle.click()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    expect(card(page, "template-49").locator(".levels canvas")).to_be_visible()
    page.get_by_label("Filter").fill("nothing")
    expect(page.locator("#templates-empty")).to_have_text("No template matches the filter.")


def test_levels_are_drawn_for_the_time_that_is_chosen(page: Page, scripted: ScriptedDaemon) -> None:
    page.goto(filled(scripted).url)
    canvas = card(page, LONG_NAME).locator(".levels canvas")
    expect(canvas).to_be_visible()
    painted = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      const colours = new Set();
      for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] > 60) colours.add(data.slice(i, i + 3).join());
      }
      return colours.size;
    }"""
    assert canvas.evaluate(painted) > 10
    words = card(page, LONG_NAME).locator(".levels figcaption")
    expect(words).to_contain_text("Lowest in 15 min: 0 warm tasks")
    page.get_by_label("5 min", exact=True).check()
    expect(words).to_contain_text("Lowest in 5 min")
    expect(words).to_contain_text("none for")
    page.reload()
    expect(words).to_contain_text("Lowest in 5 min")


def test_a_week_comes_out_of_the_store(page: Page, scripted: ScriptedDaemon) -> None:
    now = time.time()
    at = [now - 600 * n for n in range(1000, 0, -1)]
    known = [n % 5 + 1 if n > 300 else None for n in range(1000)]
    levels = {
        "warm": known,
        "creating": [n and 0 for n in known],
        "target": [n and 5 for n in known],
    }
    levels["least"] = [0 if n == 500 else known[n] for n in range(1000)]
    scripted.longer_history = {
        "interval": 600,
        "at": at,
        "templates": {"scenes": levels},
        "requests": [],
    }
    page.add_init_script(NOTE_TEXTS)
    page.goto(scripted.url)
    words = card(page, "scenes").locator(".levels figcaption")
    expect(words).to_have_text("Lowest in 15 min: 3 warm tasks.")
    page.get_by_label("7 d", exact=True).check()
    day = datetime.fromtimestamp(at[500], UTC).strftime("%-d %b")
    expect(words).to_contain_text(f"Lowest in 7 d: 0 warm tasks at {day}, ")
    assert "GET /v1/history?seconds=604800" in scripted.asked
    # An axis of days, and not of hours.
    page.wait_for_function(r"() => texts.some(({ text }) => /^\d+ [A-Z]\w\w$/.test(text))")
    page.reload()
    expect(words).to_contain_text("Lowest in 7 d: 0 warm tasks")


@pytest.mark.parametrize("width", [375, 768, 1280, 1920])
def test_no_tile_is_alone(page: Page, scripted: ScriptedDaemon, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(scripted.url)
    expect(page.locator("#tile-warm")).to_have_text("3")
    tops = page.locator("#tiles > div").evaluate_all(
        "(tiles) => tiles.map((tile) => tile.getBoundingClientRect().top)"
    )
    assert len({tops.count(top) for top in tops}) == 1, tops


def test_each_quantile_is_named_above_the_chart(page: Page, scripted: ScriptedDaemon) -> None:
    # The p50 is in the first bar, and the p99 far beyond the last one.
    one = {"template": "scenes", "outcome": "hit", "at": time.time(), "code": "", "error": None}
    one |= {"state": "ready", "server_seconds": None}
    scripted.history["requests"] = [
        {**one, "request_id": f"r{n}", "seconds": 0.0101 if n < 80 else 0.012 if n < 98 else 60.0}
        for n in range(100)
    ]
    page.add_init_script(NOTE_TEXTS)
    page.goto(scripted.url)
    chart = card(page, "scenes").locator(".spread .u-over")
    expect(chart).to_be_visible()
    page.wait_for_function("() => texts.some(({ text }) => text.startsWith('p90'))")
    texts = page.evaluate("texts.filter(({ text }) => text.startsWith('p')).slice(-3)")
    assert [each["text"].split()[0] for each in texts] == ["p50", "p90", "p99"]
    left, right = chart.evaluate("(area) => [area.offsetLeft, area.offsetLeft + area.offsetWidth]")
    edges = [left, *(each[side] for each in texts for side in ("left", "right")), right]
    assert edges == sorted(edges)


def test_charts_below_the_fold_are_on_paper(watched: Watched, scripted: ScriptedDaemon) -> None:
    watched.expected.append("readback")
    page = watched.page
    filled(scripted, templates=3)
    page.goto(scripted.url)
    last = page.get_by_role("article").last.locator(".levels canvas")
    # Axes are drawn at once, areas with their data.
    painted = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.some((red, i) => i % 4 === 0 && data[i + 3] > 30 && data[i + 1] > red + 40);
    }"""
    expect(page.locator("#failures tbody tr")).to_have_count(10)
    assert not last.evaluate(painted)
    page.emulate_media(media="print")
    page.wait_for_function(painted, arg=last.element_handle())
