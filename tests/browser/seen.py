"""What the tests of the page hold: a page that is listened to, and a daemon that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Request
from support.api import in_thread

from pool import TaskPool
from pool.config.loader import load
from pool.cvat import connect
from pool.daemon import Daemon


@dataclass
class Watched:
    """A page, and what it complained of and asked for. ``expected`` are parts of complaints that
    are no fault, such as those that Chromium itself makes of an answer of 401."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)

    def listen(self) -> None:
        self.page.on("console", lambda said: self.complain(said.type, said.text))
        self.page.on("pageerror", lambda error: self.complain("error", str(error)))
        self.page.on("request", self._note)

    def complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _note(self, request: Request) -> None:
        self.asked.append(request.url)

    def check(self) -> None:
        unexpected = [
            text for text in self.complaints if not any(each in text for each in self.expected)
        ]
        assert unexpected == []
        assert len({urlsplit(url).netloc for url in self.asked}) <= 1, self.asked


@dataclass(frozen=True)
class Running:
    """A real daemon on the simulator, and a pool of another process on its store."""

    url: str
    pool: TaskPool


NewPage = Callable[..., AbstractContextManager[Watched]]
RunDaemon = Callable[..., AbstractContextManager[Running]]


@contextmanager
def daemon_of(
    config: Path, access_token: str, *, api_token: str | None = None
) -> Iterator[Running]:
    """A daemon in a thread, from when it listens."""
    settings = load(config)
    with ExitStack() as stack:
        theirs, ours = (
            connect(settings.cvat, {"CVAT_ACCESS_TOKEN": access_token}) for _ in range(2)
        )
        stack.callback(theirs.close)
        stack.callback(ours.close)
        daemon = stack.enter_context(in_thread(Daemon(settings, cvat=theirs, api_token=api_token)))
        yield Running(daemon.url, stack.enter_context(TaskPool(settings, cvat=ours)))


def assert_accessible(page: Page) -> None:
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
