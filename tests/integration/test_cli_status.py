"""``cvat-pool status`` on screens of several widths, in a pipe, in colour and without."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.api import in_thread
from support.commands import cvat_pool
from support.statuses import daemon_status, status_with, template_status
from support.terminal import in_a_terminal
from support.waiting import wait_until

from pool.cli.status import StatusView
from pool.config.loader import load
from pool.daemon import Daemon
from pool.observability.status import notes, troubles
from pool.simulator import SimulatorServer
from pool.status import Status, WaitReason, WebhookState

LONG = "drive-2026-11-night-rain-front-camera"
LONGEST = "all-of-the-sixty-four-characters-that-the-name-of-a-template-has"
COLOURS = re.compile(r"\x1b\[[0-9;]+m")


@pytest.fixture(scope="module")
def folder(simulator: SimulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A pool with a daemon, of which one template is held, one paused and one prewarmed."""
    folder = tmp_path_factory.mktemp("status")
    config = folder / "config.toml"
    config.write_text(
        f'[cvat]\nurl = "{simulator.url}"\n[daemon]\nport = 0\n[defaults]\nmin_size = 1\n'
        f"[templates.{LONG}]\nlabels = []\n[templates.lost]\nproject = 999999\n"
        f"[templates.parcels]\nlabels = []\n[templates.{LONGEST}]\nlabels = []\n"
    )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("CVAT_ACCESS_TOKEN", simulator.access_token)
        daemon = Daemon(load(config))
        store = daemon.process.store
        store.pause("parcels", now=daemon.process.clock.now())
        with in_thread(daemon):
            wait_until(
                store, lambda: "lost" in store.holds() and {LONG, LONGEST} <= set(store.levels())
            )
            known: dict[str, Any] = {"cwd": folder, "CVAT_ACCESS_TOKEN": simulator.access_token}
            assert cvat_pool("prewarm", LONG, "3", "--for", "2h", **known).returncode == 0
            assert cvat_pool("lease", "parcels", **known).returncode == 0
            yield folder


@pytest.mark.parametrize("width", [60, 80])
def test_name_warm_tasks_and_state_are_whole_on_one_line(folder: Path, width: int) -> None:
    result = cvat_pool("status", cwd=folder, COLUMNS=str(width))
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in result.stdout
    rows = {line.split()[0]: line.split()[1:] for line in lines if re.search(r" \d+/\d+ ", line)}
    assert re.fullmatch(r"[0-3]/3", rows[LONG][0])
    assert rows["lost"][:2] == ["0/1", "held"]
    assert rows["parcels"][:2] == ["0/1", "paused"]
    (cut,) = [name for name in rows if name not in (LONG, "lost", "parcels")]
    start, end = (cut.split("…") * 2)[:2]
    assert LONGEST.startswith(start) and LONGEST.endswith(end)


@pytest.mark.parametrize("width", [60, 80])
def test_holds_and_reasons_are_sentences(folder: Path, width: int) -> None:
    shown = cvat_pool("status", cwd=folder, COLUMNS=str(width)).stdout
    words = " ".join(shown.split())
    assert re.search(
        r"requests in flight: 0 lost: CVAT rejected the call since \d\d:\d\d \(HTTP 400 Bad "
        r"Request: Project matching query does not exist\.\); (next try in \d+ s|trying again now)"
        r"\. To try at once: 'cvat-pool resume lost'\. template ",
        words,
    ), words
    assert re.search(rf"{LONG}: at least 3 warm until ", words)
    assert re.search(r"parcels: paused since \d\d:\d\d; 'cvat-pool resume parcels' ends it", words)
    assert "maintained by " in words
    assert shown.count("cvat-pool resume lost") == 1, "a command is on one line"


def test_figures_without_a_column_are_lines(folder: Path) -> None:
    """The longest name leaves no room for further columns at 60."""
    shown = cvat_pool("status", cwd=folder, COLUMNS="60").stdout
    assert "\nleased: parcels 1\n" in shown
    assert "\nhit/wait/cold: parcels 0/0/1\n" in shown
    assert "queued" not in shown, "it is 0 everywhere"


