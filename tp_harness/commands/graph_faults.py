"""`tp-harness graph-faults`: put mistakes of the compiled path in, and see which backend sees which."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from ..config.options import Options, parse_degrees, resolve

NAME = "graph-faults"
HELP = "put mistakes of the compiled path into the model, and see which backend sees which"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    add = parser.add_argument
    add("--tp", default="2,8,32", metavar="2,8,32", help="tp_degrees, comma-separated")
    add("--seed", type=int, default=0, metavar="N", help="of weights and inputs")
    add("--markdown", type=Path, metavar="FILE", help="write the page of docs/ about it")


def run(arguments: argparse.Namespace) -> int:
    """Try the faults on local, gloo and xla, and print.

    Returns:
        Exit code 0 if xla sees all faults and rejects nothing that is right, else 1.

    Raises:
        UsageError: torch-xla is not installed; the message says where it is.
    """
    options = resolve(Options(degrees=parse_degrees(arguments.tp), seed=arguments.seed))
    from ..backends import choose_backend  # noqa: PLC0415  (imports torch)
    from ..faults import GRAPH  # noqa: PLC0415
    from ..mutation.backend_matrix import disappointments, page, sighting_table, sightings  # noqa: PLC0415

    backends = [choose_backend(name) for name in ("gloo", "xla", "local")]
    console = Console()
    with console.status("starting") as status:
        found = sightings(backends, GRAPH, options, status.update)
    console.print(sighting_table(found).terminal(), soft_wrap=True)
    if arguments.markdown:
        command = f"tp-harness {NAME} --markdown {arguments.markdown}"
        arguments.markdown.write_text(page(found, command), encoding="utf-8")
    wrong = disappointments(found)
    for line in wrong:
        console.print(line, markup=False, soft_wrap=True)
    return int(bool(wrong))
