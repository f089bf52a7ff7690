"""The client of cvat-sdk that all calls go through: its address, connections and TLS."""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from pool.config.settings import CvatSettings
from pool.errors import ConfigError
from pool.logs import get_logger

log = get_logger(__name__)


def checked_url(url: str) -> str:
    """The server's address without the slash at its end, scheme and host in lower case; a path
    before ``/api`` is kept.

    Raises ConfigError when it is no address or holds what belongs elsewhere.
    """
    url = url.strip()
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or "://" not in url:
        bare = url.partition("://")[2] or url or "cvat.example.com"
        raise ConfigError(
            f"cvat.url {url!r} does not begin with http:// or https://, "
            f'write for example "https://{bare}"'
        )
    if "@" in parts.netloc:
        raise ConfigError("cvat.url holds a user or password; credentials never stand there")
    try:
        valid = bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or " " in url:
        raise ConfigError(f"cvat.url {url!r} is not the address of a server")
    # The SDK knows no other scheme than those in lower case.
    return parts._replace(netloc=parts.netloc.lower()).geturl().rstrip("/")


def sdk_client(server: str, settings: CvatSettings, pool_size: int, user_agent: str) -> Any:
    """The SDK's client with a pool of ``pool_size`` connections that stay open."""
    import urllib3
    from cvat_sdk import Client, Config
    from cvat_sdk.api_client.rest import RESTClientObject
    from urllib3.connection import HTTPConnection

    if not settings.organization.isascii() or not settings.organization.isprintable():
        raise ConfigError(f"cvat.organization {settings.organization!r} is not a slug")
    client = Client(
        server, config=Config(verify_ssl=settings.verify_tls), check_server_version=False
    )
    client.organization_slug = settings.organization
    client.api_client.user_agent = user_agent
    configuration = client.api_client.configuration
    configuration.connection_pool_maxsize = pool_size
    configuration.socket_options = [
        *HTTPConnection.default_socket_options,  # TCP_NODELAY
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    ]
    # The pool was made by the client's constructor, before its size could be told.
    client.api_client.rest_client = RESTClientObject(configuration)
    if not settings.verify_tls:
        log.warning("certificates of CVAT are not verified", server=server)
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return client
