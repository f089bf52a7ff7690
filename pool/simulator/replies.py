"""Answers as CVAT words them: JSON of its own media type, plain refusals, HTML for the rest."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

JSON = "application/vnd.cvat+json"
HTML = "text/html; charset=utf-8"

NEVER_CACHE = {"cache-control": "max-age=0, no-cache, no-store, must-revalidate, private"}

_DJANGO_PAGE = (
    '\n<!doctype html>\n<html lang="en">\n<head>\n  <title>{0}</title>\n</head>\n'
    "<body>\n  <h1>{0}</h1><p>{1}</p>\n</body>\n</html>\n"
)
SERVER_ERROR = _DJANGO_PAGE.format("Server Error (500)", "")
NOT_FOUND = _DJANGO_PAGE.format("Not Found", "The requested resource was not found on this server.")
_NGINX_PAGE = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n"
    "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
#: What nginx answers in place of a server that it cannot reach, that takes too long, or that it
#: spares an address which is too long.
NGINX = {
    414: "414 Request-URI Too Large",
    502: "502 Bad Gateway",
    503: "503 Service Temporarily Unavailable",
    504: "504 Gateway Time-out",
}

#: Django compresses, and says so in ``Vary``, from this many bytes on.
COMPRESSED_FROM = 200


class Refusal(Exception):
    """The request ends here with this answer."""

    def __init__(
        self,
        status: int,
        body: Any = None,
        *,
        html: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.html = html
        self.headers = dict(headers or {})


def invalid(message: str) -> Refusal:
    """A validation error that belongs to no field: 400 and a list of one."""
    return Refusal(400, [message])


def detail(status: int, message: str) -> Refusal:
    return Refusal(status, {"detail": message})


def forbidden() -> Refusal:
    return detail(403, "You do not have permission to perform this action.")


def missing(model: str) -> Refusal:
    return detail(404, f"No {model} matches the given query.")


def crash() -> Refusal:
    """What CVAT answers when its own code fails."""
    return Refusal(500, html=SERVER_ERROR)


class Reply(Response):
    """An answer of the API. ``allow`` and the rest of ``Vary`` are added on its way out."""

    cookie_dependent = False

    def __init__(
        self,
        body: Any = None,
        *,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        html: str | None = None,
        content: bytes | None = None,
        media_type: str | None = None,
    ) -> None:
        if content is None:
            if html is not None:
                content, media_type = html.encode(), HTML
            elif body is not None:
                content, media_type = dump(body), JSON
            else:
                content = b""
        super().__init__(content, status_code=status, headers=dict(headers or {}))
        if media_type is not None:
            self.headers["content-type"] = media_type

    @classmethod
    def of_refusal(cls, refusal: Refusal) -> Reply:
        return cls(refusal.body, status=refusal.status, headers=refusal.headers, html=refusal.html)

    def seal(self, allow: str | None, *, anonymous_possible: bool) -> None:
        """Add the headers that every answer of Django's has."""
        self.headers["x-request-id"] = str(uuid.uuid4())
        if self.status_code == 500:
            self.headers["vary"] = "Origin"
            return
        vary = ["Accept"]
        if len(self.body) >= COMPRESSED_FROM:
            vary.append("Accept-Encoding")
        vary.append("Origin")
        if anonymous_possible or self.cookie_dependent:
            vary.append("Cookie")
        self.headers.setdefault("vary", ", ".join(vary))
        if allow is not None:
            self.headers["allow"] = allow


def nginx_page(status: int, headers: Mapping[str, str] | None = None) -> Reply:
    """What the web server in front of CVAT answers by itself: a status of :data:`NGINX`."""
    return Reply(
        status=status,
        headers={**(headers or {}), "server": "nginx"},
        content=_NGINX_PAGE.format(NGINX[status]).encode(),
        media_type="text/html",
    )


def dump(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
