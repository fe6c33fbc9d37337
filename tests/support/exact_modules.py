"""Cases of modules of unusual kinds for exact arithmetic; a sharded one is its reference with a part of the features.

    tp-harness verify --case tests/support/exact_modules.py --backend local --dtype exact --dtype float32 --tp 1,2

`WRONG` has the mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from tp_harness import Case, Partial, Replicate, Shard
from tp_harness.parallel.group import current_group
from tp_harness.parallel.placements import Placement

HIDDEN, WIDE, VOCABULARY = 10, 24, 16


class Sum:
    """What makes a rank's part of a module whole: nothing on one core."""

    def __init__(self, cut: bool) -> None:
        self.group = current_group() if cut else None
        self.size = self.group.size if self.group else 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.group.all_reduce(x) if self.group else x


class Wide(nn.Module):
    """up, something between, down: the features between are shared out."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.sum = Sum(cut)
        wide = WIDE // self.sum.size
        self.up, self.down = nn.Linear(HIDDEN, wide), nn.Linear(wide, HIDDEN, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, 10) in and out."""
        return self.sum(self.down(self.between(self.up(x))))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        """On each feature by itself."""
        return torch.relu(x)


class Convolutions(Wide):
    """A depthwise convolution over the tokens, group norm, batch norm, dropout, and max pooling."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__(cut)
        wide = WIDE // self.sum.size
        self.conv = nn.Conv1d(wide, wide, 3, padding=1, groups=wide)
        self.batch, self.groups = nn.BatchNorm1d(wide), nn.GroupNorm(wide // 3, wide)
        self.drop, self.pool = nn.Dropout(0.5), nn.MaxPool1d(3, 1, 1)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.transpose(1, 2))
        y = self.pool(self.drop(self.groups(self.batch(y))))
        return nn.functional.avg_pool1d(y, 3, 1, 1).transpose(1, 2)


class Patches(Wide):
    """A convolution with two strides over images, and average pooling; (batch, 3, 9, 11) in."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__(cut)
        self.up = nn.Conv2d(3, WIDE // self.sum.size, 3, stride=2, padding=1)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(nn.functional.gelu(x), 2).flatten(2).transpose(1, 2)


class Norms(Wide):
    """Layer norm, and statistics by hand, before the cut; hardswish, softplus, elu and leaky relu behind it."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__(cut)
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return super().forward(y - y.mean(-1, keepdim=True) / y.std(-1, keepdim=True))

    def between(self, x: torch.Tensor) -> torch.Tensor:
        f = nn.functional
        parts = x.unflatten(-1, (-1, 4)).unbind(-1)
        acts = (f.hardswish, f.softplus, f.elu, f.leaky_relu)
        return torch.stack([act(part) for act, part in zip(acts, parts, strict=True)], -1).flatten(-2)


class Casts(Wide):
    """Rounds to 16 bits between the matrices, feature by feature, as a kernel's output would be."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x.bfloat16()).half().to(x.dtype)


class Quantised(Wide):
    """The last matrix is int8 with a scale for each of its columns."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__(cut)
        wide = WIDE // self.sum.size
        whole = torch.arange(HIDDEN * WIDE).view(HIDDEN, WIDE) * 7 % 255 - 127
        rank = self.sum.group.rank if self.sum.group else 0
        self.register_buffer("codes", whole[:, rank * wide : (rank + 1) * wide].to(torch.int8), persistent=False)
        self.scale = nn.Parameter(torch.ones(wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.between(self.up(x))
        return self.sum(nn.functional.linear(hidden, self.codes.to(hidden.dtype) * self.scale))


class Cached(Wide):
    """Keys and values that a buffer keeps from step to step, written in place."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__(cut)
        self.register_buffer("cache", torch.zeros(8, 2, 3, WIDE // self.sum.size), persistent=False)
        self.heads = 4 // self.sum.size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, _ = x.shape
        outputs = []
        for step in range(seq):
            q, k, v = self.up(x[:, step]), self.up(x[:, step] * 2), self.up(x[:, step] - 1)
            self.cache[step, 0, :batch], self.cache[step, 1, :batch] = k, v
            keys, values = (self.cache[: step + 1, i, :batch].unflatten(-1, (self.heads, -1)) for i in range(2))
            scores = torch.einsum("bhd,sbhd->bhs", q.unflatten(-1, (self.heads, -1)), keys)
            outputs.append(torch.einsum("bhs,sbhd->bhd", scores.softmax(-1), values).flatten(1))
        return self.sum(self.down(torch.stack(outputs, 1)))


class Several(Wide):
    """A summand and features beside the sum, and what a mask leaves of it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden = self.between(self.up(x))
        part = self.down(hidden)
        whole = self.sum(part.clone())
        return whole, part, None, hidden, whole.where(whole > whole.argmax(-1, keepdim=True) - 5, -torch.inf)


class Vocabulary(nn.Module):
    """An embedding and a head that are one parameter, both cut by rows; padded ids are masked."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.sum = Sum(cut)
        self.rows = VOCABULARY // self.sum.size
        self.first = self.rows * (self.sum.group.rank if self.sum.group else 0)
        self.embedding = nn.Embedding(self.rows, HIDDEN)
        self.head = nn.Linear(HIDDEN, self.rows, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, seq) to logits of this rank's rows."""
        local = ids - self.first
        mine = (local >= 0) & (local < self.rows)
        found = self.embedding(local.clamp(0, self.rows - 1)).masked_fill(~mine.unsqueeze(-1), 0.0)
        return self.head(self.sum(found) * (ids != 0).unsqueeze(-1))


class Rotated(Wide):
    """Pairs of features are complex numbers, which are turned by their token's place, and conjugated."""

    conjugate = True

    def between(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
        turn = torch.polar(torch.ones(x.shape[1]), torch.arange(x.shape[1]) / 7.0).unsqueeze(-1)
        turned = (pairs * turn) / (2 - 1j) * (2 - 1j) + 0.5 * pairs - pairs / 2
        return torch.view_as_real(turned.conj().resolve_conj() if self.conjugate else turned).flatten(-2).to(x.dtype)


class Turned(Rotated):
    """The same in real numbers; a complex one by its real and imaginary part."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
        angle = (torch.arange(x.shape[1]) / 7.0).unsqueeze(-1)
        cos, sin = angle.cos(), angle.sin()
        rotated = (real * cos - imaginary * sin, -(real * sin + imaginary * cos))
        return torch.stack(rotated, -1).flatten(-2)


class NotConjugated(Rotated):
    """A mistake: the imaginary part has the other sign."""

    conjugate = False


class Compiled(Wide):
    """Compiled by torch for its eager backend."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__(cut)
        self.act = torch.compile(torch.tanh, backend="eager")

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x)


@dataclass(frozen=True)
class Dealt(Placement):
    """A placement of the user's own: every rank holds every n-th element along a dimension."""

    dim: int

    def shard(self, full: torch.Tensor, rank: int, size: int) -> torch.Tensor:
        return full.movedim(self.dim, 0)[rank::size].movedim(0, self.dim).contiguous()

    def join(self, shards: list[torch.Tensor]) -> torch.Tensor:
        whole = torch.stack([x.movedim(self.dim, 0) for x in shards], 1).flatten(0, 1)
        return whole.movedim(0, self.dim)


def inputs(generator: torch.Generator) -> tuple[torch.Tensor]:
    """(batch, seq, features)"""
    return (torch.randn(3, 7, HIDDEN, generator=generator),)


def images(generator: torch.Generator) -> tuple[torch.Tensor]:
    """(batch, 3, height, width)"""
    return (torch.randn(2, 3, 9, 11, generator=generator),)


def ids(generator: torch.Generator) -> tuple[torch.Tensor]:
    """Every row of the vocabulary, in some order; row 0 is padding."""
    return (torch.randperm(VOCABULARY, generator=generator).view(2, -1),)


PLAN: Mapping[str, Placement] = {"up.weight": Shard(0), "up.bias": Shard(0), "down.weight": Shard(1)}
OF_FEATURES = ("conv.weight", "conv.bias", "scale", *(f"{norm}.{part}" for norm in ("batch", "groups")
               for part in ("weight", "bias", "running_mean", "running_var")))  # fmt: skip


def case(reference: Callable[..., nn.Module], cut: Callable[..., nn.Module] | None = None, **fields: object) -> Case:
    """A Case of a module and its like on ranks."""
    names = {name for name, _ in (*reference().named_parameters(), *reference().named_buffers())}
    plan = PLAN | dict.fromkeys(OF_FEATURES, Shard(0))
    given = {"inputs": inputs, "plan": {name: at for name, at in plan.items() if name in names}} | fields
    return Case(
        name=reference.__name__.lower(), reference=reference, sharded=partial(cut or reference, cut=True), **given
    )


CONVOLUTIONS, NORMS, CASTS, CACHED = map(case, (Convolutions, Norms, Casts, Cached))
PATCHES = case(Patches, inputs=images)
QUANTISED, COMPLEX, PAIRS, COMPILED = case(Quantised), case(Rotated), case(Turned, Rotated), case(Compiled)
SEVERAL = case(Several, output=(Replicate(), Partial(), Shard(-1), Replicate()))
VOCABULARY_CUT = case(
    Vocabulary, inputs=ids, plan={"embedding.weight": Shard(0), "head.weight": Shard(0)}, output=Shard(-1)
)
DEALT = case(Wide, plan={"up.weight": Dealt(0), "up.bias": Dealt(0), "down.weight": Dealt(1)})
WRONG = case(Turned, NotConjugated)
