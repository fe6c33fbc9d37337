"""Tensors of random bits in every dtype and memory layout, for tests that compare bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "int8", "uint8", "bool")
DTYPES += ("float8_e4m3fn", "float8_e8m0fnu", "complex64")
LAYOUTS = ("contiguous", "transposed", "every_other", "expanded", "offset")
# quiet and signalling NaN with a payload, -NaN, -0.0, -inf, smallest subnormal: as integers of that width
SPECIALS = {
    "float64": (0x7FF8DEADBEEF0001, 0x7FF0000000000001, -0x0007FFFFFFFFFFFF, -(2**63), -0x0010000000000000, 1),
    "float32": (0x7FC12345, 0x7F800001, -0x003FFFFF, -(2**31), -0x00800000, 1),
    "bfloat16": (0x7FC5, 0x7F81, -0x003F, -(2**15), -0x0080, 1),
    "float16": (0x7E05, 0x7C01, -0x01FF, -(2**15), -0x0400, 1),
}
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def random_bits(shape: Sequence[int], dtype: str, seed: int, layout: str = "contiguous") -> torch.Tensor:
    """Every bit random, special values first, in the wanted memory layout."""
    kind, count = getattr(torch, dtype), torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count * kind.itemsize,), dtype=torch.uint8, generator=generator)
    flat = (raw & 1).view(torch.bool) if dtype == "bool" else raw.view(kind)
    if dtype in SPECIALS and count:
        special = torch.tensor(SPECIALS[dtype][:count], dtype=INTEGER[kind.itemsize]).view(kind)
        flat[torch.randperm(count, generator=generator)[: len(special)]] = special
    return lay_out(flat.view(*shape), layout)


def lay_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values, but strided, offset, or repeated (stride 0 along the last dimension)."""
    if layout == "transposed":
        return x.mT.contiguous().mT if x.ndim > 1 else x
    if layout == "every_other":
        other = x if x.is_floating_point() and x.itemsize == 1 else ~x if x.dtype == torch.bool else x + 1
        return torch.stack((x, other), dim=-1)[..., 0]
    if layout == "expanded":
        return x[..., :1].expand(x.shape) if x.shape[-1] else x
    if layout == "offset":
        return torch.cat((x[:1], x))[len(x[:1]) :]
    return x
