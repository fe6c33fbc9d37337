"""Which functions nki.isa documents, written down by hand from the reference of NKI 0.6.

`SIGNATURES` holds the parameter names of the covered instructions, in order; a test holds the code against
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from tp_harness.kernels.nki_interpreter import session
from tp_harness.kernels.nki_interpreter.isa.constants import engine
from tp_harness.kernels.nki_interpreter.rules import violate

SIGNATURES: dict[str, tuple[str, ...]] = {
    "dma_copy": ("dst", "src", "priority", "oob_mode", "dge_mode", "engine", "name"),
    "tensor_copy": ("dst", "src", "engine", "name"),
    "memset": ("dst", "value", "engine", "name"),
    "nc_matmul": (
        *("dst", "stationary", "moving", "is_stationary_onezero", "is_moving_onezero", "is_transpose"),
        *("accumulate", "tile_position", "tile_size", "perf_mode", "name"),
    ),
    "nc_transpose": ("dst", "data", "engine", "name"),
    "tensor_tensor": ("dst", "data1", "data2", "op", "engine", "name"),
    "tensor_scalar": (
        *("dst", "data", "op0", "operand0", "reverse0", "op1", "operand1", "reverse1", "engine", "name"),
    ),
    "scalar_tensor_tensor": (*("dst", "data", "op0", "operand0", "op1", "operand1", "reverse0", "reverse1", "name"),),
    "tensor_reduce": ("dst", "op", "data", "axis", "negate", "keepdims", "name"),
    "activation": ("dst", "op", "data", "bias", "scale", "reduce_op", "reduce_res", "reduce_cmd", "name"),
    "reciprocal": ("dst", "data", "name"),
    "iota": ("dst", "pattern", "offset", "channel_multiplier", "name"),
    "affine_select": (
        *(
            "dst",
            "pattern",
            "channel_multiplier",
            "on_true_tile",
            "on_false_value",
            "cmp_op",
            "offset",
            "name",
        ),
    ),
    "max8": ("dst", "src", "name"),
    "nc_find_index8": ("dst", "data", "vals", "name"),
}

NOT_COVERED = (
    *(
        "activate2",
        "activation_reduce",
        "bn_aggr",
        "bn_stats",
        "core_barrier",
        "dma_compute",
        "dma_transpose",
    ),
    *("dropout", "exponential", "get_nc_sub_version", "local_gather", "nc_match_replace8", "nc_matmul_mx"),
    *("nc_n_gather", "nc_stream_shuffle", "nonzero_with_count", "quantize_mx", "rand2", "rand_get_state"),
    *("rand_set_state", "range_select", "register_alloc", "register_load", "register_move", "register_store"),
    *("rng", "select_reduce", "sendrecv", "sequence_bounds", "set_rng_seed", "tensor_copy_predicated"),
    *(
        "tensor_partition_reduce",
        "tensor_scalar_cumulative",
        "tensor_scalar_reduce",
        "tensor_tensor_scan",
        "topk",
    ),
)


def uncovered(name: str) -> Callable[..., NoReturn]:
    """Return a function that says why `name` cannot be called: not on this NeuronCore, or not covered."""

    def call(*args: object, **options: object) -> NoReturn:
        running = session.current()
        if running is not None and name in running.target.missing:
            detail = f"{running.target.name} ({running.target.chip}) does not have it"
            violate("gen2-instruction", instruction=f"nisa.{name}", operand="-", detail=detail)
        asked = options.get("engine")
        if name == "rng" and running is not None and isinstance(asked, engine):  # noqa: SIM102
            if asked.name not in running.target.rng_engines:
                violate(
                    "rng-engine",
                    instruction="nisa.rng",
                    operand="engine",
                    detail=f"{asked.name} was asked for",
                )
        raise NotImplementedError(f"nisa.{name} is documented but not covered by this interpreter")

    return call
