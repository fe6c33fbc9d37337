"""Checks without tolerance: the shards that ranks hold, replicas, the collective schedule, one job on all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..case.placed import input_placements
from ..case.tried_placements import local_placement
from ..errors import doing
from ..parallel.placement import built_in
from ..parallel.placements import Placement, ReplicaError, Replicate, same_bits
from ..ranks.rank_files import digest
from ..ranks.rank_report import Held
from ..results.result import Check
from ..results.tensor_names import is_state, without_call
from .evidence import Evidence
from .gather import Joined, join
from .padding_checks import padding_checks
from .schedule_checks import schedule_check


def exact_checks(evidence: Evidence, joined: Mapping[str, Joined]) -> tuple[Check, ...]:
    """All checks without tolerance; `joined` is by name each output of all ranks, any shape and dtype."""
    whole = [router for router in evidence.case.routers if not evidence.shared_out(router)]
    taps = [tap for router in whole for tap in router.shown]
    routers = {name: join(Replicate(), evidence.shards(name)) for name in taps}
    drifts = [(name, output.drift) for name, output in {**routers, **joined}.items() if output.drift]
    replicated = sum(isinstance(placement, Replicate) for placement in evidence.outputs.values()) + len(routers)
    agreed = f"{replicated} replicated tensors equal on {evidence.tp} ranks, bit for bit"
    replicas = "; ".join(f"{name}: {drift}" for name, drift in drifts) or agreed
    hashes = {rank: output.report.config_hash for rank, output in evidence.ranks.items()}
    odd = [rank for rank, value in hashes.items() if value != hashes[0]]
    calls = {rank: run.collectives for rank, run in evidence.runs.items()}
    unawaited = {rank: run.unawaited for rank, run in evidence.runs.items()}
    checks = (
        reassembly_check(evidence),
        Check(name="replicas", passed=not drifts, detail=replicas),
        schedule_check(evidence.case.planned(evidence.tp), calls, evidence.case.unscheduled, unawaited),
        Check(
            name="config",
            passed=not odd,
            detail=f"ranks {odd} read another job" if odd else "one job on all ranks",
        ),
    )
    return (*checks, *kept_checks(evidence, joined), *padding_checks(evidence), *repeat_checks(evidence))


WHOLE = "whole numbers"


def is_measured(output: Joined) -> bool:
    """Whether an output is judged by its distance from the oracle's: real and complex numbers are, others are equal."""
    return output.full.is_floating_point() or output.full.is_complex()


def whole_number_checks(evidence: Evidence, joined: Mapping[str, Joined]) -> tuple[Check, ...]:
    """Where there are integer and boolean outputs, check that each element is the oracle's."""
    whole = {name: output.full for name, output in joined.items() if not is_measured(output)}
    for name, full in whole.items():
        right = evidence.expectation.oracle.outputs[name]
        wrong = (full != right).nonzero()
        if len(wrong):
            index = tuple(wrong[0].tolist())
            differ = f"{len(wrong):,} of {full.numel():,} elements differ, the first at {list(index)}"
            detail = f"{name}: {differ}: {full[index].item()} instead of {right[index].item()}"
            return (Check(name=WHOLE, passed=False, detail=detail),)
    elements = sum(full.numel() for full in whole.values())
    return (Check(name=WHOLE, passed=True, detail=f"{elements:,} integers and booleans are equal"),) if whole else ()


def kept_checks(evidence: Evidence, joined: Mapping[str, Joined]) -> tuple[Check, ...]:
    """Where modules keep a state, check that what no call wrote has the bits that it had before the call."""
    before: dict[str, str] = {}  # by the state's own name, its name after the last call
    count = 0
    for name in joined:
        if not is_state(name):
            continue
        own = without_call(name)
        last = before.get(own)
        before[own] = name
        if last is None or joined[last].full.shape != joined[name].full.shape:
            continue
        kept = _same_elements(evidence.expectation.oracle.outputs[last], evidence.expectation.oracle.outputs[name])
        single = evidence.expectation.baselines[evidence.dtype].outputs
        kept &= _same_elements(single[last], single[name])
        changed = (kept & ~_same_elements(joined[last].full, joined[name].full)).nonzero()
        if len(changed):
            index = tuple(changed[0].tolist())
            values = f"{joined[name].full[index].item()} instead of {joined[last].full[index].item()}"
            detail = (
                f"{name} has {len(changed):,} elements that the reference does not write, the first at {list(index)}"
            )
            return (Check(name="kept", passed=False, detail=f"{detail}: {values}"),)
        count += int(kept.sum())
    return (
        (Check(name="kept", passed=True, detail=f"{count:,} elements that no call wrote kept their bits"),)
        if before
        else ()
    )


