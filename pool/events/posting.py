"""One signed POST to the address of a sink, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import urllib3

from pool.clock import Clock
from pool.config.settings import SinkSettings
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
#: Bytes of an answer that are read, so that the connection can be used again; nobody looks at
#: them.
ANSWER: Final = 2**16


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What a POST came to: a ``status``, None without an answer, with the reason in ``problem``.

    ``retry_after`` is how many seconds the receiver asks to be left alone for.
    """

    status: int | None = None
    retry_after: float | None = None
    problem: str = ""


def secret_of(sink: SinkSettings, environ: Mapping[str, str]) -> str | None:
    """What signs the deliveries to a sink; None when nothing does.

    :raises ConfigError: the variable or file that should hold it does not.
    """
    if sink.secret_env is not None:
        secret = environ.get(sink.secret_env, "").strip()
        if not secret:
            raise ConfigError(
                f"the secret of a sink is to be in {sink.secret_env}, which is not set in the "
                "environment"
            )
        return secret
    if sink.secret_file is None:
        return None
    try:
        secret = sink.secret_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"cannot read {sink.secret_file}, the secret of a sink: {why}") from None
    if not secret:
        raise ConfigError(f"{sink.secret_file}, the secret of a sink, is empty")
    return secret


class Posting:
    """Sends deliveries to one sink. Redirects are not followed, and proxies not used."""

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

    def send(self, body: bytes, *, delivery: str, kind: str) -> Reply:
        """Make one POST. What the other side and the network do is told, and never raised."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"cvat-task-pool/{VERSION}",
            DELIVERY: delivery,
            EVENT: kind,
        }
        try:
            # Read each time, so that it can be changed while the daemon runs.
            secret = secret_of(self._sink, self._environ)
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
