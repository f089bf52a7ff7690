"""The dashboard: ``/`` and its files, those of the manual among them.

The files hold no data, so they need no token: the page reads its data from ``/v1``, with the token
that its user enters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

PAGE: Final = "/"
#: The prefix of the paths of the page's files.
STATIC: Final = "/static/"

TYPES: Final = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        ".png": "image/png",
        ".json": "application/json",
    }
)
#: All folders of the page; only files of the types above are served.
_FOLDERS: Final = ("", "uplot/", "manual/", "swagger-ui/")
_INDEX: Final = "index.html"

#: Scripts, styles, images and connections of this origin only: nothing inline, no framing, and no
#: script that makes markup of text.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        # Not "no-referrer": with that some browsers give the page's own POST no origin.
        "Referrer-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        # Revalidated each time, mostly with a 304: a page never runs scripts of another version.
        "Cache-Control": "no-cache",
    }
)


@dataclass(frozen=True)
class File:
    """What is served under one path."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, content: bytes, suffix: str) -> File:
        """Return a file of one of the types that are served."""
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, TYPES[suffix], etag)

    def answer(self, request: Request, *, policy: str = CONTENT_SECURITY_POLICY) -> Response:
        """Return the file, or 304 when the browser has it."""
        headers = {**HEADERS, "Content-Security-Policy": policy, "ETag": self.etag}
        known = request.headers.get("If-None-Match", "")
        if self.etag in (each.strip().removeprefix("W/") for each in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def _read_files() -> Mapping[str, File]:
    """Return all files that are served, by their paths."""
    root = resources.files("pool.http") / "static"
    return {
        folder + entry.name: File.of(entry.read_bytes(), _suffix(entry))
        for folder in _FOLDERS
        for entry in (root / folder if folder else root).iterdir()
        if _suffix(entry) in TYPES
    }


def _suffix(entry: Traversable) -> str:
    return "." + entry.name.rpartition(".")[2]


#: Read once, so that all files are of one version, and calls do not read the disk.
_FILES: Final = _read_files()

router = APIRouter(include_in_schema=False)


@router.api_route(PAGE, methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    return _FILES[_INDEX].answer(request)


@router.api_route(STATIC + "{path:path}", methods=["GET", "HEAD"])
async def static(path: str, request: Request) -> Response:
    if path == _INDEX or path not in _FILES:
        raise HTTPException(404)
    return _FILES[path].answer(request)
