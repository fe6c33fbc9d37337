"""How several checks judged the same faults and clean runs, as a page; from stored entries, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A fault where it is active, or a clean run (`fault` is ""): the names of the checks that rejected it."""

    fault: str
    component: str
    layer: int
    tp: int
    seed: int
    rejected_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What is stored beside the page: who took part, on what, and every entry."""

    version: str
    model: str
    command: str
    checks: tuple[str, ...]
    faults: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def beaten(self) -> tuple[str, ...]:
        """A line for each entry that only another check sees, or where only this tool's rejects a clean run."""
        ours, faulty, clean = self.checks[-1], *self.faulty_and_clean
        seen = [e for e in faulty if e.rejected_by and ours not in e.rejected_by]
        loud = [e for e in clean if ours in e.rejected_by]
        return (
            *(f"- `{e.fault}` at tp {e.tp} is rejected by {', '.join(e.rejected_by)} and not by {ours}." for e in seen),
            *(f"- {ours} rejects the clean {e.component} layer {e.layer} at tp {e.tp}, seed {e.seed}." for e in loud),
        )

    @property
    def faulty_and_clean(self) -> tuple[list[Entry], list[Entry]]:
        """The entries with a fault, and those without."""
        return [entry for entry in self.entries if entry.fault], [entry for entry in self.entries if not entry.fault]


def page(contest: Contest) -> str:
    """The Markdown of docs/checks.md."""
    degrees = sorted({entry.tp for entry in contest.entries})
    faulty, clean = contest.faulty_and_clean
    seeds = len({entry.seed for entry in clean})
    head = "| check | " + " | ".join(f"kills tp {tp}" for tp in degrees) + " | kills | "
    head += " | ".join(f"clean tp {tp}" for tp in degrees) + " | false alarms |"
    rows = [head, "|" + "---|" * (2 * len(degrees) + 3)]
    for check in contest.checks:
        cells = [_share(check, [e for e in faulty if e.tp == tp]) for tp in degrees]
        cells += [_percent(check, faulty)]
        cells += [_share(check, [e for e in clean if e.tp == tp]) for tp in degrees]
        rows.append(f"| {check} | {' | '.join(cells)} | {_percent(check, clean)} |")
    return _TEXT.format(
        table="\n".join(rows),
        version=contest.version,
        model=contest.model,
        command=contest.command,
        faults=len(contest.faults),
        clean=len(clean),
        seeds=seeds,
        beaten="\n".join(contest.beaten) or _NOWHERE.format(ours=contest.checks[-1]),
    )


def _share(check: str, entries: Sequence[Entry]) -> str:
    return f"{sum(check in entry.rejected_by for entry in entries)} of {len(entries)}"


def _percent(check: str, entries: Sequence[Entry]) -> str:
    return f"{sum(check in entry.rejected_by for entry in entries) / max(1, len(entries)):.0%}"


_NOWHERE = "Nowhere: no fault that another check rejects passes {ours}, and no clean run fails it."
_TEXT = """# The same faults, judged by other checks

Written by `{command}` (tp-harness {version}, model {model}); do not edit.
{faults} faults of the registry, each where it changes any bit, and {clean} clean runs ({seeds} seeds of every
component and layer that has a fault), judged by checks in use today and by this tool. A kill is a fault rejected; a
false alarm is a clean run rejected.

{table}

The other checks see what a test of theirs sees: rank 0's output (joined where ranks hold shards) beside the single-core
model in the same dtype, each side with its own routing. This tool's verdict looks at float32 and bfloat16; its row
with `--dtype exact` is exact arithmetic alone (docs/exact.md), which rejects what is another function. By default
`verify` runs all three.

- **0.5 weights, torch.allclose**: all weights 0.5, float32, torch's default tolerances. Equal shards hide whatever
  permutes them.
- **rtol 0.05, atol 5.0**: bfloat16; absolute 5.0 is larger than most values of the output.
- **1e-5 / 1e-5**: float32, element by element, and the best of these on a small model: it misses what is wrong on
  another rank than 0. It is loud where sums are long: of 460,800 clean elements at a hidden size of 2880 a few
  exceed it (measured elsewhere; this page's model cannot show it).
- **0.05 of the maximum**: bfloat16, every element within 5 % of the largest.
- **R < 1.2, unlocked**: bfloat16, error against float64 over the single-core model's, routing free: a token that
  chooses another expert is no rounding error, and counts as one.
- **cosine >= 0.99**: bfloat16, one number for the whole output.

## Where another check does better

{beaten}
"""
