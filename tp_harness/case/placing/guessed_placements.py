"""Placements that are guessed from shapes alone: the note about them, and which of them must not be guessed.

A matrix that is cut in half along its outputs may be one matrix, or several fused ones ([gate | up], [query | key |
value]) of each of which a rank needs half. Shapes do not tell them apart, and the wrong one gives other numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from ...errors import UsageError
from ...parallel.placements import Placement, Replicate, Shard

# Names under which public models keep several matrices in one.
_FUSED = re.compile(r"qkv|query_?key_?value|kv_proj|c_attn|in_proj|gate_?(and_?)?up|up_?(and_?)?gate|w1_?w?3|fused")
_OF_ONE_LAYER = re.compile(r"_?(weight|bias|scale)$")
CHOICES = "Shard({0}) for one matrix, StridedShard({0}, 2) for two fused ones, or QKVHeads(...)"


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A parameter cut along `dim`, as `placement` says; `guessed`: from its shapes alone."""

    name: str
    shape: Sequence[int]
    placement: Placement
    guessed: bool

    @property
    def stem(self) -> str:
        """The part of the name that a weight and its bias have in common."""
        return _OF_ONE_LAYER.sub("", self.name)

    @property
    def dim(self) -> int | None:
        """The dimension that is cut, counted from the end (the last is -1); None where not exactly one is."""
        dim = getattr(self.placement, "dim", None)
        return None if dim is None else dim % len(self.shape) - len(self.shape)

    @property
    def cut(self) -> int:
        """The full length, in elements, of the dimension that is cut."""
        return 0 if self.dim is None else self.shape[self.dim]


def by_shapes(full: Sequence[int], local: Sequence[int], size: int) -> Placement | None:
    """The placement that two shapes allow over `size` ranks, if every weight is one matrix; None where none is."""
    if tuple(full) == tuple(local):
        return Replicate()
    if len(full) != len(local):
        return None
    cut = [dim for dim, (f, n) in enumerate(zip(full, local, strict=True)) if f != n]
    return Shard(cut[0]) if len(cut) == 1 and full[cut[0]] == size * local[cut[0]] else None


def said(placed: Iterable[Placed]) -> str:
    """One sentence that names every guess; "" where none was made."""
    guesses = [f"{p.name} {list(p.shape)} as Shard({p.placement.dim})" for p in placed if p.guessed and p.dim]  # type: ignore[attr-defined]
    if not guesses:
        return ""
    return f"placed by their shapes alone: {', '.join(guesses)}; a `plan` of the module class says it otherwise."


def check_guesses(module: nn.Module, placed: Sequence[Placed], size: int) -> None:
    """Refuse a guess where the parameter may be several fused matrices.

    It may if the next layer, cut along its inputs, takes fewer than this one gives: a half, a third, or the queries of
    [query | key | value]; if its name says so; or if its bias, or the weight whose bias it is, is placed as such.

    Raises:
        UsageError: names the parameter and the placements that it may have.
    """
    for p in placed:
        if p.guessed and p.dim in (-1, -2) and (why := _why_fused(module, p, placed, size)):
            names = [q.name for q in placed if q.stem == p.stem and not isinstance(q.placement, Replicate)]
            plan = ", ".join(f"{name!r}: ..." for name in names)
            dim = len(p.shape) + p.dim
            raise UsageError(
                f"{p.name} {list(p.shape)} is cut along dimension {dim} over {size} ranks, as one matrix or as each of "
                f"several fused ones ([gate | up], [query | key | value]): {why}. Give the module class "
                f"`plan = {{{plan}}}` with {CHOICES.format(dim)}."
            )


def _why_fused(module: nn.Module, p: Placed, placed: Sequence[Placed], size: int) -> str:
    """The reason why `p` may be several matrices; "" if there is none."""
    for other in placed:
        if other.stem == p.stem and not isinstance(other.placement, (Shard, Replicate)):
            return f"{other.name} is placed as {other.placement}"
    owner = dict(module.named_modules(remove_duplicate=False)).get(p.name.rpartition(".")[0])
    if len(p.shape) == 1 or isinstance(owner, nn.Embedding):
        return ""
    near = _nearest(p, [q for q in placed if _takes(p, q)])
    if any(q.cut == p.cut for q in near):
        return ""
    for taker in near:
        givers = _nearest(taker, [q for q in placed if _takes(q, taker)])
        if _may_be_parts(p.cut, taker.cut, size) and all(giver.cut != taker.cut for giver in givers):
            return f"{taker.name} takes {taker.cut} inputs, fewer than its {p.cut} outputs"
    leaf = ".".join(p.name.split(".")[-2:]).lower()
    return "its name says several" if _gives(p) and _FUSED.search(leaf) else ""


def _gives(p: Placed) -> bool:
    """Cut along the outputs: of matrices the rows, of a stack of matrices either, as there are both layouts."""
    return p.dim == -2 or (p.dim == -1 and len(p.shape) > 2)


def _takes(giver: Placed, taker: Placed) -> bool:
    """Whether the outputs of one may be the inputs of the other, by the dimensions that are cut."""
    return _gives(giver) and len(taker.shape) == len(giver.shape) and {giver.dim, taker.dim} == {-1, -2}


def _nearest(p: Placed, others: Sequence[Placed]) -> list[Placed]:
    """Parameters that share the innermost submodule with `p`."""
    depths = [_common(p.name, other.name) for other in others]
    return [other for other, depth in zip(others, depths, strict=True) if depth == max(depths)]


def _common(a: str, b: str) -> int:
    pairs = zip(a.split(".")[:-1], b.split(".")[:-1], strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(a.count("."), b.count(".")))


def _may_be_parts(given: int, taken: int, size: int) -> bool:
    """Whether `given` outputs may be `taken` ones twice, or `taken` queries with keys and values for them."""
    rest = (given - taken) // 2
    grouped = given > taken and (given - taken) % 2 == 0 and taken % rest == 0 == rest % size
    return grouped or given == 2 * taken
