"""Which CVAT the daemon works with: a warning where it is too old, and what an upgrade brings."""

from __future__ import annotations

from dataclasses import dataclass

from pool.cvat import CvatClient
from pool.errors import CvatError, CvatTooOld
from pool.logs import get_logger
from pool.services.hook_setup import HookSetup

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionReport:
    """The server's version, "" when it did not answer; and how many webhooks were completed since
    it was upgraded."""

    version: str = ""
    completed: int = 0


class ServerVersion:
    """Acts on the server's version: once at the start, and whenever it changes."""

    def __init__(self, cvat: CvatClient, setup: HookSetup) -> None:
        self._cvat = cvat
        self._setup = setup
        self._version = ""

    def run_once(self) -> VersionReport:
        """Ask the server for its version, and act on one that is new."""
        try:
            about = self._cvat.about()
            if about.version == self._version:
                return VersionReport(version=about.version)
            completed = self._setup.complete()
        except CvatError as error:
            log.info("server's version not acted on", why=str(error))
            return VersionReport()
        self._version = about.version
        log.info("server's version", version=about.version)
        try:
            about.check()
        except CvatTooOld as error:
            log.warning("server too old", why=str(error))
        return VersionReport(version=about.version, completed=completed)
