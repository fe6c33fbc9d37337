"""What a rank holds of a model at a tensor-parallel degree, in the sizes that kernels see."""

from __future__ import annotations

from dataclasses import dataclass

from tp_harness.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class RankSizes:
    """What one rank holds; the same on all ranks."""

    q_heads: int
    kv_heads: int
    intermediate: int
    vocab: int


def per_rank(model: ModelConfig, tp: int) -> RankSizes:
    """Divide a model among `tp` ranks; beyond the number of key/value heads each rank holds one of them.

    Raises:
        ValueError: query heads or intermediate size do not divide.
    """
    for what, size in (("query heads", model.num_attention_heads), ("intermediate size", model.intermediate_size)):
        if size % tp:
            raise ValueError(f"{what} {size} is not divisible by tp_degree {tp}")
    return RankSizes(
        q_heads=model.num_attention_heads // tp,
        kv_heads=max(1, model.num_key_value_heads // tp),
        intermediate=model.intermediate_size // tp,
        vocab=model.vocab_size // tp,
    )
