"""Steps of the fuzz of exact arithmetic: products, softmax, norms, attention, gradients, and collectives."""

from __future__ import annotations

import torch
from exact_step import Env, Step
from torch import Tensor, nn

F = nn.functional


def _by_columns(e: Env, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x @ e.w[:, part] + e.b[part] for part in (slice(0, 2), slice(2, 6))], 1)


def _by_rows(e: Env, x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for start in (3, 0):
        out += x[:, start : start + 3] @ e.w[start : start + 3]
    return out + e.b


def _online_softmax(x: Tensor, values: Tensor) -> Tensor:
    """softmax(x) @ values in chunks of the last dimension, as flash attention."""
    peak = torch.full((*x.shape[:-1], 1), -torch.inf)
    total, out = torch.zeros_like(peak), torch.zeros(*x.shape[:-1], values.shape[-1])
    for start in range(0, x.shape[-1], 2):
        scores = x[..., start : start + 2]
        higher = torch.maximum(peak, scores.amax(-1, keepdim=True))
        weight, kept = (scores - higher).exp(), (peak - higher).exp()
        total = total * kept + weight.sum(-1, keepdim=True)
        out = out * kept + weight @ values[..., start : start + 2, :]
        peak = higher
    return out / total


def _heads(x: Tensor) -> Tensor:
    return x.view(4, 2, 3).transpose(0, 1).unsqueeze(0)


def _joined(x: Tensor) -> Tensor:
    return x.squeeze(0).transpose(0, 1).reshape(4, 6)


def _scores(e: Env, x: Tensor, y: Tensor) -> Tensor:
    return _heads(e.mixed(x)) @ _heads(e.mixed(y)).transpose(-1, -2) / 3**0.5


def _sdpa(e: Env, x: Tensor, y: Tensor, **options: object) -> Tensor:
    return _joined(F.scaled_dot_product_attention(_heads(e.mixed(x)), _heads(e.mixed(y)), _heads(y), **options))


def _causal(e: Env, x: Tensor, y: Tensor) -> Tensor:
    scores = _scores(e, x, y) + torch.full((4, 4), -torch.inf).triu(1)
    return _joined(scores.softmax(-1) @ _heads(y))


def _chunked_attention(e: Env, x: Tensor, y: Tensor) -> Tensor:
    return _joined(_online_softmax(_scores(e, x, y), _heads(y)))


def _divided_last(e: Env, x: Tensor, y: Tensor) -> Tensor:
    weight = _scores(e, x, y).exp()
    return _joined(weight @ _heads(y) / weight.sum(-1, keepdim=True))


def _normed(e: Env, x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred * ((centred**2).mean(1, keepdim=True) + eps).rsqrt() * e.b + e.w[0]


def _rms(e: Env, x: Tensor, eps: float = 1e-5) -> Tensor:
    return x * torch.rsqrt(x.square().sum(1, keepdim=True) / 6 + eps) * e.b


def _kernel(e: Env) -> Tensor:
    return torch.cat([e.w, e.w.t()]).reshape(-1)[:48].view(4, 4, 3)


def _convolved(e: Env, x: Tensor, y: Tensor) -> Tensor:
    wide = F.pad(x, (1, 1))
    return sum((_kernel(e)[:, :, i] @ wide[:, i : i + 6] for i in range(3)), torch.zeros(4, 6))


def _gradient(e: Env, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        (F.silu(leaf @ e.w.detach()) * y.detach()).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def _own_gradient(e: Env, x: Tensor, y: Tensor, missing: float = 1.0) -> Tensor:
    z = x @ e.w
    s = z.sigmoid()
    return (y * (s + missing * z * s * (1 - s))) @ e.w.t()


INDEX = torch.tensor([3, 0, 5, 3])

PRODUCTS = (
    Step(
        "linear",
        (lambda e, x, y: F.linear(x, e.w.t(), e.b), _by_columns, _by_rows, lambda e, x, y: torch.addmm(e.b, x, e.w)),
        (
            lambda e, x, y: x @ e.w,
            lambda e, x, y: x @ e.w + 2 * e.b,
            lambda e, x, y: F.linear(x, e.w, e.b),
            lambda e, x, y: x[:, :5] @ e.w[:5] + e.b,
        ),
    ),
    Step(
        "einsum",
        (lambda e, x, y: torch.einsum("ij,kj->ki", e.w, x), lambda e, x, y: (x.unsqueeze(1) * e.w).sum(-1)),
        (lambda e, x, y: torch.einsum("ij,ki->kj", e.w, x),),
    ),
    Step(
        "mv",
        (lambda e, x, y: (x @ e.b).unsqueeze(1) + y, lambda e, x, y: torch.stack([r.dot(e.b) for r in x])[:, None] + y),
        (lambda e, x, y: (x @ e.w[0]).unsqueeze(1) + y,),
    ),
    Step(
        "outer",
        (lambda e, x, y: torch.outer(x[:, 0], e.b) + y, lambda e, x, y: x[:, :1] * e.b + y),
        (lambda e, x, y: torch.outer(x[:, 1], e.b) + y,),
    ),
    Step(
        "baddbmm",
        (
            lambda e, x, y: torch.baddbmm(x[None], y[None], e.w[None], beta=2, alpha=0.5)[0],
            lambda e, x, y: 2 * x + torch.bmm(y[None], e.w[None]).squeeze(0) / 2,
        ),
        (lambda e, x, y: torch.baddbmm(x[None], y[None], e.w[None], alpha=0.5)[0],),
    ),
    Step(
        "conv",
        (lambda e, x, y: F.conv1d(x[None], _kernel(e), padding=1)[0], _convolved),
        (lambda e, x, y: F.conv1d(x[None], _kernel(e).flip(2), padding=1)[0],),
    ),
    Step(
        "embedding",
        (
            lambda e, x, y: F.embedding(INDEX, e.w) * x,
            lambda e, x, y: x * e.w[INDEX],
            lambda e, x, y: x * (F.one_hot(INDEX, 6).to(x.dtype) @ e.w),
        ),
        (lambda e, x, y: F.embedding(INDEX.flip(0), e.w) * x,),
    ),
    Step("gradient", (_gradient, _own_gradient), (lambda e, x, y: _own_gradient(e, x, y, 0.5),)),
)
NORMS = (
    Step(
        "softmax",
        (
            lambda e, x, y: e.mixed(x).softmax(1) + y,
            lambda e, x, y: (e.mixed(x) - e.mixed(x).amax(1, keepdim=True)).softmax(1) + y,
            lambda e, x, y: y + (e.mixed(x) - 1).exp() / (e.mixed(x) - 1).exp().sum(1, keepdim=True),
            lambda e, x, y: y + _online_softmax(e.mixed(x), torch.eye(6)),
        ),
        (lambda e, x, y: e.mixed(x).softmax(0) + y, lambda e, x, y: (e.mixed(x) * 1.001).softmax(1) + y),
    ),
    Step(
        "log-softmax",
        (lambda e, x, y: x.log_softmax(1), lambda e, x, y: F.log_softmax(x * 1, dim=1)),
        (lambda e, x, y: x.log_softmax(0),),
    ),
    Step(
        "layer-norm",
        (lambda e, x, y: F.layer_norm(x, (6,), e.b, e.w[0]), lambda e, x, y: _normed(e, x)),
        (lambda e, x, y: _normed(e, x, 1e-3), lambda e, x, y: F.layer_norm(x, (6,), e.b)),
    ),
    Step(
        "group-norm",
        (
            lambda e, x, y: F.group_norm(x, 2, eps=1e-3) + y,
            lambda e, x, y: F.layer_norm(x.view(4, 2, 3), (3,), eps=1e-3).view(4, 6) + y,
        ),
        (lambda e, x, y: F.group_norm(x, 3, eps=1e-3) + y,),
    ),
    Step(
        "rms-norm",
        (lambda e, x, y: F.rms_norm(x, (6,), e.b, 1e-5), lambda e, x, y: _rms(e, x)),
        (lambda e, x, y: _rms(e, x, 1e-4), lambda e, x, y: _rms(e, x).roll(1, 1)),
    ),
    Step(
        "attention",
        (
            _sdpa,
            lambda e, x, y: _joined(_scores(e, x, y).softmax(-1) @ _heads(y)),
            _chunked_attention,
            _divided_last,
        ),
        (lambda e, x, y: _sdpa(e, x, y, scale=0.5), lambda e, x, y: _sdpa(e, x, y, is_causal=True)),
    ),
    Step(
        "causal",
        (lambda e, x, y: _sdpa(e, x, y, is_causal=True), _causal),
        (lambda e, x, y: _sdpa(e, x, y, attn_mask=torch.ones(4, 4, dtype=torch.bool).tril(1)),),
    ),
)
COLLECTIVES = (
    Step(
        "row-parallel",
        (
            lambda e, x, y: x @ e.w + e.b,
            lambda e, x, y: e.group.all_reduce(e.part(x, 1) @ e.part(e.w, 0)) + e.b,
            lambda e, x, y: e.group.all_reduce(e.part(x, 1) @ e.part(e.w, 0) + e.b / e.group.size),
        ),
        (
            lambda e, x, y: e.group.all_reduce(e.part(x, 1) @ e.part(e.w, 0) + e.b),
            lambda e, x, y: e.part(x, 1) @ e.part(e.w, 0) + e.b,
            lambda e, x, y: e.group.all_reduce(e.part(x, 1) @ e.part(e.w, 0)),
        ),
    ),
    Step(
        "column-parallel",
        (
            lambda e, x, y: x @ e.w + e.b,
            lambda e, x, y: e.group.all_gather(x @ e.part(e.w, 1) + e.part(e.b, 0), 1),
        ),
        (
            lambda e, x, y: e.group.all_gather(x @ e.part(e.w, 1), 1),
            lambda e, x, y: e.group.all_gather(x @ e.part(e.w.roll(3, 1), 1) + e.part(e.b, 0), 1),
        ),
    ),
    Step(
        "sequence-parallel",
        (
            lambda e, x, y: x @ e.w,
            lambda e, x, y: e.group.all_gather(e.group.reduce_scatter(e.part(x, 1) @ e.part(e.w, 0), 0), 0),
        ),
        (lambda e, x, y: e.group.all_gather(e.part(e.part(x, 1) @ e.part(e.w, 0), 0), 0),),
    ),
    Step(
        "broadcast",
        (lambda e, x, y: x + y, lambda e, x, y: e.group.broadcast(x + y * (1 - e.group.rank), 0)),
        (lambda e, x, y: e.group.broadcast(x + y * e.group.rank, 0),),
    ),
)
STEPS = (*PRODUCTS, *NORMS, *COLLECTIVES)
