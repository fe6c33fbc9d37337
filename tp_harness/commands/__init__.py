"""The subcommands of `tp-harness`, each a module with NAME, HELP, add_options(parser) and run(arguments) -> exit code.

To add one: a file beside these, and an entry in `COMMANDS`. What they import at their start must not import torch.
"""

from __future__ import annotations

import argparse
from typing import Protocol

from . import checks, compare, doctor, faults, graph_faults, model, report, verify
from . import list as list_command


class Command(Protocol):
    """What a module of this package offers."""

    NAME: str
    HELP: str

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """The options of the subcommand."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work and return the exit code."""


COMMANDS: tuple[Command, ...] = (verify, list_command, model, doctor, compare, faults, checks, graph_faults, report)
