"""What a user did wrong, said in one sentence.

A `UsageError` always reaches the user as its message alone, with exit code 2, before any rank starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input: the message holds both values and the next step."""


class UnknownNameError(UsageError):
    """A name that no registry holds; the message lists the choices and the nearest one."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        choices = tuple(choices)
        near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Choose from: {', '.join(choices)}.")
