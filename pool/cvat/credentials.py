"""Where the credentials for CVAT are found. They are never shown: not in a repr, log or error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pool.config.settings import CvatSettings
from pool.config.urls import origin, split_url
from pool.errors import ConfigError
from pool.permissions import warn_of_readers


@dataclass(frozen=True, slots=True)
class AccessTokenCredentials:
    """A personal access token (CVAT 2.48 and later), which costs nothing on a call."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class PasswordCredentials:
    """A user and a password, for one login whose session is kept."""

    username: str
    password: str = field(repr=False)


Credentials = AccessTokenCredentials | PasswordCredentials

_WAYS = (
    "set CVAT_ACCESS_TOKEN, or CVAT_USERNAME and CVAT_PASSWORD, or cvat.access_token_file, "
    "or save a profile with 'cvat-cli profile create'"
)


def find_credentials(settings: CvatSettings, environ: Mapping[str, str]) -> Credentials:
    """Return the first credentials found, in this order.

    1. ``CVAT_ACCESS_TOKEN`` in ``environ``;
    2. ``CVAT_USERNAME`` and ``CVAT_PASSWORD`` in ``environ``;
    3. the file that ``access_token_file`` names. One that other users can read is used, with a
       warning: secrets that a container platform mounts are world-readable by design;
    4. a profile saved by cvat-sdk: the one that ``profile`` names, or the default one if it is
       for this server.

    An empty variable counts as absent. Raises ConfigError when nothing is found or what is
    found cannot be used; a token saved for one server is never sent to another.
    """
    token = environ.get("CVAT_ACCESS_TOKEN", "").strip()
    if token:
        return AccessTokenCredentials(_checked(token, "CVAT_ACCESS_TOKEN"))
    username, password = environ.get("CVAT_USERNAME", ""), environ.get("CVAT_PASSWORD", "")
    if username and password:
        return PasswordCredentials(username, password)
    if username or password:
        missing = "CVAT_PASSWORD" if username else "CVAT_USERNAME"
        raise ConfigError(f"{missing} is not set, but the other of the pair is")
    if settings.access_token_file is not None:
        return AccessTokenCredentials(_token_from_file(settings.access_token_file))
    saved = _token_from_profile(settings)
    if saved is not None:
        return AccessTokenCredentials(saved)
    raise ConfigError(f"no credentials for CVAT were found: {_WAYS}")


def _token_from_file(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise ConfigError(f"cvat.access_token_file {path} cannot be read: {reason}") from None
    if not token:
        raise ConfigError(f"cvat.access_token_file {path} is empty")
    warn_of_readers(path, "access token file")
    return _checked(token, f"cvat.access_token_file {path}")


def _token_from_profile(settings: CvatSettings) -> str | None:
    # Only here, so that other credentials do not pay for the import.
    from cvat_sdk.core.auth import AuthStore
    from cvat_sdk.core.exceptions import CvatSdkException

    try:
        store = AuthStore()
        if settings.profile is not None:
            entry = store.get_profile(settings.profile)
            if entry is None:
                known = ", ".join(sorted(store.list_profiles())) or "none"
                raise ConfigError(
                    f"cvat.profile: there is no saved profile {settings.profile!r} (saved: {known})"
                )
            if not _same_server(entry.server, settings.url):
                raise ConfigError(
                    f"cvat.profile: the profile {settings.profile!r} is for {entry.server}, "
                    f"not for {settings.url}"
                )
            return _checked(entry.token, f"the saved profile {settings.profile!r}")
        default = store.get_default_profile()
    except CvatSdkException as error:
        raise ConfigError(f"the profiles saved by cvat-sdk cannot be read: {error}") from None
    if default is None or not _same_server(default[1].server, settings.url):
        return None
    return _checked(default[1].token, f"the saved profile {default[0]!r}")


def _same_server(saved: str, url: str) -> bool:
    parts = split_url(saved.strip().rstrip("/"))
    if parts is None:
        return False
    return (origin(parts.geturl()), parts.path) == (origin(url), urlsplit(url).path)


def _checked(token: str, source: str) -> str:
    """Return the token if it fits into a header; http.client would show it in its error."""
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{source} does not hold an access token: it has spaces or odd characters"
        )
    return token
