"""Right code, many times: does the verdict ever reject it, and how often may it at most?

Each draw has weights and inputs of its own, in one component at one degree, in every dtype. Over the draws come all
components and degrees with the inputs at which checks go wrong: one token, exactly the window, one more, several rows,
tokens on the borders of vocabulary shards (`sampling.tokens`), and experts that no rounding tells apart (init "tied").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Any

from ..config.options import Resolved
from ..judge.judge import judge
from ..ranks.job import Task
from ..results.result import Result, Status
from ..system.process_pool import in_processes
from ..text_table import TextTable
from .bench import RanksFailedError, open_bench

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class CleanRun:
    """One draw in one dtype; `alarm` is empty or what the verdict said against it, `open` why nothing was proved."""

    component: str
    layer: int
    tp: int
    dtype: str
    batch: int
    seq: int
    init: str
    seed: int
    alarm: str
    open: str = ""


def clean_runs(options: Resolved, count: int, progress: Callable[[str], None] = lambda _text: None) -> list[CleanRun]:
    """`count` draws over the options' targets and degrees, each in every dtype of the options."""
    draws = clean_draws(options, count)
    pieces = max(1, min(count // 4, 16))
    runs: list[CleanRun] = []
    for found in in_processes(run_draws, [draws[i::pieces] for i in range(pieces)]):
        runs += found
        progress(f"{len(runs)} of {count * len(options.dtypes)} verdicts, {sum(bool(r.alarm) for r in runs)} alarms")
    return sorted(runs, key=lambda run: (run.seed, run.dtype))


def without_whole_model(options: Resolved) -> Resolved:
    """The options without the whole model where it has real size: all of its weights at once would not fit."""
    if options.model.hidden_size <= 512:
        return options
    return replace(options, targets=tuple(target for target in options.targets if target[0] != "transformer"))


def clean_draws(options: Resolved, count: int) -> list[Resolved]:
    """`count` sets of options, one per draw: all combinations in random order, then with the other initial values."""
    window = options.model.sliding_window
    shapes = ((1, 1), (2, window), (1, window + 1), (3, window // 2 + 3), (options.batch, options.seq))
    combinations = list(product(options.targets, options.degrees, shapes))
    Random(options.seed).shuffle(combinations)
    draws = []
    for i in range(count):
        passes, at = divmod(i, len(combinations))
        target, tp, (batch, seq) = combinations[at]
        init = ("discriminating", "tied")[(passes + at) % 2]
        chosen: dict[str, Any] = {
            "targets": (target,),
            "degrees": (tp,),
            "batch": batch,
            "seq": seq,
            "init": init,
            "draws": 1,
        }
        draws.append(replace(options, seed=options.seed + i, **chosen))
    return draws


def run_draws(draws: Iterable[Resolved]) -> list[CleanRun]:
    """The verdicts on some draws, in this process."""
    return [run for options in draws for run in _run(options)]


def _run(options: Resolved) -> list[CleanRun]:
    ((component, layer),), (tp,) = options.targets, options.degrees
    with open_bench(options) as bench:
        task = Task(component=component, layer=layer, draw=0)
        try:
            ranks = bench.run(bench.job(task, tp))
            found = [judge(bench.evidence(task, tp, d, ranks), bench.blank(task, tp, d)) for d in options.dtypes]
            said = [_said(result) for result in found]
        except RanksFailedError as error:
            said = [(str(error), "")] * len(options.dtypes)
    drawn = {"batch": options.batch, "seq": options.seq, "init": options.init, "seed": options.seed}
    return [
        CleanRun(component=component, layer=layer, tp=tp, dtype=dtype, alarm=alarm, open=why, **drawn)  # type: ignore[arg-type]
        for dtype, (alarm, why) in zip(options.dtypes, said, strict=True)
    ]


def _said(result: Result) -> tuple[str, str]:
    """What a verdict says against right code, and why it proves nothing of it: not both."""
    text = "" if result.status.passed else f"{result.status.value}: {result.reason}"
    return ("", text) if result.status is Status.NOT_PROVED else (text, "")


def upper_bound(alarms: int, count: int, confidence: float = CONFIDENCE) -> float:
    """The largest rate, in alarms per run, at which so few alarms in `count` runs have a chance of 1 - confidence.

    Exact and one-sided (Clopper and Pearson 1934, Biometrika 26, 404-413); for 0 alarms 1 - (1 - confidence)^(1/count).
    """
    if alarms >= count:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        low, high = (rate, high) if _at_most(alarms, count, rate) > 1 - confidence else (low, rate)
    return high


def _at_most(alarms: int, count: int, rate: float) -> float:
    """The chance of no more than so many in `count` trials."""
    return sum(math.comb(count, k) * rate**k * (1 - rate) ** (count - k) for k in range(alarms + 1))


def clean_table(runs: Sequence[CleanRun]) -> TextTable:
    """Draws and alarms by dtype, by degree and by input. A draw with an alarm in any dtype counts once in all.

    Where something was not proved, which is no alarm, a column counts such draws.
    """
    rows = [_row("all", runs)]
    rows += [_row(dtype, [r for r in runs if r.dtype == dtype]) for dtype in dict.fromkeys(r.dtype for r in runs)]
    rows += [_row(f"tp {tp}", [r for r in runs if r.tp == tp]) for tp in sorted({r.tp for r in runs})]
    shapes = sorted({(r.batch, r.seq) for r in runs})
    rows += [_row(f"{b} x {s} tokens", [r for r in runs if (r.batch, r.seq) == (b, s)]) for b, s in shapes]
    rows += [_row(f"init {init}", [r for r in runs if r.init == init]) for init in sorted({r.init for r in runs})]
    headers = ("clean draws", "draws", "false alarms", "95% upper bound", "not proved")
    shown = len(headers) - (not any(run.open for run in runs))
    return TextTable(title="False alarms", headers=headers[:shown], rows=tuple(row[:shown] for row in rows))


def _row(name: str, runs: Sequence[CleanRun]) -> tuple[str, ...]:
    draws, alarms = len({r.seed for r in runs}), len({r.seed for r in runs if r.alarm})
    unproved = len({r.seed for r in runs if r.open})
    return name, str(draws), str(alarms), f"{upper_bound(alarms, draws):.2%}", str(unproved)
