"""The text of a failure: one sentence, then the place, then the numbers. Pure functions of the results; no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..judge.verdict import nearest_gate, severity
from ..results.result import Cause, Divergence, Mistake, Result, Status
from ..results.tensor_names import is_result
from .failures import Failure, has_numbers
from .headline import failed_by

MOST_LINES = 10  # of numbers in one paragraph; four degrees in two dtypes need 8
SHOWN = 4  # tensors that a sentence names
_VERBS = {
    Status.DIFFERENT: "is not the reference's",
    Status.SHAPE: "has a wrong shape or dtype",
    Status.NONFINITE: "is not finite",
    Status.VOID: "cannot be decided",
}
_ENDED = {
    Status.CRASH: "the ranks crashed",
    Status.TIMEOUT: "the ranks hung",
    Status.MISSING: "an output is missing",
    Status.NONFINITE: "an output is not finite",
    Status.VOID: "this proves nothing",
    Status.SKIPPED: "this was not run",
    Status.NOT_PROVED: "the same function is not proved",
    Status.UNDECIDED: "this is not decided",
}


def sentence(failure: Failure) -> str:
    """What is wrong, at which degrees and dtypes, and the likely cause: `mine: output.0 is wrong at tp 2, 8 in ...`."""
    first = failure.first
    head = f"{_names(failure)}: {_what(failure)} {_where(failure.results, failure.run)}"
    if has_numbers(first):
        return ": ".join(filter(None, (head, _mistakes(failure))))
    reasons = dict.fromkeys(result.reason for result in failure.results)
    return f"{head}: {reasons.popitem()[0]}" if len(reasons) == 1 else head


def _mistakes(failure: Failure) -> str:
    """The cause, or `2 mistakes: 1. bias x tp; 2. all-reduce missing`: of one without a cause, where it is."""
    first, others = " or ".join(cause.name for cause in failure.causes), failure.further
    if not others or not failure.first.first_divergence:
        return first
    named = [first or f"in {failure.first.first_divergence.tensor}"]
    named += [" or ".join(c.name for c in m.causes) or f"in {m.divergence.tensor}" for m in others.values()]
    return f"{len(named)} mistakes: " + "; ".join(f"{number}. {name}" for number, name in enumerate(named, 1))


def _names(failure: Failure) -> str:
    """`attention layer 0, 1`; the layer only where the run has several, or another than 0."""
    layers: dict[str, list[int]] = {}
    for result in failure.results:
        layers.setdefault(result.label, []).append(result.layer)
    names = []
    for label, found in layers.items():
        plain = {r.layer for r in failure.run if r.label == label} == {0}
        names.append(label if plain else f"{label} layer {_list(set(found))}")
    return ", ".join(names)


def _what(failure: Failure) -> str:
    first = failure.first
    if not has_numbers(first):
        return _ENDED.get(first.status, first.status.value)
    over = dict.fromkeys(g.tensor for r in failure.results for g in r.gates if not g.passed)
    tensors = [name for name in over if is_result(name)] or list(over)
    tensors = tensors or ([first.first_divergence.tensor] if first.first_divergence else [])
    verb = _VERBS.get(first.status, "is wrong")
    if not tensors:
        return f"the check `{failed_by(first)}` failed" if failed_by(first) else f"an output {verb}"
    if len(tensors) == 1:
        return f"{tensors[0]} {verb}"
    more = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    return f"{', '.join(tensors[:SHOWN])}{more}: each {verb}"


def _where(results: Iterable[Result], run: Sequence[Result]) -> str:
    """`at tp 2, 8 in both dtypes`, or `at tp 2, 8 in exact and float32, at tp 8 in bfloat16`."""
    degrees: dict[str, set[int]] = {}
    for result in results:
        degrees.setdefault(result.dtype, set()).add(result.tp)
    dtypes = dict.fromkeys(result.dtype for result in run)
    if len(degrees) == len(dtypes) > 1 and len(set(map(frozenset, degrees.values()))) == 1:
        return f"at tp {_list(next(iter(degrees.values())))} in {'both' if len(dtypes) == 2 else 'all'} dtypes"
    alike: dict[str, list[str]] = {}
    for dtype in dtypes:
        if dtype in degrees:
            alike.setdefault(_list(degrees[dtype]), []).append(dtype)
    return ", ".join(f"at tp {found} in {' and '.join(of)}" for found, of in alike.items())


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))


def details(failure: Failure) -> list[str]:
    """The lines below the sentence: what passes, the first wrong tensor, the cause, numbers per dtype and degree."""
    parts = (_passing, _undecided, _first_tensor, _causes, _alike, _numbers, _further, _notes)
    return [line for part in parts for line in part(failure)]


def _passing(failure: Failure) -> list[str]:
    passed = [r for r in failure.run if (r.label, r.layer) in failure.components and r.status.passed]
    unproved = failure.first.status is Status.NOT_PROVED
    passed = [r for r in passed if not (unproved and r.proof)]
    said = [f"it passes {_where(passed, failure.run)}"] if passed else []
    stands = "this is neither a failure nor a pass; the verdicts in floating point stand"
    return [": ".join((stands, *said))] if unproved else said


def _undecided(failure: Failure) -> list[str]:
    """What exact arithmetic could not decide, and why, unless the reasons say it."""
    reasons = " ".join(result.reason for result in failure.results)
    unproved = (r.proof for r in failure.results if r.proof and r.status is Status.NOT_PROVED)
    said = dict.fromkeys(text for proof in unproved for text in proof.undecided)
    return [f"not decided: {text}" for text in said if text.rstrip(".") not in reasons]


def _first_tensor(failure: Failure) -> list[str]:
    found = failure.first.first_divergence
    if not found:
        return []
    what = "first tensor over its limit" if failure.first.status is Status.VOID else "first wrong tensor"
    where = f" on {_common_ranks(failure)}" if _common_ranks(failure) else ""
    return [f"{what}: {found.tensor}{where}; {before(found)}"]


def _common_ranks(failure: Failure) -> str:
    """The ranks on which the first wrong tensor is wrong, if all results have the same ones, or all ranks of each."""
    held = {(r.tp, r.first_divergence.ranks) for r in failure.results if r.first_divergence}
    if all(ranks == tuple(range(tp)) for tp, ranks in held):
        return "all ranks"
    ranks = {ranks for _, ranks in held}
    return ranks_text(ranks.pop()) if len(ranks) == 1 else ""


def before(found: Divergence) -> str:
    """A clause on the tensors before the first wrong one."""
    return f"{found.after} before it is right" if found.after else "no tensor before it was compared"


def _causes(failure: Failure) -> list[str]:
    hypotheses = max(result.hypotheses for result in failure.results)
    told = replace(failure.first, diagnosis=failure.causes, hypotheses=hypotheses)
    if not told.first_divergence:
        return []
    named = [result for result in failure.results if result.diagnosis]
    partly = failure.causes and len(named) < len(failure.results)
    return diagnosis_text(told) + ([f"named {_where(named, failure.run)}"] if partly else [])


def diagnosis_text(result: Result) -> list[str]:
    """A line for each cause that reproduces the first wrong tensor, or one that none is known."""
    if result.as_float32 and not result.diagnosis:
        return [f"cause as in float32: {cause.name}: {cause.sentence}" for cause in result.as_float32]
    if not result.diagnosis:
        tried = (
            f": none of {result.hypotheses} guesses at known mistakes gives these numbers" if result.hypotheses else ""
        )
        wrong = result.status in (Status.MISMATCH, Status.DIFFERENT)  # of any other, the status says it all
        return [f"no known cause{tried}"] if wrong else []
    likely = "likely" if len(result.diagnosis) == 1 else "possible"
    return [
        f"{'cause' if cause.exact else f'{likely} cause'}: {cause.name}: {cause.sentence} "
        f"({_fit(cause)}; tp {result.tp} {result.dtype})"
        for cause in result.diagnosis
    ]


def further_text(mistake: Mistake, number: int, result: Result, where: str = "") -> list[str]:
    """The lines of mistake `number` of a result: the tensor, its cause, and what else it may have made wrong."""
    found = mistake.divergence
    ranks, *rest = _divergence(found)
    if found.ranks == tuple(range(result.tp)):
        ranks = ranks.replace(ranks_text(found.ranks), "all ranks", 1)
    text = "; ".join([ranks, *rest, "what is before it was put right"])
    told = replace(result, diagnosis=mistake.causes, as_float32=(), hypotheses=0)
    line = f"mistake {number}{where and f' ({where})'}: {found.tensor} {text}"
    return [line, *diagnosis_text(told), *alike_text(mistake.alike)]


def alike_text(alike: Iterable[Mistake]) -> list[str]:
    """A line on the tensors that are wrong by themselves, and that the mistake before it may have made wrong."""
    names = [m.divergence.tensor + (f" ({' or '.join(c.name for c in m.causes)})" if m.causes else "") for m in alike]
    return [f"wrong by itself too, by the same mistake as far as can be told: {', '.join(names)}"] if names else []


def _further(failure: Failure) -> list[str]:
    """What is wrong beside the first mistake, and what is right once all are put right."""
    lines: list[str] = []
    tried = [result for result in failure.results if result.put_right or result.further]
    for number, (tensor, mistake) in enumerate(failure.further.items(), 2):
        having = [r for r in tried if any(m.divergence.tensor == tensor for m in r.further)]
        where = _where(having, failure.run) if len(having) < len(tried) else ""
        lines += further_text(mistake, number, having[0], where)
    said = dict.fromkeys(result.put_right for result in tried if result.put_right)
    for sentence_ in said:
        having = [result for result in tried if result.put_right == sentence_]
        lines.append(sentence_ + (f" ({_where(having, failure.run)})" if len(said) > 1 else ""))
    return lines


def _alike(failure: Failure) -> list[str]:
    return alike_text(failure.first.alike)


def _fit(cause: Cause) -> str:
    """How well a cause reproduces the numbers."""
    if cause.exact:
        return "not equal, and this known mistake gives exactly these residues"
    return (
        f"accounts for {cause.explained:.2%} of the squared error; {cause.residual:.1e} is left, rounding explains up "
        f"to {cause.limit:.1e}"
    )


def _numbers(failure: Failure) -> list[str]:
    several = len(failure.components) > 1
    said: dict[str, None] = {}
    reasons = {result.reason for result in failure.results}
    if len(reasons) == 1 and not has_numbers(failure.first):
        return []  # the sentence has it
    for result in failure.results:
        name = f"{result.label} layer {result.layer} " if several else ""
        said[f"{name}tp {result.tp} {result.dtype}: {_numbers_of(result, failure)}"] = None
    lines = list(said)
    more = len(lines) - MOST_LINES
    return [*lines[: MOST_LINES - 1], f"{more + 1} more are in report.html"] if more > 0 else lines


def _numbers_of(result: Result, failure: Failure) -> str:
    """The line of one result in its mistake's paragraph: number, limit, worst element, and ranks if they differ."""
    if result.status.is_open:
        return result.reason
    found, parts = result.first_divergence, [f"{c.name}: {c.detail}" for c in result.checks if not c.passed]
    if found is None:
        return "; ".join(parts + _own_numbers(result)) or result.reason
    first = failure.first.first_divergence
    other = first is not None and found.tensor != first.tensor
    parts += [f"first wrong tensor: {found.tensor}"] if other else []
    ranks, *rest = _divergence(replace(found, token=None) if found.index else found, short=not other)
    parts += rest if _common_ranks(failure) and rest else [ranks, *rest]
    return "; ".join(parts) + (f" (seed {result.seed})" if result.draws > 1 else "")


