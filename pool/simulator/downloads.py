"""Fetching remote files, as CVAT does it with the requests library, whose words it then shows."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import urllib3

from .media import ImportFailed, validation_error

MOST_REDIRECTS = 30


def download(urls: Sequence[str], target: Path, shown_as: str, timeout: float) -> list[str]:
    """Fetch remote files into a folder and return their names.

    Raises :class:`ImportFailed` for the first that cannot be had, as CVAT does.
    """
    names: dict[str, None] = {}
    with urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=timeout)) as pool:
        for url in urls:
            name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
            if name in names:
                raise validation_error(f"filename collision: {name}")
            response, found_at = _follow(pool, url)
            try:
                if response.status != 200:
                    asked = f" (redirected from {url})" if found_at != url else ""
                    raise validation_error(
                        f"Failed to download {found_at}{asked}; HTTP error {response.status}"
                    )
                with (target / name).open("wb") as file:
                    shutil.copyfileobj(response, file)
            except OSError as error:
                path = f"{shown_as}/{name}"
                raise ImportFailed(
                    f"{type(error).__name__}: [Errno {error.errno}] {error.strerror}: {path!r}\n"
                ) from None
            finally:
                response.release_conn()
            names[name] = None
    return list(names)


def _follow(pool: urllib3.PoolManager, url: str) -> tuple[urllib3.BaseHTTPResponse, str]:
    """The answer behind all redirects, and where that is."""
    found_at = url if urlsplit(url).path else f"{url}/"
    for _ in range(MOST_REDIRECTS + 1):
        try:
            response = pool.request("GET", found_at, preload_content=False, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise validation_error(_unreachable(url, error)) from None
        location = response.get_redirect_location()
        if not location:
            return response, found_at
        response.drain_conn()
        response.release_conn()
        found_at = urljoin(found_at, location)
    raise validation_error(
        f"Failed to download {url}: TooManyRedirects: Exceeded {MOST_REDIRECTS} redirects."
    )


def _unreachable(url: str, error: urllib3.exceptions.HTTPError) -> str:
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        kind = "HTTPSConnection" if parts.scheme == "https" else "HTTPConnection"
        reason = str(error).partition(": ")[2]
        where = f"(host='{parts.hostname}', port={port})"
        return (
            f"Failed to download {url}: ConnectionError: {kind}Pool{where}: "
            f"Max retries exceeded with url: {parts.path or '/'} (Caused by "
            f'{type(error).__name__}("{kind}{where}: {reason}"))'
        )
    return f"Failed to download {url}: {type(error).__name__}: {error}"
