"""Cases of Scalar Engine, GpSimd Engine, the searches, DMA, and instructions that gen2 does not have."""

from __future__ import annotations

from typing import Any

from tp_harness.kernels.checks.rule_cases.case import RuleCase, case, empty, hbm, tile
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl
from tp_harness.kernels.nki_interpreter.dtypes import DType


def _activation(op: Any = nl.copy, *, value: float = 1.0, **options: Any) -> None:
    nisa.activation(dst=empty(4, 8), op=op, data=tile(4, 8, value=value), **options)


def _sum(command: Any, **options: Any) -> None:
    options.setdefault("reduce_op", nl.add)
    options.setdefault("reduce_res", empty(4, 1))
    _activation(reduce_cmd=command, **options)


def _sum_twice(first: Any) -> None:
    """Set the registers by `first`, then add to them."""
    _sum(first, reduce_res=None)
    _sum(nisa.reduce_cmd.reduce)


def _iota(*free: int, pattern: Any, dtype: DType = nl.int32, **options: Any) -> None:
    nisa.iota(dst=empty(4, *free, dtype=dtype), pattern=pattern, **options)


def _select(**options: Any) -> None:
    options.setdefault("pattern", [[1, 8]])
    options.setdefault("channel_multiplier", -1)
    options.setdefault("on_false_value", -1.0e30)
    nisa.affine_select(dst=empty(4, 8), on_true_tile=tile(4, 8), **options)


def _max8(*free: int, dst: tuple[int, ...] = (8,)) -> None:
    nisa.max8(dst=empty(4, *dst), src=tile(4, *free))


def _find(*free: int, dtype: DType = nl.uint32, vals: int = 8) -> None:
    nisa.nc_find_index8(dst=empty(4, 8, dtype=dtype), data=tile(4, *free), vals=tile(4, vals))


def _dma(**options: Any) -> None:
    nisa.dma_copy(dst=empty(4, 8), src=hbm(4, 8), **options)


def _uncovered(name: str, **options: Any) -> None:
    """Call an instruction that is not covered; that it exists on this target is all that is asked."""
    try:
        getattr(nisa, name)(**options)
    except NotImplementedError:
        return


_RESET_REDUCE = nisa.reduce_cmd.reset_reduce
_HWDGE = nisa.dge_mode.hwdge
_TOP = 2**31 - 1


def _edge(op: Any, inside: float, outside: float, what: str) -> RuleCase:
    return case(
        "activation-range",
        what,
        lambda: _activation(op, value=inside),
        lambda: _activation(op, value=outside),
    )


