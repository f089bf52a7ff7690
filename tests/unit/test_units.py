"""Durations and sizes: what is read, what is refused, and that texts read back exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.config.units import LONGEST, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("9ms", 0.009),
        ("2s", 2.0),
        ("0.1s", 0.1),
        ("1.5h", 5400.0),
        ("10m", 600.0),
        ("10m5ms", 600.005),
        ("24h", 86400.0),
        ("7d", 604800.0),
        ("1h30m", 5400.0),
        (" 1h 30m ", 5400.0),
        ("1 h", 3600.0),
        ("1d2h3m4s5ms", 93784.005),
        ("0", 0.0),
        ("0s", 0.0),
        (0, 0.0),
        (0.0, 0.0),
    ],
)
def test_durations_are_read_in_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("value", [30, 1.5, -1, "30", "1.5", " 30 ", float("nan"), float("inf")])
def test_a_number_without_a_unit_is_refused_with_advice(value: object) -> None:
    with pytest.raises(ValueError, match="with a unit"):
        parse_duration(value)


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "s",
        "ten seconds",
        "-5s",
        "1h1h",
        "30m1h",
        "5S",
        "1,5h",
        "1e3s",
        "٣s",
        "5s!",
        "9" * 40,
        True,
        False,
        None,
        ["5s"],
        {"s": 5},
    ],
)
def test_other_values_are_no_durations(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(value)


def test_a_duration_that_no_thread_can_wait_for_is_refused() -> None:
    assert parse_duration("3650d") == LONGEST
    with pytest.raises(ValueError, match="at most 3650d"):
        parse_duration("3651d")


@given(st.integers(min_value=0, max_value=int(LONGEST * 1000)))
def test_every_duration_reads_back_as_it_was_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (5400, "1h30m"), (86400, "1d"), (0.25, "250ms"), (90061.5, "1d1h1m1s500ms")],
)
def test_durations_are_written_shortly(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("64MiB", 64 * 2**20),
        ("64 mib", 64 * 2**20),
        ("100MB", 100_000_000),
        ("512KiB", 524288),
        ("1GiB", 2**30),
        ("1.5GiB", 3 * 2**29),
        ("2TB", 2 * 10**12),
        ("7B", 7),
        ("1000", 1000),
        (1000, 1000),
        (0, 0),
    ],
)
def test_sizes_are_read_in_bytes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize("value", [-1, 1.5, True, None, "", "MiB", "64M", "64 MiBs", "-1B", "1e3"])
def test_other_values_are_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_size(value)


def test_half_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("1.5B")


@given(st.integers(min_value=0, max_value=10**15 - 1))
def test_every_size_reads_back_as_it_was_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (64 * 2**20, "64MiB"), (10**8, "100MB"), (1234, "1234B"), (2**31, "2GiB")],
)
def test_sizes_are_written_shortly(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.one_of(st.text(max_size=20), st.integers(), st.floats()))
def test_whatever_is_given_the_answer_is_a_number_or_a_value_error(value: object) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(value) >= 0
        except ValueError as error:
            assert "expected" in str(error)  # noqa: PT017  both outcomes are right
