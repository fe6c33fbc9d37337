"""Signatures of what both kinds of block do around their reduction: biases, residuals and the ranks' summands."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ....diagnosis.signature import Guess, Signature, shifted
from ....diagnosis.site import Site, UnavailableError
from ....reference import gpt_oss
from .replay import Form, added_bias, attention_of, expert_parts, projection_parts, router_weights, weighted_bias


def _total_and_bias(site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    return site.tap("total").reshape(site.tap(site.leaf).shape), added_bias(site)


def bias_dropped(site: Site) -> Iterator[Guess]:
    """The sum over ranks without the bias."""
    total, _ = _total_and_bias(site)
    yield Guess(total, _bias_name(site))


def bias_times_tp(site: Site) -> Iterator[Guess]:
    """The bias added by every rank before the reduction."""
    total, bias = _total_and_bias(site)
    yield from (Guess(total + site.tp * bias, _bias_name(site)) for _ in range(site.tp > 1))


def bias_divided(site: Site) -> Iterator[Guess]:
    """A share of the bias, added once."""
    total, bias = _total_and_bias(site)
    yield from (Guess(total + bias / site.tp, _bias_name(site)) for _ in range(site.tp > 1))


def bias_twice(site: Site) -> Iterator[Guess]:
    """The bias added twice, as before and after the reduction."""
    total, bias = _total_and_bias(site)
    yield from (Guess(total + 2 * bias, _bias_name(site)) for _ in range(site.tp != 2))


def bias_unweighted(site: Site) -> Iterator[Guess]:
    """The sum, or the mean, of the chosen experts' biases."""
    total, _ = _total_and_bias(site)
    chosen = (router_weights(site) > 0).to(torch.float64)
    yield Guess(total + weighted_bias(site, chosen))
    yield Guess(total + weighted_bias(site, chosen / chosen.sum(dim=-1, keepdim=True)))


def _bias_name(site: Site) -> str:
    return "mlp2_bias" if isinstance(site.module, gpt_oss.MLPBlock) else "out.bias"


def _branch(site: Site) -> torch.Tensor:
    """What is added to the residual stream."""
    return site.tap("combined" if isinstance(site.module, gpt_oss.MLPBlock) else "reduced")


def residual_dropped(site: Site) -> Iterator[Guess]:
    """The block's branch without the residual."""
    yield Guess(_branch(site))


def residual_times_tp(site: Site) -> Iterator[Guess]:
    """The residual tp times instead of once, or beside the right one."""
    for times in {site.tp, site.tp + 1} if site.tp > 1 else ():
        yield Guess(_branch(site) + times * site.input, f"{times} times instead of once")


def residual_of_norm(site: Site) -> Iterator[Guess]:
    """The normed input in the place of the input."""
    yield Guess(_branch(site) + site.tap("norm"))


# summands


def right_parts(site: Site, mapping: list[int] | None = None, form: Form | None = None) -> list[torch.Tensor]:
    """Every rank's summand, float64: (..., hidden) of attention, (tokens, hidden) of experts.

    Args:
        mapping: rank r computes with the weights of rank `mapping[r]`; None: with its own.
        form: applied to the slice of the second matrix that a rank computes with.
    """
    of_rank = (lambda rank: rank) if mapping is None else mapping.__getitem__
    if isinstance(site.module, gpt_oss.MLPBlock):
        return expert_parts(site, site.tap("activation"), router_weights(site), of_rank, form)
    _ = attention_of(site)
    return projection_parts(site, site.tap("heads"), of_rank, form)


def weights_of_other_rank(site: Site) -> Iterator[Guess]:
    """The rows of the second matrix belong to another rank."""
    size = site.tp
    ranks = list(range(size))
    moved = {f"rank r has those of rank {shifted('r', step)}": [(r + step) % size for r in ranks] for step in (1, -1)}
    for detail, mapping in {**moved, "in reverse order": ranks[::-1], "all have rank 0's": [0] * size}.items():
        if mapping != ranks:
            yield Guess(right_parts(site, mapping), detail)


def transposed(site: Site) -> Iterator[Guess]:
    """A rank's slice of the second matrix read the other way round, its shape kept."""
    yield Guess(right_parts(site, form=lambda shard: shard.transpose(-2, -1).reshape(shard.shape)))


