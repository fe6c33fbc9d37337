"""The built-in components of gpt-oss as cases, by name.

To add one: a reference class, a sharded class with its plan, a function here, and its name in config.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ...case.case import Case, Tensors
from ...case.family_case import FamilyCase
from ...errors import UnknownNameError
from ...parallel.placements import KVHeads, Placement, Replicate, Shard
from ...reference import gpt_oss, rotary
from . import config as numbers
from . import schedule
from .config import InferenceConfig
from .decode import decode_fields
from .inputs import hidden_states, position_ids, tokens
from .modules import (
    NeuronGPTOSSAttentionBlock,
    NeuronGPTOSSEmbedding,
    NeuronGPTOSSMLPBlock,
    NeuronGPTOSSRMSNorm,
    NeuronGPTOSSRotaryEmbedding,
    NeuronGPTOSSTransformer,
    NeuronGPTOSSTransformerBlock,
    NeuronGPTOSSUnembedding,
)
from .modules.sequence import placement


def rmsnorm(config: InferenceConfig, layer: int) -> Case:
    """The norm is replicated: all ranks must have the same output."""
    return _case(
        "rmsnorm",
        config,
        layer,
        reference=lambda: gpt_oss.RMSNorm(config.hidden_size),
        sharded=lambda: NeuronGPTOSSRMSNorm(config),
        inputs=lambda generator: (hidden_states(config, generator),),
        plan=NeuronGPTOSSRMSNorm.plan(config),
        reduction=config.hidden_size,
        replicated=True,
        prefix=f"block.{layer}.attn.norm.",
    )


def rope(config: InferenceConfig, layer: int) -> Case:
    """Each rank rotates its own query and key heads; there are no parameters."""
    kv_heads = config.num_key_value_heads

    def reference() -> nn.Module:
        return rotary.RotaryEmbedding(
            config.head_dim,
            config.rope_theta,
            torch.float32,
            initial_context_length=config.initial_context_length,
            scaling_factor=config.rope_scaling_factor,
            ntk_alpha=config.rope_ntk_alpha,
            ntk_beta=config.rope_ntk_beta,
        )

    def inputs(generator: torch.Generator) -> Tensors:
        shape = (config.neuron_config.batch_size, config.neuron_config.seq_len)
        query = torch.randn(*shape, config.num_attention_heads, config.head_dim, generator=generator)
        key = torch.randn(*shape, kv_heads, config.head_dim, generator=generator)
        return query, key, position_ids(config)

    heads = (Shard(2), KVHeads(2, kv_heads))
    return _case(
        "rope",
        config,
        layer,
        reference=reference,
        sharded=lambda: NeuronGPTOSSRotaryEmbedding(config),
        inputs=inputs,
        input_placements=heads,
        output=heads,
        reduction=2,
    )


def attention(config: InferenceConfig, layer: int) -> Case:
    """Attention of one layer with its norm and residual."""
    return _case(
        "attention",
        config,
        layer,
        reference=lambda: gpt_oss.AttentionBlock(config, layer),
        sharded=lambda: NeuronGPTOSSAttentionBlock(config, layer),
        inputs=lambda generator: (hidden_states(config, generator), position_ids(config)),
        plan=NeuronGPTOSSAttentionBlock.plan(config),
        input_placements=(placement(config),),
        output=placement(config),
        taps=NeuronGPTOSSAttentionBlock.taps(config),
        collectives=partial(schedule.attention, config),
        prefix=f"block.{layer}.attn.",
    )


def mlp(config: InferenceConfig, layer: int) -> Case:
    """Router and experts with their norm and residual."""
    return _case(
        "mlp",
        config,
        layer,
        reference=lambda: gpt_oss.MLPBlock(config),
        sharded=lambda: NeuronGPTOSSMLPBlock(config, layer),
        inputs=lambda generator: (hidden_states(config, generator),),
        plan=NeuronGPTOSSMLPBlock.plan(config),
        input_placements=(placement(config),),
        output=placement(config),
        taps=NeuronGPTOSSMLPBlock.taps(config),
        collectives=partial(schedule.experts, config),
        reduction=max(config.hidden_size, config.intermediate_size),
        prefix=f"block.{layer}.mlp.",
        routing=("",),
    )


def transformer_block(config: InferenceConfig, layer: int) -> Case:
    """One layer: attention and experts."""
    return _case(
        "transformer_block",
        config,
        layer,
        reference=lambda: gpt_oss.TransformerBlock(config, layer),
        sharded=lambda: NeuronGPTOSSTransformerBlock(config, layer),
        inputs=lambda generator: (hidden_states(config, generator), position_ids(config)),
        plan=NeuronGPTOSSTransformerBlock.plan(config),
        input_placements=(placement(config),),
        output=placement(config),
        taps=NeuronGPTOSSTransformerBlock.taps(config),
        collectives=partial(schedule.layer, config),
        prefix=f"block.{layer}.",
        routing=("mlp",),
    )


def embedding(config: InferenceConfig, layer: int) -> Case:
    """The vocabulary shared out by rows."""
    return _case(
        "embedding",
        config,
        layer,
        reference=lambda: gpt_oss.Embedding(config.vocab_size, config.hidden_size),
        sharded=lambda: NeuronGPTOSSEmbedding(config),
        inputs=lambda generator: (tokens(config, generator),),
        plan=NeuronGPTOSSEmbedding.plan(config),
        output=placement(config),
        taps=NeuronGPTOSSEmbedding.taps(config),
        collectives=partial(schedule.reduction, config),
        reduction=1,
        prefix="embedding.",
    )


def unembedding(config: InferenceConfig, layer: int) -> Case:
    """Logits, each rank its share of the vocabulary."""
    return _case(
        "unembedding",
        config,
        layer,
        reference=lambda: gpt_oss.Unembedding(config.hidden_size, config.vocab_size),
        sharded=lambda: NeuronGPTOSSUnembedding(config),
        inputs=lambda generator: (hidden_states(config, generator),),
        plan=NeuronGPTOSSUnembedding.plan(config),
        taps=NeuronGPTOSSUnembedding.taps(config),
        input_placements=(placement(config),),
        output=Shard(-1),
        collectives=partial(schedule.gather, config),
        reduction=config.hidden_size,
        prefix="unembedding.",
    )


def transformer(config: InferenceConfig, layer: int) -> Case:
    """The whole model, logits gathered on every rank."""
    layers = config.num_hidden_layers
    return _case(
        "transformer",
        config,
        layer,
        reference=lambda: gpt_oss.Transformer(config),
        sharded=lambda: NeuronGPTOSSTransformer(config),
        inputs=lambda generator: (tokens(config, generator), position_ids(config)),
        plan=NeuronGPTOSSTransformer.plan(config),
        taps=NeuronGPTOSSTransformer.taps(config),
        collectives=partial(schedule.whole_model, config),
        routing=tuple(f"block.{i}.mlp" for i in range(layers)),
        depth=layers,
    )


def decode(config: InferenceConfig, layer: int) -> Case:
    """The whole model as it is served: several calls with a KV cache."""
    return _case("decode", config, layer, **decode_fields(config))


COMPONENTS: dict[str, Callable[[InferenceConfig, int], Case]] = {name: globals()[name] for name in numbers.COMPONENTS}


def component_case(name: str, config: InferenceConfig, layer: int) -> Case:
    """The case of a built-in component, at the layer of index `layer`.

    Raises:
        UnknownNameError: no such component.
    """
    if name not in COMPONENTS:
        raise UnknownNameError("component", name, COMPONENTS)
    return COMPONENTS[name](config, layer)


def _case(name: str, config: InferenceConfig, layer: int, **fields: Any) -> Case:
    longest = max(config.hidden_size, config.num_attention_heads * config.head_dim, config.intermediate_size)
    defaults: dict[str, Any] = {"reduction": longest, "collectives": lambda tp: ()}
    return FamilyCase(name=name, layer=layer, **on_axes(config, defaults | fields))


def on_axes(config: InferenceConfig, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Case, on the mesh of the plan: what names no axis is placed over all ranks."""
    axes = tuple(config.mesh(1))
    if len(axes) == 1:
        return fields

    def over_all(placed: Any) -> Any:
        if isinstance(placed, tuple):
            return tuple(map(over_all, placed))
        if isinstance(placed, dict) and not set(placed) <= set(axes):  # by name
            return {name: over_all(at) for name, at in placed.items()}
        return {axes: placed} if isinstance(placed, Placement) and not isinstance(placed, Replicate) else placed

    placing = ("plan", "taps", "output", "input_placements")
    return fields | {field: over_all(fields[field]) for field in placing if field in fields} | {"mesh": config.mesh}
