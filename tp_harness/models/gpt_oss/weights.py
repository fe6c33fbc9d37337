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

from ...config.model import InferenceConfig

UNIT = 2**20  # elements; whole huge pages (2 MiB) in every dtype of 16 bits or more: see tiled_file.py
TIED = ("gate.weight", "gate.bias")  # a router's parameters
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
    if name.endswith(TIED[0]):
        values.view(shape)[-1] = values.view(shape)[0]
    if name.endswith(TIED[1]):
        values[0], values[-1] = 0.0, 1e-9 * (seed % 2)
    return values


# Each gives the values of a parameter's period, bfloat16 so that every dtype can hold the same numbers.
Init = Callable[[str, tuple[int, ...], int], torch.Tensor]
INITS: dict[str, Init] = {"discriminating": discriminating, "constant": constant, "tied": tied}


def fill(out: torch.Tensor, name: str, seed: int, init: Init) -> None:
    """Fill the contiguous parameter `name` (its full name in the model) with the values of `init`."""
    values, flat = init(name, tuple(out.shape), seed), out.view(-1)
    for start in range(0, flat.numel(), max(1, len(values))):
        piece = flat[start : start + len(values)]
        piece.copy_(values[: len(piece)])


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The interval of a parameter's uniform values, chosen so that activations stay of order one.

    The experts' first matrices are larger, so that gates and ups pass the clamp at 7 on both sides.
    """
    leaf = name.rsplit(".", 1)[-1]
    if "scale" in leaf or (len(shape) == 1 and leaf == "weight"):
        return 0.5, 1.5
    if leaf == "sinks":
        return -2.0, 3.0
    if "bias" in leaf or len(shape) < 2:
        return (-1.0, 1.0) if leaf == "mlp1_bias" else (-0.5, 0.5)
    gain = 3.5 if leaf == "mlp1_weight" else 1.0
    looked_up = name.split(".")[-2:] == ["embedding", "weight"]  # a row is read, not summed over
    bound = math.sqrt(3) if looked_up else gain * math.sqrt(3 / shape[-1])
    return -bound, bound


def _key(seed: int, name: str) -> int:
    return seed * 2**32 + zlib.crc32(name.encode())


def hidden_states(config: InferenceConfig, generator: torch.Generator) -> torch.Tensor:
    """(batch, seq, hidden) float32; one token in eight is small, so that the norm's epsilon matters."""
    shape = (config.neuron_config.batch_size, config.neuron_config.seq_len)
    x = 1.5 * torch.randn(*shape, config.hidden_size, generator=generator)
    small = torch.rand(*shape, 1, generator=generator) < 1 / 8
    return torch.where(small, 0.005 * x, x)


def position_ids(config: InferenceConfig) -> torch.Tensor:
    """(batch, seq) int64; row b starts at 3 b (modulo seq), so that positions are not indices."""
    batch, seq = config.neuron_config.batch_size, config.neuron_config.seq_len
    return torch.arange(seq) + 3 * torch.arange(batch)[:, None] % seq


def tokens(config: InferenceConfig, generator: torch.Generator) -> torch.Tensor:
    """(batch, seq) int64 ids, shuffled: as many borders of 1/32 vocabulary shards as fit, the rest random."""
    shape = (config.neuron_config.batch_size, config.neuron_config.seq_len)
    count, vocab = shape[0] * shape[1], config.vocab_size
    starts = torch.arange(32) * vocab // 32
    borders = torch.cat((starts, (starts - 1) % vocab))
    borders = borders[torch.randperm(len(borders), generator=generator)][:count]
    rest = torch.randint(vocab, (count - len(borders),), generator=generator)
    ids = torch.cat((borders, rest))
    return ids[torch.randperm(count, generator=generator)].view(shape)
