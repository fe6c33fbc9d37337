"""The reference's steps one at a time, in float64: from one tap's value to the next.

Signatures use them to compute what a mistake makes of the right values before it, and to carry a wrong value on to the
tensor that was looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import linear

from ....diagnosis.carry import Step, sum_of
from ....diagnosis.site import Site, UnavailableError
from ....reference import gpt_oss

Form = Callable[[torch.Tensor], torch.Tensor]


def attention_of(site: Site) -> gpt_oss.AttentionBlock:
    """The site's module, which must be an attention block."""
    if not isinstance(site.module, gpt_oss.AttentionBlock):
        raise UnavailableError
    return site.module


def experts_of(site: Site) -> gpt_oss.MLPBlock:
    """The site's module, which must be a mixture of experts."""
    if not isinstance(site.module, gpt_oss.MLPBlock):
        raise UnavailableError
    return site.module


# attention


def projected(site: Site, weight: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Query, key and value before rotation, (..., heads, head_dim) each, of the oracle's normed input."""
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
    scale: float = 1.0,
    causal: bool = True,
    key: torch.Tensor | None = None,
    value: torch.Tensor | None = None,
    query: torch.Tensor | None = None,
) -> torch.Tensor:
    """`heads` from the oracle's query, key and value, with what is given changed; `scale` multiplies the scores."""
    query = site.tap("q_rope") if query is None else query
    key = site.tap("k_rope") if key is None else key
    value = site.tap("value") if value is None else value
    sinks = site.parameter("sinks") if sinks is None else sinks
    window = attention_of(site).sliding_window if window is None else window
    mask = gpt_oss.visible(site.positions, window)
    if not causal:  # a window, where there is one, still hides what is long past
        mask = mask | gpt_oss.visible(-site.positions, 0)
    grouped = query.unflatten(-2, (key.shape[-2], -1)) * scale
    return gpt_oss.sink_attention(grouped, key, value, sinks, mask)


def projection_parts(
    site: Site, heads: torch.Tensor, of_rank: Callable[[int], int], form: Form | None = None
) -> list[torch.Tensor]:
    """Every rank's summand of the projection, rank r with the weights of rank `of_rank(r)`, changed by `form`."""
    columns = [(form or _as_it_is)(part) for part in site.parameter("out.weight").chunk(site.tp, dim=1)]
    return [linear(part, columns[of_rank(r)]) for r, part in enumerate(heads.chunk(site.tp, dim=-1))]


def _as_it_is(value: torch.Tensor) -> torch.Tensor:
    return value


# experts


def pairs(site: Site) -> list[tuple[int, torch.Tensor]]:
    """(expert, its tokens) in the order in which experts are computed."""
    chosen = site.tap("chosen").flatten(0, -2)
    found = ((e, (chosen == e).any(-1).nonzero()[:, 0]) for e in range(experts_of(site).mlp1_weight.shape[0]))
    return [(expert, tokens) for expert, tokens in found if len(tokens)]


def router_weights(site: Site, softmax: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """[tokens, experts]; `softmax` maps all logits to weights where the reference takes the chosen ones' softmax."""
    logits, chosen = (site.tap(leaf).flatten(0, -2) for leaf in ("router_logits", "chosen"))
    own = torch.softmax(logits.gather(-1, chosen), dim=-1)
    weights = own if softmax is None else softmax(logits).gather(-1, chosen)
    return torch.zeros_like(logits).scatter(-1, chosen, weights)


def gate_ups(site: Site, product: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Rows of all experts in turn: `product(expert, its normed tokens)`."""
    tokens = site.tap("norm").flatten(0, -2)
    return torch.cat([product(expert, tokens[rows]) for expert, rows in pairs(site)])


def expert_parts(
    site: Site,
    activation: torch.Tensor,
    weights: torch.Tensor,
    of_rank: Callable[[int], int],
    form: Form | None = None,
) -> list[torch.Tensor]:
    """Every rank's summand, (tokens, hidden), rank r with the down columns of rank `of_rank(r)`, changed by `form`."""
    shape = (len(weights), experts_of(site).mlp2_weight.shape[1])
    parts = [torch.zeros(shape, dtype=torch.float64) for _ in range(site.tp)]
    split = activation.split([len(rows) for _, rows in pairs(site)])
    for (expert, rows), act in zip(pairs(site), split, strict=True):
        shards = experts_of(site).mlp2_weight[expert].to(torch.float64).chunk(site.tp, dim=1)
        columns = [(form or _as_it_is)(shard) for shard in shards]
        for rank, own in enumerate(act.chunk(site.tp, dim=-1)):
            down = linear(own, columns[of_rank(rank)])
            parts[rank].index_add_(0, rows, down * weights[rows, expert, None])
    return parts


def weighted_bias(site: Site, weights: torch.Tensor | None = None) -> torch.Tensor:
    """The down biases of a token's experts, weighted, in the form of `combined`."""
    weights = router_weights(site) if weights is None else weights
    return (weights @ site.parameter("mlp2_bias")).view_as(site.tap("combined"))


# carrying a wrong value on


def added_bias(site: Site) -> torch.Tensor:
    """What the block adds to its sum over ranks."""
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
