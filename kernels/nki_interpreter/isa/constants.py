"""The enumerations of nki.isa that covered instructions take."""

from __future__ import annotations

from enum import Enum


class engine(Enum):  # noqa: N801 - the documented name
    """Engines of a NeuronCore."""

    unknown = 0
    tensor = 1
    scalar = 2
    gpsimd = 3
    dma = 4
    vector = 5
    sync = 6


class reduce_cmd(Enum):  # noqa: N801 - the documented name
    """What an activation does with Scalar Engine's accumulators."""

    idle = 0
    reset = 1
    reduce = 2
    reset_reduce = 3
    load_reduce = 4


class dge_mode(Enum):  # noqa: N801 - the documented name
    """Who makes the DMA descriptors."""

    unknown = 0
    swdge = 1
    hwdge = 2
    none = 3


class oob_mode(Enum):  # noqa: N801 - the documented name
    """What an indirect access out of bounds does."""

    error = 0
    skip = 1


class matmul_perf_mode(Enum):  # noqa: N801 - the documented name
    """Performance modes of Tensor Engine."""

    none = "none"
    double_row = "double_row"


class nc_version(Enum):  # noqa: N801 - the documented name
    """NeuronCore generations."""

    gen2 = 2
    gen3 = 3
    gen4 = 4
