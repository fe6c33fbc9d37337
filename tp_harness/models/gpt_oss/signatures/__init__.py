"""Known mistakes in gpt-oss's modules, and what the taps of its reference mean.

To add one: a function that computes the wrong tensor, and an entry in the tuple of its file.
"""

from __future__ import annotations

from torch import nn

from ....diagnosis.signature import Signature
from ....reference import gpt_oss, rotary
from .attention import ATTENTION
from .blocks import BLOCKS
from .experts import EXPERTS
from .norm import NORM
from .replay import steps
from .rotation import ROTATION
from .vocabulary import VOCABULARY

SIGNATURES: tuple[Signature, ...] = (*NORM, *ATTENTION, *ROTATION, *EXPERTS, *BLOCKS, *VOCABULARY)
_LAST: dict[type[nn.Module], tuple[str, str]] = {  # module -> the submodule and leaf that its output is
    gpt_oss.RMSNorm: ("", "norm"),
    gpt_oss.AttentionBlock: ("", "residual"),
    gpt_oss.MLPBlock: ("", "residual"),
    gpt_oss.TransformerBlock: ("mlp", "residual"),
    gpt_oss.Embedding: ("", "total"),
    gpt_oss.Unembedding: ("", "logits"),
    gpt_oss.Transformer: ("unembedding", "logits"),
}

__all__ = ["SIGNATURES", "maker", "steps"]


def maker(reference: nn.Module, name: str) -> tuple[str, str] | None:
    """The submodule and leaf whose value a tensor is; None: another's module."""
    if isinstance(reference, rotary.RotaryEmbedding):
        return ("", ("q_rope", "k_rope")[int(name.rpartition(".")[2]) % 2]) if name.startswith("output.") else None
    known = next((kind for kind in type(reference).__mro__ if kind in _LAST), None)
    if known is None:
        return None
    if name.startswith("output.past."):  # a layer's cache, of which no signature speaks
        return f"block.{name.split('.')[2]}.attn", "cache"
    if name.startswith("output."):
        return _LAST[known]
    if name == "norm" and isinstance(reference, gpt_oss.Transformer):
        return "norm", "norm"
    owner, _, leaf = name.rpartition(".")
    return owner, leaf
