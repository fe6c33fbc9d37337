"""prove_accuracy: what tolerances let through is another function, and right modules are proved."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
from served_modules import Column, Row, Tied, X
from torch import nn

from tp_harness.errors import UsageError
from tp_harness.testing import build_module, validate_accuracy
from tp_harness.testing.closeness import OutputError
from tp_harness.testing.exactly import prove_accuracy


class Norm(nn.Module):
    """Features sharded, their mean square summed over ranks; `eps` says how it is wrong."""

    def __init__(self, eps: float = 1e-5, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.size, self.rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        self.weight = nn.Parameter(torch.ones(8 // self.size, dtype=dtype))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        own = x.chunk(self.size, dim=-1)[self.rank]
        square = own.float().square().sum(-1, keepdim=True)
        if self.size > 1:
            dist.all_reduce(square)
        normed = own.float() * torch.rsqrt(square / 8 + self.eps)
        out = torch.zeros(x.shape, dtype=torch.float32)
        out[..., self.rank * own.shape[-1] : (self.rank + 1) * own.shape[-1]] = normed * self.weight
        if self.size > 1:
            dist.all_reduce(out)
        return out.to(x.dtype)


class Noisy(Row):
    """Draws random numbers that change nothing, which exact arithmetic cannot know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0 * torch.rand(()))


class Refusing(Row):
    """Raises in exact arithmetic alone, where NumPy reads nan."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if np.isnan((x * 1).numpy()).any():
            raise FloatingPointError("nan")
        return super().forward(x)


def single_core(kind: type[nn.Module]) -> nn.Module:
    """With the weights that build_module draws."""
    torch.manual_seed(0)
    return kind(reduce=False) if issubclass(kind, Row) else kind()


@pytest.mark.parametrize(("kind", "tp_degree"), [(Column, 2), (Row, 4), (Tied, 1), (Norm, 2)])
def test_a_right_module_is_proved(kind: type[nn.Module], tp_degree: int) -> None:
    with build_module(kind, [(X,)], tp_degree=tp_degree) as module:
        results = prove_accuracy(module, [(X,), (X[:1],)], single_core(kind))
    assert [(result.status, result.component, result.tp) for result in results] == [
        ("PROVED", kind.__name__, tp_degree)
    ] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_tolerance_lets_through_is_another_function(dtype: torch.dtype) -> None:
    x, reference = (X + 4).to(dtype), Norm(dtype=dtype)
    with build_module(Norm, [(x,)], {"eps": 1e-6, "dtype": dtype}, 2) as module:
        validate_accuracy(module, [(x,)], cpu_callable=reference)
        with pytest.raises(OutputError, match=r"^in exact arithmetic, .*output.0 is another function") as caught:
            prove_accuracy(module, [(x,)], reference)
        assert caught.value.status == "DIFFERENT"
        validate_accuracy(module, [(x,)], cpu_callable=reference)
    assert next(reference.parameters()).dtype == dtype, "the reference is not changed"


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Noisy, "draws random numbers"), (Refusing, "an error is raised in exact arithmetic alone, .*FloatingPointError")],
)
def test_what_cannot_be_proved_says_why_and_the_ranks_live_on(kind: type[nn.Module], why: str) -> None:
    with build_module(kind, [(X,)], tp_degree=2) as module:
        (result,) = prove_accuracy(module, [(X,)], single_core(Row))
        validate_accuracy(module, [(X,)], cpu_callable=single_core(Row))
    assert result.status == "NOT PROVED"
    assert re.search(why, result.reason)


def test_both_modules_are_needed() -> None:
    with build_module(Row, [(X,)], tp_degree=1) as module:
        with pytest.raises(UsageError, match=r"given a function; the single-core torch.nn.Module, whose parameters"):
            prove_accuracy(module, [(X,)], lambda x: x)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"was given a Row; what build_module returns on CPU ranks is needed"):
            prove_accuracy(Row(), [(X,)], Row())  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="was given no inputs"):
            prove_accuracy(module, [], Row())
        with pytest.raises(UsageError, match="weight"):
            prove_accuracy(module, [(X,)], nn.Identity())
        prove_accuracy(module, [(X,)], single_core(Row))
