"""Mistakes in transformers' decoder layers of hf_layers.py, and the first tensor that each makes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce

import hf_layers
import torch
from torch import nn

from tp_harness import Case
from tp_harness.parallel.group import Group

Spoil = Callable[[nn.Module, Group], None]  # changes a layer on one rank, after it was loaded
ALIKE, LAST = False, True  # on all ranks, or on the last alone


def sets(path: str, change: Callable[[object], object], last: bool = ALIKE) -> Spoil:
    """Set an attribute, by its path below the layer, to what `change` makes of it."""

    def spoil(module: nn.Module, group: Group) -> None:
        where, _, name = path.rpartition(".")
        owner = reduce(getattr, where.split("."), module)
        if not last or group.rank == group.size - 1:
            setattr(owner, name, change(getattr(owner, name)))

    return spoil


def writes(name: str, change: Callable[[torch.Tensor], torch.Tensor], last: bool = LAST) -> Spoil:
    """Write what `change` makes of this rank's part of a parameter into it."""

    def spoil(module: nn.Module, group: Group) -> None:
        held = module.get_parameter(name)
        own = getattr(held, "to_local", lambda: held)()
        if not last or group.rank == group.size - 1:
            with torch.no_grad():
                own.copy_(change(own.clone()))

    return spoil


def not_summed(name: str) -> Spoil:
    """A row-parallel linear layer whose ranks keep their summands."""

    def spoil(module: nn.Module, group: Group) -> None:
        linear = module.get_submodule(name)
        linear.forward = lambda x: nn.functional.linear(x, linear.weight.to_local(), linear.bias.to_local())

    return spoil


def doubled(x: object) -> object:
    """Twice as much."""
    return x * 2


ATTENTION, MLP = "layer.self_attn", "layer.mlp"
MISTAKES: dict[str, dict[str, Spoil]] = {
    "LLAMA": {
        "layer.input_layernorm": sets("layer.input_layernorm.variance_epsilon", doubled),
        f"{ATTENTION}.o_proj": sets(f"{ATTENTION}.scaling", lambda x: x * (1 + 1 / 128)),
        f"{MLP}.down_proj": sets(f"{MLP}.act_fn", lambda _: nn.Mish()),
    },
    "QWEN": {
        f"{ATTENTION}.k_norm": sets(f"{ATTENTION}.k_norm.variance_epsilon", doubled),
        f"{ATTENTION}.o_proj": sets(f"{ATTENTION}.scaling", lambda x: x * (1 + 1 / 128)),
        f"{MLP}.experts": sets(f"{MLP}.gate.norm_topk_prob", lambda x: not x),
    },
    "GPT_OSS": {
        "layer.post_attention_layernorm": sets("layer.post_attention_layernorm.variance_epsilon", doubled),
        f"{ATTENTION}.o_proj": sets("masks.sliding_window", lambda x: x + 1),
        f"{MLP}.experts": sets(f"{MLP}.experts.alpha", lambda x: 1.7),
    },
    "LLAMA_TP": {
        f"{ATTENTION}.q_proj": writes(f"{ATTENTION}.q_proj.weight", lambda x: x.roll(6, 0)),
        f"{ATTENTION}.o_proj": writes(f"{ATTENTION}.o_proj.bias", doubled, ALIKE),
        f"{MLP}.down_proj": not_summed(f"{MLP}.down_proj"),
    },
    "QWEN_TP": {
        f"{ATTENTION}.q_norm": sets(f"{ATTENTION}.q_norm.variance_epsilon", doubled, LAST),
        f"{ATTENTION}.o_proj": sets(f"{ATTENTION}.scaling", lambda x: x * (1 + 1 / 128), LAST),
        f"{MLP}.experts": writes(f"{MLP}.experts.gate_up_proj", lambda x: x.roll(1, 1)),
    },
    "QWEN_EP": {
        "layer.input_layernorm": sets("layer.input_layernorm.variance_epsilon", doubled),
        f"{ATTENTION}.v_proj": writes(f"{ATTENTION}.v_proj.weight", lambda x: x.flip(0)),
        f"{MLP}.experts": writes(f"{MLP}.experts.down_proj", lambda x: x.roll(1, 0)),
    },
    "GPT_OSS_EP": {
        f"{ATTENTION}.k_proj": writes(f"{ATTENTION}.k_proj.bias", lambda x: x * 0),
        f"{ATTENTION}.o_proj": writes(f"{ATTENTION}.sinks", lambda x: x.roll(1, 0)),
        f"{MLP}.experts": writes(f"{MLP}.experts.down_proj_bias", lambda x: x * 0),
    },
}


def mistaken(name: str) -> dict[str, Case]:
    """By the first tensor that is wrong, the Case with one mistake each."""
    return {tensor: replace(getattr(hf_layers, name), edit=edit) for tensor, edit in MISTAKES[name].items()}


for _name in MISTAKES:
    for _number, _case in enumerate(mistaken(_name).values()):
        globals()[f"{_name}_{_number}"] = _case
