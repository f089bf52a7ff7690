"""What no other call shows: which CVAT it is, and whether the access token may write.

A token that is read-only reads as well as any, so that with full pools its first upload would be
what shows it; and a server that is too old fails in ways that do not say so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pool.cvat import CvatClient
from pool.errors import CvatError, CvatForbidden, CvatTooOld
from pool.logs import get_logger
from pool.requests.breaker import Breaker
from pool.tracking.webhook_setup import WebhookSetup

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeReport:
    """The server's version, "" when it did not answer; whether the token may only read; and how
    many webhooks were completed since an upgrade."""

    version: str = ""
    read_only: bool = False
    completed: int = 0


class ServerProbe:
    """Asks the server for its version and for the token, and acts on what is new."""

    def __init__(
        self, cvat: CvatClient, setup: WebhookSetup, breaker: Breaker, templates: Iterable[str]
    ) -> None:
        self._cvat = cvat
        self._setup = setup
        self._breaker = breaker
        self._templates = templates
        self._version = ""

    def run_once(self) -> ProbeReport:
        """Ask once. Hold all templates while the token is read-only."""
        try:
            version = self._cvat.about()
            token = self._cvat.access_token()
            completed = 0
            if version.version != self._version:
                completed = self._setup.complete()
        except CvatError as error:
            log.info("server not probed", why=str(error))
            return ProbeReport()
        if version.version != self._version:
            self._version = version.version
            log.info("server's version", version=version.version)
            try:
                version.check()
            except CvatTooOld as error:
                log.warning("server too old", why=str(error))
        if token is not None and token.read_only:
            refusal = CvatForbidden(token.refusal)
            for name in self._templates:
                self._breaker.hold(name, refusal, uploads=True)
        return ProbeReport(
            version=version.version,
            read_only=token is not None and token.read_only,
            completed=completed,
        )
