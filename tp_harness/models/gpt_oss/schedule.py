"""The collectives that gpt-oss's components plan, in the order in which every rank calls them."""

from __future__ import annotations

import torch

from ...parallel.group import collective
from ...results.result import Collective
from .config import InferenceConfig
from .modules.layers import reduce_dtype


def _shape(config: InferenceConfig, tokens: int) -> tuple[int, int]:
    return config.neuron_config.batch_size, tokens or config.neuron_config.seq_len


def gather(config: InferenceConfig, ranks: int, tokens: int = 0) -> tuple[Collective, ...]:
    """What a sharded region begins with: sequence parallel, the tokens of all ranks; else nothing.

    Here and below `tokens` of each row are new, 0 for the configured sequence.
    """
    batch, seq = _shape(config, tokens)
    if ranks == 1 or not config.cuts_sequence(ranks, seq):
        return ()
    own = (batch, seq // ranks, config.hidden_size)
    return (collective("all_gather", ranks, own, config.neuron_config.torch_dtype),)


def reduction(config: InferenceConfig, ranks: int, tokens: int = 0) -> tuple[Collective, ...]:
    """What a sharded region ends with: the sum over ranks of hidden states (batch, seq, hidden)."""
    batch, seq = _shape(config, tokens)
    if ranks == 1:
        return ()
    kind = "reduce_scatter" if config.cuts_sequence(ranks, seq) else "all_reduce"
    dtype = reduce_dtype(torch.empty(0, dtype=config.neuron_config.torch_dtype))
    return (collective(kind, ranks, (batch, seq, config.hidden_size), dtype),)


def regions(config: InferenceConfig, ranks: int, count: int, tokens: int = 0) -> tuple[Collective, ...]:
    """`count` sharded regions, attention or experts, one after the other."""
    return (*gather(config, ranks, tokens), *reduction(config, ranks, tokens)) * count


def whole_model(config: InferenceConfig, ranks: int, tokens: int = 0) -> tuple[Collective, ...]:
    """Embedding, all layers, and the logits of the whole vocabulary."""
    if ranks == 1:
        return ()
    local = (*_shape(config, tokens), config.vocab_size // ranks)
    return (
        *reduction(config, ranks, tokens),
        *regions(config, ranks, 2 * config.num_hidden_layers, tokens),
        *gather(config, ranks, tokens),
        collective("all_gather", ranks, local, config.neuron_config.torch_dtype),
    )
