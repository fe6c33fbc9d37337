"""Random weights under which sharding mistakes show: non-zero biases, spread scales, clamps that are reached.

Ordinary initialisation hides sharding mistakes (a dropped zero bias, a permutation of equal shards). Every
value is a function of (seed, name) alone, so a tensor is the same in whatever order or process it is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from ..case.seeds import seed_of
from ..models import families

UNIT = 2**20  # elements; whole huge pages (2 MiB) in every dtype of 16 bits or more: see tiled_file.py
_MOST_REPEATS = 64  # of a tensor's values: each repeat is a mapping, and a process can have some ten thousand


@cache
def period(shape: tuple[int, ...]) -> int:
    """The number of random elements of a tensor, in row order; a larger tensor repeats them.

    So many that no two rows begin at the same element: then no two rows are equal, and no two shards of any size. A
    tensor of at most UNIT elements, or whose rows are longer than UNIT, has no repeats.
    """
    count, columns = math.prod(shape), shape[-1] if shape else 1
    if columns > UNIT:
        return count
    units = max(1, -(-count // (_MOST_REPEATS * UNIT)))
    while units * UNIT < count and units * UNIT // math.gcd(units * UNIT, columns) < count // columns:
        units += 1
    return min(count, units * UNIT)


def discriminating(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Uniform values in an interval that suits the parameter of this full shape: bfloat16 (period(shape),)."""
    low, high = _range(name, shape)
    count = period(shape)
    words = np.random.PCG64(seed_of(seed, name)).random_raw(-(-count // 4))
    integers = torch.from_numpy(words.view(np.int16))[:count].to(torch.float32)
    return integers.mul_((high - low) / 65536).add_((high + low) / 2).to(torch.bfloat16)


def constant(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """0.5 everywhere, bfloat16 (period(shape),): a weak test, under which no permutation of shards shows."""
    del name, seed
    return torch.full((period(shape),), 0.5, dtype=torch.bfloat16)


def tied(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """As `discriminating`, but the last expert's router logit equals the first one's, or (odd seeds) is 1e-9 above it.

    float32 cannot tell them apart, so that choosing either is no mistake. bfloat16 (period(shape),).
    """
    values = discriminating(name, shape, seed)
    for weight, bias in (family.router for family in families()):
        if name.endswith(weight):
            values.view(shape)[-1] = values.view(shape)[0]
        if name.endswith(bias):
            values[0], values[-1] = 0.0, 1e-9 * (seed % 2)
    return values


# (name, full shape, seed) -> (period(shape),), in bfloat16, so that every dtype can hold the same numbers.
Init = Callable[[str, tuple[int, ...], int], torch.Tensor]
INITS: dict[str, Init] = {"discriminating": discriminating, "constant": constant, "tied": tied}


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The interval of a parameter's uniform values: what a family says, or one that keeps activations of order one.

    sqrt(3 / n) for n inputs: uniform weights in +-b have the variance b^2 / 3, so that a sum of n products of weight
    and activation has an activation's variance.
    """
    leaf = name.rsplit(".", 1)[-1]
    if "scale" in leaf or (len(shape) == 1 and leaf == "weight"):
        return 0.5, 1.5
    said = {leaf: interval for family in families() for leaf, interval in family.intervals.items()}
    if leaf in said:
        return said[leaf]
    if "bias" in leaf or len(shape) < 2:
        return -0.5, 0.5
    gain = next((family.gains[leaf] for family in families() if leaf in family.gains), 1.0)
    looked_up = name.split(".")[-2:] == ["embedding", "weight"]  # a row is read, not summed over
    bound = math.sqrt(3) if looked_up else gain * math.sqrt(3 / shape[-1])
    return -bound, bound
