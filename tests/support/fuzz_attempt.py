"""One hostile input tried: `tp-harness` refuses it in one sentence, or would start ranks, and none is started."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from unittest import mock

from tp_harness import backends, cli
from tp_harness.prepare import prepare

HANG_SECONDS = 120  # until an input counts as hanging and the program is ended with its stack


class ReachedError(BaseException):
    """The input was good: ranks would start now."""


def attempt(arguments: list[str]) -> str:
    """Run the command; "refused" (code 2, one sentence) or "accepted".

    Raises:
        AssertionError: anything else.
    """
    out, err = io.StringIO(), io.StringIO()
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a user's module makes torch say is the user's
            code = cli.main(arguments)
    except ReachedError:
        return "accepted"
    except SystemExit as leaving:  # --help and --version, as argparse has it
        code = leaving.code if isinstance(leaving.code, int) else 99
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{traceback.format_exc()[-1500:]}") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    text = err.getvalue()
    if code == 0 and not text:
        return "accepted"
    assert code == 2, f"exit code {code}: {text[-3000:]}"
    assert text.startswith("tp-harness: ") and text.endswith("\n"), f"no sentence: {text!r:.500}"
    assert text[:-1].isprintable(), f"not one printable line: {text!r:.500}"
    assert len(text) < 5000, f"{len(text)} characters"
    return "refused"


def reach(*_arguments: object, **_options: object) -> NoReturn:
    """Stands for what happens when the input is good."""
    raise ReachedError


class NoRanks:
    """A backend and its session, in which nothing is ever started."""

    name, blind_spots, owns_terminal, starts_anew = "none", "it sees nothing", True, True
    process_group, weight_copies = True, 0
    start = staticmethod(reach)

    def available(self) -> str | None:
        """It needs nothing."""
        return None

    def open(self, *_options: object, **_more: object) -> NoRanks:
        """Itself."""
        return self

    def __enter__(self) -> NoRanks:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


@contextlib.contextmanager
def no_ranks(folder: Path, *, weights: bool = False) -> Iterator[None]:
    """Inside, good input ends with ReachedError: at once, or with `weights` once the single-core runs are made."""
    choose = backends.choose_backend

    def chosen(name: str) -> NoRanks:
        choose(name)
        return NoRanks()

    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder) if sys.version_info >= (3, 11) else contextlib.nullcontext())
        stack.enter_context(mock.patch.object(backends, "choose_backend", chosen))
        stack.enter_context(mock.patch.object(prepare, "SHM", folder))
        if not weights:
            for step in ("write_checkpoint", "write_tiles", "expect"):
                stack.enter_context(mock.patch.object(prepare, step, reach))
            stack.enter_context(mock.patch.object(prepare.Field, "write", reach))  # its tables take long to make
        yield
