"""A mistake that a failed run shows: the tensor that is wrong, and what is known to give its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from .gate import Gate


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first tensor, in order of execution, that exceeds its limit.

    `kind`: "value" (`gate` says which limit), "replicas" (ranks that must agree differ), "choice" (of experts),
    "nonfinite" or "shape". `after` is the last tensor before it that was right, "" if there is none. `ranks` are those
    whose part is wrong; all of them for a sum over ranks. `index` is the worst element, `token` its (row, position),
    None where not known.
    """

    tensor: str
    kind: str
    after: str
    ranks: tuple[int, ...]
    index: tuple[int, ...]
    token: tuple[int, int] | None = None
    actual: float
    expected: float
    gate: Gate | None = None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A known mistake that reproduces the wrong numbers of the first divergent tensor.

    `explained` is the share of the squared error that vanishes when the tensor is compared with the mistake's result.
    `residual` is the relative error that remains; `limit` is what rounding allows for it. `exact`: in a run in exact
    arithmetic, the mistake's result has the very residues that were seen.
    """

    name: str
    sentence: str
    explained: float
    residual: float
    limit: float
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A tensor that is wrong although what is tapped before it is right, and what is known of it.

    `causes`, `alternatives` and `refuted` are as a Result's of its first divergence. `alike`: tensors after it that are
    wrong by themselves too, and that the same mistake may have made wrong.
    """

    divergence: Divergence
    causes: tuple[Cause, ...] = ()
    alternatives: tuple[Cause, ...] = ()
    refuted: tuple[str, ...] = ()
    alike: tuple[Mistake, ...] = ()
