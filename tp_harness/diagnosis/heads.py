"""Signatures of an own attention module whose key and value heads the plan cuts: the reference, run with other queries.

Query heads that attend to each other's keys give what the reference gives with its query heads in another order; scores
of another scale give what it gives with larger or smaller queries. So the parameters say it, and no tap is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import isclose, sqrt
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..parallel.placements import KVHeads, QKVHeads, Shard
from .own import by_owner, changed, cut_tensors, made, own_tensors, rerun
from .signature import Guess, Signature
from .site import Site
from .watch import seen


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Numbers of heads, elements of one, and `queries`: parameter -> (dimension, elements of a query head along it)."""

    queries: dict[str, tuple[int, int]]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


def heads_of(site: Site) -> Iterator[Heads]:
    """The heads that an own module's plan may mean, or else those into which the reference views its tensors.

    Raises:
        UnavailableError: neither says anything of key and value heads.
    """
    plan = site.evidence.case.plan
    fused = next((placement for placement in plan.values() if isinstance(placement, QKVHeads)), None)
    apart = next((placement for placement in plan.values() if isinstance(placement, KVHeads)), None)
    if fused:
        yield _with_queries(site, fused.num_attention_heads, fused.num_key_value_heads, fused.head_dim)
    elif apart:
        kv, head_dim = apart.num_heads, apart.unit
        rows = {
            own_tensors(site)[name].shape[0]
            for name, cut in cut_tensors(site).items()
            if isinstance(cut, Shard) and cut.dim == 0
        }
        counts = {elements // head_dim for elements in rows if elements and elements % (kv * head_dim) == 0}
        yield from (_with_queries(site, count, kv, head_dim) for count in sorted(counts))
    else:
        yield from _viewed(site)


def _viewed(site: Site) -> Iterator[Heads]:
    views = seen(site).heads
    for (count, head_dim), (kv, other) in product(views, views):
        if head_dim == other and kv <= count and count % kv == 0:
            heads = _with_queries(site, count, kv, head_dim)
            if heads.queries:
                yield heads


def _with_queries(site: Site, count: int, kv: int, head_dim: int) -> Heads:
    """What has the query heads: fused projections first along dimension 0, others along the dimension that is cut."""
    tensors, queries = own_tensors(site), dict[str, tuple[int, int]]()
    fused = [sum(sizes) for sizes in seen(site).parts if sizes[0] == count * head_dim]
    for name, placement in cut_tensors(site).items():
        dim = getattr(placement, "dim", 0)
        if isinstance(placement, QKVHeads) or (dim == 0 and len(tensors[name]) in fused):
            queries[name] = 0, head_dim
        elif isinstance(placement, Shard):
            unit, rest = divmod(tensors[name].shape[dim], count)
            if rest == 0 and unit in (1, head_dim):  # a number per head, or a projection
                queries[name] = dim, unit
    return Heads(queries=queries, num_attention_heads=count, num_key_value_heads=kv, head_dim=head_dim)


def in_turn(site: Site) -> Iterator[Guess]:
    """A rank's query heads take its KV heads one after the other, where neighbouring query heads share one."""
    for heads in heads_of(site):
        held = max(1, heads.num_key_value_heads // site.tp)
        own = torch.arange(heads.num_attention_heads).view(site.tp, -1, held)
        order = own.transpose(1, 2).flatten()
        if not torch.equal(order, own.flatten()):
            yield from made(site, changed(partial(_with_heads, heads=heads, order=order)), str(held))


def _with_heads(tensors: Mapping[str, torch.Tensor], heads: Heads, order: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: _reordered(tensors[name], *at, order) for name, at in heads.queries.items()}


def _reordered(parameter: torch.Tensor, dim: int, unit: int, order: torch.Tensor) -> torch.Tensor:
    """With its first heads along `dim` in another order; what follows them stays."""
    positions = torch.arange(parameter.shape[dim])
    queries = positions[: len(order) * unit].view(-1, unit)
    positions[: len(order) * unit] = queries[order].flatten()
    return parameter.index_select(dim, positions)


def scores_scaled(site: Site) -> Iterator[Guess]:
    """Scores that lack their scale, have it twice, or have one made of another number."""
    for heads in heads_of(site):
        rows = heads.num_attention_heads * heads.head_dim
        projections = {name: at for name, at in heads.queries.items() if at == (0, heads.head_dim)}
        for names, (text, factor) in product(by_owner(projections).values(), _factors(site, heads).items()):
            how = changed(partial(_with_scaled, names=list(names), rows=rows, factor=factor))
            yield from made(site, how, f"{text} = {factor:.4g}")
        for text, factor in _factors(site, heads).items():  # whatever norm the queries go through
            yield from made(site, partial(rerun, watched=Rescaled(factor)), f"{text} = {factor:.4g}")


def _factors(site: Site, heads: Heads) -> dict[str, float]:
    """By what scores may be wrong."""
    dim, local = heads.head_dim, heads.num_attention_heads / site.tp
    factors = {"sqrt(head_dim)": sqrt(dim), "sqrt(tp)": sqrt(site.tp)}
    factors |= {f"1 / {text}": 1 / factor for text, factor in factors.items()}
    widths = {shape[1] for shape in (own_tensors(site)[name].shape for name in heads.queries) if len(shape) > 1}
    factors["sqrt(head_dim / local heads)"] = sqrt(dim / local)
    factors["sqrt(head_dim / heads)"] = sqrt(dim / heads.num_attention_heads)
    for width in sorted(widths):
        factors[f"sqrt(head_dim x local heads / {width})"] = sqrt(dim * local / width)
        factors[f"sqrt(head_dim / {width})"] = sqrt(dim / width)
    return {text: factor for text, factor in factors.items() if not isclose(factor, 1)}


class Rescaled(TorchFunctionMode):
    """Multiplies the scores of torch's attention by `factor`, while it is entered."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, attention with another scale."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "scaled_dot_product_attention":
            kwargs = kwargs | {"scale": self.factor * (kwargs.get("scale") or args[0].shape[-1] ** -0.5)}
        return func(*args, **kwargs)


def _with_scaled(
    tensors: Mapping[str, torch.Tensor], names: Sequence[str], rows: int, factor: float
) -> dict[str, torch.Tensor]:
    return {name: _scaled(tensors[name], rows, factor) for name in names}


def _scaled(parameter: torch.Tensor, rows: int, factor: float) -> torch.Tensor:
    wide = parameter.to(torch.float64)
    return torch.cat((wide[:rows] * factor, wide[rows:]))


HEADS = (
    Signature(
        name="kv heads in turn",
        sentence="the query heads of a rank take its {detail} key and value heads in turn, where neighbours share one "
        "(repeat instead of repeat_interleave)",
        on=("output",),
        guess=in_turn,
    ),
    Signature(
        name="scores scaled",
        sentence="attention scores are {detail} times what they must be: their scale is left out, applied twice, or "
        "made of another head_dim",
        on=("output",),
        guess=scores_scaled,
    ),
)
