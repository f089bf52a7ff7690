"""The lines of keys: every key that tomllib reads is found, where it stands."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pool.config.loader import loads
from pool.config.toml import Key, key_lines, show_key
from pool.errors import ConfigError

AWKWARD = r'''# a comment = "with" [brackets]
title = "a # in a string" # and a comment
"quoted key" = 1
'literal.key' = 2
"esc\u0041ped\"key" = 3
a.b . "c d" = 4
date = 1979-05-27 07:32:00  # a space inside
multi = """
[not.a.table]
not = "a key"
"" two quotes \""" and a backslash \
  end of it"""""
literal = \'\'\'
\' \'\' ] } = \\
\'\'\'
empty = [] # []
numbers = [ 1, # one ]
  2,
  [ 3.5, +inf, 0x_bad ],
]
inline = { x = 1, "y z" = { deep.er = [ { k = "}" }, { k = \',]\' } ] }, w = {} }
after = true

[ spaced . "header" ]
key = "v"
[spaced]
late = 1
[[array.of]]
one = 1
[array.of.sub]
two = 2
[[array.of]]
one = 1
  [[array.of.inner]]
  [[array.of.inner]]
  three = 3
'''.replace("\\'", "'").replace("0x_bad", "0xbad")


def keys_of(value: object, at: Key = ()) -> set[Key]:
    members: Any = ()
    if isinstance(value, dict):
        members = value.items()
    elif isinstance(value, list):
        members = enumerate(value)
    found = {at} if at else set()
    return found.union(*(keys_of(member, (*at, key)) for key, member in members))


def test_every_key_is_found_on_its_line() -> None:
    lines = key_lines(AWKWARD)
    assert set(lines) == keys_of(tomllib.loads(AWKWARD))
    text = AWKWARD.splitlines()

    def line(key: Key) -> str:
        return text[lines[key] - 1].strip()

    assert line(('escA"ped'.replace('"', "") + '"key',)).startswith('"esc')
    assert line(("a", "b", "c d")) == 'a.b . "c d" = 4'
    assert line(("date",)).startswith("date")
    assert line(("literal",)) == "literal = '''"
    assert line(("numbers", 1)) == "2,"
    assert line(("numbers", 2, 0)).startswith("[ 3.5")
    assert line(("inline", "y z", "deep", "er", 1, "k")).startswith("inline")
    assert line(("after",)) == "after = true"
    assert line(("spaced",)) == '[ spaced . "header" ]'
    assert line(("spaced", "late")) == "late = 1"
    assert lines["array", "of", 0, "one"] < lines["array", "of", 0, "sub", "two"]
    assert lines["array", "of", 1, "inner", 1] + 1 == lines["array", "of", 1, "inner", 1, "three"]


VALUES = st.recursive(
    st.sampled_from(["1", "-2.5", "true", '"#"', "'\"]'", '"\\""', "1979-05-27 07:32:00"])
    | st.sampled_from(['"""\n] # }\n"""', "'''\n\"\"\"\n'''"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[ {' , '.join(items)} ]")
        | st.lists(inner, max_size=3).map(lambda items: "[ # ]\n" + ",\n".join(items) + "\n]")
        | st.lists(inner, max_size=3).map(
            lambda items: f"{{ {', '.join(f'k{i} = {item}' for i, item in enumerate(items))} }}"
        )
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(["\n", "# x = [\n", "  "]), VALUES), max_size=6))
def test_lines_are_right_whatever_the_values_are(pairs: list[tuple[str, str]]) -> None:
    text, starts = "", {}
    for number, (before, value) in enumerate(pairs):
        text += before
        starts[f"key{number}",] = text.count("\n") + 1
        text += f"key{number} = {value}\n"
    lines = key_lines(text)
    assert set(lines) == keys_of(tomllib.loads(text))
    assert {key: line for key, line in lines.items() if len(key) == 1} == starts


@given(st.text(max_size=200))
def test_whatever_the_text_is_the_answer_is_settings_or_a_config_error(text: str) -> None:
    try:
        loads(text)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017  both outcomes are right


def test_keys_are_shown_as_they_are_written() -> None:
    assert show_key(("templates", "a.b", "labels", 0, "name")) == 'templates."a.b".labels[0].name'
