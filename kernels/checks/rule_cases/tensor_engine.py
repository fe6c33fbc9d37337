"""Cases of nc_matmul and nc_transpose."""

from __future__ import annotations

from typing import Any

from tp_harness.kernels.checks.rule_cases.case import case, empty, product, tile
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl
from tp_harness.kernels.nki_interpreter.dtypes import DType


def _matmul(
    k: int = 4,
    m: int = 4,
    n: int = 8,
    *,
    dst: Any = None,
    left: DType = nl.float32,
    right: DType = nl.float32,
    **options: Any,
) -> None:
    """Issue a legal matmul of the given sizes and types, with options."""
    target = empty(m, n, buffer=nl.psum) if dst is None else dst
    options.setdefault("accumulate", False)
    nisa.nc_matmul(dst=target, stationary=tile(k, m, dtype=left), moving=tile(k, n, dtype=right), **options)


def _accumulate(first: bool | None, second: bool | None) -> None:
    """Issue two matmuls on one PSUM tile."""
    target = empty(4, 8, buffer=nl.psum)
    _matmul(dst=target, accumulate=first)
    _matmul(dst=target, accumulate=second)


def _accumulate_after_memset(accumulate: bool | None) -> None:
    _matmul(dst=tile(4, 8, buffer=nl.psum), accumulate=accumulate)


def _accumulate_after_overwrite(accumulate: bool) -> None:
    """Overwrite a matmul's result by another engine, then go on."""
    target = product(4, 8)
    nisa.tensor_copy(dst=target, src=tile(4, 8))
    _matmul(dst=target, accumulate=accumulate)


def _accumulate_wider(accumulate: bool | None) -> None:
    """Write half of a PSUM tile, then all of it."""
    target = empty(4, 8, buffer=nl.psum)
    _matmul(n=4, dst=target[:, 0:4])
    _matmul(n=8, dst=target, accumulate=accumulate)


def _in_bank(first: int) -> None:
    """Write 256 columns of a two-bank PSUM tile, from column `first` on."""
    target = empty(4, 1024, buffer=nl.psum)
    _matmul(n=256, dst=target[:, first : first + 256])


def _transpose(rows: int, columns: int, *, dst: Any = None, data: Any = None, **options: Any) -> None:
    target = empty(columns, rows, buffer=nl.psum) if dst is None else dst
    nisa.nc_transpose(dst=target, data=tile(rows, columns) if data is None else data, **options)


def _transpose_value(value: float) -> None:
    _transpose(4, 8, data=tile(4, 8, value=value))


_INF = float("inf")

