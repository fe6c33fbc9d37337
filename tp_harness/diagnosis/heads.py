"""Signatures of an own attention module whose key and value heads the plan cuts: the reference, run with other queries.

Query heads that attend to each other's keys give what the reference gives with its query heads in another order; scores
of another scale give what it gives with larger or smaller queries. So the parameters say it, and no tap is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import sqrt

import torch

from ..placements import KVHeads, QKVHeads, Shard
from .cuts import by_owner, own_parameters, rerun
from .signature import Guess, Signature
from .site import Site, UnavailableError


@dataclass(frozen=True, kw_only=True)
class Heads:
    """How many there are, and `queries`: by parameter the dimension and, along it, the elements of one query head."""

    queries: dict[str, tuple[int, int]]
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


def heads_of(site: Site) -> Iterator[Heads]:
    """The heads that an own module's plan may mean: key and value heads say how large one is, not which are queries.

    Raises:
        UnavailableError: it cuts no key and value heads.
    """
    parameters, plan = own_parameters(site), site.evidence.case.plan
    fused = {name: placement for name, placement in plan.items() if isinstance(placement, QKVHeads)}
    cut = {name: placement for name, placement in plan.items() if isinstance(placement, Shard)}
    apart = next((placement for placement in plan.values() if isinstance(placement, KVHeads)), None)
    if fused:
        one = next(iter(fused.values()))
        kv, head_dim, counts = one.num_key_value_heads, one.head_dim, {one.num_attention_heads}
    elif apart:
        kv, head_dim = apart.num_heads, apart.unit
        rows = {parameters[name].shape[0] for name, placement in cut.items() if placement.dim == 0}
        counts = {elements // head_dim for elements in rows if elements and elements % (kv * head_dim) == 0}
    else:
        raise UnavailableError
    for count in sorted(counts):
        queries = dict.fromkeys(fused, (0, head_dim))
        for name, placement in cut.items():
            unit, rest = divmod(parameters[name].shape[placement.dim], count)
            if rest == 0 and unit in (1, head_dim):  # a number per head, as sinks are, or a projection
                queries[name] = placement.dim, unit
        yield Heads(queries=queries, num_attention_heads=count, num_key_value_heads=kv, head_dim=head_dim)


def in_turn(site: Site) -> Iterator[Guess]:
    """A rank's query heads take its key and value heads one after the other, where neighbours share one."""
    parameters = own_parameters(site)
    for heads in heads_of(site):
        held = max(1, heads.num_key_value_heads // site.tp)
        own = torch.arange(heads.num_attention_heads).view(site.tp, -1, held)
        order = own.transpose(1, 2).flatten()
        if not torch.equal(order, own.flatten()):
            changed = {name: _reordered(parameters[name], *at, order) for name, at in heads.queries.items()}
            yield rerun(site, changed, str(held))


def _reordered(parameter: torch.Tensor, dim: int, unit: int, order: torch.Tensor) -> torch.Tensor:
    """With its first heads along `dim` in another order; what follows them stays."""
    positions = torch.arange(parameter.shape[dim])
    queries = positions[: len(order) * unit].view(-1, unit)
    positions[: len(order) * unit] = queries[order].flatten()
    return parameter.index_select(dim, positions)


def scores_scaled(site: Site) -> Iterator[Guess]:
    """Scores that lack their scale, have it twice, or have that of another head_dim."""
    parameters = own_parameters(site)
    for heads in heads_of(site):
        factors = {"sqrt(head_dim)": sqrt(heads.head_dim), "sqrt(tp)": sqrt(site.tp)}
        factors |= {f"1 / {text}": 1 / factor for text, factor in factors.items()}
        rows = heads.num_attention_heads * heads.head_dim
        projections = {name: at for name, at in heads.queries.items() if at == (0, heads.head_dim)}
        for names, (text, factor) in product(by_owner(projections).values(), factors.items()):
            if factor != 1:
                changed = {name: _scaled(parameters[name], rows, factor) for name in names}
                yield rerun(site, changed, f"{text} = {factor:.4g}")


def _scaled(parameter: torch.Tensor, rows: int, factor: float) -> torch.Tensor:
    factors = torch.ones(len(parameter), dtype=torch.float64)
    factors[:rows] = factor
    return parameter.to(torch.float64) * factors.view(-1, *[1] * (parameter.ndim - 1))


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
