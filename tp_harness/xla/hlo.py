"""Reading the collectives out of a program's HLO text. No torch.

Covers what torch-xla writes for one program shared by all ranks: all-reduce, all-gather, reduce-scatter,
collective-permute and all-to-all with explicit replica groups, before XLA's own passes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..results.result import ProgramCollective

KINDS = {
    "all-reduce": "all_reduce",
    "all-gather": "all_gather",
    "reduce-scatter": "reduce_scatter",
    "all-to-all": "all_to_all",
    "collective-permute": "collective_permute",
    "collective-broadcast": "broadcast",
}
DTYPES = {
    "f64": ("float64", 8),
    "f32": ("float32", 4),
    "bf16": ("bfloat16", 2),
    "f16": ("float16", 2),
    "s64": ("int64", 8),
    "s32": ("int32", 4),
    "s16": ("int16", 2),
    "s8": ("int8", 1),
    "u8": ("uint8", 1),
    "pred": ("bool", 1),
}
_CALL = re.compile(rf" = .*? (?P<op>{'|'.join(KINDS)})\((?P<operands>.*?)\)(?P<rest>, .*)?$")
_OPERAND = re.compile(r"(?P<dtype>[a-z]+[0-9]*)\[(?P<shape>[0-9,]*)\]")
_GROUPS = re.compile(r"replica_groups=\{(?P<groups>[{}0-9,]*)\}")


def collectives(hlo: str, size: int) -> tuple[ProgramCollective, ...]:
    """The collectives of a program for `size` ranks, in the order of the text.

    Shape (elements) and bytes are those of the first operand, one rank's input. The second is a scalar token, which
    torch-xla passes from one collective to the next; it is not counted.
    """
    return tuple(_collective(match, size) for match in _calls(hlo))


def _calls(hlo: str) -> Iterator[re.Match[str]]:
    for line in hlo.splitlines():
        match = _CALL.search(line)
        if match:
            yield match


def _collective(match: re.Match[str], size: int) -> ProgramCollective:
    operand = _OPERAND.search(match["operands"])
    assert operand, f"a collective without operand: {match[0]}"
    dtype, width = DTYPES.get(operand["dtype"], (operand["dtype"], 0))
    shape = tuple(int(n) for n in operand["shape"].split(",") if n)
    written = _GROUPS.search(match["rest"] or "")
    groups = (
        tuple(
            tuple(int(rank) for rank in group.split(",")) for group in re.findall(r"\{([0-9,]+)\}", written["groups"])
        )
        if written
        else ()
    )
    return ProgramCollective(
        kind=KINDS[match["op"]],
        groups=groups or (tuple(range(size)),),  # none written: all ranks
        shape=shape,
        dtype=dtype,
        bytes=math.prod(shape) * width,
    )


def cannot_run(calls: tuple[ProgramCollective, ...], size: int) -> str | None:
    """Why XLA on CPU cannot run a program with these collectives on `size` ranks; None where it can."""
    for position, call in enumerate(calls):
        named = f"collective {position} of the program, {call}"
        members = sorted(rank for group in call.groups for rank in group)
        if members != list(range(size)) or len({len(group) for group in call.groups}) != 1:
            return f"{named}, does not share {size} ranks out into groups of one size: some would wait for ever"
        if call.kind in ("all_reduce", "reduce_scatter") and call.dtype in ("bfloat16", "float16"):
            return (
                f"{named}, sums in {call.dtype}: every rank's summand is rounded, and XLA on CPU refuses it; "
                "reduce in float32"
            )
    return None
