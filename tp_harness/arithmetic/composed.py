"""Rules of operations that are formulas of others: softmax, norms, attention."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch

from .mode import ExactMode
from .operations import aten, named, rule
from .residues import numbers
from .residues.field import Numbers


@rule(*named("_softmax _safe_softmax"))
def _softmax(
    mode: ExactMode, func: Any, a: torch.Tensor, dim: int, half_to_float: Any = False, **_: Any
) -> torch.Tensor:
    out = softmax(mode, mode.number(a), dim, safe=func.overloadpacket is not aten._softmax)
    return mode.computed(out, torch.float32 if half_to_float is True else a.dtype)


def softmax(mode: ExactMode, x: Numbers, dim: int, *, safe: bool) -> Numbers:
    """exp(x - m) over its sum; which m is taken does not matter, because exp(a + b) = exp(a) exp(b) holds exactly.

    Where all is masked, a `safe` one is 0, and another nan.
    """
    raised = mode.field.exp(_from_peak(mode, x, dim))
    out = numbers.divide(mode.field, raised, numbers.total(mode.field, raised, [dim], keepdim=True))
    mode.seen.count("softmax", masked=int(x[0].isneginf().sum()), all=x[0].numel())
    out[0] = x[0].softmax(dim)
    if safe:
        out[0].masked_fill_(x[0].isneginf().all(dim, keepdim=True), 0.0)
    return out


def _from_peak(mode: ExactMode, x: torch.Tensor, dim: int) -> torch.Tensor:
    peak = numbers.gather(x, dim, x[0].argmax(dim, keepdim=True))
    peak[0] = torch.where(peak[0].isinf(), 0.0, peak[0])
    return numbers.subtract(mode.field, x, peak)


@rule(*named("_log_softmax"))
def _log_softmax(mode: ExactMode, func: Any, a: torch.Tensor, dim: int, half_to_float: Any) -> torch.Tensor:
    x = _from_peak(mode, mode.number(a), dim)
    raised = numbers.total(mode.field, mode.field.exp(x), [dim], keepdim=True)
    return mode.computed(numbers.subtract(mode.field, x, numbers.logarithm(mode.field, raised)), a.dtype)


@rule(*named("_softmax_backward_data"))
def _softmax_backward(mode: ExactMode, func: Any, grad: Any, out: Any, dim: int, dtype: Any) -> torch.Tensor:
    field, y = mode.field, mode.number(out)
    weighted = numbers.multiply(field, mode.number(grad), y)
    summed = numbers.total(field, weighted, [dim], keepdim=True)
    return mode.computed(numbers.subtract(field, weighted, numbers.multiply(field, y, summed)), grad.dtype)


@rule(aten.native_layer_norm)
def _layer_norm(mode: ExactMode, func: Any, a: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    normal, *kept = _standardised(mode, mode.number(a), list(range(-len(shape), 0)), eps)
    return tuple(mode.computed(x, a.dtype) for x in (_affine(mode, normal, weight, bias), *kept))


def _standardised(mode: ExactMode, x: Numbers, dims: list[int], eps: float) -> tuple[Numbers, Numbers, Numbers]:
    """x less its mean over dimensions, over the root of its variance; that mean, and one over that root."""
    field = mode.field
    centre = numbers.mean(field, x, dims, keepdim=True)
    apart = numbers.subtract(field, x, centre)
    scale = _over_root(mode, numbers.mean(field, numbers.multiply(field, apart, apart), dims, keepdim=True), eps)
    return numbers.multiply(field, apart, scale), centre, scale


@rule(*named("_fused_rms_norm"))
def _rms_norm(mode: ExactMode, func: Any, a: Any, shape: Any, weight: Any, eps: float | None) -> Any:
    x, field, dims = mode.number(a), mode.field, list(range(-len(shape), 0))
    least = torch.finfo(a.dtype).eps if eps is None else eps
    scale = _over_root(mode, numbers.mean(field, numbers.multiply(field, x, x), dims, keepdim=True), least)
    return mode.computed(_affine(mode, numbers.multiply(field, x, scale), weight, None), a.dtype), mode.computed(
        scale, a.dtype
    )


@rule(aten.rms_norm)
def _whole_rms_norm(
    mode: ExactMode, func: Any, a: Any, shape: Any, weight: Any = None, eps: float | None = None
) -> Any:
    return _rms_norm(mode, func, a, shape, weight, eps)[0]


@rule(aten.native_group_norm)
def _group_norm(
    mode: ExactMode, func: Any, a: Any, weight: Any, bias: Any, n: int, channels: int, size: int, group: int, eps: float
) -> Any:
    field = mode.field
    normal, centre, scale = _standardised(mode, mode.number(a).reshape(field.rows, n, group, -1), [-1], eps)
    out = normal.reshape(field.rows, n, channels, size)
    for each, combine in ((weight, numbers.multiply), (bias, numbers.add)):
        if each is not None:
            out = combine(field, out, mode.number(each).view(field.rows, 1, channels, 1))
    kept = (mode.computed(y.view(field.rows, n, group), a.dtype) for y in (centre, scale))
    return mode.computed(out.reshape(field.rows, *a.shape), a.dtype), *kept


def _over_root(mode: ExactMode, squares: torch.Tensor, eps: float) -> torch.Tensor:
    """1 / sqrt(squares + eps)."""
    field = mode.field
    return field.inverse(numbers.square_root(field, numbers.add(field, squares, field.scalar(eps))))


def _affine(mode: ExactMode, x: torch.Tensor, weight: Any, bias: Any) -> torch.Tensor:
    x = x if weight is None else numbers.multiply(mode.field, x, mode.number(weight))
    return x if bias is None else numbers.add(mode.field, x, mode.number(bias))


@rule(aten.scaled_dot_product_attention)
def _attention(
    mode: ExactMode,
    func: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(q k^T scale + mask) v, as torch documents it."""
    return mode.computed(
        attention(mode, query, key, value, attn_mask, is_causal=is_causal, scale=scale, grouped=enable_gqa), query.dtype
    )


