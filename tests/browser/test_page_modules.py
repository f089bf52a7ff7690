"""The parts of the page that draw nothing, called in the browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from browser.scripted_daemon import ScriptedDaemon


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    with ScriptedDaemon() as daemon, browser.new_context(timezone_id="UTC") as context:
        page = context.new_page()
        # A page of that origin on which nothing else runs.
        page.goto(f"{daemon.url}/static/icon.svg")
        yield page


def call(page: Page, module: str, body: str, argument: Any = None) -> Any:
    """What ``body`` returns, a function's of the module ``m`` and the argument ``a``."""
    script = f"async (a) => {{ const m = await import('/static/{module}.js'); {body} }}"
    return page.evaluate(script, argument)


# --- Server-sent events ---------------------------------------------------------------------------


def parsed(page: Page, *pieces: str) -> list[Any]:
    body = "const p = new m.Parser(); return a.flatMap((each) => [...p.feed(each)]);"
    found: list[Any] = call(page, "stream", body, list(pieces))
    return found


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_found_however_they_are_cut(page: Page, end: str, size: int) -> None:
    lines = ["id: 7", "event: request.ready", 'data: {"a":', "data:  1}", "", ": beat", "data", ""]
    # The last line end may be half of one, so something has to follow it.
    text = end.join([*lines, "event: x"])
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert parsed(page, *pieces) == [
        {"id": "7", "event": "request.ready", "data": '{"a":\n 1}'},
        None,
        {"id": "7", "event": "message", "data": ""},
    ]


def test_an_event_without_data_tells_its_id(page: Page) -> None:
    found = parsed(page, "retry: 2000\nid: 3\n\n", "event: levels\ndata: 1\n\n")
    assert found == [
        {"id": "3", "event": "message", "data": ""},
        {"id": "3", "event": "levels", "data": "1"},
    ]


def test_the_waits_grow_and_end_at_the_longest(page: Page) -> None:
    body = "return [1, 2, 3, 6, 60].flatMap((n) => [m.backOff(n, () => 0), m.backOff(n, () => 1)]);"
    waits = call(page, "connection", body)
    assert waits == [0.25, 0.5, 0.5, 1, 1, 2, 7.5, 15, 7.5, 15]


# --- Times ----------------------------------------------------------------------------------------


def test_a_quantile_is_one_of_the_numbers(page: Page) -> None:
    body = "return [[.5, .9, .99].map((q) => m.quantile(a, q)), m.quantile([], .5)]"
    found, of_none = call(page, "timings", body, list(range(1, 101)))
    assert found == [50, 90, 99]
    assert of_none != of_none


@pytest.mark.parametrize(
    "numbers",
    [
        [0.25],
        [0.0, 0.0, 0.0],
        [0.2] * 50 + [0.21] * 50,
        [0.1003 + n / 1000 for n in range(400)],
        [0.25] * 99 + [3600.0],
    ],
)
def test_a_histogram_counts_all(page: Page, numbers: list[float]) -> None:
    bars = call(page, "timings", "return m.histogram(a)", numbers)
    assert sum(bars["counts"]) + bars["beyond"] == len(numbers)
    assert 1 <= len(bars["counts"]) <= 40
    for start, count in zip(bars["starts"], bars["counts"], strict=True):
        inside = [n for n in numbers if start - 1e-9 <= n < start + bars["step"] - 1e-9]
        assert count == len(inside)


def test_one_slow_request_does_not_press_the_rest_together(page: Page) -> None:
    numbers = [0.2 + n / 1000 for n in range(99)] + [60.0]
    bars = call(page, "timings", "return m.histogram(a)", numbers)
    assert bars["beyond"] == 1
    assert len(bars["counts"]) >= 8


def test_a_request_counts_once_and_for_an_hour(page: Page) -> None:
    body = """
      const t = new m.Timings();
      t.addReady("a", { at: 1000, seconds: 0.3, server: 0.2 });
      t.addReady("a", { at: 1000, seconds: 0.9, server: 0.8 });
      t.addReady("b", { at: 2000, seconds: 0.5, server: null });
      t.addFailed("c", { at: 1000 });
      const before = t.parts();
      t.forget(4700);
      return [before, t.parts(), t.failed.size];
    """
    before, after, failed = call(page, "timings", body)
    assert before["whole"] == [0.3, 0.5]
    assert before["server"] == [0.2]
    assert before["ours"] == [pytest.approx(0.1)]
    assert (after["whole"], failed) == ([0.5], 0)


# --- Levels ---------------------------------------------------------------------------------------


