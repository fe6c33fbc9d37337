"""Signatures of a sum in an own module: what one thing contributes is there several times, partly, or not at all.

The reference says what a parameter or a submodule contributes: it is run with that several times as large, or zero. A
norm or a further layer after the sum is thereby taken into account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ..parallel.placements import Partial, Replicate
from .common import LEAST_NUMBERS
from .own import by_owner, cut_tensors, made, own_parameters, rerun, same
from .signature import Guess, Signature
from .site import Site, UnavailableError

VECTOR, WHOLE, SUMMED = "vector", "whole", "summed"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What may contribute a summand: a submodule by its output, or some parameters.

    `kind`: a replicated vector, another thing that every rank has whole, or one of which ranks hold parts.
    """

    name: str
    kind: str
    parameters: tuple[str, ...]  # none: the submodule of that name
    without: torch.Tensor  # what the reference gives when it is zero
    doubled: torch.Tensor  # and when it is twice as large

    def level(self, right: torch.Tensor) -> int:
        """The level of a guess at this source: 0 if what it gives is simply added to `right` (full, float64), else 1.

        A thing that is given on, a query say, can look like a summand.
        """
        return int(not same(self.doubled - right, right - self.without))

    def is_like(self, other: Source) -> bool:
        """Whether the numbers cannot tell them apart."""
        return same(self.without, other.without) and same(self.doubled, other.doubled)

    def times(self, factor: float) -> Callable[[Site], torch.Tensor]:
        """(site) -> what the reference gives, float64 in its full shape, when this is `factor` times as large."""

        return lambda site: _times(site, self.name, self.parameters, factor)


def sources(site: Site) -> list[Source]:
    """All that contribute, those with the same effect once: vectors first, then submodules, then other parameters."""
    key = f"sources of {site.traced.name}"
    if key not in site.memo:
        found: list[Source] = []
        for name, kind, parameters in _candidates(site):
            source = _source(site, name, kind, parameters)
            if source and not any(source.is_like(other) for other in found):
                found.append(source)
        site.memo[key] = found
    return list(site.memo[key])


def _source(site: Site, name: str, kind: str, parameters: tuple[str, ...]) -> Source | None:
    """A source, if it contributes something and not everything."""
    try:
        without, doubled = (_times(site, name, parameters, factor) for factor in (0.0, 2.0))
    except UnavailableError:
        return None
    if same(without, site.right) or not without.norm() > 0:
        return None
    return Source(name=name, kind=kind, parameters=parameters, without=without, doubled=doubled)


def _times(site: Site, name: str, parameters: tuple[str, ...], factor: float) -> torch.Tensor:
    if not parameters:
        return rerun(site, outputs={name: lambda y: y * factor})
    own = own_parameters(site)
    return rerun(site, {name: own[name].to(torch.float64) * factor for name in parameters})


def _candidates(site: Site) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    parameters, cut = own_parameters(site), cut_tensors(site)
    vectors = [name for name, p in parameters.items() if name not in cut and (p.ndim == 1 or "bias" in name)]
    yield from ((name, VECTOR, (name,)) for name in vectors)
    modules = [name for name, _ in site.tapped.reference.named_modules() if name]
    owning = {name: [p for p in parameters if p.startswith(f"{name}.")] for name in modules}
    for name in sorted(reversed(modules), key=lambda name: (not owning[name], name.count("."))):
        yield name, SUMMED if any(p in cut for p in owning[name]) else WHOLE, ()
    for name in reversed(parameters):
        if name not in vectors:
            yield name, SUMMED if name in cut else WHOLE, (name,)
    for owner, own in by_owner(parameters).items():
        if len(own) > 1:  # a projection that is called as a function
            yield owner, SUMMED if any(p in cut for p in own) else WHOLE, tuple(own)


def _scaled(factor: Callable[[int], float], *kinds: str) -> Callable[[Site], Iterator[Guess]]:
    """Guesses in which each source of these kinds is `factor(tp)` times as large."""

    def guesses(site: Site) -> Iterator[Guess]:
        if site.tp == 1:
            raise UnavailableError
        for source in sources(site):
            if source.kind in kinds:
                yield from _leveled(site, source, made(site, source.times(factor(site.tp)), source.name))

    return guesses


def _leveled(site: Site, source: Source, guesses: Iterator[Guess]) -> Iterator[Guess]:
    yield from (guess._replace(level=source.level(site.right)) for guess in guesses)


def missing(site: Site) -> Iterator[Guess]:
    """A summand that is not there."""
    for source in sources(site):
        if source.kind != VECTOR:
            yield Guess(source.without, source.name, remake=source.times(0.0), level=source.level(site.right))


