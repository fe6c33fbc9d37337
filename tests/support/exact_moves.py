"""Steps of the fuzz of exact arithmetic: moved elements, views, buffers and writes in place."""

from __future__ import annotations

import torch
from exact_step import Env, Step
from torch import Tensor, nn

F = nn.functional
ORDER = torch.tensor([2, 0, 3, 1])
ROWS = torch.tensor([1, 3, 1])


def _filled(e: Env, x: Tensor, y: Tensor, at: int = 2) -> Tensor:
    out = torch.zeros(4, 6)
    out[:2] = x[:2]
    out[at:].copy_(y[at:])
    return out


def _filled_empty(e: Env, x: Tensor, y: Tensor) -> Tensor:
    out = torch.empty(6, 4).t()
    out.narrow(0, 0, 2).copy_(x[:2])
    for i in (3, 2):
        out.select(0, i).copy_(y[i])
    return out


def _through_views(e: Env, x: Tensor, y: Tensor, times: float = 2) -> Tensor:
    out = x.clone()
    out.t()[1].mul_(times).add_(y[:, 1])
    out.view(-1)[2::3] -= 1
    out.view(2, 2, 6)[1, 0].neg_()
    return out


def _as_formula(e: Env, x: Tensor, y: Tensor) -> Tensor:
    columns = torch.stack([2 * c + y[:, 1] if i == 1 else c for i, c in enumerate(x.unbind(1))], 1)
    columns = columns - (torch.arange(24) % 3 == 2).view(4, 6).to(x.dtype)
    return torch.cat([columns[:2], -columns[2:3], columns[3:]])


def _accumulated(e: Env, x: Tensor, y: Tensor) -> Tensor:
    out = x.clone()
    for i, row in enumerate(ROWS):
        out[row] += y[i]
    return out


def _in_place(e: Env, x: Tensor, y: Tensor) -> Tensor:
    out = x.clone()
    out.addcmul_(y, e.b).div_(2).sub_(y, alpha=0.5).clamp_(min=-2)
    out[out > 1] = 1.0
    return out.masked_fill_(y > 1, 0.25)


def _in_order(e: Env, x: Tensor, y: Tensor, low: float = -2) -> Tensor:
    out = ((x + y * e.b) / 2 - y / 2).clamp(low, 1)
    return torch.where(y > 1, 0.25, out)


def _outs(e: Env, x: Tensor, y: Tensor) -> Tensor:
    out = torch.empty(4, 6)
    torch.mul(x, y, out=out)
    torch.add(out, e.b, out=out)
    torch.cat([out[:, 3:], out[:, :3].clone()], 1, out=out)
    return out


def _window(e: Env, x: Tensor, y: Tensor) -> Tensor:
    return x.unfold(1, 3, 1).sum(-1).repeat_interleave(2, 1)[:, :6]


def _window_by_shifts(e: Env, x: Tensor, y: Tensor) -> Tensor:
    sums = x[:, :4] + x[:, 1:5] + x[:, 2:]
    return sums[:, [0, 0, 1, 1, 2, 2]]


def _cache(e: Env, x: Tensor, y: Tensor, stale: int = 0) -> Tensor:
    """A cache that is written a row at a time and read as a whole."""
    cache = torch.zeros(8, 6)
    cache[4:] = y
    for i in range(stale, 4):
        cache[i : i + 1] = x[i]
    cache.index_copy_(0, ROWS[:2] + 4, x[:2])
    return cache[:4] + cache[4:]


def _cached(e: Env, x: Tensor, y: Tensor) -> Tensor:
    return x + torch.stack([y[0], x[0], y[2], x[1]])


