"""The page of docs/ about faults: what each is, where it is caught or inert, and the scores. Text from trials."""

from __future__ import annotations

from collections.abc import Sequence

from ..faults import FAULTS
from ..results.mutation_score import CAUGHT, Trial, remarks, score_table
from ..text_table import TextTable

_HEAD = """# Faults, and how they fare

Written by `{command}`; do not edit. Every fault is put into the real sharded module, on the tiny model with one draw,
and judged as any run is. "Inert" is proved, not assumed: every tensor of every rank, taps included, and every
collective are those of the clean run, bit for bit, because the faulty code is the right code at that degree. A fault
that loads wrong shards counts as caught only if something other than the reassembly check rejects it. The first tensor
is the one that the verdict names; "number" is the fault's row in the list of mistakes collected from public trackers.
"""


def page(trials: Sequence[Trial], clean: TextTable | None, command: str) -> str:
    """Markdown."""
    noted = remarks(trials)
    parts = [
        _HEAD.format(command=command),
        "## Kill score\n",
        score_table(trials).markdown() + "\n",
        *([f"- {line}" for line in noted] + [""] if noted else []),
        *(["## False alarms\n", clean.markdown() + "\n"] if clean else []),
        "## All faults\n",
        fault_table(trials).markdown() + "\n",
    ]
    return "\n".join(parts)


def fault_table(trials: Sequence[Trial]) -> TextTable:
    """One row per fault: what is wrong, and its outcome in every dtype and at every degree."""
    columns = list(dict.fromkeys((t.dtype, t.tp) for t in trials))
    by = {(t.fault, t.dtype, t.tp): t for t in trials}
    rows = []
    for fault in (fault for fault in FAULTS if any(t.fault == fault.name for t in trials)):
        own = [by[fault.name, dtype, tp] for dtype, tp in columns]
        first = next((t.first for t in own if t.outcome == CAUGHT and t.first), "-")
        cause = next((t.causes[0] for t in own if t.causes), "-")
        number = str(fault.number or "-")
        rows.append((fault.name, number, fault.component, fault.cause, *(t.outcome for t in own), first, cause))
    headers = ("fault", "number", "component", "what is wrong", *(f"{d} tp {tp}" for d, tp in columns))
    headers += ("first tensor", "cause named")
    return TextTable(title="All faults", headers=headers, rows=tuple(rows), left=len(headers))
