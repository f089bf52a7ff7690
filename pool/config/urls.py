"""Addresses: of servers, of sinks, and of files that CVAT fetches. The one check that a text is
an ``http://`` or ``https://`` address stands here; what else is asked of one stands at its caller.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from posixpath import basename
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from pool.config.names import LONGEST_PATH, check_length, check_text
from pool.errors import InputError

#: What is written as a percent escape in a URL: it means the same, and the URL then ends where
#: it stands in a text of CVAT's.
_UNSAFE_IN_URL: Final = re.compile(r"[ '\"<>\\^`{|}]")
_USER_INFO: Final = re.compile(r"(?<=://)[^\s/'\"\\?#]*@")
#: What follows the path of an address, or of one of which the path alone is given: "url: /a.jpg?x".
_QUERY: Final = re.compile(r"(?i)((?:://|\burl: /)[^\s'\"<>\\?#]*)[?#][^\s'\"<>\\]*")


def split_url(text: str) -> SplitResult | None:
    """Return the parts of an ``http://`` or ``https://`` address, or None where it is none."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    blank = re.search(r"[\0-\x20]", text) or re.search(r"\s", parts.netloc)
    return parts if usable and not blank else None


def origin(url: str) -> str:
    """Return an address as an ``Origin`` header has it: without path and usual port."""
    parts = urlsplit(url)
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = f":{parts.port}" if parts.port not in (None, usual) else ""
    return f"{parts.scheme}://{host}{port}"


def split_store_url(text: str) -> SplitResult | None:
    """Return the parts of a ``postgresql://`` address that names a database, or None."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme == "postgresql" and (parts.port is None or parts.port > 0)
    except ValueError:
        return None
    named = parts.path.strip("/") or any(
        name in ("dbname", "service") for name, _ in parse_qsl(parts.query)
    )
    blank = re.search(r"[\0-\x20]", text)
    return parts if usable and named and not blank and not parts.fragment else None


def has_password(url: str) -> bool:
    """Return whether the address of a store holds a password."""
    address, _, query = url.partition("://")[2].partition("?")
    return ":" in address.rpartition("@")[0] or any(
        "password" in name.lower() for name, _ in parse_qsl(query)
    )


def shown_store_url(url: str) -> str:
    """Return a store's address without what it may hold of a user and a password."""
    parts = split_store_url(url)
    if parts is None:
        return url if url.startswith("sqlite:") else "a store at an address that cannot be read"
    kept = [each for each in parse_qsl(parts.query) if each[0] in ("host", "dbname", "service")]
    host = parts.netloc.rpartition("@")[2]
    return f"postgresql://{host}{parts.path}" + (f"?{urlencode(kept, safe='/,')}" if kept else "")


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Return whether an address, or a name, stands for this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_url(url: object) -> str:
    """Return the address of a file that CVAT fetches, as it is sent.

    :raises InputError: CVAT would refuse it, or finds no name for the file in it (recording
        remote_urls). The message has no password and no query.
    """
    given = check_text(url, "a URL")
    address = _UNSAFE_IN_URL.sub(lambda found: quote(found[0]), given)
    # An address that cannot be split is not shown where it may hold a password.
    where = ascii(without_secrets(given)) if "@" not in given else "a URL"
    if not address.lower().startswith(("http://", "https://")):
        raise InputError(f"{where}: CVAT fetches http:// and https:// addresses only")
    if split_url(address) is None:
        raise InputError(f"{where}: this is no valid address")
    if len(address) > LONGEST_PATH:
        raise InputError(
            f"{without_secrets(address)}: CVAT has room for {LONGEST_PATH} characters of a URL, "
            f"and these are {len(address)}; give a shorter one, or the file itself"
        )
    name = name_in_url(address)
    if name in ("", ".", "..") or "\0" in name:
        raise InputError(f"{without_secrets(address)}: its path does not end with a file's name")
    check_length(name, without_secrets(address))
    return address


def name_in_url(url: str) -> str:
    """Return the name that CVAT gives to a file that it fetches: the last part of the path."""
    return basename(unquote(urlsplit(url).path))


def without_secrets(text: str) -> str:
    """Return a text in which URLs have no user, no password, no query and no fragment.

    Signed addresses have their secret in the query, and CVAT repeats addresses in its messages.
    """
    return _QUERY.sub(r"\1?…", _USER_INFO.sub("", text))
