"""The command `tp-harness`: one parser over all subcommands, and the exit code of every mistake or interruption."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .commands import COMMANDS
from .commands.parser import Parser
from .errors import UnknownNameError, UsageError, blame, is_theirs, printable
from .system.interrupts import one_interrupt
from .version import __version__

NAME = "tp-harness"
USAGE_ERROR, INTERNAL_ERROR, INTERRUPTED = 2, 3, 130
MOST = 3000  # characters of a sentence: a name from a file may be a megabyte long


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns exit code 0 pass, 1 mismatch, 2 usage, 3 crash or hang, 4 void, 130 interrupted."""
    with one_interrupt():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        code: int = arguments.run(arguments)
    except UsageError as error:
        print(f"tp-harness: {printable(str(error), most=MOST)}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"tp-harness: {str(interrupt) or 'interrupted'}; every rank was ended.", file=sys.stderr)
        return INTERRUPTED
    except (Exception, SystemExit) as error:  # not 1, which says that something differs
        if is_theirs(error):  # a user's function that was called after ranks had started
            print(f"tp-harness: {printable(blame(error), most=MOST)}.", file=sys.stderr)
            return USAGE_ERROR
        if isinstance(error, SystemExit):
            raise
        traceback.print_exc()
        print("tp-harness: this is a bug in tp-harness; nothing was decided.", file=sys.stderr)
        return INTERNAL_ERROR
    return code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    names = tuple(command.NAME for command in COMMANDS)
    if argv and not argv[0].startswith("-") and argv[0] not in names:
        raise UnknownNameError("command", argv[0], names)
    arguments = _parser().parse_args(argv)
    if "run" not in arguments:
        raise UsageError(f"a command is needed: {', '.join(names)} (see `{NAME} --help`).")
    return arguments


def _parser() -> Parser:
    parser = Parser(
        prog=NAME,
        description="Says whether a tensor-parallel model is the same function as its single-core reference.",
    )
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        sentence = f"{command.HELP[0].upper()}{command.HELP[1:]}."
        subparser = commands.add_parser(command.NAME, help=command.HELP, description=sentence)
        command.add_options(subparser)
        subparser.set_defaults(run=command.run)
    return parser


def script() -> NoReturn:
    """The console entry point. It skips torch's teardown, which takes half a second and has nothing to do.

    Importing torch makes no garbage, and the collector would search for it two hundred times; numpy's own threads would
    spin beside torch's, and the tool has no use for them.
    """
    gc.set_threshold(50_000, 20, 100)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
