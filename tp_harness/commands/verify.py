"""`tp-harness verify`: run sharded components and compare them with the reference."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ..errors import UsageError, failures_of_storage, printable
from ..options import Options, Resolved, as_record, parse_degrees, resolve

if TYPE_CHECKING:
    from ..backends import Backend

NAME = "verify"
HELP = "run sharded components and compare them with the reference"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add_verify_options(parser)


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
    add("--repeats", type=int, default=default.repeats, metavar="N", help="time each forward N times more; count FLOPs")
    add("--checkpoint", type=Path, metavar="DIR", help="safetensors under public gpt-oss names")
    add("--case", metavar="FILE.py:NAME", help="an own Case instead of gpt-oss's components")
    add("--out", type=Path, default=default.out, metavar="DIR", help="where the run's folder goes")
    add("--timeout", type=float, default=default.timeout, metavar="SECONDS", help="for one case on the ranks")


def options_of(arguments: argparse.Namespace) -> Options:
    """What the user asked for.

    Raises:
        UsageError: --tp is not a list of numbers.
    """
    return Options(
        components=tuple(arguments.component),
        degrees=parse_degrees(arguments.tp),
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
        repeats=arguments.repeats,
        checkpoint=arguments.checkpoint,
        case=arguments.case,
        out=arguments.out,
        timeout=arguments.timeout,
    )


def run(arguments: argparse.Namespace) -> int:
    """Parse, verify, print; returns the exit code."""
    options = options_of(arguments)
    resolved = resolve(options)

    from ..backends import choose_backend  # noqa: PLC0415  (imports torch; a usage error needs none)

    return run_verify(resolved, choose_backend(options.backend), Console())


def run_verify(options: Resolved, backend: Backend, console: Console) -> int:
    """Open the run's folder, verify, print the summary; returns the exit code.

    Raises:
        UsageError: what was found wrong before any rank started; the empty folder is removed again.
    """
    from ..record import command_line, open_record  # noqa: PLC0415
    from ..run import verify  # noqa: PLC0415
    from ..table import print_summary  # noqa: PLC0415

    record = open_record(
        Path(options.out),
        command=command_line(),
        options=as_record(options),
        backend=backend.name,
        blind_spots=backend.blind_spots,
    )
    try:
        with failures_of_storage():
            if backend.owns_terminal:
                verify(options, backend, record, lambda _step: None)
            else:
                with console.status("starting") as status:
                    verify(options, backend, record, lambda text: status.update(Text(printable(text))))
    except UsageError:
        record.discard_if_empty()
        raise
    print_summary(record, console)
    return record.exit_code
