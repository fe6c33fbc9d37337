"""What is taken from pytest beside its documented interface. No torch."""

from __future__ import annotations

import pytest

from . import Library

PYTEST = Library(name="pytest", file="pytest_private.py", seen=("9.2.0",))


def argument_names(item: pytest.Function) -> tuple[str, ...]:
    """The names of the fixtures that a test's function takes as arguments."""
    names: tuple[str, ...] = PYTEST.part("pytest:Function._fixtureinfo", item).argnames
    return names
