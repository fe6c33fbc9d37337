"""What every sharded module is built from: parameters, initial values, and a matrix product in x's dtype."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

CAST_ELEMENTS = 64 * 2880  # of a matrix: in float32 0.7 MB


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """An uninitialised parameter. On the device "meta" it takes no memory until values are assigned."""
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)


class Projection(nn.Module):
    """The parameters of a matrix product, under the names torch.nn.Linear gives them: weight [out, in], bias [out].

    Where a reduction follows, the module takes the product alone and adds the bias after it, once.
    """

    def __init__(self, out: int, inp: int, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(out, inp, dtype=dtype)
        self.bias = parameter(out, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out) in the same dtype, bias included."""
        return linear(x, self.weight, self.bias)

    def without_bias(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out) in the same dtype; whoever reduces adds the bias."""
        return linear(x, self.weight)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias: (..., in), (out, in), (out,) to (..., out) in x's dtype, whatever the parameters' is."""
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class CastBuffer:
    """A few rows of a large matrix at a time in another dtype, in memory that stays in the processor's cache.

    16-bit products are computed in float32 and rounded once, as a tensor engine accumulates them. torch's own would
    compile a program for every number of tokens that an expert gets, which costs 32 ranks more than the products.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._flat = torch.empty(CAST_ELEMENTS, dtype=torch.promote_types(dtype, torch.float32))

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x @ weight.T + bias: (..., in), (out, in), (out,) to (..., out) in x's dtype."""
        count = CAST_ELEMENTS // weight.shape[-1]
        if weight.dtype == self._flat.dtype or not count:
            return linear(x, weight, bias)
        wide, parts = x.to(self._flat.dtype), []
        held = x.dtype if weight.itemsize > x.itemsize else weight.dtype  # a module in x's dtype holds no more digits
        for start in range(0, len(weight), count):
            rows = weight[start : start + count].to(held)
            cast = self._flat[: rows.numel()].view(rows.shape).copy_(rows)
            parts.append(linear(wide, cast, None if bias is None else bias[start : start + count].to(held)))
        return torch.cat(parts, dim=-1).to(x.dtype)


def reduce_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which partial sums, of any shape, are reduced: float32, or x's where that is wider.

    A bfloat16 all-reduce would round after every rank; XLA on CPU does not even offer one.
    """
    return torch.promote_types(x.dtype, torch.float32)


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the last dimension; same shape and dtype out.

    It is rounded once: a compiler given a 16-bit softmax rounds each of its steps.
    """
    return torch.softmax(logits, dim=-1, dtype=reduce_dtype(logits)).to(logits.dtype)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """The logistic function of each element, rounded once like `softmax`; same shape and dtype out."""
    return torch.sigmoid(x.to(reduce_dtype(x))).to(x.dtype)


def as_batch(
    hidden_states: torch.Tensor, position_ids: torch.Tensor | None, parts: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, seq, hidden) and position_ids (batch, seq) int64 from either form the public modules accept.

    (n_tokens, hidden) becomes a batch of one, in its dtype; absent position_ids count from 0. Hidden states are one of
    `parts` equal parts of the sequence, position_ids are of the whole.

    Raises:
        ValueError: when position_ids do not have one entry per token; the message says both shapes.
    """
    x_BSH = hidden_states if hidden_states.ndim == 3 else hidden_states[None]
    batch, seq = x_BSH.shape[0], parts * x_BSH.shape[1]
    if position_ids is None:
        position_ids = torch.arange(seq, device=x_BSH.device).expand(batch, seq)
    elif position_ids.ndim == 1:
        position_ids = position_ids.expand(batch, seq)
    if position_ids.shape != (batch, seq):
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)} where hidden_states of shape "
            f"{tuple(hidden_states.shape)} needs {(batch, seq)}"
        )
    return x_BSH, position_ids


@torch.no_grad()
def initialise(module: nn.Module, weight_init_value: float | None) -> None:
    """Fill every parameter with `weight_init_value`, or (None) with random values from torch's global generator.

    Random values keep activations of order one: matrices are uniform with variance 1 / fan_in (elements of the last
    dimension), norm scales lie around 1, biases and sinks are small and non-zero. Parameters on device "meta" stay as
    they are.
    """
    for name, param in module.named_parameters():
        if weight_init_value is not None:
            param.fill_(weight_init_value)
        elif name.endswith("scale"):
            param.uniform_(0.5, 1.5)
        else:
            bound = math.sqrt(3 / max(1, param.shape[-1])) if name.endswith("weight") else 0.5
            param.uniform_(-bound, bound)
