"""The work of one rank: operations, bytes of weights, cache and activations, and messages, per component.

Pure arithmetic on the config's numbers; a test holds it equal to what ranks of real runs record and to what torch's
flop counter counts: 2 m n k operations for a product of (m, k) and (k, n). Sizes that a degree does not divide are
rounded up, as a padded model would hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from ..config.divisibility import MXFP4_BLOCK
from ..config.model import plan_cuts_sequence, plan_mesh
from .messages import Message, messages

ACTIVATION_BYTES = 2  # bfloat16
REDUCE_BYTES = 4  # partial sums are added in float32 (as the sharded modules do)
NORM_BYTES = 4  # norm scales are float32

# A model's numbers: num_hidden_layers, num_experts, experts_per_token (1 of 1 where it is dense), vocab_size,
# hidden_size, intermediate_size, head_dim, num_attention_heads, num_key_value_heads, and window(layer) in tokens or 0.
Decoder: TypeAlias = Any


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How weights are stored: bytes per weight, and how many along the intermediate size form one uncut block."""

    name: str
    dense_bytes: float
    expert_bytes: float
    block: int = 1


BF16 = Storage(name="bf16", dense_bytes=2, expert_bytes=2)
INT8 = Storage(name="int8", dense_bytes=1, expert_bytes=1)
# 4 bits per weight and one 8-bit scale per block (OCP Microscaling Formats 1.0); the experts alone are packed
MXFP4 = Storage(name="mxfp4", dense_bytes=2, expert_bytes=1 / 2 + 1 / MXFP4_BLOCK, block=MXFP4_BLOCK)
STORAGES = {storage.name: storage for storage in (BF16, MXFP4, INT8)}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward: `new` tokens in each of `batch` rows attend to `context` positions; logits for `logits` tokens."""

    batch: int
    new: int
    context: int
    logits: int

    @property
    def tokens(self) -> int:
        """The number of new tokens in all rows."""
        return self.batch * self.new


def prefill(batch: int, seq: int) -> Step:
    """The step of `seq` prompt tokens in each of `batch` rows at once; only each row's last logits are needed."""
    return Step(batch=batch, new=seq, context=seq, logits=batch)


