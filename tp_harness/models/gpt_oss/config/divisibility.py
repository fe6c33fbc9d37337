"""What must divide in gpt-oss, component by component. No torch."""

from __future__ import annotations

from ....config.divisibility import MXFP4_BLOCK, TRN1_DEGREES, Requirement, listed
from . import ModelConfig


def _kv_fits(config: ModelConfig, tp: int) -> bool:
    return config.num_key_value_heads % tp == 0 or tp % config.num_key_value_heads == 0


_ATTENTION = ("rope", "attention", "transformer_block", "transformer", "decode")
_MLP = ("mlp", "transformer_block", "transformer", "decode")
_VOCAB = ("embedding", "unembedding", "transformer", "decode")

REQUIREMENTS = (
    Requirement(
        what=lambda c: f"num_attention_heads {c.num_attention_heads}",
        fits=lambda c, tp: c.num_attention_heads % tp == 0,
        needed_by=_ATTENTION,
    ),
    Requirement(
        what=lambda c: f"num_key_value_heads {c.num_key_value_heads} (neither divides the other)",
        fits=_kv_fits,
        needed_by=_ATTENTION,
    ),
    Requirement(
        what=lambda c: f"intermediate_size {c.intermediate_size}",
        fits=lambda c, tp: c.intermediate_size % tp == 0,
        needed_by=_MLP,
    ),
    Requirement(
        what=lambda c: f"vocab_size {c.vocab_size}",
        fits=lambda c, tp: c.vocab_size % tp == 0,
        needed_by=_VOCAB,
    ),
)


def mxfp4_note(config: ModelConfig, degrees: tuple[int, ...]) -> str | None:
    """Which degrees cut through a 32-element MXFP4 block of the down projection, if any do.

    It is a note and no error: this tool's checkpoints are not packed. A loader that slices packed weights
    fails, or misreads scales, at those degrees.
    """
    cut = [tp for tp in degrees if (config.intermediate_size // tp) % MXFP4_BLOCK]
    if not cut:
        return None
    fine = [tp for tp in TRN1_DEGREES if config.intermediate_size % (tp * MXFP4_BLOCK) == 0]
    return (
        f"packed MXFP4 weights cannot be sliced at tp {listed(cut)}: intermediate_size "
        f"{config.intermediate_size} / tp is no multiple of their block of {MXFP4_BLOCK} "
        f"({listed(fine)} would do); dequantise before sharding"
    )
