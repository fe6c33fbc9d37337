"""`tp-harness doctor`: what this machine can run, and what in it would spoil a verdict."""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from ..doctor.facts import read_facts
from ..doctor.findings import exit_code, findings
from ..doctor.show import as_json, as_text

NAME = "doctor"
HELP = "what this machine can run, and what in it would spoil a verdict"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument("--json", action="store_true", help="everything, for programs")


def run(arguments: argparse.Namespace) -> int:
    """Read, judge, print; returns exit code 1 when something would make verdicts wrong, else 0."""
    facts = read_facts()
    found = findings(facts)
    if arguments.json:
        print(json.dumps(as_json(facts, found), indent=1))
    else:
        Console().print(as_text(facts, found), soft_wrap=True)
    return exit_code(found)
