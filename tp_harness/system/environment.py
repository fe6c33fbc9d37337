"""Changes to environment variables: for a process that is to be started, or for this one for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from ..errors import UsageError

Changes: TypeAlias = Mapping[str, str | None]  # name -> text, or None: take it out


def changed(environment: Mapping[str, str], changes: Changes | None) -> dict[str, str]:
    """The environment with the changes made.

    Raises:
        UsageError: a name or a value that no variable can have.
    """
    result = dict(environment)
    for name, value in (changes or {}).items():
        if not isinstance(name, str) or not name or set("=\0") & set(name):
            raise UsageError(f"env has {name!r:.60}; the name of a variable is needed.")
        if value is None:
            result.pop(name, None)
        elif isinstance(value, str) and "\0" not in value:
            result[name] = value
        else:
            raise UsageError(f"env has {name}={value!r:.60}; text is needed, or None to take the variable out.")
    return result


def become(environment: Mapping[str, str]) -> None:
    """Replace this process's environment by the given one."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@contextmanager
def changed_here(changes: Changes | None) -> Iterator[None]:
    """Inside, this process's environment has the changes; afterwards they are undone.

    Raises:
        UsageError: as `changed`.
    """
    before = dict(os.environ)
    become(changed(before, changes))
    try:
        yield
    finally:
        become(before)
