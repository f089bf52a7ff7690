"""A real Chromium, and pages that must not complain nor ask anybody else.

Without a Chromium these tests are skipped, unless ``POOL_REQUIRE_BROWSER=1`` says that there has to
be one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from browser.scripted_daemon import ScriptedDaemon
from browser.seen import NewPage, RunDaemon, Running, Watched, daemon_of
from pool.simulator import SimulatorServer

#: Milliseconds in which the page has to show something.
PATIENCE = 20_000
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TEMPLATES = ("street-scenes", "night-drives")

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One for this folder, and not for the session: while Playwright runs, its event loop does,
    so that no other test could start one of its own."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        if os.environ.get("POOL_REQUIRE_BROWSER") == "1":
            pytest.fail("there is no Chromium, and POOL_REQUIRE_BROWSER=1 says that there must be")
        pytest.skip("there is no Chromium")
    # Root has no sandbox, and /dev/shm is small in a container.
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def new_page(browser: Browser) -> NewPage:
    """Opens a page in a context of its own; options are those of a Playwright context. When it
    is closed, it must not have complained nor asked another origin."""

    @contextmanager
    def opened(**options: Any) -> Iterator[Watched]:
        with browser.new_context(locale="en-GB", timezone_id="UTC", **options) as context:
            context.set_default_timeout(PATIENCE)
            watched = Watched(context.new_page())
            watched.listen()
            yield watched
            watched.check()

    return opened


@pytest.fixture
def watched(new_page: NewPage) -> Iterator[Watched]:
    with new_page() as watched:
        yield watched


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page


# --- What they show -----------------------------------------------------------------------------


@pytest.fixture
def scripted() -> Iterator[ScriptedDaemon]:
    """A daemon that says what the test has it say."""
    with ScriptedDaemon() as daemon:
        yield daemon


@pytest.fixture(scope="package")
def run_daemon(simulator: SimulatorServer, tmp_path_factory: pytest.TempPathFactory) -> RunDaemon:
    @contextmanager
    def run(*, api_token: str | None = None, tokens: str = "") -> Iterator[Running]:
        config = _configuration(tmp_path_factory.mktemp("daemon"), simulator)
        config.write_text(config.read_text() + tokens)
        with daemon_of(config, simulator.access_token, api_token=api_token) as running:
            yield running

    return run


@pytest.fixture(scope="package")
def running(run_daemon: RunDaemon) -> Iterator[Running]:
    with run_daemon() as running:
        yield running


def _configuration(folder: Path, simulator: SimulatorServer) -> Path:
    templates = "".join(
        f'\n[templates.{name}]\nlabels = [{{ name = "car" }}]\n'
        'pool = { min_size = 3, max_size = 20, max_wait = "5s" }\nimport = { timeout = "20s" }\n'
        for name in TEMPLATES
    )
    path = folder / "config.toml"
    path.write_text(f'[cvat]\nurl = "{simulator.url}"\n[daemon]\nport = 0\n{templates}')
    return path
