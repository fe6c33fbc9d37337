"""`tp-harness verify`: run sharded components and compare them with the reference."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..config.options import Options, parse_degrees, resolve
from ..errors import UsageError
from ..models import presets

if TYPE_CHECKING:
    from ..results.run_record import RunRecord

NAME = "verify"
HELP = "run sharded components and compare them with the reference"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add_verify_options(parser)


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of `verify`, which launch/tp_test.py takes as well."""
    add = parser.add_argument
    add("--component", action="append", default=[], metavar="NAME", help="repeatable; default: all")
    add("--tp", metavar="1,2,8,32", help="tp_degrees, comma-separated")
    add("--model", help=f"{', '.join(presets())} or a config.json")
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
    add("--depth", type=int, metavar="N", help="run the transformer with its first N layers; default: all")
    add(
        "--dtype",
        action="append",
        default=[],
        metavar="D",
        help="float32 or bfloat16; repeatable; default: both",
    )
    add("--backend", help="auto or a name from `tp-harness list backends`")
    add("--seed", type=int, metavar="N", help="of weights and inputs")
    add("--draws", type=int, metavar="N", help="how many weights and inputs to try; the worst decides")
    add("--init", metavar="KIND", help="discriminating, constant (0.5, a weak test) or tied (experts)")
    add("--kernels", metavar="KIND", help="torch, or nki: its kernels, interpreted on a CPU")
    add("--repeats", type=int, metavar="N", help="time each forward N times more; count FLOPs")
    add("--fault", metavar="NAME", help="put in one of `tp-harness list faults`; the run must then fail")
    add(
        "--no-fault-control",
        dest="fault_control",
        action="store_false",
        default=None,
        help="put in none at random; the run then shows less",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="weights under the model's public names, or a Case's own: safetensors, or torch.save's",
    )
    add(
        "--case",
        action="append",
        default=[],
        metavar="FILE.py[:NAME]",
        help="an own Case, or all of a file, instead of the model's components; repeatable",
    )
    add("--out", type=Path, metavar="DIR", help="where the run's folder goes; default: artifacts")
    add("--resume", type=Path, metavar="DIR", help="go on with the unfinished run in this folder, with its options")
    add(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="for one case on the ranks; default: 300, more for a large model",
    )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user said, by field of `Options`.

    Raises:
        UsageError: --tp is not a list of numbers.
    """
    said = {
        "components": tuple(arguments.component),
        "degrees": None if arguments.tp is None else parse_degrees(arguments.tp),
        "layers": tuple(arguments.layer),
        "dtypes": tuple(arguments.dtype),
        "case": tuple(arguments.case),
    }
    names = {field.name for field in fields(Options)} - said.keys()
    said |= {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in said.items() if value not in (None, ())}


def options_of(arguments: argparse.Namespace) -> Options:
    """What the user asked for, and for the rest the defaults.

    Raises:
        UsageError: --tp is not a list of numbers.
    """
    return Options(**given_options(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Parse, verify, print; returns the exit code."""
    options, record = asked(arguments)
    try:
        resolved = resolve(options)

        from ..backends import choose_backend  # noqa: PLC0415  (imports torch; a usage error needs none)
        from ..verification.summary import run_verify  # noqa: PLC0415

        return run_verify(resolved, choose_backend(options.backend), Console(), record)
    finally:
        if record is not None:
            record.release()


def asked(arguments: argparse.Namespace) -> tuple[Options, RunRecord | None]:
    """What to do, and with --resume the record to go on with.

    Raises:
        UsageError: the record cannot be resumed, or not with these options.
    """
    if arguments.resume is None:
        return options_of(arguments), None
    if arguments.out is not None:
        raise UsageError(f"--out is {arguments.out}, but a resumed run stays in its folder, {arguments.resume}.")
    from ..results.resume import take_up  # noqa: PLC0415

    record, options = take_up(arguments.resume, given_options(arguments))
    return options, record
