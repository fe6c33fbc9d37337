"""What does not divide, said before any rank starts, with the degrees that would.

No torch: a plan's arithmetic on the config's numbers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import UsageError
from .model import ModelConfig

TRN1_DEGREES = (1, 2, 8, 32)
MXFP4_BLOCK = 32


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One thing a degree must satisfy: `needed_by` components, and the test on (config, tp)."""

    what: Callable[[ModelConfig], str]
    fits: Callable[[ModelConfig, int], bool]
    needed_by: tuple[str, ...]


def _kv_fits(config: ModelConfig, tp: int) -> bool:
    return config.num_key_value_heads % tp == 0 or tp % config.num_key_value_heads == 0


_ATTENTION = ("rope", "attention", "transformer_block", "transformer")
_MLP = ("mlp", "transformer_block", "transformer")
_VOCAB = ("embedding", "unembedding", "transformer")

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


def check_degrees(config: ModelConfig, components: tuple[str, ...], degrees: tuple[int, ...]) -> None:
    """Refuse degrees over which something that a chosen component shards does not divide.

    Raises:
        UsageError: names every number that does not divide, and which of the Trn1 degrees would.
    """
    for tp in degrees:
        needed = [r for r in REQUIREMENTS if set(r.needed_by) & set(components)]
        broken = [r.what(config) for r in needed if not r.fits(config, tp)]
        if broken:
            would = [d for d in TRN1_DEGREES if all(r.fits(config, d) for r in needed)]
            raise UsageError(
                f"tp_degree {tp} does not divide {' and '.join(broken)}. "
                f"Of the Trn1 degrees, {_listed(would)} would; choose with --tp."
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
        f"packed MXFP4 weights cannot be sliced at tp {_listed(cut)}: intermediate_size "
        f"{config.intermediate_size} / tp is no multiple of their block of {MXFP4_BLOCK} "
        f"({_listed(fine)} would do); dequantise before sharding"
    )


def _listed(degrees: list[int]) -> str:
    return ", ".join(map(str, degrees)) or "none"