def _same_elements(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Where two tensors of one shape and dtype are equal, or both are no number: bool, same shape."""
    return (a == b) | (a.isnan() & b.isnan())


def repeat_checks(evidence: Evidence) -> tuple[Check, ...]:
    """Where forwards were repeated, check that the last one gave the bits of the one that is judged."""
    changed = {rank: run.changed for rank, run in evidence.runs.items()}
    if None in changed.values():
        return ()
    other = [f"{name} of rank {rank}" for rank, outputs in changed.items() for name in outputs or ()]
    kept = "has other bits when it is run again: the module keeps something from call to call, or draws random numbers"
    detail = f"{other[0]} {kept}" if other else "run again, every rank gave the same bits"
    return (Check(name="repeat", passed=not other, detail=detail),)


def reassembly_check(evidence: Evidence) -> Check:
    """Check that ranks hold the shards of the plan, which join to the checkpoint, bit for bit.

    Of a view of the mapped checkpoint its place is compared, of a copy its digest.

    Raises:
        PlacementError: a tensor of the checkpoint that its placement cannot split over the ranks.
    """
    total, padded = 0, []
    parameters = {rank: run.parameters for rank, run in evidence.runs.items()}
    for rank, own in parameters.items():
        if other := ", ".join(sorted(own.keys() ^ parameters[0].keys())):
            return Check(name="reassembly", passed=False, detail=f"of ranks 0 and {rank} only one holds {other}")
    for name, held in parameters[0].items():
        full = evidence.full(name)
        placement = local_placement(evidence.case, name, full.shape, held.shape, evidence.tp)
        if not _joins(placement, full, evidence.tp):
            detail = f"{name}: what {placement} splits does not join to the same tensor"
            return Check(name="reassembly", passed=False, detail=detail)
        for rank, own in parameters.items():
            with doing(f"shard of {placement}, called for {name}"):
                shard = placement.shard(full, rank, evidence.tp)
            if not _holds(own[name], shard):
                detail = f"rank {rank} does not hold its shard of {name} ({placement})"
                return Check(name="reassembly", passed=False, detail=detail)
        total += full.numel() * full.element_size()
        if rows := _padding(placement, full, evidence.tp):
            padded.append(f"{rows:,} rows for {name}")
    padding = f"; padding: {', '.join(padded)}" if padded else ""
    return Check(name="reassembly", passed=True, detail=f"the shards join to {total:,} bytes of checkpoint{padding}")


def _padding(placement: Placement, full: torch.Tensor, tp: int) -> int:
    """How many rows of padding, along the dimension that is cut, all ranks hold of a tensor of any shape."""
    masks = (placement.padding(full.shape, rank, tp) for rank in range(tp))
    return sum(int(mask.sum()) for mask in masks if mask is not None)


def _joins(placement: Placement, full: torch.Tensor, tp: int) -> bool:
    """Whether the placement splits a tensor of this shape without loss: tried on the indices of its elements.

    The placements of this package cut one dimension, so that the indices along it are enough.
    """
    if not full.ndim:
        return True
    if built_in(placement):
        dim = getattr(placement, "dim", 0) % full.ndim
        index = torch.arange(full.shape[dim]).view([-1 if i == dim else 1 for i in range(full.ndim)])
    else:
        index = torch.arange(full.numel()).view(full.shape)
    try:
        with doing(f"join of {placement}, called with the shards of the numbers of {list(full.shape)} elements,"):
            return same_bits(placement.fitted(index.shape).join(placement.split(index, tp)), index)
    except ReplicaError:  # it joins as replicas what it has split
        return False


def anything_sharded(evidence: Evidence) -> bool:
    """Whether rank 0 holds only a part of some parameter or input."""
    held = evidence.runs[0].parameters
    shares = any(held[name].shape != evidence.full_shape(name) for name in held)
    placed = input_placements(evidence.case, evidence.expectation.inputs)
    return shares or any(not isinstance(p, Replicate) for p in placed.values())


def _holds(held: Held, shard: torch.Tensor) -> bool:
    if held.shape != tuple(shard.shape):
        return False
    if held.view is not None:
        return held.view == (shard.storage_offset(), *shard.stride())
    return held.digest == digest(shard.to(getattr(torch, held.dtype)))