def decode(batch: int, seq: int) -> Step:
    """The step of one token in each of `batch` rows, with `seq` positions in the cache."""
    return Step(batch=batch, new=1, context=seq, logits=batch)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of one rank in one step.

    `flops`: floating-point operations of matrix products. Bytes: `weight_bytes` are held, of which `read_bytes` are
    read (experts that no token chose are not); `cache_bytes` are keys and values of earlier tokens. `scores` counts
    attention scores of a prefill, `boundaries` the places where a rank waits for the others, also at tp 1, where
    `messages` is empty.
    """

    flops: float = 0.0
    weight_bytes: float = 0.0
    read_bytes: float = 0.0
    cache_bytes: float = 0.0
    activation_bytes: float = 0.0
    scores: float = 0.0
    messages: tuple[Message, ...] = ()
    boundaries: int = 0

    def __add__(self, other: Work) -> Work:
        """The sum of both, one after the other."""
        return Work(**{name: value + getattr(other, name) for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Place:
    """A rank of `tp` that computes `step` by a plan; an element that is summed over ranks has `reduce_bytes` bytes."""

    config: Decoder
    tp: int
    step: Step
    storage: Storage = BF16
    reduce_bytes: int = REDUCE_BYTES
    plan: str = "tp"

    def share(self, size: int) -> int:
        """A rank's part of `size` elements, rounded up."""
        return -(-size // self.tp)

    @property
    def cuts_sequence(self) -> bool:
        """Whether a rank has its own part of the new tokens between the sharded regions."""
        return plan_cuts_sequence(self.plan, self.tp, self.step.new)

    @property
    def own_tokens(self) -> int:
        """The number of new tokens that a rank has between the sharded regions."""
        return self.step.tokens // self.tp if self.cuts_sequence else self.step.tokens

    @property
    def axes(self) -> tuple[int, int]:
        """How many ranks share out the experts, and how many the columns of each."""
        mesh = plan_mesh(self.plan, self.tp, self.config.num_experts)
        return mesh.get("ep", 1), mesh["tp"]

    def gather(self) -> tuple[Message, ...]:
        """The gather of the sequence that a sharded region begins with; none where hidden states are whole."""
        size = self.own_tokens * self.config.hidden_size * ACTIVATION_BYTES
        return messages(("all_gather", size, self.tp)) if self.cuts_sequence else ()

    def reduction(self) -> tuple[Message, ...]:
        """The sum of hidden states (tokens, hidden) over ranks, of which each may keep its tokens; none at tp 1."""
        size = self.step.tokens * self.config.hidden_size * self.reduce_bytes
        return messages(("reduce_scatter" if self.cuts_sequence else "all_reduce", size, self.tp))


def touched_experts(config: Decoder, tokens: int) -> float:
    """Expected number of experts that `tokens` tokens choose: E (1 - (1 - k / E)^tokens).

    By linearity of expectation, for tokens that choose k of E experts independently and with equal chances.
    """
    return config.num_experts * (1 - (1 - config.experts_per_token / config.num_experts) ** tokens)


def rmsnorm(place: Place, layer: int = 0) -> Work:
    """RMSNorm: replicated; reads and writes every token that the rank has."""
    del layer
    hidden = place.config.hidden_size
    return Work(
        weight_bytes=hidden * NORM_BYTES,
        read_bytes=hidden * NORM_BYTES,
        activation_bytes=2 * place.own_tokens * hidden * ACTIVATION_BYTES,
    )


def rope(place: Place, layer: int = 0) -> Work:
    """Rotary embedding of the rank's query and key heads; its table counts as no weight."""
    del layer
    heads = sum(_heads(place))
    return Work(activation_bytes=2 * place.step.tokens * heads * place.config.head_dim * ACTIVATION_BYTES)


def attention(place: Place, layer: int) -> Work:
    """Attention: norm, fused QKV projection, scores over the context, output projection, one reduction."""
    c, step = place.config, place.step
    (queries, kv_heads), hidden = _heads(place), c.hidden_size
    rows, width = (queries + 2 * kv_heads) * c.head_dim, queries * c.head_dim
    context = _context(c, step, layer)
    weights = (rows * (hidden + 1) + hidden * (width + 1) + queries) * place.storage.dense_bytes
    own = Work(
        flops=2 * step.tokens * (hidden * rows + width * hidden + 2 * context * width),
        weight_bytes=weights,
        read_bytes=weights,
        cache_bytes=0 if step.new > 1 else step.batch * cache_bytes_per_token(place) * context,
        scores=step.tokens * context * queries if step.new > 1 else 0,
        messages=place.gather() + place.reduction(),
        boundaries=1,
    )
    return rmsnorm(place) + own


def mlp(place: Place, layer: int = 0) -> Work:
    """Experts: norm, router (replicated), the chosen experts' slices, one reduction, down biases (replicated).

    Where experts are shared out, a rank's part of the operations is expected: each expert is chosen as often.
    """
    del layer
    c, tokens, dense = place.config, place.step.tokens, place.storage.dense_bytes
    hidden, experts, (ep, tp) = c.hidden_size, c.num_experts, place.axes
    local, routed = -(-c.intermediate_size // tp), tokens // ep if _exchanges(place) else tokens
    held = -(-local // place.storage.block) * place.storage.block
    per_expert = 3 * held * hidden * place.storage.expert_bytes + 2 * held * dense
    router, down_bias = experts * (hidden + 1) * dense, hidden * dense
    expert_flops = 2 * 3 * hidden * local * c.experts_per_token / ep
    own = Work(
        flops=2 * hidden * experts * (routed + place.own_tokens) + tokens * expert_flops,
        weight_bytes=router + experts * (down_bias + per_expert / ep),
        read_bytes=router + touched_experts(c, tokens) * (down_bias + per_expert / ep),
        messages=_expert_messages(place),
        boundaries=1,
    )
    return rmsnorm(place) + own


def _exchanges(place: Place) -> bool:
    """Whether tokens go to the ranks that hold their experts, and come back."""
    return place.plan == "ep" and place.cuts_sequence


def _expert_messages(place: Place) -> tuple[Message, ...]:
    """A sum over all ranks; or tokens gathered along tp, the router's logits along ep, two exchanges, and a sum."""
    if not _exchanges(place):
        return place.gather() + place.reduction()
    (ep, tp), tokens, hidden = place.axes, place.step.tokens, place.config.hidden_size
    return messages(
        ("all_gather", tokens // place.tp * hidden * ACTIVATION_BYTES, tp),
        ("all_gather", tokens // ep * place.config.num_experts * ACTIVATION_BYTES, ep),
        ("all_to_all", tokens * hidden * ACTIVATION_BYTES, ep),
        ("all_to_all", tokens * hidden * place.reduce_bytes, ep),
        ("reduce_scatter", tokens // ep * hidden * place.reduce_bytes, tp),
    )


def transformer_block(place: Place, layer: int) -> Work:
    """One layer: attention and experts."""
    return attention(place, layer) + mlp(place, layer)


def embedding(place: Place, layer: int = 0) -> Work:
    """Embedding: a row of the rank's part of the table for every token, then one reduction."""
    del layer
    c, tokens = place.config, place.step.tokens
    row = c.hidden_size * ACTIVATION_BYTES
    return Work(
        weight_bytes=place.share(c.vocab_size) * c.hidden_size * place.storage.dense_bytes,
        activation_bytes=2 * tokens * row,
        messages=place.reduction(),
        boundaries=1,
    )


def unembedding(place: Place, layer: int = 0) -> Work:
    """Logits of the rank's share of the vocabulary."""
    del layer
    c, tokens = place.config, place.step.logits
    local = place.share(c.vocab_size)
    weights = local * c.hidden_size * place.storage.dense_bytes
    return Work(
        flops=2 * tokens * local * c.hidden_size,
        weight_bytes=weights,
        read_bytes=weights,
        activation_bytes=tokens * (c.hidden_size + local) * ACTIVATION_BYTES,
        messages=place.gather(),
    )


def transformer(place: Place, layer: int = 0) -> Work:
    """The whole model; every rank gathers the logits."""
    del layer
    work = embedding(place)
    for number in range(place.config.num_hidden_layers):
        work += transformer_block(place, number)
    logits = place.step.logits * place.share(place.config.vocab_size) * ACTIVATION_BYTES
    gather = messages(("all_gather", logits, place.tp))
    return work + rmsnorm(place) + unembedding(place) + Work(messages=gather, boundaries=1)


def cache_bytes_per_token(place: Place) -> int:
    """Bytes of the keys and values of one position in one layer, on one rank."""
    return 2 * _heads(place)[1] * place.config.head_dim * ACTIVATION_BYTES


def cache_bytes(place: Place) -> int:
    """Bytes of keys and values on a rank after `step.context` positions, all layers; windowed ones keep the window."""
    layers = range(place.config.num_hidden_layers)
    positions = sum(_window(place.config, layer, place.step.context) for layer in layers)
    return place.step.batch * positions * cache_bytes_per_token(place)


def _heads(place: Place) -> tuple[int, int]:
    """Query and KV heads of a rank; past num_key_value_heads ranks, each holds one of them."""
    return place.share(place.config.num_attention_heads), place.share(place.config.num_key_value_heads)


def _context(config: Decoder, step: Step, layer: int) -> int:
    """Positions that scores are computed for: in a prefill all, masked ones too; in a decode those in the cache."""
    return step.context if step.new > 1 else _window(config, layer, step.context)


def _window(config: Decoder, layer: int, positions: int) -> int:
    return min(positions, config.window(layer) or positions)
