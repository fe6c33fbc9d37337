"""Which fault a run puts in: the one that was asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config.options import OWN, Resolved
from ..errors import UsageError
from ..models import family_of
from . import find_fault


def config_at(options: Resolved, tp: int, dtype: str = "float32") -> Any:
    """The model and how it is run at degree `tp` (ranks), which decide whether a fault is active there."""
    model = replace(options.model, num_hidden_layers=options.depth or options.model.num_hidden_layers)
    return family_of(model).at(model, batch=options.batch, seq=options.seq, dtype=dtype, tp=tp)


def with_fault_s_target(options: Resolved) -> Resolved:
    """The options as they are or, with a fault to be put in, with its component and layer as the only target.

    Raises:
        UsageError: the fault is of another component, or changes nothing at any degree of the run.
    """
    if not options.fault:
        return options
    fault = find_fault(options.fault)
    if fault.component not in ({OWN[0]} if options.case else {name for name, _ in options.targets}):
        raise UsageError(f"fault {fault.name} is one of {fault.component}, which was not chosen.")
    if not any(fault.active(config_at(options, tp), tp) for tp in options.degrees):
        raise UsageError(
            f"fault {fault.name} is the right code at tp {', '.join(map(str, options.degrees))} and this input size; "
            "docs/faults.md says where it is active."
        )
    return options if options.case else replace(options, targets=((fault.component, fault.layer),))
