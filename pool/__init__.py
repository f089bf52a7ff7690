"""A warm pool of pre-created CVAT tasks: job ids as soon as the server has them.

>>> from pool import TaskPool                                           # doctest: +SKIP
>>> with TaskPool.from_config("config.toml") as pool:                   # doctest: +SKIP
...     jobs = pool.submit("street-scenes", ["a.jpg"]).jobs(timeout=30)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pool.errors import (
    ConfigError,
    CvatAmbiguous,
    CvatBusy,
    CvatError,
    CvatForbidden,
    CvatNotFound,
    CvatRefusedCredentials,
    CvatRejected,
    CvatTooOld,
    CvatUnreachable,
    DataGone,
    Forbidden,
    IdempotencyConflict,
    ImportFailed,
    ImportLost,
    ImportTimedOut,
    InputError,
    LeaseEnded,
    LeaseInUse,
    NotAllowed,
    OwnerGone,
    PoolClosed,
    PoolEmpty,
    PoolError,
    PoolUnreachable,
    QueueFull,
    RequestCancelled,
    SlotStorageUnavailable,
    SpoolFull,
    Stopping,
    StoreError,
    StoreOutdated,
    TaskGone,
    TooBusy,
    TooLarge,
    TooLate,
    TooManyUploads,
    TooSlow,
    Unauthorized,
    UnknownLease,
    UnknownRequest,
    UnknownStream,
    UnknownTemplate,
    WaitTimeout,
    WrongMediaType,
)
from pool.version import VERSION

if TYPE_CHECKING:
    from pool.client import AsyncLease, AsyncRemotePool, AsyncRequest, RemotePool
    from pool.handles import Lease, Request
    from pool.model import (
        Event,
        Frame,
        Job,
        LeaseState,
        Outcome,
        Placed,
        Priority,
        RequestState,
        TaskState,
    )
    from pool.status import Status, StreamStatus, TemplateStatus
    from pool.taskpool import TaskPool

__version__ = VERSION

__all__ = [
    "AsyncLease",
    "AsyncRemotePool",
    "AsyncRequest",
    "ConfigError",
    "CvatAmbiguous",
    "CvatBusy",
    "CvatError",
    "CvatForbidden",
    "CvatNotFound",
    "CvatRefusedCredentials",
    "CvatRejected",
    "CvatTooOld",
    "CvatUnreachable",
    "DataGone",
    "Event",
    "Forbidden",
    "Frame",
    "IdempotencyConflict",
    "ImportFailed",
    "ImportLost",
    "ImportTimedOut",
    "InputError",
    "Job",
    "Lease",
    "LeaseEnded",
    "LeaseInUse",
    "LeaseState",
    "NotAllowed",
    "Outcome",
    "OwnerGone",
    "Placed",
    "PoolClosed",
    "PoolEmpty",
    "PoolError",
    "PoolUnreachable",
    "Priority",
    "QueueFull",
    "RemotePool",
    "Request",
    "RequestCancelled",
    "RequestState",
    "RequestWarning",
    "SlotStorageUnavailable",
    "SpoolFull",
    "Status",
    "Stopping",
    "StoreError",
    "StoreOutdated",
    "StreamStatus",
    "TaskGone",
    "TaskPool",
    "TaskState",
    "TemplateStatus",
    "TooBusy",
    "TooLarge",
    "TooLate",
    "TooManyUploads",
    "TooSlow",
    "Unauthorized",
    "UnknownLease",
    "UnknownRequest",
    "UnknownStream",
    "UnknownTemplate",
    "WaitTimeout",
    "WrongMediaType",
    "__version__",
]

# What needs the store, the SDK or httpx is imported when it is first used, so that `import pool`
# stays quick.
_LAZY = {
    "AsyncLease": "pool.client",
    "AsyncRemotePool": "pool.client",
    "AsyncRequest": "pool.client",
    "Event": "pool.model",
    "Frame": "pool.model",
    "Job": "pool.model",
    "Lease": "pool.handles",
    "LeaseState": "pool.model",
    "Outcome": "pool.model",
    "Placed": "pool.model",
    "Priority": "pool.model",
    "RemotePool": "pool.client",
    "Request": "pool.handles",
    "RequestState": "pool.model",
    "RequestWarning": "pool.model",
    "Status": "pool.status",
    "StreamStatus": "pool.status",
    "TaskPool": "pool.taskpool",
    "TaskState": "pool.model",
    "TemplateStatus": "pool.status",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
