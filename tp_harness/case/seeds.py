"""Random generators whose numbers depend on a run's seed and a name alone."""

from __future__ import annotations

import zlib

import torch


def generator(seed: int, name: str) -> torch.Generator:
    """A CPU random generator of torch for one tensor or input; its numbers depend on (seed, name) alone."""
    return torch.Generator().manual_seed(seed_of(seed, name))


def seed_of(seed: int, name: str) -> int:
    """The seed of one name in a run with the seed `seed`."""
    return seed * 2**32 + zlib.crc32(name.encode())
