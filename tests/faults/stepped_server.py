"""The simulator without sockets and threads: its loop turns only while somebody waits for it.

The pool's own client talks to it: what is put in place of urllib3's pool of connections takes a
call, lets the simulator's loop turn until there is an answer, and raises what urllib3 raises when
there will be none. Waiting, on either side, passes the time of a :class:`SteppedClock`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import formatdate
from http.client import RemoteDisconnected
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import urllib3
from urllib3 import exceptions as urllib3_errors

from faults.stepped_clock import SteppedClock
from pool.config.settings import CvatSettings
from pool.cvat import AccessTokenCredentials, CvatClient
from pool.simulator import SimulatorSettings
from pool.simulator.actions import Actions
from pool.simulator.faults import Fault
from pool.simulator.simulator import Simulator

T = TypeVar("T")

#: An address that nobody listens at: nothing goes there.
URL = "http://cvat.test"
TOKEN = "a-token-for-tests"


class AtOnce(ThreadPoolExecutor):
    """Does everything on the thread that asks for it."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class SteppedLoop(asyncio.SelectorEventLoop):
    """An event loop by the stepped clock, which is one of that clock's alarms."""

    def __init__(self, clock: SteppedClock) -> None:
        super().__init__()
        self._stepped = clock
        self.set_default_executor(AtOnce(1))

    def time(self) -> float:
        return self._stepped.monotonic()

    def due(self) -> float | None:
        if self._ready:  # type: ignore[attr-defined]
            return self.time()
        timers = self._scheduled  # type: ignore[attr-defined]
        return min((timer.when() for timer in timers if not timer.cancelled()), default=None)

    def turn(self) -> None:
        """Do all that is ready, but not what becomes ready by it."""
        self.call_soon(self.stop)
        self.run_forever()

    def ring(self) -> None:
        self.turn()

    def do(self, work: Any) -> Any:
        """Turn until a coroutine has ended, which waits for nothing but the loop itself."""
        task = self.create_task(work)
        while not task.done():
            self.turn()
        return task.result()


