"""gpt-oss's numbers, how one run uses them, and the presets. No torch.

Field names are those of the public gpt-oss configuration.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ....config.model import NeuronConfig, check_number, plan_cuts_sequence, plan_mesh
from ....errors import UsageError

RMS_NORM_EPS = 1e-5
SWIGLU_ALPHA = 1.702  # the public gpt-oss model's; sigmoid(1.702 x) approximates the Gaussian CDF


@dataclass(frozen=True, kw_only=True)
class RankShape:
    """What one rank holds, the same on all: query heads, KV heads (at least one), experts' columns, vocabulary rows."""

    q_heads: int
    kv_heads: int
    intermediate: int
    vocab: int


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """gpt-oss's architecture. Defaults are gpt-oss-120b's (public config.json).

    Raises:
        UsageError: when a number cannot describe a gpt-oss model; the message names field and value.
    """

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
    rms_norm_eps: ClassVar[float] = RMS_NORM_EPS
    swiglu_alpha: ClassVar[float] = SWIGLU_ALPHA

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(ModelConfig):
            check_number(spec.name, getattr(self, spec.name), integral=spec.type == "int")
        if self.experts_per_token > self.num_experts:
            raise UsageError(
                f"experts_per_token {self.experts_per_token} exceeds num_experts {self.num_experts}; "
                "a token cannot choose more experts than there are."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UsageError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}; every KV head must serve the same number of query heads."
            )
        if self.head_dim % 2:
            raise UsageError(f"head_dim {self.head_dim} is odd; rotary embedding rotates pairs.")
        self._check_yarn()

    def _check_yarn(self) -> None:
        """YaRN's ramp must lie inside the head's pairs, in ascending order (arXiv 2309.00071, section 3.2)."""
        if self.rope_scaling_factor <= 1:
            return
        if self.rope_theta == 1:
            raise UsageError("rope_theta is 1, by which every pair turns alike; YaRN needs another, as 150000.")
        low, high = (
            self.head_dim
            / 2
            * math.log(self.initial_context_length / (2 * math.pi * turns))
            / math.log(self.rope_theta)
            for turns in (self.rope_ntk_beta, self.rope_ntk_alpha)
        )
        if not 0 < low < high < self.head_dim / 2 - 1:
            raise UsageError(
                f"YaRN's ramp runs from pair {low:.2f} to {high:.2f} of head_dim {self.head_dim}, where "
                f"0 < low < high < {self.head_dim / 2 - 1:g} is needed; check initial_context_length, rope_theta and "
                "the rope_ntk numbers."
            )

    @property
    def qkv_size(self) -> int:
        """Number of rows of the fused query, key and value projection."""
        return self.head_dim * (self.num_attention_heads + 2 * self.num_key_value_heads)

    def on_rank(self, tp: int) -> RankShape:
        """What each of `tp` ranks holds.

        Raises:
            UsageError: query heads, intermediate size or vocabulary do not divide.
        """
        sizes = {"query heads": self.num_attention_heads, "intermediate size": self.intermediate_size}
        for what, size in (sizes | {"vocabulary": self.vocab_size}).items():
            if size % tp:
                raise UsageError(f"{what} {size} is not divisible by tp_degree {tp}.")
        return RankShape(
            q_heads=self.num_attention_heads // tp,
            kv_heads=max(1, self.num_key_value_heads // tp),
            intermediate=self.intermediate_size // tp,
            vocab=self.vocab_size // tp,
        )

    @property
    def plan(self) -> str:
        """How the model is shared out over ranks."""
        return "tp"

    def window(self, layer_idx: int) -> int:
        """The sliding window of a layer in tokens; 0 means full attention (odd layers)."""
        return self.sliding_window if layer_idx % 2 == 0 else 0


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(ModelConfig):
    """A model together with how it is run; what the sharded modules take."""

    neuron_config: NeuronConfig = field(default_factory=NeuronConfig)

    @classmethod
    def of(cls, model: ModelConfig, neuron_config: NeuronConfig) -> InferenceConfig:
        """The same model, run as `neuron_config` says."""
        values = {f.name: getattr(model, f.name) for f in dataclasses.fields(ModelConfig)}
        return cls(neuron_config=neuron_config, **values)

    @property
    def plan(self) -> str:
        """How the model is shared out over ranks."""
        return self.neuron_config.plan

    def cuts_sequence(self, ranks: int, tokens: int = 0) -> bool:
        """Whether each of `ranks` has its own part of `tokens` tokens of a row; by default, of the configured ones."""
        return plan_cuts_sequence(self.plan, ranks, tokens or self.neuron_config.seq_len)

    def mesh(self, ranks: int) -> dict[str, int]:
        """The axes of the ranks, and how many are along each."""
        return plan_mesh(self.plan, ranks, self.num_experts)


# tiny: every sharded dimension divides by 32 with an odd share, H != I, tp 32 replicates KV heads, and the
# default sequence is longer than the window.
PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        num_hidden_layers=2,
        num_experts=8,
        vocab_size=544,
        hidden_size=96,
        intermediate_size=160,
        head_dim=16,
        sliding_window=16,
    ),
    "gpt-oss-20b": ModelConfig(num_hidden_layers=24, num_experts=32),
    "gpt-oss-120b": ModelConfig(),
}

ROWS = 3  # of the component decode, at least
DECODE_STEPS = 8  # of it, at most: as many as the caches have slots for

# What can be verified alone, in the order of the data.
COMPONENTS: Mapping[str, str] = {
    "rmsnorm": "Replicated on every rank: what is at stake is that all ranks agree.",
    "rope": "Query and key heads of each rank are rotated where they are; there are no parameters.",
    "attention": "Attention with its norm and residual.",
    "mlp": "Router and experts with their norm and residual.",
    "transformer_block": "One layer.",
    "embedding": "The vocabulary shared out by rows.",
    "unembedding": "Logits, each rank its share of the vocabulary.",
    "transformer": "The whole model, logits gathered on every rank.",
    "decode": "The whole model as it is served: prefill, decode steps and further requests, with a KV cache.",
}
