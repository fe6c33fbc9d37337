"""The inputs of a task's ranks: one file of full inputs and of what routers shall choose, and a rank's part of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..arithmetic.casts import cast_tensor
from ..case.case import Case, Tensors
from ..case.routing import Lock
from ..parallel.group import Group
from ..parallel.placements import Replicate
from .excerpt import of_flat, of_rows

_STATEFUL = "stateful"


@dataclass(frozen=True, kw_only=True)
class RankInputs:
    """The full inputs, the locks of the routers by tap name, and whether the reference keeps a state.

    Inputs have any shape, floating-point ones are float32; a lock's choice is (tokens, k), integers. A reference with a
    state gives other outputs when it is called again, and so may a rank's module.
    """

    inputs: Tensors
    locks: Mapping[str, Lock]
    stateful: bool = False

    def map(self, function: Callable[[str, torch.Tensor], torch.Tensor]) -> RankInputs:
        """The same with `function` of each input's name and the input, of any shape."""
        return replace(self, inputs=tuple(function(f"input.{i}", x) for i, x in enumerate(self.inputs)))

    def first(self, tokens: int, batch: int) -> RankInputs:
        """The inputs (batch, tokens, ...) and locks of the first `tokens` of each of `batch` rows; 0 means all."""
        locks = {name: Lock(of_flat(lock.chosen, tokens, batch), lock.experts) for name, lock in self.locks.items()}
        return RankInputs(inputs=tuple(of_rows(x, tokens) for x in self.inputs), locks=locks, stateful=self.stateful)

    def write(self, path: Path) -> None:
        """Write the inputs as a safetensors file."""
        tensors = {f"input.{i}": x.contiguous() for i, x in enumerate(self.inputs)}
        for name, lock in self.locks.items():
            tensors |= {f"lock.{name}": lock.chosen.contiguous(), f"experts.{name}": torch.tensor(lock.experts)}
        save_file(tensors, path, metadata={_STATEFUL: "yes"} if self.stateful else None)


def read_inputs(path: Path) -> RankInputs:
    """Read what `RankInputs.write` wrote, in the same shapes and dtypes."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        stateful = _STATEFUL in (file.metadata() or {})
    inputs = tuple(tensors[f"input.{i}"] for i in range(sum(name.startswith("input.") for name in tensors)))
    names = [name.removeprefix("lock.") for name in tensors if name.startswith("lock.")]
    locks = {name: Lock(tensors[f"lock.{name}"], int(tensors[f"experts.{name}"])) for name in names}
    return RankInputs(inputs=inputs, locks=locks, stateful=stateful)


def shard_inputs(case: Case, full_inputs: Tensors, dtype: torch.dtype, group: Group) -> Tensors:
    """This rank's shard of each full input (any shape), as the case places it; floating-point ones cast to `dtype`."""
    shards = (case.input_placement(i).shard(x, group.rank, group.size) for i, x in enumerate(full_inputs))
    return tuple(cast_tensor(x, dtype) for x in shards)


def token_rows(case: Case, full_inputs: Tensors, tokens: int, group: Group) -> torch.Tensor | None:
    """Which of a router's `tokens` this rank has, where the first input is cut along its tokens.

    Args:
        case: places the inputs.
        full_inputs: the first is (..., tokens) of ids or (..., features) of vectors.
        tokens: of the whole run.
        group: this rank's.

    Returns:
        int64 (tokens of this rank,); None where it has all of them.
    """
    placement = case.input_placement(0) if full_inputs else Replicate()
    if isinstance(placement, Replicate):
        return None
    for shape in (full_inputs[0].shape, (*full_inputs[0].shape[:-1], 1)):  # ids, or vectors
        if math.prod(shape) == tokens:
            rows = placement.shard(torch.arange(tokens).view(shape), group.rank, group.size).flatten()
            return rows if len(rows) < tokens else None
    return None
