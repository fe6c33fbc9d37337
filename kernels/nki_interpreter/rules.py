"""Every rule the interpreter enforces: a name, one sentence, and where the documentation has it.

`violate` is the only way to raise; a test holds that every rule here has a case that keeps it and one that
breaks it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from tp_harness.kernels.nki_interpreter import session
from tp_harness.kernels.nki_interpreter.errors import NkiValidationError


@dataclass(frozen=True)
class Rule:
    """One documented rule; `source` names the page or docstring section that states it."""

    sentence: str
    source: str


_ARCH = "architecture guide of Trainium/Inferentia2"
_GUIDE = "language guide, Tensor Values"
_OURS = "this interpreter (hardware would go on with arbitrary values)"

RULES: dict[str, Rule] = {
    # Memory and tiles
    "tile-rank": Rule("an on-chip tile has a partition dimension and at least one free dimension", _GUIDE),
    "tile-shape": Rule("every dimension is a positive int", "nl.ndarray"),
    "partition-limit": Rule("a tile has at most 128 partitions", _ARCH),
    "sbuf-capacity": Rule("live SBUF tiles fit the bytes of one partition (gen2: 192 KiB)", _ARCH),
    "psum-capacity": Rule("live PSUM tiles fit 8 banks of 2 KiB per partition", _ARCH),
    "start-partition": Rule(
        "more than 64 partitions start at 0; 33 to 64 at 0 or 64; up to 32 at 0, 32, 64 or 96", _ARCH
    ),
    "free-dims": Rule("an operand has at most four free dimensions", _ARCH),
    "partition-stride": Rule("partitions cannot be strided", _ARCH),
    "index-bounds": Rule("an index or slice lies inside the tensor and selects something", "NkiTensor.slice"),
    "view-partition": Rule("a view leaves the partition dimension of an on-chip tensor as it is", "NkiTensor"),
    "view-layout": Rule("a view keeps the number of elements and needs no copy of the data", "NkiTensor.reshape"),
    "view-broadcast": Rule("only a dimension of size 1 is broadcast", "NkiTensor.broadcast"),
    "write-broadcast": Rule("a destination's elements are distinct memory", "NkiTensor.broadcast"),
    "read-before-write": Rule("what is read has been written before", _OURS),
    "output-buffer": Rule("a kernel returns tensors in nl.shared_hbm", "language guide"),
    "output-unwritten": Rule("every element of a returned tensor has been written", _OURS),
    "outside-kernel": Rule("instructions run inside simulate(kernel)", "nki.simulate"),
    # Any instruction
    "operand-type": Rule("this operand is a tile", "the instruction's parameters"),
    "memory-space": Rule("this operand is in a memory the instruction reaches", "Memory types"),
    "gpsimd-psum": Rule("GpSimd Engine cannot access PSUM", _ARCH),
    "two-psum-inputs": Rule("the two inputs are not both in PSUM", "tensor_tensor, scalar_tensor_tensor"),
    "partition-match": Rule("operands have the same number of partitions", "Tile size"),
    "elements-match": Rule(
        "operands have the same number of elements per partition; nothing is broadcast", "Tile size"
    ),
    "engine": Rule("the engine offers this instruction", "the instruction's `engine` parameter"),
    "scalar-copy": Rule("tensor_copy is not on Scalar Engine on NeuronCore-v2", "tensor_copy"),
    "gen2-instruction": Rule("the instruction exists on this NeuronCore", "the instruction's page"),
    "rng-engine": Rule("rng runs on Vector Engine only on NeuronCore-v2", "rng"),
    "op-legal": Rule("the operator is one this instruction takes", "table of math operators"),
    "bitvec-dtype": Rule("bitvec operators take integer tiles only", "table of math operators"),
    "bitvec-mix": Rule("op0 and op1 are both bitvec or both arithmetic", "tensor_scalar"),
    "operand-vector": Rule("a vector operand is a tile of shape (partitions, 1)", "Layout"),
    "operand-float32": Rule("this vector operand is float32", "Data types"),
    "operand-pair": Rule("op1 and operand1 are given together", "tensor_scalar"),
    # Tensor Engine
    "matmul-contraction": Rule("stationary and moving have the same partitions, at most 128", "nc_matmul"),
    "matmul-stationary": Rule("the stationary tile has at most 128 free elements", "nc_matmul"),
    "matmul-moving": Rule("the moving tile has at most 512 free elements", "nc_matmul"),
    "matmul-shape": Rule("dst is (free size of stationary, free size of moving)", "nc_matmul"),
    "matmul-dst-dtype": Rule("dst is float32 on NeuronCore-v2 and -v3", "nc_matmul"),
    "matmul-dtype": Rule("Tensor Engine multiplies floats", "nc_matmul"),
    "matmul-fp32-pair": Rule("a float32 operand needs the other one to be float32", "nc_matmul"),
    "matmul-bank": Rule("dst lies within one 2 KiB PSUM bank", _ARCH),
    "matmul-perf-mode": Rule("performance modes are not on NeuronCore-v2", "nc_matmul"),
    "matmul-tiling": Rule("tile_size and tile_position name a tile of the array", "nc_matmul"),
    "accumulate-unwritten": Rule("the first matmul at a PSUM location overwrites (accumulate=False)", "nc_matmul"),
    "accumulate-nonmatmul": Rule("accumulation starts from a matmul, not from memset or a copy", "nc_matmul"),
    "accumulate-mixed": Rule("accumulate=None finds dst either all unwritten or all written", "nc_matmul"),
    "transpose-size": Rule("Tensor Engine transposes up to 128 x 128, Vector Engine 32 x 32", "nc_transpose"),
    "transpose-shape": Rule("dst is (free elements of data, partitions of data)", "nc_transpose"),
    "transpose-dtype": Rule("dst has the type of data", "nc_transpose"),
    "transpose-memory": Rule("Tensor Engine transposes from SBUF to PSUM", "nc_transpose"),
    "transpose-finite": Rule("Tensor Engine on NeuronCore-v2 spreads NaN and Inf when it transposes", "nc_transpose"),
    # Vector, Scalar and GpSimd engines
    "reduce-axis": Rule("the axes are the last contiguous free ones", "tensor_reduce"),
    "reduce-shape": Rule("dst has one element for every element that is not reduced", "tensor_reduce"),
    "negate-bitvec": Rule("negate goes with arithmetic operators", "tensor_reduce"),
    "bias-tile": Rule("bias is a (P, 1) tile on NeuronCore-v2, not a number", "activation"),
    "reciprocal-bias": Rule("the reciprocal activation takes no bias on NeuronCore-v2", "engine selection"),
    "activation-range": Rule("values are inside the function's valid range", "table of activation functions"),
    "activation-reduce": Rule("activation reduces with nl.add", "activation"),
    "reduce-registers": Rule("the reduce registers are reset before they are used", "activation"),
    "affine-pattern": Rule("up to four [step, num] pairs produce dst's elements per partition", "iota"),
    "affine-int32": Rule("the affine expression is int32", "iota"),
    "select-false-value": Rule("on_false_value is a float32 number", "affine_select"),
    "compare-op": Rule("cmp_op is a comparison", "affine_select"),
    "max8-size": Rule("8 to 16,384 elements per partition are searched", "max8, nc_find_index8"),
    "max8-rank": Rule("the searched tile has up to three dimensions", "max8, nc_find_index8"),
    "max8-output": Rule("the result is a 2D tile (partitions, 8)", "max8, nc_find_index8"),
    "index8-values": Rule("vals has 8 elements per partition", "nc_find_index8"),
    "index8-dtype": Rule("indices are uint16 or uint32", "nc_find_index8"),
    "memset-value": Rule("the value is of the tile's type", "memset"),
    # DMA
    "dma-elements": Rule("dst and src have the same number of elements", "dma_copy"),
    "dma-hwdge": Rule("hardware DGE needs NeuronCore-v3 or newer", "dma_copy"),
    "dma-engine": Rule("engine goes with hardware DGE and is sync or scalar", "dma_copy"),
    "dma-priority": Rule("priority needs NeuronCore-v4 or newer", "dma_copy"),
}


def violate(rule: str, *, instruction: str, operand: str, detail: str) -> NoReturn:
    """Raise a NkiValidationError of `rule`, at the kernel's own line."""
    raise NkiValidationError(
        rule=rule,
        sentence=RULES[rule].sentence,
        instruction=instruction,
        operand=operand,
        detail=detail,
        target=session.target_name(),
    )