def test_levels_join_what_was_sampled_and_what_was_seen(page: Page) -> None:
    body = """
      const l = new m.Levels();
      for (const at of [90, 105, 117]) l.add(at, { warm: 1, creating: 1, target: 9 });
      const of = (x) => [x, x, x];
      l.takeHistory([100, 105, 110], { warm: of(5), creating: of(0), target: of(9) });
      return l.window(0, 120, { current: true });
    """
    at, both, warm, target, least = call(page, "levels", body)
    assert at == [90, 100, 105, 110, 117, 120]
    assert warm == [1, 5, 5, 5, 1, 1]
    assert both == [2, 5, 5, 5, 2, 2]
    assert target == [9] * 6
    assert least == warm


def test_levels_of_a_time_that_nobody_saw_are_left_out(page: Page) -> None:
    body = """
      const l = new m.Levels();
      for (const at of [100, 110, 200]) l.add(at, { warm: at, creating: 0, target: 3 });
      return [l.window(0, 205, { current: false }), l.window(0, 300, { current: false })];
    """
    seen, later = call(page, "levels", body)
    assert seen[2] == [100, 110, None, 200, 200]
    assert later[0][-1] == 200


def test_a_level_that_stays_takes_little_room(page: Page) -> None:
    body = """
      const l = new m.Levels();
      for (let at = 0; at < 7200; at += 0.25) l.add(at, { warm: 3, creating: 0, target: 3 });
      const still = l.at.length;
      for (let at = 7200; at < 14400; at += 0.05) l.add(at, { warm: at, creating: 0, target: 3 });
      return [still, l.at.length, l.at[0], l.window(10000, 14400, { current: true })[2].includes(null)];
    """  # noqa: E501
    still, busy, first, gap = call(page, "levels", body)
    assert still < 450
    assert busy < 7300
    assert first > 10_700
    assert not gap


def test_the_lowest_level_and_how_long_there_was_none(page: Page) -> None:
    body = """
      const l = new m.Levels();
      [[0, 0], [5, 4], [10, 0], [12, 2], [20, 3]].forEach(([at, warm]) =>
        l.add(at, { warm, creating: 0, target: 3 }));
      return [l.lows(6, 30), l.lows(13, 30), new m.Levels().lows(0, 9)];
    """
    dry, wet, empty = call(page, "levels", body)
    assert dry == {"lowest": 0, "lowestAt": 10, "dry": 2}
    assert wet == {"lowest": 2, "lowestAt": 13, "dry": 0}
    assert empty["lowestAt"] is None


def test_a_week_is_followed_by_what_was_seen_since(page: Page) -> None:
    body = """
      const week = new m.Levels(604800);
      const sampled = { warm: [3, 4, 4], creating: [0, 0, 0], target: [5, 5, 5], least: [1, 0, 4] };
      week.takeHistory([0, 600, 7200], sampled, 600);
      const now = new m.Levels();
      for (const at of [7100, 7210, 7220]) now.add(at, { warm: 2, creating: 0, target: 5 });
      const all = week.before(now);
      return [all.window(0, 7220, { current: true }), all.lows(0, 7220), all.lows(7000, 7220)];
    """
    window, low, later = call(page, "levels", body)
    # From 600 on nothing is known for more than one step.
    assert window[0] == [0, 600, 600.001, 7200, 7210, 7220, 7220][: len(window[0])]
    assert window[2][:6] == [3, 4, None, 4, 2, 2]
    assert window[4][:6] == [1, 0, None, 4, 2, 2]
    assert (low["lowest"], low["lowestAt"]) == (0, 600)
    assert later["lowest"] == 2


# --- Requests -------------------------------------------------------------------------------------

EVENT = """
  const event = (id, state, more) => ({ request_id: id, template: "t", at: "2026-01-01T00:00:00Z",
    task_id: 1, state, outcome: "hit", ...more });
  const item = (id, state) => ({ id, template: "t", state, task_id: 1, url: null, name: "n",
    files: ["f"], size: 1, created_at: "2026-01-01T00:00:00Z", uploaded_at: null });
"""


def test_an_older_answer_does_not_bring_a_finished_request_back(page: Page) -> None:
    body = f"""{EVENT}
      const r = new m.Requests();
      const mark = r.mark();
      r.takeEvent(event("a", "ready"));
      r.takeEvent(event("b", "importing"));
      r.takeUnfinished([item("a", "importing"), item("b", "queued"), item("c", "queued")], mark);
      return r.shown(1e10).map((row) => [row.id, row.state]);
    """
    assert call(page, "requests", body) == [["b", "importing"], ["c", "queued"]]