CASES = (
    case("matmul-stationary", "129", lambda: _matmul(m=128), lambda: _matmul(m=129, dst=product(128, 8))),
    case("matmul-moving", "513", lambda: _matmul(n=512), lambda: _matmul(n=513)),
    case("matmul-moving", "513 gen3", lambda: _matmul(n=512), lambda: _matmul(n=513), target="gen3"),
    case("matmul-shape", "rows", lambda: _matmul(dst=product(4, 8)), lambda: _matmul(dst=product(8, 8))),
    case("matmul-shape", "columns", lambda: _matmul(dst=product(4, 8)), lambda: _matmul(dst=product(4, 4))),
    case(
        "matmul-dst-dtype",
        "bfloat16",
        lambda: _matmul(left=nl.bfloat16, right=nl.bfloat16),
        lambda: _matmul(dst=empty(4, 8, dtype=nl.bfloat16, buffer=nl.psum)),
    ),
    case(
        "matmul-dtype",
        "int32",
        lambda: _matmul(left=nl.bfloat16, right=nl.float16),
        lambda: _matmul(left=nl.int32, right=nl.bfloat16),
    ),
    case(
        "matmul-fp32-pair",
        "moving bfloat16",
        lambda: _matmul(left=nl.float32, right=nl.float32),
        lambda: _matmul(left=nl.float32, right=nl.bfloat16),
    ),
    case(
        "matmul-fp32-pair",
        "stationary bfloat16",
        lambda: _matmul(left=nl.bfloat16, right=nl.bfloat16),
        lambda: _matmul(left=nl.bfloat16, right=nl.float32),
    ),
    case("matmul-bank", "across", lambda: _in_bank(512), lambda: _in_bank(384)),
    case("matmul-bank", "last column", lambda: _in_bank(256), lambda: _in_bank(257)),
    case(
        "matmul-perf-mode",
        "double_row",
        lambda: _matmul(perf_mode=nisa.matmul_perf_mode.none),
        lambda: _matmul(perf_mode=nisa.matmul_perf_mode.double_row),
    ),
    case(
        "matmul-tiling",
        "32 rows",
        lambda: _matmul(tile_position=(64, 0), tile_size=(64, 128)),
        lambda: _matmul(tile_position=(32, 0), tile_size=(32, 128)),
    ),
    case(
        "matmul-tiling",
        "32 rows on gen3",
        lambda: _matmul(tile_position=(32, 0), tile_size=(32, 128)),
        lambda: _matmul(tile_position=(16, 0), tile_size=(32, 128)),
        target="gen3",
    ),
    case(
        "matmul-tiling",
        "too deep",
        lambda: _matmul(k=64, tile_position=(0, 0), tile_size=(64, 128)),
        lambda: _matmul(k=65, tile_position=(0, 0), tile_size=(64, 128)),
    ),
    case(
        "matmul-tiling",
        "too wide",
        lambda: _matmul(m=64, tile_position=(0, 64), tile_size=(128, 64)),
        lambda: _matmul(m=65, tile_position=(0, 64), tile_size=(128, 64)),
    ),
    case(
        "matmul-tiling",
        "size alone",
        lambda: _matmul(tile_position=(0, 0), tile_size=(64, 128)),
        lambda: _matmul(tile_size=(64, 128)),
    ),
    case(
        "accumulate-unwritten",
        "first True",
        lambda: _accumulate(False, True),
        lambda: _accumulate(True, True),
    ),
    case(
        "accumulate-unwritten",
        "half",
        lambda: _accumulate_wider(False),
        lambda: _accumulate_wider(True),
    ),
    case(
        "accumulate-nonmatmul",
        "memset",
        lambda: _accumulate_after_memset(False),
        lambda: _accumulate_after_memset(True),
    ),
    case(
        "accumulate-nonmatmul",
        "memset, inferred",
        lambda: _accumulate(None, None),
        lambda: _accumulate_after_memset(None),
    ),
    case(
        "accumulate-nonmatmul",
        "copy",
        lambda: _accumulate_after_overwrite(False),
        lambda: _accumulate_after_overwrite(True),
    ),
    case(
        "accumulate-nonmatmul",
        "memset on gen3",
        lambda: _accumulate_after_memset(False),
        lambda: _accumulate_after_memset(True),
        target="gen3",
    ),
    case("accumulate-mixed", "half", lambda: _accumulate_wider(False), lambda: _accumulate_wider(None)),
    case("transpose-size", "rows", lambda: _transpose(128, 128), lambda: _transpose(8, 129, dst=product(8, 8))),
    case(
        "transpose-size",
        "vector",
        lambda: _transpose(32, 32, dst=empty(32, 32)),
        lambda: _transpose(33, 32, dst=empty(32, 33)),
    ),
    case("transpose-shape", "dst", lambda: _transpose(4, 8), lambda: _transpose(4, 8, dst=product(4, 8))),
    case(
        "transpose-dtype",
        "bfloat16",
        lambda: _transpose(
            4,
            8,
            data=tile(4, 8, dtype=nl.bfloat16),
            dst=empty(8, 4, dtype=nl.bfloat16, buffer=nl.psum),
        ),
        lambda: _transpose(4, 8, data=tile(4, 8, dtype=nl.bfloat16)),
    ),
    case(
        "transpose-memory",
        "to sbuf",
        lambda: _transpose(4, 8, engine=nisa.engine.tensor),
        lambda: _transpose(4, 8, dst=empty(8, 4), engine=nisa.engine.tensor),
    ),
    case(
        "transpose-memory",
        "from psum",
        lambda: _transpose(4, 8, data=product(4, 8), engine=nisa.engine.vector),
        lambda: _transpose(4, 8, data=product(4, 8), engine=nisa.engine.tensor),
    ),
    case(
        "engine",
        "nc_transpose scalar",
        lambda: _transpose(4, 8, engine=nisa.engine.vector),
        lambda: _transpose(4, 8, engine=nisa.engine.scalar),
    ),
    case("transpose-finite", "inf", lambda: _transpose_value(3.0e38), lambda: _transpose_value(_INF)),
    case(
        "transpose-finite",
        "nan, gen3 keeps it",
        lambda: _transpose_value(float("nan")),
        lambda: _transpose_value(float("nan")),
        good_target="gen3",
    ),
)
