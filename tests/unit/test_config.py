"""``config.toml``: what is read from it, and what is said about mistakes."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configured import CARS, cars, only_problem, problems

from pool.config.data_params import DataParams
from pool.config.loader import InvalidConfig, load, loads
from pool.config.problems import Problem
from pool.config.settings import (
    DEFAULT_TABLES,
    TEMPLATE_TABLES,
    CvatSettings,
    DaemonSettings,
    EventSettings,
    ImportSettings,
    PoolSettings,
    Settings,
    SinkSettings,
    StoreSettings,
    TaskSettings,
    Template,
    keys_of,
)
from pool.errors import EXIT_USAGE, ConfigError

# --- What is read ---------------------------------------------------------------------------------


def test_an_empty_file_is_the_defaults() -> None:
    assert loads("") == Settings()


def test_every_table_is_read() -> None:
    read = loads(
        """
        [cvat]
        url = "https://cvat.example.org:8443/"
        organization = "lab"
        timeout = "1m"
        verify_tls = false
        access_token_file = "/run/secrets/cvat"
        profile = "bot"
        [store]
        url = "sqlite:////var/lib/pool.db"
        keep_finished = "7d"
        spool = "/var/spool/pool"
        spool_limit = "1GiB"
        [daemon]
        host = "0.0.0.0"
        port = 0
        tick = "500ms"
        stop_timeout = "1m"
        verify_every = "5m"
        max_queued = 7
        max_body = "1MiB"
        max_files = 8
        receive_timeout = "5s"
        [[events.sinks]]
        url = "https://example.org/hook"
        [templates."cars.v2"]
        project = 12
        task = { subset = "train", segment_size = 10, overlap = 2, consensus_replicas = 3 }
        data = { image_quality = 90, chunk_size = 2, sorting_method = "natural" }
        pool.min_size = 1
        pool.max_size = 9
        pool.hit_rate = 0.5
        pool.max_age = "7d"
        pool.on_empty = "wait"
        pool.on_change = "replenish"
        import = { timeout = "1h30m", grouping = "off", single_request_limit = "1GiB" }
        [templates.grouped]
        labels = []
        import.grouping = "auto"
        import.concurrency = 3
        import.group_requests = 50
        import.group_bytes = "1MiB"
        import.group_files = 60
        import.group_delay = "100ms"
        import.priority = "bulk"
        """
    )
    server = CvatSettings(
        url="https://cvat.example.org:8443",
        organization="lab",
        timeout=60.0,
        verify_tls=False,
        access_token_file=Path("/run/secrets/cvat"),
        profile="bot",
    )
    assert read == Settings(
        cvat=server,
        store=StoreSettings(
            url="sqlite:////var/lib/pool.db",
            keep_finished=604800.0,
            spool=Path("/var/spool/pool"),
            spool_limit=2**30,
        ),
        daemon=DaemonSettings(
            host="0.0.0.0",
            port=0,
            tick=0.5,
            stop_timeout=60.0,
            verify_every=300.0,
            max_queued=7,
            max_body=2**20,
            max_files=8,
            receive_timeout=5.0,
        ),
        events=EventSettings(sinks=(SinkSettings(url="https://example.org/hook"),)),
        templates={
            "cars.v2": Template(
                name="cars.v2",
                project=12,
                task=TaskSettings(subset="train", segment_size=10, overlap=2, consensus_replicas=3),
                data=DataParams(image_quality=90, chunk_size=2, sorting_method="natural"),
                pool=PoolSettings(
                    min_size=1,
                    max_size=9,
                    hit_rate=0.5,
                    max_age=604800.0,
                    on_empty="wait",
                    on_change="replenish",
                ),
                importing=ImportSettings(timeout=5400.0, single_request_limit=2**30),
                server=server,
            ),
            "grouped": Template(
                name="grouped",
                data=DataParams(image_quality=70, chunk_size="auto"),
                importing=ImportSettings(
                    grouping="auto",
                    concurrency=3,
                    group_requests=50,
                    group_bytes=2**20,
                    group_files=60,
                    group_delay=0.1,
                    priority="bulk",
                ),
                server=server,
            ),
        },
    )


def test_defaults_stand_flat_or_in_tables_and_a_template_overrides_them() -> None:
    read = loads(
        """
        [defaults]
        min_size = 3
        timeout = "1m"
        image_quality = 50
        [defaults.pool]
        max_size = 30
        [templates.a]
        labels = []
        [templates.b]
        labels = []
        pool = { min_size = 7 }
        data.image_quality = 80
        """
    ).templates
    assert read["a"].pool == PoolSettings(min_size=3, max_size=30)
    assert read["b"].pool == PoolSettings(min_size=7, max_size=30)
    assert read["a"].importing.timeout == read["b"].importing.timeout == 60.0
    assert (read["a"].data.image_quality, read["b"].data.image_quality) == (50, 80)


def test_a_default_given_twice_is_refused() -> None:
    problem = only_problem("[defaults]\nmin_size = 1\n[defaults.pool]\nmin_size = 2\n")
    assert problem == Problem(4, "defaults.pool.min_size", "given twice, as defaults.min_size too")


def test_the_keys_of_the_default_tables_are_distinct() -> None:
    names = [name for table in DEFAULT_TABLES for name in keys_of(TEMPLATE_TABLES[table])]
    assert len(set(names)) == len(names)
    assert not set(names) & set(DEFAULT_TABLES)


# --- What is said about mistakes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cvat]\nurl = 5", 'expected an address such as "http://localhost:8080"'),
        ('[cvat]\nurl = "localhost:8080"', "expected an address"),
        ('[cvat]\nurl = "ftp://cvat"', "expected an address"),
        ('[cvat]\nurl = "http://"', "expected an address"),
        ('[cvat]\nurl = "http://cvat:99999"', "expected an address"),
        ('[cvat]\nurl = "http://[cvat"', "expected an address"),
        ('[cvat]\nurl = "http://cvat/api/"', "expected the address without /api"),
        ('[cvat]\nurl = "http://cvat/?org=x"', "expected an address without ? and #"),
        ('[cvat]\norganization = "My lab"', "expected an organization's slug"),
        ('[cvat]\norganization = "lab\\r\\n"', "expected an organization's slug"),
        ('[cvat]\nurl = "http://cv at"', "expected an address"),
        ("[cvat]\ntimeout = 30", 'expected a duration with a unit: "30s" for seconds'),
        ("[cvat]\ntimeout = 0", "expected a duration longer than 0s, found 0"),
        ('[cvat]\nverify_tls = "no"', 'expected true or false, found "no"'),
        ('[cvat]\nprofile = ""', 'expected text that is not blank, found ""'),
        ('[store]\nurl = "pool.db"', 'expected "sqlite:///" and the path of a file'),
        ('[store]\nurl = "sqlite:///:memory:"', "memory will not do"),
        ('[store]\nurl = "postgresql://db"', 'or "postgresql://HOST/DATABASE"'),
        ('[store]\nurl = "postgresql://db/a b"', 'or "postgresql://HOST/DATABASE"'),
        ('[store]\nurl = "postgresql://db:0/pool"', 'or "postgresql://HOST/DATABASE"'),
        ('[store]\nspool = " "', 'expected text that is not blank, found " "'),
        ("[store]\nspool_limit = 0", "expected a size of more than 0B, found 0"),
        ("[daemon]\nmax_queued = 0", "expected a whole number of at least 1, found 0"),
        ('[daemon]\nmax_body = "10G"', "expected a size such as"),
        ("[daemon]\nmax_files = 0", "expected a whole number of at least 1, found 0"),
        ("[daemon]\nreceive_timeout = 30", 'expected a duration with a unit: "30s" for seconds'),
        ("[daemon]\nport = 65536", "expected a whole number from 0 to 65535, found 65536"),
        ("[daemon]\nport = true", "expected a whole number from 0 to 65535, found true"),
        ('[daemon]\nhost = "http://x/"', "expected a host name or an IP address"),
        ("[defaults]\nmin_size = -1", "expected a whole number of at least 0, found -1"),
        ("[defaults]\nmax_size = 0", "expected a whole number of at least 1, found 0"),
        ("[defaults]\nhit_rate = 1", "expected a number between 0 and 1"),
        ("[defaults]\nhit_rate = nan", "expected a number between 0 and 1"),
        ("[defaults]\ncreate_concurrency = 33", "expected a whole number from 1 to 32"),
        ('[defaults]\non_empty = "creat"', 'found "creat"; did you mean "create"?'),
        ('[defaults]\non_change = "replenis"', 'found "replenis"; did you mean "replenish"?'),
        ("[defaults]\non_change = true", 'expected "recreate" or "replenish", found true'),
        ('[defaults]\ngrouping = "on"', 'expected "auto" or "off", found "on"'),
        ("[defaults]\nconcurrency = 0", 'expected "auto" or a whole number from 1 to 32, found 0'),
        ("[defaults]\ngroup_requests = 1001", "expected a whole number from 1 to 1000"),
        ("[defaults]\ngroup_files = 0", "expected a whole number from 1 to 5000, found 0"),
        ('[defaults]\ngroup_bytes = "0B"', "expected a size of more than 0B"),
        ("[defaults]\ngroup_delay = 1", 'expected a duration with a unit: "1s"'),
        ('[defaults]\npriority = "low"', 'expected one of "interactive", "normal", "bulk"'),
        ("[defaults]\nsingle_request_limit = 0", "expected a size of more than 0B"),
        ('[defaults]\nsingle_request_limit = "64M"', "expected a size such as"),
        ("[defaults]\nimage_quality = 101", "expected a whole number from 1 to 100, found 101"),
        (
            "[defaults]\nchunk_size = 0",
            'expected "auto", "server" or a whole number from 1 to 2147483647',
        ),
        ('[defaults]\nchunk_size = "Auto"', 'expected "auto", "server" or a whole number'),
        ('[defaults]\nframe_filter = "step=0"', 'expected "step=N"'),
        ('[defaults]\nsorting_method = "naturl"', 'did you mean "natural"?'),
        ('[defaults]\njob_file_mapping = ["a.jpg"]', "a list of jobs, each a list of file names"),
        ('[defaults]\nserver_files_exclude = ["/a"]', "a path /a: is not relative"),
        (
            '[defaults]\nvalidation_params = { mode = "x" }',
            'params.mode: expected "gt" or "gt_pool"',
        ),
        ('[defaults]\nvalidation_params = { mod = "gt" }', "unknown key; did you mean mode?"),
        ("[defaults]\npool = 3", "expected a table, [defaults.pool], found 3"),
        ("[defaults]\nmin_size = 1979-05-27", "found 1979-05-27"),
        ("cvat = 3", "expected a table, [cvat], found 3"),
        ("templates = []", "expected a table, [templates], found an array"),
    ],
)
def test_a_value_that_will_not_do_says_what_was_expected(text: str, message: str) -> None:
    problem = only_problem(text)
    assert message in str(problem)
    assert problem.line == text.count("\n") + 1


@pytest.mark.parametrize(
    ("key", "task", "data"),
    [
        ("segment_size", "segment_size = 5", ""),
        ("consensus_replicas", "consensus_replicas = 2", ""),
        ("frame_filter", "", 'frame_filter = "step=2"'),
        ("stop_frame", "", "stop_frame = 9"),
        ("sorting_method", "", 'sorting_method = "natural"'),
        ("job_file_mapping", "", 'job_file_mapping = [["a.jpg"]]'),
        (
            "validation_params",
            "",
            'validation_params = { mode = "gt", frame_count = 1, '
            'frame_selection_method = "random_uniform" }',
        ),
    ],
)
def test_what_does_not_go_with_groups_is_refused(key: str, task: str, data: str) -> None:
    template = f"[templates.scenes]\nlabels = []\ntask = {{ {task} }}\ndata = {{ {data} }}\n"
    loads(template)
    problem = only_problem(template + 'import = { grouping = "auto" }')
    assert f"does not go with {key} in CVAT" in str(problem)
    assert problem.line == (3 if task else 4), "where that key stands"


def test_what_goes_with_a_mapping_goes_with_groups() -> None:
    data = "image_quality = 50, start_frame = 0"
    loads(
        "[templates.scenes]\nlabels = []\ntask = { subset = 'a' }\n"
        f'data = {{ {data} }}\nimport = {{ grouping = "auto" }}'
    )


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("task = { consensus_replicas = 1 }", "task.consensus_replicas", "at least 2"),
        ("task = { segment_size = 5, overlap = 5 }", "task.overlap", "must be less than"),
        ("data = { start_frame = 9, stop_frame = 1 }", "data.start_frame", "is after stop_frame"),
        (
            'data = { sorting_method = "natural", job_file_mapping = [["a.jpg"]] }',
            "data.job_file_mapping",
            "job_file_mapping and sorting_method exclude each other",
        ),
        (
            'data.job_file_mapping = [["a.jpg"]]\ntask.segment_size = 2',
            "data.job_file_mapping",
            "the template has segment_size = 2",
        ),
        (
            'data.validation_params = { mode = "gt_pool", frame_selection_method = "manual", '
            'frames = ["a.jpg"], frames_per_job_count = 1 }',
            "data.validation_params",
            'go with sorting_method "random" only',
        ),
        ("data.frame_step = 2\ndata.frame_filter = 'step=2'", "data.frame_step", "give one of"),
        ("pool = { min_size = 300 }", "pool.min_size", "min_size, 300, is above max_size, 200"),
        ("pool = { max_size = 2 }", "pool.max_size", "min_size, 5, is above max_size, 2"),
        ("task = { assignee = 0 }", "task.assignee", "at least 1"),
        ("assignees = [' ann']", "assignees[0]", 'expected a user\'s name, or id, found " ann"'),
        ("assignees = [true]", "assignees[0]", "expected a user's name, or id"),
        ("assignees = ['ann', 7, '7']", "assignees", "a user is named twice"),
        (f"assignees = {[*range(1, 52)]}", "assignees", "expected an array of at most 50"),
        ("assignes = ['ann']", "assignes", "did you mean assignees?"),
        ("assign = 'round-robin'", "assign", "among assignees = [...], and none are"),
        ("assign = 'round robin'", "assign", 'did you mean "round-robin"?'),
        ("assignees = [7]\ntask.assignee = 7", "assignees", "and task.assignee, who gets the task"),
    ],
)
def test_values_of_a_template_are_checked_also_together(text: str, key: str, message: str) -> None:
    problem = only_problem(CARS + text)
    assert (problem.line, problem.key) == (3, f"templates.cars.{key}")
    assert message in problem.message


@pytest.mark.parametrize("text", ["task.overlap = 5", "task = { overlap = 5, segment_size = 0 }"])
def test_an_overlap_without_a_segment_size_has_no_bound(text: str) -> None:
    assert cars(text).task.overlap == 5


def test_a_contradiction_with_a_default_is_reported_at_the_template() -> None:
    text = f"[defaults]\nmax_size = 3\nmin_size = 1\n{CARS}pool.min_size = 4\n"
    assert only_problem(text).line == 6


def test_a_contradiction_among_defaults_is_reported_once() -> None:
    text = f"[defaults]\nmax_size = 3\n{CARS}[templates.others]\nlabels = []\n"
    assert only_problem(text).line == 2


def test_a_value_that_will_not_do_is_not_compared() -> None:
    assert len(problems(CARS + "pool = { min_size = 300, max_size = 9.5 }")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cvatt]", "unknown key; did you mean cvat?"),
        ("[x]", "unknown key; known: cvat, store, daemon, events, tokens, defaults, templates"),
        ("[cvat]\nurll = 1", "unknown key; did you mean url?"),
        ("[defaults]\nmin_sise = 1", "unknown key; did you mean min_size?"),
        ("[defaults]\nsubset = ''", "it belongs in a template's table task = { … }"),
        (f"{CARS}min_size = 1", "it belongs in a template's table pool = { … }"),
        (f"{CARS}labls = 1", "unknown key; did you mean labels?"),
        (f"{CARS}data.frame_stp = 5", "unknown key; did you mean frame_step?"),
        (f"{CARS}data.server_files = []", "is given by share or cloud"),
        (f"{CARS}pool = {{ segment_size = 1 }}", "template's table task = { … }"),
    ],
)
def test_an_unknown_key_names_the_nearest_or_its_place(text: str, message: str) -> None:
    problem = only_problem(text)
    assert message in problem.message
    assert problem.line == text.count("\n") + 1


@pytest.mark.parametrize("name", ["a" * 65, "two words", "ä", ""])
def test_a_template_has_a_plain_name(name: str) -> None:
    problem = only_problem(f'[templates."{name}"]\nlabels = []')
    assert "expected a name of 1 to 64 letters" in problem.message


def test_a_template_says_in_one_way_what_its_labels_are() -> None:
    missing = only_problem("[templates.cars]\npool.min_size = 1")
    assert (missing.line, missing.key) == (1, "templates.cars")
    assert "labels are missing: give labels = " in missing.message
    both = only_problem(f'{CARS}project = 3\nlabels_file = "x.json"')
    assert both.message == "give only one of labels, labels_file, project"
    assert cars().labels == ({"name": "car", "type": "any", "attributes": []},)
    assert loads("[templates.x]\nlabels = []").templates["x"].labels == ()
    assert loads("[templates.x]\nproject = 3").templates["x"].project == 3
    assert "at least 1" in only_problem("[templates.x]\nproject = 0").message


def test_all_problems_are_known_and_the_first_stands_in_the_line(tmp_path: Path) -> None:
    text = (
        '[daemon]\nport = "x"\n\n[cvat]\ntimeout = 5\n[templates.a]\nlabels = [\n'
        '  { nam = "x" },\n]\n'
    )
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        load(path)
    error = caught.value
    assert [problem.line for problem in error.problems] == [2, 5, 8, 8]
    assert str(error) == (
        f"The configuration is wrong: {path}:2: daemon.port: expected a whole number from 0 to "
        "65535, found \"x\" (and 3 more: 'cvat-pool check' shows all)"
    )
    assert error.lines()[3] == f"{path}:8: templates.a.labels[0]: the name is missing"
    assert error.lines()[2].endswith("labels[0].nam: unknown key; did you mean name?")
    assert isinstance(error, ConfigError)
    assert error.exit_code == EXIT_USAGE


def test_problems_of_one_line_stand_in_its_order() -> None:
    text = "daemon = { b = 1, port = -1, a = 1, c = 1, d = 1, e = 1, f = 1 }"
    keys = [problem.key.removeprefix("daemon.") for problem in problems(text)]
    assert [key for key in keys if key != "port"] == list("bacdef")


def test_every_problem_stays_on_one_line() -> None:
    text = (
        '"a\\nb" = 1\n[templates."c\\nd"]\nlabels = [{ name = "e", "e\\nf" = 1 }]\ntask."g\\nh" = 1'
    )
    with pytest.raises(InvalidConfig) as caught:
        loads(text)
    assert len(caught.value.lines()) == 4
    assert not any("\n" in line for line in caught.value.lines())


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("[cvat]\nurl = \n", 2, "not valid TOML, column 7: invalid value"),
        ("[cvat]\nurl 5\n", 2, "not valid TOML, column 5: expected '=' after a key"),
        ("a = 1\na = 2\n", 2, "a key or a table that has a value already is given again"),
        ("[cvat]\n\n[cvat]\n", 3, "twice"),
        ('x = """\n\n', 2, "not valid TOML: unterminated string"),
        ("a = " + "[" * 20_000, 0, "nested too deeply"),
        ("a = " + "9" * 5_000, 1, "not valid TOML"),
    ],
)
def test_what_is_not_toml_is_reported_with_its_place(text: str, line: int, message: str) -> None:
    problem = only_problem(text)
    assert problem.line == line
    assert message in problem.message


