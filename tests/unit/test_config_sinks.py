"""``[[events.sinks]]``, ``[tokens]`` and the spool: what is read, and that no secret is taken or
shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.configured import CARS, only_problem

from pool.config.loader import load
from pool.config.settings import SinkSettings, StoreSettings
from pool.errors import ConfigError

SINK = '[[events.sinks]]\nurl = "https://example.org/hook"\n'


def test_sinks_are_read_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        f'{SINK}secret = "${{POOL_SINK_SECRET}}"\ntemplates = ["cars"]\nkinds = ["task.warm"]\n'
        '[[events.sinks]]\nurl = "http://localhost:9000/?key=1"\nsecret_file = "${SECRETS}/sink"\n'
        f"[[events.sinks]]\nurl = 'http://[::1]'\n{CARS}"
    )
    assert load(path, environ={"SECRETS": "secrets"}).events.sinks == (
        SinkSettings(
            url="https://example.org/hook",
            secret_env="POOL_SINK_SECRET",
            templates=("cars",),
            kinds=("task.warm",),
        ),
        SinkSettings(url="http://localhost:9000/?key=1", secret_file=tmp_path / "secrets" / "sink"),
        SinkSettings(url="http://[::1]"),
    )


TOKEN = "[tokens.robot]\nrole = 'submit'\nsecret = '${A}'\n"


@pytest.mark.parametrize(
    "value", ['"hunter2"', '"${A}hunter2"', '"${hunter2"', '""', "5", '"$hunter2"', "['hunter2']"]
)
def test_a_secret_that_stands_in_the_file_is_refused_and_never_shown(value: str) -> None:
    problem = only_problem(f"{SINK}secret = {value}")
    assert "hunter2" not in str(problem)
    assert (problem.line, problem.key) == (3, "events.sinks[0].secret")
    assert 'secret = "${POOL_SINK_SECRET}"' in problem.message
    assert "secret_file" in problem.message
    problem = only_problem(f"[tokens.robot]\nrole = 'read'\nsecret = {value}")
    assert "hunter2" not in str(problem)
    assert (problem.line, problem.key) == (3, "tokens.robot.secret")


def test_another_credential_is_sent_where_it_belongs() -> None:
    problem = only_problem(f"{SINK}token = 'hunter2'")
    assert "${NAME}" in problem.message and "hunter2" not in str(problem)


@pytest.mark.parametrize(
    "url",
    ["hook.test", "ftp://example.org", "http://", "https://bob:hunter2@example.org", "http://[x"],
)
def test_an_address_that_will_not_do_is_not_shown(url: str) -> None:
    problem = only_problem(f'[[events.sinks]]\nurl = "{url}"')
    assert (problem.line, problem.key) == (2, "events.sinks[0].url")
    assert "expected an address" in problem.message
    assert url not in str(problem)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[events]\nsink = []", 2, "unknown key; did you mean sinks?"),
        ("[events]\nsinks = 5", 2, "expected an array of tables, [[…]], found 5"),
        ("[events]\nsinks = [5]", 2, "expected a table"),
        ("[[events.sinks]]", 1, "the url is missing"),
        (f"{SINK}urll = 'x'", 3, "unknown key; did you mean url?"),
        (f"{SINK}kinds = []", 3, "expected at least one kind of event"),
        (f"{SINK}kinds = 'task.warm'", 3, 'expected an array, found "task.warm"'),
        (f"{SINK}kinds = ['request.redy']", 3, 'did you mean "request.ready"?'),
        (f"{SINK}templates = [5]", 3, "expected text in quotes, found 5"),
        (
            f"{SINK}templates = [\n'cars',\n'card']\n{CARS}",
            5,
            "no template 'card'; did you mean ca",
        ),
        (f"{SINK}templates = ['x']\n{CARS}", 3, "there is no template 'x'"),
        (
            f"{TOKEN}templates = [\n'cars',\n'card']\n{CARS}",
            6,
            "no template 'card'; did you mean ca",
        ),
        (f"{TOKEN}templates = ['x']\n{CARS}", 4, "there is no template 'x'"),
        (f"{TOKEN}rolle = 'read'\n{CARS}", 4, "unknown key; did you mean role?"),
        (TOKEN.replace("submit", "submits") + CARS, 2, 'did you mean "submit"?'),
        (f"[tokens.robot]\nsecret = '${{A}}'\n{CARS}", 1, "the role is missing: submit, operate"),
        (f"[tokens.robot]\nrole = 'read'\n{CARS}", 1, "the secret is missing: name a variable"),
        (
            f"{TOKEN}[tokens.other]\nrole = 'read'\nsecret = '${{A}}'\n{CARS}",
            4,
            "its secret is that of tokens.robot: each needs its own",
        ),
        (
            f'{SINK}secret = "${{A}}"\nsecret_file = "a"',
            4,
            "give only one of secret_file and secret",
        ),
        (f'{SINK}secret_file = "${{NOT_SET_ANYWHERE}}"', 3, "the environment has no NOT_SET"),
    ],
)
def test_a_mistake_is_reported_with_its_line(text: str, line: int, message: str) -> None:
    problem = only_problem(text)
    assert message in problem.message
    assert problem.line == line


def test_the_spool_is_beside_the_store_unless_it_is_said_where(tmp_path: Path) -> None:
    assert StoreSettings(url="sqlite:////data/a.db").spool_folder == Path("/data/a.db.spool")
    path = tmp_path / "config.toml"
    path.write_text("")
    assert load(path).store.spool_folder == tmp_path / "pool.db.spool"
    path.write_text('[store]\nspool = "${WHERE}/waiting"\n')
    assert load(path, environ={"WHERE": "big"}).store.spool_folder == tmp_path / "big" / "waiting"


def test_a_relative_file_makes_an_absolute_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text('[store]\nspool = "waiting"\n')
    monkeypatch.chdir(tmp_path)
    assert load("config.toml").store.spool_folder == tmp_path / "waiting"


def test_a_store_that_is_no_file_has_its_spool_where_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[store]\nurl = "postgresql://me:s3cret@db/pool"\nspool = "waiting"\n')
    store = load(path).store
    assert store.url == "postgresql://me:s3cret@db/pool"
    assert (store.place, store.path) == ("postgresql://db/pool", None)
    assert store.spool_folder == tmp_path / "waiting"
    assert "s3cret" not in repr(load(path))


def test_a_store_that_is_no_file_has_its_spool_in_the_folder_for_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreSettings(url="postgresql://db/pool")
    assert store.waits_with_machine
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert store.spool_folder == tmp_path / "cvat-task-pool" / "spool"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    below = Path(".local/state/cvat-task-pool/spool")
    assert store.spool_folder == tmp_path / "home" / below

    def refuse() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", refuse)
    with pytest.raises(ConfigError, match=r"store\.spool has to name a folder"):
        _ = store.spool_folder


@pytest.mark.parametrize("address", ["s3://bucket/spool", "gs://bucket", "az://box/a/b"])
def test_a_spool_in_a_bucket_has_its_cache_where_the_spool_would_be(
    tmp_path: Path, address: str
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[store]\nspool = "{address}/"\n')
    store = load(path).store
    assert (store.spool_address, store.waits_with_machine) == (address, False)
    assert store.spool_folder == tmp_path / "pool.db.spool"


@pytest.mark.parametrize(
    "address", ["s3://", "ftp://host/a", "s3://key:secret@bucket", "s3://b/../c", "s3://b?x=s3cret"]
)
def test_an_address_that_is_no_bucket_is_refused_unseen(address: str) -> None:
    problem = only_problem(f'[store]\nspool = "{address}"')
    assert "expected a folder, or a bucket" in problem.message
    assert "secret" not in problem.message and "s3cret" not in problem.message
