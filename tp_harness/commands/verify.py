"""`tp-harness verify`: run sharded components and compare them with the reference."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..config import dtypes
from ..config.options import Options, parse_degrees, resolve
from ..errors import UsageError

if TYPE_CHECKING:
    from ..results.run_record import RunRecord

NAME = "verify"
HELP = "run sharded components and compare them with the reference"


EXAMPLES = """examples:
  tp-harness verify                                every component and degree
  tp-harness verify --component mlp --tp 2,8       one component, two degrees
  tp-harness verify --case my_mlp.py:CASE          your own module
"""

_NUMBER: dict[str, Any] = {"type": int, "metavar": "N"}
_FOLDER: dict[str, Any] = {"type": Path, "metavar": "DIR"}
_SEVERAL: dict[str, Any] = {"action": "append", "default": []}
_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "what": {
        "--component": _SEVERAL | {"metavar": "NAME", "help": "one of `tp-harness list`; repeatable; default: all"},
        "--layer": _SEVERAL | _NUMBER | {"help": "repeatable; even layers have a sliding window"},
        "--depth": _NUMBER | {"help": "run the transformer with its first N layers; default: all"},
        "--case": _SEVERAL
        | {"metavar": "FILE.py[:NAME]", "help": "your Case, or all of a file, instead of components; repeatable"},
        "--model": {"help": dtypes.HELP},
        "--checkpoint": _FOLDER
        | {"help": "weights under the model's public names, or a Case's own: safetensors, or torch.save's"},
        "--init": {"metavar": "KIND", "help": "discriminating (the default), constant (0.5, weak) or tied (experts)"},
        "--kernels": {"metavar": "KIND", "help": "torch (the default), or nki: its kernels, interpreted on a CPU"},
        "--batch": _NUMBER | {"metavar": "B", "help": "rows of the input"},
        "--seq": _NUMBER | {"metavar": "S", "help": "tokens of a row; more than the sliding window to exercise it"},
    },
    "where": {
        "--tp": {"metavar": "1,2,8,32", "help": "tp_degrees, comma-separated; default: 1,2,8,32"},
        "--ep": _NUMBER | {"help": "of these ranks, N along the axis ep of a Case's mesh (expert parallel)"},
        "--cp": _NUMBER | {"help": "of these ranks, N along the axis cp of a Case's mesh (context parallel)"},
        "--backend": {"metavar": "NAME", "help": "auto (the default) or one of `tp-harness list backends`"},
        "--timeout": {
            "type": float,
            "metavar": "SECONDS",
            "help": "for one case on the ranks; default: 300, more for a large model",
        },
    },
    "how strict": {
        "--dtype": _SEVERAL | {"metavar": "D", "help": dtypes.HELP},
        "--seed": _NUMBER | {"help": "of weights and inputs; default: 0"},
        "--draws": _NUMBER | {"help": "how many weights and inputs to try; the worst decides"},
        "--repeats": _NUMBER | {"help": "run each forward N times more: the bits must be the same; also times them"},
        "--fault": {"metavar": "NAME", "help": "put in one of `tp-harness list faults`; the run must then fail"},
        "--no-fault-control": {
            "dest": "fault_control",
            "action": "store_false",
            "default": None,
            "help": "put no fault in at random; the run then proves less",
        },
    },
    "output": {
        "--out": _FOLDER | {"help": "where the run's folder goes; default: artifacts"},
        "--resume": _FOLDER | {"help": "go on with the unfinished run in this folder, with its options"},
    },
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand, and examples of it."""
    add_verify_options(parser)
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """The options of `verify`, which launch/tp_test.py takes as well."""
    parser.usage = "%(prog)s [OPTIONS]"
    for title, options in _OPTIONS.items():
        group = parser.add_argument_group(title)
        for option, how in options.items():
            group.add_argument(option, **how)


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
