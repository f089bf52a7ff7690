"""Configurations in a line or two, and what is wrong with them."""

from __future__ import annotations

import pytest

from pool.config.loader import InvalidConfig, loads
from pool.config.problems import Problem
from pool.config.settings import Template

#: A template, ``cars``; what follows it in a text belongs to its table.
CARS = '[templates.cars]\nlabels = [{ name = "car" }]\n'


def problems(text: str) -> tuple[Problem, ...]:
    """Return all problems of a text, of which there are some."""
    with pytest.raises(InvalidConfig) as caught:
        loads(text)
    return caught.value.problems


def only_problem(text: str) -> Problem:
    """Return the one problem of a text."""
    (problem,) = problems(text)
    return problem


def cars(text: str = "") -> Template:
    """Return the template ``cars`` with further keys."""
    return loads(CARS + text).templates["cars"]
