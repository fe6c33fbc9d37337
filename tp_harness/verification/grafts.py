"""All mistakes of a failed result, not only the first: the ranks run again with right values in wrong tensors' places.

Where every tap passes on its right value, each tensor is computed from right ones, and one that is still wrong is a
mistake of its own. The ranks run so once, and beside it with the first wrong tensor alone put right; where there are
several, once more with all of them put right, which must make the outputs right.

Not covered: two mistakes between the same two taps, which count as one; an own module without taps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..config.dtypes import EXACT
from ..diagnosis.explain import mistakes, placed
from ..diagnosis.localise import divergences
from ..diagnosis.trace import graftable
from ..judge.evidence import Evidence
from ..judge.gather import RankOutput
from ..judge.proofs import undecided
from ..parallel.placements import Placement
from ..prepare.common_sources import Sources, common_sources
from ..prepare.material import Material
from ..ranks.grafts import write_right
from ..ranks.job import Task
from ..results.result import Mistake, Result
from ..results.tensor_names import is_result

Left = Callable[[Task], Mapping[int, RankOutput]]  # reads what each rank left of a task
Run = Callable[[tuple[Task, ...], str], Left | None]  # (tasks, a word for the logs); None where the ranks failed


@dataclass(frozen=True, kw_only=True)
class Explained:
    """A failed result with its first divergence, and its task in one dtype.

    `taps` are the case's, with the placements by which they are right; `grafts` those that can be given right values.
    """

    result: Result
    task: Task
    taps: Mapping[str, Placement]
    grafts: tuple[str, ...]

    @property
    def first(self) -> str:
        """The first wrong tensor."""
        assert self.result.first_divergence is not None
        return self.result.first_divergence.tensor

    def with_grafts(self, names: Collection[str], number: int) -> Task:
        """The task with right values in the places of those of `names` that can be given."""
        return replace(self.task, grafts=tuple(name for name in self.grafts if name in names), number=number)


class Grafting:
    """Finds what else is wrong at one degree, in two starts of the ranks for all results together.

    Args:
        material: of the run.
        tp: number of ranks.
        run: runs tasks with taps on.
    """

    def __init__(self, material: Material, tp: int, run: Run) -> None:
        self.material, self.tp, self.run = material, tp, run
        self.pending: dict[int, Explained] = {}

    def add(self, index: int, result: Result, task: Task, evidence: Evidence) -> Result:
        """Take up result number `index`, which `explain` has explained by this evidence.

        Returns:
            The result, with all mistakes if no tap is wrong; else `results` has it later.

        Raises:
            PlacementError: a user's placement cannot cut a tap.
        """
        first = result.first_divergence
        if first is None or (first.kind == "shape" and is_result(first.tensor)):
            return result
        if len(evidence.expectation.calls.each) > 1:
            later = "what it returned and left is what later calls began with"
            return replace(result, put_right=f"further mistakes were not looked for: {later}")
        if first.kind == "shape":
            said = f"no right value fits the place of {first.tensor}: further mistakes were not looked for"
            return replace(result, put_right=said)
        tapped, case = evidence.expectation.run_tapped(evidence.dtype), evidence.case
        evidence = placed(evidence, tapped)
        if is_result(first.tensor):  # every tap is right as it is
            return _with(result, independent(evidence, (), result))
        as_said = (name for name in graftable(evidence, tapped) if case.taps.get(name) == evidence.case.taps.get(name))
        task = replace(task, dtype=evidence.dtype)
        write_right(self.material.job(self.tp, ()).right_path(task), tapped.oracle.written())
        self.pending[index] = Explained(result=result, task=task, taps=evidence.case.taps, grafts=tuple(as_said))
        return result

    def results(self) -> Iterator[tuple[int, Result]]:
        """The results with a wrong tap by number, with all mistakes, and with what is right once these are put right.

        Raises:
            PlacementError: a user's placement cannot cut a tap.
        """
        tried = {i: (e.with_grafts((e.first,), 1), e.with_grafts(e.grafts, 2)) for i, e in self.pending.items()}
        left = self._left([task for pair in tried.values() for task in pair], "grafts")
        if left is None:
            return
        again: dict[int, tuple[Result, Task]] = {}
        for i, (alone, every) in tried.items():
            evidence = self._evidence(i, every, left)
            result = self.pending[i].result
            found = independent(evidence, every.grafts, result)
            result = _with(result, found)
            wrong = {self.pending[i].first, *(name for mistake in found for name in tensors_of(mistake))}
            if len(wrong) == 1:
                alone_right = replace(self._evidence(i, alone, left), expectation=evidence.expectation)
                yield i, self._concluded(result, alone_right)
            else:
                again[i] = result, self.pending[i].with_grafts(wrong, 3)
        left = self._left([task for _, task in again.values()], "all-grafts")
        for i, (result, task) in again.items():
            yield i, self._concluded(result, self._evidence(i, task, left)) if left else result

    def _left(self, tasks: Sequence[Task], word: str) -> Left | None:
        return self.run(tuple(tasks), word) if tasks else None

    def _evidence(self, index: int, task: Task, left: Left) -> Evidence:
        evidence = kept(Evidence.of(self.material, task, self.tp, task.dtype, left(task)))
        return replace(evidence, case=replace(evidence.case, taps=self.pending[index].taps))

    def _concluded(self, result: Result, evidence: Evidence) -> Result:
        """The result with what is still wrong where the ranks went on with right values of all mistakes found."""
        first = result.first_divergence
        assert first is not None
        known = {first.tensor, *(name for m in (*result.alike, *result.further) for name in tensors_of(m))}
        wrong = [found.tensor for found, _ in divergences(evidence, evidence.expectation.run_tapped(evidence.dtype))]
        wrong = [name for name in wrong if name not in known]
        unproved = undecided(evidence, known) if evidence.dtype == EXACT and not wrong else ()
        return replace(result, put_right=_conclusion(known, wrong, unproved))


def kept(evidence: Evidence) -> Evidence:
    """The evidence, which keeps its reference's runs with taps for as long as it lives itself."""
    return replace(evidence, expectation=evidence.expectation.keeping())


