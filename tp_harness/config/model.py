"""How a model is used in one run, and the check of a number.

Nothing here imports torch at module level, so that configs can be read, checked and reported on a machine without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..errors import UnknownNameError, UsageError

PLANS = ("tp", "sp", "ep", "ep-tp")  # how a model is shared out; a family says what each is


def check_number(name: str, value: object, *, integral: bool = False) -> None:
    """Refuse what is not a positive number below 2**40; with `integral`, not an integer.

    Raises:
        UsageError: it is not; gives the name and the value.
    """
    kinds = (int,) if integral else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not 0 < value < 2**40:  # type: ignore[operator]  # is_number guards the comparison
        kind = "a positive integer" if integral else "a positive number"
        below = " below 2**40" if is_number and value > 0 else ""  # type: ignore[operator]  # as above
        raise UsageError(f"{name} is {value!r}; {kind}{below} is needed.")


def plan_cuts_sequence(plan: str, ranks: int, tokens: int) -> bool:
    """Whether each of `ranks` has its own part of a row's `tokens` tokens between the sharded regions."""
    return plan in ("sp", "ep") and tokens % ranks == 0


def plan_mesh(plan: str, ranks: int, experts: int) -> dict[str, int]:
    """The axes of the ranks, and how many are along each: experts along ep, and what they leave along tp.

    Plan "ep" has as many along ep as the experts allow, plan "ep-tp" at least two along tp, where there are two.
    """
    if not plan.startswith("ep"):
        return {"tp": ranks}
    least = 2 if plan == "ep-tp" and ranks % 2 == 0 else 1
    ep = math.gcd(experts, ranks // least)
    return {"ep": ep, "tp": ranks // ep}


@dataclass(frozen=True, kw_only=True)
class NeuronConfig:
    """How one compiled model is used: batch_size in rows, seq_len in tokens, dtype, tp_degree in ranks, and the plan.

    Raises:
        UsageError: a number is not a positive integer, torch_dtype is not a floating-point dtype, or there is no such
            plan.
    """

    batch_size: int = 1
    seq_len: int = 128
    torch_dtype: Any = "bfloat16"
    tp_degree: int = 1
    plan: str = "tp"

    def __post_init__(self) -> None:
        if self.plan not in PLANS:
            raise UnknownNameError("plan", self.plan, PLANS)
        for name in ("batch_size", "seq_len", "tp_degree"):
            check_number(name, getattr(self, name), integral=True)
        import torch  # noqa: PLC0415  (a ModelConfig needs no torch)

        dtype = getattr(torch, self.torch_dtype, None) if isinstance(self.torch_dtype, str) else self.torch_dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise UsageError(f"torch_dtype {self.torch_dtype!r} is not a floating-point dtype of torch.")
        object.__setattr__(self, "torch_dtype", dtype)