def divergence_text(found: Divergence) -> str:
    """The first divergence in one sentence: tensor, ranks, token, index, numbers, and the last tensor found right."""
    return f"{found.tensor} {'; '.join(_divergence(found))}; {before(found)}"


def _divergence(found: Divergence, *, short: bool = False) -> list[str]:
    """Ranks, number and worst element; `short` leaves out which tensor the number is of."""
    parts = [f"on {ranks_text(found.ranks)}" + (f": {found.detail}" if found.detail else "")]
    at = f" (token {found.token[1]} of row {found.token[0]})" if found.token else ""
    if found.kind == "choice":
        return [parts[0] + at]
    if found.gate and not found.gate.passed:
        metric = found.gate.kind if short and found.gate.tensor == found.tensor else f"{found.gate.metric} is"
        parts.append(f"{metric} {found.gate.value:.2e}, {severity(found.gate):.3g} x its limit")
    if found.index:
        which = "worst" if found.gate else "wrong"
        parts.append(f"{which} at {list(found.index)}{at}: {found.actual:.6g} instead of {found.expected:.6g}")
    elif at:
        parts[-1] += at
    return parts


def _own_numbers(result: Result) -> list[str]:
    gate, worst = nearest_gate(tuple(gate for gate in result.gates if not gate.passed)), result.worst
    if gate is None:
        return [] if any(not check.passed for check in result.checks) else [result.reason]
    parts = [f"{gate.metric} is {gate.value:.2e}, limit {gate.limit:.2e}"]
    if worst:
        parts.append(
            f"worst element: {worst.tensor}{list(worst.index)} on rank {worst.rank} is {worst.actual:.6g}, expected "
            f"{worst.expected:.6g} (seed {result.seed})"
        )
    return parts


def _notes(failure: Failure) -> list[str]:
    return [f"note: {note}" for note in dict.fromkeys(note for r in failure.results for note in r.notes)]


def ranks_text(ranks: tuple[int, ...]) -> str:
    """`rank 5`, or `ranks 1-7, 9`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][-1] + 1:
            spans[-1].append(rank)
        else:
            spans.append([rank])
    words = [f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(words)}"
