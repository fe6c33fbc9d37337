"""Tensors compared bit for bit, and what is raised where replicas differ."""

from __future__ import annotations

import torch


class ReplicaError(AssertionError):
    """Ranks hold different bits where the plan says they hold the same."""

    status = "MISMATCH"  # result.Status's word for it

    def __init__(
        self,
        ranks: tuple[int, int],
        index: tuple[int, ...],
        actual: float | str,
        expected: float | str,
        advice: str = "",
    ) -> None:
        self.ranks, self.index, self.actual, self.expected = ranks, index, actual, expected
        at = f" at {list(index)}" if index else ""
        differ = f"rank {ranks[0]} holds {actual}{at} where rank {ranks[1]} holds {expected}"
        super().__init__(f"{differ}; {advice}" if advice else differ)


def check_same_bits(actual: torch.Tensor, expected: torch.Tensor, ranks: tuple[int, int]) -> None:
    """Check that two ranks hold the same bits, of any shape and dtype.

    Raises:
        ReplicaError: they do not; with the first index that differs, or both shapes and dtypes.
    """
    if actual is expected or same_bits(actual, expected):
        return
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        raise ReplicaError(ranks, (), *(f"{x.dtype} of shape {list(x.shape)}" for x in (actual, expected)))
    first = (bits_of(actual) != bits_of(expected)).nonzero()[0]
    index = tuple(int(i) for i in first[: actual.ndim])
    raise ReplicaError(ranks, index, actual[index].item(), expected[index].item())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True when shape, dtype and every bit agree: NaN equals the same NaN, 0.0 differs from -0.0."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits_of(a), bits_of(b))


_INT_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(x: torch.Tensor) -> torch.Tensor:
    """A view of a tensor of any shape and dtype as integers of its elements' bits; of a complex one, two of each."""
    if x.dtype == torch.bool:
        return x
    if x.is_complex():
        return torch.view_as_real(x.resolve_conj()).contiguous().view(_INT_OF_SIZE[x.element_size() // 2])
    return x.view(_INT_OF_SIZE[x.element_size()])
