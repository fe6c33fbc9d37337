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


def attention(config: InferenceConfig, ranks: int, tokens: int = 0) -> tuple[Collective, ...]:
    """Attention, and everything else that is cut over all ranks."""
    return (*gather(config, ranks, tokens), *reduction(config, ranks, tokens))


def experts(config: InferenceConfig, ranks: int, tokens: int = 0) -> tuple[Collective, ...]:
    """The experts: as attention, or, under plan "ep", with tokens that go to their experts and back."""
    batch, seq = _shape(config, tokens)
    if config.plan != "ep" or not config.cuts_sequence(ranks, seq):
        return attention(config, ranks, tokens)
    ep, tp = config.mesh(ranks).values()
    dtype, hidden = config.neuron_config.torch_dtype, config.hidden_size
    wide, own = reduce_dtype(torch.empty(0, dtype=dtype)), seq // ep
    calls = (
        collective("all_gather", tp, (batch, seq // ranks, hidden), dtype),
        collective("all_gather", ep, (batch, own, config.num_experts), dtype),  # the router's logits
        collective("all_to_all", ep, (ep, batch, own, hidden), dtype),
        collective("all_to_all", ep, (ep, batch, own, hidden), wide),
        collective("reduce_scatter", tp, (batch, own, hidden), wide),
    )
    return tuple(call for call in calls if call.group_size > 1)


def layer(config: InferenceConfig, ranks: int, tokens: int = 0) -> tuple[Collective, ...]:
    """One layer: attention, then experts."""
    return (*attention(config, ranks, tokens), *experts(config, ranks, tokens))


def whole_model(config: InferenceConfig, ranks: int, tokens: int = 0) -> tuple[Collective, ...]:
    """Embedding, all layers, and the logits of the whole vocabulary."""
    if ranks == 1:
        return ()
    local = (*_shape(config, tokens), config.vocab_size // ranks)
    return (
        *reduction(config, ranks, tokens),
        *layer(config, ranks, tokens) * config.num_hidden_layers,
        *gather(config, ranks, tokens),
        collective("all_gather", ranks, local, config.neuron_config.torch_dtype),
    )
