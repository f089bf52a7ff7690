"""Serves an app with uvicorn on a thread of this process, at the daemon's address."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from pool.config.settings import DaemonSettings
from pool.config.urls import is_loopback
from pool.errors import CannotListen, ConfigError
from pool.http.protocol import Protocol

#: Seconds within which the server must have started.
START = 10.0
#: Seconds for late answers once the time to stop has passed, and for calls that arrive meanwhile.
LAST_ANSWERS = 1
#: Seconds for which an idle connection is kept.
KEEP_ALIVE = 75
BACKLOG = 512
#: Open files that the process needs at most: each connection is one.
FILES = 8192


def check_exposure(settings: DaemonSettings, *, guarded: bool) -> None:
    """Check that callers need a token, so that the daemon is ``guarded``, if other machines can
    reach it.

    :raises ConfigError: they need none.
    """
    if not guarded and not is_loopback(settings.host):
        raise ConfigError(
            f"daemon.host {settings.host!r} can be reached from other machines: set a token in "
            "POOL_API_TOKEN, name some in [tokens], or listen on 127.0.0.1"
        )


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files of this process, up to the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def listen(settings: DaemonSettings) -> socket.socket:
    """Return a listening socket at the daemon's address.

    :raises CannotListen: the address is taken, or not this machine's.
    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
        )[0]
        # With its protocol: asyncio disables Nagle's algorithm only for sockets that name TCP.
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CannotListen(f"{host}: {error.strerror or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = (error.strerror or str(error)).lower()
        raise CannotListen(f"{host}:{port}: {why} (see daemon.port)") from None
    return listener


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the daemon, and lets answers end before it cancels
    them.

    Meanwhile it goes on listening, so that new callers are answered that it is stopping.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        #: Set once it listens, or has failed to.
        self.settled = threading.Event()
        #: When answers must have ended, by the monotonic clock. ``on_late`` is called then, on
        #: the event loop, to answer what is late.
        self.until = 0.0
        self.on_late: Callable[[], None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._wait_for_answers(self.until - time.monotonic())
        if self.on_late is not None:
            self.on_late()
        await self._wait_for_answers(LAST_ANSWERS)
        await super().shutdown(sockets)

    async def _wait_for_answers(self, seconds: float) -> None:
        # Of this moment: new ones begin all the time.
        if under_way := set(self.server_state.tasks):
            await asyncio.wait(under_way, timeout=max(0.0, seconds))


class HttpServer:
    """One app at one address, from :meth:`start` to :meth:`stop`."""

    def __init__(self, make_app: Callable[[], ASGIApp], settings: DaemonSettings) -> None:
        self._make_app = make_app
        self._settings = settings
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._address = ""

    @property
    def listening(self) -> bool:
        """Whether it listens now."""
        return self._thread is not None

    @property
    def url(self) -> str:
        """The address with the port that it got; "" when it does not listen."""
        return self._address if self.listening else ""

    def start(self) -> None:
        """Start the server, and return once it answers; starting twice does nothing.

        :raises CannotListen: the address is taken, or not this machine's.
        """
        if self.listening:
            return
        listener = listen(self._settings)
        host, port = self._settings.host.strip("[]"), listener.getsockname()[1]
        self._address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        _allow_files(FILES)
        try:
            server = _Server(self._config())
        except BaseException:
            listener.close()
            raise
        thread = threading.Thread(target=_run, args=(server, listener), name="http", daemon=True)
        thread.start()
        if not server.settled.wait(START) or not server.started:
            server.should_exit = True
            raise CannotListen(f"{self._address} does not answer")
        self._server, self._thread = server, thread

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self._make_app(),
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="on",
            loop="asyncio",
            http=Protocol,
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=LAST_ANSWERS,
            timeout_keep_alive=KEEP_ALIVE,
        )

    def stop(
        self, timeout: float | None = None, *, on_late: Callable[[], None] | None = None
    ) -> None:
        """Let answers end for ``timeout`` seconds (by default ``daemon.stop_timeout``), and stop
        listening. After that time ``on_late`` is called on the event loop, and what is still not
        answered is cancelled about a second later. Stopping twice does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None and self._server is not None:
            timeout = self._settings.stop_timeout if timeout is None else timeout
            self._server.until = time.monotonic() + timeout
            self._server.on_late = on_late
            self._server.should_exit = True
            thread.join(timeout + 3 * LAST_ANSWERS)


def _run(server: _Server, listener: socket.socket) -> None:
    try:
        asyncio.run(server.serve(sockets=[listener]))
    finally:
        listener.close()
        server.settled.set()
