"""The list of kernels: entry point, twin, shapes, limits, and the words that say how they were checked."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tp_harness.kernels import (
    attention,
    attention_torch,
    expert_mlp,
    expert_mlp_torch,
    linear,
    linear_torch,
    rmsnorm,
    rmsnorm_torch,
    rope,
    rope_torch,
    router,
    router_torch,
)

STATUS = "checked by a CPU interpreter of documented NKI 0.6 semantics; never compiled by neuronx-cc, never run on Trn1"
Dims = dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """One kernel. `dims` gives each tensor's dimensions by symbol; equal symbols are equal sizes."""

    name: str
    kernel: Callable[..., Any]
    twin: Callable[..., Any]
    dims: Dims
    limits: str
    sbuf_peak_bytes: int
    psum_peak_banks: int
    status: str = STATUS


PEAKS_AT = "gpt-oss-20b, tp 8, 128 tokens, float32"
# Peaks: measured per partition; a test measures them again.
KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        name="rmsnorm",
        kernel=rmsnorm.rmsnorm,
        twin=rmsnorm_torch.rmsnorm_torch,
        dims={"x": ("T", "H"), "scale": ("H",)},
        limits="H <= 6144 (float32)",
        sbuf_peak_bytes=57_612,
        psum_peak_banks=2,
    ),
    KernelSpec(
        name="rope",
        kernel=rope.rope,
        twin=rope_torch.rope_torch,
        dims={"x": ("T", "N", "D"), "cos": ("T", "D/2"), "sin": ("T", "D/2")},
        limits="D even, N * D <= 8192 (float32)",
        sbuf_peak_bytes=4_608,
        psum_peak_banks=0,
    ),
    KernelSpec(
        name="attention",
        kernel=attention.attention,
        twin=attention_torch.attention_torch,
        dims={
            "q": ("B", "S", "Q", "D"),
            "k": ("B", "S", "G", "D"),
            "v": ("B", "S", "G", "D"),
            "sinks": ("Q",),
        },
        limits="D <= 128, S <= 8192 (float32), Q a multiple of G, queries and keys of equal length",
        sbuf_peak_bytes=3_148,
        psum_peak_banks=1,
    ),
    KernelSpec(
        name="router",
        kernel=router.router,
        twin=router_torch.router_torch,
        dims={"x": ("T", "H"), "weight": ("E", "H"), "bias": ("E",)},
        limits="8 <= E <= 512, top_k <= 8, H <= 4096 (float32)",
        sbuf_peak_bytes=27_008,
        psum_peak_banks=2,
    ),
    KernelSpec(
        name="expert_mlp",
        kernel=expert_mlp.expert_mlp,
        twin=expert_mlp_torch.expert_mlp_torch,
        dims={
            "x": ("T", "H"),
            "affinities": ("T", "E"),
            "mlp1_weight": ("E", "2I", "H"),
            "mlp1_bias": ("E", "2I"),
            "mlp2_weight": ("E", "H", "I"),
            "mlp2_bias": ("E", "H"),
        },
        limits="H <= 3072 and I <= 3072 (float32); all experts run for all tokens",
        sbuf_peak_bytes=49_792,
        psum_peak_banks=3,
    ),
    KernelSpec(
        name="linear",
        kernel=linear.linear,
        twin=linear_torch.linear_torch,
        dims={"x": ("T", "K"), "weight": ("N", "K"), "bias": ("N",)},
        limits="K <= 5120 (float32)",
        sbuf_peak_bytes=84_480,
        psum_peak_banks=3,
    ),
    KernelSpec(
        name="linear_no_bias",
        kernel=linear.linear_no_bias,
        twin=linear_torch.linear_no_bias_torch,
        dims={"x": ("T", "K"), "weight": ("N", "K")},
        limits="K <= 5120 (float32)",
        sbuf_peak_bytes=83_456,
        psum_peak_banks=3,
    ),
)
_BY_NAME = {spec.name: spec for spec in KERNELS}


def names() -> tuple[str, ...]:
    """Return the kernels' names."""
    return tuple(_BY_NAME)


def spec(name: str) -> KernelSpec:
    """Return the kernel called `name`.

    Raises:
        KeyError: there is none; lists the choices and the nearest one.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    close = difflib.get_close_matches(name, _BY_NAME, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise KeyError(f"unknown kernel {name!r}{hint} Choices: {', '.join(_BY_NAME)}")


def shapes(name: str, model: Any, tp: int, tokens: int) -> dict[str, dict[str, int]]:
    """Return, for each use of a kernel in the family's model, the sizes (elements) of its symbols on one of `tp` ranks.

    Raises:
        KeyError: no kernel has that name.
    """
    rank = model.on_rank(tp)
    hidden, head = model.hidden_size, model.head_dim
    queries = rank.q_heads * head
    uses: dict[str, dict[str, dict[str, int]]] = {
        "rmsnorm": {"norm": {"T": tokens, "H": hidden}},
        "rope": {
            "queries": {"T": tokens, "N": rank.q_heads, "D": head, "D/2": head // 2},
            "keys": {"T": tokens, "N": rank.kv_heads, "D": head, "D/2": head // 2},
        },
        "attention": {"sdpa": {"B": 1, "S": tokens, "Q": rank.q_heads, "G": rank.kv_heads, "D": head}},
        "router": {"gate": {"T": tokens, "H": hidden, "E": model.num_experts}},
        "expert_mlp": {
            "experts": {
                "T": tokens,
                "H": hidden,
                "E": model.num_experts,
                "I": rank.intermediate,
                "2I": 2 * rank.intermediate,
            }
        },
        "linear": {"qkv": {"T": tokens, "K": hidden, "N": queries + 2 * rank.kv_heads * head}},
        "linear_no_bias": {
            "out": {"T": tokens, "K": queries, "N": hidden},
            "unembedding": {"T": tokens, "K": hidden, "N": rank.vocab},
        },
    }
    return uses[spec(name).name]
