"""Reading what a caller sent, with the messages that Django REST framework has for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from .replies import Refusal

_TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "off", "0"})
T = TypeVar("T")

EMPTY_LIST = "This list may not be empty."

_WHOLE_NUMBER = re.compile(r"\s*-?\d+(\.0*)?\s*\Z")


class Fields:
    """A form or a JSON object, read field by field. Mistakes are collected, then raised as one.

    A reader returns its default where the field is absent or wrong; :meth:`check` refuses the
    request if anything was wrong.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.errors: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def check(self) -> None:
        if self.errors:
            raise Refusal(400, self.errors)

    def wrong(self, name: str, message: str) -> None:
        self.errors.setdefault(name, []).append(message)

    def _get(self, name: str, *, required: bool, null: bool) -> Any:
        if name not in self.values:
            if required:
                self.wrong(name, "This field is required.")
            return None
        value = self.values[name]
        if value is None and not null:
            self.wrong(name, "This field may not be null.")
        return value

    def text(
        self,
        name: str,
        *,
        default: str | None = None,
        required: bool = False,
        blank: bool = True,
        null: bool = False,
        longest: int | None = None,
    ) -> str | None:
        value = self._get(name, required=required, null=null)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.wrong(name, "Not a valid string.")
            return default
        text = str(value).strip()
        if not text and not blank:
            self.wrong(name, "This field may not be blank.")
        elif "\0" in text:
            self.wrong(name, "Null characters are not allowed.")
        elif longest is not None and len(text) > longest:
            self.wrong(name, f"Ensure this field has no more than {longest} characters.")
        else:
            return text
        return default

    def integer(
        self,
        name: str,
        *,
        default: int | None = None,
        required: bool = False,
        null: bool = False,
        least: int | None = None,
        most: int | None = None,
    ) -> int | None:
        value = self._get(name, required=required, null=null)
        if value is None or (value == "" and null):
            return default
        number = _integer(value)
        if number is None:
            self.wrong(name, "A valid integer is required.")
        elif least is not None and number < least:
            self.wrong(name, f"Ensure this value is greater than or equal to {least}.")
        elif most is not None and number > most:
            self.wrong(name, f"Ensure this value is less than or equal to {most}.")
        else:
            return number
        return default

    def number(self, name: str) -> float | None:
        """A share: a number from 0 to 1."""
        value = self._get(name, required=False, null=False)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.wrong(name, "A valid number is required.")
            return None
        if not 0 < number <= 1:
            self.wrong(name, "Value must be in the range (0; 1]")
        return number

    def boolean(self, name: str, *, default: bool = False, required: bool = False) -> bool:
        value = self._get(name, required=required, null=False)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        if isinstance(value, str | int) and str(value).lower() in _TRUE:
            return True
        if isinstance(value, str | int) and str(value).lower() in _FALSE:
            return False
        self.wrong(name, "Must be a valid boolean.")
        return default

    def choice(
        self,
        name: str,
        choices: Collection[str],
        *,
        default: str | None = None,
        required: bool = False,
    ) -> str | None:
        value = self._get(name, required=required, null=False)
        if value is None:
            return default
        if value not in choices:
            self.wrong(name, f'"{value}" is not a valid choice.')
            return default
        return str(value)

    def items(self, name: str, *, required: bool = False, null: bool = True) -> list[Any]:
        """A list; empty where there is none."""
        value = self._get(name, required=required, null=null)
        if value is None:
            return []
        if not isinstance(value, list):
            self.wrong(name, not_a_list(value))
            return []
        return value

    def texts(
        self,
        name: str,
        *,
        longest: int,
        required: bool = False,
        blank: bool = True,
        empty: bool = True,
        problem: Callable[[str], str | None] = lambda _: None,
    ) -> list[str]:
        """A list of texts; mistakes, and those that ``problem`` finds, are reported by place."""
        items = self.items(name, required=required)
        if not items and not empty and name not in self.errors:
            self.wrong(name, EMPTY_LIST)
        inner = Fields({str(number): value for number, value in enumerate(items)})
        texts = [inner.text(key, blank=blank, longest=longest) or "" for key in inner.values]
        for key, text in zip(inner.values, texts, strict=True):
            if key not in inner.errors and (message := problem(text)):
                inner.wrong(key, message)
        if inner.errors:
            self.errors[name] = inner.errors
        return texts

    def each(self, name: str, read: Callable[[Fields], T]) -> list[T]:
        """A list of objects, of which ``read`` reads each; every one has its own mistakes."""
        value = self._get(name, required=False, null=False)
        if value is None:
            return []
        if not isinstance(value, list):
            self.errors[name] = {"non_field_errors": [not_a_list(value)]}
            return []
        found, mistakes = [], []
        for item in value:
            inner = Fields(item if isinstance(item, dict) else {})
            found.append(read(inner))
            mistakes.append(inner.errors if isinstance(item, dict) else not_an_object(item))
        if any(mistakes):
            self.errors[name] = mistakes
        return found


def not_a_list(value: Any) -> str:
    return f'Expected a list of items but got type "{type(value).__name__}".'


def not_an_object(value: Any) -> dict[str, Any]:
    kind = type(value).__name__
    return {"non_field_errors": [f"Invalid data. Expected a dictionary, but got {kind}."]}


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and not _WHOLE_NUMBER.match(value):
        return None
    return int(str(value).split(".", 1)[0])
