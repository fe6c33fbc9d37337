"""The command `tp-harness`. Each subcommand parses, calls one function and returns its exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from .errors import UnknownNameError, UsageError
from .options import COMPONENT_NAMES, Options, Resolved, as_record, resolve

if TYPE_CHECKING:
    from .backends import Backend

USAGE_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 3, 130


class _Parser(argparse.ArgumentParser):
    """Says a usage error as one sentence on stderr, as every other mistake is said."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`).")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 passed, 1 mismatch, 2 usage, 3 crash or hang, 4 void, 130 interrupted."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        arguments = _parser().parse_args(argv)
        code: int = arguments.run(arguments)
    except UsageError as error:
        print(f"tp-harness: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"tp-harness: {str(interrupt) or 'interrupted'}; every rank was ended.", file=sys.stderr)
        return INTERRUPTED
    except Exception:  # ours, not the user's: not 1, which says that something differs
        traceback.print_exc()
        print("tp-harness: this is a bug in tp-harness; nothing was decided.", file=sys.stderr)
        return INTERNAL_ERROR
    return code


def _terminated(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="tp-harness",
        description="Says whether a tensor-parallel model is the same function as its single-core reference.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    verify = commands.add_parser("verify", help="run sharded components and compare them with the reference")
    add_verify_options(verify)
    verify.set_defaults(run=_verify)
    listing = commands.add_parser("list", help="what there is to choose from")
    listing.add_argument("what", nargs="?", default="components", help="components, backends, kernels or models")
    listing.set_defaults(run=_list)
    return parser


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of `verify`, which launch/tp_test.py takes as well."""
    default = Options()
    add = parser.add_argument
    add("--component", action="append", default=[], metavar="NAME", help="repeatable; default: all")
    add("--tp", default="1,2,8,32", metavar="1,2,8,32", help="tp_degrees, comma-separated")
    add("--model", default=default.model, help="tiny, gpt-oss-20b, gpt-oss-120b or a config.json")
    add("--batch", type=int, metavar="B", help="rows of the input")
    add("--seq", type=int, metavar="S", help="tokens of a row; more than the sliding window to exercise it")
    add(
        "--layer",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="repeatable; even layers have a window",
    )
    add(
        "--dtype",
        action="append",
        default=[],
        metavar="D",
        help="float32 or bfloat16; repeatable; default: both",
    )
    add("--backend", default=default.backend, help="auto or a name from `tp-harness list backends`")
    add("--seed", type=int, default=default.seed, metavar="N", help="of weights and inputs")
    add("--draws", type=int, metavar="N", help="how many weights and inputs to try; the worst decides")
    add("--init", default=default.init, metavar="KIND", help="discriminating or constant (0.5, a weak test)")
    add("--kernels", default=default.kernels, metavar="KIND", help="torch, or nki: its kernels, interpreted on a CPU")
    add("--checkpoint", type=Path, metavar="DIR", help="safetensors under public gpt-oss names")
    add("--case", metavar="FILE.py:NAME", help="an own Case instead of gpt-oss's components")
    add("--out", type=Path, default=default.out, metavar="DIR", help="where the run's folder goes")
    add("--timeout", type=float, default=default.timeout, metavar="SECONDS", help="for one start of the ranks")


def options_of(arguments: argparse.Namespace) -> Options:
    """What the user asked for.

    Raises:
        UsageError: --tp is not a list of numbers.
    """
    try:
        degrees = tuple(int(tp) for tp in arguments.tp.split(","))
    except ValueError:
        raise UsageError(f"--tp is {arguments.tp!r}; numbers separated by commas are needed, as 1,2,8,32.") from None
    return Options(
        components=tuple(arguments.component),
        degrees=degrees,
        model=arguments.model,
        batch=arguments.batch,
        seq=arguments.seq,
        layers=tuple(arguments.layer),
        dtypes=tuple(arguments.dtype),
        backend=arguments.backend,
        seed=arguments.seed,
        draws=arguments.draws,
        init=arguments.init,
        kernels=arguments.kernels,
        checkpoint=arguments.checkpoint,
        case=arguments.case,
        out=arguments.out,
        timeout=arguments.timeout,
    )


def _verify(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    resolved = resolve(options)

    from .backends import choose_backend  # noqa: PLC0415  (imports torch; a usage error needs none)

    return run_verify(resolved, choose_backend(options.backend), Console())


def run_verify(options: Resolved, backend: Backend, console: Console) -> int:
    """Open the run's folder, verify, print the summary; returns the exit code.

    Raises:
        UsageError: what was found wrong before any rank started; the empty folder is removed again.
    """
    from .record import command_line, open_record  # noqa: PLC0415
    from .run import verify  # noqa: PLC0415
    from .table import print_summary  # noqa: PLC0415

    record = open_record(
        Path(options.out),
        command=command_line(),
        options=as_record(options),
        backend=backend.name,
        blind_spots=backend.blind_spots,
    )
    try:
        with console.status("starting") as status:
            verify(options, backend, record, status.update)
    except UsageError:
        record.discard_if_empty()
        raise
    print_summary(record, console)
    return record.exit_code


def _list(arguments: argparse.Namespace) -> int:
    from . import listing  # noqa: PLC0415

    if arguments.what not in listing.LISTS:
        raise UnknownNameError("list", arguments.what, listing.LISTS)
    Console().print(listing.LISTS[arguments.what]())
    return 0


def script() -> NoReturn:
    """The console entry point. Leaves without torch's teardown, which takes half a second and has nothing to do."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


__all__ = ["COMPONENT_NAMES", "add_verify_options", "main", "options_of", "script"]
