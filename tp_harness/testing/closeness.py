"""Element-wise closeness with the tolerance neuronx-distributed-inference uses, and what it must never pass.

An element may be off by atol + rtol x the largest |expected|: allclose's formula with the maximum in place of
the element, as the Neuron tools define it. It is a weak check, kept because users know it; `tp-harness verify`
judges by other means. Unlike its model, it refuses wrong shapes and dtypes, NaN, infinities and emptiness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..judge.distance import largest_index

# rtol by dtype. float32 sums of a few thousand terms agree to 1e-6 of the largest element; bfloat16 has
# 2^-8 between neighbours, and a sharded sum may be a few of those off.
DEFAULT_RTOL: Mapping[torch.dtype, float] = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}
DEFAULT_ATOL = 1e-5


class OutputError(AssertionError):
    """An output is not what was expected; `status` is the word of result.Status for it."""

    def __init__(self, message: str, status: str = "MISMATCH") -> None:
        super().__init__(message)
        self.status = status


Outputs = torch.Tensor | Sequence[torch.Tensor]


def assert_close(expected: Outputs, actual: Outputs, *, rtol: float | None = None, atol: float | None = None) -> None:
    """Raise OutputError, an AssertionError, unless every output is close to its expectation.

    Args:
        expected: a tensor or a sequence of tensors, of any shapes and dtypes, not empty.
        actual: the same number of tensors, of the same shapes and dtypes.
        rtol: relative to the largest |expected| of a tensor; by default DEFAULT_RTOL of its dtype.
        atol: absolute, in the elements' unit; by default DEFAULT_ATOL.

    Raises:
        OutputError: the message names the output, how many elements differ, and the worst with its index.
    """
    left, right = _as_list(expected), _as_list(actual)
    if not left:
        raise OutputError("there is no expected output: nothing would be compared")
    if len(left) != len(right):
        raise OutputError(f"{len(right)} outputs instead of {len(left)}")
    for i, (e, a) in enumerate(zip(left, right, strict=True)):
        name = f"output {i}" if len(left) > 1 else "the output"
        _check_form(name, e, a)
        _check_values(name, e, a, rtol, atol)


def _check_form(name: str, expected: torch.Tensor, actual: torch.Tensor) -> None:
    if expected.shape != actual.shape:
        raise OutputError(f"{name} has shape {list(actual.shape)} instead of {list(expected.shape)}", "SHAPE")
    if expected.dtype != actual.dtype:
        raise OutputError(f"{name} has dtype {actual.dtype} instead of {expected.dtype}", "SHAPE")
    if not expected.numel():
        raise OutputError(f"{name} is empty (shape {list(expected.shape)}): nothing would be compared")
    for side, tensor in (("expected", expected), ("actual", actual)):
        if not torch.isfinite(tensor).all():
            index = (~torch.isfinite(tensor)).nonzero()[0].tolist()
            raise OutputError(f"{name}: the {side} value at {index} is {tensor[tuple(index)].item()}", "NONFINITE")


def _check_values(
    name: str, expected: torch.Tensor, actual: torch.Tensor, rtol: float | None, atol: float | None
) -> None:
    rtol = DEFAULT_RTOL.get(expected.dtype, 0.0) if rtol is None else rtol
    atol = (DEFAULT_ATOL if expected.is_floating_point() else 0.0) if atol is None else atol
    right = expected.to(torch.float64)
    error = (actual.to(torch.float64) - right).abs()
    allowed = atol + rtol * right.abs().max().item()
    wrong = int((error > allowed).sum())
    if not wrong:
        return
    index = largest_index(error)
    raise OutputError(
        f"{name}: {wrong} of {error.numel()} elements differ by more than {allowed:.3g} "
        f"(atol {atol:g} + rtol {rtol:g} x max |expected| {right.abs().max().item():.3g}); the worst, at "
        f"{list(index)}, is {actual[index].item():.6g} instead of {expected[index].item():.6g}"
    )


def _as_list(outputs: Outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    if isinstance(outputs, Sequence) and all(isinstance(x, torch.Tensor) for x in outputs):
        return list(outputs)
    raise OutputError(f"an output is a {type(outputs).__name__}; a tensor or a tuple of tensors is needed")
