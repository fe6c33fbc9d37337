"""`tp-harness list`: what there is to choose from."""

from __future__ import annotations

import argparse

from rich.console import Console

from ..errors import UnknownNameError
from . import listing

NAME = "list"
HELP = "what there is to choose from"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument("what", nargs="?", default="components", help=" or ".join(listing.LISTS))


def run(arguments: argparse.Namespace) -> int:
    """Print one list; returns exit code 0.

    Raises:
        UnknownNameError: no such list.
    """
    if arguments.what not in listing.LISTS:
        raise UnknownNameError("list", arguments.what, listing.LISTS)
    Console().print(listing.LISTS[arguments.what]())
    return 0
