"""What is prepared before any rank starts: all built-in components of a run together, or each Case by itself."""

from __future__ import annotations

from dataclasses import replace

from .errors import UsageError
from .material import Preparation
from .options import OWN, Resolved
from .own_cases import own_cases


def prepare(options: Resolved, *, copies: int, process_group: bool) -> tuple[Preparation, ...]:
    """One preparation for all built-in components of a run, or one for each Case.

    Raises:
        UsageError: what `Preparation` raises; of several Cases, what each of them does.
    """
    if not options.case:
        return (Preparation(options, copies=copies, process_group=process_group),)
    found: list[Preparation] = []
    refused: dict[str, list[str]] = {}  # by what is wrong, the names of the Cases
    cases = own_cases(options.case)
    if options.targets != (OWN,):  # of a run that several hosts share, which named all of its Cases
        cases = tuple(
            replace(own, label=label, layer=layer) for own, (label, layer) in zip(cases, options.targets, strict=True)
        )
    for own in cases:
        alone = replace(options, case=(own.spec,), targets=(OWN,))
        try:
            found.append(Preparation(alone, copies=copies, process_group=process_group, own=own))
        except UsageError as error:
            refused.setdefault(str(error), []).append(own.label)
    if refused:
        whose = {text: f"{', '.join(names)}: " if len(cases) > 1 else "" for text, names in refused.items()}
        raise UsageError(" ".join(f"{names}{text}" for text, names in whose.items()))
    return tuple(found)
