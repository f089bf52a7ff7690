"""One signed POST to a sink, and what the answer means for the delivery.

=================================  ==============================================================
the receiver answers               the delivery
=================================  ==============================================================
2xx                                is done
400, 413, 415 or 422               is tried again, and given up alone after ten minutes: this body
                                   is not wanted, and those behind it may be
410                                is kept, as are all others, and nothing more is sent to this
                                   sink until the daemon is started again
anything else, or nothing at all   is tried again; when nothing was accepted for a day, all that is
                                   older than a day is given up, and counted
=================================  ==============================================================

A redirect is not followed: it is an answer like any other that is not 2xx.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import urllib3

from pool.clock import Clock
from pool.config.settings import SinkSettings
from pool.config.tokens import read_secret
from pool.config.units import retry_after
from pool.cvat.failures import broken_reason
from pool.cvat.webhooks import signature_of
from pool.errors import ConfigError
from pool.permissions import warn_of_readers
from pool.version import VERSION

SIGNATURE: Final = "X-Pool-Signature-256"
DELIVERY: Final = "X-Pool-Delivery"
EVENT: Final = "X-Pool-Event"

#: Seconds to get a connection, and for the answer.
CONNECT_TIMEOUT: Final = 5.0
ANSWER_TIMEOUT: Final = 10.0
#: Bytes of an answer that are read, and not looked at, so that the connection can be used again.
ANSWER: Final = 2**16

REFUSALS: Final = frozenset({400, 413, 415, 422})
GONE: Final = 410


class Verdict(Enum):
    """What an answer means for the delivery; see the table above."""

    DELIVERED = auto()
    REFUSED = auto()
    AGAIN = auto()
    GONE = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The answer to a POST: a ``status``, None without an answer, with the reason in ``problem``.

    ``retry_after`` is how many seconds the receiver asks to be left alone for.
    """

    status: int | None = None
    retry_after: float | None = None
    problem: str = ""

    @property
    def verdict(self) -> Verdict:
        """What it means for the delivery."""
        if self.status is None:
            return Verdict.AGAIN
        if 200 <= self.status < 300:
            return Verdict.DELIVERED
        if self.status == GONE:
            return Verdict.GONE
        return Verdict.REFUSED if self.status in REFUSALS else Verdict.AGAIN


class Endpoint:
    """The address of one sink. Proxies are not used."""

    def __init__(
        self, sink: SinkSettings, *, clock: Clock, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._environ = environ
        if sink.secret_file is not None:
            warn_of_readers(sink.secret_file, "secret file of a sink")
        self._http = urllib3.PoolManager(
            maxsize=1,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT, read=ANSWER_TIMEOUT),
        )

    def post(self, body: bytes, *, delivery_id: str, kind: str) -> Reply:
        """Make one POST. Failures of the network and the receiver are returned, not raised."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"cvat-task-pool/{VERSION}",
            DELIVERY: delivery_id,
            EVENT: kind,
        }
        try:
            # Read each time, so that it can be changed while the daemon runs.
            secret = read_secret(self._sink, self._environ, of="a sink")
        except ConfigError as error:
            return Reply(problem=str(error))
        if secret is not None:
            headers[SIGNATURE] = signature_of(body, secret)
        try:
            response = self._http.request(
                "POST",
                self._sink.url,
                body=body,
                headers=headers,
                redirect=False,
                preload_content=False,
            )
            try:
                response.read(ANSWER)
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            return Reply(problem=broken_reason(error, ANSWER_TIMEOUT))
        return Reply(
            status=response.status,
            retry_after=retry_after(response.headers.get("Retry-After"), now=self._clock.now()),
            problem="" if 200 <= response.status < 300 else f"HTTP {response.status}",
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.clear()
