"""What gpt-oss's components take of memory, and the work of each on Trn1. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ...trn1 import work
from .config import COMPONENTS, DECODE_STEPS, ROWS, ModelConfig

CALLS = DECODE_STEPS + 5  # of the component decode, each with caches of its own


def working_bytes(model: ModelConfig, component: str, tokens: tuple[int, int], tp: int, width: int) -> int:
    """Most bytes that one rank of `tp` holds in a forward, weights excepted.

    Args:
        model: its numbers.
        component: by name.
        tokens: (batch, seq).
        tp: the degree; 1 is also the single-core reference.
        width: bytes of an element.
    """
    batch, seq = _at_once(component, tokens)
    count, hidden, vocab = batch * seq, model.hidden_size, model.vocab_size
    states = 12 * count * hidden  # residual, norm, and what is made of them
    heads, head_dim = model.num_attention_heads, model.head_dim
    attention = 4 * batch * -(-heads // tp) * seq * (seq + 1) + 4 * count * model.qkv_size // tp
    attention += max(model.qkv_size * hidden, hidden * heads * head_dim) // tp
    experts = 8 * count * model.intermediate_size * 2 // tp
    logits = vocab * hidden // tp + 3 * count * vocab // tp
    whole = 2 * count * vocab if tp > 1 else 0  # gathered: in parts, and joined
    elements = {
        "attention": attention,
        "mlp": experts,
        "transformer_block": max(attention, experts),
        "unembedding": logits,
        "transformer": max(attention, experts, logits, whole + count * vocab // tp),
    }
    if component == "decode":
        elements["decode"] = elements["transformer"] + CALLS * _cache_elements(model, (batch, tokens[1]), tp)
    return width * (states + elements.get(component, 0))


def output_bytes(model: ModelConfig, component: str, tokens: tuple[int, int], width: int) -> int:
    """Bytes of the whole output of a component for (batch, seq) `tokens`; `width`: bytes of an element."""
    columns = model.vocab_size if component in ("unembedding", "transformer") else model.hidden_size
    if component != "decode":
        return width * tokens[0] * tokens[1] * columns
    batch, seq = _at_once(component, tokens)
    of_calls = (4 * seq + DECODE_STEPS + 1) * batch * model.vocab_size  # prefill, chunk, two further requests
    return width * (of_calls + CALLS * _cache_elements(model, (batch, tokens[1]), 1))


def _at_once(component: str, tokens: tuple[int, int]) -> tuple[int, int]:
    """Rows, and new tokens of each, in the largest call for (batch, seq) `tokens`."""
    batch, seq = tokens
    return (max(ROWS, batch), max(1, seq // 3)) if component == "decode" else tokens


def _cache_elements(model: ModelConfig, tokens: tuple[int, int], tp: int) -> int:
    """Numbers in the caches of all layers for (batch, slots) on one rank of `tp`."""
    batch, slots = tokens
    heads = max(1, model.num_key_value_heads // tp)
    layers = range(model.num_hidden_layers)
    held = sum(min(slots, model.window(layer) or slots) for layer in layers)
    return 2 * batch * held * heads * model.head_dim


def tapped_numbers(model: ModelConfig, tokens: int, tp: int) -> int:
    """How many numbers a rank's intermediate tensors of one layer hold for `tokens` tokens at degree `tp`.

    Some 14 hidden states, and the chosen experts' parts.
    """
    chosen = 3 * tokens * model.experts_per_token * 2 * model.intermediate_size // tp
    return 14 * tokens * model.hidden_size + chosen


def layer_of(parameter: str) -> int:
    """The index of a parameter's layer; 0 for what belongs to none."""
    return int(parameter.split(".")[1]) if parameter.startswith("block.") else 0


def layer_weights(model: ModelConfig) -> int:
    """Number of weights in the experts' matrices of one layer: nearly all that it has."""
    return 3 * model.num_experts * model.hidden_size * model.intermediate_size


# a call of decode has the work of the transformer, with the cache that its step says
WORK: Mapping[str, Callable[[work.Place, int], work.Work]] = {
    name: getattr(work, name) for name in COMPONENTS if name != "decode"
}
