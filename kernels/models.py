"""The sizes of tiny and gpt-oss-20b, and what a rank holds of them at a tensor-parallel degree."""

from __future__ import annotations

from dataclasses import dataclass

DEGREES = (1, 2, 8, 32)


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a gpt-oss model that kernels depend on."""

    name: str
    hidden: int
    intermediate: int
    num_experts: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    window: int
    vocab: int
    top_k: int = 4
    limit: float = 7.0
    alpha: float = 1.702
    eps: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class RankSizes:
    """What one rank holds; the same on all ranks."""

    q_heads: int
    kv_heads: int
    intermediate: int
    vocab: int


TINY = ModelSizes(
    name="tiny",
    hidden=96,
    intermediate=160,
    num_experts=8,
    num_q_heads=64,
    num_kv_heads=8,
    head_dim=16,
    window=16,
    vocab=544,
)
GPT_OSS_20B = ModelSizes(
    name="gpt-oss-20b",
    hidden=2880,
    intermediate=2880,
    num_experts=32,
    num_q_heads=64,
    num_kv_heads=8,
    head_dim=64,
    window=128,
    vocab=201_088,
)
MODELS = {model.name: model for model in (TINY, GPT_OSS_20B)}


def per_rank(model: ModelSizes, tp: int) -> RankSizes:
    """Divide a model among `tp` ranks; beyond the number of key/value heads each rank holds one of them."""
    for what, size in (("query heads", model.num_q_heads), ("intermediate", model.intermediate)):
        if size % tp:
            raise ValueError(f"{model.name}: {what} {size} is not divisible by tp_degree {tp}")
    return RankSizes(
        q_heads=model.num_q_heads // tp,
        kv_heads=max(1, model.num_kv_heads // tp),
        intermediate=model.intermediate // tp,
        vocab=model.vocab // tp,
    )