MOVES = (
    Step(
        "transpose",
        (lambda e, x, y: x.t().reshape(4, 6), lambda e, x, y: x.permute(1, 0).contiguous().view(4, 6)),
        (lambda e, x, y: x * 1, lambda e, x, y: x.flip(1)),
    ),
    Step(
        "roll",
        (lambda e, x, y: x.roll(2, 1) + y, lambda e, x, y: torch.cat([x[:, 4:], x[:, :4]], -1) + y),
        (lambda e, x, y: x.roll(-2, 1) + y,),
    ),
    Step(
        "split",
        (lambda e, x, y: torch.cat(x.chunk(2, 1)[::-1], 1), lambda e, x, y: torch.hstack([x[:, 3:], x[:, :3]])),
        (lambda e, x, y: torch.cat(x.split([2, 4], 1)[::-1], 1),),
    ),
    Step(
        "flip",
        (lambda e, x, y: x.flip(0) - y, lambda e, x, y: x[[3, 2, 1, 0]] - y, lambda e, x, y: x.rot90(2).flip(1) - y),
        (lambda e, x, y: x.flip(1) - y,),
    ),
    Step(
        "order",
        (
            lambda e, x, y: x.index_select(0, ORDER),
            lambda e, x, y: x[ORDER],
            lambda e, x, y: x.gather(0, ORDER[:, None].expand(4, 6)),
            lambda e, x, y: x.take_along_dim(ORDER[:, None], 0),
        ),
        (lambda e, x, y: x[ORDER.argsort()],),
    ),
    Step(
        "expand",
        (lambda e, x, y: x[:1].expand(4, 6) + y, lambda e, x, y: x[0].repeat(4, 1) + y),
        (lambda e, x, y: x[1:2].expand_as(y) + y,),
    ),
    Step(
        "pad",
        (
            lambda e, x, y: F.pad(x[:, :4], (1, 1), value=0.5),
            lambda e, x, y: torch.full((4, 6), 0.5).slice_scatter(x[:, :4], 1, 1, 5),
        ),
        (lambda e, x, y: F.pad(x[:, :4], (2, 0), value=0.5),),
    ),
    Step(
        "triangle",
        (lambda e, x, y: x.tril() + y.triu(1), lambda e, x, y: torch.where(torch.ones(4, 6).tril() > 0, x, y)),
        (lambda e, x, y: x.tril(-1) + y.triu(),),
    ),
    Step("window", (_window, _window_by_shifts), (lambda e, x, y: _window(e, x, y).roll(2, 1),)),
    Step(
        "diagonal",
        (lambda e, x, y: x[:, :4].diagonal()[:, None] + y, lambda e, x, y: x[range(4), range(4), None] + y),
        (lambda e, x, y: x[:, 1:5].diagonal()[:, None] + y,),
    ),
    Step(
        "select",
        (lambda e, x, y: x[y > 0].sum() / 4 + y, lambda e, x, y: torch.where(y > 0, x, 0).sum() / 4 + y),
        (lambda e, x, y: x[y < 0].sum() / 4 + y,),
    ),
)
WRITES = (
    Step(
        "buffer",
        (_filled, _filled_empty, lambda e, x, y: torch.cat([x[:2], y[2:]])),
        (lambda e, x, y: _filled(e, x, y, 3), lambda e, x, y: _filled(e, x, y, 1)),
    ),
    Step("views", (_through_views, _as_formula), (lambda e, x, y: _through_views(e, x, y, 3),)),
    Step(
        "index-add",
        (
            lambda e, x, y: x.index_add(0, ROWS, y[:3]),
            _accumulated,
            lambda e, x, y: x.scatter_add(0, ROWS[:, None].expand(3, 6), y[:3]),
            lambda e, x, y: x.clone().index_put_((ROWS,), y[:3], accumulate=True),
        ),
        (lambda e, x, y: x.index_put((ROWS,), y[:3] + x[ROWS]),),
    ),
    Step(
        "in-place",
        (_in_place, _in_order),
        (lambda e, x, y: _in_order(e, x, y, -0.5), lambda e, x, y: _in_place(e, x, x)),
    ),
    Step("out", (_outs, lambda e, x, y: (x * y + e.b).roll(3, 1)), (lambda e, x, y: x * y + e.b,)),
    Step("cache", (_cache, _cached), (lambda e, x, y: _cache(e, x, y, 1),)),
    Step(
        "scatter",
        (lambda e, x, y: x.scatter(1, INDEX, y), lambda e, x, y: torch.cat([y[:, 1:2], y[:, :1], x[:, 2:]], 1)),
        (lambda e, x, y: x.scatter(1, INDEX.flip(1), y),),
    ),
    Step(
        "foreach",
        (
            lambda e, x, y: torch.cat(torch._foreach_add(list(x.split(1)), list(y.split(1)), alpha=2)),
            lambda e, x, y: x + 2 * y,
        ),
        (lambda e, x, y: torch.cat(torch._foreach_add(list(x.split(1)), list(y.split(1)))),),
    ),
)
INDEX = torch.tensor([[1, 0]]).expand(4, 2)
STEPS = (*MOVES, *WRITES)
