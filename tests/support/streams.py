"""Reads ``/v1/events`` as a client does, message by message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import urllib3


class Stream:
    """One client, read message by message."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.response = response
        self._lines = iter(self._read_lines())
        beginning = self._message()
        assert beginning is not None and beginning.pop("retry") == "2000"
        #: The place that it begins at.
        self.place = int(beginning.pop("id"))
        assert not beginning

    def _read_lines(self) -> Iterator[str]:
        rest = b""
        for piece in self.response.stream(2**14):
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.decode() for line in lines)

    def _message(self) -> dict[str, str] | None:
        message: dict[str, str] = {}
        for line in self._lines:
            if not line:
                return message
            name, _, value = line.partition(":")
            message[name] = value.strip()
        assert not message
        return None

    def next(self, kind: str = "") -> dict[str, Any]:
        """The next message, of one kind, or of any but levels and comments."""
        while (message := self._message()) is not None:
            if message.get("event", "") == kind or (not kind and "id" in message):
                data: dict[str, Any] = json.loads(message["data"])
                assert kind == "levels" or str(data["id"]) == message["id"]
                return data
        raise AssertionError("the stream has ended")

    def comment(self) -> str:
        while (message := self._message()) is not None:
            if "" in message:
                return message[""]
        raise AssertionError("the stream has ended")

    def ids(self, count: int) -> list[int]:
        return [self.next()["id"] for _ in range(count)]

    def rest(self) -> list[str]:
        """The kinds of what is left, up to the end."""
        kinds = []
        while (message := self._message()) is not None:
            kinds.append(message.get("event", "comment"))
        return kinds
