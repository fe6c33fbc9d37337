"""Cases of transformers' own decoder layers: eager against sdpa attention, and against transformers' own parallelism.

    tp-harness verify --case tests/support/hf_layers.py:LLAMA_TP --dtype exact --tp 1,2,4

What `mistaken` gives has one mistake. The layers compute as a model would have them compute: the rotary tables and the
mask are made by transformers' own functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from transformers import GptOssConfig, LlamaConfig, Qwen3MoeConfig
from transformers.distributed.expert_parallel import apply_expert_parallelism
from transformers.distributed.tensor_parallel import apply_tensor_parallelism
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gpt_oss import modeling_gpt_oss as gpt_oss
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3_moe import modeling_qwen3_moe as qwen3_moe

from tp_harness import Case, Replicate, Shard

SIZES = {
    "hidden_size": 40,
    "intermediate_size": 36,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 6,
    "num_hidden_layers": 2,
    "vocab_size": 32,
}
CONFIGS = {
    "llama": partial(LlamaConfig, mlp_bias=True, attention_bias=True, **SIZES),
    "qwen3_moe": partial(Qwen3MoeConfig, moe_intermediate_size=20, num_experts=8, num_experts_per_tok=3, **SIZES),
    "gpt_oss": partial(GptOssConfig, num_local_experts=8, num_experts_per_tok=3, sliding_window=4, **SIZES),
}
PARTS = {
    "llama": (llama.LlamaDecoderLayer, llama.LlamaRotaryEmbedding),
    "qwen3_moe": (qwen3_moe.Qwen3MoeDecoderLayer, qwen3_moe.Qwen3MoeRotaryEmbedding),
    "gpt_oss": (gpt_oss.GptOssDecoderLayer, gpt_oss.GptOssRotaryEmbedding),
}


def sdpa_with_sinks(module: nn.Module, query, key, value, mask, *, scaling: float, s_aux, **_: object):
    """Attention with sinks by torch's own: a sink is the score of one more key, 0, whose value is 0 too."""
    groups = query.shape[1] // key.shape[1]
    key, value = (nn.functional.pad(x.repeat_interleave(groups, 1), (0, 0, 0, 1)) for x in (key, value))
    sinks = s_aux.view(1, -1, 1, 1).expand(query.shape[0], -1, query.shape[2], 1)
    scores = torch.cat((mask.expand(*query.shape[:3], -1), sinks), -1)
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=scores, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


gpt_oss.ALL_ATTENTION_FUNCTIONS.register("eager_sinks_by_sdpa", sdpa_with_sinks)


class Layer(nn.Module):
    """A decoder layer with what its model would give it; (batch, seq, hidden) in and out."""

    def __init__(self, family: str, attention: str = "eager") -> None:
        super().__init__()
        layer, rotary = PARTS[family]
        self.masks = CONFIGS[family](attn_implementation=attention.partition("_")[0])
        self.config = CONFIGS[family](experts_implementation="eager")
        self.config._attn_implementation = attention
        self.layer, self.rotary = layer(self.config, 0), rotary(self.config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Positions from 0 on, and the mask of the layer's kind."""
        positions = torch.arange(x.shape[1]).unsqueeze(0)
        window = getattr(self.layer.self_attn, "sliding_window", None)
        mask = create_sliding_window_causal_mask if window else create_causal_mask
        given = mask(self.masks, x, None, None)
        return self.layer(x, attention_mask=given, position_embeddings=self.rotary(x, positions))


class ParallelLayer(Layer):
    """The same layer, cut by transformers' plans of tensor and expert parallelism: its parameters are DTensors."""

    def __init__(self, family: str, tensors: dict[str, str], experts: dict[str, str], way: str = "auto") -> None:
        super().__init__(family)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        apply_tensor_parallelism(self, mesh, self.named(tensors))
        apply_expert_parallelism(self, mesh, mesh, self.named(experts), way)

    def named(self, plan: dict[str, str]) -> dict[str, str]:
        """A plan by this module's own names: of each parameter first, and then of the modules that hold them."""
        own = {name.replace("layers.*.", "layer."): style for name, style in plan.items() if name.startswith("layers")}
        names, modules = [name for name, _ in self.named_parameters()], dict(self.named_modules())
        styles = {name: own.get(name, own.get(name.rpartition(".")[0])) for name in names}
        held = {name: style for name, style in styles.items() if style}
        return held | {name: style for name, style in own.items() if name in modules}


HEADS = {f"layers.*.self_attn.{x}_proj": style for x, style in zip("qkvo", (*3 * ["colwise"], "rowwise"), strict=True)}
SINKS = {"layers.*.self_attn.sinks": "colwise", "layers.*.self_attn": "local_params"}
PLANS: dict[str, tuple[object, ...]] = {
    "LLAMA_TP": ("llama", LlamaConfig.base_model_tp_plan, {}),
    "QWEN_TP": ("qwen3_moe", Qwen3MoeConfig.base_model_tp_plan, {}),
    "QWEN_EP": ("qwen3_moe", HEADS, Qwen3MoeConfig.base_model_ep_plan),
    "GPT_OSS_EP": ("gpt_oss", HEADS | SINKS, GptOssConfig.base_model_ep_plan, "all_to_all"),
}


def inputs(generator: torch.Generator) -> tuple[torch.Tensor]:
    """(batch, seq, hidden)"""
    return (torch.randn(2, 9, 40, generator=generator),)


WHOLE, FEATURES, OF_HEADS = Replicate(), Shard(-1), Shard(2)
ATTENTION = {"input_layernorm": WHOLE, **{f"self_attn.{x}_proj": FEATURES for x in "qkv"}}
BEHIND = {"self_attn.o_proj": WHOLE, "post_attention_layernorm": WHOLE}
NORMS, EXPERTS = {f"self_attn.{x}_norm": OF_HEADS for x in "qk"}, {"mlp.experts": WHOLE}
TAPS = {
    "llama": ATTENTION | BEHIND | {"mlp.gate_proj": FEATURES, "mlp.up_proj": FEATURES, "mlp.down_proj": WHOLE},
    "qwen3_moe": ATTENTION | NORMS | BEHIND | EXPERTS,
    "gpt_oss": ATTENTION | BEHIND | EXPERTS,
}


def case(family: str, sharded: Callable[[], nn.Module], **fields: object) -> Case:
    """A Case against the eager layer on one core."""
    cut = not fields.get("replicated")
    taps = {f"layer.{name}": placement if cut else WHOLE for name, placement in TAPS[family].items()}
    return Case(name=family, reference=partial(Layer, family), sharded=sharded, inputs=inputs, taps=taps, **fields)


LLAMA, QWEN, GPT_OSS = (
    case(family, partial(Layer, family, attention), replicated=True)
    for family, attention in (("llama", "sdpa"), ("qwen3_moe", "sdpa"), ("gpt_oss", "eager_sinks_by_sdpa"))
)
LLAMA_TP, QWEN_TP, QWEN_EP, GPT_OSS_EP = (case(plan[0], partial(ParallelLayer, *plan)) for plan in PLANS.values())