def by_a_factor(site: Site) -> Iterator[Guess]:
    """What one source contributes times any other factor, by least squares."""
    seen = site.traced.full.to(torch.float64).reshape(site.right.shape)
    for source in sources(site) if site.right.numel() >= LEAST_NUMBERS else ():
        own = site.right - source.without
        factor = (((seen - source.without) * own).sum() / own.square().sum()).item()
        if abs(factor - 1) > 1e-6 and not source.level(site.right):
            yield from made(site, source.times(factor), f"{source.name} contributes is {factor:.6g}")


def slice_of_other(site: Site) -> Iterator[Guess]:
    """Ranks that hold slices of a sum have another rank's slice of what one source contributes.

    Raises:
        UnavailableError: at one rank, or where ranks hold the whole sum or a summand of it.
    """
    if site.tp == 1 or isinstance(site.traced.placement, (Replicate, Partial)):
        raise UnavailableError
    for source in sources(site):
        for step, text in ((None, "0"), (1, "r + 1"), (-1, "r - 1")):
            how = partial(_sliced, source=source, step=step)
            yield from _leveled(site, source, made(site, how, f"{text}'s slice of what {source.name} contributes"))


def _sliced(site: Site, source: Source, step: int | None) -> list[torch.Tensor]:
    right = site.right
    own, whole = site.shards(right - source.times(0.0)(site)), site.shards(right)
    if any(part.shape != own[0].shape for part in own):
        raise UnavailableError
    of = [0 if step is None else (rank + step) % site.tp for rank in range(site.tp)]
    return [part - own[rank] + own[of[rank]] for rank, part in enumerate(whole)]


def added_inside(site: Site) -> Iterator[Guess]:
    """The stream that a submodule is given, added by every rank before the reduction, or not at all."""
    for name, stream in list(_streams(site)):
        for factor, text in ((site.tp, f"{site.tp} times instead of once"), (0, "not at all")):
            if factor != 1:
                guess = partial(_stream_times, name=name, factor=factor)
                yield Guess(site.right + (factor - 1) * stream, f"what {name} is given is added {text}", remake=guess)


def _stream_times(site: Site, name: str, factor: float) -> torch.Tensor:
    return site.right + (factor - 1) * given_inputs(site)[name]


def _streams(site: Site) -> Iterator[tuple[str, torch.Tensor]]:
    """What submodules are given that has the form of what is wrong, is no input of the case, and no source's."""
    known = [x.to(torch.float64) for x in site.inputs if x.shape == site.right.shape]
    known += [site.right - source.without for source in sources(site)]
    for name, x in given_inputs(site).items():
        if x.shape == site.right.shape and not any(same(x, y) for y in known):
            known.append(x)
            yield name, x


def given_inputs(site: Site) -> dict[str, torch.Tensor]:
    """The first input, float64 and of any shape, of each submodule by name in a run of the reference."""
    key = f"inputs {site.rounded}"
    if key not in site.memo:
        found: dict[str, torch.Tensor] = {}
        rerun(site, given=lambda name, x: found.setdefault(name, x.detach().to(torch.float64)))
        site.memo[key] = found
    return dict(site.memo[key])


SUMMANDS = (
    Signature(
        name="bias x tp",
        sentence="{detail} is added by every rank before the reduction, {tp} times instead of once",
        on=("output",),
        guess=_scaled(float, VECTOR),
    ),
    Signature(
        name="bias dropped", sentence="{detail} is not added", on=("output",), guess=_scaled(lambda _tp: 0.0, VECTOR)
    ),
    Signature(
        name="bias / tp",
        sentence="{detail} is divided by {tp} and added once",
        on=("output",),
        guess=_scaled(lambda tp: 1 / tp, VECTOR),
    ),
    Signature(
        name="summand x tp",
        sentence="what {detail} contributes, which every rank has whole, is added {tp} times: before the reduction, by "
        "every rank",
        on=("output",),
        guess=_scaled(float, WHOLE),
    ),
    Signature(
        name="summand / tp",
        sentence="what {detail} contributes, which every rank has whole, is divided by {tp} and added once",
        on=("output",),
        guess=_scaled(lambda tp: 1 / tp, WHOLE),
    ),
    Signature(
        name="times tp",
        sentence="what {detail} contributes is {tp} times what it should be: reduced twice, or whole values summed",
        on=("output",),
        guess=_scaled(float, SUMMED),
    ),
    Signature(
        name="divided by tp",
        sentence="what {detail} contributes is divided by {tp}: a mean where a sum was meant",
        on=("output",),
        guess=_scaled(lambda tp: 1 / tp, SUMMED),
    ),
    Signature(name="summand dropped", sentence="what {detail} contributes is not added", on=("output",), guess=missing),
    Signature(
        name="summand scaled",
        sentence="what {detail} times what it should be",
        on=("output",),
        guess=by_a_factor,
        level=2,
    ),
    Signature(
        name="slice of other rank",
        sentence="rank r has rank {detail} instead of its own",
        on=("output",),
        guess=slice_of_other,
    ),
    Signature(name="residual x tp", sentence="{detail}", on=("output",), guess=added_inside),
)
