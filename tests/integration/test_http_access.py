"""Who is served: with tokens, and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import urllib3
from support.api import Answer, Api, Serving, serving, settings_for

from pool.config.settings import Template
from pool.config.tokens import tokens_in
from pool.simulator import SimulatorServer

TOKENS = ("old-token", "new-tökén")


@pytest.fixture(scope="module")
def guarded(
    simulator: SimulatorServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    store = tmp_path_factory.mktemp("guarded") / "pool.db"
    settings = settings_for(simulator.url, f"sqlite:///{store}", Template(name="scenes"))
    with serving(settings, simulator.access_token, tokens=TOKENS) as served:
        yield served


def with_token(served: Serving, authorization: str | None) -> Answer:
    api = Api(served.url)
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    return api.get("/v1/templates", headers=headers)


@pytest.mark.parametrize("token", TOKENS)
def test_every_token_is_good(guarded: Serving, token: str) -> None:
    assert with_token(guarded, f"Bearer {token}").status == 200
    assert with_token(guarded, f"bearer {token}").status == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic old-token", "old-token", "Bearer old"],
)
def test_nothing_else_is(guarded: Serving, authorization: str | None) -> None:
    answer = with_token(guarded, authorization)
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/openapi.json", "/metrics", "/v1/events", "/nothing"])
def test_what_needs_a_token(guarded: Serving, path: str) -> None:
    assert Api(guarded.url).get(path).status == 401


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/healthz", "/readyz", "/static/nothing", "/webhooks/cvat"),
        *("/docs", "/docs/python", "/docs/api", "/docs/nothing"),
    ],
)
def test_what_is_open(guarded: Serving, path: str) -> None:
    with urllib3.PoolManager() as http:
        answer = http.request("GET", guarded.url + path, retries=False)
    assert answer.status not in (401, 403)


def test_with_a_token_any_host_and_origin_are_good(guarded: Serving) -> None:
    headers = {"Host": "pool.example.org", "Origin": "https://elsewhere.example.org"}
    assert guarded.api.get("/v1/templates", headers=headers).status == 200


def test_tokens_in_the_environment() -> None:
    assert tokens_in("one") == ("one",)
    assert tokens_in(" one , two ,") == ("one", "two")
    assert tokens_in(" , ") == tokens_in("") == tokens_in(None) == ()


# --- Without tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "127.9.9.9", "[::1]:9"]
)
def test_this_machine_by_its_names(refusing: Serving, host: str) -> None:
    assert refusing.api.get("/v1/templates", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["pool.example.org", "10.0.0.1", "localhost.example.org", "", "[::2]", "127.0.0.1.nip.io"],
)
@pytest.mark.parametrize("path", ["/v1/templates", "/healthz", "/"])
def test_another_name_for_it_is_refused(refusing: Serving, host: str, path: str) -> None:
    # A page of another site that has its name resolve to this machine.
    answer = refusing.api.get(path, headers={"Host": host})
    assert (answer.status, answer.code) == (403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://elsewhere.example.org"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
    ],
)
def test_pages_of_other_sites_are_refused(refusing: Serving, headers: dict[str, str]) -> None:
    answer = refusing.api.post("/v1/templates/scenes/pause", headers=headers)
    assert (answer.status, answer.code) == (403, "forbidden")
    assert refusing.process.store.paused() == {}


def test_the_page_itself_is_not(refusing: Serving) -> None:
    own = {"Sec-Fetch-Site": "same-origin", "Origin": refusing.url}
    assert refusing.api.get("/v1/templates", headers=own).status == 200
    typed = {"Sec-Fetch-Site": "none"}
    assert refusing.api.get("/v1/templates", headers=typed).status == 200
    linked = {"Sec-Fetch-Site": "cross-site"}
    assert refusing.api.get("/healthz", headers=linked).status == 200


# --- What all answers bear ------------------------------------------------------------------------


def test_the_id_of_a_call(refusing: Serving) -> None:
    given = refusing.api.get("/healthz", headers={"X-Request-Id": "job-7/a.b:c"})
    assert given.headers["x-request-id"] == "job-7/a.b:c"
    for odd in ("x" * 129, "a b", "a\tb", ""):
        made = refusing.api.get("/healthz", headers={"X-Request-Id": odd})
        assert len(made.headers["x-request-id"]) == 26


def test_answers_are_nobody_elses(refusing: Serving) -> None:
    answer = refusing.api.get("/v1/templates")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_no_cors(refusing: Serving) -> None:
    headers = {"Origin": refusing.url, "Access-Control-Request-Method": "POST"}
    answer = refusing.api.call("OPTIONS", "/v1/leases", headers=headers)
    assert answer.status == 405
    assert "access-control-allow-origin" not in answer.headers


def test_a_method_that_a_path_does_not_have(refusing: Serving) -> None:
    for path, methods in (
        ("/v1/requests", "GET, POST"),
        ("/v1/requests/x", "DELETE, GET"),
        ("/v1/leases", "GET, POST"),
        ("/webhooks/cvat", "POST"),
    ):
        answer = refusing.api.call("PUT", path)
        assert (answer.status, answer.headers["allow"]) == (405, methods)
        assert answer.headers["content-type"] == "application/problem+json"
