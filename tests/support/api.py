"""The daemon's API in this process, on a simulated CVAT, and a client that believes nothing.

Every answer is compared with the OpenAPI document: its status, its media type, its headers and its
content have to be what the document says of the call.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self
from unittest import mock

import jsonschema_rs
import urllib3
from fastapi import FastAPI

from pool.config.settings import CvatSettings, DaemonSettings, Settings, StoreSettings, Template
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.daemon import Daemon
from pool.http import context
from pool.http.app import create_app
from pool.maintenance.refill import Refill
from pool.maintenance.scheduler import Scheduler
from pool.process import Process
from pool.store import open_store
from pool.taskpool import TaskPool
from support.waiting import PATIENCE, poll_until

PROBLEM = "application/problem+json"
#: Seconds after which what is in the spool is taken to stay there.
LEFT_OVER = 3.0


@dataclass(frozen=True)
class Answer:
    """What came back; ``json`` is None where the body is no JSON."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    json: Any = field(repr=False, default=None)

    @property
    def code(self) -> str:
        """The code of a problem."""
        assert self.headers["content-type"] == PROBLEM, (self.status, self.body)
        assert self.json["status"] == self.status
        return str(self.json["type"]).removeprefix("urn:cvat-task-pool:error:")


class Checker:
    """Says whether an answer is one that the document knows."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self._validators: dict[str, Any] = {}
        self._paths = [
            (re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), operations)
            for path, operations in document["paths"].items()
        ]

    def check(self, method: str, path: str, answer: Answer) -> None:
        operation = self._operation(method, path)
        if operation is None:
            assert answer.status in (401, 403, 404, 405), (method, path, answer.status)
            return
        told = operation["responses"].get(str(answer.status))
        assert told is not None, f"{method} {path}: {answer.status} is not in the document"
        content = told.get("content", {})
        if not content:
            assert answer.body == b"", (method, path, answer.body)
        else:
            media_type = answer.headers["content-type"].partition(";")[0]
            assert media_type in content, (method, path, answer.status, media_type)
            if "schema" in content[media_type] and media_type.endswith("json"):
                self.validate(content[media_type]["schema"], answer.json)
        assert answer.headers["x-request-id"]

    def validate(self, schema: Mapping[str, Any], value: Any) -> None:
        """Raise when a value does not fit a schema of the document."""
        key = json.dumps(schema, sort_keys=True)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = jsonschema_rs.validator_for(whole, validate_formats=True)
        self._validators[key].validate(value)

    def _operation(self, method: str, path: str) -> Mapping[str, Any] | None:
        # The first that fits has no parameter where another has one.
        for pattern, operations in sorted(self._paths, key=lambda each: "[^" in each[0].pattern):
            if pattern.fullmatch(path):
                return operations.get(method.lower())  # type: ignore[no-any-return]
        return None


_checker: Checker | None = None
_guard = threading.Lock()


def know(document: Callable[[], Mapping[str, Any]]) -> None:
    """Have all clients believe a document, which takes a while to make; those of servers elsewhere
    ask for theirs."""
    global _checker
    with _guard:
        _checker = _checker or Checker(json.loads(json.dumps(document())))


class Api:
    """A client of one server."""

    def __init__(self, url: str, *, token: str | None = None) -> None:
        self.url = url
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = urllib3.PoolManager(retries=False, maxsize=64, timeout=PATIENCE)

    @property
    def checker(self) -> Checker:
        """Knows the document, which is the same for all servers."""
        global _checker
        with _guard:
            if _checker is None:
                found = self._http.request("GET", f"{self.url}/openapi.json", headers=self.headers)
                assert found.status == 200
                _checker = Checker(found.json())
            return _checker

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.clear()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        """Make a call; ``json`` and ``fields`` are those of urllib3."""
        said = self._http.request(
            method,
            self.url + path,
            body=body,
            headers={**self.headers, **(headers or {})},
            redirect=False,
            **more,
        )
        answer = Answer(
            said.status,
            {name.lower(): value for name, value in said.headers.items()},
            said.data,
            json.loads(said.data) if "json" in said.headers.get("content-type", "") else None,
        )
        self.checker.check(method, path.partition("?")[0], answer)
        return answer

    def get(self, path: str, **more: Any) -> Answer:
        return self.call("GET", path, **more)

    def delete(self, path: str, **more: Any) -> Answer:
        return self.call("DELETE", path, **more)

    def post(self, path: str, document: Any = None, **more: Any) -> Answer:
        if document is not None:
            more["json"] = document
        return self.call("POST", path, **more)

    def lease(self, template: str = "scenes", *, key: str | None = None, **more: Any) -> Answer:
        return self.post("/v1/leases", {"template": template, **more}, headers=keyed(key))

    def submit(
        self,
        files: Sequence[tuple[str, bytes]],
        *,
        template: str | None = "scenes",
        wait: int | None = None,
        key: str | None = None,
        **fields: Any,
    ) -> Answer:
        """Send files as a form."""
        parts: list[Any] = [("files", (name, content)) for name, content in files]
        told = {**({} if template is None else {"template": template}), **fields}
        parts += [(name, str(value)) for name, value in told.items()]
        return self.post("/v1/requests", fields=parts, headers={**keyed(key), **waiting(wait)})


class SlowUpload:
    """One file for the template "scenes", sent piece by piece on a connection of its own."""

    def __init__(self, api: Api, content: bytes) -> None:
        self._api = api
        body, kind = urllib3.encode_multipart_formdata(
            {"template": "scenes", "files": ("a.jpg", content)}
        )
        self._left = body
        self._line = HTTPConnection(api.url.removeprefix("http://"), timeout=PATIENCE)
        self._line.putrequest("POST", "/v1/requests")
        for name, value in {**api.headers, "Content-Type": kind}.items():
            self._line.putheader(name, value)
        self._line.putheader("Content-Length", str(len(body)))
        self._line.endheaders()

    def send(self, size: int | None = None) -> None:
        """Send so many bytes, by default all that are left."""
        self._line.send(self._left[:size])
        self._left = self._left[size:] if size else b""

    def answer(self) -> Answer:
        with self._line.getresponse() as said:
            body = said.read()
            headers = {name.lower(): value for name, value in said.headers.items()}
        answer = Answer(said.status, headers, body, json.loads(body))
        self._api.checker.check("POST", "/v1/requests", answer)
        return answer

    def close(self) -> None:
        self._line.close()


def keyed(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def waiting(seconds: int | None) -> dict[str, str]:
    return {} if seconds is None else {"Prefer": f"wait={seconds}"}


def fill(refill: Refill) -> int:
    """Refill until there is nothing more to do; answers how many creates that took."""
    started = 0
    while begun := refill.run_once():
        started += begun
        assert refill.drain(PATIENCE)
    return started


class DispatchAlone(Scheduler):
    """Runs the dispatcher, and no other service."""

    def add(self, name: str, *arguments: Any, **options: Any) -> None:
        if name == "dispatch":
            super().add(name, *arguments, **options)

    def wake(self, name: str) -> None:
        if name == "dispatch":
            super().wake(name)


@dataclass(frozen=True)
class Serving:
    """A daemon that maintains nothing by itself, and a client of it."""

    daemon: Daemon
    state: context.AppState
    api: Api
    app: FastAPI

    @property
    def process(self) -> Process:
        return self.daemon.process

    @property
    def pool(self) -> TaskPool:
        return self.state.pool

    @property
    def url(self) -> str:
        return self.daemon.url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def fill(self) -> None:
        """Make the pool as full as it wants to be."""
        assert self.daemon.maintenance is not None
        fill(self.daemon.maintenance.refill)

    def spooled(self) -> list[str]:
        """The entries of the spool, complete or not, that are left once all is done with."""
        assert self.state.dispatcher.drain(PATIENCE)
        folder = self.process.spool.folder

        def entries() -> list[str]:
            return sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []

        with suppress(AssertionError):
            # What was served is deleted on a thread of its own.
            poll_until(lambda: not entries(), LEFT_OVER)
        return entries()


def settings_for(
    url: str, store_url: str, *templates: Template, spool: Path | None = None, **daemon: Any
) -> Settings:
    """The settings of a daemon on the server at ``url``, listening at any free port."""
    server = CvatSettings(url=url, timeout=10.0)
    return Settings(
        cvat=server,
        store=StoreSettings(url=store_url, spool=spool),
        daemon=DaemonSettings(**{"port": 0, "stop_timeout": 5.0, **daemon}),
        templates={each.name: replace(each, server=server) for each in templates},
    )


@contextmanager
def serving(
    settings: Settings, access_token: str, *, tokens: tuple[str, ...] = ()
) -> Iterator[Serving]:
    """A daemon on a thread of this process that serves callers, while the test fills its pools."""
    apps: list[FastAPI] = []

    def made(*arguments: Any, **options: Any) -> Any:
        app = create_app(*arguments, **options)
        apps.append(app)
        know(app.openapi)
        return app

    with ExitStack() as stack:
        store = stack.enter_context(closing(open_store(settings.store.url)))
        credentials = AccessTokenCredentials(access_token)
        cvat = stack.enter_context(closing(CvatClient(settings.cvat, credentials)))
        with (
            mock.patch("pool.daemon.Scheduler", DispatchAlone),
            mock.patch("pool.upkeep.Scheduler", DispatchAlone),
            mock.patch("pool.daemon.create_app", made),
        ):
            daemon = Daemon(settings, store=store, cvat=cvat, api_token=",".join(tokens) or None)
            stack.enter_context(in_thread(daemon))
        token = tokens[0] if tokens else None
        api = stack.enter_context(Api(daemon.url, token=token))
        yield Serving(daemon, apps[-1].state.parts, api, apps[-1])


@contextmanager
def in_thread(daemon: Daemon) -> Iterator[Daemon]:
    """Run a daemon on a thread of this process."""
    ready = threading.Event()
    thread = threading.Thread(target=daemon.run, kwargs={"on_ready": ready.set})
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield daemon
    finally:
        daemon.stop()
        thread.join(PATIENCE)
    assert not thread.is_alive()
