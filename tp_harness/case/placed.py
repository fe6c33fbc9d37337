"""The placement of every input of a run, and of all that it returns and leaves, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from ..errors import UsageError
from ..parallel.placements import Placement, Replicate
from ..results.tensor_names import call_of, is_state, of_call, without_call
from .case import Case


def input_placements(case: Case, names: Iterable[str]) -> dict[str, Placement]:
    """The placement of each input, by its name, as `decode/input.mask`."""
    placed = case.input_placements
    if isinstance(placed, Mapping):
        return {name: _named(placed, name) or Replicate() for name in names}
    return {name: placed[at] if at < len(placed) else Replicate() for name, at in _in_call(names)}


def output_placements(case: Case, names: Iterable[str]) -> dict[str, Placement]:
    """The placement of each output and state tensor of a run, by its name, as `decode/output.0`.

    Raises:
        UsageError: `output` has one for more or fewer outputs than a call returns.
    """
    names = list(names)
    returned = [name for name in names if not is_state(name)]
    found = {name: _named(case.state, name) or Replicate() for name in names}
    if isinstance(case.output, Mapping):
        return found | {name: _named(case.output, name) or Replicate() for name in returned}
    for call, count in Counter(map(call_of, returned)).items():
        if count != len(case.outputs) and case.output != Replicate():
            of = f" by its call {call}" if call else ""
            raise UsageError(
                f"{case.name} returns {count} outputs{of} (None left out), and `output` of its Case places "
                f"{len(case.outputs)}: give it one placement for each."
            )
    return found | {name: case.outputs[min(at, len(case.outputs) - 1)] for name, at in _in_call(returned)}


def check_patterns(case: Case, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Check that each pattern of `input_placements`, `output` and `state` names a tensor of a run.

    Raises:
        UsageError: one names none; the message lists those that there are.
    """
    outputs = list(outputs)
    state = [name for name in outputs if is_state(name)]
    returned = [name for name in outputs if name not in state]
    for field, names in (("input_placements", list(inputs)), ("output", returned), ("state", state)):
        placed = getattr(case, field)
        for pattern in placed if isinstance(placed, Mapping) else ():
            if not any(_named({pattern: placed[pattern]}, name) for name in names):
                paths = dict.fromkeys(without_call(name).partition(".")[2] for name in names)
                there = f"there are {', '.join(paths)}" if paths else "there are none"
                raise UsageError(f"{field} of {case.name} names {pattern}, which no tensor is called; {there}.")


def check_same(case: Case, outputs: Iterable[str]) -> None:
    """Check that each `Same` of a case names outputs of a run.

    Raises:
        UsageError: one names none; the message lists those that there are.
    """
    outputs = list(outputs)
    for each in case.same:
        for name in each.names:
            if name not in outputs:
                raise UsageError(
                    f"same of {case.name} names {name}, which no call returns; there are {', '.join(outputs)}."
                )


def taps_of(case: Case, calls: Iterable[str]) -> dict[str, Placement]:
    """The placement of each tap, by its name in each call."""
    return {of_call(call, name): placement for call in calls for name, placement in case.taps.items()}


def _in_call(names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Each name, and its number among those of its call."""
    before: Counter[str] = Counter()
    for name in names:
        yield name, before[call_of(name)]
        before[call_of(name)] += 1


def _named(placed: Mapping[str, Placement], name: str) -> Placement | None:
    """The placement of the first pattern that is the path of a tensor, with or without its call before it."""
    path = without_call(name).partition(".")[2]
    forms = (path, of_call(call_of(name), path))
    return next((p for pattern, p in placed.items() if any(fnmatchcase(form, pattern) for form in forms)), None)
