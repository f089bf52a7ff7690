"""Fetching remote files, as CVAT does it with the requests library, whose words it then shows."""

from __future__ import annotations

import shutil
from collections.abc import Container, Sequence
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import urllib3

from .media import ImportFailed, validation_error
from .settings import SimulatorSettings
from .versions import DOWNLOAD_ERRORS

MOST_REDIRECTS = 30


class _Failed(Exception):
    """A remote file cannot be had: what a bare exception says of it, and CVAT since 2.65."""

    def __init__(self, words: str, kind: str = "Exception", bare: str | None = None) -> None:
        super().__init__(words)
        self.failure = validation_error(words)
        self.bare = ImportFailed(f"{kind}: {bare or words}\n")


def download(
    urls: Sequence[str], target: Path, shown_as: str, settings: SimulatorSettings
) -> list[str]:
    """Fetch remote files into a folder and return their names.

    Raises :class:`ImportFailed` for the first that cannot be had, as CVAT does.
    """
    names: dict[str, None] = {}
    timeout = urllib3.Timeout(total=settings.remote_timeout)
    try:
        with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
            for url in urls:
                name = _new_name(url, names)
                _fetch(pool, url, target / name, f"{shown_as}/{name}")
                names[name] = None
    except _Failed as failed:
        raise (failed.failure if settings.since(DOWNLOAD_ERRORS) else failed.bare) from None
    return list(names)


def _new_name(url: str, taken: Container[str]) -> str:
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    if name in taken:
        raise _Failed(f"filename collision: {name}")
    return name


def _fetch(pool: urllib3.PoolManager, url: str, path: Path, shown_as: str) -> None:
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https"):
        # Refused at the door since 2.65.
        what = f"Unsupported URL scheme: {scheme}. Only http and https are supported"
        raise _Failed(what, "ValueError")
    response, found_at = _follow(pool, url)
    try:
        if response.status != 200:
            asked = f" (redirected from {url})" if found_at != url else ""
            raise _Failed(f"Failed to download {found_at}{asked}; HTTP error {response.status}")
        with path.open("wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:
        raise ImportFailed(
            f"{type(error).__name__}: [Errno {error.errno}] {error.strerror}: {shown_as!r}\n"
        ) from None
    finally:
        response.release_conn()


def _follow(pool: urllib3.PoolManager, url: str) -> tuple[urllib3.BaseHTTPResponse, str]:
    """The answer behind all redirects, and where that is."""
    found_at = url if urlsplit(url).path else f"{url}/"
    for _ in range(MOST_REDIRECTS + 1):
        try:
            response = pool.request("GET", found_at, preload_content=False, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise _unreachable(url, error) from None
        location = response.get_redirect_location()
        if not location:
            return response, found_at
        response.drain_conn()
        response.release_conn()
        found_at = urljoin(found_at, location)
    raise _failed(url, "TooManyRedirects", f"Exceeded {MOST_REDIRECTS} redirects.")


def _failed(url: str, kind: str, what: str) -> _Failed:
    """An exception of the requests library."""
    return _Failed(f"Failed to download {url}: {kind}: {what}", f"requests.exceptions.{kind}", what)


def _unreachable(url: str, error: urllib3.exceptions.HTTPError) -> _Failed:
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        kind = "HTTPSConnection" if parts.scheme == "https" else "HTTPConnection"
        reason = str(error).partition(": ")[2]
        where = f"(host='{parts.hostname}', port={port})"
        return _failed(
            url,
            "ConnectionError",
            f"{kind}Pool{where}: Max retries exceeded with url: {parts.path or '/'} (Caused by "
            f'{type(error).__name__}("{kind}{where}: {reason}"))',
        )
    return _failed(url, type(error).__name__, str(error))
