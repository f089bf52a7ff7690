"""The OpenAPI document: complete, and true as far as its own examples go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import urllib3
from support.api import Checker, Serving

from pool import errors
from pool.errors import PoolError

METHODS = {"get", "post", "put", "delete", "patch"}


@pytest.fixture
def checker(refusing: Serving) -> Checker:
    return refusing.api.checker


def operations(document: Any) -> Iterator[tuple[str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert method in METHODS
            yield f"{method.upper()} {path}", operation


def contents(operation: Any) -> Iterator[tuple[str, str, Any]]:
    """Every body that may be sent or answered: where, its media type, and what is said of it."""
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        yield "body", media_type, content
    for status, response in operation["responses"].items():
        for media_type, content in response.get("content", {}).items():
            yield status, media_type, content


def test_it_is_served(refusing: Serving) -> None:
    with urllib3.PoolManager() as http:
        answer = http.request("GET", f"{refusing.url}/openapi.json")
    assert answer.json() == refusing.api.checker.document


def test_it_has_the_routes_of_the_design(checker: Checker) -> None:
    have = {name for name, _ in operations(checker.document)}
    assert have >= {
        "POST /v1/leases",
        "GET /v1/leases/{lease_id}",
        "DELETE /v1/leases/{lease_id}",
        "POST /v1/requests",
        "GET /v1/requests",
        "GET /v1/requests/{request_id}",
        "DELETE /v1/requests/{request_id}",
        "GET /v1/streams",
        "DELETE /v1/streams",
        "GET /v1/events",
        "GET /v1/templates",
        "POST /v1/templates/{name}/pause",
        "POST /v1/templates/{name}/resume",
        "POST /v1/templates/{name}/drain",
        "POST /v1/templates/{name}/prewarm",
        "POST /webhooks/cvat",
        "GET /healthz",
        "GET /readyz",
        "GET /metrics",
    }


def test_all_examples_fit_their_schemas(checker: Checker) -> None:
    count = 0
    for name, operation in operations(checker.document):
        for where, media_type, content in contents(operation):
            examples = [each["value"] for each in content.get("examples", {}).values()]
            examples += [content["example"]] if "example" in content else []
            for example in examples:
                count += 1
                if media_type.endswith("json") and "schema" in content:
                    try:
                        checker.validate(content["schema"], example)
                    except jsonschema_rs.ValidationError as error:
                        pytest.fail(f"{name}, {where}: {error.message}")
    assert count > 100


def test_the_examples_inside_the_schemas_fit_too(checker: Checker) -> None:
    count = 0

    def look(schema: Any) -> None:
        nonlocal count
        if isinstance(schema, list):
            for each in schema:
                look(each)
        elif isinstance(schema, dict):
            examples = schema.get("examples")
            for example in examples if isinstance(examples, list) else []:
                bare = {name: value for name, value in schema.items() if name != "examples"}
                checker.validate(bare, example)
                count += 1
            for each in schema.values():
                look(each)

    look(checker.document["components"]["schemas"])
    assert count > 10


def test_every_error_is_a_problem(checker: Checker) -> None:
    for name, operation in operations(checker.document):
        for status, response in operation["responses"].items():
            if int(status) < 400 or (name, status) == ("GET /readyz", "503"):
                continue
            assert set(response["content"]) == {"application/problem+json"}, (name, status)
            assert response["content"]["application/problem+json"]["schema"] == {
                "$ref": "#/components/schemas/Problem"
            }


def test_what_every_operation_says(checker: Checker) -> None:
    for name, operation in operations(checker.document):
        assert operation["summary"], name
        assert "500" in operation["responses"], name
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in response["headers"], (name, status)
            if status in ("408", "429", "503") and name != "GET /readyz":
                assert "Retry-After" in response["headers"], (name, status)
        # Webhooks need a signature in place of a token.
        needs = "401" in operation["responses"] and name != "POST /webhooks/cvat"
        assert (operation.get("security") == []) is not needs, name
    ids = [operation["operationId"] for _, operation in operations(checker.document)]
    assert len(set(ids)) == len(ids)


def test_all_references_lead_somewhere(checker: Checker) -> None:
    known = checker.document["components"]["schemas"]

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(ref := value.get("$ref"), str):
                assert ref.removeprefix("#/components/schemas/") in known
            for each in value.values():
                look(each)
        elif isinstance(value, list):
            for each in value:
                look(each)

    look(checker.document)
    assert "HTTPValidationError" not in known


def kinds(kind: type[PoolError]) -> Iterator[type[PoolError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from kinds(narrower)


def test_no_two_errors_have_one_code() -> None:
    by_code: dict[str, list[type[PoolError]]] = {}
    for kind in kinds(PoolError):
        if kind.__module__ == errors.__name__:
            by_code.setdefault(kind.code, []).append(kind)
    for first, *others in by_code.values():
        # But for a special case of one, in the same words.
        assert all(issubclass(other, first) for other in others)
