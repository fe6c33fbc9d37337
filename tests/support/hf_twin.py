"""transformers' gpt-oss with the weights of ours: names mapped, matrices transposed where theirs are."""

import dataclasses

import torch
from torch import Tensor
from tp_harness.reference.gpt_oss import ModelConfig, Transformer
from transformers.models.gpt_oss import modeling_gpt_oss as hf


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def filled(config: ModelConfig, seed: int = 0) -> Transformer:
    """Random bf16-exact parameters; matrices at 0.4 drive gate and up past their clamps on both sides."""
    model = Transformer(config)
    for i, (name, parameter) in enumerate(model.named_parameters()):
        value = randn(*parameter.shape, seed=1000 * seed + i) * (0.4 if parameter.ndim > 1 else 0.7)
        parameter.data.copy_((value + 1.0 * name.endswith("scale")).bfloat16())
    return model.requires_grad_(False)


def hf_config(c: ModelConfig) -> object:
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_scaling_factor > 1:
        rope |= {"rope_type": "yarn", "factor": c.rope_scaling_factor, "beta_fast": c.rope_ntk_beta}
        rope |= {"beta_slow": c.rope_ntk_alpha, "original_max_position_embeddings": c.initial_context_length}
        rope |= {"truncate": False}
    same = {k: v for k, v in dataclasses.asdict(c).items() if hasattr(hf.GptOssConfig, k)}
    same |= {"num_local_experts": c.num_experts, "num_experts_per_tok": c.experts_per_token}
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    return hf.GptOssConfig(**same, **eager, rope_parameters=rope)


def hf_state(model: Transformer) -> dict[str, Tensor]:
    state = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.scale}
    for i, block in enumerate(model.block):
        attn, mlp = block.attn, block.mlp
        layer = {
            "input_layernorm.weight": attn.norm.scale, "post_attention_layernorm.weight": mlp.norm.scale,
            "self_attn.sinks": attn.sinks,
            "self_attn.o_proj.weight": attn.out.weight, "self_attn.o_proj.bias": attn.out.bias,
            "mlp.router.weight": mlp.gate.weight, "mlp.router.bias": mlp.gate.bias,
            "mlp.experts.gate_up_proj": mlp.mlp1_weight.mT, "mlp.experts.gate_up_proj_bias": mlp.mlp1_bias,
            "mlp.experts.down_proj": mlp.mlp2_weight.mT, "mlp.experts.down_proj_bias": mlp.mlp2_bias,
        }  # fmt: skip
        for part in ("weight", "bias"):
            qkv = getattr(attn.qkv, part).split([attn.q_dim, attn.kv_dim, attn.kv_dim])
            layer |= {f"self_attn.{x}_proj.{part}": rows for x, rows in zip("qkv", qkv, strict=True)}
        state |= {f"model.layers.{i}.{name}": value for name, value in layer.items()}
    return state | {"lm_head.weight": model.unembedding.weight}


def pair(config: ModelConfig, dtype: torch.dtype) -> tuple[Transformer, torch.nn.Module]:
    """Ours as it is (bf16 parameters) and transformers' with the same values in dtype."""
    ours, theirs = filled(config), hf.GptOssForCausalLM(hf_config(config))
    theirs.load_state_dict(hf_state(ours), strict=True)
    return ours, theirs.to(dtype).eval().requires_grad_(False)


def hf_mask(theirs: torch.nn.Module, layer: int, x: Tensor) -> Tensor:
    create = hf.create_causal_mask if layer % 2 else hf.create_sliding_window_causal_mask
    return create(config=theirs.config, inputs_embeds=x, attention_mask=None, past_key_values=None)
