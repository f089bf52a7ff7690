"""A bucket to keep files in, of a server of S3 in this process."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

if TYPE_CHECKING:
    from moto.server import ThreadedMotoServer


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket on a server, which takes any credentials."""

    endpoint: str
    name: str
    server: ThreadedMotoServer = field(repr=False)

    def get(self, key: str) -> bytes | None:
        """Return what is in an object, or None where there is none."""
        answer = self._call("GET", key)
        return answer.data if answer.status == 200 else None

    def put(self, key: str, content: bytes) -> None:
        """Write an object, or replace it."""
        assert self._call("PUT", key, body=content).status == 200

    def _call(self, method: str, key: str, **more: Any) -> urllib3.BaseHTTPResponse:
        return urllib3.request(
            method,
            f"{self.endpoint}/{self.name}/{key}",
            headers={"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/x"},
            retries=False,
            **more,
        )


@contextmanager
def bucket() -> Iterator[Bucket]:
    """Serve a bucket that is empty, and have the environment say where it is."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # What moto has is the process's, and outlives the server.
        name = f"bucket-{secrets.token_hex(4)}"
        made = Bucket(f"http://{host}:{port}", name, server)
        assert urllib3.request("PUT", f"{made.endpoint}/{made.name}").status == 200
        with pytest.MonkeyPatch.context() as environment:
            bucket_environment(environment, made.endpoint)
            yield made
    finally:
        server.stop()


@contextmanager
def away(there: Bucket) -> Iterator[None]:
    """Have no server at a bucket's address, and then one with what was in it."""
    from moto.server import ThreadedMotoServer

    host, port = there.server.get_host_and_port()
    there.server.stop()
    try:
        yield
    finally:
        again = ThreadedMotoServer(host, port=port, verbose=False)
        again.start()
        # The fixture stops that one.
        vars(there.server).update(vars(again))


def bucket_environment(environment: pytest.MonkeyPatch, endpoint: str) -> None:
    """Have the environment say where buckets are, and who asks."""
    environment.setenv("AWS_ENDPOINT_URL", endpoint)
    environment.setenv("AWS_REGION", "us-east-1")
    environment.setenv("AWS_ACCESS_KEY_ID", "key-of-the-tests")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t-of-the-tests")


@contextmanager
def refusing_writes() -> Iterator[None]:
    """Have the server answer 503 to all PUTs, as S3 does to those who ask too much of it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication as Server

    serve: Any = Server.__call__

    def refuse(server: Any, environ: Any, start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] != "PUT":
            return serve(server, environ, start_response)
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code></Error>"]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Server, "__call__", refuse)
        yield
