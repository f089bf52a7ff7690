"""A process that can die between any two of its calls to the store and to CVAT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

Moment = Literal["before", "after"]
#: Told of every call of a process, before it is made and after it took effect.
Boundary = Callable[[str, Moment], None]


class Killed(BaseException):
    """The process is dead. What its handlers and its ``finally`` still try comes to nothing,
    since from now on each of its calls raises this."""


class Frail:
    """Something that a process calls, with a boundary before and after each call."""

    def __init__(self, target: Any, boundary: Boundary) -> None:
        self._target = target
        self._boundary = boundary

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            self._boundary(name, "before")
            result = attribute(*arguments, **options)
            self._boundary(name, "after")
            return result

        # Asked for once only: services look calls up at every use.
        self.__dict__[name] = call
        return call
