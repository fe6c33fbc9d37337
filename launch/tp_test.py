"""Verify at the degree torchrun was started with.

    torchrun --nproc-per-node 8 launch/tp_test.py --component attention

takes the options of `tp-harness verify` except --tp and --backend: the degree is WORLD_SIZE. Every rank exits with
the same code (0 passed, 1 mismatch, 2 usage, 3 crash, 4 void). torchrun itself exits with 1 whenever a rank's code is
not 0 and shows that code in its failure table; run.json holds it too.
"""

import argparse
import os
import sys
from datetime import timedelta

import torch.distributed as dist
from rich.console import Console

from tp_harness.backends.torchrun import TorchrunBackend, follow, tell
from tp_harness.commands.verify import add_verify_options, options_of, run_verify
from tp_harness.errors import UsageError
from tp_harness.options import Resolved, resolve


def main() -> int:
    """Be one rank; returns the exit code."""
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]
    if missing:
        print(
            f"tp_test: {', '.join(missing)} not set; start it as `torchrun --nproc-per-node N launch/tp_test.py`.",
            file=sys.stderr,
        )
        return 2
    leads = os.environ["RANK"] == "0"
    try:
        arguments = _arguments()
        options = resolve(options_of(arguments))
    except UsageError as error:
        if leads:
            print(f"tp_test: {error}", file=sys.stderr)
        return 2
    dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout))
    try:
        return _lead(options) if leads else follow()
    finally:
        dist.destroy_process_group()


def _lead(options: Resolved) -> int:
    """Rank 0: the whole flow; whatever happens, the others learn how to exit."""
    code = 3
    try:
        code = run_verify(options, TorchrunBackend(), Console())
    except UsageError as error:
        print(f"tp_test: {error}", file=sys.stderr)
        code = 2
    finally:
        tell({"exit": code})
    return code


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tp_test", description=__doc__)
    add_verify_options(parser)
    arguments = parser.parse_args()
    if arguments.tp is not None:
        raise UsageError(f"--tp is {arguments.tp}; under torchrun the degree is --nproc-per-node.")
    arguments.tp = os.environ["WORLD_SIZE"]
    return arguments


if __name__ == "__main__":
    sys.exit(main())
