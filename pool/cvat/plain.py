"""The SDK's own client, as it comes: what the pool is compared with in the demo."""

from __future__ import annotations

import logging
from typing import Any


def plain_client(url: str, token: str) -> Any:
    """A ``cvat_sdk.Client`` with the SDK's defaults.

    The version check, which only warns, is left out.
    """
    from cvat_sdk.core.client import AccessTokenCredentials, Client

    client = Client(url, check_server_version=False, logger=logging.getLogger("cvat_sdk"))
    client.login(AccessTokenCredentials(token))
    return client
