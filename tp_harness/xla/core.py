"""A rank that is a process with a device of its own, as on NeuronCores."""

from __future__ import annotations

import os
import time

import torch_xla.core.xla_model as xm
import torch_xla.runtime as xr

from ..neuron.compile_cache import cache_root, compiled_programs
from .device import XLADevice
from .group import XLAGroup


class CoreGroup(XLAGroup):
    """All cores as one replica group, in a process per core."""

    cpu_seconds = staticmethod(time.process_time)


class CoreDevice(XLADevice):
    """One rank's core.

    Every process asks for every program, but the ranks share one persistent cache. So what was really compiled are
    the entries that are new in it, and rank 0 counts them for all. Another job that fills the same cache at the same
    moment would be counted too.
    """

    def compiled(self) -> int:
        """How many programs all ranks together have compiled so far."""
        if xr.device_type() != "NEURON":
            return super().compiled()
        return len(compiled_programs(cache_root(os.environ))) if self.rank == 0 else 0

    @property
    def name(self) -> str:
        """Where this rank runs, for the record: `NeuronCore 3 (NC_v2)`."""
        if xr.device_type() != "NEURON":
            return f"process {self.rank} with PJRT_DEVICE={xr.device_type()}"
        return f"NeuronCore {os.environ.get('NEURON_RT_VISIBLE_CORES', '?')} ({xm.xla_device_kind()})"
