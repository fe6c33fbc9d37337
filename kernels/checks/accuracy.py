"""How far a kernel is from its twin in float64, and over which shapes and inputs that is measured.

The error of an output is max |kernel - oracle| / max |oracle|, where the oracle is the twin run in float64 on
the very same inputs. bfloat16 errors are also given in units of bfloat16's spacing at max |oracle|.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import frexp, isnan
from typing import Any

import torch
from tp_harness.kernels import compat, registry
from tp_harness.kernels.call import bind, to_numpy, to_torch
from tp_harness.kernels.checks import inputs
from tp_harness.kernels.nki_interpreter import Usage, simulate
from tp_harness.kernels.registry import KernelSpec
from tp_harness.kernels.router_torch import choose_torch

from tp_harness.config.divisibility import TRN1_DEGREES
from tp_harness.models import presets

# float32: what the task promises, relative to max |y|. Measured errors are 20 to 100 times smaller.
FLOAT32_LIMIT = 2e-5
# bfloat16: an output is rounded once (half a unit); operands of second matmuls (probabilities, activations)
# once before, which a sum of few terms does not average out. Measured: up to 0.8 units.
BFLOAT16_ULPS = 1.5


@dataclass(frozen=True, kw_only=True)
class AccuracyCase:
    """A kernel at the sizes of one rank, with the tokens and the type of its inputs."""

    kernel: str
    use: str
    model: str  # a preset
    tp: int
    tokens: int
    dtype: torch.dtype = torch.float32
    seed: int = 0
    changes: tuple[tuple[str, Any], ...] = ()  # arguments or sizes that differ from the model's
    shift: float = 0.0  # added to the gates' bias: gates far below zero, where clamping them would show
    boost: float = 1.0  # multiplies x or q: logits and scores for which exp overflows without its shift

    @property
    def id(self) -> str:
        """Return the name a test report shows."""
        kind = "bf16" if self.dtype is torch.bfloat16 else "fp32"
        changed = "".join(f"-{key}{value}" for key, value in self.changes)
        changed += f"-boost{self.boost:g}" if self.boost != 1.0 else ""
        changed += f"-shift{self.shift:g}" if self.shift else ""
        return f"{self.kernel}-{self.use}-{self.model}-tp{self.tp}-T{self.tokens}-{kind}{changed}"

    def arguments(self) -> inputs.Inputs:
        """Draw the inputs."""
        sizes = dict(registry.shapes(self.kernel, presets()[self.model], self.tp, self.tokens)[self.use])
        changes = dict(self.changes)
        sizes.update({key: changes.pop(key) for key in list(changes) if key in sizes})
        made = inputs.make(self.kernel, sizes, presets()[self.model], seed=self.seed, dtype=self.dtype)
        if self.shift:
            made["mlp1_bias"][:, 0::2] += self.shift
        first = next(iter(made))
        return {**made, first: made[first] * self.boost, **changes}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run of a case showed: the worst output's error, relative and in bfloat16 units; seconds; memory."""

    case: AccuracyCase
    error: float
    ulps: float
    seconds: float
    cpu_seconds: float  # what limits are held against: a shared machine's wall time measures its other users
    usage: Usage | None


def measure(case: AccuracyCase) -> Measured:
    """Run a case in the interpreter and compare every output with the oracle."""
    item = registry.spec(case.kernel)
    arguments = bind(item, **case.arguments())
    arrays = {key: to_numpy(v) if isinstance(v, torch.Tensor) else v for key, v in arguments.items()}
    wall, cpu = time.perf_counter(), time.process_time()
    outputs, usage = execute(item.kernel, arrays)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    actual = tuple(to_torch(array) for array in outputs)
    errors = [relative_error(a, e) for a, e in zip(actual, oracle(item, arguments, actual), strict=True)]
    error = max(item[0] for item in errors)
    return Measured(
        case=case,
        error=error,
        ulps=max(item[1] for item in errors),
        seconds=wall,
        cpu_seconds=cpu,
        usage=usage,
    )


def execute(kernel: Callable[..., Any], arrays: inputs.Inputs) -> tuple[tuple[Any, ...], Usage | None]:
    """Run a kernel by whichever toolchain is in use; only the interpreter reports usage."""
    if compat.TOOLCHAIN.mode == "interpreter":
        run = simulate(kernel).run(**arrays)
        result, usage = run.outputs, run.usage
    else:
        result, usage = compat.executable(kernel)(**arrays), None
    return (result if isinstance(result, tuple) else (result,)), usage


