"""One look at the store, on behalf of everybody who waits for something in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from pool.errors import PoolClosed, StoreError
from pool.logs import get_logger

log = get_logger(__name__)

#: Seconds between two looks, for what other processes have done.
LOOK: Final = 0.02
#: A look may take up this share of the time at most, so that long ones leave room for the rest.
SHARE: Final = 0.5
#: Seconds before another look when one has failed.
PAUSE: Final = 1.0


class Watch:
    """Looks while anybody waits, and not otherwise.

    ``look`` runs on a thread of the watch's own, always the same one, and answers what is to be
    done of it on the event loop. ``wanted`` tells whether anybody waits. However many do, there
    is one task and one thread.
    """

    def __init__(
        self, name: str, look: Callable[[], Callable[[], None]], *, wanted: Callable[[], bool]
    ) -> None:
        self._name = name
        self._look = look
        self._wanted = wanted
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._woken = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Somebody waits now. For the event loop alone."""
        if self._task is None:
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """Look at once; safe from any thread, and cheap when nobody waits."""
        loop = self._loop
        if loop is None or self._task is None:
            return
        # An error means that the loop has ended, and everybody who waited with it.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._woken.set)

    def close(self) -> None:
        """Look no more."""
        self._executor.shutdown(wait=False)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._wanted():
                began = loop.time()
                pause = LOOK
                try:
                    settle = await loop.run_in_executor(self._executor, self._look)
                    settle()
                except (StoreError, PoolClosed) as error:
                    log.warning("store not looked at", why=str(error))
                    pause = PAUSE
                except Exception:
                    # Whatever it was, others wait too: look again a little later.
                    log.exception("look failed", watch=self._name)
                    pause = PAUSE
                took = loop.time() - began
                await self._sleep(max(pause, took / SHARE - took))
        finally:
            self._task = None

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        self._woken.clear()
