"""News of a PostgreSQL store: its server says when another process has committed.

``LISTEN`` belongs to a session, so it hears nothing behind a pooler that lends connections for one
transaction each, and nothing on a connection that was lost without a word. So a process proves that
it hears, by a notification of its own from another connection; until that has come back, and when
one does not, its feed looks at the change counter as it does in SQLite.
"""

from __future__ import annotations

import os
import secrets
import select
import threading
import time
from collections.abc import Callable
from typing import Final

import psycopg

from pool.backoff import backoff
from pool.errors import PoolError
from pool.logs import get_logger
from pool.store.connections import Listener

log = get_logger(__name__)

#: Seconds of silence after which a process proves again that it hears, and in which the proof has
#: to arrive.
PROVE: Final = 30.0
PROOF: Final = 5.0
#: Seconds, at least and at most, until another try after one that failed.
RETRY: Final = 1.0
LONGEST_RETRY: Final = 60.0


class PostgresListener(Listener):
    """A connection that listens to the channel of a store, on a thread of its own."""

    def __init__(
        self,
        *,
        connect: Callable[[], psycopg.Connection],
        notify: Callable[[str], None],
        channel: str,
        own: str,
        heard: Callable[[], None],
    ) -> None:
        """Call ``heard`` after each commit of another process, and when :attr:`hears` changes.
        ``notify`` sends a text to all who listen, and ``own`` is what this process's commits send.
        """
        self.hears = False
        self._connect = connect
        self._notify = notify
        self._channel = channel
        self._own = own
        self._heard = heard
        self._proof = ""
        self._failures = 0
        self._closed = False
        self._wakened, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run, name="news", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed = True
        os.write(self._wake, b"x")
        self._thread.join(RETRY)

    def _run(self) -> None:
        while not self._closed:
            try:
                self._listen()
            except (psycopg.Error, PoolError, _Deaf) as error:
                if self._failures == 0:
                    log.info("other processes' news are polled for", why=str(error).strip())
            except Exception:
                log.exception("other processes' news are polled for")
            self._failures += 1
            self._say(hears=False)
            self._wait(None, backoff(self._failures, base=RETRY, cap=LONGEST_RETRY))
        os.close(self._wakened)
        os.close(self._wake)

    def _listen(self) -> None:
        """Listen until the connection is of no more use."""
        with self._connect() as conn:
            if is_pooled(conn):
                raise _Deaf("a pooler of connections is between, and forgets who listens")
            conn.execute(f"LISTEN {self._channel}")
            prove_at, give_up = time.monotonic(), None
            while not self._closed:
                now = time.monotonic()
                if give_up is not None and now >= give_up:
                    raise _Deaf("a notification of this process's own did not come back")
                if give_up is None and now >= prove_at:
                    give_up, self._proof = now + PROOF, secrets.token_hex(8)
                    self._notify(self._proof)
                self._wait(conn, (prove_at if give_up is None else give_up) - now)
                for notification in conn.notifies(timeout=0):
                    if notification.payload == self._proof:
                        give_up, prove_at, self._failures = None, now + PROVE, 0
                        self._say(hears=True)
                    elif notification.payload != self._own:
                        self._heard()

    def _wait(self, conn: psycopg.Connection | None, seconds: float) -> None:
        """Wait for the server to say something, or the end."""
        poll = select.poll()
        poll.register(self._wakened, select.POLLIN)
        if conn is not None:
            poll.register(conn.fileno(), select.POLLIN)
        poll.poll(1000 * max(0.0, seconds))

    def _say(self, *, hears: bool) -> None:
        if hears != self.hears:
            self.hears = hears
            # What was committed before is looked for, and pauses become shorter or longer.
            self._heard()


def is_pooled(conn: psycopg.Connection) -> bool:
    """Whether a pooler of connections stands in between: it gives its clients numbers of its own to
    cancel by, in place of those of the server's processes."""
    (answers,) = conn.execute("SELECT pg_backend_pid()", prepare=False).fetchall()[0]
    return bool(answers != conn.info.backend_pid)


class _Deaf(Exception):
    """The connection hears nothing."""
