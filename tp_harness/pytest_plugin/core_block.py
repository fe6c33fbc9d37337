"""A block of cores as a test sees it: its numbers, and the environment of a job on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..neuron.environment import BASE_PORT, core_range, neuron_environment
from .settings import Settings


@dataclass(frozen=True, kw_only=True)
class CoreBlock:
    """Cores `first` to `first + count - 1`."""

    first: int
    count: int
    settings: Settings = field(repr=False)

    @property
    def cores(self) -> range:
        """The numbers of the cores."""
        return range(self.first, self.first + self.count)

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of a job on the cores, for a subprocess: this process's own as it is now, and theirs.

        Raises:
            UsageError: on Neuron, a variable that contradicts a verification.
        """
        user = {**os.environ, "NEURON_RT_VISIBLE_CORES": str(self)}  # which may be those of this process
        return block_environment(user, self.first, self.count, self.settings)

    def __str__(self) -> str:
        return core_range(self.first, self.count)


def block_environment(user: Mapping[str, str], first: int, count: int, settings: Settings) -> dict[str, str]:
    """The environment of a job on a block; on virtual cores, one that says the same and touches no device.

    Args:
        user: the environment that the job would have without a block.
        first, count: the block.
        settings: whether it is of NeuronCores, and how many there are.

    Raises:
        UsageError: on Neuron, a variable of the user's that contradicts a verification.
    """
    if settings.neuron:
        return neuron_environment(user, first_core=first, degree=count, cores=settings.cores[-1] + 1)
    return {
        "OMP_NUM_THREADS": "1",
        "PJRT_DEVICE": "CPU",
        **user,
        "NEURON_RT_VISIBLE_CORES": core_range(first, count),
        "NEURON_RT_ROOT_COMM_ID": f"127.0.0.1:{BASE_PORT + first}",
    }
