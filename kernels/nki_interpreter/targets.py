"""What the documentation says differs between NeuronCore generations (Trn1 = gen2, Trn2 = gen3)."""

from __future__ import annotations

from dataclasses import dataclass

PARTITIONS = 128
PSUM_BANKS = 8
PSUM_BANK_BYTES = 2 * 1024

# Sections "supported on" of the instruction pages; asking for one of these on gen2 is an error of the kernel.
_NOT_ON_GEN2 = (
    "range_select",
    "exponential",
    "activate2",
    "core_barrier",
    "sendrecv",
    "nonzero_with_count",
    "nc_matmul_mx",
    "quantize_mx",
)


@dataclass(frozen=True, kw_only=True)
class NeuronTarget:
    """Limits and abilities of one NeuronCore generation."""

    name: str
    chip: str
    sbuf_partition_bytes: int
    scalar_engine_copies: bool
    scalar_bias: bool
    reciprocal_takes_bias: bool
    hardware_dge: bool
    matmul_perf_modes: tuple[str, ...]
    matmul_tile_sides: tuple[int, ...]
    transpose_keeps_nonfinite: bool
    rng_engines: tuple[str, ...]
    missing: tuple[str, ...]


GEN2 = NeuronTarget(
    name="gen2",
    chip="trn1",
    sbuf_partition_bytes=192 * 1024,
    scalar_engine_copies=False,
    scalar_bias=False,
    reciprocal_takes_bias=False,
    hardware_dge=False,
    matmul_perf_modes=("none",),
    matmul_tile_sides=(64, 128),
    transpose_keeps_nonfinite=False,
    rng_engines=("vector",),
    missing=_NOT_ON_GEN2,
)
GEN3 = NeuronTarget(
    name="gen3",
    chip="trn2",
    sbuf_partition_bytes=224 * 1024,
    scalar_engine_copies=True,
    scalar_bias=True,
    reciprocal_takes_bias=True,
    hardware_dge=True,
    matmul_perf_modes=("none", "double_row"),
    matmul_tile_sides=(32, 64, 128),
    transpose_keeps_nonfinite=True,
    rng_engines=("vector", "gpsimd"),
    missing=("nc_matmul_mx", "quantize_mx"),
)
TARGETS = {"gen2": GEN2, "trn1": GEN2, "inf2": GEN2, "gen3": GEN3, "trn2": GEN3}


def target_named(name: str) -> NeuronTarget:
    """Return the target called `name` (gen2, trn1, inf2, gen3, trn2); raise ValueError for another."""
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}; choose from {', '.join(TARGETS)}")
    return TARGETS[name]