def test_what_the_daemon_no_longer_knows_goes(page: Page) -> None:
    body = f"""{EVENT}
      const r = new m.Requests();
      r.takeUnfinished([item("a", "importing")], r.mark());
      r.takeUnfinished([], r.mark());
      return r.shown(0).length;
    """
    assert call(page, "requests", body) == 0


def test_failures_that_differ_by_names_and_numbers_are_equal(page: Page) -> None:
    one = {"template": "t", "code": "import-failed", "title": "CVAT could not import the data"}
    full = "No space left on device: '/data/17/raw/a.jpg' (request 0a1b2c3d4e)"
    failures = [
        {**one, "id": 1, "detail": full},
        {**one, "id": 2, "detail": full.replace("17/raw/a", "18/raw/b").replace("0a1b", "9f8e")},
        {**one, "id": 3, "detail": "cannot identify image file 'a.jpg'"},
        {**one, "id": 4, "detail": full, "template": "other"},
        {**one, "id": 5, "detail": None, "code": "task-gone"},
    ]
    body = "return m.grouped(a).map(({ newest, times }) => [newest.id, times])"
    assert call(page, "failures", body, failures) == [[1, 2], [3, 1], [4, 1], [5, 1]]


def test_an_address_says_all_of_a_view(page: Page) -> None:
    body = "const r = m.parse(a); return [r, m.format(r)]"
    address = "#requests?state=failed&state=queued&template=a%26b&text=%23+x&within=900&id=01k"
    filter = {"states": ["failed", "queued"], "template": "a&b", "text": "# x", "within": 900}
    shown = {"view": "requests", "filter": filter, "id": "01k"}
    assert call(page, "route", body, address) == [shown, address]
    nothing = {"states": [], "template": "", "text": "", "within": 0}
    for other in ("", "#", "#main", "#nonsense?within=NaN&a=b"):
        found, _ = call(page, "route", body, other)
        assert found == {"view": "overview", "filter": nothing, "id": ""}


# --- Charts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "places"),
    [
        ([30, 40, 80], [20, 45, 70]),  # the second is moved behind the first
        ([0, 50, 100], [0, 40, 80]),  # neither goes over an edge
        ([90, 95, 100], [30, 55, 80]),  # all are moved to the left
        ([0, 0, 0], [0, 25, 50]),
    ],
)
def test_labels_lie_beside_each_other(page: Page, marks: list[int], places: list[int]) -> None:
    given = [{"x": x, "width": 20} for x in marks]
    assert call(page, "spread_chart", "return m.placeLabels(a, [0, 100], 5)", given) == places


# --- Words ----------------------------------------------------------------------------------------


def test_numbers_read_well(page: Page) -> None:
    body = """
      return {
        count: [0, 1234, 999999, 1234567, 123456789].map(m.count),
        duration: [null, 0, 0.0042, 0.2644, 0.9996, 1.234, 12.34, 99.99, 3725].map(m.duration),
        share: [m.share(0, 0), m.share(1, 1), m.share(99999, 100000), m.share(947, 1000)],
        rate: [0, 1 / 60, 0.4, 1.234, 33].map(m.rate),
        bytes: [0, 1023, 1024, 1.5 * 2 ** 20, 2 ** 41].map(m.bytes),
        ago: [0, 8.2, 125, 90000].map(m.ago),
        process: ["vm:14956:d001a4", "vm 1 x", "a:b:1:2f"].map(m.processName),
      };
    """
    assert call(page, "format", body) == {
        "count": ["0", "1,234", "999,999", "1.23M", "123M"],
        "duration": [
            "\u2013",
            "0 s",
            "4.2 ms",
            "264 ms",
            "1.00 s",
            "1.23 s",
            "12.3 s",
            "1 min 40 s",
            "1 h 2 min",
        ],
        "share": ["", "100%", "99.9%", "94.7%"],
        "rate": ["0/min", "1/min", "24/min", "1.2/s", "33/s"],
        "bytes": ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "2.0 TiB"],
        "ago": ["now", "8 s ago", "2 min ago", "1 d ago"],
        "process": ["vm, process 14956", "vm 1 x", "a:b, process 1"],
    }


def test_only_addresses_of_the_web_are_linked(page: Page) -> None:
    body = "return a.map(m.isWeb)"
    good = ["http://localhost:8080/tasks/1", "https://cvat.example.com"]
    bad = ["javascript:alert(1)", " JaVaScript:alert(1)", "data:text/html,x", "/tasks/1", "", None]
    assert call(page, "dom", body, good + bad) == [True] * len(good) + [False] * len(bad)
