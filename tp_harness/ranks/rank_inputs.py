"""The inputs of a task's ranks: one file of full tensors and of what routers shall choose, and a rank's part of it.

The file holds no objects: what else a call is given, each rank makes anew with the generator that made it first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..arithmetic.casts import cast_tensor
from ..case.calls import Calls
from ..case.case import Case
from ..case.dropout import Shape
from ..case.placed import input_placements
from ..case.routing import Lock
from ..case.seeds import generator
from ..parallel.group import Group
from ..parallel.placements import Replicate
from .excerpt import of_flat, of_rows

_GIVEN = "given."
_SAID = ("source", "seed", "dropped", "stateful")  # fields that stand in the metadata


@dataclass(frozen=True, kw_only=True)
class RankInputs:
    """The full inputs by name, the locks of the routers by tap name, and whether the reference keeps a state.

    Inputs have any shape, floating-point ones are float32; a lock's choice is (tokens, k), integers. A reference with a
    state gives other outputs when it is called again, and so may a rank's module. `source` is the seed and the name of
    the generator with which the case makes the calls that get the inputs; None where a call gets these alone, in order.
    """

    inputs: Mapping[str, torch.Tensor]
    locks: Mapping[str, Lock]
    source: tuple[int, str] | None = None
    seed: int = 0  # of the masks of dropouts
    dropped: tuple[Shape, ...] = ()  # the full shapes of what they are given
    stateful: bool = False

    def calls(self, case: Case) -> Calls:
        """The calls of the case, with full tensors or those that the case draws again."""
        calls = case.given(generator(*self.source)) if self.source else Calls.of(tuple(self.inputs.values()))
        return replace(calls, seed=self.seed, dropped=self.dropped)

    def map(self, function: Callable[[str, torch.Tensor], torch.Tensor]) -> RankInputs:
        """The same with `function` of each input's name and the input, of any shape."""
        return replace(self, inputs={name: function(name, x) for name, x in self.inputs.items()})

    def first(self, tokens: int, batch: int) -> RankInputs:
        """The inputs (batch, tokens, ...) and locks of the first `tokens` of each of `batch` rows; 0 means all."""
        locks = {name: Lock(of_flat(lock.chosen, tokens, batch), lock.experts) for name, lock in self.locks.items()}
        return replace(self, inputs={name: of_rows(x, tokens) for name, x in self.inputs.items()}, locks=locks)

    def write(self, path: Path) -> None:
        """Write the inputs as a safetensors file."""
        tensors = {f"{_GIVEN}{name}": x.contiguous().clone() for name, x in self.inputs.items()}
        for name, lock in self.locks.items():
            tensors |= {f"lock.{name}": lock.chosen.contiguous(), f"experts.{name}": torch.tensor(lock.experts)}
        said = {name: getattr(self, name) for name in _SAID} | {"names": [*self.inputs]}
        save_file(tensors, path, metadata={key: json.dumps(value) for key, value in said.items()})


def read_inputs(path: Path) -> RankInputs:
    """Read what `RankInputs.write` wrote, in the same shapes and dtypes."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = {key: json.loads(value) for key, value in file.metadata().items()}
    inputs = {name: tensors[f"{_GIVEN}{name}"] for name in said["names"]}
    names = [name.removeprefix("lock.") for name in tensors if name.startswith("lock.")]
    locks = {name: Lock(tensors[f"lock.{name}"], int(tensors[f"experts.{name}"])) for name in names}
    return RankInputs(inputs=inputs, locks=locks, **_read(said))


def _read(said: dict[str, Any]) -> dict[str, Any]:
    """The fields that stand in the metadata."""
    source, dropped = said["source"] and tuple(said["source"]), tuple(map(tuple, said["dropped"]))
    return {name: said[name] for name in _SAID} | {"source": source, "dropped": dropped}


def shard_inputs(case: Case, given: RankInputs, dtype: torch.dtype, group: Group) -> dict[str, torch.Tensor]:
    """This rank's shard of each full input (any shape), as the case places it; floating-point ones cast to `dtype`."""
    placed = input_placements(case, given.inputs)
    shards = {name: placed[name].shard(x, group.rank, group.size) for name, x in given.inputs.items()}
    return {name: cast_tensor(x, dtype) for name, x in shards.items()}


def token_rows(case: Case, full_inputs: Mapping[str, torch.Tensor], tokens: int, group: Group) -> torch.Tensor | None:
    """Which of a router's `tokens` this rank has, where the first input is cut along its tokens.

    Args:
        case: places the inputs.
        full_inputs: by name; the first is (..., tokens) of ids or (..., features) of vectors.
        tokens: of the whole run.
        group: this rank's.

    Returns:
        int64 (tokens of this rank,); None where it has all of them.
    """
    name = next(iter(full_inputs), "")
    placement = input_placements(case, [name])[name]
    if isinstance(placement, Replicate) or not full_inputs:
        return None
    first = full_inputs[name]
    for shape in (first.shape, (*first.shape[:-1], 1)):  # ids, or vectors
        if math.prod(shape) == tokens:
            rows = placement.shard(torch.arange(tokens).view(shape), group.rank, group.size).flatten()
            return rows if len(rows) < tokens else None
    return None