def oracle(item: KernelSpec, arguments: inputs.Inputs, actual: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Run the twin in float64; the router's choice is checked against its own (rounded) logits.

    Two roundings of nearly equal logits may differ, and then another expert is a right answer.

    Args:
        item, arguments: the kernel, and what it was called with.
        actual: what it returned; of the router the fourth, logits (T, E), is looked at.

    Returns:
        The expected outputs, each of the shape of the kernel's, in float64; expert numbers in int64.
    """
    wide = {
        key: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for key, v in arguments.items()
    }
    expected = item.twin(**wide)
    if item.name == "router":
        return (*choose_torch(actual[3].double(), arguments["top_k"]), expected[3])
    return expected if isinstance(expected, tuple) else (expected,)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Return max |actual - expected| / max |expected|, and the same in bfloat16 units at max |expected|.

    Both tensors have any shape and dtype. Of whole numbers, such as those of experts, both are 0 if all are equal, else
    infinite; infinite as well where shapes differ, there are no elements, a NaN occurs, or all of `expected` is 0.
    """
    if actual.shape != expected.shape or actual.numel() == 0:
        return float("inf"), float("inf")
    if not expected.is_floating_point():
        return (0.0, 0.0) if torch.equal(actual, expected) else (float("inf"), float("inf"))
    largest = float(expected.double().abs().max())
    worst = float((actual.double() - expected.double()).abs().max())
    if largest == 0.0 or isnan(worst):  # an oracle of zeros or a NaN proves nothing
        return float("inf"), float("inf")
    unit = 2.0 ** (frexp(largest)[1] - 8)
    return worst / largest, worst / unit


def uses(name: str) -> tuple[str, ...]:
    """Return the uses of a kernel in a model."""
    return tuple(registry.shapes(name, presets()["tiny"], 1, 1))


def tiny_cases(dtype: torch.dtype) -> list[AccuracyCase]:
    """Return every kernel at every degree of tiny; token counts around a tile: 127, 129, 200, 257."""
    tokens = {1: 129, 2: 127, 8: 200, 32: 257}
    return [
        AccuracyCase(kernel=name, use=use, model="tiny", tp=tp, tokens=tokens[tp], dtype=dtype)
        for name in registry.names()
        for use in uses(name)
        for tp in TRN1_DEGREES
    ]


def edge_cases(dtype: torch.dtype) -> list[AccuracyCase]:
    """Return tails, window edges, ties, sinks and clamps, at tp 8 of tiny."""
    found = [
        AccuracyCase(kernel=name, use=use, model="tiny", tp=8, tokens=tokens, dtype=dtype, seed=tokens)
        for name in registry.names()
        for use in uses(name)
        for tokens in (1, 127, 128, 129, 257)
    ]
    attention = [(length, window) for length in (15, 16, 17, 130) for window in (0, 1, 16, 129)]
    attention += [(300, 128), (300, 129), (270, 140)]
    found += [
        AccuracyCase(
            kernel="attention",
            use="sdpa",
            model="tiny",
            tp=8,
            tokens=length,
            dtype=dtype,
            seed=length,
            changes=(("window", window), ("B", 2)),
        )
        for length, window in attention
    ]
    for limit in (0.5, 100.0):
        found.append(_changed("expert_mlp", "experts", 33, dtype, limit=limit))
    for share in (0.0, 1.0):
        found.append(_changed("expert_mlp", "experts", 33, dtype, bias_share=share))
    for count in (1, 2, 8):
        found.append(_changed("router", "gate", 33, dtype, top_k=count))
    found.append(_changed("router", "gate", 33, dtype, E=128))
    found.append(AccuracyCase(kernel="attention", use="sdpa", model="tiny", tp=8, tokens=33, dtype=dtype, boost=40.0))
    found.append(AccuracyCase(kernel="router", use="gate", model="tiny", tp=8, tokens=33, dtype=dtype, boost=40.0))
    found.append(shifted_gates(dtype))
    return found


def shifted_gates(dtype: torch.dtype) -> AccuracyCase:
    """Return a case whose gates are all near -40: the output is tiny, unless the gate is clamped below, too.

    That mistake is the weakest one known; among ordinary gates it is 4e-6 of max |y| and passes.
    """
    silent = (("bias_share", 0.0),)
    return AccuracyCase(
        kernel="expert_mlp",
        use="experts",
        model="tiny",
        tp=8,
        tokens=33,
        dtype=dtype,
        shift=-40.0,
        changes=silent,
    )


def _changed(kernel: str, use: str, tokens: int, dtype: torch.dtype, **changes: Any) -> AccuracyCase:
    return AccuracyCase(
        kernel=kernel,
        use=use,
        model="tiny",
        tp=8,
        tokens=tokens,
        dtype=dtype,
        seed=3,
        changes=tuple(changes.items()),
    )


def limit_cases() -> list[AccuracyCase]:
    """Return every kernel at the largest sizes its docstring names, where memory is tightest."""
    sizes: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
        ("rmsnorm", "norm", 129, {"H": 6144}),
        ("rope", "queries", 129, {"N": 512}),
        ("attention", "sdpa", 8192, {"Q": 1, "G": 1, "D": 128, "window": 0}),
        ("router", "gate", 129, {"H": 4096, "E": 512}),
        ("expert_mlp", "experts", 257, {"H": 3072, "I": 3072, "2I": 6144, "E": 1}),
        ("linear", "qkv", 257, {"K": 5120, "N": 300}),
        ("linear_no_bias", "out", 257, {"K": 5120, "N": 300}),
    )
    return [_changed(kernel, use, tokens, torch.float32, **more) for kernel, use, tokens, more in sizes]


_FEWER: dict[str, tuple[tuple[str, int], ...]] = {"experts": (("E", 4),), "unembedding": (("N", 20_000),)}


def full_size_cases(dtype: torch.dtype, *degrees: int, tokens: int = 0) -> list[AccuracyCase]:
    """Return every kernel at the sizes of a rank of gpt-oss-20b.

    At tp 1 and 2 with 4 of the 32 experts and 20,000 vocabulary rows: all would take 3.2 and 2.3 GB in
    float32, and more in the oracle; each expert, and each 256 rows, is the same code. Without `tokens`,
    attention has 300 (more than two windows) and the others 128.
    """
    found = []
    for name in registry.names():
        for use in uses(name):
            for tp in degrees:
                changes = _FEWER.get(use, ()) if tp < 8 else ()
                count = tokens or (300 if name == "attention" else 128)
                found.append(
                    AccuracyCase(
                        kernel=name,
                        use=use,
                        model="gpt-oss-20b",
                        tp=tp,
                        tokens=count,
                        dtype=dtype,
                        changes=changes,
                    )
                )
    return found
