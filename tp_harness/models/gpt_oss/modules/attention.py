"""Attention with query heads, sinks and output projection sharded by head.

Shape suffixes: B batch, S sequence (query), T sequence (key), H hidden, K local KV heads, M query heads per
local KV head, D head_dim, N = K M D.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ....parallel.group import Group, current_group
from ....parallel.nxd_attributes import mark
from ....parallel.placements import KVHeads, Partial, Placement, QKVHeads, Replicate, Shard
from ....reference.kv_cache import KVCache
from ..config import InferenceConfig, ModelConfig
from .kv_cache import extended, written
from .layers import Projection, as_batch, initialise, parameter, reduce_dtype, softmax
from .norm import NeuronGPTOSSRMSNorm
from .rope import NeuronGPTOSSRotaryEmbedding
from .sequence import gathered, placement, summed


class NeuronGPTOSSAttentionBlock(nn.Module):
    """x + attention(norm(x)): grouped-query attention with learned sinks, windowed on even layers.

    Each rank computes its query heads with the KV heads that serve them. The output projection leaves
    partial sums; one all_reduce (sequence parallel: reduce_scatter) adds them, and only then the bias is added, once.
    """

    def __init__(
        self,
        config: InferenceConfig,
        layer_idx: int = 0,
        *,
        group: Group | None = None,
        weight_init_value: float | None = None,
    ) -> None:
        super().__init__()
        self.group = group or current_group()
        self.head_dim = config.head_dim
        self.local_heads = config.num_attention_heads // self.group.size
        self.local_kv_heads = max(1, config.num_key_value_heads // self.group.size)
        self.window = config.window(layer_idx)
        self.sequence_parallel = config.cuts_sequence(self.group.size)
        self.softmax_scale = 1 / math.sqrt(config.head_dim)
        dtype, hidden = config.neuron_config.torch_dtype, config.hidden_size
        rows = (self.local_heads + 2 * self.local_kv_heads) * self.head_dim
        self.extend, self.write = extended, written  # what is done with a cache
        self.norm = NeuronGPTOSSRMSNorm(config)
        self.sinks = parameter(self.local_heads, dtype=dtype)
        self.qkv = Projection(rows, hidden, dtype=dtype)
        self.out = Projection(hidden, self.local_heads * self.head_dim, dtype=dtype)
        self.rope = NeuronGPTOSSRotaryEmbedding(config)
        self.q_rope, self.k_rope, self.value, self.heads = (nn.Identity() for _ in range(4))
        self.partial, self.total, self.reduced, self.residual = (nn.Identity() for _ in range(4))
        mark(self, self.plan(config), self.group.size)
        initialise(self, weight_init_value)

    @staticmethod
    def plan(config: ModelConfig) -> dict[str, Placement]:
        """Parameter name -> placement."""
        qkv = QKVHeads(config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        return {
            "sinks": Shard(0),
            "norm.scale": Replicate(),
            "qkv.weight": qkv,
            "qkv.bias": qkv,
            "out.weight": Shard(1, unit=config.head_dim),
            "out.bias": Replicate(),
        }

    @staticmethod
    def taps(config: ModelConfig) -> dict[str, Placement]:
        """Intermediate tensor -> placement, in order of execution."""
        kv = KVHeads(-2, config.num_key_value_heads)
        return {
            "norm": placement(config),
            "q_rope": Shard(-2),
            "k_rope": kv,
            "value": kv,
            "heads": Shard(-1, unit=config.head_dim),
            "partial": Partial(),
            "total": placement(config),
            "reduced": placement(config),
            "residual": placement(config),
        }

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        cache: KVCache | None = None,
        *,
        sequence_parallel: bool | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, KVCache]:
        """(batch, seq, hidden) and position_ids (batch, seq) int64, or (n_tokens, hidden); same shape and dtype out.

        With a cache, of this rank's KV heads, the tokens also attend to what it holds; the next cache is returned too.
        Then a position of -1 says that a token is padding. Sequence parallel, hidden states are this rank's tokens in
        and out; None: where the plan says so and the configured sequence divides.
        """
        is_cut = self.sequence_parallel if sequence_parallel is None else sequence_parallel
        x_BSH, positions_BS = as_batch(hidden_states, position_ids, self.group.size if is_cut else 1)
        t_BSH = gathered(self.group, self.norm(x_BSH), is_cut)
        q_BSKMD, k_BSKD, v_BSKD = self._query_key_value(t_BSH, positions_BS)
        new = KVCache(k_BSKD, v_BSKD, positions_BS)
        seen = new if cache is None else self.extend(cache, new)
        heads_BSN = self.heads(self._attend(q_BSKMD, seen.key, seen.value, positions_BS, seen.positions))
        partial_BSH = self.partial(self.out.without_bias(heads_BSN))
        total_BSH = self.total(summed(self.group, partial_BSH.to(reduce_dtype(x_BSH)), is_cut))
        reduced_BSH = self.reduced((total_BSH + self.out.bias).to(x_BSH.dtype))
        y = self.residual((x_BSH + reduced_BSH).view(hidden_states.shape))
        return y if cache is None else (y, self.write(cache, new))

    def _query_key_value(self, t_BSH: torch.Tensor, positions_BS: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value = self._split(self.qkv(t_BSH))
        query, key = self.rope(query, key, positions_BS.clamp(min=0))  # padding is rotated as position 0
        grouped = self.q_rope(query).unflatten(2, (self.local_kv_heads, -1))
        return grouped, self.k_rope(key), self.value(value)

    def _split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[query | key | value] to (batch, seq, heads, head_dim) each.

        By slices: torch.split along a dimension has given wrong results on Neuron (pytorch/xla#8640).
        """
        heads = qkv.unflatten(-1, (-1, self.head_dim))
        first_value = self.local_heads + self.local_kv_heads
        return (
            heads[:, :, : self.local_heads],
            heads[:, :, self.local_heads : first_value],
            heads[:, :, first_value:],
        )

    def _attend(
        self,
        q_BSKMD: torch.Tensor,
        k_BTKD: torch.Tensor,
        v_BTKD: torch.Tensor,
        queries_BS: torch.Tensor,
        keys_BT: torch.Tensor,
    ) -> torch.Tensor:
        """Softmax over the visible keys, by positions, and the head's sink, which takes weight and gives no value."""
        scores = torch.einsum("bskmd,btkd->bkmst", q_BSKMD, k_BTKD) * self.softmax_scale
        scores = scores.masked_fill(~self._visible(queries_BS, keys_BT)[:, None, None], -math.inf)
        sinks = self.sinks.to(scores.dtype).view(1, self.local_kv_heads, -1, 1, 1)
        with_sinks = torch.cat((scores, sinks.expand(*scores.shape[:-1], 1)), dim=-1)
        weights = softmax(with_sinks)[..., :-1]
        return torch.einsum("bkmst,btkd->bskmd", weights, v_BTKD).flatten(2)

    def _visible(self, queries_BS: torch.Tensor, keys_BT: torch.Tensor) -> torch.Tensor:
        """(batch, query, key): keys at or before the query, within the window where there is one, and not empty."""
        distance = queries_BS[:, :, None] - keys_BT[:, None, :]
        seen = (distance >= 0) & (keys_BT >= 0)[:, None, :]
        return seen & (distance < self.window) if self.window else seen