def independent(evidence: Evidence, grafts: Sequence[str], explained: Result) -> tuple[Mistake, ...]:
    """The mistakes in order, of ranks that went on with right values of `grafts`; see `mistakes` and `joined`."""
    found = mistakes(evidence, grafts, explained)
    if len(found) < 2:
        return tuple(found)
    expected = evidence.expectation
    sources = common_sources(expected.case, expected.run_tapped(evidence.dtype), expected.locks)
    return joined(found, sources)


def joined(found: Iterable[Mistake], sources: Sources) -> tuple[Mistake, ...]:
    """Wrong tensors that one mistake may have made wrong, as one with the others as its `alike`.

    Args:
        found: in order of execution, each wrong although what is before it is right.
        sources: what each is computed from beside right tensors, as `common_sources` has it.
    """
    groups: list[list[Mistake]] = []
    for mistake in found:
        fits = (group for group in groups if any(_may_be_one(one, mistake, sources) for one in group))
        group = next(fits, None)
        if group is None:
            groups.append([mistake])
        else:
            group.append(mistake)
    return tuple(replace(first, alike=tuple(others)) for first, *others in groups)


def _may_be_one(one: Mistake, other: Mistake, sources: Sources) -> bool:
    """Whether it is the same code in two layers, a known cause in one module, or an unknown one in a common source."""
    names = one.divergence.tensor, other.divergence.tensor
    if len({re.sub(r"\d+", "", name) for name in names}) == 1:
        return True
    causes = [{(cause.name, cause.sentence) for cause in mistake.causes} for mistake in (one, other)]
    if all(causes):
        return len({_module(name) for name in names}) == 1 and bool(set.intersection(*causes))
    return not sources.get(names[0], frozenset()).isdisjoint(sources.get(names[1], frozenset()))


def _module(tensor: str) -> str:
    return "" if is_result(tensor) else tensor.rpartition(".")[0]


def tensors_of(mistake: Mistake) -> tuple[str, ...]:
    """The names of the tensors that it has made wrong by itself."""
    return (mistake.divergence.tensor, *(other.divergence.tensor for other in mistake.alike))


def _with(result: Result, found: Sequence[Mistake]) -> Result:
    """The result with the mistakes beside its first; what was found of its first tensor stays."""
    first = result.first_divergence
    assert first is not None
    own = next((mistake for mistake in found if mistake.divergence.tensor == first.tensor), None)
    return replace(
        result, alike=own.alike if own else (), further=tuple(mistake for mistake in found if mistake is not own)
    )


def _conclusion(known: Collection[str], wrong: Sequence[str], unproved: Sequence[str]) -> str:
    """What the outputs are with the known mistakes put right; `unproved`: why exact arithmetic does not prove them."""
    put = "with these put right" if len(known) > 1 else "with it put right"
    last = [name for name in known if is_result(name)]
    if unproved:
        return f"{put}, nothing else is known to be wrong, and the rest is not proved: {'; '.join(unproved)}"
    if not wrong:
        return f"{put}, everything else is right" if last else f"{put}, the output is right"
    verb = "is" if len(wrong) == 1 else "are"
    return f"{put}, {', '.join(wrong)} {verb} still wrong, for a reason that was not found"