def test_all_columns_are_shown_when_asked_for(folder: Path) -> None:
    shown = cvat_pool("status", "--wide", cwd=folder, COLUMNS="60").stdout
    (headings,) = [line for line in shown.splitlines() if line.startswith("template ")]
    assert headings.split()[1:] == [
        *("warm", "state", "queued", "waiting", "importing", "leased", "deleting"),
        "hit/wait/cold",
    ]
    assert re.search(rf"^{LONGEST} .* 0/0/0$", shown, re.MULTILINE)
    assert re.search(r"^parcels .* 1 +\d+ +0/0/1$", shown, re.MULTILINE)


@pytest.mark.parametrize(("extra", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_have_a_meaning_and_go_with_no_color(
    folder: Path, extra: dict[str, str], coloured: bool
) -> None:
    with in_a_terminal("status", cwd=folder, output=True, **extra) as terminal:
        terminal.finish()
        assert re.search(r"lost +0/1 +held", terminal.shown)
        colours = {each for each in terminal.controls if COLOURS.fullmatch(each)}
    red, yellow = "\x1b[31m", "\x1b[33m"
    assert {red, yellow} <= colours if coloured else not colours


def test_it_is_kept_up_to_date_on_a_narrow_screen(folder: Path) -> None:
    with in_a_terminal("status", "-w", cwd=folder, output=True, COLUMNS="60") as terminal:
        terminal.wait_for("maintained by")
        assert cvat_pool("prewarm", LONG, "2", cwd=folder).returncode == 0
        terminal.wait_for("at least 2 warm")
        assert max(map(len, re.split(r"[\r\n]+", terminal.shown))) <= 60


# --- What is wrong, in words --------------------------------------------------------------------

NOW = 1_800_000_000.0


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW + seconds, UTC)


HELD: dict[str, Any] = {
    "held_since": at(-1.0),
    "held_until": at(3.2),
    "hold_reason": "CVAT cannot be reached: http://s: connection refused",
}
SINCE = f"{at(-1.0).astimezone():%H:%M}"
CUT_OFF = daemon_status(owner="pool-2:12:7c0857", cut_off=True)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (status_with(template_status()), []),
        (
            status_with(template_status(), maintainer=None),
            ["No daemon keeps the pools filled: start 'cvat-pool run'."],
        ),
        (
            status_with(template_status(queued=5), template_status("b", queued=2), **HELD),
            [
                f"CVAT cannot be reached since {SINCE} (http://s: connection refused); next try "
                "in 4 s. 7 requests wait. To try at once: 'cvat-pool resume'."
            ],
        ),
        (
            status_with(template_status(queued=1), **{**HELD, "held_until": at(-0.1)}),
            [
                f"CVAT cannot be reached since {SINCE} (http://s: connection refused); trying "
                "again now. 1 request waits. To try at once: 'cvat-pool resume'."
            ],
        ),
        (
            status_with(template_status(**{**HELD, "hold_reason": "refused", "held_until": None})),
            [f"scenes: refused since {SINCE}. To try at once: 'cvat-pool resume scenes'."],
        ),
        (
            status_with(*(template_status(name, **HELD) for name in "abc")),
            [
                f"a, b, c: CVAT cannot be reached since {SINCE} (http://s: connection refused); "
                "next try in 4 s. To try at once: 'cvat-pool resume'."
            ],
        ),
        (
            status_with(*(template_status(name, **HELD) for name in "abcd"), template_status("e")),
            [
                f"4 templates: CVAT cannot be reached since {SINCE} (http://s: connection "
                "refused); next try in 4 s. To try at once: 'cvat-pool resume'."
            ],
        ),
        (
            status_with(template_status(**{**HELD, "held_until": at(300)})),
            [
                f"scenes: CVAT cannot be reached since {SINCE} (http://s: connection refused); "
                "next try in 5 min. To try at once: 'cvat-pool resume scenes'."
            ],
        ),
        (
            status_with(template_status(), daemons=(daemon_status(), CUT_OFF)),
            [
                "CVAT answers other daemons, and not process 12 on pool-2, which leaves the work "
                "to them: look at the way from there to CVAT."
            ],
        ),
    ],
)
def test_what_is_wrong_is_said_in_words(status: Status, words: list[str]) -> None:
    assert list(troubles(status, now=NOW)) == words


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"queued": 1, "waits_for": WaitReason.TASK}, ["1 request waits for a warm task"]),
        (
            {
                "queued": 12,
                "queued_interactive": 2,
                "queued_bulk": 7,
                "waits_for": WaitReason.PLACE,
                "places": 3,
            },
            [
                "12 requests wait for a place among the imports, 2 of 3 in use "
                "(2 interactive, 7 bulk)"
            ],
        ),
        (
            {"queued": 2, "waits_for": WaitReason.DAEMON},
            ["2 requests wait for their process, or a daemon"],
        ),
        (
            {"queued": 2, "waits_for": WaitReason.TASK, "oldest_waiting_since": at(-185)},
            ["2 requests wait for a warm task; the oldest has waited for 3 min"],
        ),
        (
            {"waiting": 1, "oldest_waiting_since": at(-5)},
            ["1 caller waits for a task; it has waited for 5 s"],
        ),
        (
            {"waiting": 2, "oldest_waiting_since": at(-3 * 86400)},
            ["2 callers wait for a task; the oldest has waited for 3 days"],
        ),
        (
            {"group_sizes": (1, 1, 40)},
            ["14.0 requests an import in the last 15 minutes, 40 at most"],
        ),
        ({"group_sizes": (1, 1)}, []),
    ],
)
def test_what_waits_and_what_is_shared_is_said_in_words(row: Any, words: list[str]) -> None:
    status = status_with(template_status(**row), places_used=2)
    said = [line for line in notes(status, now=NOW) if line.startswith("scenes: ")]
    assert said == [f"scenes: {each}" for each in words]
    with StringIO() as text:
        Console(file=text, width=80).print(StatusView(status), crop=False)
        assert max(map(len, text.getvalue().splitlines())) <= 80


