"""Inputs under which mistakes show: small tokens, positions that are no indices, ids at the borders of shards."""

from __future__ import annotations

import torch

from .config import InferenceConfig


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


def tokens(config: InferenceConfig, generator: torch.Generator, seq: int = 0) -> torch.Tensor:
    """(batch, seq) int64 ids, shuffled: as many borders of 1/32 vocabulary shards as fit, the rest random.

    `seq` tokens a row, 0 for the configured ones.
    """
    shape = (config.neuron_config.batch_size, seq or config.neuron_config.seq_len)
    count, vocab = shape[0] * shape[1], config.vocab_size
    starts = torch.arange(32) * vocab // 32
    borders = torch.cat((starts, (starts - 1) % vocab))
    borders = borders[torch.randperm(len(borders), generator=generator)][:count]
    rest = torch.randint(vocab, (count - len(borders),), generator=generator)
    ids = torch.cat((borders, rest))
    return ids[torch.randperm(count, generator=generator)].view(shape)
