"""Every constant of the model, with its unit and source; no other module holds a number of the hardware."""

from __future__ import annotations

from dataclasses import dataclass

SDK = "aws-neuron-sdk 81ce03ae"  # the public repository at its commit of 2026-08-21


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number, its unit, and where it is from."""

    value: float
    unit: str
    source: str


_ARCH = f"{SDK}, nki/guides/architecture/trainium_inferentia2_arch.rst"
_DECODE = "fitted to TPOT of the published rows (calibrate.fit_decode)"
_PREFILL = "fitted to TTFT of the published rows (calibrate.fit_prefill)"

CORES = Constant(
    value=32,
    unit="NeuronCores of a trn1.32xlarge",
    source=f"{SDK}, about-neuron/arch/neuron-hardware/trn1-arch.rst",
)
CORE_BYTES = Constant(
    value=16 * 2**30,
    unit="bytes of HBM per core",
    source=f"{_ARCH}: 32 GiB per chip of two cores",
)
CORE_FLOPS = Constant(
    value=92e12,
    unit="bf16 operations/s per core",
    source=f"{_ARCH}: TensorE",
)
CORE_HBM = Constant(
    value=410e9,
    unit="bytes/s per core",
    source=f"{_ARCH}: 820 GB/s per chip of two cores",
)
LINK = Constant(
    value=2**30 / 18930e-6,
    unit="bytes/s in and out of one rank",
    source=f"{SDK}, tools/neuron-sys-tools/nccom-test.rst: 1 GiB all-reduce over 2 ranks in 18930 us",
)
LATENCY_2 = Constant(
    value=58e-6,
    unit="s",
    source=f"{SDK}, nccom-test.rst: all-reduce over 2 ranks, 1 KiB to 64 KiB; includes the launch of the program",
)
LATENCY_32 = Constant(
    value=150e-6,
    unit="s",
    source=f"{SDK}, nccom-test.rst: all-gather over 32 ranks, 1 KiB to 64 KiB; includes the launch of the program",
)
HBM_WEIGHTS = Constant(value=368.6e9, unit="bytes/s per core, weights", source=_DECODE)
HBM_CACHE = Constant(value=157.3e9, unit="bytes/s per core, keys and values of earlier tokens", source=_DECODE)
BOUNDARY = Constant(
    value=75.8e-6,
    unit="s per reduction at tp 32, everything that does not shrink with bytes",
    source=_DECODE,
)
COMPUTE_EFFICIENCY = Constant(value=0.570, unit="of the peak", source=_PREFILL)
SCORE = Constant(
    value=2.50e-10,
    unit="s per attention score and core (softmax without a fused kernel)",
    source=_PREFILL,
)
PRICE = Constant(
    value=21.50,
    unit="USD per hour of a trn1.32xlarge, on demand, us-east-1",
    source=f"usage.ai, read 2026-06-25; reserved it is 8.197 ({SDK}, benchmarks/trn1/trn1_instance_prices.csv)",
)

ALL: dict[str, Constant] = {name: value for name, value in list(globals().items()) if isinstance(value, Constant)}
