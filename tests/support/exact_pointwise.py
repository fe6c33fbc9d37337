"""Steps of the fuzz of exact arithmetic: operations on each element, decisions, and sums along a dimension."""

from __future__ import annotations

import math

import torch
from exact_step import Env, Step
from torch import Tensor, nn


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def _leaky(e: Env, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * 0.01)


def _cumulated(e: Env, x: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for i in range(x.shape[1]):
        out[:, i] = x[:, : i + 1].sum(1)
    return out


def _largest(e: Env, x: Tensor, y: Tensor) -> Tensor:
    running = x[:, 0]
    for part in x.unbind(1)[1:]:
        running = torch.maximum(running, part)
    return y * running.unsqueeze(1)


def _by_mask(e: Env, x: Tensor, y: Tensor) -> Tensor:
    mask = (x > y).to(x.dtype)
    return mask * x + (1 - mask) * (2 * y)


def _squares(x: Tensor) -> Tensor:
    return x * x + 1


ARITHMETIC = (
    Step("add", (lambda e, x, y: x + y, lambda e, x, y: y.add(x), lambda e, x, y: x - -y), (lambda e, x, y: x - y,)),
    Step("sub", (lambda e, x, y: x - y, lambda e, x, y: (-y).add(x)), (lambda e, x, y: y - x,)),
    Step("sub-alpha", (lambda e, x, y: torch.sub(x, y, alpha=3), lambda e, x, y: x - 3 * y), (lambda e, x, y: x - y,)),
    Step("rsub", (lambda e, x, y: 1 - x, lambda e, x, y: torch.neg(x - 1)), (lambda e, x, y: x - 1,)),
    Step("mul", (lambda e, x, y: x * y / 4, lambda e, x, y: y.mul(0.25) * x), (lambda e, x, y: x * x / 4,)),
    Step(
        "div",
        (lambda e, x, y: x / _squares(y), lambda e, x, y: _squares(y).reciprocal() * x),
        (lambda e, x, y: x / (y * y + 2), lambda e, x, y: _squares(y) / (x * x + 1)),
    ),
    Step(
        "tenths",
        (lambda e, x, y: x * 0.3 + y, lambda e, x, y: x * 0.1 + x / 5 + y, lambda e, x, y: x * (0.1 + 0.2) + y),
        (lambda e, x, y: x * 0.30001 + y,),
    ),
    Step(
        "addcmul",
        (lambda e, x, y: torch.addcmul(x, y, e.b, value=2), lambda e, x, y: x + 2 * y * e.b),
        (lambda e, x, y: torch.addcmul(x, y, e.b),),
    ),
    Step(
        "addcdiv",
        (lambda e, x, y: torch.addcdiv(x, y, _squares(x), value=0.5), lambda e, x, y: x + y / _squares(x) / 2),
        (lambda e, x, y: torch.addcdiv(x, y, _squares(x), value=-0.5),),
    ),
    Step(
        "lerp",
        (lambda e, x, y: torch.lerp(x, y, 0.25), lambda e, x, y: x * 0.75 + y * 0.25),
        (lambda e, x, y: torch.lerp(x, y, 0.75),),
    ),
    Step("cube", (lambda e, x, y: (x / 4) ** 3, lambda e, x, y: x * x * x / 64), (lambda e, x, y: x * x / 64,)),
    Step(
        "sqrt",
        (lambda e, x, y: _squares(x).sqrt(), lambda e, x, y: torch.pow(torch.square(x) + 1, 0.5)),
        (lambda e, x, y: torch.sqrt(x * x + 2),),
    ),
    Step(
        "rsqrt",
        (lambda e, x, y: y * _squares(x).rsqrt(), lambda e, x, y: y / _squares(x).sqrt()),
        (lambda e, x, y: y * (x * x + 1.001).rsqrt(),),
    ),
    Step("root-squared", (lambda e, x, y: _squares(x) / 4,), (), (lambda e, x, y: _squares(x).sqrt() ** 2 / 4,)),
    Step("one", (lambda e, x, y: y * 1,), (), (lambda e, x, y: y * (x.sin() ** 2 + x.cos() ** 2),)),
)
FUNCTIONS = (
    Step(
        "exp",
        (
            lambda e, x, y: torch.exp(e.mixed(x)) * torch.exp(e.mixed(y)),
            lambda e, x, y: (e.mixed(x) + e.mixed(y)).exp(),
            lambda e, x, y: e.mixed(y).exp() / torch.exp(-e.mixed(x)),
        ),
        (lambda e, x, y: (e.mixed(x) - e.mixed(y)).exp(), lambda e, x, y: 2 ** (e.mixed(x) + e.mixed(y))),
    ),
    Step("sigmoid", (lambda e, x, y: x.sigmoid(), lambda e, x, y: _sigmoid(x)), (lambda e, x, y: _sigmoid(2 * x),)),
    Step(
        "silu",
        (
            lambda e, x, y: nn.functional.silu(x),
            lambda e, x, y: x * _sigmoid(x),
            lambda e, x, y: x / (1 + torch.exp(-x)),
        ),
        (lambda e, x, y: nn.functional.gelu(x), lambda e, x, y: x * torch.sigmoid(1.702 * x)),
    ),
    Step("tanh", (lambda e, x, y: x.tanh(), lambda e, x, y: 2 * _sigmoid(2 * x) - 1), (lambda e, x, y: x.atan(),)),
    Step(
        "gelu",
        (lambda e, x, y: nn.functional.gelu(x), lambda e, x, y: x / 2 * (1 + torch.erf(x / math.sqrt(2)))),
        (lambda e, x, y: nn.functional.gelu(x, approximate="tanh"),),
    ),
    Step("erf", (lambda e, x, y: torch.erf(x), lambda e, x, y: -torch.erf(-x)), (lambda e, x, y: torch.erf(x / 2),)),
    Step("sin", (lambda e, x, y: x.sin() * y.cos(), lambda e, x, y: y.cos() * x.sin()), (lambda e, x, y: y.sin(),)),
    Step(
        "log",
        (
            lambda e, x, y: _squares(x).log(),
            lambda e, x, y: torch.log(1 + torch.square(x)),
            lambda e, x, y: torch.log1p(x * x),
        ),
        (lambda e, x, y: (x * x + 2).log(), lambda e, x, y: torch.log1p(x * x + 1)),
    ),
    Step(
        "softplus",
        (lambda e, x, y: nn.functional.softplus(x), lambda e, x, y: torch.log(1 + x.exp())),
        (lambda e, x, y: nn.functional.softplus(x, 2),),
    ),
    Step(
        "atan2",
        (lambda e, x, y: torch.atan2(x, y), lambda e, x, y: x.atan2(y * 1)),
        (lambda e, x, y: torch.atan2(y, x),),
    ),
    Step(
        "pow",
        (lambda e, x, y: _squares(x.tanh()) ** 2.3, lambda e, x, y: torch.pow(1 + x.tanh() ** 2, 2.3)),
        (lambda e, x, y: torch.pow(2.3, _squares(x.tanh())), lambda e, x, y: _squares(x.tanh()) ** 2.31),
    ),
    Step(
        "floor",
        (lambda e, x, y: x.floor() + y, lambda e, x, y: y + torch.floor(x * 1)),
        (lambda e, x, y: x.ceil() + y, lambda e, x, y: x + y),
    ),
    Step(
        "remainder",
        (lambda e, x, y: x.remainder(2.0), lambda e, x, y: torch.remainder(x + 0, 2.0)),
        (lambda e, x, y: x.fmod(2.0),),
    ),
    Step(
        "narrow",
        (
            lambda e, x, y: x.bfloat16().to(x.dtype),
            lambda e, x, y: torch.zeros(4, 6, dtype=torch.bfloat16).copy_(x).to(x.dtype),
        ),
        (lambda e, x, y: x * 1, lambda e, x, y: x.half().to(x.dtype)),
    ),
    Step(
        "hardswish",
        (lambda e, x, y: nn.functional.hardswish(x), lambda e, x, y: x * (x + 3).clamp(0, 6) / 6),
        (lambda e, x, y: x * nn.functional.hardtanh(x + 3, 0, 5) / 6,),
    ),
    Step(
        "mish",
        (lambda e, x, y: x * nn.functional.softplus(x).tanh(), lambda e, x, y: nn.functional.softplus(x).tanh() * x),
        (lambda e, x, y: nn.functional.silu(x),),
    ),
    Step(
        "elu",
        (lambda e, x, y: nn.functional.elu(x), lambda e, x, y: nn.functional.elu(x + 0)),
        (lambda e, x, y: nn.functional.selu(x),),
    ),
)
DECISIONS = (
    Step(
        "relu",
        (lambda e, x, y: x.relu(), lambda e, x, y: x.clamp(min=0), lambda e, x, y: torch.where(x > 0, x, 0.0)),
        (_leaky, lambda e, x, y: x.abs()),
    ),
    Step(
        "leaky",
        (lambda e, x, y: nn.functional.leaky_relu(x), _leaky),
        (lambda e, x, y: nn.functional.leaky_relu(x, 0.02),),
    ),
    Step(
        "clamp",
        (lambda e, x, y: x.clamp(-1, 1) + y, lambda e, x, y: y + x.clamp_min(-1).clamp_max(1)),
        (lambda e, x, y: x.clamp(-1, 0.9) + y, lambda e, x, y: x.clamp(max=1) + y),
    ),
    Step(
        "abs",
        (lambda e, x, y: x.abs(), lambda e, x, y: torch.maximum(x, -x), lambda e, x, y: x * x.sign()),
        (lambda e, x, y: x * 1, lambda e, x, y: torch.minimum(x, -x)),
    ),
    Step(
        "maximum",
        (lambda e, x, y: torch.maximum(x, y), lambda e, x, y: torch.where(y > x, y, x)),
        (lambda e, x, y: torch.minimum(x, y), lambda e, x, y: x * 1),
    ),
    Step(
        "where",
        (lambda e, x, y: torch.where(x > y, x, 2 * y), _by_mask),
        (lambda e, x, y: torch.where(x < y, x, 2 * y),),
    ),
    Step(
        "masked",
        (lambda e, x, y: x.masked_fill(y > 0, 0.5), lambda e, x, y: torch.where(y <= 0, x, 0.5)),
        (lambda e, x, y: x.masked_fill(y > 0.5, 0.5),),
    ),
    Step(
        "largest",
        (
            lambda e, x, y: y * x.amax(1, keepdim=True),
            lambda e, x, y: y * x.max(1).values[:, None],
            lambda e, x, y: y * x.topk(1).values,
            _largest,
        ),
        (lambda e, x, y: y * x.amin(1, keepdim=True), lambda e, x, y: y * x.amax(0)),
    ),
    Step(
        "argmax",
        (
            lambda e, x, y: y.gather(1, x.argmax(1, keepdim=True)) + x,
            lambda e, x, y: x + y[torch.arange(4), x.argmax(1)][:, None],
        ),
        (lambda e, x, y: y.gather(1, x.argmin(1, keepdim=True)) + x,),
    ),
    Step(
        "topk",
        (
            lambda e, x, y: torch.zeros_like(x).scatter(1, *x.topk(2)[::-1]) + y,
            lambda e, x, y: torch.where(x >= x.topk(2).values[:, 1:], x, 0.0) + y,
        ),
        (lambda e, x, y: torch.zeros_like(x).scatter(1, *x.topk(3)[::-1]) + y,),
    ),
    Step(
        "sort",
        (lambda e, x, y: x.sort(1).values * y, lambda e, x, y: x.gather(1, x.argsort(1)) * y),
        (lambda e, x, y: x.sort(1, descending=True).values * y,),
    ),
)
SUMS = (
    Step(
        "sum",
        (
            lambda e, x, y: x.sum(1, keepdim=True) / 4 + y,
            lambda e, x, y: (x[:, :2].sum(1) + x[:, 2:].flip(1).sum(1)).unsqueeze(1) / 4 + y,
        ),
        (lambda e, x, y: x[:, :5].sum(1, keepdim=True) / 4 + y,),
    ),
    Step(
        "mean",
        (lambda e, x, y: y - x.mean(1, keepdim=True), lambda e, x, y: y - x.sum(1, keepdim=True) / 6),
        (lambda e, x, y: y - x.mean(), lambda e, x, y: y - x.mean(0)),
    ),
    Step(
        "var",
        (
            lambda e, x, y: y * x.var(1, keepdim=True, unbiased=False),
            lambda e, x, y: y * (x.square().mean(1, True) - x.mean(1, True) ** 2),
        ),
        (lambda e, x, y: y * x.var(1, keepdim=True),),
    ),
    Step(
        "std",
        (lambda e, x, y: x.std(0) + y, lambda e, x, y: x.var(0).sqrt() + y),
        (lambda e, x, y: x.std(0, correction=0) + y,),
    ),
    Step(
        "norm",
        (lambda e, x, y: x.norm(dim=1, keepdim=True) + y, lambda e, x, y: (x * x).sum(1, keepdim=True).sqrt() + y),
        (lambda e, x, y: x.norm(dim=0, keepdim=True) + y,),
    ),
    Step(
        "cumsum",
        (lambda e, x, y: x.cumsum(1) / 4, lambda e, x, y: _cumulated(e, x, y) / 4),
        (lambda e, x, y: x.cumsum(0) / 4,),
    ),
    Step(
        "prod",
        (lambda e, x, y: (x / 2).prod(0) + y, lambda e, x, y: x[0] * x[1] * x[2] * x[3] / 16 + y),
        (lambda e, x, y: (x[:3] / 2).prod(0) + y,),
    ),
)
STEPS = (*ARITHMETIC, *FUNCTIONS, *DECISIONS, *SUMS)
