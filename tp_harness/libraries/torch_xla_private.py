"""What is taken from torch-xla beside its documented interface. Imports torch-xla when a function is called.

The environment has to be right by then. A device has torch's name, `xla:0`. Tensors are of any shape and dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from . import Library

XLA = Library(name="torch-xla", file="torch_xla_private.py", seen=("2.9.0",))

EXECUTION_REFUSED = "Unexpected execution happens"  # is in torch-xla's message where `allow_execution(False)` holds


def run_thread_per_device(rank: Callable[[], None]) -> None:
    """Call `rank` in a thread for each device of this process, and wait for all."""
    run = XLA.part("torch_xla._internal.pjrt:_run_thread_per_device")
    run(0, 1, rank, XLA.part("torch_xla._internal.pjrt:initialize_multiprocess"))


def allow_execution(allowed: bool) -> None:
    """Allow this process to run programs; while it may not, asking for a tensor's value raises."""
    XLA.part("torch_xla:_XLAC._set_allow_execution")(allowed)


def forget_collectives(device: str) -> None:
    """Make the next trace independent of the collectives of the one before."""
    XLA.part("torch_xla:_XLAC._set_all_reduce_token")(device, None)


@contextmanager
def python_lines_in_programs() -> Iterator[None]:
    """Record in the programs that this process traces in the `with` block which Python lines they come from."""
    switch = XLA.part("torch_xla:_XLAC._set_ir_debug")
    switch(True)
    try:
        yield
    finally:
        switch(False)


def graph_hash(tensors: Sequence[torch.Tensor]) -> str:
    """The hash, in hexadecimal, of the graph that would compute these tensors (any shape)."""
    hashed: bytes = XLA.part("torch_xla:_XLAC._get_graph_hash")(tensors)
    return hashed.hex()


def hlo_text(tensors: Sequence[torch.Tensor]) -> str:
    """The program that would compute these tensors (any shape), as HLO text."""
    text: str = XLA.part("torch_xla:_XLAC._get_xla_tensors_hlo")(tensors)
    return text


def start_program(tensors: Sequence[torch.Tensor], device: str) -> None:
    """Compile and start the program that computes these tensors (any shape), and do not wait for it."""
    XLA.part("torch_xla:_XLAC._xla_sync_multi")(tensors, [device], wait=False, sync_xla_data=True)


def wait_for_programs(device: str) -> None:
    """Return when all that was started on the device has ended."""
    devices = XLA.part("torch_xla:_XLAC._xla_real_devices")([device])
    XLA.part("torch_xla:_XLAC._xla_wait_device_ops")(devices)
