"""Weights and inputs under which mistakes show: non-zero biases, spread scales, clamps that are reached.

Ordinary initialisation hides sharding mistakes (a dropped zero bias, a permutation of equal shards). Every
value is a function of (seed, name) alone, so a tensor is the same in whatever order or process it is made.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
import torch

from ..models import families

UNIT = 2**20  # elements; whole huge pages (2 MiB) in every dtype of 16 bits or more: see tiled_file.py
_MOST_REPEATS = 64  # of a tensor's values: each is a mapping of its own, of which a process has some ten thousand


@cache
def period(shape: tuple[int, ...]) -> int:
    """How many random values a tensor gets, in row order; a larger tensor repeats them.

    So many that no row begins where another does, which makes no two rows equal, and no two shards of whatever size.
    A tensor whose rows are longer than the period, and one that is small, is random throughout.
    """
    count, columns = math.prod(shape), shape[-1] if shape else 1
    if columns > UNIT:
        return count
    units = max(1, -(-count // (_MOST_REPEATS * UNIT)))
    while units * UNIT < count and units * UNIT // math.gcd(units * UNIT, columns) < count // columns:
        units += 1
    return min(count, units * UNIT)


def generator(seed: int, name: str) -> torch.Generator:
    """torch's random generator for one named thing."""
    return torch.Generator().manual_seed(_key(seed, name))


def discriminating(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Uniform values in an interval that suits the parameter."""
    low, high = _range(name, shape)
    count = period(shape)
    words = np.random.PCG64(_key(seed, name)).random_raw(-(-count // 4))
    integers = torch.from_numpy(words.view(np.int16))[:count].to(torch.float32)
    return integers.mul_((high - low) / 65536).add_((high + low) / 2).to(torch.bfloat16)


def constant(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """0.5, the weak habit of public tests: any permutation of shards is invisible to it."""
    del name, seed
    return torch.full((period(shape),), 0.5, dtype=torch.bfloat16)


def tied(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """As discriminating, but the last expert's router logit is the first one's, or (odd seeds) 1e-9 above it.

    float32 cannot tell them apart, so that either may be chosen: no mistake.
    """
    values = discriminating(name, shape, seed)
    for weight, bias in (family.router for family in families()):
        if name.endswith(weight):
            values.view(shape)[-1] = values.view(shape)[0]
        if name.endswith(bias):
            values[0], values[-1] = 0.0, 1e-9 * (seed % 2)
    return values


# Each gives the values of a parameter's period, bfloat16 so that every dtype can hold the same numbers.
Init = Callable[[str, tuple[int, ...], int], torch.Tensor]
INITS: dict[str, Init] = {"discriminating": discriminating, "constant": constant, "tied": tied}


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The interval of a parameter's uniform values: what a family says, or so that activations stay of order one."""
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


def _key(seed: int, name: str) -> int:
    return seed * 2**32 + zlib.crc32(name.encode())
