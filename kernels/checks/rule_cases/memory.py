"""Cases of the rules about tiles, views, capacity and what a kernel returns."""

from __future__ import annotations

from typing import Any

from tp_harness.kernels.checks.rule_cases.case import case, empty, filled_output, hbm, product, tile
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl
from tp_harness.kernels.nki_interpreter import session

_KIB = 1024


def _copy_rows(first: int, count: int) -> None:
    """Read `count` partitions from partition `first` on."""
    source = tile(128, 4)
    nisa.tensor_copy(dst=empty(count, 4), src=source[first : first + count, :])


def _write_rows(first: int, count: int) -> None:
    target = empty(128, 4)
    nisa.tensor_copy(dst=target[first : first + count, :], src=tile(count, 4))


def _hold(*partition_bytes: int) -> list[Any]:
    """Keep SBUF tiles of these sizes alive together."""
    return [nl.ndarray((128, size // 4), dtype=nl.float32, buffer=nl.sbuf) for size in partition_bytes]


def _hold_banks(*partition_bytes: int) -> list[Any]:
    return [nl.ndarray((1, size // 4), dtype=nl.float32, buffer=nl.psum) for size in partition_bytes]


def _release_then_take() -> None:
    """Two tiles, each of more than half of SBUF, one after the other."""
    for _ in range(2):
        held = _hold(100 * _KIB)
        del held


def _half_written(*, read: slice) -> None:
    target = empty(4, 8)
    nisa.memset(dst=target[:, 0:4], value=1.0)
    nisa.tensor_copy(dst=empty(4, 4), src=target[:, read])


def _output(written: int) -> Any:
    out = nl.ndarray((4, 8), dtype=nl.float32, buffer=nl.shared_hbm)
    nisa.dma_copy(dst=out[:, 0:written], src=tile(4, written))
    return out


def _return_tile() -> None:
    """Return an SBUF tile from a kernel."""
    from tp_harness.kernels.nki_interpreter import simulate  # noqa: PLC0415

    simulate(lambda: tile(1, 1))()


def _outside() -> None:
    """Call an instruction when no kernel runs."""
    running, session._local.session = session.current(), None
    try:
        nisa.reciprocal(dst=None, data=None)  # type: ignore[arg-type]
    finally:
        session._local.session = running


CASES = (
    case("tile-rank", "one dimension", lambda: empty(4, 1), lambda: empty(4)),
    case("tile-shape", "zero", lambda: empty(4, 1), lambda: empty(4, 0)),
    case("tile-shape", "float", lambda: empty(4, 2), lambda: empty(4, 2.0)),  # type: ignore[arg-type]
    case("partition-limit", "129 sbuf", lambda: empty(128, 4), lambda: empty(129, 4)),
    case(
        "partition-limit",
        "129 psum",
        lambda: empty(128, 4, buffer=nl.psum),
        lambda: empty(129, 4, buffer=nl.psum),
    ),
    case("sbuf-capacity", "one tile", lambda: _hold(192 * _KIB), lambda: _hold(192 * _KIB + 4)),
    case("sbuf-capacity", "live tiles", _release_then_take, lambda: _hold(100 * _KIB, 100 * _KIB)),
    case(
        "sbuf-capacity",
        "gen3 has 224 KiB",
        lambda: _hold(224 * _KIB),
        lambda: _hold(224 * _KIB + 4),
        target="gen3",
    ),
    case("psum-capacity", "one tile", lambda: _hold_banks(16 * _KIB), lambda: _hold_banks(16 * _KIB + 4)),
    case("psum-capacity", "whole banks", lambda: _hold_banks(*[4] * 8), lambda: _hold_banks(*[4] * 9)),
    case("start-partition", "65 at 64", lambda: _copy_rows(0, 128), lambda: _copy_rows(63, 65)),
    case("start-partition", "33 at 32", lambda: _copy_rows(64, 33), lambda: _copy_rows(32, 33)),
    case("start-partition", "32 at 16", lambda: _copy_rows(96, 32), lambda: _copy_rows(16, 32)),
    case("start-partition", "1 at 1", lambda: _copy_rows(32, 1), lambda: _copy_rows(1, 1)),
    case("start-partition", "dst", lambda: _write_rows(64, 64), lambda: _write_rows(32, 64)),
    case(
        "start-partition",
        "view of a view",
        lambda: nisa.tensor_copy(dst=empty(32, 4), src=tile(128, 4)[32:128, :][32:64, :]),
        lambda: nisa.tensor_copy(dst=empty(32, 4), src=tile(128, 4)[32:128, :][16:48, :]),
    ),
    case(
        "free-dims",
        "five",
        lambda: nisa.tensor_copy(dst=empty(4, 16), src=tile(4, 2, 2, 2, 2)),
        lambda: nisa.tensor_copy(dst=empty(4, 16), src=tile(4, 2, 2, 2, 2, 1)),
    ),
    case("partition-stride", "step 2", lambda: tile(8, 8)[:, ::2], lambda: tile(8, 8)[::2, :]),
    case("index-bounds", "slice end", lambda: tile(4, 8)[:, 0:8], lambda: tile(4, 8)[:, 0:9]),
    case("index-bounds", "slice empty", lambda: tile(4, 8)[:, 7:8], lambda: tile(4, 8)[:, 8:8]),
    case("index-bounds", "int", lambda: tile(4, 8)[:, -8], lambda: tile(4, 8)[:, 8]),
    case("index-bounds", "hbm row", lambda: hbm(4, 8)[3], lambda: hbm(4, 8)[4]),
    case("index-bounds", "nl.ds", lambda: tile(4, 8)[:, nl.ds(4, 4)], lambda: tile(4, 8)[:, nl.ds(5, 4)]),
    case("index-bounds", "too many", lambda: tile(4, 8)[0:1, ..., 0:1], lambda: tile(4, 8)[0, 0, 0]),
    case("index-bounds", "dim", lambda: tile(4, 8).slice(1, 0, 4), lambda: tile(4, 8).slice(2, 0, 4)),
    case("view-partition", "reshape", lambda: tile(4, 8).reshape((4, 2, 4)), lambda: tile(4, 8).reshape((8, 4))),
    case(
        "view-partition",
        "permute",
        lambda: tile(4, 2, 8).permute((0, 2, 1)),
        lambda: tile(4, 2, 8).permute((1, 0, 2)),
    ),
    case(
        "view-partition",
        "expand_dim",
        lambda: tile(4, 8).expand_dim(1),
        lambda: tile(4, 8).expand_dim(0),
    ),
    case(
        "view-partition",
        "squeeze_dim",
        lambda: tile(1, 1, 8).squeeze_dim(1),
        lambda: tile(1, 1, 8).squeeze_dim(0),
    ),
    case(
        "view-partition",
        "broadcast",
        lambda: tile(1, 1, 8).broadcast(1, 4),
        lambda: tile(1, 1, 8).broadcast(0, 4),
    ),
    case("view-layout", "size", lambda: tile(4, 8).reshape((4, 8, 1)), lambda: tile(4, 8).reshape((4, 7))),
    case(
        "view-layout",
        "copy",
        lambda: tile(4, 8)[:, 0:4].reshape((4, 2, 2)),
        lambda: tile(4, 2, 4)[:, :, 0:2].reshape((4, 4)),
    ),
    case(
        "view-layout",
        "squeeze",
        lambda: tile(4, 1, 8).squeeze_dim(1),
        lambda: tile(4, 2, 8).squeeze_dim(1),
    ),
    case(
        "view-layout",
        "permute",
        lambda: tile(4, 2, 8).permute((0, 1, 2)),
        lambda: tile(4, 2, 8).permute((0, 1, 1)),
    ),
    case(
        "view-broadcast",
        "size 2",
        lambda: tile(4, 1, 8).broadcast(1, 3),
        lambda: tile(4, 2, 8).broadcast(1, 3),
    ),
    case(
        "write-broadcast",
        "dst",
        lambda: nisa.tensor_copy(dst=empty(4, 16), src=tile(4, 1, 8).broadcast(1, 2)),
        lambda: nisa.tensor_copy(dst=empty(4, 1, 8).broadcast(1, 2), src=tile(4, 16)),
    ),
    case(
        "write-broadcast",
        "dma",
        lambda: nisa.dma_copy(dst=empty(2, 8), src=hbm(1, 8).broadcast(0, 2)),
        lambda: nisa.dma_copy(dst=hbm(1, 8).broadcast(0, 2), src=tile(2, 8)),
    ),
    case(
        "read-before-write",
        "part of a tile",
        lambda: _half_written(read=slice(0, 4)),
        lambda: _half_written(read=slice(4, 8)),
    ),
    case("output-buffer", "sbuf", filled_output, _return_tile),
    case("output-unwritten", "half", lambda: _output(8), lambda: _output(4)),
    case("outside-kernel", "no kernel", lambda: product(4, 4), _outside),
)
