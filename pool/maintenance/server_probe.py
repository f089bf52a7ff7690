"""Ask what no other call shows: which CVAT it is, and whether the access token may write.

A token that is read-only reads as well as any, so that with full pools its first upload would be
what shows it; and a server that is too old fails in ways that do not say so.
"""

from __future__ import annotations

from collections.abc import Iterable

from pool.cvat import CvatClient
from pool.errors import CvatError, CvatForbidden, CvatTooOld
from pool.logs import get_logger
from pool.requests.breaker import Breaker
from pool.tracking.webhook_setup import WebhookSetup

log = get_logger(__name__)


class ServerProbe:
    """Asks for the server's version and for the token, and acts on what is new."""

    def __init__(
        self, cvat: CvatClient, setup: WebhookSetup, breaker: Breaker, templates: Iterable[str]
    ) -> None:
        self._cvat = cvat
        self._setup = setup
        self._breaker = breaker
        self._templates = templates
        self._version = ""

    def run_once(self) -> None:
        """Complete webhooks after an upgrade, and hold all templates while the token is
        read-only."""
        try:
            server = self._cvat.about()
            token = self._cvat.access_token()
            is_new = server.version != self._version
            if is_new:
                self._setup.complete()
        except CvatError as error:
            log.info("server not probed", why=str(error))
            return
        if is_new:
            self._version = server.version
            log.info(f"the server is CVAT {server.version}")
            try:
                server.check()
            except CvatTooOld as error:
                log.warning("server too old", why=str(error))
        if token is not None and token.read_only:
            refusal = CvatForbidden(token.refusal)
            for name in self._templates:
                self._breaker.hold(name, refusal, uploads=True)
