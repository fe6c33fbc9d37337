"""Rules of operations that move elements and compute nothing: each row of the numbers moves alike."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..libraries.torch_private import leaves, named_arguments, tree_map
from .mode import SINGLE, ExactMode, result_dtype
from .operations import aten, looked_up, named, rule
from .residues import numbers

_MOVING = (
    "repeat scatter roll flip constant_pad_nd tril triu slice_scatter select_scatter as_strided_scatter "
    "repeat_interleave masked_scatter slice_backward select_backward index_fill diagonal_scatter rot90 "
    "masked_select index_copy take take_along_dim pixel_shuffle channel_shuffle im2col block_diag "
    "diag_embed reflection_pad1d replication_pad1d _reshape_copy as_strided_copy"
)
# These sum elements.
_ADDING = "index_add scatter_add embedding_dense_backward col2im unfold_backward index_put scatter_reduce index_reduce"


@rule(aten.clone)
def _clone(mode: ExactMode, func: Any, a: torch.Tensor, *, memory_format: Any = None) -> torch.Tensor:
    plain = func(a, memory_format=memory_format)
    if mode.memory.move(a, plain):
        return plain
    if plain.is_contiguous():
        return mode.new(mode.number(a).clone(), a.dtype)
    out = mode.memory.unwritten(plain)  # it keeps the strides that it has
    mode.memory.write(out, mode.number(a))
    return out


@rule(aten.copy)
def _copy(mode: ExactMode, func: Any, into: torch.Tensor, source: torch.Tensor, *_: Any) -> torch.Tensor:
    """What `copy_` writes; the caller rounds it to the dtype that it writes to."""
    numbers_ = mode.number(source)
    aligned = numbers.aligned(numbers_, torch.empty(1, *into.shape))[0]
    return mode.new(
        aligned.expand(aligned.shape[0], *into.shape), source.dtype if source.is_floating_point() else into.dtype
    )


@rule(aten.fill, aten.zero)
def _fill(mode: ExactMode, func: Any, a: torch.Tensor, value: Any = 0.0) -> torch.Tensor:
    filling = mode.number(value)
    return mode.new(filling.view(-1, *[1] * a.dim()).expand(mode.field.rows, *a.shape), a.dtype)


@rule(aten.cat, aten.concat)
def _cat(mode: ExactMode, func: Any, tensors: Any, dim: int = 0) -> torch.Tensor:
    most = max(x.dim() for x in tensors)
    real = [x for x in tensors if x.dim() == most]  # torch leaves out an empty one of one dimension
    return mode.new(torch.cat([mode.number(x) for x in real], dim % most + 1), result_dtype(tensors))


@rule(aten.stack)
def _stack(mode: ExactMode, func: Any, tensors: Any, dim: int = 0) -> torch.Tensor:
    at = dim % (tensors[0].dim() + 1) + 1
    return mode.new(torch.stack([mode.number(x) for x in tensors], at), result_dtype(tensors))


@rule(aten.gather)
def _gather(mode: ExactMode, func: Any, a: torch.Tensor, dim: int, index: torch.Tensor, **_: Any) -> torch.Tensor:
    return mode.new(numbers.gather(mode.number(a), dim, index), a.dtype)


@rule(aten.index_select)
def _index_select(mode: ExactMode, func: Any, a: torch.Tensor, dim: int, index: torch.Tensor) -> torch.Tensor:
    return mode.new(mode.number(a).index_select(dim % a.dim() + 1, index), a.dtype)


@rule(*named("index _unsafe_index"))
def _index(mode: ExactMode, func: Any, a: torch.Tensor, indices: Any) -> torch.Tensor:
    """An index of one dimension takes its place; the dimensions of several may come first."""
    if sum(index is not None for index in indices) > 1:
        return by_row(mode, func, (a, indices), {}, sums=False)
    return mode.new(func(mode.number(a), [None, *indices]), a.dtype)


@rule(aten.embedding)
def _embedding(mode: ExactMode, func: Any, weight: torch.Tensor, index: torch.Tensor, *_: Any) -> torch.Tensor:
    """Only the rows that are looked up are read, each once."""
    rows, place = index.reshape(-1).unique(return_inverse=True)
    parts = [mode.number(weight[int(row)]) for row in rows]
    found = torch.stack(parts, 1) if parts else torch.empty(mode.field.rows, 0, weight.shape[1], dtype=torch.float64)
    return mode.new(found[:, place].view(-1, *index.shape, weight.shape[1]), weight.dtype)


@rule(*named(_MOVING), *named(_ADDING))
def _move(mode: ExactMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    given = named_arguments(func, args, kwargs)
    reduction = given.get("reduce", "sum")
    if reduction not in ("sum", "add") or given.get("scale_grad_by_freq"):
        return mode.lose(func, args, kwargs)
    return by_row(mode, func, args, kwargs, sums=looked_up(func).name in _ADDING.split() or "reduce" in given)


@rule(aten.index_add_)
def _index_add(
    mode: ExactMode, func: Any, x: Any, dim: int, index: torch.Tensor, source: Any, *, alpha: Any = 1
) -> Any:
    """In place: a sum that grows by a few rows at a time is not copied whole."""
    if alpha != 1 or not _written_in_place(x):
        return NotImplemented
    at = dim % x.dim() + 1
    into = mode.memory.writable(x).index_add_(at, index, mode.number(source))
    touched = index.unique()
    into.index_copy_(at, touched, mode.field.reduce_(into.index_select(at, touched)))
    return x


@rule(aten.index_put_)
def _index_put(mode: ExactMode, func: Any, x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """In place, as `index_add_`."""
    if accumulate or not _written_in_place(x):
        return NotImplemented
    source = mode.number(values)
    into = mode.memory.writable(x)
    for row, own in zip(into, source, strict=True):
        func(row, indices, own)
    return x


def _written_in_place(x: torch.Tensor) -> bool:
    """Whether torch writes to a tensor without rounding to fewer digits than float32 has."""
    return x.is_floating_point() and torch.finfo(x.dtype).eps <= SINGLE


def by_row(mode: ExactMode, func: Any, args: Any, kwargs: Any, *, sums: bool) -> Any:
    """An operation that is linear in each floating-point argument, on one row of the numbers after the other."""
    dtype = result_dtype(args, kwargs)
    named_ = {key: torch.float64 if key == "dtype" else x for key, x in kwargs.items()}
    held: dict[int, torch.Tensor] = {}

    def at(row: int, x: Any) -> Any:
        if not isinstance(x, float) and not (isinstance(x, torch.Tensor) and x.is_floating_point()):
            return x
        if id(x) not in held:
            held[id(x)] = mode.number(x)
        return held[id(x)][row] if isinstance(x, torch.Tensor) else float(held[id(x)][row])

    def run(row: int) -> Any:
        given, keywords = tree_map(partial(at, row), (args, named_))
        return func(*given, **keywords)

    rows = [run(row) for row in range(mode.field.rows)]
    if isinstance(rows[0], (tuple, list)):
        return type(rows[0])(mode.new(torch.stack(parts), dtype) for parts in zip(*rows, strict=True))
    out = torch.stack(rows)
    large = any(isinstance(x, int) and abs(x) > min(mode.field.moduli) // 2 for x in leaves((args, kwargs)))
    return mode.new(mode.field.reduce_(out) if sums or large else out, dtype)
