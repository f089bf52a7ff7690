"""Uses the asyncio twin as one uses the pool itself, so that the same tests prove both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from inspect import isawaitable
from typing import Any, Self

from support.waiting import PATIENCE


class EventLoop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._loop.shutdown_asyncgens)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function on the loop; return its result, awaited if it can be."""

        async def run() -> Any:
            result = function(*arguments, **options)
            return await result if isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE)


class Blocking:
    """Something of asyncio's whose methods are called on a loop, and awaited."""

    def __init__(self, loop: EventLoop, thing: Any) -> None:
        self._loop = loop
        self._thing = thing

    def __getattr__(self, name: str) -> Any:
        value = self._loop.call(getattr, self._thing, name)
        if not callable(value):
            return value

        def method(*arguments: Any, **options: Any) -> Any:
            plain = [each._thing if isinstance(each, Blocking) else each for each in arguments]
            return self._wrap(self._loop.call(value, *plain, **options))

        return method

    def first(self, things: Any, count: int | None = None) -> list[Any]:
        """The first things that an asynchronous iterator yields, all by default."""
        found: list[Any] = []
        with suppress(StopAsyncIteration):
            while count is None or len(found) < count:
                found.append(self._wrap(self._loop.call(things.__anext__)))
        self._loop.call(things.aclose)
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blocking) and bool(self._thing == other._thing)

    def __hash__(self) -> int:
        return hash(self._thing)

    def __repr__(self) -> str:
        return repr(self._thing)

    def _wrap(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._wrap(each) for each in result]
        ours = type(result).__module__.startswith("pool.client")
        return Blocking(self._loop, result) if ours else result
