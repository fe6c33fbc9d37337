"""What a rule case is, how it is run, and the tiles that cases are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tp_harness.kernels.nki_interpreter import NkiValidationError, simulate
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl
from tp_harness.kernels.nki_interpreter.dtypes import DType
from tp_harness.kernels.nki_interpreter.memory import MemoryRegion
from tp_harness.kernels.nki_interpreter.tensors import NkiTensor

Piece = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class RuleCase:
    """`good` keeps the rule on `good_target`, `bad` breaks it on `target`; both are the smallest we know."""

    rule: str
    what: str
    good: Piece
    bad: Piece
    target: str = "gen2"
    good_target: str | None = None

    @property
    def id(self) -> str:
        """Return the name a test report shows."""
        return f"{self.rule}-{self.what}".replace(" ", "_")


def case(
    rule: str, what: str, good: Piece, bad: Piece, *, target: str = "gen2", good_target: str | None = None
) -> RuleCase:
    """Return a rule case; positional, as the tables are long."""
    return RuleCase(rule=rule, what=what, good=good, bad=bad, target=target, good_target=good_target)


def outcome(piece: Piece, target: str) -> NkiValidationError | None:
    """Run a piece of kernel; return the error it was refused with, or None."""

    def kernel() -> NkiTensor:
        result = piece()
        if isinstance(result, NkiTensor) and result.buffer is nl.shared_hbm:
            return result
        del result  # free its tiles: a piece may have filled a memory to the last byte
        return filled_output()

    try:
        simulate(kernel, target=target)()
    except NkiValidationError as error:
        return error
    return None


# Tiles that have been written


def tile(
    partitions: int,
    *free: int,
    dtype: DType = nl.float32,
    buffer: MemoryRegion = nl.sbuf,
    value: float = 1,
) -> NkiTensor:
    """Return a tile (partitions, *free) full of `value`."""
    made = nl.ndarray((partitions, *free), dtype=dtype, buffer=buffer)
    nisa.memset(dst=made, value=value)
    return made


def empty(partitions: int, *free: int, dtype: DType = nl.float32, buffer: MemoryRegion = nl.sbuf) -> NkiTensor:
    """Return a tile (partitions, *free) that nothing was written to."""
    return nl.ndarray((partitions, *free), dtype=dtype, buffer=buffer)


def hbm(*shape: int, dtype: DType = nl.float32) -> NkiTensor:
    """Return a written HBM tensor of one or two dimensions."""
    made = nl.ndarray(shape, dtype=dtype, buffer=nl.shared_hbm)
    rows = shape[0] if len(shape) > 1 else 1
    source = tile(rows, made.size // rows, dtype=dtype)
    nisa.dma_copy(dst=made, src=source)
    return made


def filled_output() -> NkiTensor:
    """Return a one-element output, for pieces that return none."""
    return hbm(1, 1)


def product(rows: int, columns: int) -> NkiTensor:
    """Return a PSUM tile (rows, columns) that a matmul has written."""
    made = empty(rows, columns, buffer=nl.psum)
    nisa.nc_matmul(dst=made, stationary=tile(1, rows), moving=tile(1, columns), accumulate=False)
    return made
