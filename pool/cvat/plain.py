"""The SDK's own client, as it comes: what the pool is compared with in the demo and the bench."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pool.config.settings import CvatSettings
from pool.cvat.credentials import Credentials, PasswordCredentials


@contextmanager
def plain_client(settings: CvatSettings, credentials: Credentials) -> Iterator[Any]:
    """A logged-in ``cvat_sdk.Client`` with the SDK's defaults, closed at the end.

    The version check, which only warns, is left out.
    """
    from cvat_sdk.core.client import AccessTokenCredentials, Client, Config

    client = Client(
        settings.url,
        config=Config(verify_ssl=settings.verify_tls),
        check_server_version=False,
        logger=logging.getLogger("cvat_sdk"),
    )
    try:
        client.organization_slug = settings.organization
        if isinstance(credentials, PasswordCredentials):
            client.login((credentials.username, credentials.password))
        else:
            client.login(AccessTokenCredentials(credentials.token))
        yield client
    finally:
        client.close()
        # Its own close leaves the connections open.
        client.api_client.rest_client.pool_manager.clear()


def plain_headers(client: Any) -> dict[str, str]:
    """The headers that the SDK's own uploader sends: credentials and organization."""
    from cvat_sdk.core.helpers import make_request_headers

    return dict(make_request_headers(client.api_client))
