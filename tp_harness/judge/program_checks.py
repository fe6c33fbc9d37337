"""Exact checks of the compiled program that the ranks shared, where a backend compiles one."""

from __future__ import annotations

from collections.abc import Sequence

from ..results.result import Check, Collective, Program, ProgramCollective
from .evidence import Evidence

Groups = tuple[tuple[int, ...], ...]  # of ranks, in their order


def finding(evidence: Evidence) -> str | None:
    """Why the ranks did not run their program, one sentence; None where they ran it."""
    return next((run.finding for run in evidence.runs.values() if run.finding), None)


def shared_program(evidence: Evidence) -> Program | None:
    """The program of all ranks; None on a backend that compiles none, or where the ranks' programs differ."""
    return evidence.runs[min(evidence.ranks)].program if evidence.ranks else None


def finding_checks(evidence: Evidence, found: str) -> tuple[Check, ...]:
    """The finding as a check and, where the ranks shared a program that could not run, its collectives as another."""
    program = shared_program(evidence)
    schedule = () if program is None else (_collectives_check(program, evidence),)
    return (Check(name="program", passed=False, detail=found), *schedule)


def program_checks(evidence: Evidence) -> tuple[Check, ...]:
    """Check that one program was compiled once, ran without the host, and has the planned collectives on all ranks."""
    program = shared_program(evidence)
    if program is None:
        return ()
    return (compilation_check(program, evidence.tp), _collectives_check(program, evidence))


def _collectives_check(program: Program, evidence: Evidence) -> Check:
    """Against the planned collectives; without a plan, those recorded; against none where none was recorded."""
    recorded = [run.collectives for run in evidence.runs.values()]
    planned = evidence.case.planned(evidence.tp)
    expected = (recorded[0] or None) if planned is None else planned
    return collectives_check(program, expected, evidence.tp, [_groups(calls) for calls in zip(*recorded, strict=False)])


def _groups(calls: Sequence[Collective]) -> Groups:
    """The groups in which all ranks make a call; () where that is one of all ranks, or is not known."""
    members = {call.exchange.members for call in calls if call.exchange}
    return tuple(sorted(members)) if () not in members else ()


def compilation_check(program: Program, tp: int) -> Check:
    """Check that the program of the `tp` ranks was compiled once, and no operation fell back to the host."""
    what = f"one program on {tp} ranks ({program.fingerprint[:8]})"
    if program.fallbacks:
        detail = f"{', '.join(program.fallbacks)} left the device and ran on the host"
    elif program.compiles > 1:
        detail = f"{what}, compiled {program.compiles} times"
    else:
        how = "compiled once" if program.compiles else "compiled by an earlier run"
        return Check(name="program", passed=True, detail=f"{what}, {how}, nothing of it on the host")
    return Check(name="program", passed=False, detail=detail)


def collectives_check(
    program: Program, expected: tuple[Collective, ...] | None, tp: int, groups: Sequence[Groups] = ()
) -> Check:
    """Check the collectives of the program, with their replica groups, against the expected ones of `tp` ranks.

    `groups` has for each call the groups of ranks that were recorded to make it.
    """
    if expected is None:
        meant = program.collectives
    else:
        known = (*groups, *((),) * (len(expected) - len(groups)))
        meant = tuple(in_program(call, tp, own) for call, own in zip(expected, known, strict=False))
    for position, (call, right) in enumerate(zip(program.collectives, meant, strict=False)):
        if call != right:
            detail = f"collective {position} of the compiled program is {call} instead of {right}"
            return Check(name="program schedule", passed=False, detail=detail)
    if len(program.collectives) != len(meant):
        detail = f"the compiled program has {len(program.collectives)} collectives instead of {len(meant)}"
        return Check(name="program schedule", passed=False, detail=detail)
    total = sum(call.bytes for call in program.collectives)
    sums = sorted({call.dtype for call in program.collectives if call.kind in ("all_reduce", "reduce_scatter")})
    sizes = sorted({len(group) for call in meant for group in call.groups})
    over = f"all over {tp} ranks" if sizes in ([], [tp]) else f"over groups of {', '.join(map(str, sizes))} ranks"
    detail = (
        f"{len(meant)} collectives of {total:,} bytes per rank{'' if expected is None else f', as planned, {over}'}"
    )
    detail += f", sums in {' and '.join(sums)}" if sums else ""
    return Check(name="program schedule", passed=True, detail=detail)


def in_program(call: Collective, tp: int, groups: Groups = ()) -> ProgramCollective:
    """The collective that a call becomes in a program of `tp` ranks; a broadcast is gathered (xla/group.py).

    `groups` are those that make it, () for one of all ranks.
    """
    own = groups if {len(group) for group in groups} == {call.group_size} else ()
    broadcast = call.kind == "broadcast"
    return ProgramCollective(
        kind="all_gather" if broadcast else call.kind,
        groups=(tuple(range(tp)),) if call.group_size == tp else own,
        shape=(1, *call.shape) if broadcast else call.shape,
        dtype=call.dtype,
        bytes=call.bytes,
    )
