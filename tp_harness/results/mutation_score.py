"""Which faults were caught: the trials of a run, its kill scores, and both as text. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.dtypes import DTYPES, SIXTEEN_BITS
from ..text_table import TextTable
from .gate import REL_L2, TOKEN, kind_and_tensor
from .proof import RESIDUES

CAUGHT, MISSED, INERT, WRONG = "caught", "missed", "inert", "wrong"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The outcome of one fault at one degree in one dtype.

    Args:
        fault: its name.
        outcome: "caught"; "missed"; "inert", which is proved: every tensor and collective of every rank is that of the
            clean run, bit for bit; or "wrong": the fault does not do what it declares, and `reason` says what.
        must: whether the fault is declared to be visible in this dtype.
        status, reason: the verdict's.
        checks, kinds: the names of all checks and gates that rejected it, and their kinds.
        first, expected: the first divergent tensor that was named, and the declared one.
        causes, signature: what the diagnosis named, best first, and what it should have.
    """

    fault: str
    tp: int
    dtype: str
    outcome: str
    must: bool = True
    status: str = ""
    reason: str = ""
    checks: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    first: str = ""
    expected: str = ""
    causes: tuple[str, ...] = ()
    signature: str = ""

    @property
    def bad(self) -> bool:
        """Whether this outcome shows a mistake in the harness or in the fault."""
        return self.outcome == WRONG or (self.outcome == MISSED and self.must) or self.misplaced

    @property
    def misplaced(self) -> bool:
        """Whether another tensor than the declared one was named as the first to go wrong; in 16 bits one may be."""
        return self.outcome == CAUGHT and self.dtype not in SIXTEEN_BITS and self.first != self.expected

    @property
    def only_by(self) -> str:
        """The check that caught it, if only one did; else ""."""
        kinds = {REL_L2 if kind == TOKEN else kind for kind in self.kinds}
        return kinds.pop() if len(kinds) == 1 else ""

    @staticmethod
    def from_older(values: dict[str, Any]) -> dict[str, Any]:
        """A Trial's JSON values of an older file, which has the names of checks alone; their kinds are added."""
        checks = values.get("checks")
        names = [name for name in checks if isinstance(name, str)] if isinstance(checks, list) else []
        return {"kinds": list(dict.fromkeys(kind_and_tensor(name)["kind"] for name in names))} | values


@dataclass(frozen=True, kw_only=True)
class Score:
    """How many of the active faults were caught, at one degree in one dtype; numbers are counts of faults."""

    tp: int
    dtype: str
    caught: int
    active: int
    missed: tuple[str, ...]
    inert: tuple[str, ...]
    wrong: tuple[str, ...]
    first_right: int
    named_right: int
    signed: int
    misnamed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.caught} of {self.active}"


def scores(trials: Sequence[Trial]) -> list[Score]:
    """One score per dtype and degree, in the order of DTYPES, degrees ascending."""
    return [
        _score(tp, dtype, [t for t in trials if (t.tp, t.dtype) == (tp, dtype)])
        for dtype, tp in dict.fromkeys(
            (t.dtype, t.tp) for t in sorted(trials, key=lambda t: (DTYPES.index(t.dtype), t.tp))
        )
    ]


def _score(tp: int, dtype: str, trials: Iterable[Trial]) -> Score:
    by: dict[str, list[Trial]] = {CAUGHT: [], MISSED: [], INERT: [], WRONG: []}
    for trial in trials:
        by[trial.outcome].append(trial)
    signed = [trial for trial in by[CAUGHT] if trial.signature]
    return Score(
        tp=tp,
        dtype=dtype,
        caught=len(by[CAUGHT]),
        active=len(by[CAUGHT]) + len(by[MISSED]),
        missed=tuple(trial.fault for trial in by[MISSED]),
        inert=tuple(trial.fault for trial in by[INERT]),
        wrong=tuple(trial.fault for trial in by[WRONG]),
        first_right=sum(trial.first == trial.expected for trial in by[CAUGHT]),
        named_right=sum(trial.signature in trial.causes[:1] for trial in signed),
        signed=len(signed),
        misnamed=tuple(trial.fault for trial in by[CAUGHT] if trial.causes and trial.signature not in trial.causes),
    )


def score_table(trials: Sequence[Trial]) -> TextTable:
    """The kill scores as a table, one row per dtype and degree."""
    rows = tuple(
        (
            score.dtype,
            str(score.tp),
            str(score),
            f"{score.first_right} of {score.caught}",
            f"{score.named_right} of {score.signed}",
            ", ".join(score.misnamed) or "none",
            ", ".join(score.missed) or "none",
            ", ".join(score.inert) or "none",
        )
        for score in scores(trials)
    )
    headers = (
        "dtype",
        "tp",
        "caught of active",
        "first tensor right",
        "cause right",
        "wrongly named",
        "missed",
        "inert (proved)",
    )
    return TextTable(title="Kill score", headers=headers, rows=rows, left=len(headers))


def trial_table(trials: Sequence[Trial]) -> TextTable:
    """One row per fault: its outcome in every dtype and degree, and the first tensor and cause named."""
    columns = list(dict.fromkeys((t.dtype, t.tp) for t in trials))
    by = {(t.fault, t.dtype, t.tp): t for t in trials}
    rows = []
    for fault in dict.fromkeys(t.fault for t in trials):
        own = [by[fault, dtype, tp] for dtype, tp in columns if (fault, dtype, tp) in by]
        first = _joined(t.first for t in own if t.outcome == CAUGHT)
        causes = _joined(cause for t in own for cause in t.causes[:1])
        rows.append((fault, *(t.outcome for t in own), first, causes))
    short = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    headers = ("fault", *(f"{short.get(d, d)} tp {tp}" for d, tp in columns), "first tensor", "cause named")
    return TextTable(title="Faults", headers=headers, rows=tuple(rows), left=len(headers))


def _joined(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(name for name in names if name)) or "-"


def remarks(trials: Sequence[Trial]) -> list[str]:
    """One sentence for each bad trial; then, for each check, the faults that it alone caught."""
    lines = [
        f"{t.fault} at tp {t.tp} in {t.dtype}: {t.first or 'no tensor'} was named as the first wrong one, where "
        f"{t.expected} is declared"
        if t.misplaced
        else f"{t.fault} at tp {t.tp} in {t.dtype} was {t.outcome}: {t.reason or 'nothing rejected it'}"
        for t in trials
        if t.bad
    ]
    alone: dict[str, list[str]] = {}
    for trial in trials:
        if trial.dtype not in SIXTEEN_BITS and trial.only_by not in ("", REL_L2, RESIDUES, "shape"):
            alone.setdefault(trial.only_by, []).append(trial.fault)
    lines += [f"Seen by {check} alone: {_joined(names)}." for check, names in alone.items()]
    return lines
