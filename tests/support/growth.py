"""Finds what grows in a process, whatever it is made of inside."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from types import CellType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

#: Seconds after which nothing more comes to its end.
SETTLES = 5.0
_CONTAINERS = (dict, set, frozenset, list, tuple, deque)
#: What leads to everything there is, or, like the log, of which a test keeps records, to what only
#: the test holds.
_ENDS = (type, ModuleType, FrameType, logging.Logger, str, bytes, int)


def held(root: object) -> Counter[str]:
    """What can be reached from ``root``: how many objects of each class of the product, and how
    many entries their attributes hold, where nothing bounds that."""
    found: Counter[str] = Counter()
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _ENDS) or _is_bounded(each):
            continue
        seen[id(each)] = each
        kind = type(each)
        attributes = _attributes(each)
        if kind.__module__.startswith("pool."):
            found[kind.__qualname__] += 1
            for name, value in attributes.items():
                if isinstance(value, _CONTAINERS) and not _is_bounded(value):
                    found[f"{kind.__qualname__}.{name}"] += len(value)
        waiting += [*attributes.values(), *_inside(each)]
    return found


def grown(root: object, cycle: Callable[[], object], *, times: int = 5) -> dict[str, int]:
    """What has grown with each of so many cycles, and by how much in all. The first cycles are to
    fill what is filled once, and what is still being worked on afterwards has a while to end."""
    for _ in range(2):
        cycle()
    gc.collect()
    before = held(root)
    for _ in range(times):
        cycle()
    give_up = time.monotonic() + SETTLES
    while True:
        gc.collect()
        after = held(root)
        more = {name: after[name] - before[name] for name in after}
        found = {name: by for name, by in more.items() if by >= times}
        if not found or time.monotonic() > give_up:
            return found
        threading.Event().wait(0.05)


def _is_bounded(each: object) -> bool:
    return isinstance(each, deque) and each.maxlen is not None


def _attributes(each: Any) -> dict[str, Any]:
    """The attributes that an object has itself."""
    slots = [name for kind in type(each).__mro__ for name in getattr(kind, "__slots__", ())]
    found = {name: getattr(each, name) for name in slots if hasattr(each, name)}
    return {**found, **getattr(each, "__dict__", {})}


def _inside(each: Any) -> Iterable[Any]:
    """What an object leads to beside its attributes."""
    match each:
        case dict():
            return [*list(each), *list(each.values())]
        case list() | tuple() | set() | frozenset() | deque():
            return list(each)
        case FunctionType():
            return each.__closure__ or ()
        case CellType():
            return [each.cell_contents]
        case MethodType():
            return [each.__self__, each.__func__]
        case partial():
            return [each.func, *each.args, *each.keywords.values()]
        case _:
            return ()
