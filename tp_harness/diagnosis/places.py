"""Signatures of an own module whose ranks take their shards for those of other places: offsets, ranges, heads, experts.

Ranks that use their shard as if it were another's give together what the reference gives with the shards moved there.
Where several come to lie on one place, what each gives alone is added up, if what shards give does add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from ..parallel.placements import KVHeads, Placement, QKVHeads, Shard
from .own import by_owner, cut_tensors, held, made, own_tensors, rerun, same
from .signature import Guess, Signature, Value
from .site import Site, UnavailableError

Starts = Callable[[int, int, int], int]  # (rank, length of a shard, ranks) -> where it is taken to begin
OFFSETS: dict[str, Starts] = {
    "at 0, as rank 0's does": lambda rank, length, size: 0,
    "where that of the next rank does": lambda rank, length, size: (rank + 1) % size * length,
    "where that of the rank before does": lambda rank, length, size: (rank - 1) % size * length,
    "in the reverse order of ranks": lambda rank, length, size: (size - 1 - rank) * length,
    "one place further on": lambda rank, length, size: rank * length + 1,
    "one place earlier": lambda rank, length, size: rank * length - 1,
    "one place earlier, except on rank 0": lambda rank, length, size: max(0, rank * length - 1),
    "one place further on, except on rank 0": lambda rank, length, size: rank * length + (rank > 0),
    "at the rank's number": lambda rank, length, size: rank,
}


def offset(site: Site) -> Iterator[Guess]:
    """Shards that are taken to begin elsewhere; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    for names in _moved_together(site):
        if not _adds_up(site, names):
            continue
        for text, starts in OFFSETS.items():
            if _moves(site, names, starts):
                how = partial(_moved, names=names, starts=starts)
                yield from made(site, how, f"{_called(names)} as if it began {text}")


def _called(names: Sequence[str]) -> str:
    """Their names, or those of the submodules that have them where they are many."""
    return ", ".join(names if len(names) < 3 else by_owner(dict.fromkeys(names)))


def _moved_together(site: Site) -> list[list[str]]:
    """Each tensor that is cut by itself, all with as many places, and all."""
    cut = {name: p for name, p in cut_tensors(site).items() if isinstance(p, (Shard, KVHeads))}
    lengths = {name: own_tensors(site)[name].shape[p.dim] for name, p in cut.items()}
    alike = [[name for name in cut if lengths[name] == length] for length in dict.fromkeys(lengths.values())]
    found = [*([name] for name in cut), *alike, list(cut)]
    return [names for i, names in enumerate(found) if names and names not in found[:i]]