@pytest.mark.parametrize("width", [60, 80, 120])
def test_figures_of_many_templates_are_tables_that_fit(width: int) -> None:
    rows = [
        template_status(
            f"camera-{number:02}-of-the-north",
            queued=number % 3,
            importing=number // 4,
            leased=number % 4,
            deleting=number // 3,
            hooks=WebhookState.ALIVE if number % 2 else WebhookState.IMPOSSIBLE,
        )
        for number in range(12)
    ]
    with StringIO() as text:
        Console(file=text, width=width).print(StatusView(status_with(*rows)), crop=False)
        shown = text.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert len(shown.splitlines()) < 50
    cells: dict[str, dict[str, str]] = {}
    headings: list[str] = []
    for line in shown.replace("below target", "low").splitlines():
        if line.startswith("template"):
            headings = line.split()
        elif line.startswith("camera-"):
            name, *values = line.split()
            cells.setdefault(name, {}).update(zip(headings[1:], values, strict=True))
    for row in rows:
        for figure in ("queued", "importing", "leased", "deleting"):
            assert cells[row.name].get(figure, "0") == str(getattr(row, figure))
        assert cells[row.name]["hit/wait/cold"] == "120/3/1"
    assert "webhooks: not possible (6 templates)" in shown
    assert "webhooks: alive (6 templates)" in shown


def test_words_of_cvat_do_not_control_the_terminal() -> None:
    held = {**HELD, "hold_reason": "CVAT rejected the call: \x1b[2Jgone"}
    with StringIO() as text:
        Console(file=text, width=80).print(StatusView(status_with(template_status(**held))))
        assert "?[2Jgone" in text.getvalue() and "\x1b" not in text.getvalue()
