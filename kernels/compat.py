"""Where `nki` comes from: AWS's wheel when it is real, otherwise this project's interpreter.

PyPI holds a stub of the name `nki` without instructions; it is recognised (no `isa`, no `simulate`) and
never used. Kernels import `nki`, `nl` and `nisa` from here and are the same source in every mode.

TP_HARNESS_NKI chooses a mode: `interpreter`, `simulate` (AWS's nki.simulate) or `device` (a NeuronCore).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar, cast

from tp_harness.kernels import nki_interpreter

# A tensor and an element type of whichever toolchain runs: AWS's or ours, chosen at run time.
Tensor: TypeAlias = Any
DType: TypeAlias = Any

Function = TypeVar("Function", bound=Callable[..., Any])

MODES = ("interpreter", "simulate", "device")
_VARIABLE = "TP_HARNESS_NKI"
_NEEDED = {"isa": ("nc_matmul", "dma_copy", "activation"), "language": ("ndarray", "tile_size")}


class Nki(Protocol):
    """What kernels and their callers use of the top-level module."""

    def jit(self, function: Function, /) -> Function:
        """Mark a function as a kernel."""

    def simulate(self, kernel: Callable[..., Any], /) -> Callable[..., Any]:
        """Make a kernel run on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """The modules kernels are written against, and how they are run."""

    nki: ModuleType
    nl: ModuleType
    nisa: ModuleType
    mode: str
    reason: str


def missing_parts(nki: ModuleType) -> list[str]:
    """Name what a module called `nki` lacks; a real one lacks nothing, the PyPI stub everything."""
    missing = [] if callable(getattr(nki, "simulate", None)) else ["simulate"]
    for part, functions in _NEEDED.items():
        try:
            module = importlib.import_module(f"{nki.__name__}.{part}")
        except ImportError:
            missing.append(part)
            continue
        missing += [f"{part}.{name}" for name in functions if not hasattr(module, name)]
    return missing


def choose(wanted: str | None = None) -> Toolchain:
    """Return AWS's toolchain if a real one is installed, else the interpreter.

    Args:
        wanted: one of MODES; None or "" for simulate where AWS's wheel is, else the interpreter.

    Raises:
        ValueError: no mode has that name.
        ImportError: a mode that needs AWS's wheel is wanted, which is not installed.
    """
    if wanted not in (None, "", *MODES):
        raise ValueError(f"{_VARIABLE}={wanted!r}: choose from {', '.join(MODES)}")
    if wanted == "interpreter":
        return _interpreter("asked for")
    try:
        found = importlib.import_module("nki")
    except ImportError:
        return _without_wheel(wanted, "AWS's nki wheel is not installed")
    missing = missing_parts(found)
    if missing:
        reason = f"the installed nki is PyPI's stub, not AWS's wheel (no {', '.join(missing)})"
        return _without_wheel(wanted, reason)
    return Toolchain(
        nki=found,
        nl=importlib.import_module("nki.language"),
        nisa=importlib.import_module("nki.isa"),
        mode=wanted or "simulate",
        reason=f"AWS's nki {getattr(found, '__version__', 'of unknown version')}",
    )


def _without_wheel(wanted: str | None, reason: str) -> Toolchain:
    if wanted in ("simulate", "device"):
        raise ImportError(f"{_VARIABLE}={wanted}: {reason}; install it from AWS's Neuron package index")
    return _interpreter(reason)


def _interpreter(reason: str) -> Toolchain:
    return Toolchain(
        nki=nki_interpreter,
        nl=nki_interpreter.language,
        nisa=nki_interpreter.isa,
        mode="interpreter",
        reason=reason,
    )


TOOLCHAIN = choose(os.environ.get(_VARIABLE))
nki = cast(Nki, TOOLCHAIN.nki)
nl: Any = TOOLCHAIN.nl
nisa: Any = TOOLCHAIN.nisa


def executable(kernel: Callable[..., Any], target: str = "trn1") -> Callable[..., Any]:
    """Return what runs `kernel` on host arrays (interpreter, nki.simulate) or on device tensors."""
    if TOOLCHAIN.mode == "device":
        return kernel
    if TOOLCHAIN.mode == "interpreter":
        return nki_interpreter.simulate(kernel, target=target)
    # nki.simulate takes its target from the environment only, and would assume trn3.
    os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", target)
    simulated: Callable[..., Any] = nki.simulate(kernel)
    return simulated