CASES = (
    case(
        "bias-tile",
        "a number",
        lambda: _activation(bias=tile(4, 1)),
        lambda: _activation(bias=1.0),
    ),
    case(
        "bias-tile",
        "gen3 takes a number",
        lambda: _activation(bias=1.0),
        lambda: _activation(bias=1.0),
        good_target="gen3",
    ),
    case(
        "reciprocal-bias",
        "given",
        lambda: _activation(nl.reciprocal),
        lambda: _activation(nl.reciprocal, bias=tile(4, 1)),
    ),
    case(
        "reciprocal-bias",
        "gen3 takes it",
        lambda: _activation(nl.reciprocal, bias=tile(4, 1)),
        lambda: _activation(nl.reciprocal, bias=tile(4, 1)),
        good_target="gen3",
    ),
    _edge(nl.rsqrt, 2.0**-87, 2.0**-88, "rsqrt low"),
    _edge(nl.rsqrt, 2.0**97, 2.0**98, "rsqrt high"),
    _edge(nl.sqrt, 2.0**-116, 0.0, "sqrt zero"),
    _edge(nl.sqrt, 2.0**118, 2.0**119, "sqrt high"),
    _edge(nl.log, 2.0**-64, 2.0**-65, "log low"),
    _edge(nl.log, 2.0**64, 2.0**65, "log high"),
    _edge(nl.sin, 3.14, 3.15, "sin high"),
    _edge(nl.sin, -3.14, -3.15, "sin low"),
    _edge(nl.reciprocal, -(2.0**42), -(2.0**43), "reciprocal negative"),
    _edge(nl.rsqrt, 1.0, -1.0, "rsqrt sign"),
    case(
        "activation-range",
        "after scale",
        lambda: _activation(nl.sin, value=9.0, scale=0.1),
        lambda: _activation(nl.sin, value=1.0, scale=9.0),
    ),
    case(
        "operand-float32",
        "scale bfloat16",
        lambda: _activation(scale=tile(4, 1), bias=tile(4, 1, dtype=nl.bfloat16)),
        lambda: _activation(scale=tile(4, 1, dtype=nl.bfloat16)),
    ),
    case("operand-vector", "bias", lambda: _activation(bias=tile(4, 1)), lambda: _activation(bias=tile(4, 8))),
    case(
        "operand-vector",
        "reduce_res",
        lambda: _sum(_RESET_REDUCE),
        lambda: _sum(_RESET_REDUCE, reduce_res=empty(4, 2)),
    ),
    case("op-legal", "alu token", lambda: _activation(nl.exp), lambda: _activation(nl.add)),
    case(
        "activation-reduce",
        "maximum",
        lambda: _sum(_RESET_REDUCE),
        lambda: _sum(_RESET_REDUCE, reduce_op=nl.maximum),
    ),
    case(
        "activation-reduce",
        "no operator",
        lambda: _activation(reduce_cmd=nisa.reduce_cmd.idle),
        lambda: _activation(reduce_cmd=_RESET_REDUCE, reduce_res=empty(4, 1)),
    ),
    case(
        "reduce-registers",
        "never reset",
        lambda: _sum_twice(nisa.reduce_cmd.reset),
        lambda: _sum_twice(nisa.reduce_cmd.idle),
    ),
    case("affine-pattern", "too few", lambda: _iota(8, pattern=[[1, 8]]), lambda: _iota(8, pattern=[[1, 7]])),
    case(
        "affine-pattern",
        "five pairs",
        lambda: _iota(16, pattern=[[8, 2], [4, 2], [2, 2], [1, 2]]),
        lambda: _iota(16, pattern=[[8, 2], [4, 2], [2, 2], [1, 2], [1, 1]]),
    ),
    case(
        "affine-pattern",
        "three numbers",
        lambda: _select(pattern=[[1, 8]]),
        lambda: _select(pattern=[[1, 8, 1]]),
    ),
    case(
        "affine-int32",
        "overflow",
        lambda: _iota(1, pattern=[[1, 1]], offset=_TOP),
        lambda: _iota(2, pattern=[[1, 2]], offset=_TOP),
    ),
    case(
        "affine-int32",
        "float offset",
        lambda: _select(offset=1),
        lambda: _select(offset=1.0),
    ),
    case(
        "affine-int32",
        "multiplier",
        lambda: _select(channel_multiplier=2),
        lambda: _select(channel_multiplier=0.5),
    ),
    case(
        "select-false-value",
        "a tile",
        lambda: _select(on_false_value=0),
        lambda: _select(on_false_value=tile(4, 1)),
    ),
    case(
        "compare-op",
        "add",
        lambda: _select(cmp_op=nl.greater_equal),
        lambda: _select(cmp_op=nl.add),
    ),
    case("max8-size", "7", lambda: _max8(8), lambda: _max8(7)),
    case("max8-size", "16385", lambda: _max8(16384), lambda: _max8(16385)),
    case("max8-size", "nc_find_index8", lambda: _find(8), lambda: _find(7)),
    case("max8-rank", "four", lambda: _max8(4, 8), lambda: _max8(2, 2, 8)),
    case("max8-output", "nine", lambda: _max8(16), lambda: _max8(16, dst=(9,))),
    case("max8-output", "3D", lambda: _max8(16), lambda: _max8(16, dst=(1, 8))),
    case("index8-values", "nine", lambda: _find(16), lambda: _find(16, vals=9)),
    case("index8-dtype", "int32", lambda: _find(16, dtype=nl.uint16), lambda: _find(16, dtype=nl.int32)),
    case("dma-hwdge", "gen2", lambda: _dma(dge_mode=nisa.dge_mode.swdge), lambda: _dma(dge_mode=_HWDGE)),
    case(
        "dma-hwdge",
        "gen3 has it",
        lambda: _dma(dge_mode=_HWDGE),
        lambda: _dma(dge_mode=_HWDGE),
        good_target="gen3",
    ),
    case(
        "dma-engine",
        "without hwdge",
        lambda: _dma(dge_mode=_HWDGE, engine=nisa.engine.sync),
        lambda: _dma(engine=nisa.engine.sync),
        good_target="gen3",
    ),
    case(
        "dma-engine",
        "vector",
        lambda: _dma(dge_mode=_HWDGE, engine=nisa.engine.scalar),
        lambda: _dma(dge_mode=_HWDGE, engine=nisa.engine.vector),
        target="gen3",
    ),
    case("dma-priority", "given", lambda: _dma(priority=None), lambda: _dma(priority=0)),
    *(
        case(
            "gen2-instruction",
            name,
            lambda name=name: _uncovered(name),  # type: ignore[misc]
            lambda name=name: _uncovered(name),  # type: ignore[misc]
            good_target="gen3",
        )
        for name in (
            "range_select",
            "exponential",
            "activate2",
            "core_barrier",
            "sendrecv",
            "nonzero_with_count",
        )
    ),
    *(
        case("gen2-instruction", name, lambda: _uncovered("bn_stats"), lambda name=name: _uncovered(name))  # type: ignore[misc]
        for name in ("nc_matmul_mx", "quantize_mx")
    ),
    case(
        "rng-engine",
        "gpsimd",
        lambda: _uncovered("rng", engine=nisa.engine.vector),
        lambda: _uncovered("rng", engine=nisa.engine.gpsimd),
    ),
)
