"""Verify at the degree torchrun was started with.

    torchrun --nproc-per-node 8 launch/tp_test.py --component attention
    torchrun --nproc-per-node 8 launch/tp_test.py --backend neuron    # each process on its NeuronCore
    torchrun --nnodes 2 --nproc-per-node 8 ... launch/tp_test.py    # on each of two hosts

takes the options of `tp-harness verify` except --tp: the degree is --nproc-per-node, because a tensor-parallel group
stays within a host. --backend is gloo or neuron; by default neuron where there are NeuronCores that can be used.
Several hosts share the targets out; host 0's run.json holds all results.
Every rank exits with the same code (0 passed, 1 mismatch, 2 usage, 3 crash, 4 void). torchrun itself exits with 1
whenever a rank's code is not 0 and shows that code in its failure table; run.json holds it too.

No torch before the environment is right: where it is not, as on NeuronCores, the process starts itself anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from typing import NoReturn

from ..config.dtypes import dtypes_on
from ..config.options import Resolved, resolve
from ..errors import UnknownNameError, UsageError, printable
from ..neuron.availability import automatic, neuron_reason
from ..neuron.core_allocation import enter_environment
from ..neuron.devices import Machine, on_neuron, read_machine
from ..neuron.sdk_packages import read_python_packages
from ..verification.hosts import Host
from .parser import Parser
from .verify import add_verify_options, options_of

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR")
_BACKENDS = ("auto", "gloo", "neuron")
_OF_THEIR_OWN = ("local", "xla")
_LEAD_SECONDS = 60.0  # for rank 0 to report a usage error before another rank ends


def main() -> int:
    """Run as one rank; returns the exit code: 0 passed, 1 mismatch, 2 usage, 3 crash, 4 void."""
    leads = os.environ.get("RANK", "0") == "0"
    try:
        given = options_of(_arguments())
        options, host = resolve(given), Host.of(os.environ)
        backend, unused = _backend(given.backend)
        options = replace(options, dtypes=dtypes_on(options.dtypes, backend, options.kernels))
        if backend == "neuron":
            _prepare(host)
        if leads:
            say(_chosen(backend, unused, host))
        return _be_rank(options, host, backend, unused)
    except UsageError as error:
        if not leads:
            time.sleep(_LEAD_SECONDS)  # torchrun ends all ranks when the first has left
        say(str(error))
        return 2


def _backend(name: str) -> tuple[str, str]:
    """gloo or neuron, and why this machine's NeuronCores are not used, "" if they are.

    Raises:
        UsageError: another backend, or one that this machine cannot run.
    """
    if name in _OF_THEIR_OWN:
        raise UsageError(
            f"--backend is {name}, whose ranks are threads; torchrun's are processes: gloo or neuron. "
            f"`tp-harness verify --backend {name}` needs no torchrun."
        )
    if name not in _BACKENDS:
        raise UnknownNameError("backend", name, _BACKENDS)
    if name == "auto":
        return automatic(os.environ)
    if name == "gloo":
        return name, "--backend is gloo" if on_neuron(os.environ) else ""
    reason = neuron_reason(read_machine(), read_python_packages(), os.environ)
    if reason:
        raise UsageError(f"backend neuron cannot run here: {reason}. `tp-harness doctor` says more.")
    return name, ""


def _prepare(host: Host) -> None:
    """Have this process run in the environment of a rank on NeuronCores.

    Raises:
        UsageError: the ranks are on several hosts, or as `enter_environment`.
    """
    if host.count > 1:
        raise UsageError(
            f"backend neuron runs on one host and torchrun has {host.count}: start it on each of them with --nnodes 1."
        )
    machine = read_machine() if on_neuron(os.environ) else Machine()
    enter_environment(machine, host.ranks, option="--nproc-per-node")


def _chosen(backend: str, unused: str, host: Host) -> str:
    """A sentence on where this run's ranks are."""
    ranks = f"{host.count * host.ranks} process{'es' if host.count * host.ranks > 1 else ''}"
    if backend == "gloo":
        left = f"; this machine's NeuronCores are not used: {unused}" if unused else ""
        return f"backend gloo, {ranks} on CPUs{left}."
    if os.environ["PJRT_DEVICE"] == "CPU":
        return f"backend neuron, {ranks} with PJRT_DEVICE=CPU: no NeuronCore is touched."
    return f"backend neuron, {ranks} on NeuronCores {os.environ['NEURON_RT_VISIBLE_CORES']}."


def _be_rank(options: Resolved, host: Host, backend: str, unused: str) -> int:
    from ..verification.torchrun_flow import Flow  # noqa: PLC0415  (imports torch, which a usage error needs not)

    return Flow(options, host, say).run(backend, unused)


def _arguments() -> argparse.Namespace:
    parser = Parser(prog="launch/tp_test.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_verify_options(parser)
    arguments = parser.parse_args()
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        raise UsageError(f"{', '.join(missing)} not set; start it as `torchrun --nproc-per-node N launch/tp_test.py`.")
    if arguments.tp is not None:
        raise UsageError(f"--tp is {arguments.tp}; under torchrun the degree is --nproc-per-node.")
    if arguments.resume is not None:
        raise UsageError("--resume needs no torchrun: `tp-harness verify --resume DIR` goes on with such a run too.")
    arguments.tp = os.environ["LOCAL_WORLD_SIZE"]
    return arguments


def say(text: str) -> None:
    """Print one line for people on standard error."""
    print(f"tp_test: {printable(text)}", file=sys.stderr, flush=True)


def script() -> NoReturn:
    """Run `main` and exit without destroying the process group, which would wait for ranks that are gone."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
