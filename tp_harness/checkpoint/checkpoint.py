"""Checkpoints: tensor files under a model's public names, mapped rather than read.

A run's weights are always a checkpoint, whether the user's or a generated one, and ranks slice the mapping: 32
ranks share the pages of one file. Nothing in a file is ever run.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch

from ..errors import UsageError
from .checkpoint_files import checkpoint_files
from .tensor_files import AS_BYTES, TAGS, TensorFile, open_tensors
from .tiled_file import HUGE_BYTES, open_tiles, use_huge_pages
from .tiled_file import SUFFIX as TILES_SUFFIX

PAGE_BYTES = 4096
_FILLER = ".filler"  # a tensor that only fills space
FLOATS = ("F64", "F32", "BF16", "F16")  # what a weight may be stored as


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A parameter's full name in the model, its full shape, and the dtype it is stored in.

    `fixed` holds the values of a buffer of a user's module, which no initialisation may change. Random values are drawn
    by the name `drawn_as`: the first one of a parameter that has several.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    fixed: torch.Tensor | None = None
    drawn_as: str = ""

    @property
    def bytes(self) -> int:
        """Its size in bytes, as stored."""
        return math.prod(self.shape) * self.dtype.itemsize

    def tile(self, period: Callable[[tuple[int, ...]], int]) -> int:
        """How many elements a file of tiles stores: `period(shape)`, or all where the values are fixed."""
        return math.prod(self.shape) if self.fixed is not None else period(self.shape)


class Checkpoint:
    """Tensors by name over one or more tensor files; each tensor is a view of its mapped file."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)
        self._where: dict[str, TensorFile] = {}
        for path in self.paths:
            file: TensorFile = open_tiles(path) if path.suffix == TILES_SUFFIX else open_tensors(path)
            twice = sorted(self._where.keys() & set(file.names))
            if twice:
                raise UsageError(f"the checkpoint file {path} holds {twice[0]}, which a file before it holds too.")
            self._where |= dict.fromkeys(file.names, file)

    @property
    def names(self) -> frozenset[str]:
        """All tensor names."""
        return frozenset(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return self._where[name].shape(name)

    def stored_as(self, name: str) -> str:
        """A tensor's dtype in the header's own words: F32, BF16, ..."""
        return self._where[name].stored_as(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The mapped tensor, in its `shape` and stored dtype; it must not be written to."""
        return self._where[name].tensor(name)


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a folder of .safetensors files (without any: of .pt, .pth and .bin files), or in one file.

    Raises:
        UsageError: nothing there, or a file that is missing, unreadable or truncated.
    """
    return Checkpoint(checkpoint_files(path))


def check_checkpoint(
    checkpoint: Checkpoint, needed: Sequence[TensorSpec], known: Mapping[str, tuple[int, ...]] | None
) -> None:
    """Refuse a checkpoint that lacks a needed tensor, or has one unknown, misshapen, of odd dtype, or not finite.

    Args:
        checkpoint: what the user gave.
        needed: what the chosen components load.
        known: name -> shape of every tensor of the whole model; None where only what is needed is known.

    Raises:
        UsageError: the message names the tensor, and both shapes.
    """
    where = ", ".join(str(path) for path in checkpoint.paths)
    for spec in needed:
        if spec.name not in checkpoint.names:
            raise UsageError(f"the checkpoint {where} lacks the tensor {spec.name} of shape {list(spec.shape)}.")
    numbers = {spec.name: str(spec.dtype) for spec in needed if TAGS.get(spec.dtype) not in FLOATS}
    names = checkpoint.names if known is not None else {spec.name for spec in needed}
    known = known if known is not None else {spec.name: spec.shape for spec in needed}
    for name in sorted(names):
        shape = checkpoint.shape(name)
        if name not in known:
            raise UsageError(f"the checkpoint {where} has a tensor {name} {list(shape)} that the model has not.")
        if shape != known[name]:
            raise UsageError(
                f"the checkpoint's tensor {name} has shape {list(shape)}; the model needs {list(known[name])}."
            )
        if name in numbers:
            if str(checkpoint.tensor(name).dtype) != numbers[name]:
                raise UsageError(
                    f"the checkpoint's tensor {name} is stored as {checkpoint.stored_as(name)}; {numbers[name]} is "
                    "needed."
                )
        elif checkpoint.stored_as(name) not in FLOATS:
            raise UsageError(
                f"the checkpoint's tensor {name} is stored as {checkpoint.stored_as(name)}; "
                f"one of {', '.join(FLOATS)} is needed."
            )
    for spec in needed:
        _check_finite(spec.name, checkpoint.tensor(spec.name))


def _check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse a tensor that is not finite; row by row, so that a large one is not copied."""
    if tensor.is_floating_point() and tensor.itemsize == 1:  # torch asks no float8 whether it is finite
        tensor = tensor.to(torch.float32)
    for index, row in enumerate(tensor if tensor.ndim > 1 else tensor[None]):
        if not torch.isfinite(row).all():
            bad = (~torch.isfinite(row)).nonzero()[0].tolist()
            at = [index, *bad] if tensor.ndim > 1 else bad
            value = tensor[tuple(at)].item()
            raise UsageError(f"the checkpoint's tensor {name} holds {value} at {at}; weights must be finite.")


Values = Callable[[TensorSpec], torch.Tensor | Iterator[torch.Tensor]]


def write_checkpoint(
    path: Path,
    specs: Iterable[TensorSpec],
    values: Values,
    metadata: Mapping[str, str] | None = None,
    *,
    page: int = PAGE_BYTES,
) -> None:
    """Write one safetensors file without holding a large tensor in memory.

    Tensors that fill whole memory pages begin at a page; `page` is its size in bytes.

    Args:
        path: the file.
        specs: the tensors.
        values: spec -> a tensor of its first elements in row order, repeated until the shape is full; or an iterator
            of tensors that are its parts in row order.
        metadata: of the file.
        page: bytes.

    A dtype that the format lacks is stored as bytes.
    """
    # whole pages first, then by size of elements, so that each is aligned when mapped
    specs = tuple(sorted(specs, key=lambda s: (s.bytes % page != 0, s.bytes % PAGE_BYTES != 0, -s.dtype.itemsize)))
    as_bytes = {spec.name: str(spec.dtype).removeprefix("torch.") for spec in specs if spec.dtype not in TAGS}
    with path.open("wb") as file:
        file.write(_head(specs, {**(metadata or {}), **({AS_BYTES: json.dumps(as_bytes)} if as_bytes else {})}, page))
        for spec in specs:
            given, left = values(spec), spec.bytes
            parts = repeat(given) if isinstance(given, torch.Tensor) else given
            while left:
                part = next(parts).to(spec.dtype).resolve_conj().flatten().view(torch.uint8).numpy().data
                left -= file.write(part[:left])


def write_tiles(
    path: Path, specs: Iterable[TensorSpec], values: Values, period: Callable[[tuple[int, ...]], int]
) -> None:
    """Write what `write_checkpoint` would, but of each tensor only the first `period(shape)` elements."""
    whole = {spec.name: spec for spec in specs}
    stored = [replace(spec, shape=(spec.tile(period),)) for spec in whole.values()]
    shapes = {name: list(spec.shape) for name, spec in whole.items()}
    repeats = any(spec.bytes < whole[spec.name].bytes for spec in stored)
    page = HUGE_BYTES if repeats else PAGE_BYTES
    write_checkpoint(path, stored, lambda spec: values(whole[spec.name]), {"shapes": json.dumps(shapes)}, page=page)
    if repeats:
        use_huge_pages(path)


def _head(specs: tuple[TensorSpec, ...], metadata: Mapping[str, str], page: int) -> bytes:
    """The bytes before the tensors, in whole pages: the header, and a filler where pages are larger than PAGE_BYTES."""
    filler = 0
    while (len(header := _header(specs, metadata, filler)) + filler) % page:
        filler = -len(header) % page
    return header + bytes(filler)


def _header(specs: tuple[TensorSpec, ...], metadata: Mapping[str, str], filler: int) -> bytes:
    """The safetensors header: its length as 8 bytes little-endian, then JSON with each tensor's place."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    if filler:
        entries[_FILLER] = {"dtype": "U8", "shape": [filler], "data_offsets": [0, filler]}
    end = filler
    for spec in specs:
        start, end = end, end + spec.bytes
        entries[spec.name] = {
            "dtype": TAGS.get(spec.dtype, "U8"),
            "shape": list(spec.shape) if spec.dtype in TAGS else [*spec.shape, spec.dtype.itemsize],
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % PAGE_BYTES)
    return struct.pack("<Q", len(text)) + text
