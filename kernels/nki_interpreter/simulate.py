"""simulate(kernel)(*arrays): run a kernel on host arrays, as nki.simulate documents it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import numpy as np
from tp_harness.kernels.nki_interpreter import dtypes, session
from tp_harness.kernels.nki_interpreter.accounting import Usage
from tp_harness.kernels.nki_interpreter.memory import Array, MemoryRegion, Storage, Written
from tp_harness.kernels.nki_interpreter.rules import violate
from tp_harness.kernels.nki_interpreter.targets import target_named
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor

_TARGET_VARIABLE = "NEURON_PLATFORM_TARGET_OVERRIDE"


class Kernel:
    """What `jit` makes: a function that runs inside a simulation only."""

    def __init__(self, function: Callable[..., Any]) -> None:
        """Wrap the function a kernel author wrote."""
        self.function = function
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a part of the running kernel; there is no device here to run on."""
        if session.current() is None:
            detail = "there is no NeuronCore here; run simulate(kernel)(*arrays)"
            violate("outside-kernel", instruction=self.function.__name__, operand="-", detail=detail)
        return self.function(*args, **kwargs)


def jit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Mark a function as a kernel; options are for AWS's compiler and are ignored."""
    return Kernel if function is None else Kernel(function)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The arrays a kernel returned and what it took."""

    outputs: Any
    usage: Usage


class Simulation:
    """A kernel bound to a target; calling it returns the outputs, `run` also the usage."""

    def __init__(self, kernel: Callable[..., Any], target: str | None, unwritten_reads: str) -> None:
        """Resolve the target: the argument, else the documented environment variable, else gen2."""
        if unwritten_reads not in ("raise", "nan"):
            raise ValueError(f"unwritten_reads is 'raise' or 'nan', not {unwritten_reads!r}")
        self._function = kernel.function if isinstance(kernel, Kernel) else kernel
        self._target = target_named(target or os.environ.get(_TARGET_VARIABLE) or "gen2")
        self._unwritten_reads = unwritten_reads

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the kernel and return its outputs as NumPy arrays."""
        return self.run(*args, **kwargs).outputs

    def run(self, *args: Any, **kwargs: Any) -> Run:
        """Run the kernel and return outputs and usage."""
        machine = session.Simulation(self._target, unwritten_reads=self._unwritten_reads)
        # Overflow to infinity is what the engines do, too; NumPy need not warn of it.
        with session.running(machine) as running, np.errstate(all="ignore"):
            wrapped = [_to_device(value) for value in args]
            result = self._function(*wrapped, **{key: _to_device(value) for key, value in kwargs.items()})
            outputs = tuple(map(_to_host, result)) if isinstance(result, tuple | list) else _to_host(result)
            return Run(outputs=outputs, usage=running.accounting.usage())


def simulate(kernel: Callable[..., Any], *, target: str | None = None, unwritten_reads: str = "raise") -> Simulation:
    """Return a callable that runs `kernel` on NumPy arrays.

    Args:
        kernel: a function, with or without `jit`.
        target: gen2 (default) or gen3; else NEURON_PLATFORM_TARGET_OVERRIDE.
        unwritten_reads: "raise" names the instruction that reads what nothing was written to;
            "nan" lets the NaN through, as nki.simulate documents it.
    """
    return Simulation(kernel, target, unwritten_reads)


def _to_device(value: Any) -> Any:
    """Put an array into HBM; numbers pass through."""
    if not isinstance(value, np.ndarray):
        return value
    dtype = dtypes.of_array(value)
    # Device memory is contiguous: a strided host array is copied, and a kernel's writes stay in the copy.
    value = np.ascontiguousarray(value) if value.ndim else value.reshape(1)
    return NkiTensor.whole(Storage(value, dtype, MemoryRegion.private_hbm, "", Written.BY_ENGINE))


def _to_host(value: Any) -> Array:
    """Check that a result is what a kernel may return, and take its array."""
    if not isinstance(value, NkiTensor) or value.buffer is not MemoryRegion.shared_hbm:
        violate("output-buffer", instruction="return", operand="output", detail=f"got {value!r:.60}")
    running = session.current()
    if running is not None and running.raise_on_unwritten and not value.all_written():
        violate("output-unwritten", instruction="return", operand=value.name or "output", detail=f"{value!r}")
    return value.values
