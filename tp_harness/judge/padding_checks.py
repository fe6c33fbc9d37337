"""The check that padding is inert: runs in which it holds other numbers than zeros give the same outputs."""

from __future__ import annotations

from ..parallel.placements import same_bits
from ..results.result import Check
from .evidence import Evidence


def padding_checks(evidence: Evidence) -> tuple[Check, ...]:
    """Where padding was filled with other numbers than zeros, check that no output or state has other bits."""
    what = evidence.runs[0].filled
    for name in what:
        for output in evidence.outputs:
            zeros, numbers = evidence.shards(output), evidence.shards(f"{output}@{name}", "filled")
            for rank, (before, after) in enumerate(zip(zeros, numbers, strict=True)):
                if not same_bits(before, after):
                    return (Check(name="padding", passed=False, detail=_moved(output, rank, name)),)
    told = f"other numbers than zeros in the padding of {', '.join(what)} change no bit of the outputs"
    return (Check(name="padding", passed=True, detail=told),) if what else ()


def _moved(output: str, rank: int, name: str) -> str:
    return (
        f"{output} of rank {rank} changes with other numbers than zeros in the padding of {name}: mask what comes of "
        "it or, if the module relies on the zeros, say Shard(..., inert=False)"
    )
