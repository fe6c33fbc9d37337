"""Signatures of the mixture of experts: router, gate and up rows, activation, and weights of the sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch.nn.functional import linear

from ....diagnosis.signature import Guess, Signature, shifted
from ....diagnosis.site import Site, UnavailableError
from ....parallel.placements import PlacementError, StridedShard
from .replay import expert_parts, experts_of, gate_ups, router_weights, weighted_bias

ALPHA = 1.702


def router_bias(site: Site) -> Iterator[Guess]:
    """The router's bias left out, or counted once per rank."""
    experts_of(site)  # another module's router has another form
    product = linear(site.tap("norm"), site.parameter("gate.weight"))
    yield Guess(product, "not added")
    if site.tp > 1:
        yield Guess(product + site.tp * site.parameter("gate.bias"), f"added {site.tp} times")


def router_of_raw_input(site: Site) -> Iterator[Guess]:
    """The router given the block's input before the norm."""
    experts_of(site)  # another module's router has another form
    yield Guess(linear(site.input, site.parameter("gate.weight"), site.parameter("gate.bias")))


# gate and up


def _rows(site: Site, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    block = experts_of(site)
    return block.mlp1_weight[expert].to(torch.float64), block.mlp1_bias[expert].to(torch.float64)


def gate_up_bias(site: Site) -> Iterator[Guess]:
    """mlp1_bias left out."""
    yield Guess(gate_ups(site, lambda expert, t: linear(t, _rows(site, expert)[0])))


def gate_up_bias_of_rank_0(site: Site) -> Iterator[Guess]:
    """Rank 0's rows of mlp1_bias on all ranks."""

    def product(expert: int, t: torch.Tensor) -> torch.Tensor:
        weight, bias = _rows(site, expert)
        return linear(t, weight, bias[: len(bias) // site.tp].repeat(site.tp))

    if site.tp > 1:
        yield Guess(gate_ups(site, product))


def cut_in_halves(site: Site) -> Iterator[Guess]:
    """Rank r has the r-th slice of the first half and of the second, as if gates came first and ups second.

    Raises:
        UnavailableError: at one rank, or where the halves do not divide by the ranks.
    """
    if site.tp == 1:
        raise UnavailableError
    halves = StridedShard(0, 2)
    for right_bias in (False, True):

        def product(expert: int, t: torch.Tensor, keep: bool = right_bias) -> torch.Tensor:
            weight, bias = _rows(site, expert)
            cut = torch.cat(halves.split(weight, site.tp))
            return linear(t, cut, bias if keep else torch.cat(halves.split(bias, site.tp)))

        try:
            yield Guess(gate_ups(site, product))
        except PlacementError:
            raise UnavailableError from None


def experts_shifted(site: Site) -> Iterator[Guess]:
    """Another expert's matrices."""
    count = len(experts_of(site).mlp1_weight)
    for step in (1, -1):
        yield Guess(gate_ups(site, lambda e, t, s=step: linear(t, *_rows(site, (e + s) % count))), shifted("e", step))  # type: ignore[misc]


def down_experts_shifted(site: Site) -> Iterator[Guess]:
    """Another expert's down matrix, on all ranks or on all but the first."""
    count = len(experts_of(site).mlp2_weight)
    for first, step in ((0, 1), (0, -1), (1, 1), (1, -1)):

        def of(expert: int, rank: int, first: int = first, step: int = step) -> int:
            return (expert + step) % count if rank >= first else expert

        where = ", on the wrong ranks alone" if first else ""
        parts = expert_parts(site, site.tap("activation"), router_weights(site), lambda rank: rank, of_expert=of)
        if site.tp > first:
            yield Guess(parts, shifted("e", step) + " computes in the place of e" + where)


# activation


def _swiglu(site: Site, gate: torch.Tensor, up: torch.Tensor, **other: float) -> torch.Tensor:
    """gate sigmoid(alpha gate) (up + one), the gate within [low, high], up within [-bound, bound]."""
    limit = experts_of(site).swiglu_limit
    options = {"low": -math.inf, "high": limit, "bound": limit, "alpha": ALPHA, "one": 1.0} | other
    gate = gate.clamp(options["low"], options["high"])
    up = up.clamp(-options["bound"], options["bound"])
    return gate * torch.sigmoid(options["alpha"] * gate) * (up + options["one"])


def _variants(*forms: tuple[str, dict[str, float]]) -> Callable[[Site], Iterator[Guess]]:
    """Guesses at the activation with other constants."""

    def guess(site: Site) -> Iterator[Guess]:
        gate, up = site.tap("gate_up").unflatten(-1, (-1, 2)).unbind(-1)
        yield from (Guess(_swiglu(site, gate, up, **form), detail) for detail, form in forms)

    return guess


def swapped(site: Site) -> Iterator[Guess]:
    """Ups first, then gates."""
    gate, up = site.tap("gate_up").unflatten(-1, (-1, 2)).unbind(-1)
    yield Guess(_swiglu(site, up, gate))


def halves(site: Site) -> Iterator[Guess]:
    """A rank's rows taken as [gates | ups]."""
    local = site.tap("gate_up").chunk(site.tp, dim=-1)
    yield Guess(torch.cat([_swiglu(site, *rows.chunk(2, dim=-1)) for rows in local], dim=-1))
    yield Guess(torch.cat([_swiglu(site, *rows.chunk(2, dim=-1)[::-1]) for rows in local], dim=-1), ", ups first")


# the weighted sum


def softmax_over_all(site: Site) -> Iterator[Guess]:
    """Weights, of experts and of their biases, from a softmax over all experts: the chosen ones' do not add up to 1."""
    weights = router_weights(site, lambda logits: torch.softmax(logits, dim=-1))
    if site.leaf == "combined":
        yield Guess(site.tap("total").reshape(site.tap("combined").shape) + weighted_bias(site, weights))
        return
    yield Guess(expert_parts(site, site.tap("activation"), weights, lambda rank: rank))


def unweighted(site: Site) -> Iterator[Guess]:
    """Weights of one, equal weights, or the logits' sigmoid."""
    count = experts_of(site).experts_per_token
    forms: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "summed without weights": torch.ones_like,
        f"weighted by 1/{count}": lambda logits: torch.ones_like(logits) / count,
        "weighted by the logits' sigmoid": torch.sigmoid,
        "weighted by the raw logits": lambda logits: logits,
    }
    for detail, softmax in forms.items():
        weights = router_weights(site, softmax)
        yield Guess(expert_parts(site, site.tap("activation"), weights, lambda rank: rank), detail)


EXPERTS = (
    Signature(name="router bias", sentence="the router's bias is {detail}", on=("router_logits",), guess=router_bias),
    Signature(
        name="router input not normed",
        sentence="the router is given the block's input instead of the normed one",
        on=("router_logits",),
        guess=router_of_raw_input,
    ),
    Signature(name="gate up bias dropped", sentence="mlp1_bias is not added", on=("gate_up",), guess=gate_up_bias),
    Signature(
        name="gate up bias of rank 0",
        sentence="all ranks add rank 0's rows of mlp1_bias",
        on=("gate_up",),
        guess=gate_up_bias_of_rank_0,
    ),
    Signature(
        name="gate up cut in halves",
        sentence="mlp1 is cut as [gates | ups], but its rows are interleaved pairs",
        on=("gate_up",),
        guess=cut_in_halves,
    ),
    Signature(
        name="experts shifted",
        sentence="expert {detail} computes in the place of e",
        on=("gate_up",),
        guess=experts_shifted,
    ),
    Signature(name="experts shifted", sentence="expert {detail}", on=("partial",), guess=down_experts_shifted),
    Signature(name="gate up swapped", sentence="gates and ups are exchanged", on=("activation",), guess=swapped),
    Signature(
        name="gate up in halves",
        sentence="a rank's interleaved rows are taken as two halves [gates | ups]{detail}",
        on=("activation",),
        guess=halves,
    ),
    Signature(
        name="clamp missing",
        sentence="{detail} not clamped: only large values differ",
        on=("activation",),
        guess=_variants(
            ("gates and ups are", {"high": math.inf, "bound": math.inf}),
            ("gates are", {"high": math.inf}),
            ("ups are", {"bound": math.inf}),
        ),
    ),
    Signature(
        name="clamp symmetric",
        sentence="gates are clamped from below, too: only gates under -limit differ",
        on=("activation",),
        guess=lambda site: _variants(("", {"low": -experts_of(site).swiglu_limit}))(site),
    ),
    Signature(
        name="swiglu alpha",
        sentence="the sigmoid's factor is {detail} instead of 1.702",
        on=("activation",),
        guess=_variants(("1 (SiLU)", {"alpha": 1.0}), ("1.7", {"alpha": 1.7}), ("1.702 squared", {"alpha": ALPHA**2})),
    ),
    Signature(
        name="up plus 1 missing",
        sentence="ups multiply without the added 1",
        on=("activation",),
        guess=_variants(("", {"one": 0.0})),
    ),
    Signature(
        name="softmax over all experts",
        sentence="the router's softmax runs over all experts instead of the chosen ones",
        on=("partial", "combined"),
        guess=softmax_over_all,
    ),
    Signature(name="experts unweighted", sentence="the experts are {detail}", on=("partial",), guess=unweighted),
)
