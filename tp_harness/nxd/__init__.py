"""neuronx-distributed (NxD), where it is installed, on CPU ranks: its layers inside cases and built modules.

NxD is imported inside functions alone, so that nothing needs it until it is asked for. testing/neuron_build.py has the
way through its ModelBuilder, onto NeuronCores.

Sources: neuronx_distributed 0.17 and 0.18 (parallel_layers/*, utils).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from ..errors import UsageError
from ..libraries.torch_private import stands_in
from ..neuron.sdk_packages import AWS_INDEX
from ..parallel.group import current_group

ABSENT = (
    "neuronx-distributed is not installed (or only its placeholder from the public index): install the version of your "
    f"SDK from {AWS_INDEX}."
)
CPU_MODE = "NXD_CPU_MODE"


def require_installed() -> None:
    """Make sure that NxD is there, without importing it, which would import torch_xla.

    Raises:
        UsageError: it is not; one sentence with the next step.
    """
    if importlib.util.find_spec("neuronx_distributed") is None:
        raise UsageError(ABSENT)


def require() -> None:
    """Make sure that NxD can be imported.

    Raises:
        UsageError: it cannot; one sentence with the next step.
    """
    require_installed()
    try:
        import neuronx_distributed.parallel_layers.parallel_state  # noqa: F401, PLC0415
    except ImportError as error:  # without torch_neuronx or neuronxcc it does not import
        raise UsageError(f"neuronx-distributed is installed but cannot be imported: {error}.") from None


def parallel(factory: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Wrap a sharded module made of NxD's parallel layers for a Case: `Case(sharded=nxd.parallel(MyModule), ...)`.

    The module is made with NxD in its CPU mode and all ranks of the run as one tensor-parallel group.

    Raises:
        UsageError: NxD cannot be imported, or the ranks are not processes on CPUs.
    """

    def make() -> nn.Module:
        require()
        with _cpu_mode():
            _join()
            return factory()

    return make


def join_if_used() -> None:
    """Make this process's group NxD's too, if NxD has been imported, as by a module made of its layers."""
    if "neuronx_distributed.parallel_layers" in sys.modules:
        with _cpu_mode():
            _join()


def _join() -> None:
    from neuronx_distributed.parallel_layers import parallel_state  # noqa: PLC0415

    group = current_group()
    if not group.timed:
        raise UsageError("modules of neuronx-distributed's layers run on backend gloo, in its CPU mode.")
    if parallel_state.model_parallel_is_initialized():  # by an earlier case, perhaps for another degree
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=group.size)


@contextmanager
def _cpu_mode() -> Iterator[None]:
    """NxD's CPU mode, for good in a rank; where torch's default group only stands in for ranks, only meanwhile."""
    before = os.environ.get(CPU_MODE)
    os.environ[CPU_MODE] = "1"
    try:
        yield
    finally:
        if stands_in():
            os.environ.pop(CPU_MODE)
            os.environ.update({} if before is None else {CPU_MODE: before})