# --- Whatever the values are ----------------------------------------------------------------------

VALUES = st.recursive(
    st.booleans()
    | st.integers(-2, 400)
    | st.floats()
    | st.sampled_from(["", "auto", "off", "5s", "0s", "1GiB", "a.jpg", "wait", "http://x", "${A}"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["mode", "x"]), inner)
    ),
    max_leaves=3,
)


def table(*kinds: type) -> st.SearchStrategy[dict[str, Any]]:
    keys = [name for kind in kinds for name in keys_of(kind)]
    return st.dictionaries(st.sampled_from([*keys, "unknown"]), VALUES, max_size=4)


def toml(value: Any) -> str:
    match value:
        case dict():
            return f"{{ {', '.join(f'{key} = {toml(each)}' for key, each in value.items())} }}"
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case float() if not math.isfinite(value):
            return str(value)
    return json.dumps(value)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "cvat": table(CvatSettings),
            "store": table(StoreSettings),
            "daemon": table(DaemonSettings),
            "events": st.fixed_dictionaries({"sinks": st.lists(table(SinkSettings), max_size=2)}),
            "defaults": table(PoolSettings, ImportSettings, DataParams),
        },
    ),
    st.fixed_dictionaries(
        {"labels": st.just([])},
        optional={name: table(kind) for name, kind in TEMPLATE_TABLES.items()},
    ),
)
def test_whatever_the_values_are_all_that_is_wrong_is_said_or_all_of_it_is_usable(
    tables: dict[str, Any], template: dict[str, Any]
) -> None:
    tables["templates"] = {"cars": template}
    lines = [f"{name} = {toml(content)}\n" for name, content in tables.items()]
    try:
        read = loads("".join(lines))
    except InvalidConfig as error:
        for problem in error.problems:
            assert problem.message and "\n" not in str(problem)
            # It names a key of the table on its line.
            name = lines[problem.line - 1].partition(" ")[0]
            assert problem.key.startswith(name)
    else:
        # What the file may say can be made in Python too.
        for part in (read.cvat, read.store, read.daemon, read.templates["cars"].pool):
            assert dataclasses.replace(part) == part
