"""Remakes the picture of the README, by hand: ``pytest tests/browser/pictures.py``.

It takes five minutes, in which a daemon on a simulated CVAT with a real one's timings is kept
busy. ``POOL_PICTURES=FOLDER`` takes more pictures into a folder: narrow and wide, light and dark.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import ViewportSize, expect

from browser.seen import NewPage, Running
from pool import TaskPool
from pool.bench import processes
from pool.bench.pictures import sample_image
from pool.config.loader import load
from pool.cvat import connect
from pool.errors import PoolError

README_PICTURE = Path(__file__).parents[2] / ".github" / "dashboard.png"
MOST_BYTES = 300_000
SECONDS = 300

#: Requests a second of each template, on average, how many of them come at once now and then, and
#: how many tasks are kept warm for it.
TEMPLATES = {"street-scenes": (0.45, 7, 10), "warehouse": (0.2, 5, 6)}
SCREENS = {"wide": (1360, 1010), "narrow": (360, 780)}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Each part in a process of its own, as in real use."""
    folder = tmp_path_factory.mktemp("busy")
    with ExitStack() as stack:
        environment = stack.enter_context(processes.simulator(folder, speed=1.0))
        config = folder / "config.toml"
        templates = "".join(
            f'[templates.{name}]\nlabels = [{{ name = "car" }}, {{ name = "person" }}]\n'
            f'pool = {{ min_size = {size}, max_size = 60, max_wait = "400ms" }}\n'
            for name, (_, _, size) in TEMPLATES.items()
        )
        url = environment["CVAT_URL"]
        config.write_text(f'[cvat]\nurl = "{url}"\n[daemon]\nport = 0\n{templates}')
        daemon = stack.enter_context(processes.daemon(config, environment))
        settings = load(config)
        cvat = connect(settings.cvat, environment)
        stack.callback(cvat.close)
        pool = stack.enter_context(TaskPool(settings, cvat=cvat))
        yield Running(daemon.listening_at(), pool)


class Callers:
    """They ask for one template, more of them at some times than at others."""

    def __init__(self, running: Running, template: str, rate: float, together: int) -> None:
        self._running, self._template = running, template
        self._rate, self._together = rate, together
        self._random = random.Random(template)
        self._images = [sample_image(seed, size=120_000) for seed in range(4)]
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._arrive)]

    def start(self) -> None:
        self._threads[0].start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)

    def _arrive(self) -> None:
        began, numbers = time.monotonic(), itertools.count(1)
        while True:
            wave = 1 + 0.9 * math.sin((time.monotonic() - began) / 22)
            if self._stopped.wait(self._random.expovariate(self._rate * wave + 0.01)):
                return
            for _ in range(self._together if self._random.random() < 0.04 else 1):
                thread = threading.Thread(target=self._ask, args=(next(numbers),))
                self._threads.append(thread)
                thread.start()

    def _ask(self, number: int) -> None:
        image = b"no image" if number % 61 == 40 else self._random.choice(self._images)
        files = [(f"frame_{number:05}_{n}.jpg", image) for n in range(1 + number % 3)]
        with suppress(PoolError):
            name = f"drive {number // 10}, part {number % 10}"
            self._running.pool.submit(self._template, files, name=name).jobs(timeout=30)


@pytest.mark.timeout(SECONDS + 120)
def test_take_pictures(busy: Running, new_page: NewPage) -> None:
    callers = [
        Callers(busy, name, rate, together) for name, (rate, together, _) in TEMPLATES.items()
    ]
    for each in callers:
        each.start()
    try:
        time.sleep(SECONDS)
        busy.pool.prewarm("warehouse", 9)
        wide = take(new_page, busy, screen="wide", scheme="light")
        README_PICTURE.parent.mkdir(exist_ok=True)
        README_PICTURE.write_bytes(wide)
        if folder := os.environ.get("POOL_PICTURES"):
            for screen in SCREENS:
                for scheme in ("light", "dark"):
                    picture = take(new_page, busy, screen=screen, scheme=scheme, whole=True)
                    Path(folder, f"dashboard-{screen}-{scheme}.png").write_bytes(picture)
    finally:
        for each in callers:
            each.stop()
    assert len(wide) < MOST_BYTES


def take(
    new_page: NewPage, busy: Running, *, screen: str, scheme: str, whole: bool = False
) -> bytes:
    """A PNG of the page as it is now."""
    width, height = SCREENS[screen]
    size: ViewportSize = {"width": width, "height": height}
    with new_page(viewport=size, color_scheme=scheme, device_scale_factor=1) as watched:
        page = watched.page
        page.goto(busy.url)
        page.get_by_label("5 min", exact=True).check()
        expect(page.locator("#failures tbody tr").first).to_be_visible()
        if whole:
            # All of it on the screen, since charts are drawn when they are seen.
            size["height"] = page.evaluate("document.documentElement.scrollHeight")
            page.set_viewport_size(size)
        page.wait_for_timeout(3_000)
        image = Image.open(io.BytesIO(page.screenshot()))
    small = io.BytesIO()
    image.convert("RGB").save(small, "PNG", optimize=True)
    return small.getvalue()
