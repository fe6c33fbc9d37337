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


def printable(text: str, most: int | None = None) -> str:
    """The text with everything escaped that could act on a terminal or mislead a reader: names come from files.

    Control characters, line ends, escape sequences, marks that turn the direction of writing, lone surrogates.

    Args:
        text: any text.
        most: characters to keep; what is longer ends with "...".
    """
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return escaped if most is None or len(escaped) <= most >= len(text) else escaped[:most] + "..."


@contextmanager
def failures_of_storage() -> Iterator[None]:
    """Say a full disk, a folder that cannot be written to, or one that went away, as a UsageError.

    Raises:
        UsageError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        where = f" {error.filename}" if error.filename else " the run's temporary files"
        raise UsageError(
            f"cannot write or read{where}: {error.strerror or error}; what was found so far is in run.json."
        ) from error


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Let `blamed_on` say what was being done when something was raised: the innermost tells."""
    try:
        yield
    except BaseException as error:
        vars(error).setdefault(_DOING, what)
        raise


_DOING = "tp_harness_was_doing"


@contextmanager
def blamed_on(file: str) -> Iterator[None]:
    """Say what the code of a user's file raises as a UsageError, with the file's line; with no file, let it pass.

    Raises:
        UsageError: instead of any other exception.
    """
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit and what a user made up included
        if not file:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(file).name]
        at = f"{file}:{lines[-1]}" if lines else file
        first_line = str(error).partition("\n")[0]
        who = f"{at}: {vars(error)[_DOING]}" if _DOING in vars(error) else at
        raise UsageError(f"{who} raised {type(error).__name__}: {first_line} (before any rank started).") from error
