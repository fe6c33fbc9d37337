"""Cases of the Vector Engine instructions, and of rules they share with others."""

from __future__ import annotations

from typing import Any

from tp_harness.kernels.checks.rule_cases.case import case, empty, product, tile
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl
from tp_harness.kernels.nki_interpreter.dtypes import DType
from tp_harness.kernels.nki_interpreter.memory import MemoryRegion


def _tensor_tensor(*, left: Any = None, right: Any = None, dst: Any = None, op: Any = nl.add, **options: Any) -> None:
    nisa.tensor_tensor(
        dst=empty(4, 8) if dst is None else dst,
        data1=tile(4, 8) if left is None else left,
        data2=tile(4, 8) if right is None else right,
        op=op,
        **options,
    )


def _tensor_scalar(*, dtype: DType = nl.float32, buffer: MemoryRegion = nl.sbuf, **options: Any) -> None:
    options.setdefault("op0", nl.multiply)
    options.setdefault("operand0", 2.0)
    nisa.tensor_scalar(dst=empty(4, 8, dtype=dtype), data=tile(4, 8, dtype=dtype, buffer=buffer), **options)


def _three(*, left: Any = None, right: Any = None, op0: Any = nl.add, op1: Any = nl.add) -> None:
    nisa.scalar_tensor_tensor(
        dst=empty(4, 8),
        data=tile(4, 8) if left is None else left,
        op0=op0,
        operand0=1.0,
        op1=op1,
        operand1=tile(4, 8) if right is None else right,
    )


def _reduce(*free: int, axis: Any, dst: int = 1, op: Any = nl.add, dtype: DType = nl.float32, **more: Any) -> None:
    target = empty(4, dst, dtype=dtype)
    nisa.tensor_reduce(dst=target, op=op, data=tile(4, *free, dtype=dtype), axis=axis, **more)


def _copy(*, src: Any = None, dst: Any = None, **options: Any) -> None:
    source = tile(4, 8) if src is None else src
    nisa.tensor_copy(dst=empty(4, 8) if dst is None else dst, src=source, **options)


def _memset(value: Any, dtype: DType = nl.float32, **options: Any) -> None:
    nisa.memset(dst=empty(4, 8, dtype=dtype), value=value, **options)


def _integers(*shape: int) -> Any:
    return tile(*shape, dtype=nl.int32)


_GPSIMD = nisa.engine.gpsimd
_SCALAR = nisa.engine.scalar
_VECTOR = nisa.engine.vector

