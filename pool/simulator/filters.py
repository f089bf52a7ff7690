"""Filtering, searching and sorting of lists: JSON logic, ``name=value``, ``search=``, ``sort=``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from .replies import Refusal, crash, invalid

T = TypeVar("T")
Test = Callable[[T], bool]

_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": lambda left, right: bool(left == right),
    "<": lambda left, right: bool(left < right),
    ">": lambda left, right: bool(left > right),
    "<=": lambda left, right: bool(left <= right),
    ">=": lambda left, right: bool(left >= right),
}


@dataclass(frozen=True, slots=True)
class Field(Generic[T]):
    """A column that lists know: how to read it from a row and what its values are."""

    read: Callable[[T], Any]
    kind: Literal["text", "number", "boolean", "date"] = "text"
    choices: tuple[str, ...] = ()

    def value(self, given: Any) -> Any:
        """A caller's value as the column's type; what Django cannot convert crashes CVAT."""
        if given is None:
            return None
        try:
            if self.kind == "number":
                return int(given)
            if self.kind == "boolean":
                return given if isinstance(given, bool) else str(given).lower() == "true"
            if self.kind == "date":
                return datetime.fromisoformat(str(given))
        except (TypeError, ValueError):
            raise crash() from None
        return str(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[T]):
    """What a list can be filtered, searched and sorted by."""

    fields: Mapping[str, Field[T]]
    search: tuple[str, ...]
    #: Fields that do not work as ``?name=value``.
    not_simple: tuple[str, ...] = ("id", "updated_date")
    sort: str = "-id"

    def apply(self, rows: Iterable[T], query: Mapping[str, str]) -> list[T]:
        """The rows that the query asks for, in its order.

        Raises a refusal with CVAT's words for a filter that is no JSON, names an unknown term
        or an unknown operation.
        """
        tests = [*self._simple_tests(query), *self._search_tests(query.get("search", ""))]
        rules = parse_rules(query.get("filter", ""))
        if rules is not None:
            tests.append(self._test(rules))
        found = [row for row in rows if all(test(row) for test in tests)]
        return self._sorted(found, query.get("sort", ""))

    def _simple_tests(self, query: Mapping[str, str]) -> list[Test[T]]:
        tests: list[Test[T]] = []
        errors: dict[str, list[str]] = {}
        for name, field in self.fields.items():
            given = query.get(name, "")
            if given == "" or name in self.not_simple:
                continue
            if field.kind == "number" and not given.strip().lstrip("-").isdigit():
                errors[name] = ["Enter a number."]
            elif field.choices and given not in field.choices:
                errors[name] = [
                    f"Select a valid choice. {given} is not one of the available choices."
                ]
            else:
                tests.append(_comparison("==", field, field.value(given)))
        if errors:
            raise Refusal(400, errors)
        return tests

    def _search_tests(self, text: str) -> list[Test[T]]:
        fields = [self.fields[name] for name in self.search]

        def contains(term: str) -> Test[T]:
            return lambda row: any(term in str(field.read(row) or "").lower() for field in fields)

        return [contains(term.lower()) for term in _search_terms(text)]

    def _sorted(self, rows: list[T], text: str) -> list[T]:
        terms = [term.strip() for term in text.split(",")]
        terms = [term for term in terms if term.lstrip("-") in self.fields] or [self.sort]
        # Stable sorts, the most important one last.
        for term in reversed(terms):
            read = self.fields[term.lstrip("-")].read
            rows.sort(key=lambda row: _sortable(read(row)), reverse=term.startswith("-"))
        return rows

    def _term(self, argument: Any) -> Field[T]:
        if not isinstance(argument, dict) or "var" not in argument:
            raise crash()
        name = argument["var"]
        if name not in self.fields:
            raise invalid(f"filter: term '{name}' is not supported")
        return self.fields[name]

    def _test(self, rules: Any, parent: str | None = None) -> Test[T]:
        _require(rules, dict, parent)
        operation, arguments = next(iter(rules.items()))
        count = len(arguments) if isinstance(arguments, list) else 0
        if operation in ("and", "or"):
            _require(arguments, list, operation)
            tests = [self._test(argument, operation) for argument in arguments]
            if operation == "and":
                return lambda row: all(test(row) for test in tests)
            return lambda row: any(test(row) for test in tests)
        if operation in ("!", "!!"):
            inner = self._test(arguments, operation)
            return inner if operation == "!!" else lambda row: not inner(row)
        if operation == "var":
            read = self._term(rules).read
            return lambda row: read(row) is not None
        if operation in _COMPARISONS and count == 2:
            field = self._term(arguments[0])
            return _comparison(operation, field, field.value(arguments[1]))
        if operation == "in" and count == 2:
            return self._membership(arguments)
        if operation == "<=" and count == 3:
            field = self._term(arguments[1])
            least = _comparison(">=", field, field.value(arguments[0]))
            most = _comparison("<=", field, field.value(arguments[2]))
            return lambda row: least(row) and most(row)
        raise invalid(
            f"filter: operation '{operation}' with arguments '{arguments}' is not supported"
        )

    def _membership(self, arguments: Sequence[Any]) -> Test[T]:
        """``in`` has two forms: a field in a list of values, and a text in a field."""
        if isinstance(arguments[0], dict):
            field = self._term(arguments[0])
            if not isinstance(arguments[1], list):
                raise crash()
            values = {field.value(value) for value in arguments[1]}
            return lambda row: field.read(row) in values
        field, part = self._term(arguments[1]), str(arguments[0])
        return lambda row: part in str(field.read(row) or "")


def parse_rules(text: str) -> Any:
    """The ``filter`` of a query; ``None`` where there is none."""
    if not text:
        return None
    try:
        rules = json.loads(text)
    except ValueError as error:
        raise invalid(f"filter: can't parse filter expression: {error}") from None
    if not rules:
        raise invalid("filter shouldn't be empty")
    return rules


def wanted(query: Mapping[str, str], name: str) -> set[int] | None:
    """The numbers that a query restricts field ``name`` to; ``None`` for "any".

    Only a help for lists with an index: what it does not understand it leaves to the filter.
    """
    given = query.get(name, "")
    if given.isdigit():
        return {int(given)}
    try:
        return _wanted(json.loads(query.get("filter", "null")), name)
    except ValueError:
        return None


def _wanted(rules: Any, name: str) -> set[int] | None:
    if not isinstance(rules, dict) or len(rules) != 1:
        return None
    operation, arguments = next(iter(rules.items()))
    if not isinstance(arguments, list):
        return None
    if operation == "and":
        found = [numbers for rule in arguments if (numbers := _wanted(rule, name)) is not None]
        return set.intersection(*found) if found else None
    if len(arguments) == 2 and arguments[0] == {"var": name}:
        values = arguments[1] if operation == "in" else [arguments[1]]
        is_numbers = isinstance(values, list) and all(type(value) is int for value in values)
        if operation in ("in", "==") and is_numbers:
            return set(values)
    return None


def _require(argument: Any, kind: type, parent: str | None) -> None:
    if isinstance(argument, kind) and argument:
        return
    got = f"got '{argument}' of type '{type(argument).__name__}'"
    if parent:
        raise invalid(
            f"filter: operation '{parent}' requires a non-empty {kind.__name__} argument, {got}"
        )
    raise invalid(f"filter: expected a non-empty {kind.__name__} value, {got}")


def _comparison(operation: str, field: Field[T], value: Any) -> Test[T]:
    compare, read = _COMPARISONS[operation], field.read

    def test(row: T) -> bool:
        found = read(row)
        # As in SQL, nothing compares with NULL.
        return found is not None and value is not None and compare(found, value)

    return test


def _sortable(value: Any) -> tuple[bool, Any]:
    return (value is None, "" if value is None else value)


def _search_terms(text: str) -> list[str]:
    try:
        terms = shlex.split(text.replace(",", " "))
    except ValueError:
        terms = text.replace(",", " ").split()
    return terms