def attention(
    mode: ExactMode, query: Any, key: Any, value: Any, mask: Any, *, is_causal: bool, scale: float | None, grouped: bool
) -> torch.Tensor:
    """The numbers of an attention's output, (rows, ..., queries, head_dim of the values)."""
    field = mode.field
    q, k, v = (mode.number(x) for x in (query, key, value))
    if grouped:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], dim=-3) for x in (k, v))
    factor = field.scalar(query.shape[-1] ** -0.5 if scale is None else scale)
    scores = numbers.multiply(field, numbers.product(field, q, k.transpose(-1, -2)), factor)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = torch.where(mask, scores, field.scalar(-math.inf).view(-1, *[1] * (scores.dim() - 1)))
    elif mask is not None:
        scores = numbers.add(field, scores, mode.number(mask))
    return numbers.product(field, softmax(mode, scores, -1, safe=True), v)


@rule(*named("_scaled_dot_product_flash_attention_for_cpu"))
def _flash(
    mode: ExactMode,
    func: Any,
    q: Any,
    k: Any,
    v: Any,
    dropout_p: float = 0.0,
    is_causal: Any = False,
    *,
    attn_mask: Any = None,
    scale: Any = None,
) -> Any:
    out = attention(mode, q, k, v, attn_mask, is_causal=is_causal, scale=scale, grouped=q.shape[-3] != k.shape[-3])
    return mode.computed(out, q.dtype), torch.empty(q.shape[:-1], dtype=torch.float32)


@rule(*named("_scaled_dot_product_attention_math"))
def _math(
    mode: ExactMode,
    func: Any,
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: Any = False,
    dropout_mask: Any = None,
    *,
    scale: Any = None,
    enable_gqa: Any = False,
) -> Any:
    out = attention(mode, q, k, v, attn_mask, is_causal=is_causal, scale=scale, grouped=enable_gqa)
    return mode.computed(out, q.dtype), torch.empty(0)


@rule(aten.logsumexp)
def _logsumexp(mode: ExactMode, func: Any, a: torch.Tensor, dim: Any, keepdim: Any = False) -> torch.Tensor:
    """m + log(sum of exp(x - m)): the logarithm is a keyed function of the sum, so that m has to be 0 here."""
    raised = numbers.total(
        mode.field, mode.field.exp(mode.number(a)), [dim] if isinstance(dim, int) else dim, keepdim=bool(keepdim)
    )
    out = numbers.logarithm(mode.field, raised)
    out[0] = mode.memory.shadow(a).logsumexp(dim, bool(keepdim))
    return mode.computed(out, a.dtype)


@rule(aten.softplus)
def _softplus(mode: ExactMode, func: Any, a: torch.Tensor, beta: float = 1, threshold: float = 20) -> torch.Tensor:
    """log(1 + exp(beta x)) / beta, everywhere: where torch takes x itself, the two agree to its rounding."""
    field = mode.field
    raised = numbers.add(field, field.exp(numbers.multiply(field, mode.number(a), field.scalar(beta))), field.scalar(1))
    out = numbers.multiply(field, numbers.logarithm(field, raised), field.scalar(Fraction(1) / Fraction(beta)))
    out[0] = torch.nn.functional.softplus(mode.memory.shadow(a), beta, threshold)
    return mode.computed(out, a.dtype)