CASES = (
    case(
        "two-psum-inputs",
        "tensor_tensor",
        lambda: _tensor_tensor(left=product(4, 8)),
        lambda: _tensor_tensor(left=product(4, 8), right=product(4, 8)),
    ),
    case(
        "two-psum-inputs",
        "scalar_tensor_tensor",
        lambda: _three(right=product(4, 8)),
        lambda: _three(left=product(4, 8), right=product(4, 8)),
    ),
    case(
        "elements-match",
        "tensor_tensor",
        lambda: _tensor_tensor(right=tile(4, 2, 4)),
        lambda: _tensor_tensor(right=tile(4, 1)),
    ),
    case("elements-match", "tensor_copy", lambda: _copy(src=tile(4, 4, 2)), lambda: _copy(src=tile(4, 9))),
    case("elements-match", "dst", lambda: _copy(dst=empty(4, 2, 4)), lambda: _copy(dst=empty(4, 4))),
    case(
        "gpsimd-psum",
        "tensor_tensor",
        lambda: _tensor_tensor(left=product(4, 8), engine=_VECTOR),
        lambda: _tensor_tensor(left=product(4, 8), engine=_GPSIMD),
    ),
    case(
        "gpsimd-psum",
        "tensor_copy",
        lambda: _copy(engine=_GPSIMD),
        lambda: _copy(src=product(4, 8), engine=_GPSIMD),
    ),
    case(
        "gpsimd-psum",
        "memset",
        lambda: nisa.memset(dst=empty(4, 8, buffer=nl.psum), value=0.0, engine=_VECTOR),
        lambda: nisa.memset(dst=empty(4, 8, buffer=nl.psum), value=0.0, engine=_GPSIMD),
    ),
    case(
        "engine",
        "tensor_tensor scalar",
        lambda: _tensor_tensor(engine=_GPSIMD),
        lambda: _tensor_tensor(engine=_SCALAR),
    ),
    case("engine", "memset scalar", lambda: _memset(0.0, engine=_GPSIMD), lambda: _memset(0.0, engine=_SCALAR)),
    case(
        "engine",
        "tensor_scalar gpsimd",
        lambda: _tensor_scalar(engine=_VECTOR),
        lambda: _tensor_scalar(engine=_GPSIMD),
    ),
    case(
        "engine",
        "tensor_scalar scalar maximum",
        lambda: _tensor_scalar(engine=_SCALAR, op1=nl.add, operand1=1.0),
        lambda: _tensor_scalar(engine=_SCALAR, op0=nl.maximum),
    ),
    case(
        "engine",
        "tensor_copy tensor",
        lambda: _copy(engine=_VECTOR),
        lambda: _copy(engine=nisa.engine.tensor),
    ),
    case(
        "scalar-copy",
        "gen3 has it",
        lambda: _copy(engine=_SCALAR),
        lambda: _copy(engine=_SCALAR),
        good_target="gen3",
    ),
    case("op-legal", "activation token", _tensor_tensor, lambda: _tensor_tensor(op=nl.exp)),
    case("op-legal", "a string", _tensor_scalar, lambda: _tensor_scalar(op0="add")),
    case(
        "op-legal",
        "reduce by comparison",
        lambda: _reduce(8, axis=1, op=nl.maximum),
        lambda: _reduce(8, axis=1, op=nl.greater_equal),
    ),
    case("op-legal", "bitvec in three", _three, lambda: _three(op0=nl.bitwise_and)),
    case(
        "bitvec-dtype",
        "tensor_tensor",
        lambda: _tensor_tensor(
            left=_integers(4, 8), right=_integers(4, 8), dst=empty(4, 8, dtype=nl.int32), op=nl.bitwise_and
        ),
        lambda: _tensor_tensor(op=nl.bitwise_and),
    ),
    case(
        "bitvec-dtype",
        "tensor_scalar",
        lambda: _tensor_scalar(dtype=nl.uint8, op0=nl.bitwise_or, operand0=2),
        lambda: _tensor_scalar(op0=nl.bitwise_or, operand0=2),
    ),
    case(
        "bitvec-dtype",
        "tensor_reduce",
        lambda: _reduce(8, axis=1, op=nl.bitwise_or, dtype=nl.int32),
        lambda: _reduce(8, axis=1, op=nl.bitwise_or),
    ),
    case(
        "bitvec-mix",
        "and then add",
        lambda: _tensor_scalar(dtype=nl.int32, op0=nl.bitwise_and, operand0=1, op1=nl.bitwise_or, operand1=2),
        lambda: _tensor_scalar(dtype=nl.int32, op0=nl.bitwise_and, operand0=1, op1=nl.add, operand1=2),
    ),
    case(
        "operand-vector",
        "two columns",
        lambda: _tensor_scalar(operand0=tile(4, 1)),
        lambda: _tensor_scalar(operand0=tile(4, 2)),
    ),
    case(
        "operand-float32",
        "tensor_scalar bfloat16",
        lambda: _tensor_scalar(dtype=nl.bfloat16, operand0=tile(4, 1)),
        lambda: _tensor_scalar(operand0=tile(4, 1, dtype=nl.bfloat16)),
    ),
    case(
        "operand-pair",
        "op1 alone",
        lambda: _tensor_scalar(op1=nl.add, operand1=1.0),
        lambda: _tensor_scalar(op1=nl.add),
    ),
    case("operand-pair", "operand1 alone", _tensor_scalar, lambda: _tensor_scalar(operand1=1.0)),
    case(
        "operand-type",
        "tensor_scalar string",
        lambda: _tensor_scalar(operand0=3),
        lambda: _tensor_scalar(operand0="3"),
    ),
    case("reduce-axis", "partition", lambda: _reduce(8, axis=1), lambda: _reduce(8, axis=0)),
    case(
        "reduce-axis",
        "not last",
        lambda: _reduce(2, 8, axis=2, dst=2),
        lambda: _reduce(2, 8, axis=1, dst=8),
    ),
    case(
        "reduce-axis",
        "gap",
        lambda: _reduce(2, 2, 8, axis=(2, 3), dst=2),
        lambda: _reduce(2, 2, 8, axis=(1, 3), dst=2),
    ),
    case("reduce-shape", "dst", lambda: _reduce(2, 8, axis=(1, 2)), lambda: _reduce(2, 8, axis=2)),
    case(
        "negate-bitvec",
        "or",
        lambda: _reduce(8, axis=1, negate=True),
        lambda: _reduce(8, axis=1, op=nl.bitwise_or, dtype=nl.int32, negate=True),
    ),
    case("memset-value", "float into int", lambda: _memset(1, nl.int32), lambda: _memset(1.0, nl.int32)),
    case("memset-value", "out of range", lambda: _memset(255, nl.uint8), lambda: _memset(256, nl.uint8)),
    case("memset-value", "negative", lambda: _memset(-1, nl.int8), lambda: _memset(-1, nl.uint8)),
    case("memset-value", "string", lambda: _memset(1.5), lambda: _memset("1.5")),
)
