"""Cases that every instruction has: each operand, written wrongly in turn.

The legal call of each covered instruction is written down once; the broken ones are made from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from tp_harness.kernels.checks.rule_cases.case import RuleCase, case, empty, hbm, product, tile
from tp_harness.kernels.nki_interpreter import isa as nisa
from tp_harness.kernels.nki_interpreter import language as nl

Make = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """A legal call: destinations and sources as makers of tiles, and the other arguments."""

    name: str
    dst: Make
    sources: dict[str, Make]
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, **changed: Make) -> None:
        """Issue the instruction, with some operands made differently."""
        makers = {"dst": self.dst, **self.sources, **changed}
        getattr(nisa, self.name)(**{key: make() for key, make in makers.items()}, **self.options)


def _tile(*shape: int) -> Make:
    return partial(tile, *shape)


def _empty(*shape: int) -> Make:
    return partial(empty, *shape)


CALLS: tuple[Call, ...] = (
    Call(name="dma_copy", dst=_empty(4, 8), sources={"src": partial(hbm, 4, 8)}),
    Call(name="tensor_copy", dst=_empty(4, 8), sources={"src": _tile(4, 8)}),
    Call(name="memset", dst=_empty(4, 8), sources={}, options={"value": 0.0}),
    Call(
        name="nc_matmul",
        dst=partial(empty, 4, 8, buffer=nl.psum),
        sources={"stationary": _tile(4, 4), "moving": _tile(4, 8)},
        options={"accumulate": False},
    ),
    Call(name="nc_transpose", dst=partial(empty, 8, 4, buffer=nl.psum), sources={"data": _tile(4, 8)}),
    Call(
        name="tensor_tensor",
        dst=_empty(4, 8),
        sources={"data1": _tile(4, 8), "data2": _tile(4, 8)},
        options={"op": nl.add},
    ),
    Call(
        name="tensor_scalar",
        dst=_empty(4, 8),
        sources={"data": _tile(4, 8), "operand0": _tile(4, 1), "operand1": _tile(4, 1)},
        options={"op0": nl.add, "op1": nl.multiply},
    ),
    Call(
        name="scalar_tensor_tensor",
        dst=_empty(4, 8),
        sources={"data": _tile(4, 8), "operand0": _tile(4, 1), "operand1": _tile(4, 8)},
        options={"op0": nl.add, "op1": nl.multiply},
    ),
    Call(
        name="tensor_reduce",
        dst=_empty(4, 1),
        sources={"data": _tile(4, 8)},
        options={"op": nl.add, "axis": 1},
    ),
    Call(
        name="activation",
        dst=_empty(4, 8),
        sources={"data": _tile(4, 8), "bias": _tile(4, 1), "scale": _tile(4, 1)},
        options={"op": nl.exp},
    ),
    Call(name="reciprocal", dst=_empty(4, 8), sources={"data": _tile(4, 8)}),
    Call(name="iota", dst=_empty(4, 8), sources={}, options={"pattern": [[1, 8]]}),
    Call(
        name="affine_select",
        dst=_empty(4, 8),
        sources={"on_true_tile": _tile(4, 8)},
        options={"pattern": [[1, 8]], "channel_multiplier": -1, "on_false_value": 0.0},
    ),
    Call(name="max8", dst=_empty(4, 8), sources={"src": _tile(4, 16)}),
    Call(
        name="nc_find_index8",
        dst=partial(empty, 4, 8, dtype=nl.uint32),
        sources={"data": _tile(4, 16), "vals": _tile(4, 8)},
    ),
)


def _shape(make: Make) -> tuple[int, ...]:
    return make.args if isinstance(make, partial) else ()


def _shifted(shape: tuple[int, ...]) -> Any:
    """Return a tile of `shape` that starts at partition 8."""
    return tile(16, *shape[1:])[8 : 8 + shape[0]]


def _broken(call: Call, operand: str, make: Make) -> list[RuleCase]:
    """Return the ways to spoil one source operand."""
    shape = _shape(make)
    good = call.run
    spoiled: dict[str, Make] = {
        "read-before-write": partial(empty, *shape),
        "partition-match": partial(tile, 5, *shape[1:]),
    }
    if call.name != "dma_copy":
        spoiled["memory-space"] = partial(hbm, *shape)
        spoiled["start-partition"] = partial(_shifted, shape)
    if call.name == "dma_copy":
        spoiled["memory-space"] = partial(product, *shape)
        spoiled["dma-elements"] = spoiled.pop("partition-match")
    if call.name == "nc_matmul":
        spoiled["matmul-contraction"] = spoiled.pop("partition-match")
    if call.name == "nc_transpose":
        spoiled["transpose-shape"] = spoiled.pop("partition-match")
    if operand in ("operand0", "bias", "scale") or (call.name, operand) == ("tensor_scalar", "operand1"):
        spoiled["operand-vector"] = spoiled.pop("partition-match")
    else:
        spoiled["operand-type"] = partial(np.zeros, shape, np.float32)
    return [
        case(rule, f"{call.name} {operand}", good, partial(call.run, **{operand: maker}))
        for rule, maker in spoiled.items()
    ]


def _misplaced(call: Call) -> list[RuleCase]:
    """Return the ways to spoil the destination."""
    shape = _shape(call.dst)
    dtype = call.dst.keywords.get("dtype", nl.float32) if isinstance(call.dst, partial) else nl.float32
    found = []
    if call.name != "dma_copy":
        bad: Make = partial(hbm, *shape, dtype=dtype)
        found.append(case("memory-space", f"{call.name} dst", call.run, partial(call.run, dst=bad)))
    if call.name in ("iota", "affine_select"):
        bad = partial(empty, *shape, buffer=nl.psum)
        found.append(case("memory-space", f"{call.name} dst psum", call.run, partial(call.run, dst=bad)))
    if call.name == "nc_matmul":
        found.append(case("memory-space", "nc_matmul dst sbuf", call.run, partial(call.run, dst=_empty(4, 8))))
        psum = partial(product, 4, 8)
        found.append(case("memory-space", "nc_matmul moving psum", call.run, partial(call.run, moving=psum)))
    bad = partial(np.zeros, shape, np.float32)
    found.append(case("operand-type", f"{call.name} dst", call.run, partial(call.run, dst=bad)))
    return found


CASES: tuple[RuleCase, ...] = tuple(
    item
    for call in CALLS
    for item in (
        *(broken for operand, make in call.sources.items() for broken in _broken(call, operand, make)),
        *_misplaced(call),
    )
)
