"""All mistakes of one target, found on a bench as `verify` finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tp_harness.diagnosis.explain import explain
from tp_harness.judge.judge import judge
from tp_harness.mutation.bench import Bench
from tp_harness.ranks.job import Task
from tp_harness.results.result import Result
from tp_harness.verification.grafts import Grafting, kept, tensors_of


def all_mistakes(bench: Bench, task: Task, tp: int, starts: list[str] | None = None) -> Result:
    """The result of a task (in one dtype) with all its mistakes; `starts` gets a word for each start of the ranks."""

    def run(tasks: tuple[Task, ...], word: str) -> Callable[[Task], object]:
        if starts is not None:
            starts.append(word)
        return {each: bench.run(bench.job(each, tp, taps=True)) for each in tasks}.__getitem__

    _ = bench.material.expectation(task).baselines  # before anything is judged, as `verify` does
    evidence = kept(bench.evidence(task, tp, task.dtype, bench.run(bench.job(task, tp, taps=True))))
    result = explain(evidence, judge(evidence, bench.blank(task, tp, task.dtype)))
    grafting = Grafting(bench.material, tp, run)  # type: ignore[arg-type]
    result = grafting.add(0, result, replace(task, dtype=""), evidence)
    return dict(grafting.results()).get(0, result)


def told(result: Result) -> list[tuple[str, ...]]:
    """For each mistake the tensors that it made wrong, the first first."""
    first = result.first_divergence
    if first is None:
        return []
    alike = (mistake.divergence.tensor for mistake in result.alike)
    return [(first.tensor, *alike), *map(tensors_of, result.further)]
