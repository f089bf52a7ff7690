"""Tokens with a name and a role: who may call what, and that no tenant sees another's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, get_args
from unittest import mock

import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route
from support.api import Answer, Api, Serving, serving, settings_for
from support.pictures import picture
from support.waiting import PATIENCE, poll_until

from pool.client import RemotePool
from pool.config.settings import PoolSettings, Template, TokenSettings
from pool.errors import NotAllowed, UnknownRequest, UnknownTemplate
from pool.http.access import ROLES
from pool.http.middleware import OPEN, OPEN_BELOW
from pool.model import Role
from pool.simulator import SimulatorServer

OPERATOR: Final = "the-operator"
#: Every token, with its role and the templates that it is bound to.
TOKENS: Final[Mapping[str, tuple[Role, tuple[str, ...]]]] = {
    "alice": ("submit", ()),
    "bob": ("submit", ()),
    "narrow": ("submit", ("scenes",)),
    "watcher": ("read", ()),
    "keeper": ("operate", ("scenes",)),
    "boss": ("operate", ()),
}
A: Final = [("a.png", picture("a"))]
B: Final = [("b.png", picture("b"))]
#: Routes that any token may read, which FastAPI adds itself.
DOCUMENT: Final = "/openapi.json"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    for name in TOKENS:
        (folder / name).write_text(f"{name}-secret, {name}-next\n")
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def shared(
    simulator: SimulatorServer, secrets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    store = tmp_path_factory.mktemp("tenants") / "pool.db"
    pools = PoolSettings(min_size=2, max_wait=0.01)
    templates = [Template(name=name, pool=pools) for name in ("scenes", "faces")]
    settings = replace(
        settings_for(simulator.url, f"sqlite:///{store}", *templates),
        tokens={
            name: TokenSettings(role=role, templates=bound, secret_file=secrets / name)
            for name, (role, bound) in TOKENS.items()
        },
    )
    with serving(settings, simulator.access_token, tokens=(OPERATOR,)) as served:
        served.fill()
        yield served


def as_(served: Serving, name: str) -> Api:
    return Api(served.url, token=f"{name}-secret")


# --- Who may call what ----------------------------------------------------------------------------


def routes(served: Serving) -> list[tuple[str, str]]:
    """All routes of the app, each with one method."""
    found = []
    for route in served.app.routes:
        assert isinstance(route, Route | APIRoute), "a route of another kind needs a decision, too"
        found += [(method, route.path) for method in sorted(route.methods or ())]
    return found


def is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


def status_of(served: Serving, method: str, path: str, token: str | None) -> tuple[int, str]:
    """The status of an answer, whose body may have no end, and the code of a problem."""
    line = HTTPConnection(served.url.removeprefix("http://"), timeout=PATIENCE)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    line.request(method, path.replace("{", "").replace("}", ""), headers=headers)
    with line.getresponse() as said:
        kind = said.headers.get("Content-Type", "")
        document = json.loads(said.read() or b"{}") if "problem" in kind else {}
    line.close()
    return said.status, str(document.get("type", "")).rpartition(":")[2]


def test_each_route_has_a_decision_and_keeps_it(shared: Serving) -> None:
    guarded = [each for each in routes(shared) if not is_open(each[1]) and each[1] != DOCUMENT]
    # A new route without a line in the table fails here.
    assert set(guarded) == set(ROLES)
    callers = {"submit": "alice-secret", "read": "watcher-secret", "operate": "boss-secret"}
    assert set(callers) == set(get_args(Role))
    for method, path in guarded:
        assert status_of(shared, method, path, None) == (401, "unauthorized"), path
        assert status_of(shared, method, path, "wrong") == (401, "unauthorized"), path
        assert status_of(shared, method, path, OPERATOR)[0] not in (401, 403), path
        for role in get_args(Role):
            status, code = status_of(shared, method, path, callers[role])
            if role in ROLES[method, path]:
                assert status not in (401, 403), (method, path, role)
            else:
                assert (status, code) == (403, "not-allowed"), (method, path, role)


def test_the_open_routes_need_no_token(shared: Serving) -> None:
    for method, path in routes(shared):
        if is_open(path):
            answer = status_of(shared, method, path, None)
            assert answer[0] not in (403,) and answer[1] != "unauthorized", (method, path)
    for name in TOKENS:
        assert status_of(shared, "GET", DOCUMENT, f"{name}-secret")[0] == 200


def test_a_refusal_says_which_role_may(shared: Serving) -> None:
    answer = as_(shared, "alice").post("/v1/templates/scenes/pause")
    assert (answer.status, answer.code) == (403, "not-allowed")
    assert answer.json["detail"] == (
        "the role of the token 'alice' is 'submit', and this needs operate"
    )
    answer = as_(shared, "watcher").lease()
    assert answer.json["detail"].endswith("'read', and this needs submit or operate")
    operation = shared.api.checker.document["paths"]["/v1/leases"]["post"]
    assert "operate or submit" in operation["description"]


def test_what_a_token_is_for(shared: Serving) -> None:
    for name, (role, templates) in TOKENS.items():
        answer = as_(shared, name).get("/v1/token")
        assert answer.json == {"name": name, "role": role, "templates": list(templates)}
    assert shared.api.get("/v1/token").json == {"name": "", "role": "operate", "templates": []}


def test_several_secrets_of_one_token_are_good(shared: Serving) -> None:
    assert Api(shared.url, token="alice-next").get("/v1/token").json["name"] == "alice"


# --- One tenant sees nothing of another -----------------------------------------------------------


@pytest.fixture
def hers(shared: Serving) -> Iterator[dict[str, Any]]:
    """A lease and a request of alice."""
    shared.fill()
    alice = as_(shared, "alice")
    lease = alice.lease(name="mine").json
    request = alice.submit(A, wait=30, name="secret", key="same").json
    yield {"lease": lease, "request": request}
    alice.delete(f"/v1/leases/{lease['id']}")


@pytest.mark.parametrize("name", ["bob", "narrow"])
def test_another_sees_and_changes_nothing(shared: Serving, hers: dict[str, Any], name: str) -> None:
    other = as_(shared, name)
    lease, request = f"/v1/leases/{hers['lease']['id']}", f"/v1/requests/{hers['request']['id']}"
    nothing = "01kdw8zp6vxb1tqf0v3e8z5n7c"
    for method, path, code in (
        ("GET", lease, "unknown-lease"),
        ("DELETE", lease, "unknown-lease"),
        ("GET", request, "unknown-request"),
        ("GET", f"{request}/events", "unknown-request"),
        ("DELETE", request, "unknown-request"),
        ("DELETE", f"{request}?hide=true", "unknown-request"),
    ):
        answer = other.call(method, path, headers={"Prefer": "wait=5"})
        assert (answer.status, answer.code) == (404, code), (method, path)
        # As of what there is not.
        absent = path.replace(hers["lease"]["id"], nothing).replace(hers["request"]["id"], nothing)
        theirs = other.call(method, absent)
        assert theirs.status == 404
        assert {**answer.json, "detail": ""} == {**theirs.json, "detail": ""}
    into = other.submit(B, template=None, lease_id=hers["lease"]["id"])
    assert (into.status, into.code) == (404, "unknown-lease")
    assert other.get("/v1/leases").json["items"] == []
    for query in ("", "?text=secret", "?state=ready", "?template=scenes", "?state=ready&text=se"):
        assert other.get(f"/v1/requests{query}").json["items"] == [], query
    assert other.get("/v1/history").json["requests"] == []
    for path in ("requests", "leases", "streams"):
        answer = other.get(f"/v1/{path}?tenant=alice")
        assert (answer.status, answer.code) == (403, "not-allowed"), path
    assert as_(shared, "alice").get(request).json["hidden"] is None


@pytest.mark.parametrize("name", ["watcher", "boss", "keeper"])
def test_who_reads_sees_all_with_the_tenant(
    shared: Serving, hers: dict[str, Any], name: str
) -> None:
    api = as_(shared, name)
    for path, one in (("leases", hers["lease"]), ("requests", hers["request"])):
        assert one["tenant"] == "alice"
        assert api.get(f"/v1/{path}/{one['id']}").json["tenant"] == "alice"
        assert one["id"] in [each["id"] for each in api.get(f"/v1/{path}").json["items"]]
        of_hers = api.get(f"/v1/{path}?tenant=alice&limit=200").json["items"]
        assert {each["tenant"] for each in of_hers} == {"alice"}
        assert api.get(f"/v1/{path}?tenant=nobody").json["items"] == []
    kinds = api.get(f"/v1/requests/{hers['request']['id']}/events").json["items"]
    assert {each["tenant"] for each in kinds} == {"alice"}


def test_the_one_whose_it_is_sees_it(shared: Serving, hers: dict[str, Any]) -> None:
    alice = as_(shared, "alice")
    assert [each["id"] for each in alice.get("/v1/leases").json["items"]] == [hers["lease"]["id"]]
    found = alice.get("/v1/requests?text=secret&tenant=alice").json["items"]
    assert found[0]["id"] == hers["request"]["id"]
    ended = alice.get("/v1/history").json["requests"]
    assert {each["tenant"] for each in ended} == {"alice"}


def test_each_tenant_has_its_own_keys(shared: Serving, hers: dict[str, Any]) -> None:
    bob = as_(shared, "bob")
    first = bob.submit(B, wait=30, key="same")
    assert first.status == 201 and first.json["tenant"] == "bob"
    assert bob.submit(B, wait=30, key="same").json["id"] == first.json["id"]
    again = as_(shared, "alice").submit(A, wait=30, name="secret", key="same")
    assert again.json["id"] == hers["request"]["id"]
    shared.fill()
    leases = [as_(shared, name).lease(key="k").json for name in ("alice", "bob", "alice")]
    assert leases[0]["id"] == leases[2]["id"] != leases[1]["id"]
    for name, lease in zip(("alice", "bob"), leases, strict=False):
        assert as_(shared, name).delete(f"/v1/leases/{lease['id']}").status == 204


def test_what_goes_into_a_lease_is_its_tenants(shared: Serving) -> None:
    shared.fill()
    lease = as_(shared, "alice").lease().json["id"]
    answer = as_(shared, "boss").submit(A, template=None, lease_id=lease, wait=30)
    assert answer.json["tenant"] == "alice"


def test_what_the_library_puts_into_a_lease_is_its_tenants(shared: Serving) -> None:
    shared.fill()
    alice = as_(shared, "alice")
    lease = shared.pool.lease(alice.lease().json["id"])
    request = lease.upload(A)
    assert request.record.tenant == "alice"
    assert alice.get(f"/v1/requests/{request.id}").status == 200


def test_events_are_of_the_own_alone(shared: Serving) -> None:
    shared.fill()
    newest = shared.process.store.last_event_id()
    ids = {name: as_(shared, name).submit(A, wait=30).json["id"] for name in ("alice", "bob")}

    def heard(token: str) -> list[dict[str, Any]]:
        with RemotePool(shared.url, token=token) as pool:
            found = []
            for event in pool.events(after=newest):
                found.append(event)
                if event.kind == "request.ready" and event.request_id == last[token]:
                    return [{"tenant": each.tenant, "id": each.request_id} for each in found]
        raise AssertionError("the stream has ended")

    last = {"alice-secret": ids["alice"], "bob-secret": ids["bob"], OPERATOR: ids["bob"]}
    assert {each["tenant"] for each in heard("alice-secret")} == {"alice"}
    assert {each["tenant"] for each in heard("bob-secret")} == {"bob"}
    assert {"alice", "bob"} <= {each["tenant"] for each in heard(OPERATOR)}


def test_levels_are_of_the_templates_that_are_seen(shared: Serving) -> None:
    whole = shared.api.get("/v1/templates").json
    narrow = as_(shared, "narrow").get("/v1/templates").json
    assert [each["name"] for each in whole["templates"]] == ["scenes", "faces"]
    assert [each["name"] for each in narrow["templates"]] == ["scenes"]
    assert whole["store"] and narrow["store"] == ""
    # Their names have those of hosts in them.
    assert ":" in whole["maintainer"] and whole["daemons"]
    assert narrow["maintainer"] == "a daemon" and narrow["daemons"] == []
    assert as_(shared, "keeper").get("/v1/templates").json["store"] == whole["store"]
    with as_(shared, "narrow") as api:
        stream = api._http.request(
            "GET", f"{shared.url}/v1/events", headers=api.headers, preload_content=False
        )
        read = b""
        while b"event: levels" not in read or not read.endswith(b"\n\n"):
            read += stream.read1()
        stream.close()
    levels = json.loads(read.split(b"event: levels\ndata: ")[1].split(b"\n")[0])
    assert [each["name"] for each in levels["templates"]] == ["scenes"]
    assert levels["store"] == ""


# --- Templates ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["narrow", "keeper"])
def test_a_template_that_it_is_not_for_is_unknown(shared: Serving, name: str) -> None:
    api = as_(shared, name)
    calls = [
        api.lease("faces"),
        api.submit(A, template="faces"),
        api.post("/v1/requests", {"template": "faces", "share": ["a.jpg"]}),
        api.get("/v1/streams?template=faces"),
        api.delete("/v1/streams?template=faces&name=x"),
        api.get("/v1/events?template=faces"),
    ]
    if name == "keeper":
        calls.append(api.post("/v1/templates/faces/pause"))
    for answer in calls:
        assert (answer.status, answer.code) == (404, "unknown-template")
        assert "scenes, faces" not in answer.json["detail"]
    shared.fill()
    seen = shared.api.submit(A, template="faces", wait=30).json["id"]
    assert api.get(f"/v1/requests/{seen}").status == 404
    assert seen not in [each["id"] for each in api.get("/v1/requests").json["items"]]
    assert "faces" not in api.get("/v1/history").json["templates"]
    assert api.get("/metrics").status == 403


def test_one_that_is_bound_resumes_its_own(shared: Serving) -> None:
    for name in ("scenes", "faces"):
        shared.pool.pause(name)
    as_(shared, "keeper").post("/v1/templates/resume")
    assert set(shared.process.store.paused()) == {"faces"}
    shared.pool.resume("faces")


# --- In words -------------------------------------------------------------------------------------


def test_the_errors_in_python(shared: Serving, hers: dict[str, Any]) -> None:
    with RemotePool(shared.url, token="narrow-secret") as pool:
        with pytest.raises(UnknownRequest):
            pool.request(hers["request"]["id"])
        with pytest.raises(UnknownTemplate):
            pool.acquire("faces")
        with pytest.raises(NotAllowed, match="needs operate"):
            pool.pause("scenes")
    with RemotePool(shared.url, token="bob-secret") as pool:
        theirs = hers["request"]["id"]
        for call in (pool.request, pool.erase):
            with pytest.raises(UnknownRequest, match=theirs):
                call(theirs)
        with pytest.raises(NotAllowed, match="'bob' is 'submit': it sees its own only"):
            list(pool.requests(tenant="alice"))
        with pytest.raises(NotAllowed, match="'bob' is 'submit', and this needs operate"):
            pool.resume()
    with RemotePool(shared.url, token="watcher-secret") as pool:
        with pytest.raises(NotAllowed, match="needs submit or operate"):
            pool.submit("scenes", A)
        found = list(pool.requests(tenant="alice", text="secret"))
        assert found and {each.record.tenant for each in found} == {"alice"}
        assert hers["lease"]["id"] in [each.id for each in pool.leases() if each.tenant == "alice"]


def test_the_log_names_the_tenant(shared: Serving, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        as_(shared, "alice").get("/v1/leases")
        poll_until(lambda: [each for each in caplog.records if "/v1/leases" in each.getMessage()])
        shared.api.get("/v1/streams")
        poll_until(lambda: [each for each in caplog.records if "/v1/streams" in each.getMessage()])
    (hers,) = [each.getMessage() for each in caplog.records if "/v1/leases" in each.getMessage()]
    (ours,) = [each.getMessage() for each in caplog.records if "/v1/streams" in each.getMessage()]
    assert "tenant" in hers and "alice" in hers and "tenant" not in ours
    assert not any("-secret" in each.getMessage() for each in caplog.records)


def test_a_failed_call_names_the_tenant_in_the_log(
    shared: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    with mock.patch.object(type(shared.pool), "streams", side_effect=RuntimeError("a fault")):
        assert as_(shared, "alice").get("/v1/streams").status == 500
    (failed,) = [each for each in caplog.records if "call failed" in each.getMessage()]
    assert "alice" in failed.getMessage()


@pytest.mark.parametrize("path", ["requests", "leases"])
def test_an_id_that_no_store_can_hold_is_unknown(shared: Serving, path: str) -> None:
    for id in ("%00", "%ED%B2%80", "x" * 300):
        answers = [as_(shared, name).get(f"/v1/{path}/{id}") for name in ("alice", "boss")]
        assert answers[0].status in (404, 422), id
        assert answers[0].status == answers[1].status or len(id) > 64


# --- A change without a restart -------------------------------------------------------------------


def answer_to(served: Serving, token: str) -> Answer:
    return Api(served.url, token=token).get("/v1/token")


def test_tokens_are_followed_without_a_restart(simulator: SimulatorServer, tmp_path: Path) -> None:
    from pool.config.loader import load

    path, secret = tmp_path / "config.toml", tmp_path / "robot"
    text = f"""
        [cvat]
        url = "{simulator.url}"
        [daemon]
        port = 0
        [templates.scenes]
        labels = []
    """
    path.write_text(f'{text}[tokens.robot]\nrole = "submit"\nsecret_file = "robot"\n')
    secret.write_text("first")
    secret.chmod(0o600)
    with serving(load(path), simulator.access_token) as served:
        # Without POOL_API_TOKEN; the token of the file is the only one.
        api = Api(served.url, token="first")
        assert api.get("/v1/token").json["role"] == "submit"
        assert Api(served.url).get("/v1/token").status == 401
        follow = served.daemon._reload.run_once
        secret.write_text("a second one")
        follow()
        assert answer_to(served, "first").status == 401
        assert answer_to(served, "a second one").status == 200
        # Nothing is taken over of a file that is wrong, but secrets are as they are.
        path.write_text("[")
        follow()
        secret.write_text("third, another")
        follow()
        assert answer_to(served, "third").status == answer_to(served, "another").status == 200
        path.write_text(f'{text}[tokens.boss]\nrole = "operate"\nsecret_file = "robot"\n')
        follow()
        assert answer_to(served, "third").json == {
            "name": "boss",
            "role": "operate",
            "templates": [],
        }
        secret.write_text("")
        assert "is empty" in follow().problems[0]
        assert answer_to(served, "third").status == 200
        # Without any token, every caller would be the operator.
        secret.write_text("third")
        path.write_text(text)
        assert "no token is left" in follow().problems[0]
        assert answer_to(served, "third").status == 200
        assert Api(served.url).get("/v1/token").status == 401


def test_what_a_token_that_is_gone_has_made_is_served(
    simulator: SimulatorServer, tmp_path: Path
) -> None:
    for name in ("robot", "boss"):
        (tmp_path / name).write_text(f"{name}-secret")
        (tmp_path / name).chmod(0o600)
    settings = settings_for(
        simulator.url,
        f"sqlite:///{tmp_path}/pool.db",
        Template(name="scenes", pool=PoolSettings(min_size=1, max_wait=0.01)),
    )
    robot = TokenSettings(role="submit", secret_file=tmp_path / "robot")
    boss = TokenSettings(role="operate", secret_file=tmp_path / "boss")
    settings = replace(settings, tokens={"robot": robot, "boss": boss})
    with serving(settings, simulator.access_token) as served:
        served.fill()
        reload = served.daemon._reload
        assert reload._tokens is not None
        operator = as_(served, "boss")
        id = as_(served, "robot").submit(A).json["id"]
        with as_(served, "robot") as api, mock.patch("pool.http.events.HEARTBEAT", 0.1):
            stream = api._http.request(
                "GET", f"{served.url}/v1/events", headers=api.headers, preload_content=False
            )
            assert stream.status == 200 and stream.read1()
            # Renamed: another tenant, which does not see what the one before has made.
            assert set(reload._tokens.follow({"robo": robot, "boss": boss})) == {"robot", "robo"}
            # It ends, whatever else happens; a body without its end would raise.
            while stream.read1():
                pass
        assert as_(served, "robot").get(f"/v1/requests/{id}").status == 404
        made = operator.get(f"/v1/requests/{id}", headers={"Prefer": "wait=20"}).json
        assert (made["state"], made["tenant"]) == ("ready", "robot")
        assert [each["id"] for each in operator.get("/v1/requests?tenant=robot").json["items"]] == [
            id
        ]
        reload._tokens.follow({"boss": boss})
        assert as_(served, "robot").get("/v1/token").status == 401
        assert operator.get(f"/v1/requests/{id}").json["tenant"] == "robot"