def _lengths(site: Site, names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The dimension that is cut, and the length of a shard."""
    cut = cut_tensors(site)
    found = {}
    for name in names:
        placement, shape = cut[name], own_tensors(site)[name].shape
        if not isinstance(placement, (Shard, KVHeads)) or shape[placement.dim] % site.tp:
            raise UnavailableError
        found[name] = placement.dim, shape[placement.dim] // site.tp
    return found


def _moves(site: Site, names: Sequence[str], starts: Starts) -> bool:
    lengths = {length for _, length in _lengths(site, names).values()}
    if len(lengths) > 1 and any(starts(1, n, site.tp) % n for n in lengths):
        return False  # a place of one is not one of another
    return any(starts(rank, n, site.tp) != rank * n for n in lengths for rank in range(site.tp))


def _moved(site: Site, names: Sequence[str], starts: Starts) -> torch.Tensor:
    """What all ranks' shards give at their new places: one tensor's added up, of several those that overlap apart."""
    if len(names) == 1:
        return rerun(site, _placed(site, names, starts, range(site.tp)))
    nothing = rerun(site, _placed(site, names, starts, []))
    total = nothing
    for ranks in _apart(site, names, starts):
        total = total + rerun(site, _placed(site, names, starts, ranks)) - nothing
    return total


def _placed(site: Site, names: Sequence[str], starts: Starts, ranks: Sequence[int]) -> dict[str, torch.Tensor]:
    """The tensors with the shards of some ranks at their new places, added where they overlap, and zeros elsewhere."""
    changed = {}
    for name, (dim, length) in _lengths(site, names).items():
        old = own_tensors(site)[name].movedim(dim, 0)
        new = torch.zeros_like(old, dtype=torch.float64 if old.is_floating_point() else old.dtype)
        for rank in ranks:
            start = starts(rank, length, site.tp)
            first, last = max(0, start), min(len(old), start + length)
            own = rank * length - start
            new[first:last] += old[first + own : last + own]
        changed[name] = new.movedim(0, dim)
    return changed


def _apart(site: Site, names: Sequence[str], starts: Starts) -> list[list[int]]:
    """Ranks whose shards do not overlap, as few lists as there may be."""
    length = min(length for _, length in _lengths(site, names).values())
    found: list[list[int]] = []
    for rank in range(site.tp):
        at = starts(rank, length, site.tp)
        free = (ranks for ranks in found if all(abs(at - starts(r, length, site.tp)) >= length for r in ranks))
        if (ranks := next(free, None)) is None:
            found.append([rank])
        else:
            ranks.append(rank)
    return found


def _adds_up(site: Site, names: Sequence[str]) -> bool:
    """Whether what even and odd ranks' shards give adds up to what all give."""
    right: Starts = lambda rank, length, size: rank * length  # noqa: E731
    try:
        nothing = rerun(site, _placed(site, names, right, []))
        halves = [rerun(site, _placed(site, names, right, range(first, site.tp, 2))) for first in (0, 1)]
    except UnavailableError:
        return False
    return same(halves[0] + halves[1] - nothing, site.right)


# ranges of a table in which ranks look up rows: what a rank adds for rows that it does not hold


def ranges(site: Site) -> Iterator[Guess]:
    """Ranges of rows that overlap, or leave some out; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    for name, placement in cut_tensors(site).items():
        if isinstance(placement, Shard) and own_tensors(site)[name].is_floating_point() and _adds_up(site, [name]):
            for text, table in RANGES.items():
                how = partial(_with_table, name=name, table=table)
                yield from made(site, how, text.format(name=name))


def _with_table(site: Site, name: str, table: Callable[[torch.Tensor, int, int], torch.Tensor]) -> torch.Tensor:
    dim, length = _lengths(site, [name])[name]
    rows = own_tensors(site)[name].to(torch.float64).movedim(dim, 0).clone()
    return rerun(site, {name: table(rows, length, site.tp).movedim(0, dim)})


def _one_more_at_end(rows: torch.Tensor, length: int, size: int) -> torch.Tensor:
    before = rows.clone()
    rows[length::length] += before[length - 1 : -1 : length]
    return rows


def _one_more_at_start(rows: torch.Tensor, length: int, size: int) -> torch.Tensor:
    before = rows.clone()
    rows[length - 1 : -1 : length] += before[length::length]
    return rows


def _one_more_at_start_wrapped(rows: torch.Tensor, length: int, size: int) -> torch.Tensor:
    before = rows.clone()
    rows[length - 1 : -1 : length] += before[2 * length - 1 :: length]
    return rows


def _without(first: slice) -> Callable[[torch.Tensor, int, int], torch.Tensor]:
    def table(rows: torch.Tensor, length: int, size: int) -> torch.Tensor:
        rows.unflatten(0, (size, length))[:, first] = 0
        return rows

    return table


def _clamped(rows: torch.Tensor, length: int, size: int) -> torch.Tensor:
    shards = rows.unflatten(0, (size, length))
    index = torch.arange(len(rows))
    return sum((shards[r][(index - r * length).clamp(0, length - 1)] for r in range(size)), torch.zeros_like(rows))


def _first_row(rows: torch.Tensor, length: int, size: int) -> torch.Tensor:
    first = rows[::length]
    return rows + (first.sum(0, keepdim=True) - first).repeat_interleave(length, 0)


RANGES: dict[str, Callable[[torch.Tensor, int, int], torch.Tensor]] = {
    "a rank's range of {name} has one place too many at the end": _one_more_at_end,
    "a rank's range of {name} has one place too many at the start": _one_more_at_start,
    "a rank's range of {name} has one place too many at the start, for which it takes its last": (
        _one_more_at_start_wrapped
    ),
    "a rank's range of {name} lacks its first place": _without(slice(0, 1)),
    "a rank's range of {name} lacks its last place": _without(slice(-1, None)),
    "ranks add their nearest place of {name} for those that they do not hold": _clamped,
    "ranks add their first place of {name} for those that they do not hold": _first_row,
}


# one shard in the place of others


def first_everywhere(site: Site) -> Iterator[Guess]:
    """All ranks use rank 0's shard or, of a whole tensor, rank 0's slice; raises UnavailableError at one rank."""
    if site.tp == 1:
        raise UnavailableError
    for name, placement in cut_tensors(site).items():
        how = partial(_of_rank_0, name=name, placement=placement)
        yield from made(site, how, f"rank 0's shard of {name}")
    for name, tensor in own_tensors(site).items():
        for dim in range(tensor.ndim) if name not in cut_tensors(site) else ():
            if tensor.shape[dim] % site.tp == 0 and tensor.shape[dim] > site.tp > 1:
                how = partial(_of_rank_0, name=name, placement=Shard(dim))
                yield from made(site, how, f"rank 0's slice of {name}")


def _of_rank_0(site: Site, name: str, placement: Placement) -> Value:
    tensor, at = own_tensors(site)[name], held(site, name, placement)
    if isinstance(placement, QKVHeads) or any(part.shape != at[0].shape for part in at):
        raise UnavailableError
    changed = tensor.clone().flatten()
    for part in at:
        changed[part.flatten()] = tensor.flatten()[at[0].flatten()]
    if torch.equal(changed.view(tensor.shape), tensor):
        raise UnavailableError
    return rerun(site, {name: changed.view(tensor.shape)})


PLACES = (
    Signature(name="offset", sentence="ranks use their shard of {detail}", on=("output",), guess=offset),
    Signature(name="range", sentence="{detail}", on=("output",), guess=ranges),
    Signature(name="shard of rank 0", sentence="all ranks use {detail}", on=("output",), guess=first_everywhere),
)
