"""What a user did wrong, said in one sentence.

A `UsageError` always reaches the user as its message alone, with exit code 2, before any rank starts.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UsageError(ValueError):
    """Bad input: the message holds both values and the next step."""


class UnknownNameError(UsageError):
    """A name that no registry holds; the message lists the choices and the nearest one."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        choices = tuple(choices)
        near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"unknown {kind} {name!r}.{hint} Choose from: {', '.join(choices)}.")


@contextmanager
def blamed_on(file: str) -> Iterator[None]:
    """Say what the code of a user's file raises as a UsageError, with the file's line; with no file, let it pass.

    Raises:
        UsageError: instead of any other exception.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if not file:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(file).name]
        at = f"{file}:{lines[-1]}" if lines else file
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"{at} raised {type(error).__name__}: {first_line} (before any rank started).") from error