class Line:
    """One call as the server sees it: also what stands for the connection that it came by."""

    def __init__(self, content: bytes) -> None:
        self.is_open = True
        self.transport = self
        #: Whether it was cut, and if so whether with a reset.
        self.reset: bool | None = None
        self.status = 0
        self.headers = urllib3.HTTPHeaderDict()
        self.data = b""
        self.complete = False
        self._content: bytes | None = content
        self._gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self._content is not None:
            content, self._content = self._content, None
            return {"type": "http.request", "body": content, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            for name, value in message.get("headers", ()):
                self.headers.add(name.decode("latin-1"), value.decode("latin-1"))
        else:
            self.data += bytes(message.get("body", b""))
            self.complete = not message.get("more_body", False)

    def cut(self, *, reset: bool) -> None:
        self.reset = reset
        self.hang_up()

    def hang_up(self) -> None:
        self.is_open = False
        self._gone.set()

    def write(self, data: bytes) -> None:
        """A broken head of an answer; the client sees only that it is cut."""


class SteppedDoor:
    """What stands for the socket."""

    def __init__(self, server: SteppedServer) -> None:
        self._server = server
        self.is_shut = False

    def shut(self) -> None:
        self.is_shut = True
        for call in list(self._server.calls):
            call.cancel()

    def open(self) -> None:
        self.is_shut = False

    def cut_all(self) -> int:
        return 0

    def stamp(self) -> None:
        """Every answer has the server's date anyway."""


class SteppedServer:
    """A simulated CVAT that exists in this thread only."""

    def __init__(self, clock: SteppedClock, settings: SimulatorSettings) -> None:
        self.clock = clock
        self.loop = SteppedLoop(clock)
        clock.alarms.append(self.loop)
        self.simulator = Simulator(settings, utc=self._utc)
        self.door = SteppedDoor(self)
        self.simulator.door = self.door  # type: ignore[assignment]
        self.calls: set[asyncio.Task[None]] = set()
        self.actions = Actions(self.simulator, self.do)
        self.loop.do(self.simulator.start())

    def close(self) -> None:
        self.do(self.simulator.faults.close)
        for call in list(self.calls):
            call.cancel()
        self.loop.do(self.simulator.stop())
        self.settle()
        self.clock.alarms.remove(self.loop)
        self.loop.close()

    def client(self, timeout: float) -> CvatClient:
        """The pool's client, with this server at the end of its connections."""
        settings = CvatSettings(url=URL, timeout=timeout)
        client = CvatClient(settings, AccessTokenCredentials(TOKEN), clock=self.clock)
        client._transport.connections = cast(urllib3.PoolManager, self)  # the seam of urllib3
        return client

    def do(self, action: Callable[[], T]) -> T:
        """Do something on the loop."""

        async def act() -> T:
            return action()

        result: T = self.loop.do(act())
        return result

    def settle(self) -> None:
        """Turn until nothing more happens without time passing."""
        while (due := self.loop.due()) is not None and due <= self.clock.monotonic():
            self.loop.turn()

    def add(self, fault: Fault) -> None:
        self.do(lambda: self.simulator.faults.add(fault))

    def heal(self) -> None:
        """No faults, the socket open, the tokens good, the clock right."""
        self.do(self.simulator.faults.clear)
        self.actions.up()
        self.actions.restore_tokens()
        self.do(lambda: self.simulator.set_clock(0.0))
        self.settle()

    # --- What urllib3 does ----------------------------------------------------------------------

    def urlopen(
        self,
        method: str,
        url: str,
        *,
        body: Iterable[bytes | memoryview] | None = None,
        headers: Any = None,
        timeout: urllib3.Timeout | None = None,
        **_: Any,
    ) -> Line:
        """Make one call. Raises the errors of urllib3."""
        if self.door.is_shut:
            refused = ConnectionRefusedError(
                errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED).lower()
            )
            raise urllib3_errors.NewConnectionError(None, str(refused)) from refused  # type: ignore[arg-type]
        line = Line(b"".join(bytes(piece) for piece in body or ()))
        call = self.loop.create_task(
            self.simulator.app(_scope(method, url, headers or {}, line), line.receive, line.send)
        )
        self.calls.add(call)
        call.add_done_callback(self._ended)
        patience = timeout.read_timeout if timeout is not None else None
        self._await(call, line, float(patience) if isinstance(patience, int | float) else 30.0, url)
        if not line.complete:
            cause = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            gone = RemoteDisconnected("Remote end closed connection without response")
            broken = gone if line.reset is False else cause
            raise urllib3_errors.ProtocolError("Connection aborted.", broken)
        line.headers["date"] = formatdate(self.simulator.state.now().timestamp(), usegmt=True)
        return line

    def _await(self, call: asyncio.Task[None], line: Line, patience: float, url: str) -> None:
        deadline = self.clock.monotonic() + patience
        while not call.done():
            due, now = self.loop.due(), self.clock.monotonic()
            if due is not None and due <= now:
                self.loop.turn()
            elif now >= deadline:
                # The server goes on with what it has, as servers do.
                line.hang_up()
                raise urllib3_errors.ReadTimeoutError(None, url, "Read timed out.")  # type: ignore[arg-type]
            else:
                self.clock.sleep(min(deadline, deadline if due is None else due) - now)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self.calls.discard(call)
        if not call.cancelled() and (error := call.exception()) is not None:
            raise error

    def clear(self) -> None:
        """There are no connections to close."""

    def _utc(self) -> datetime:
        # The server's own machine: it is not wrong when ours is.
        return datetime.fromtimestamp(self.clock.now() - self.clock.off, UTC)


def _scope(method: str, url: str, headers: Any, line: Line) -> dict[str, Any]:
    parts = urlsplit(url)
    given = [(name.lower().encode(), str(value).encode()) for name, value in headers.items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": parts.scheme,
        "path": parts.path,
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": [(b"host", parts.netloc.encode()), *given],
        "client": ("127.0.0.1", 1),
        "server": (parts.hostname, 80),
        "state": {"simulator.connection": line},
    }
