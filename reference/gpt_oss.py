"""gpt-oss on one core, in plain torch: the function that every tensor-parallel module is compared with.

Parameter names, layouts, shapes and default dtypes are those of the public torch model (openai/gpt-oss): its
state dict loads unchanged. Beyond it, every class takes a batch and explicit positions, and computes and returns in
the dtype of its input, to which parameters are cast one matrix at a time: bf16 weights and a float64 input make a
float64 oracle. Positions that are neither (n_tokens,) nor of the tokens' shape raise ValueError. Intermediate tensors
pass through named `torch.nn.Identity` taps: a forward hook on a tap sees its tensor or, by returning another one,
replaces it.

Not covered: a KV cache and padding (decoding.py), dropout, distributed execution, MXFP4 decoding.

Shape suffixes: L the token dimensions of the input, (n_tokens,) or (batch, n_tokens); T all tokens; H hidden;
    G key/value heads; M query heads per key/value head; N = G M; D head_dim; Q, K query and key positions; E experts;
    S slots (experts_per_token); I intermediate; P the tokens that chose the expert at hand.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Identity, Parameter
from torch.nn.functional import linear

from .expert_product import expert_product
from .rotary import Device, RotaryEmbedding

ConfigLike: TypeAlias = Any  # an object with ModelConfig's attributes; callers bring their own config types


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Field names and defaults of the public gpt-oss configuration (the 120b model)."""

    num_hidden_layers: int = 36
    num_experts: int = 128
    experts_per_token: int = 4
    vocab_size: int = 201088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    swiglu_limit: float = 7.0
    head_dim: int = 64
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    sliding_window: int = 128
    initial_context_length: int = 4096
    rope_theta: float = 150000.0
    rope_scaling_factor: float = 32.0
    rope_ntk_alpha: float = 1.0
    rope_ntk_beta: float = 32.0


