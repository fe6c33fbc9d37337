"""The first checks: every rank, every output, shape, dtype, finiteness, neither empty nor all zero."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..arithmetic.floats import stored
from ..parallel.dtensors import agree
from ..parallel.placements import shape_only
from ..results.result import Status
from .distance import MOST
from .evidence import Evidence
from .gather import output_names, router_names

RANDOM = (
    "the reference draws random numbers (dropout, say) and gives other outputs when it is run again, so that nothing "
    "can be compared with it: draw them from a torch.Generator that the module has, seeded alike everywhere"
)


def presence(evidence: Evidence) -> tuple[Status, str] | None:
    """Check that every rank left every output and router tensor; None if so, else MISSING and why."""
    missing = [rank for rank in range(evidence.tp) if rank not in evidence.ranks]
    if missing:
        return Status.MISSING, f"ranks {missing} of {evidence.tp} left no output"
    for rank, output in evidence.ranks.items():
        count = sum(key.is_output_in(evidence.dtype) for key in output.tensors)
        if count != len(evidence.case.outputs):
            return Status.MISSING, f"rank {rank} gave {count} outputs instead of {len(evidence.case.outputs)}"
        for name in router_names(evidence.case):
            if rank in evidence.without(name):
                return Status.MISSING, f"rank {rank} left no {name}: a submodule of that name must see every token"
    expected = len(evidence.expectation.oracle.outputs)
    if expected != len(evidence.case.outputs):
        return (
            Status.MISSING,
            f"the reference gave {expected} outputs, the case places {len(evidence.case.outputs)}",
        )
    return None


def form(evidence: Evidence) -> tuple[Status, str] | None:
    """Check shapes, dtypes and finiteness of ranks and oracle; None if they hold, else the status and why.

    A wrong shape or dtype is SHAPE. An oracle that is empty, one number, zero or masked everywhere, or drawn at random,
    is VOID. nan and inf are NONFINITE, but for -inf where the oracle is masked.
    """
    if evidence.expectation.random:
        return Status.VOID, RANDOM
    for i, name in enumerate(output_names(evidence.case)):
        oracle = evidence.expectation.oracle.outputs[i]
        expected = evidence.case.outputs[i].split(shape_only(oracle.shape), evidence.tp)
        single = evidence.expectation.baselines[evidence.dtype].outputs[i].dtype
        dtypes = (stored(evidence.dtype), single)
        masked = bool((oracle <= -MOST).any())
        if otherwise := _placed_otherwise(evidence, i, name):
            return Status.SHAPE, otherwise
        bad = _reference_form(name, oracle) or next(
            filter(
                None,
                (
                    _rank_form(name, r, x, expected[r], dtypes, masked=masked)
                    for r, x in enumerate(evidence.shards(name))
                ),
            ),
            None,
        )
        if bad and bad[0] is Status.SHAPE:
            return Status.SHAPE, bad[1] + _fitting(evidence, i, name)
        if bad:
            return bad
    return _router_form(evidence)


def _placed_otherwise(evidence: Evidence, index: int, name: str) -> str:
    """A sentence on a rank whose DTensor has another placement than the case says; "" if none has."""
    said, ndim = evidence.case.outputs[index], evidence.expectation.oracle.outputs[index].ndim
    for rank, run in evidence.runs.items():
        read = run.placed.get(name)
        if read is not None and not agree(said, read.placement, ndim, evidence.tp):
            return (
                f"{name} of rank {rank} is a DTensor placed as {read.placement}, where `output` of its Case says {said}"
            )
    return ""


def _router_form(evidence: Evidence) -> tuple[Status, str] | None:
    """Check that every rank's router gave logits (tokens, experts) and a choice (tokens, k) of the oracle's shapes."""
    for router in evidence.case.routers:
        for name in router.shown:
            for rank, own in enumerate(evidence.shards(name)):
                right = evidence.expectation.oracle.routing[name][evidence.rows(rank, router)].shape
                if own.shape != right:
                    return Status.SHAPE, f"{name} of rank {rank} has {_other_form(own, right, name == router.chosen)}"
    return None


def _other_form(own: torch.Tensor, right: torch.Size, chosen: bool) -> str:
    if own.shape[:-1] != right[:-1]:
        return f"shape {list(own.shape)} instead of {list(right)}"
    if chosen:
        return f"{own.shape[-1]} experts per token instead of {right[-1]}"
    gather = "; a router that is cut over ranks needs its logits gathered" if own.shape[-1] < right[-1] else ""
    return f"{own.shape[-1]} columns, {right[-1]} are needed, one for each expert{gather}"


def _reference_form(name: str, oracle: torch.Tensor) -> tuple[Status, str] | None:
    if not oracle.numel():
        return Status.VOID, f"{name} of the reference is empty: there is nothing to compare"
    if oracle.numel() == 1:
        return Status.VOID, f"{name} of the reference is one number, which proves little: return what it is made of"
    if odd := _nonfinite(oracle, masked=True):
        return Status.NONFINITE, f"{name} of the float64 reference has {odd}"
    if not (oracle > -MOST).any():
        return Status.VOID, f"{name} of the reference is masked everywhere: it proves nothing"
    if not oracle.any():
        return Status.VOID, f"{name} of the reference is zero everywhere: it proves nothing"
    return None


def _rank_form(
    name: str,
    rank: int,
    shard: torch.Tensor,
    expected: torch.Tensor,
    dtypes: tuple[torch.dtype, torch.dtype],
    *,
    masked: bool,
) -> tuple[Status, str] | None:
    """`dtypes`: the run's, and the one that the single-core reference gives in it."""
    if shard.shape != expected.shape:
        return Status.SHAPE, _shape_message(name, rank, shard, expected)
    if shard.dtype not in dtypes:
        return Status.SHAPE, f"{name} of rank {rank} is {shard.dtype}, where {dtypes[0]} was run"
    if odd := _nonfinite(shard, masked=masked):
        return Status.NONFINITE, f"{name} of rank {rank} has {odd}"
    return None


