"""The first checks: every rank, every output, shape, dtype, finiteness, neither empty nor all zero."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..arithmetic.casts import COMPUTED_IN
from ..arithmetic.floats import stored
from ..config.dtypes import EXACT
from ..parallel.dtensors import agree
from ..parallel.placements import shape_only
from ..results.result import Status
from ..results.tensor_names import OUTPUT
from .distance import MOST, as_real
from .evidence import Evidence
from .gather import router_names

RANDOM = (
    "the reference draws random numbers (dropout, say) and gives other outputs when it is run again, so that nothing "
    "can be compared with it: draw them from a torch.Generator that the module has, seeded alike everywhere"
)


def presence(evidence: Evidence) -> tuple[Status, str] | None:
    """Check that every rank left every output and router tensor; None if so, else MISSING and why."""
    missing = [rank for rank in range(evidence.tp) if rank not in evidence.ranks]
    if missing:
        return Status.MISSING, f"ranks {missing} of {evidence.tp} left no output"
    expected = tuple(evidence.expectation.oracle.outputs)
    for rank, run in evidence.runs.items():
        own = tuple(name for name in run.results if rank not in evidence.without(name))
        needed = tuple(name for name in expected if evidence.only_on(name) in (None, rank))
        if own != needed:
            return Status.MISSING, _other_results(rank, own, needed)
        for name in router_names(evidence.case):
            if rank in evidence.without(name):
                return Status.MISSING, f"rank {rank} left no {name}: a submodule of that name must see every token"
    return None


def _other_results(rank: int, own: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """A sentence on what a rank left beside the reference's."""
    lacking, surplus = ([x for x in a if x not in b] for a, b in ((expected, own), (own, expected)))
    if len(own) != len(expected) and all(name.removeprefix(OUTPUT).isdigit() for name in (*own, *expected)):
        return f"rank {rank} gave {len(own)} outputs instead of {len(expected)}"
    if lacking:
        return f"rank {rank} left no {lacking[0]}, which the reference has" + (
            f"; it left {surplus[0]}" if surplus else ""
        )
    if surplus:
        return f"rank {rank} left {surplus[0]}, which the reference has not"
    return f"rank {rank} left its outputs in another order: {', '.join(own)} instead of {', '.join(expected)}"


def form(evidence: Evidence) -> tuple[Status, str] | None:
    """Check shapes, dtypes and finiteness of ranks and oracle; None if they hold, else the status and why.

    A wrong shape or dtype is SHAPE. nan and inf are NONFINITE, but for -inf where the oracle is masked. Where no output
    of the oracle proves anything, or they are drawn at random, the run is VOID.
    """
    if evidence.expectation.random:
        return Status.VOID, RANDOM
    oracles = evidence.expectation.oracle.outputs
    for name, oracle in oracles.items():
        if odd := _nonfinite(oracle, masked=True):
            return Status.NONFINITE, f"{name} of the float64 reference has {odd}"
    idle = {name: why for name, oracle in oracles.items() if (why := idle_because(name, oracle))}
    if evidence.dtype == EXACT:  # the residues of one number prove as much as those of many
        idle = {name: why for name, why in idle.items() if oracles[name].numel() != 1 or not oracles[name].any()}
    if len(idle) == len(oracles):
        return Status.VOID, next(iter(idle.values()))
    return next(filter(None, (_form_of(evidence, name) for name in oracles)), None) or _router_form(evidence)


def _form_of(evidence: Evidence, name: str) -> tuple[Status, str] | None:
    """Check shape, dtype and finiteness of one output on every rank."""
    oracle = evidence.expectation.oracle.outputs[name]
    expected = evidence.outputs[name].split(shape_only(oracle.shape), evidence.tp)
    dtypes, masked = _dtypes(evidence, name), bool((as_real(oracle) <= -MOST).any())
    if otherwise := _placed_otherwise(evidence, name):
        return Status.SHAPE, otherwise
    ranks = enumerate(evidence.shards(name))
    forms = (_rank_form(name, rank, x, expected[rank], dtypes, masked=masked) for rank, x in ranks)
    bad = next(filter(None, forms), None)
    if bad and bad[0] is Status.SHAPE:
        return Status.SHAPE, bad[1] + _fitting(evidence, name)
    return bad


def idle_because(name: str, oracle: torch.Tensor) -> str:
    """A sentence on why an output of the oracle, of any shape and dtype, proves nothing by itself; "" if it does."""
    if not oracle.numel():
        return f"{name} of the reference is empty: there is nothing to compare"
    if oracle.numel() == 1:
        return f"{name} of the reference is one number, which proves little: return what it is made of"
    numbers = as_real(oracle)
    if not (numbers > -MOST).any():
        return f"{name} of the reference is masked everywhere: it proves nothing"
    if not numbers.any():
        return f"{name} of the reference is zero everywhere: it proves nothing"
    if not (oracle.is_floating_point() or oracle.is_complex()) and (oracle == oracle.flatten()[0]).all():
        return f"{name} of the reference is {oracle.flatten()[0].item()} everywhere: it proves nothing"
    return ""


def _dtypes(evidence: Evidence, name: str) -> tuple[torch.dtype, ...]:
    """The dtypes that an output may have: the one that the single-core reference gives, and the run's."""
    single = evidence.expectation.baselines[evidence.dtype].outputs[name].dtype
    return (single, stored(evidence.dtype)) if single.is_floating_point else (single,)


def _placed_otherwise(evidence: Evidence, name: str) -> str:
    """A sentence on a rank whose DTensor has another placement than the case says; "" if none has."""
    said, ndim = evidence.outputs[name], evidence.expectation.oracle.outputs[name].ndim
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


def _rank_form(
    name: str,
    rank: int,
    shard: torch.Tensor,
    expected: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    *,
    masked: bool,
) -> tuple[Status, str] | None:
    """`dtypes` are those that the shard may have."""
    if shard.shape != expected.shape:
        return Status.SHAPE, _shape_message(name, rank, shard, expected)
    if shard.dtype not in dtypes:
        said = "was run" if dtypes[0].is_floating_point else "is what the reference gives"
        return Status.SHAPE, f"{name} of rank {rank} is {shard.dtype}, where {dtypes[-1]} {said}"
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


def _fitting(evidence: Evidence, name: str) -> str:
    """A clause that names the placement whose shards have the ranks' shapes; "" if there is none."""
    full, shards = evidence.expectation.oracle.outputs[name].shape, evidence.shards(name)
    shapes = {tuple(shard.shape) for shard in shards}
    for dim in range(len(full)):
        cut = tuple(n // evidence.tp if d == dim else n for d, n in enumerate(full))
        if full[dim] % evidence.tp == 0 and shapes == {cut} and cut != tuple(full):
            place = f"output=Shard({dim})" if len(evidence.outputs) == 1 else f"Shard({dim}) in `output`"
            return f"; {place} of its Case would fit"
    return ""


def _nonfinite(tensor: torch.Tensor, *, masked: bool) -> str:
    """The first element that is not finite, and its index; "" if all are. -inf counts as finite where `masked`."""
    if tensor.is_floating_point() and tensor.dtype not in COMPUTED_IN:  # float8, of which torch asks nothing
        tensor = tensor.float()
    odd = ~torch.isfinite(tensor)
    if tensor.is_floating_point() and masked:
        odd &= ~tensor.isneginf()
    index = tuple(odd.nonzero()[0].tolist()) if odd.any() else ()
    return f"{tensor[index].item()} at {list(index)}" if odd.any() else ""