class RMSNorm(torch.nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last dimension (arXiv 1910.07467); scale is float32."""

    def __init__(self, num_features: int, eps: float = 1e-5, device: Device = None) -> None:
        super().__init__()
        self.eps = eps
        self.scale = Parameter(torch.ones(num_features, device=device, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., num_features) to the same shape and dtype; statistics are at least float32."""
        t = x.to(torch.promote_types(x.dtype, torch.float32))
        t = t * torch.rsqrt(t.square().mean(dim=-1, keepdim=True) + self.eps)
        return (t * self.scale.to(t.dtype)).to(x.dtype)


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` in the dtype of its input, whatever the dtype of its parameters."""

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return linear(input, self.weight.to(input.dtype), bias)


def _positions_of(x: Tensor, positions: Tensor | None) -> Tensor:
    """Return positions (*L,) for x (*L, H): 0, 1, ... by default; (n_tokens,) is shared by a batch."""
    token_dims = x.shape[:-1]
    if positions is None:
        positions = torch.arange(token_dims[-1], device=x.device)
    if positions.shape not in (token_dims, token_dims[-1:]):
        raise ValueError(f"positions have shape {tuple(positions.shape)}, tokens {tuple(token_dims)}")
    return positions.expand(token_dims)


def visible(positions: Tensor, window: int) -> Tensor:
    """Map (*L,) to bool (*L, n_tokens): True where 0 <= query - key and, if window > 0, query - key < window."""
    distance = positions[..., :, None] - positions[..., None, :]
    return (distance >= 0) & (distance < window) if window > 0 else distance >= 0


def sink_attention(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention with a learned extra logit per head, the sink: it takes probability, gives no value.

    query (*L, G, M, D), key and value (*L, G, D), sinks (G * M,), mask (*L, n_tokens) True where visible.
    Returns (*L, G * M * D) in the dtype of the query.
    """
    groups, per_group, head_dim = query.shape[-3:]
    scores_GMQK = torch.einsum("...qgmd,...kgd->...gmqk", query, key) * (1 / math.sqrt(head_dim))
    scores_GMQK = scores_GMQK.masked_fill(~mask[..., None, None, :, :], -math.inf)
    sinks_GMQ1 = sinks.to(query.dtype).view(groups, per_group, 1, 1).expand(*scores_GMQK.shape[:-1], 1)
    weights_GMQK = torch.softmax(torch.cat((scores_GMQK, sinks_GMQ1), dim=-1), dim=-1)[..., :-1]
    return torch.einsum("...gmqk,...kgd->...qgmd", weights_GMQK, value).flatten(-3)


class AttentionBlock(torch.nn.Module):
    """x + attention(norm(x)): grouped queries, sinks, and a sliding window on even layers.

    Taps: q_rope (*L, G * M, D); k_rope and value (*L, G, D); heads (*L, G * M * D), before the output projection;
    partial (*L, H), projected without bias, and total, the same once ranks have summed it; reduced (*L, H), with
    bias, before the residual; residual (*L, H), the output.
    """

    def __init__(self, config: ConfigLike, layer_idx: int = 0, device: Device = None) -> None:
        super().__init__()
        self.head_dim: int = config.head_dim
        self.q_dim: int = config.num_attention_heads * config.head_dim
        self.kv_dim: int = config.num_key_value_heads * config.head_dim
        self.sliding_window: int = config.sliding_window if layer_idx % 2 == 0 else 0
        hidden, bf16 = config.hidden_size, torch.bfloat16
        self.sinks = Parameter(torch.empty(config.num_attention_heads, device=device, dtype=bf16))
        self.norm = RMSNorm(hidden, device=device)
        self.qkv = Linear(hidden, self.q_dim + 2 * self.kv_dim, device=device, dtype=bf16)
        self.out = Linear(self.q_dim, hidden, device=device, dtype=bf16)
        yarn = (config.rope_scaling_factor, config.rope_ntk_alpha, config.rope_ntk_beta)
        rope = (config.head_dim, config.rope_theta, torch.float32, config.initial_context_length, *yarn)
        self.rope = RotaryEmbedding(*rope, device)
        self.q_rope, self.k_rope, self.value, self.heads = (Identity() for _ in range(4))
        self.partial, self.total, self.reduced, self.residual = (Identity() for _ in range(4))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map x (*L, H) and positions (n_tokens,) or (*L,), default 0, 1, ..., to (*L, H)."""
        positions = _positions_of(x, positions)
        query, key, value = self.query_key_value(x, positions)
        mask = visible(positions, self.sliding_window)
        return self.add_heads(x, sink_attention(query, key, value, self.sinks, mask))

    def query_key_value(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map x (*L, H) and positions (*L,) to query (*L, G, M, D), key and value (*L, G, D), rotated."""
        q, k, v = torch.split(self.qkv(self.norm(x)), [self.q_dim, self.kv_dim, self.kv_dim], dim=-1)
        q_LND, k_LGD, v_LGD = (t.reshape(*x.shape[:-1], -1, self.head_dim) for t in (q, k, v))
        q_LND, k_LGD = self.rope(q_LND, k_LGD, positions)
        q_LND, k_LGD, v_LGD = self.q_rope(q_LND), self.k_rope(k_LGD), self.value(v_LGD)
        return q_LND.unflatten(-2, (k_LGD.shape[-2], -1)), k_LGD, v_LGD

    def add_heads(self, x: Tensor, heads: Tensor) -> Tensor:
        """Add to x (*L, H) the output projection of heads (*L, G * M * D)."""
        # product and bias apart: tensor-parallel ranks sum their partial products, then add the bias once
        total_LH = self.total(self.partial(linear(self.heads(heads), self.out.weight.to(x.dtype))))
        reduced_LH: Tensor = self.reduced(total_LH + self.out.bias.to(x.dtype))
        y: Tensor = self.residual(x + reduced_LH)
        return y


def swiglu(x: Tensor, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """Map interleaved gate, up, ... (..., 2 I) to (..., I); clamped to `limit`, the gate from above only (gpt-oss)."""
    gate, up = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(min=-limit, max=limit)
    return gate * torch.sigmoid(alpha * gate) * (up + 1)


class MLPBlock(torch.nn.Module):
    """x + the sum over chosen experts of weight * expert(norm(x)).

    Only chosen experts are computed, one at a time in ascending order. mlp1_weight is [E, 2 I, H] with gate
    and up rows interleaved, mlp2_weight [E, H, I].

    Taps: router_logits (*L, E); chosen (*L, S) int64, best first (replacing it locks the routing: weights are
    the softmax of the own logits at chosen); gate_up (P, 2 I) and activation (P, I), once per chosen expert,
    tokens ascending; partial (*L, H), weighted sum without mlp2_bias, and total, the same once ranks have summed
    it; combined (*L, H), with mlp2_bias; residual (*L, H), the output.
    """

    def __init__(self, config: ConfigLike, device: Device = None) -> None:
        super().__init__()
        self.experts_per_token: int = config.experts_per_token
        self.swiglu_limit: float = config.swiglu_limit
        experts, hidden, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.norm = RMSNorm(hidden, device=device)
        self.gate = Linear(hidden, experts, device=device, dtype=torch.bfloat16)

        def parameter(*shape: int) -> Parameter:
            return Parameter(torch.empty(experts, *shape, device=device, dtype=torch.bfloat16))

        self.mlp1_weight, self.mlp1_bias = parameter(2 * inner, hidden), parameter(2 * inner)
        self.mlp2_weight, self.mlp2_bias = parameter(hidden, inner), parameter(hidden)
        self.router_logits, self.chosen = Identity(), Identity()
        self.gate_up, self.activation, self.partial = Identity(), Identity(), Identity()
        self.total, self.combined, self.residual = Identity(), Identity(), Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map x (*L, H) to (*L, H)."""
        t_LH = self.norm(x)
        logits_LE = self.router_logits(self.gate(t_LH))
        chosen_LS = self.chosen(torch.topk(logits_LE, self.experts_per_token, dim=-1, sorted=True).indices)
        weights_LS = torch.softmax(logits_LE.gather(-1, chosen_LS), dim=-1)
        slots_TSH = self._run_experts(t_LH.flatten(0, -2), chosen_LS.flatten(0, -2))
        slots_LSH = slots_TSH.view(*chosen_LS.shape, -1)
        combined_LH: Tensor = self.combined(self._combine(slots_LSH, chosen_LS, weights_LS))
        y: Tensor = self.residual(x + combined_LH)
        return y

    def _run_experts(self, t: Tensor, chosen: Tensor) -> Tensor:
        """Map tokens (T, H) and indices (T, S) to bias-free expert outputs (T, S, H)."""
        slots_TSH = t.new_empty(*chosen.shape, t.shape[-1])
        mlp1 = expert_product(self.mlp1_weight, t.dtype)
        mlp2 = expert_product(self.mlp2_weight, t.dtype)
        for expert in sorted(set(chosen.flatten().tolist())):
            token_P, slot_P = (chosen == expert).nonzero(as_tuple=True)
            up = self.gate_up(mlp1(expert, t[token_P], self.mlp1_bias[expert].to(t.dtype)))
            act = self.activation(swiglu(up, limit=self.swiglu_limit))
            slots_TSH[token_P, slot_P] = mlp2(expert, act, None)
        return slots_TSH

    def _combine(self, slots: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Map bias-free outputs (*L, S, H), indices and weights (*L, S) to the sum with bias (*L, H)."""
        bias_LSH, weigh = self.mlp2_bias[chosen].to(slots.dtype), "...sh,...s->...h"
        own_LH = torch.einsum(weigh, slots, weights)
        total_LH: Tensor = self.total(self.partial(own_LH))
        if total_LH is not own_LH:  # a hook replaced it
            return total_LH + torch.einsum(weigh, bias_LSH, weights)
        return torch.einsum(weigh, slots + bias_LSH, weights)  # rounds as the public model does: after the bias


class TransformerBlock(torch.nn.Module):
    """Attention, then experts; each adds to the residual stream."""

    def __init__(self, config: ConfigLike, layer_idx: int, device: Device = None) -> None:
        super().__init__()
        self.attn = AttentionBlock(config, layer_idx, device)
        self.mlp = MLPBlock(config, device)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map x (*L, H) and positions (n_tokens,) or (*L,), default 0, 1, ..., to (*L, H)."""
        y: Tensor = self.mlp(self.attn(x, positions))
        return y


class Embedding(torch.nn.Embedding):
    """Token ids to rows of a table [vocab, hidden]; taps partial and total, both the rows."""

    def __init__(self, vocab: int, hidden: int, device: Device = None) -> None:
        # with _weight no random rows are drawn, which on device meta would import the whole compiler
        super().__init__(vocab, hidden, _weight=torch.empty(vocab, hidden, device=device, dtype=torch.bfloat16))
        self.partial, self.total = Identity(), Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Map integer ids (*L,) to bfloat16 (*L, hidden), or the dtype that the table was cast to."""
        rows: Tensor = self.total(self.partial(super().forward(input)))
        return rows


class Unembedding(Linear):
    """Hidden states to logits; tap logits."""

    def __init__(self, hidden: int, vocab: int, device: Device = None) -> None:
        super().__init__(hidden, vocab, bias=False, device=device, dtype=torch.bfloat16)
        self.logits = Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Map (*L, hidden) to (*L, vocab)."""
        logits: Tensor = self.logits(super().forward(input))
        return logits


class Transformer(torch.nn.Module):
    """Token ids to next-token logits; the embedding's output sets the dtype of everything after it."""

    def __init__(self, config: ConfigLike, device: Device = None) -> None:
        super().__init__()
        vocab, hidden = config.vocab_size, config.hidden_size
        layers = range(config.num_hidden_layers)
        self.embedding = Embedding(vocab, hidden, device)
        self.block = torch.nn.ModuleList([TransformerBlock(config, layer, device) for layer in layers])
        self.norm = RMSNorm(hidden, device=device)
        self.unembedding = Unembedding(hidden, vocab, device)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map integer tokens (*L,) and positions (n_tokens,) or (*L,), default 0, 1, ..., to logits (*L, vocab)."""
        x = self.embedding(tokens)
        for block in self.block:
            x = block(x, positions)
        logits: Tensor = self.unembedding(self.norm(x))
        return logits
