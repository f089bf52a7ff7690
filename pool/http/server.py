"""Serves an app on a thread of this process, at the daemon's address."""

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

#: Seconds in which the server must have started.
START = 10.0
#: Seconds for late answers when the time to stop is over, and then for those to calls that have
#: come meanwhile.
LAST_ANSWERS = 1
#: Seconds for which an idle connection is kept.
KEEP_ALIVE = 75
BACKLOG = 512
#: Files that the process may have open, if the system lets it: connections are files.
FILES = 8192


def check_exposure(settings: DaemonSettings, token: str | None) -> None:
    """Check that a daemon which others can reach has a token.

    :raises ConfigError: it has none.
    """
    if not token and not is_loopback(settings.host):
        raise ConfigError(
            f"daemon.host {settings.host!r} can be reached from other machines: set a token in "
            "POOL_API_TOKEN, or listen on 127.0.0.1"
        )


def _allow_files(wanted: int) -> None:
    """Allow the process so many open files, as far as the system's hard limit goes."""
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
        # Named as TCP: asyncio turns Nagle's algorithm off only for sockets that say so.
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
    """A uvicorn server that leaves the signals to the daemon, and gives answers that are under way
    a while to end before it cancels them.

    It goes on listening for that while, so that new callers hear that it stops.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        #: Set once it listens, or has failed to.
        self.settled = threading.Event()
        #: By the monotonic clock: until when answers may come to their end. ``on_late`` is called
        #: then, on the event loop, to have those that are late answered.
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
        # Those of now: others begin all the time.
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
        """Where it listens, with the port that it got; "" when it does not."""
        return self._address if self.listening else ""

    def start(self) -> None:
        """Return once requests are answered; starting twice does nothing.

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
        """Answer what is under way within ``timeout`` seconds (by default ``daemon.stop_timeout``),
        and listen no more. What takes longer is cancelled about a second later; before, ``on_late``
        is called on the event loop, to have it answered. Stopping twice does nothing."""
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