def _shape_message(name: str, rank: int, shard: torch.Tensor, expected: torch.Tensor) -> str:
    """A sentence with both shapes, and the mistake that they look like."""
    actual, right = tuple(shard.shape), tuple(expected.shape)
    message = f"{name} of rank {rank} has shape {list(actual)} instead of {list(right)}"
    likely: list[tuple[Callable[[], bool], str]] = [
        (
            lambda: len(actual) == 2 and len(right) == 3 and actual[0] == right[0] * right[1],
            "flattened tokens",
        ),
        (lambda: len(actual) == len(right) == 3 and actual[:2] == right[1::-1], "batch and sequence swapped"),
        (lambda: len(actual) + 1 == len(right) and actual == right[1:], "a batch dimension was dropped"),
        (lambda: actual[:-1] == right[:-1] and right[-1] % max(1, actual[-1]) == 0, "one shard as the whole"),
    ]
    slip = next((text for test, text in likely if test()), "")
    return f"{message} ({slip})" if slip else message


def _fitting(evidence: Evidence, index: int, name: str) -> str:
    """A clause that names the placement whose shards have the ranks' shapes; "" if there is none."""
    full, shards = evidence.expectation.oracle.outputs[index].shape, evidence.shards(name)
    shapes = {tuple(shard.shape) for shard in shards}
    for dim in range(len(full)):
        cut = tuple(n // evidence.tp if d == dim else n for d, n in enumerate(full))
        if full[dim] % evidence.tp == 0 and shapes == {cut} and cut != tuple(full):
            place = f"output=Shard({dim})" if len(evidence.case.outputs) == 1 else f"Shard({dim}) in `output`"
            return f"; {place} of its Case would fit"
    return ""


def _nonfinite(tensor: torch.Tensor, *, masked: bool) -> str:
    """The first element that is not finite, and its index; "" if all are. -inf counts as finite where `masked`."""
    odd = ~torch.isfinite(tensor) & ~(tensor.isneginf() & masked)
    index = tuple(odd.nonzero()[0].tolist()) if odd.any() else ()
    return f"{tensor[index].item()} at {list(index)}" if odd.any() else ""
