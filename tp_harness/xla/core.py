"""The group and the device of a rank that is a process with a core of its own, as on Trn1."""

from __future__ import annotations

import os
import time

import torch_xla.core.xla_model as xm
import torch_xla.runtime as xr

from ..neuron.compile_cache import cache_root, compiled_programs
from .device import XLADevice
from .group import XLAGroup


class CoreGroup(XLAGroup):
    """All cores as one replica group, one process per core."""

    cpu_seconds = staticmethod(time.process_time)


class CoreDevice(XLADevice):
    """One rank's core.

    Every process asks for every program, but the ranks share one persistent cache. So rank 0 counts the entries of
    that cache for all ranks. The programs of another job that uses the same cache meanwhile would be counted too.
    """

    def compiled(self) -> int:
        """The number of programs in the ranks' cache, on rank 0, and 0 on others; without Neuron, as `XLADevice`."""
        if xr.device_type() != "NEURON":
            return super().compiled()
        return len(compiled_programs(cache_root(os.environ))) if self.rank == 0 else 0

    @property
    def name(self) -> str:
        """The name of this rank's place in reports: `NeuronCore 3 (NC_v2)`."""
        if xr.device_type() != "NEURON":
            return f"process {self.rank} with PJRT_DEVICE={xr.device_type()}"
        return f"NeuronCore {os.environ.get('NEURON_RT_VISIBLE_CORES', '?')} ({xm.xla_device_kind()})"
