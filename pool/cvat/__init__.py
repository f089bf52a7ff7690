"""All that talks to CVAT; nothing else in the product imports ``cvat_sdk``.

Importing this package is cheap. The client, and with it cvat-sdk (0.2 s), is imported when a
name that needs it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pool.cvat.records import (
    AccessToken,
    ImportState,
    ImportStatus,
    LocalFile,
    Progress,
    ServerInfo,
    TaskInfo,
    Upload,
    User,
)

if TYPE_CHECKING:
    from pool.cvat.client import CvatClient, OnCall, connect
    from pool.cvat.credentials import (
        AccessTokenCredentials,
        Credentials,
        PasswordCredentials,
        find_credentials,
    )
    from pool.cvat.failures import cut_off, left_untouched, refused_for_data_there

__all__ = [
    "AccessToken",
    "AccessTokenCredentials",
    "Credentials",
    "CvatClient",
    "ImportState",
    "ImportStatus",
    "LocalFile",
    "OnCall",
    "PasswordCredentials",
    "Progress",
    "ServerInfo",
    "TaskInfo",
    "Upload",
    "User",
    "connect",
    "cut_off",
    "find_credentials",
    "left_untouched",
    "refused_for_data_there",
]

_LAZY = {
    "AccessTokenCredentials": "credentials",
    "Credentials": "credentials",
    "CvatClient": "client",
    "OnCall": "client",
    "PasswordCredentials": "credentials",
    "connect": "client",
    "cut_off": "failures",
    "find_credentials": "credentials",
    "left_untouched": "failures",
    "refused_for_data_there": "failures",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value
