"""All that talks to CVAT; nothing else in the product imports ``cvat_sdk``."""

from pool.cvat.client import CvatClient, connect
from pool.cvat.credentials import (
    AccessTokenCredentials,
    Credentials,
    PasswordCredentials,
    find_credentials,
)
from pool.cvat.failures import cut_off, left_untouched, tells_of_other_data
from pool.cvat.records import (
    AccessToken,
    ImportState,
    ImportStatus,
    Project,
    ServerInfo,
    TaskInfo,
    User,
)
from pool.cvat.transport import OnCall

__all__ = [
    "AccessToken",
    "AccessTokenCredentials",
    "Credentials",
    "CvatClient",
    "ImportState",
    "ImportStatus",
    "OnCall",
    "PasswordCredentials",
    "Project",
    "ServerInfo",
    "TaskInfo",
    "User",
    "connect",
    "cut_off",
    "find_credentials",
    "left_untouched",
    "tells_of_other_data",
]
