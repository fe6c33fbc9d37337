"""Which NeuronCores a job gets, and its environment there. No torch.

A rank that a user's torchrun started has the user's environment, while the Neuron runtime, glibc and OpenMP want
theirs when a process starts. `enter_environment` starts such a process anew, under the same process id, before it has
imported anything that reads them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping

from ..errors import UsageError
from .devices import Machine
from .environment import TRN1_CORES, check_block, core_range, neuron_environment, visible_cores

ENTERED = "TP_HARNESS_ENVIRONMENT"  # set for a process that was started anew


def job_environment(user: Mapping[str, str], machine: Machine, degree: int, *, option: str = "--tp") -> dict[str, str]:
    """The environment of a job of `degree` ranks on the first cores that are free.

    Args:
        user: the environment the user started with.
        machine: its cores and who holds them; without any device, a whole trn1.32xlarge is assumed.
        degree: number of ranks.
        option: the option by which the user chose the degree, for messages.

    Raises:
        UsageError: there are no such cores, or the user's environment contradicts a verification.
    """
    check_block(0, degree, len(machine.cores) or TRN1_CORES, option=option)
    first = free_block(machine, user.get("NEURON_RT_VISIBLE_CORES", ""), degree)
    highest = max(machine.cores, default=TRN1_CORES - 1)  # a container's cores may not begin at 0
    return neuron_environment(user, first_core=first, degree=degree, cores=highest + 1)


def free_block(machine: Machine, visible: str, degree: int) -> int:
    """The first core of the first aligned block of `degree` cores that may be used and that nobody holds.

    Args:
        machine: its cores and who holds them; without any device, a whole trn1.32xlarge is assumed.
        visible: NEURON_RT_VISIBLE_CORES as the user set it, "" for all.
        degree: how many cores.

    Raises:
        UsageError: there is no such block; the message says whether it is held, and by whom.
    """
    cores: Collection[int] = machine.cores or range(TRN1_CORES)
    allowed = set(cores) & set(visible_cores(visible)) if visible.strip() else set(cores)
    blocks = [range(start, start + degree) for start in range(0, max(cores) + 1, degree)]
    possible = [block for block in blocks if allowed.issuperset(block)]
    if not possible:
        raise UsageError(
            f"tp {degree} needs {degree} NeuronCores from a multiple of {degree} on; NEURON_RT_VISIBLE_CORES is "
            f"{visible!r} on a machine with cores {core_range(min(cores), len(cores))}."
        )
    for block in possible:
        if not machine.busy.keys() & set(block):
            return block.start
    core, holders = next((core, machine.busy[core]) for core in possible[0] if core in machine.busy)
    raise UsageError(
        f"every block of {degree} NeuronCores has one in use: core {core} is held by process {holders[0].pid} "
        f"({holders[0].command}); end it, or wait."
    )


def enter_environment(machine: Machine, degree: int, *, option: str) -> None:
    """Give this process the environment of a job's rank: return if it has it, else start the process anew in it.

    Raises:
        UsageError: as `job_environment`; or a variable is wrong again, because something sets it as Python starts.
        RuntimeError: torch_xla has been imported, and has read the environment.
    """
    if "torch_xla" in sys.modules:
        raise RuntimeError("torch_xla has been imported, and has read the environment")
    wanted = job_environment(os.environ, machine, degree, option=option)
    changed = sorted(name for name in {*wanted, *os.environ} if wanted.get(name) != os.environ.get(name))
    if changed and ENTERED in os.environ:
        name = changed[0]
        raise UsageError(
            f"{name} is {os.environ.get(name)!r} where a rank needs {wanted.get(name)!r}, also after it was set: "
            "something that runs when Python starts, such as a sitecustomize.py, sets it; take it out there."
        )
    if changed:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**wanted, ENTERED: "1"})
