"""The reference's steps one at a time, in float64: from one tap's value to the next.

Signatures use them to compute what a mistake makes of the right values before it, and to carry a wrong value on to the
tensor that was looked at. Formulas are those of `reference/gpt_oss.py`, which names its sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import linear

from ....diagnosis.signature import Step, sum_of
from ....diagnosis.site import Site, UnavailableError
from ....reference import gpt_oss

Form = Callable[[torch.Tensor], torch.Tensor]


def attention_of(site: Site) -> gpt_oss.AttentionBlock:
    """The site's module; raises UnavailableError where it is no attention block."""
    if not isinstance(site.module, gpt_oss.AttentionBlock):
        raise UnavailableError
    return site.module


def experts_of(site: Site) -> gpt_oss.MLPBlock:
    """The site's module; raises UnavailableError where it is no mixture of experts."""
    if not isinstance(site.module, gpt_oss.MLPBlock):
        raise UnavailableError
    return site.module


# attention


def projected(site: Site, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Query, key and value of the oracle's normed input before rotation: (..., heads, head_dim) each, float64."""
    block = attention_of(site)
    weight = site.parameter("qkv.weight") if weight is None else weight
    bias = site.parameter("qkv.bias") if bias is None else bias
    fused = linear(site.tap("norm"), weight, bias)
    parts = fused.split([block.q_dim, block.kv_dim, block.kv_dim], dim=-1)
    return [part.unflatten(-1, (-1, block.head_dim)) for part in parts]


def attend(
    site: Site,
    *,
    sinks: torch.Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    causal: bool = True,
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    query: torch.Tensor | None = None,
) -> torch.Tensor:
    """`heads`, (batch, seq, heads * head_dim) float64, from the oracle's tensors with what is given changed.

    Args:
        sinks: (heads,) float64.
        window: tokens that a query sees; 0 means all before it.
        scale: factor on the scores in the place of 1 / sqrt(head_dim).
        causal: whether later keys are hidden.
        key, value: (batch, seq, kv_heads, head_dim) float64.
        query: (batch, seq, heads, head_dim) float64.
    """
    query = site.tap("q_rope") if query is None else query
    key = site.tap("k_rope") if key is None else key
    value = site.tap("value") if value is None else value
    sinks = site.parameter("sinks") if sinks is None else sinks
    window = attention_of(site).sliding_window if window is None else window
    mask = gpt_oss.visible(site.positions, window)
    if not causal:  # a window, where there is one, still hides what is long past
        mask = mask | gpt_oss.visible(-site.positions, 0)
    if scale is not None:
        query = query * scale * math.sqrt(query.shape[-1])
    grouped = query.unflatten(-2, (key.shape[-2], -1))
    return gpt_oss.sink_attention(grouped, key, value, sinks, mask)


def projection_parts(
    site: Site, heads: torch.Tensor, of_rank: Callable[[int], int], form: Form | None = None
) -> list[torch.Tensor]:
    """Every rank's summand of the projection, (..., hidden), of all `heads` (..., heads * head_dim); float64.

    Rank r computes with the weights of rank `of_rank(r)`, changed by `form`.
    """
    columns = [(form or _as_it_is)(part) for part in site.parameter("out.weight").chunk(site.tp, dim=1)]
    return [linear(part, columns[of_rank(r)]) for r, part in enumerate(heads.chunk(site.tp, dim=-1))]


def _as_it_is(value: torch.Tensor) -> torch.Tensor:
    return value


# experts


def pairs(site: Site) -> list[tuple[int, torch.Tensor]]:
    """(expert, indices of its tokens, (count,) int64) in the order in which experts are computed."""
    chosen = site.tap("chosen").flatten(0, -2)
    found = ((e, (chosen == e).any(-1).nonzero()[:, 0]) for e in range(experts_of(site).mlp1_weight.shape[0]))
    return [(expert, tokens) for expert, tokens in found if len(tokens)]


def router_weights(site: Site, softmax: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """Weights (tokens, experts), float64, 0 for experts that a token did not choose.

    `softmax` maps all logits to weights; None: the softmax of the chosen ones' logits, as the reference takes it.
    """
    logits, chosen = (site.tap(leaf).flatten(0, -2) for leaf in ("router_logits", "chosen"))
    own = torch.softmax(logits.gather(-1, chosen), dim=-1)
    weights = own if softmax is None else softmax(logits).gather(-1, chosen)
    return torch.zeros_like(logits).scatter(-1, chosen, weights)


def gate_ups(site: Site, product: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`product(expert, its normed tokens)` of all experts in turn, in one shape (rows, 2 * intermediate), float64."""
    tokens = site.tap("norm").flatten(0, -2)
    return torch.cat([product(expert, tokens[rows]) for expert, rows in pairs(site)])


def expert_parts(
    site: Site,
    activation: torch.Tensor,
    weights: torch.Tensor,
    of_rank: Callable[[int], int],
    form: Form | None = None,
    *,
    of_expert: Callable[[int, int], int] = lambda expert, _rank: expert,
) -> list[torch.Tensor]:
    """Every rank's summand, (tokens, hidden) float64.

    Args:
        activation: (rows, intermediate) float64, the rows of all experts in turn.
        weights: of the router, (tokens, experts) float64.
        of_rank: rank r computes with the down columns of rank `of_rank(r)`.
        form: applied to the down columns, (hidden, intermediate / tp), of an expert.
        of_expert: (expert, rank) -> the expert whose down columns the rank takes.
    """
    down_weight = experts_of(site).mlp2_weight
    shape = (len(weights), down_weight.shape[1])
    parts = [torch.zeros(shape, dtype=torch.float64) for _ in range(site.tp)]
    split = activation.split([len(rows) for _, rows in pairs(site)])
    for (expert, rows), act in zip(pairs(site), split, strict=True):
        for rank, own in enumerate(act.chunk(site.tp, dim=-1)):
            columns = down_weight[of_expert(expert, rank)].chunk(site.tp, dim=1)[of_rank(rank)].to(torch.float64)
            down = linear(own, (form or _as_it_is)(columns))
            parts[rank].index_add_(0, rows, down * weights[rows, expert, None])
    return parts


def weighted_bias(site: Site, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Down biases of each token's experts, weighted by `weights` (tokens, experts); float64, in `combined`'s shape."""
    weights = router_weights(site) if weights is None else weights
    return (weights @ site.parameter("mlp2_bias")).view_as(site.tap("combined"))


# carrying a wrong value on


def added_bias(site: Site) -> torch.Tensor:
    """What the block adds to its sum over ranks, float64: (hidden,) of attention, `combined`'s shape of experts."""
    return weighted_bias(site) if isinstance(site.module, gpt_oss.MLPBlock) else site.parameter("out.bias")


def steps(site: Site) -> dict[str, Step]:
    """Leaf -> (next leaf, how its full value follows)."""

    experts = isinstance(site.module, gpt_oss.MLPBlock)
    shared: dict[str, Step] = {
        "partial": ("total", _as_it_is),
        "total": ("combined" if experts else "reduced", lambda total: total + added_bias(site)),
        "reduced": ("residual", lambda reduced: site.input + reduced),
        "combined": ("residual", lambda combined: site.input + combined),
    }
    if isinstance(site.module, gpt_oss.AttentionBlock):
        return shared | {
            "q_rope": ("heads", lambda query: attend(site, query=query)),
            "k_rope": ("heads", lambda key: attend(site, key=key)),
            "value": ("heads", lambda value: attend(site, value=value)),
            "heads": ("partial", lambda heads: linear(heads, site.parameter("out.weight"))),
        }
    if isinstance(site.module, gpt_oss.MLPBlock):
        limit = site.module.swiglu_limit
        return shared | {
            "gate_up": ("activation", lambda x: gpt_oss.swiglu(x, limit=limit)),
            "activation": ("partial", lambda x: sum_of(expert_parts(site, x, router_weights(site), lambda r: r))),
        }
    return shared
