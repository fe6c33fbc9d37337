"""Configurations: the model's numbers, how one run uses them, and the presets.

Field names are those of the public gpt-oss configuration. Nothing here imports torch at module level, so
that configs can be read, checked and reported on a machine without it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError

RMS_NORM_EPS = 1e-5
SWIGLU_ALPHA = 1.702  # the public gpt-oss model's; sigmoid(1.702 x) approximates the Gaussian CDF


def check_number(name: str, value: object, *, integral: bool = False) -> None:
    """Refuse what is no positive number.

    Raises:
        UsageError: says the name and the value.
    """
    kinds = (int,) if integral else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not 0 < value < 2**40:  # type: ignore[operator]  # is_number guards the comparison
        kind = "a positive integer" if integral else "a positive number"
        below = " below 2**40" if is_number and value > 0 else ""  # type: ignore[operator]  # as above
        raise UsageError(f"{name} is {value!r}; {kind}{below} is needed.")


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
        """Rows of the fused query, key and value projection."""
        return self.head_dim * (self.num_attention_heads + 2 * self.num_key_value_heads)

    def window(self, layer_idx: int) -> int:
        """The sliding window of a layer in tokens; 0 means full attention (odd layers)."""
        return self.sliding_window if layer_idx % 2 == 0 else 0


@dataclass(frozen=True, kw_only=True)
class NeuronConfig:
    """How one compiled model is used: batch and sequence in tokens, dtype, and tp_degree in ranks."""

    batch_size: int = 1
    seq_len: int = 128
    torch_dtype: Any = "bfloat16"
    tp_degree: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "seq_len", "tp_degree"):
            check_number(name, getattr(self, name), integral=True)
        import torch  # noqa: PLC0415  (a ModelConfig needs no torch)

        dtype = getattr(torch, self.torch_dtype, None) if isinstance(self.torch_dtype, str) else self.torch_dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise UsageError(f"torch_dtype {self.torch_dtype!r} is not a floating-point dtype of torch.")
        object.__setattr__(self, "torch_dtype", dtype)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig(ModelConfig):
    """A model together with how it is run; what the sharded modules take."""

    neuron_config: NeuronConfig = field(default_factory=NeuronConfig)

    @classmethod
    def of(cls, model: ModelConfig, neuron_config: NeuronConfig) -> InferenceConfig:
        """The same model, run as `neuron_config` says."""
        values = {f.name: getattr(model, f.name) for f in dataclasses.fields(ModelConfig)}
        return cls(neuron_config=neuron_config, **values)


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