def one_part_scaled(site: Site) -> Iterator[Guess]:
    """One rank's summand is a multiple of what it should be, all others are right."""
    right, seen, odd = _odd_part(site)
    factor = ((seen[odd] * right[odd]).sum() / right[odd].square().sum()).item()
    yield Guess([part * factor if r == odd else part for r, part in enumerate(right)], f"{odd}'s is {factor:.6g} x")


def one_part_wrong(site: Site) -> Iterator[Guess]:
    """All ranks' summands are what they should be, but one."""
    right, seen, odd = _odd_part(site)
    yield Guess([seen[r] if r == odd else part for r, part in enumerate(right)], str(odd))


def _odd_part(site: Site) -> tuple[list[torch.Tensor], list[torch.Tensor], int]:
    """The right summands, the ranks' own, and the rank that is farthest off."""
    if site.tp == 1 or site.leaf != site.target:
        raise UnavailableError
    right = right_parts(site)
    sides = zip(site.traced.shards, right, strict=True)
    seen = [part.to(torch.float64).reshape(whole.shape) for part, whole in sides]
    errors = [(a - b).norm().item() for a, b in zip(seen, right, strict=True)]
    return right, seen, max(range(site.tp), key=errors.__getitem__)


def bias_before_sum(site: Site) -> Iterator[Guess]:
    """Every rank adds the bias, or a share of it, to its summand; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    parts, bias = right_parts(site), added_bias(site)
    bias = bias if bias.ndim == 1 else bias.reshape(parts[0].shape)
    yield Guess([part + bias for part in parts], "the whole bias")
    yield Guess([part + bias / site.tp for part in parts], f"1/{site.tp} of the bias")
    yield Guess([part + bias * (rank == 0) for rank, part in enumerate(parts)], "on rank 0 alone, the bias")


def residual_before_sum(site: Site) -> Iterator[Guess]:
    """Every rank adds the residual, or a share of it, to its summand; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    parts = right_parts(site)
    residual = site.input.reshape(parts[0].shape)
    yield Guess([part + residual for part in parts], "the whole residual")
    yield Guess([part + residual / site.tp for part in parts], f"1/{site.tp} of the residual")


WITH_BIAS = ("reduced", "combined")

BLOCKS = (
    Signature(name="bias dropped", sentence="{detail} is not added", on=WITH_BIAS, guess=bias_dropped),
    Signature(
        name="bias x tp",
        sentence="{detail} is added {tp} times, once per rank, instead of once",
        on=WITH_BIAS,
        guess=bias_times_tp,
    ),
    Signature(
        name="bias / tp",
        sentence="{detail} is divided by {tp} and added once",
        on=WITH_BIAS,
        guess=bias_divided,
    ),
    Signature(name="bias twice", sentence="{detail} is added twice", on=WITH_BIAS, guess=bias_twice),
    Signature(
        name="bias unweighted",
        sentence="mlp2_bias is added without the router's weights",
        on=("combined",),
        guess=bias_unweighted,
    ),
    Signature(name="residual dropped", sentence="the residual is not added", on=("residual",), guess=residual_dropped),
    Signature(
        name="residual x tp",
        sentence="the residual is added {detail}: by every rank before the reduction",
        on=("residual",),
        guess=residual_times_tp,
    ),
    Signature(
        name="residual of norm",
        sentence="the normed input is added instead of the input",
        on=("residual",),
        guess=residual_of_norm,
    ),
    Signature(
        name="weights of other rank",
        sentence="the second matrix's shards are on other ranks: {detail}",
        on=("partial",),
        guess=weights_of_other_rank,
    ),
    Signature(
        name="weights transposed",
        sentence="a rank's slice of the second matrix is read the other way round",
        on=("partial",),
        guess=transposed,
    ),
    Signature(
        name="one part scaled",
        sentence="all ranks' parts are right but one: rank {detail} what it should be",
        on=("partial",),
        guess=one_part_scaled,
    ),
    Signature(
        name="one part wrong",
        sentence="rank {detail}'s part alone is wrong, the others' are right: a stale or corrupted shard",
        on=("partial",),
        guess=one_part_wrong,
        level=2,
    ),
    Signature(
        name="bias before sum",
        sentence="{detail} is added before the reduction by every rank",
        on=("partial",),
        guess=bias_before_sum,
    ),
    Signature(
        name="residual x tp",
        sentence="{detail} is added before the reduction by every rank",
        on=("partial",),
        guess=residual_before_sum,
    ),
)
