"""A CPU interpreter of documented NKI instruction semantics, usable alone: `simulate(kernel)(*arrays)`.

It runs kernels written in the subset of nki.isa and nki.language that gpt-oss needs, on NumPy arrays, and
raises `NkiValidationError` when a kernel breaks a documented rule of NeuronCore-v2 (gen2, default) or -v3
(gen3).

Not covered: the functional layer of nki.language, on-chip loops and registers, indirect addressing,
collectives, fp8 and mx types, scheduling hazards between engines, instruction timing, and the error of the
polynomials with which Scalar Engine approximates its functions.
"""

from __future__ import annotations

from tp_harness.kernels.nki_interpreter import isa, language
from tp_harness.kernels.nki_interpreter.accounting import Usage
from tp_harness.kernels.nki_interpreter.errors import NkiValidationError
from tp_harness.kernels.nki_interpreter.rules import RULES
from tp_harness.kernels.nki_interpreter.simulate import Kernel, Run, Simulation, jit, simulate

__all__ = [
    "RULES",
    "Kernel",
    "NkiValidationError",
    "Run",
    "Simulation",
    "Usage",
    "isa",
    "jit",
    "language",
    "simulate",
]
