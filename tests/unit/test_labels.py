"""Labels and what they come to: the form that is sent, what is refused, and the fingerprint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.configured import cars, only_problem, problems

from pool.config.loader import InvalidConfig, loads


def labels(raw: object, tmp_path: Path) -> list[dict[str, Any]]:
    (tmp_path / "labels.json").write_text(json.dumps(raw))
    read = loads('[templates.a]\nlabels_file = "labels.json"', path=tmp_path / "config.toml")
    return [dict(label) for label in read.templates["a"].labels]


def test_labels_are_brought_into_one_form(tmp_path: Path) -> None:
    exported = {
        "id": 7,
        "task_id": 3,
        "parent_id": None,
        "has_parent": False,
        "sublabels": [],
        "color": "#FF8800",
        "name": " car ",
        "type": "rectangle",
        "attributes": [
            {
                "id": 9,
                "name": "make",
                "input_type": "select",
                "mutable": False,
                "values": ["unknown", "fiat"],
            }
        ],
    }
    assert labels([exported, {"name": "person", "color": ""}], tmp_path) == [
        {
            "name": "car",
            "color": "#ff8800",
            "type": "rectangle",
            "attributes": [
                {
                    "name": "make",
                    "input_type": "select",
                    "mutable": False,
                    "default_value": "unknown",
                    "values": ["unknown", "fiat"],
                }
            ],
        },
        {"name": "person", "type": "any", "attributes": []},
    ]


@pytest.mark.parametrize(
    ("attribute", "default", "values"),
    [
        ('input_type = "checkbox"', "false", ["false"]),
        ('input_type = "checkbox", default_value = true', "true", ["true"]),
        ('input_type = "number", values = [0, 10, 1]', "0", ["0", "10", "1"]),
        ('input_type = "number", values = [0, 1, 0.1], default_value = 0.5', "0.5", None),
        ('input_type = "radio", values = ["a", "b"], default_value = "b"', "b", ["a", "b"]),
        ('input_type = "text", values = ["?"]', "?", ["?"]),
        ('input_type = "text"', "", []),
    ],
)
def test_attributes_may_be_written_in_toml(
    attribute: str, default: str, values: list[str] | None
) -> None:
    text = f'labels = [{{ name = "car", attributes = [{{ name = "x", {attribute} }}] }}]'
    ((label,),) = (loads(f"[templates.a]\n{text}").templates["a"].labels,)
    (read,) = label["attributes"]
    assert read["default_value"] == default
    assert values is None or read["values"] == values


@pytest.mark.parametrize(
    ("label", "key", "message"),
    [
        ('"car"', "", "expected a label"),
        ('{ name = "" }', ".name", "not blank"),
        (f'{{ name = "{"x" * 65}" }}', ".name", "at most 64 characters"),
        ('{ name = "a\\u0000b" }', ".name", "without NUL"),
        ('{ name = "a", color = "rgb(1,2,3)" }', ".color", "at most 8 characters"),
        ('{ name = "a", type = "box" }', ".type", 'expected one of "any", "cuboid"'),
        ('{ name = "a", type = "rectangel" }', ".type", 'did you mean "rectangle"?'),
        ('{ name = "a", colour = "#ffffff" }', ".colour", "did you mean color?"),
        ('{ name = "a", svg = 5 }', ".svg", "expected text in quotes, found 5"),
        ('{ name = "a", attributes = 5 }', ".attributes", "expected an array of attributes"),
    ],
)
def test_a_label_that_will_not_do_is_reported(label: str, key: str, message: str) -> None:
    problem = only_problem(f"[templates.a]\nlabels = [\n  {label},\n]")
    assert (problem.line, problem.key) == (3, f"templates.a.labels[0]{key}")
    assert message in problem.message


@pytest.mark.parametrize(
    ("attribute", "key", "message"),
    [
        ('input_type = "list"', "input_type", 'expected one of "checkbox"'),
        ("values = []", "", "input_type is missing; it is one of checkbox, radio"),
        ('input_type = "select"', "", "values are missing; a select has them"),
        ('input_type = "select", values = ["a", []]', "values", "expected text in quotes"),
        ('input_type = "select", values = "a"', "values", "expected an array"),
        ('input_type = "text", default_value = []', "default_value", "expected text"),
        ('input_type = "text", mutable = "yes"', "mutable", "expected true or false"),
        ('input_type = "text", mutabel = true', "mutabel", "did you mean mutable?"),
    ],
)
def test_an_attribute_that_will_not_do_is_reported(attribute: str, key: str, message: str) -> None:
    text = f'labels = [{{ name = "a", attributes = [{{ name = "x", {attribute} }}] }}]'
    found = problems(f"[templates.a]\n{text}")
    assert any(
        problem.key == f"templates.a.labels[0].attributes[0].{key}".rstrip(".")
        and message in problem.message
        for problem in found
    ), found


@pytest.mark.parametrize(
    ("label", "key", "message"),
    [
        ('color = "red"', ".color", 'expected a colour such as "#ff8800", found "red"'),
        ('svg = "<g/>"', ".svg", 'only a label of type "skeleton"'),
        ('sublabels = [{ name = "b" }]', ".sublabels", 'only a label of type "skeleton"'),
        ('type = "skeleton"', "", "needs sublabels"),
        ('type = "skeleton", sublabels = [{ name = "b" }]', "", "needs svg"),
    ],
)
def test_what_cvat_takes_of_a_label_although_it_is_of_no_use_is_a_warning(
    label: str, key: str, message: str
) -> None:
    (warning,) = loads(f'[templates.a]\nlabels = [\n{{ name = "a", {label} }},\n]').warnings
    assert warning.startswith(f"line 3: templates.a.labels[0]{key}: ")
    assert message in warning


@pytest.mark.parametrize(
    ("attribute", "key", "message"),
    [
        ('input_type = "select", values = []', "values", "needs values to choose from"),
        ('input_type = "select", values = ["", "a"]', "values", "blank"),
        ('input_type = "select", values = ["a", "a "]', "values", "twice"),
        ('input_type = "select", values = ["a", "b\\nc"]', "values", "becomes two"),
        ('input_type = "radio", values = ["a"], default_value = "b"', "default_value", "(a)"),
        ('input_type = "number", values = [0, 10]', "values", "three values"),
        ('input_type = "number", values = [9, 1, 1]', "values", "three values"),
        ('input_type = "number", values = [0, 1, 0]', "values", "the step"),
        (
            'input_type = "number", values = [0, 9, 1], default_value = 10',
            "default_value",
            "0 to 9",
        ),
        ('input_type = "checkbox", values = ["maybe"]', "values", '"true" or "false"'),
        (
            'input_type = "checkbox", values = [""], default_value = "x"',
            "default_value",
            '"true" or "false"',
        ),
    ],
)
def test_what_cvat_takes_of_an_attribute_although_it_is_of_no_use_is_a_warning(
    attribute: str, key: str, message: str
) -> None:
    text = f'labels = [{{ name = "a", attributes = [{{ name = "x", {attribute} }}] }}]'
    (warning,) = loads(f"[templates.a]\n{text}").warnings
    assert warning.startswith(f"line 2: templates.a.labels[0].attributes[0].{key}: ")
    assert message in warning


def test_names_of_labels_are_unique() -> None:
    text = '[templates.a]\nlabels = [\n  { name = "car" },\n  { name = " car" },\n]'
    problem = only_problem(text)
    assert (problem.line, problem.key) == (4, "templates.a.labels[1].name")
    assert problem.message == 'another label is named "car" as well'


def skeleton(svg: str) -> dict[str, Any]:
    points = [{"id": 11, "name": "head", "type": "points"}, {"id": 12, "name": "tail"}]
    return {"id": 10, "name": "cat", "type": "skeleton", "svg": svg, "sublabels": points}


def test_a_skeleton_that_was_exported_is_tied_to_its_points_by_name(tmp_path: Path) -> None:
    svg = '<circle data-label-id="11"/><circle data-label-name="tail"/>'
    (read,) = labels([skeleton(svg)], tmp_path)
    assert read["svg"] == '<circle data-label-name="head"/><circle data-label-name="tail"/>'
    assert read["sublabels"] == [
        {"name": "head", "type": "points", "attributes": []},
        {"name": "tail", "type": "any", "attributes": []},
    ]


def test_a_skeleton_with_a_point_of_another_one_is_refused_by_id_and_taken_by_name(
    tmp_path: Path,
) -> None:
    with pytest.raises(InvalidConfig, match=r"\[0\].svg: a point belongs to sublabel id 99"):
        labels([skeleton('<g data-label-id="99"/>')], tmp_path)
    (read,) = labels([skeleton('<g data-label-name="paw"/>')], tmp_path)
    assert read["svg"] == '<g data-label-name="paw"/>'


def test_a_skeleton_has_no_skeletons(tmp_path: Path) -> None:
    raw = skeleton("<g/>")
    raw["sublabels"][0] = skeleton("<g/>")
    with pytest.raises(InvalidConfig) as caught:
        labels([raw], tmp_path)
    assert len(caught.value.problems) == 3  # its type, its sublabels and its svg


# --- CVAT's verdicts ------------------------------------------------------------------------------

RECORDING = Path(__file__).parents[1] / "contract" / "recordings" / "labels.json"
LABELS = json.loads(RECORDING.read_text())
#: What CVAT refuses and is taken here, since what is sent is completed.
COMPLETED = {"skeleton pasted back", "missing mutable", "default true"}


def creates() -> Iterator[Any]:
    """Each set of labels that CVAT was given, and whether it took them."""
    for each in LABELS:
        body = each["request"].get("body", {}).get("json")
        if each["request"]["method"] != "POST":
            continue
        match body:
            case dict():
                given = body["labels"]
            case "attribute() with the values a and 238 of 20 characters each":
                values = ["a", *(f"{number:020}" for number in range(238))]
                attribute = {"name": "x", "mutable": False, "input_type": "select"}
                given = [{"name": "car", "attributes": [{**attribute, "values": values}]}]
            case _:
                given = [{"name": f"label {n}"} for n in range(int(body.partition(" ")[0]))]
        yield pytest.param(each["name"], given, each["response"]["status"] == 201, id=each["name"])


@pytest.mark.parametrize(("name", "given", "taken"), [*creates()])
def test_labels_are_taken_that_cvat_takes_and_no_others(
    name: str, given: Any, taken: bool, tmp_path: Path
) -> None:
    if taken or name in COMPLETED:
        labels(given, tmp_path)
    else:
        with pytest.raises(InvalidConfig):
            labels(given, tmp_path)


def exports() -> Iterator[Any]:
    for each in LABELS:
        if "results" in (answer := each["response"].get("json") or {}):
            yield pytest.param(answer["results"], id=each["name"])


@pytest.mark.parametrize("exported", [*exports()])
def test_labels_that_cvat_exports_can_be_pasted_whatever_their_ids(
    exported: list[Any], tmp_path: Path
) -> None:
    pasted = labels(exported, tmp_path)
    sent = json.dumps(pasted)
    assert '"id"' not in sent and "data-label-id" not in sent
    moved = json.dumps(exported)
    for number in {one["id"] for label in exported for one in (label, *label["sublabels"])}:
        moved = moved.replace(f'"id": {number}', f'"id": {number + 5000}')
        moved = moved.replace(f'label-id=\\"{number}\\"', f'label-id=\\"{number + 5000}\\"')
    assert moved != json.dumps(exported)
    assert labels(json.loads(moved), tmp_path) == pasted


# --- Fingerprints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[templates.a]\nproject = 3",
        '[templates.a]\nlabels = [{ name = "bus" }]',
        '[templates.a]\nlabels = [{ name = "car" }, { name = "bus" }]',
        '[templates.a]\nlabels = [{ name = "car", color = "#ffffff" }]',
        '[templates.a]\nlabels = [{ name = "car" }]\ntask = { subset = "train" }',
        '[templates.a]\nlabels = [{ name = "car" }]\ntask = { segment_size = 5 }',
        '[templates.a]\nlabels = [{ name = "car" }]\n[cvat]\nurl = "http://other"',
        '[templates.a]\nlabels = [{ name = "car" }]\n[cvat]\norganization = "lab"',
    ],
)
def test_a_fingerprint_changes_with_what_the_server_is_reported(text: str) -> None:
    assert loads(text).templates["a"].fingerprint != cars().fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "data = { image_quality = 5, chunk_size = 2 }",
        'pool = { min_size = 1, max_age = "1h" }',
        'import = { timeout = "1m" }',
        "[cvat]\nurl = 'http://localhost:8080/'",
        "[cvat]\ntimeout = '1m'\nprofile = 'bot'\nverify_tls = false",
        "[defaults]\nmin_size = 1",
        "task = { subset = '', segment_size = 0 }",
    ],
)
def test_a_fingerprint_does_not_change_with_the_rest(text: str) -> None:
    assert cars(text).fingerprint == cars().fingerprint


def test_a_fingerprint_does_not_depend_on_the_order_of_keys_or_on_how_defaults_are_said() -> None:
    one, other = (
        loads(f"[templates.a]\nlabels = [{label}]").templates["a"].fingerprint
        for label in (
            '{ name = "car", color = "#FF0000", type = "any", attributes = [] }',
            '{ color = "#ff0000", name = "car" }',
        )
    )
    assert one == other


def test_a_fingerprint_depends_on_the_order_of_labels() -> None:
    one, other = (
        loads(f"[templates.a]\nlabels = [{label}]").templates["a"].fingerprint
        for label in ('{ name = "a" }, { name = "b" }', '{ name = "b" }, { name = "a" }')
    )
    assert one != other
