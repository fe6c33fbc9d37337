"""What a user did wrong, said in one sentence.

A `UsageError` always reaches the user as its message alone, with exit code 2, before any rank starts.
"""

from __future__ import annotations

import difflib
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UsageError(ValueError):
    """Bad input: the message holds both values and the next step. `of`: a Case's name, put before the message."""

    def __init__(self, message: str, *, of: str = "") -> None:
        super().__init__(f"{of}: {message}" if of else message)
        self.of = of


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choice that is spelt most like `name`; "" if none is near."""
    return next(iter(difflib.get_close_matches(name, choices, n=1, cutoff=0.5)), "")


class UnknownNameError(UsageError):
    """A name that is none of the choices; the message lists them, and the nearest one."""

    def __init__(self, kind: str, name: str, choices: Iterable[str]) -> None:
        choices = tuple(choices)
        near = nearest(name, choices)
        hint = f" Did you mean {near!r}?" if near else ""
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


_MOST_LINES, _MOST_CHARACTERS = 12, 300  # of an exception's message, and of a line of it


def described(error: BaseException, *, whole: bool = True) -> str:
    """An exception's type and all lines of its message in one line, `ValueError: no | and why`; never raises.

    A long message is cut after 12 lines, with how many more there are; after the first line, if `whole` is False.
    """
    try:
        text = "\n".join([str(error), *map(str, getattr(error, "__notes__", ()))])
    except Exception as broken:  # a user's __str__
        text = f"(no message: its __str__ raised {type(broken).__name__})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    shown = [line if len(line) <= _MOST_CHARACTERS else line[:_MOST_CHARACTERS] + "..." for line in lines[:_MOST_LINES]]
    if not whole:
        shown = shown[:1]
    elif len(lines) > _MOST_LINES:
        shown.append(f"... ({len(lines) - _MOST_LINES} more lines)")
    return f"{type(error).__name__}: {' | '.join(shown)}" if shown else type(error).__name__


@contextmanager
def failures_of_storage() -> Iterator[None]:
    """Turn an OSError (a full disk, a folder that cannot be written to or is gone) into a UsageError.

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
    """Attach `what`, the activity, to an exception raised inside, for `blamed_on` and `told`; the innermost stays."""
    try:
        yield
    except BaseException as error:
        vars(error).setdefault(_DOING, what)
        raise


_DOING = "tp_harness_was_doing"
_ROOT = Path(__file__).parent.parent
_OURS = tuple(f"{_ROOT / folder}{os.sep}" for folder in ("tp_harness", "launch", "reference", "kernels"))
_PYTHONS = (sysconfig.get_paths()["stdlib"] + os.sep, "<frozen")


def _is_theirs(file: str) -> bool:
    """Whether a file is a user's, or of a package that a user brought along."""
    if f"{os.sep}site-packages{os.sep}" in file:
        return not any(f"{os.sep}{package}{os.sep}" in file for package in ("torch", "tp_harness"))
    return not file.startswith((*_OURS, *_PYTHONS))


def own_place(error: BaseException) -> str:
    """Where in a user's code it was raised, `model.py:15 in forward`; "" if no frame of it is the user's.

    That is the last frame outside of this package, torch, and Python's library.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""


def calling_place() -> str:
    """Where in a user's code this is called from, as `own_place`; "" if from nowhere in it."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if _is_theirs(frame.f_code.co_filename):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
    return ""


def is_theirs(error: BaseException) -> bool:
    """Whether a user's code raised it inside a `doing`."""
    return _DOING in vars(error) and bool(own_place(error))


def told(error: BaseException) -> str:
    """The error `described`; if a `doing` noted it, also what was being done and where, in brackets."""
    said = described(error)
    what = vars(error).get(_DOING, "").rstrip(",")
    where = own_place(error)
    return f"{said} ({what}{f'; {where}' if where else ''})" if what else said


@contextmanager
def blamed_on(file: str) -> Iterator[None]:
    """Turn what a user's file raises into a UsageError that names the place in it; without a file, change nothing.

    Raises:
        UsageError: instead of any other exception but KeyboardInterrupt.
    """
    try:
        yield
    except (UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit and a user's own exceptions included
        if not file:
            raise
        raise UsageError(f"{blame(error, file)} (before any rank started).") from error


def blame(error: BaseException, file: str = "") -> str:
    """Where, in what and with what: `model.py:15 in forward: reference of mlp, called ..., raised ValueError: no`."""
    where = own_place(error) or file
    what = vars(error).get(_DOING, "")
    return f"{where}{f': {what}' if what else ''} raised {described(error)}"
