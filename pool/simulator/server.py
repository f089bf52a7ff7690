"""The simulator behind a socket, in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from .actions import Actions
from .door import Door, listen
from .fault_control import FaultControl, Handle
from .faults import Fault
from .settings import SimulatorSettings
from .simulator import Simulator
from .state import State
from .stats import Stats

T = TypeVar("T")

START_SECONDS = 20.0
STOP_SECONDS = 10.0


def stop_signal() -> threading.Event:
    """Set by SIGINT and SIGTERM from now on: when a command has to stop its server."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


class SimulatorServer:
    """A simulated CVAT server in a thread of this process.

    >>> with SimulatorServer(SimulatorSettings(timings=Timings.zero())) as server:
    ...     client = make_client(server.url, access_token=server.access_token)
    """

    def __init__(
        self,
        settings: SimulatorSettings | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.settings = settings or SimulatorSettings()
        self._host = host
        self._port = port
        self._simulator: Simulator | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: Door | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self.url = ""

    def start(self) -> SimulatorServer:
        """Start and return once requests are answered. Raises ``OSError`` for a taken port."""
        if self._thread is not None:
            raise RuntimeError("the server is running already")
        listener = listen(self._host, self._port)
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._ready.clear()
        self._error = None
        self._thread = threading.Thread(
            target=self._run, args=(listener,), name="cvat-simulator", daemon=True
        )
        self._thread.start()
        if not self._ready.wait(START_SECONDS):
            raise TimeoutError("the simulator did not start")
        if self._error is not None:
            raise RuntimeError("the simulator did not start") from self._error
        return self

    def stop(self) -> None:
        """Stop and remove all uploads. Calling it twice, or before a start, does no harm."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._server is not None:
            self._server.should_exit = True
        thread.join(STOP_SECONDS)

    def __enter__(self) -> SimulatorServer:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self, listener: socket.socket) -> None:
        try:
            asyncio.run(self._serve(listener))
        except BaseException as error:
            self._error = error
        finally:
            listener.close()
            self._ready.set()

    async def _serve(self, listener: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._simulator = simulator = Simulator(self.settings)
        self._server = server = Door(simulator.app, simulator.state, simulator.faults, listener)
        simulator.door = server
        await simulator.start()
        serving = asyncio.ensure_future(server.serve())
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(0.001)
            self._ready.set()
            await serving
        finally:
            await simulator.stop()

    @property
    def simulator(self) -> Simulator:
        """What is behind the socket. Change it through :meth:`call` only."""
        if self._simulator is None:
            raise RuntimeError("the server is not running")
        return self._simulator

    @property
    def state(self) -> State:
        return self.simulator.state

    @property
    def stats(self) -> Stats:
        return self.simulator.stats

    @property
    def faults(self) -> FaultControl:
        """What goes wrong with the server, to be changed from any thread but its own."""
        return FaultControl(self.simulator.faults, self)

    @contextlib.contextmanager
    def fault(self, *faults: Fault) -> Iterator[Handle]:
        """Have rules in force for as long as the block; the handle is that of the first."""
        handles = [self.faults.add(each) for each in faults]
        try:
            yield handles[0]
        finally:
            # A server that was stopped meanwhile has no rules any more.
            for handle in handles if self._thread is not None else ():
                handle.remove()

    @property
    def actions(self) -> Actions:
        """What people and administrators do once, past the pool."""
        return Actions(self.simulator, self.call)

    @property
    def access_token(self) -> str:
        """A token of the first user that may read and write."""
        return self.simulator.access_token

    @property
    def readonly_token(self) -> str:
        return self.simulator.readonly_token

    @property
    def share(self) -> Path:
        """The folder that is the server's share."""
        return self.simulator.share

    @property
    def username(self) -> str:
        return self.simulator.owner.username

    @property
    def password(self) -> str:
        return self.simulator.owner.password

    def call(self, function: Callable[[], T], timeout: float = 10.0) -> T:
        """Run something on the server's loop and return its result."""

        async def run() -> T:
            return function()

        return self._submit(run(), timeout)

    def wait_idle(self, timeout: float = 10.0) -> None:
        """Wait until no import and no webhook is under way. Raises ``TimeoutError``."""
        self._submit(self.simulator.idle(), timeout)

    def wait_for(self, condition: Callable[[State], bool], timeout: float = 10.0) -> None:
        """Wait until something is true of the state. Raises ``TimeoutError``."""

        async def watch() -> None:
            while not condition(self.simulator.state):
                await asyncio.sleep(0.001)

        self._submit(asyncio.wait_for(watch(), timeout), timeout + 1.0)

    def hold_imports(self, at: str = "queued") -> None:
        """Let imports reach a state, ``queued`` or ``started``, and no further."""
        self.call(lambda: self.simulator.hold_imports(at))

    def release_imports(self) -> None:
        self.call(self.simulator.release_imports)

    def _submit(self, work: Coroutine[Any, Any, T], timeout: float) -> T:
        if self._loop is None or self._thread is None:
            work.close()
            raise RuntimeError("the server is not running")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise
